//! Paths and paint: where a point of the head lands in the picture, and how a shape is filled.

use tiny_skia::{
    Color, FillRule, GradientStop, LineCap, LineJoin, LinearGradient, Paint, Path, PathBuilder, Pixmap, Point,
    RadialGradient, Shader, SpreadMode, Stroke, Transform,
};

use crate::color::Rgb;

/// A point in the picture, in pixels.
pub(crate) type P = (f32, f32);

/// Maps head coordinates to pixels. The unit is the distance between an average face's eyes, the origin lies
/// between the eyes, y points down and z towards the viewer.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) unit: f32,
    pub(crate) center: P,
    sin_yaw: f32,
    cos_yaw: f32,
    sin_pitch: f32,
    cos_pitch: f32,
    sin_roll: f32,
    cos_roll: f32,
    half_width: f32,
}

/// Height of the point about which the head turns.
const PIVOT: f32 = 0.35;

impl View {
    pub(crate) fn new(unit: f32, center: P, yaw: f32, pitch: f32, roll: f32, half_width: f32) -> View {
        let (sin_yaw, cos_yaw) = yaw.to_radians().sin_cos();
        let (sin_pitch, cos_pitch) = pitch.to_radians().sin_cos();
        let (sin_roll, cos_roll) = roll.to_radians().sin_cos();
        View { unit, center, sin_yaw, cos_yaw, sin_pitch, cos_pitch, sin_roll, cos_roll, half_width }
    }

    /// The same place and size, upright and straight ahead, tilted by a share of the roll: for the body.
    pub(crate) fn body(&self, share: f32) -> View {
        let roll = self.sin_roll.asin() * share;
        View {
            sin_yaw: self.sin_yaw * share,
            cos_yaw: 1.0,
            sin_pitch: 0.0,
            cos_pitch: 1.0,
            sin_roll: roll.sin(),
            cos_roll: roll.cos(),
            ..self.clone()
        }
    }

    fn place(&self, x: f32, y: f32) -> P {
        let (rx, ry) = (x * self.cos_roll - y * self.sin_roll, x * self.sin_roll + y * self.cos_roll);
        (self.center.0 + rx * self.unit, self.center.1 + ry * self.unit)
    }

    /// A point of the silhouette: it keeps its width when the head turns and slides by its depth `z`.
    pub(crate) fn flat(&self, x: f32, y: f32, z: f32) -> P {
        self.place(x + z * self.sin_yaw, y - PIVOT - z * self.sin_pitch)
    }

    /// A point of the face, lying `lift` above the surface of the head.
    pub(crate) fn face(&self, x: f32, y: f32, lift: f32) -> P {
        let (u, v) = (x / (1.1 * self.half_width), (y - 0.25) / 1.8);
        let z = 0.82 * (1.0 - 0.9 * u * u - v * v).max(0.0).sqrt() + lift;
        let x1 = x * self.cos_yaw + z * self.sin_yaw;
        let z1 = z * self.cos_yaw - x * self.sin_yaw;
        let y1 = (y - PIVOT) * self.cos_pitch - z1 * self.sin_pitch;
        self.place(x1, y1)
    }

    /// Sine of the yaw: which side of the face is the far one.
    pub(crate) fn turn(&self) -> f32 {
        self.sin_yaw
    }
}

/// A smooth path through points (Catmull-Rom, drawn as cubics).
pub(crate) fn smooth(points: &[P], closed: bool) -> Option<Path> {
    let n = points.len();
    if n < 3 {
        return polygon(points, closed);
    }
    let at = |i: isize| -> P {
        if closed { points[i.rem_euclid(n as isize) as usize] } else { points[i.clamp(0, n as isize - 1) as usize] }
    };
    let mut path = PathBuilder::new();
    path.move_to(points[0].0, points[0].1);
    for i in 0..if closed { n } else { n - 1 } as isize {
        let (a, b, c, d) = (at(i - 1), at(i), at(i + 1), at(i + 2));
        path.cubic_to(
            b.0 + (c.0 - a.0) / 6.0,
            b.1 + (c.1 - a.1) / 6.0,
            c.0 - (d.0 - b.0) / 6.0,
            c.1 - (d.1 - b.1) / 6.0,
            c.0,
            c.1,
        );
    }
    if closed {
        path.close();
    }
    path.finish()
}

/// Straight lines through points.
pub(crate) fn polygon(points: &[P], closed: bool) -> Option<Path> {
    let mut path = PathBuilder::new();
    for (i, p) in points.iter().enumerate() {
        if i == 0 { path.move_to(p.0, p.1) } else { path.line_to(p.0, p.1) }
    }
    if closed {
        path.close();
    }
    path.finish()
}

/// A circle.
pub(crate) fn circle(center: P, radius: f32) -> Option<Path> {
    PathBuilder::from_circle(center.0, center.1, radius.max(0.05))
}

/// A paint: colours with opacity along a line or about a point.
pub(crate) enum Fill {
    Solid(Rgb, f32),
    Line(P, P, Vec<(f32, Rgb, f32)>),
    Round(P, f32, Vec<(f32, Rgb, f32)>),
}

fn color(c: Rgb, a: f32) -> Color {
    Color::from_rgba(c[0].clamp(0.0, 1.0), c[1].clamp(0.0, 1.0), c[2].clamp(0.0, 1.0), a.clamp(0.0, 1.0))
        .unwrap_or(Color::BLACK)
}

fn shader(fill: Fill) -> Option<Shader<'static>> {
    let stops =
        |s: Vec<(f32, Rgb, f32)>| s.into_iter().map(|(t, c, a)| GradientStop::new(t, color(c, a))).collect::<Vec<_>>();
    match fill {
        Fill::Solid(c, a) => Some(Shader::SolidColor(color(c, a))),
        Fill::Line(a, b, s) => LinearGradient::new(
            Point::from_xy(a.0, a.1),
            Point::from_xy(b.0, b.1),
            stops(s),
            SpreadMode::Pad,
            Transform::identity(),
        ),
        Fill::Round(c, r, s) => {
            let c = Point::from_xy(c.0, c.1);
            RadialGradient::new(c, 0.0, c, r.max(0.1), stops(s), SpreadMode::Pad, Transform::identity())
        }
    }
}

/// The picture under work.
pub(crate) struct Canvas {
    pub(crate) pixels: Pixmap,
    /// Picture width over 256: line widths scale with it.
    pub(crate) k: f32,
    /// Colour and width of contours, in styles that have them.
    pub(crate) contour: Option<(Rgb, f32)>,
    /// Strength of shading: 1 soft and full, 0 none.
    pub(crate) shading: f32,
    /// Direction the light comes from, unit length.
    pub(crate) light: P,
}

impl Canvas {
    fn paint(&mut self, path: &Option<Path>, fill: Fill) {
        let (Some(path), Some(shader)) = (path, shader(fill)) else { return };
        let paint = Paint { shader, anti_alias: true, ..Paint::default() };
        self.pixels.fill_path(path, &paint, FillRule::Winding, Transform::identity(), None);
    }

    /// A shape: filled, and given a contour where the style has one.
    pub(crate) fn shape(&mut self, path: &Option<Path>, c: Rgb) {
        self.paint(path, Fill::Solid(c, 1.0));
        if let Some((ink, width)) = self.contour {
            self.line(path, ink, width);
        }
    }

    /// A filled area without contour.
    pub(crate) fn fill(&mut self, path: &Option<Path>, fill: Fill) {
        self.paint(path, fill);
    }

    /// Light or shadow inside a shape; as strong as the style wants it.
    pub(crate) fn tone(&mut self, path: &Option<Path>, mut fill: Fill) {
        if self.shading <= 0.0 {
            return;
        }
        match &mut fill {
            Fill::Solid(_, a) => *a *= self.shading,
            Fill::Line(_, _, s) | Fill::Round(_, _, s) => s.iter_mut().for_each(|s| s.2 *= self.shading),
        }
        self.paint(path, fill);
    }

    /// A stroke with round ends; `width` in pixels of a 256 picture.
    pub(crate) fn line(&mut self, path: &Option<Path>, c: Rgb, width: f32) {
        self.line_alpha(path, c, width, 1.0);
    }

    /// A translucent stroke.
    pub(crate) fn line_alpha(&mut self, path: &Option<Path>, c: Rgb, width: f32, alpha: f32) {
        let (Some(path), Some(shader)) = (path, shader(Fill::Solid(c, alpha))) else { return };
        let paint = Paint { shader, anti_alias: true, ..Paint::default() };
        let stroke =
            Stroke { width: width * self.k, line_cap: LineCap::Round, line_join: LineJoin::Round, ..Stroke::default() };
        self.pixels.stroke_path(path, &paint, &stroke, Transform::identity(), None);
    }

    /// Shadow on the side away from the light, across a shape whose middle and reach are given.
    pub(crate) fn side_shadow(&mut self, path: &Option<Path>, middle: P, reach: f32, dark: Rgb, alpha: f32) {
        let (lx, ly) = self.light;
        let from = (middle.0 + lx * reach * 0.5, middle.1 + ly * reach * 0.5);
        let to = (middle.0 - lx * reach, middle.1 - ly * reach);
        self.tone(path, Fill::Line(from, to, vec![(0.0, dark, 0.0), (0.35, dark, 0.15 * alpha), (1.0, dark, alpha)]));
    }
}
