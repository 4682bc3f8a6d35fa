//! What methods keep against their weight, as a picture for documents and as a part of the page.

use std::fmt::Write;

use ::compare::{Reality, Summary};
use faces::RgbImage;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight};
use tiny_skia::{Paint, PathBuilder, Pixmap, Stroke, StrokeDash, Transform};

use super::letters::{Letters, PLAIN};

const COLORS: [[u8; 3]; 4] = [[194, 65, 12], [29, 78, 216], [21, 128, 61], [126, 34, 206]];
const GRAY: [u8; 3] = [130, 130, 138];
const TITLE: Letters = Letters { size: RasterHeight::Size24, weight: FontWeight::Bold, ..PLAIN };
const TEXT: Letters = Letters { size: RasterHeight::Size20, ..PLAIN };

/// Pixels of a panel, and of the field inside it.
const WIDTH: f32 = 700.0;
const HEIGHT: f32 = 546.0;
const LEFT: f32 = 70.0;
const RIGHT: f32 = 670.0;
const TOP: f32 = 60.0;
const BOTTOM: f32 = 400.0;

/// One curve, or a level that does not move with the weight.
#[derive(Clone, Debug, PartialEq)]
struct Line {
    name: String,
    color: [u8; 3],
    dashed: bool,
    points: Vec<(f64, f64)>,
}

/// One measure against the weight.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chart {
    title: &'static str,
    across: &'static str,
    most: f64,
    lines: Vec<Line>,
}

/// A column of the table.
type Measure = fn(&Summary) -> Option<f64>;

/// Identity and text against the weight; none where no method ran at several.
pub(crate) fn charts(summaries: &[Summary], reality: &Reality) -> Vec<Chart> {
    let scaled = |s: &&Summary| s.scale.is_some();
    let mut methods: Vec<&str> = summaries.iter().filter(scaled).map(|s| s.method).collect();
    methods.dedup();
    let most = summaries.iter().filter_map(|s| s.scale).fold(0.0, f64::max);
    let measures: [(&str, Measure, Option<f64>); 2] = [
        ("Identity: SimRef", |s| s.sim_ref, reality.sim_ref),
        ("Text: share of what is asked", |s| s.text, reality.text),
    ];
    let across = match methods.contains(&"identitynet") {
        true => "weight of the method",
        false => "weight of the adapter",
    };
    let chart = |(title, of, best): (&'static str, Measure, Option<f64>)| {
        let curve = |(i, method): (usize, &&str)| {
            let mine = summaries.iter().filter(|s| s.method == *method);
            let points = mine.filter_map(|s| Some((s.scale?, of(s)?))).collect();
            Line { name: described(method).into(), color: COLORS[i % COLORS.len()], dashed: false, points }
        };
        let level = |name: &str, value: Option<f64>| Line {
            name: name.into(),
            color: GRAY,
            dashed: true,
            points: value.map(|value| vec![(0.0, value), (most, value)]).unwrap_or_default(),
        };
        let alone = summaries.iter().find(|s| s.method == "text").and_then(of);
        // Levels lie under the curves, and have their names on them.
        let levels = [level("their own pictures", best), level("prompt alone", alone)].into_iter();
        let curves = methods.iter().enumerate().map(curve);
        let lines: Vec<Line> = levels.chain(curves).filter(|line| !line.points.is_empty()).collect();
        Chart { title, across, most, lines }
    };
    let drawable = |chart: &Chart| most > 0.0 && chart.lines.iter().any(|line| !line.dashed);
    measures.into_iter().map(chart).filter(drawable).collect()
}

fn described(method: &str) -> &str {
    match method {
        "adapter" => "IP-Adapter, without IdentityNet",
        "identitynet" => "IdentityNet, without IP-Adapter",
        "instantid" => "InstantID: IP-Adapter with IdentityNet",
        other => other,
    }
}

impl Chart {
    fn x(&self, scale: f64) -> f32 {
        LEFT + (RIGHT - LEFT) * (scale / self.most) as f32
    }

    fn y(value: f64) -> f32 {
        // From -0.1 to 1: similarities of strangers lie around zero.
        BOTTOM - (BOTTOM - TOP) * ((value.clamp(-0.1, 1.0) + 0.1) / 1.1) as f32
    }

    /// The lines that move with the weight.
    fn curves(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| !line.dashed)
    }

    /// Where the name of a level stands: above it or below, where fewer curves pass.
    fn name_height(&self, level: &Line) -> f32 {
        let at = level.points.first().map_or(BOTTOM, |point| Chart::y(point.1));
        let passing = |middle: f32| {
            let points = self.curves().flat_map(|line| &line.points).filter(|point| point.0 > 0.6 * self.most);
            points.filter(|point| (Chart::y(point.1) - middle).abs() < 18.0).count()
        };
        let (above, below) = (at - 8.0, at + 24.0);
        // Of two levels side by side the higher one is named above, the lower one below.
        let levels = self.lines.iter().filter(|line| line.dashed).flat_map(|line| line.points.first());
        let beside = levels.map(|point| Chart::y(point.1)).find(|y| *y != at && (y - at).abs() < 28.0);
        if let Some(other) = beside {
            return if other < at { below } else { above };
        }
        if passing(below - 7.0) < passing(above - 7.0) { below } else { above }
    }

    /// The weights at which something was measured.
    fn scales(&self) -> Vec<f64> {
        let mut all: Vec<f64> = self.curves().flat_map(|line| line.points.iter().map(|p| p.0)).collect();
        all.sort_by(f64::total_cmp);
        all.dedup();
        all
    }

    /// For the page.
    pub(crate) fn svg(&self) -> String {
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\" font-size=\"21\" fill=\"currentColor\">\
             <text x=\"{LEFT}\" y=\"34\" font-weight=\"600\" font-size=\"26\">{}</text>",
            self.title, self.title
        );
        for value in LEVELS {
            let y = Chart::y(value);
            let _ = write!(
                svg,
                "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"#8886\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{value}</text>",
                LEFT - 10.0,
                y + 6.0
            );
        }
        for scale in self.scales() {
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{scale}</text>",
                self.x(scale),
                BOTTOM + 26.0
            );
        }
        let _ = write!(svg, "<text x=\"{LEFT}\" y=\"{:.1}\">{}</text>", BOTTOM + 56.0, self.across);
        for line in &self.lines {
            let color = line.color.map(|c| format!("{c:02x}")).concat();
            let dash = if line.dashed { " stroke-dasharray=\"8 7\"" } else { "" };
            let points: Vec<String> =
                line.points.iter().map(|p| format!("{:.1} {:.1}", self.x(p.0), Chart::y(p.1))).collect();
            let _ = write!(
                svg,
                "<path d=\"M{}\" fill=\"none\" stroke=\"#{color}\" stroke-width=\"3\"{dash}/>",
                points.join("L")
            );
            for (scale, value) in line.points.iter().filter(|_| !line.dashed) {
                let (x, y) = (self.x(*scale), Chart::y(*value));
                let _ = write!(
                    svg,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"#{color}\"><title>{value:.3}</title></circle>"
                );
            }
            if line.dashed {
                let y = self.name_height(line);
                let _ = write!(
                    svg,
                    "<text x=\"{RIGHT}\" y=\"{y:.1}\" text-anchor=\"end\" opacity=\".75\">{}</text>",
                    line.name
                );
            }
        }
        for (i, line) in self.curves().enumerate() {
            let (x, y) = legend(i);
            let color = line.color.map(|c| format!("{c:02x}")).concat();
            let _ = write!(
                svg,
                "<path d=\"M{x} {:.1}h36\" stroke=\"#{color}\" stroke-width=\"4\"/><text x=\"{:.1}\" y=\"{y}\">{}</text>",
                y - 6.0,
                x + 46.0,
                line.name
            );
        }
        svg + "</svg>"
    }

    /// Draws the lines of the panel whose left edge is at `left`; words come later.
    fn draw(&self, on: &mut Pixmap, left: f32) {
        let at = Transform::from_translate(left, 0.0);
        for value in LEVELS {
            stroke(on, &[(LEFT, Chart::y(value)), (RIGHT, Chart::y(value))], [222, 222, 226], 1.5, false, at);
        }
        for line in &self.lines {
            let points: Vec<(f32, f32)> = line.points.iter().map(|p| (self.x(p.0), Chart::y(p.1))).collect();
            stroke(on, &points, line.color, 3.5, line.dashed, at);
            for (x, y) in points.iter().filter(|_| !line.dashed) {
                if let Some(dot) = PathBuilder::from_circle(*x, *y, 6.0) {
                    on.fill_path(&dot, &paint(line.color), tiny_skia::FillRule::Winding, at, None);
                }
            }
        }
        for (i, line) in self.curves().enumerate() {
            let (x, y) = legend(i);
            stroke(on, &[(x, y - 6.0), (x + 36.0, y - 6.0)], line.color, 4.0, false, at);
        }
    }

    fn write(&self, on: &mut RgbImage, left: u32) {
        let put = |on: &mut RgbImage, letters: Letters, text: &str, x: f32, y: f32| {
            letters.write(on, text, left + x.max(0.0) as u32, (y - 17.0).max(0.0) as u32);
        };
        put(on, TITLE, self.title, LEFT, 32.0);
        for value in LEVELS {
            let text = value.to_string();
            put(on, TEXT, &text, LEFT - 12.0 - TEXT.width(&text) as f32, Chart::y(value) + 6.0);
        }
        for scale in self.scales() {
            let text = scale.to_string();
            put(on, TEXT, &text, self.x(scale) - TEXT.width(&text) as f32 / 2.0, BOTTOM + 28.0);
        }
        put(on, TEXT, self.across, LEFT, BOTTOM + 56.0);
        for line in self.lines.iter().filter(|line| line.dashed) {
            let letters = Letters { color: line.color, ..TEXT };
            put(on, letters, &line.name, RIGHT - letters.width(&line.name) as f32, self.name_height(line));
        }
        for (i, line) in self.curves().enumerate() {
            let (x, y) = legend(i);
            put(on, TEXT, &line.name, x + 46.0, y);
        }
    }
}

const LEVELS: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];

/// Where the i-th line is named.
fn legend(i: usize) -> (f32, f32) {
    (LEFT, BOTTOM + 84.0 + 24.0 * i as f32)
}

fn paint(color: [u8; 3]) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color_rgba8(color[0], color[1], color[2], 255);
    paint.anti_alias = true;
    paint
}

fn stroke(on: &mut Pixmap, points: &[(f32, f32)], color: [u8; 3], width: f32, dashed: bool, at: Transform) {
    let mut path = PathBuilder::new();
    for (i, (x, y)) in points.iter().enumerate() {
        if i == 0 { path.move_to(*x, *y) } else { path.line_to(*x, *y) }
    }
    let Some(path) = path.finish() else { return };
    let dash = if dashed { StrokeDash::new(vec![10.0, 8.0], 0.0) } else { None };
    on.stroke_path(&path, &paint(color), &Stroke { width, dash, ..Stroke::default() }, at, None);
}

/// All panels side by side on white.
pub(crate) fn picture(charts: &[Chart]) -> Option<RgbImage> {
    let (width, height) = (charts.len() as u32 * WIDTH as u32, HEIGHT as u32);
    let mut lines = Pixmap::new(width, height)?;
    lines.fill(tiny_skia::Color::WHITE);
    for (i, chart) in charts.iter().enumerate() {
        chart.draw(&mut lines, i as f32 * WIDTH);
    }
    let rgb = lines.pixels().iter().flat_map(|p| [p.red(), p.green(), p.blue()]).collect();
    let mut image = RgbImage::from_raw(width, height, rgb)?;
    for (i, chart) in charts.iter().enumerate() {
        chart.write(&mut image, i as u32 * WIDTH as u32);
    }
    Some(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        let line = Line { name: "adapter".into(), color: COLORS[0], dashed: false, points };
        Chart { title: "Identity: SimRef", across: "weight", most: 1.2, lines: vec![line] }
    }

    #[test]
    fn a_point_stands_where_its_values_say() {
        let chart = chart(vec![(0.0, 0.0), (0.6, 0.5), (1.2, 1.0)]);
        assert_eq!(chart.scales(), [0.0, 0.6, 1.2]);
        let image = picture(&[chart.clone(), chart.clone()]).unwrap();
        assert_eq!(image.dimensions(), (1400, 546));
        let color = |scale: f64, value: f64| image.get_pixel(chart.x(scale) as u32, Chart::y(value) as u32).0;
        for (scale, value) in [(0.0, 0.0), (0.6, 0.5), (1.2, 1.0), (0.3, 0.25)] {
            assert_eq!(color(scale, value), COLORS[0], "{scale} {value}");
        }
        assert_eq!(color(0.6, 0.9), [255; 3]);
        let svg = chart.svg();
        let level = |value: f64| Line { dashed: true, points: vec![(0.0, value)], ..chart.lines[0].clone() };
        assert!(chart.name_height(&level(0.2)) < Chart::y(0.2), "above its level");
        assert!(chart.name_height(&level(0.95)) > Chart::y(0.95), "below it, where a curve passes above");
        let two = Chart { lines: [&chart.lines[..], &[level(0.96), level(0.99)]].concat(), ..chart.clone() };
        let gap = two.name_height(&level(0.96)) - two.name_height(&level(0.99));
        assert!(gap > 20.0, "names of levels side by side stand apart by {gap}");
        assert!(svg.contains("<title>0.500</title>") && svg.contains(">0.6</text>") && svg.ends_with("</svg>"));
    }
}
