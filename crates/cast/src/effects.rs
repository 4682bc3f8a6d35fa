//! Styles that work on the finished drawing. Patterns keep to a grid of eight pixels (of a 256 picture), and
//! there is no pixel noise: a miniature autoencoder has to be able to keep what it sees.

use crate::color::{Rgb, luma, mix, rgb};
use crate::rng::Rng;
use crate::scene::{Light, Scene, Style};

/// Pixels as floats, row by row.
pub(crate) struct Image {
    pub(crate) n: usize,
    pub(crate) data: Vec<Rgb>,
}

impl Image {
    fn at(&self, x: isize, y: isize) -> Rgb {
        let last = self.n as isize - 1;
        self.data[(y.clamp(0, last) * self.n as isize + x.clamp(0, last)) as usize]
    }

    fn sample(&self, x: f32, y: f32) -> Rgb {
        let (fx, fy) = (x.floor(), y.floor());
        let (ix, iy) = (fx as isize, fy as isize);
        mix(
            mix(self.at(ix, iy), self.at(ix + 1, iy), x - fx),
            mix(self.at(ix, iy + 1), self.at(ix + 1, iy + 1), x - fx),
            y - fy,
        )
    }

    fn map(&mut self, f: impl Fn(usize, usize, Rgb) -> Rgb) {
        let n = self.n;
        for (i, p) in self.data.iter_mut().enumerate() {
            *p = f(i % n, i / n, *p);
        }
    }

    /// Mean over squares of side 2r+1, by running sums along rows and columns.
    fn blurred(&self, r: usize) -> Image {
        let n = self.n;
        let pass = |src: &[Rgb], step: usize, line: usize| -> Vec<Rgb> {
            let mut out = vec![[0.0; 3]; n * n];
            let scale = 1.0 / (2 * r + 1) as f32;
            for l in 0..n {
                let at = |i: isize| src[l * line + i.clamp(0, n as isize - 1) as usize * step];
                let mut sum = [0.0f32; 3];
                for i in -(r as isize)..=r as isize {
                    let v = at(i);
                    (0..3).for_each(|c| sum[c] += v[c]);
                }
                for i in 0..n {
                    out[l * line + i * step] = sum.map(|v| v * scale);
                    let (add, sub) = (at((i + r + 1) as isize), at(i as isize - r as isize));
                    (0..3).for_each(|c| sum[c] += add[c] - sub[c]);
                }
            }
            out
        };
        let rows = pass(&self.data, 1, n);
        Image { n, data: pass(&rows, n, 1) }
    }
}

/// Smooth noise in -1..1 on a lattice.
struct Noise {
    values: Vec<f32>,
}

const LATTICE: usize = 64;

impl Noise {
    fn new(seed: u64) -> Noise {
        let mut rng = Rng::stream(seed, 41);
        Noise { values: (0..LATTICE * LATTICE).map(|_| rng.range(-1.0, 1.0)).collect() }
    }

    fn at(&self, x: f32, y: f32) -> f32 {
        let (fx, fy) = (x.floor(), y.floor());
        let s = |t: f32| t * t * (3.0 - 2.0 * t);
        let (u, v) = (s(x - fx), s(y - fy));
        let (i, j) = (fx as usize % LATTICE, fy as usize % LATTICE);
        let g = |a: usize, b: usize| self.values[(b % LATTICE) * LATTICE + a % LATTICE];
        let top = g(i, j) + (g(i + 1, j) - g(i, j)) * u;
        let bottom = g(i, j + 1) + (g(i + 1, j + 1) - g(i, j + 1)) * u;
        top + (bottom - top) * v
    }
}

fn smoothstep(a: f32, b: f32, x: f32) -> f32 {
    let t = ((x - a) / (b - a)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

fn saturate(c: Rgb, s: f32) -> Rgb {
    let l = luma(c);
    c.map(|v| (l + (v - l) * s).clamp(0.0, 1.0))
}

/// Softly rounded to `levels` steps.
fn poster(v: f32, levels: f32) -> f32 {
    let x = v * levels;
    let base = x.floor();
    (base + smoothstep(0.35, 0.65, x - base)) / levels
}

/// Applies light tint and style.
pub(crate) fn apply(image: &mut Image, scene: &Scene, k: f32) {
    let tint = match scene.light {
        Light::Warm => [1.08, 0.98, 0.84],
        Light::Cool => [0.86, 0.97, 1.10],
        _ => [1.0; 3],
    };
    if tint != [1.0; 3] && !matches!(scene.style, Style::Noir | Style::Ink) {
        image.map(|_, _, c| [c[0] * tint[0], c[1] * tint[1], c[2] * tint[2]].map(|v: f32| v.min(1.0)));
    }
    match scene.style {
        Style::Plain => {}
        Style::Noir => noir(image, scene, k),
        Style::Watercolor => watercolor(image, scene, k),
        Style::Ink => ink(image, k),
        Style::Comic => comic(image, k),
        Style::PopArt => pop_art(image, k),
        Style::Pixel => pixel(image, k),
        Style::Oil => oil(image, scene, k),
    }
}

fn noir(image: &mut Image, scene: &Scene, k: f32) {
    let n = image.n as f32;
    let blinds = !scene.detail.is_multiple_of(3);
    let slope = if scene.detail.is_multiple_of(2) { 0.16 } else { -0.16 };
    image.map(|x, y, c| {
        let (u, v) = (x as f32 / n - 0.5, y as f32 / n - 0.5);
        let mut g = smoothstep(0.02, 0.86, luma(c));
        if blinds {
            let wave = ((y as f32 + slope * x as f32) / (32.0 * k) * std::f32::consts::TAU).sin();
            g *= 0.80 + 0.20 * smoothstep(-0.35, 0.35, wave);
        }
        let vignette = 1.0 - 0.6 * smoothstep(0.25, 0.68, u * u + v * v + 0.1);
        let g = g * vignette;
        [g, g * 0.99, g * 0.965]
    });
}

fn watercolor(image: &mut Image, scene: &Scene, k: f32) {
    let noise = Noise::new(scene.detail);
    let n = image.n;
    let source = std::mem::take(&mut image.data);
    let source = Image { n, data: source };
    let mut wobbled = Image { n, data: vec![[0.0; 3]; n * n] };
    wobbled.map(|x, y, _| {
        let (fx, fy) = (x as f32 / k, y as f32 / k);
        let (dx, dy) = (noise.at(fx / 14.0, fy / 14.0), noise.at(fx / 14.0 + 31.0, fy / 14.0 + 17.0));
        source.sample(x as f32 + 2.2 * k * dx, y as f32 + 2.2 * k * dy)
    });
    let soft = wobbled.blurred((1.5 * k).round().max(1.0) as usize);
    let wide = soft.blurred((4.0 * k).round().max(1.0) as usize);
    let size = n as f32;
    image.data = soft.data;
    image.map(|x, y, c| {
        let (fx, fy) = (x as f32 / k, y as f32 / k);
        let around = luma(wide.data[y * n + x]);
        let l = luma(c);
        // Pigment gathers at the edge of a wash.
        let edge = ((around - l).max(0.0) * 1.6).min(0.3);
        let bloom = 0.10 * noise.at(fx / 26.0 + 7.0, fy / 26.0 + 3.0);
        let wash = c.map(|v| v + (1.0 - v) * (0.20 + bloom) - edge * 0.5);
        let wash = saturate(wash, 1.12);
        let border = (x.min(n - 1 - x).min(y.min(n - 1 - y))) as f32 / size;
        let fade = smoothstep(0.0, 0.055, border + 0.02 * noise.at(fx / 18.0, fy / 18.0) - 0.004);
        mix(rgb(252, 250, 243), wash, fade)
    });
}

fn ink(image: &mut Image, k: f32) {
    let soft = image.blurred((1.0 * k).round().max(1.0) as usize);
    let wide = soft.blurred((3.0 * k).round().max(1.0) as usize);
    let n = image.n;
    let paper = rgb(250, 246, 235);
    let black = rgb(28, 26, 34);
    image.map(|x, y, c| {
        let l = luma(c);
        let s = luma(soft.data[y * n + x]);
        let edge = smoothstep(0.035, 0.13, luma(wide.data[y * n + x]) - s);
        let period = 8.0 * k;
        let hatch = |d: f32, weight: f32| {
            let t = (d.rem_euclid(period)) / period;
            let distance = (t - 0.5).abs() * 2.0;
            smoothstep(1.0 - weight - 0.18, 1.0 - weight + 0.18, 1.0 - distance)
        };
        let (fx, fy) = (x as f32, y as f32);
        let mut dark = 0.0f32;
        if s < 0.66 {
            dark = dark.max(hatch(fx + fy, 0.20 + 0.5 * (0.66 - s)) * smoothstep(0.66, 0.6, s));
        }
        if s < 0.36 {
            dark = dark.max(hatch(fx - fy, 0.35) * smoothstep(0.36, 0.3, s));
        }
        dark = dark.max(smoothstep(0.22, 0.10, l));
        mix(paper, black, (dark * 0.82).max(edge).min(1.0))
    });
}

fn dots(x: usize, y: usize, k: f32, amount: f32) -> f32 {
    let period = 8.0 * k;
    let u = (x as f32 + 0.5).rem_euclid(period) / period - 0.5;
    let v = (y as f32 + 0.5).rem_euclid(period) / period - 0.5;
    let d = (u * u + v * v).sqrt();
    let r = 0.56 * amount.clamp(0.0, 1.0).sqrt();
    if r < 0.06 { 0.0 } else { 1.0 - smoothstep(r - 0.09, r + 0.09, d) }
}

fn comic(image: &mut Image, k: f32) {
    let soft = image.blurred((2.0 * k).round().max(1.0) as usize);
    let n = image.n;
    image.map(|x, y, c| {
        let l = luma(c);
        let target = poster(l, 5.0);
        let flat = c.map(|v| (v * (target + 0.06) / (l + 0.06)).clamp(0.0, 1.0));
        let flat = saturate(mix(c, flat, 0.7), 1.32);
        let s = luma(soft.data[y * n + x]);
        let amount = smoothstep(0.62, 0.2, s) * 0.5;
        let ink = saturate(flat.map(|v| v * 0.62), 1.2);
        mix(flat, ink, dots(x, y, k, amount) * 0.75)
    });
}

fn pop_art(image: &mut Image, k: f32) {
    let soft = image.blurred((2.0 * k).round().max(1.0) as usize);
    let n = image.n;
    image.map(|x, y, c| {
        let l = luma(c);
        let target = poster(l, 3.0);
        let flat = c.map(|v| (v * (target + 0.1) / (l + 0.1)).clamp(0.0, 1.0));
        let vivid = saturate(mix(c, flat, 0.75), 1.8);
        // Shadows lean to violet, lights to yellow, as misprinted plates do.
        let toned = if l < 0.45 {
            mix(vivid, rgb(70, 20, 140), 0.38 * (0.45 - l) / 0.45)
        } else {
            mix(vivid, rgb(255, 226, 60), 0.34 * (l - 0.45) / 0.55)
        };
        let s = luma(soft.data[y * n + x]);
        let amount = 0.55 * smoothstep(0.85, 0.35, s);
        mix(toned, mix(toned, rgb(240, 30, 120), 0.6), dots(x, y, k, amount) * 0.8)
    });
}

fn pixel(image: &mut Image, k: f32) {
    let n = image.n;
    let block = ((4.0 * k).round() as usize).max(1);
    let cells = n.div_ceil(block);
    for cy in 0..cells {
        for cx in 0..cells {
            let (x0, y0) = (cx * block, cy * block);
            let (x1, y1) = ((x0 + block).min(n), (y0 + block).min(n));
            let mut sum = [0.0f32; 3];
            for y in y0..y1 {
                for x in x0..x1 {
                    let c = image.data[y * n + x];
                    (0..3).for_each(|i| sum[i] += c[i]);
                }
            }
            let count = ((x1 - x0) * (y1 - y0)) as f32;
            let c = saturate(sum.map(|v| v / count), 1.15).map(|v| (v * 7.0).round() / 7.0);
            for y in y0..y1 {
                image.data[y * n + x0..y * n + x1].fill(c);
            }
        }
    }
}

fn oil(image: &mut Image, scene: &Scene, k: f32) {
    let n = image.n;
    let noise = Noise::new(scene.detail);
    // Kuwahara's filter: of four neighbouring squares the calmest gives the colour. Means and spreads of all
    // squares come from one blur each; a square's centre lies r away along both axes.
    let r = (1.0 * k).round().max(1.0) as usize;
    let mean = image.blurred(r);
    let mut squares = Image {
        n,
        data: image
            .data
            .iter()
            .map(|&c| {
                let l = luma(c);
                [l, l * l, 0.0]
            })
            .collect(),
    };
    squares = squares.blurred(r);
    let d = r as isize;
    image.map(|x, y, own| {
        let (fx, fy) = (x as f32 / k, y as f32 / k);
        // Strokes bend the sampling place a little.
        let (sx, sy) = (
            (x as f32 + 0.8 * k * noise.at(fx / 9.0, fy / 9.0)).round() as isize,
            (y as f32 + 0.8 * k * noise.at(fx / 9.0 + 20.0, fy / 9.0 + 9.0)).round() as isize,
        );
        let mut best = (f32::MAX, [0.0; 3]);
        for (ox, oy) in [(-d, -d), (d, -d), (-d, d), (d, d)] {
            let s = squares.at(sx + ox, sy + oy);
            let spread = s[1] - s[0] * s[0];
            if spread < best.0 {
                best = (spread, mean.at(sx + ox, sy + oy));
            }
        }
        let stroke = noise.at((fx + fy * 0.6) / 5.0, (fy - fx * 0.6) / 17.0);
        // Lids and lips are as thin as a stroke; half of the drawing stays so that they do.
        let c = saturate(mix(best.1, own, 0.5), 1.14);
        c.map(|v| (v * (1.02 + 0.055 * stroke) + 0.014 * stroke).clamp(0.0, 1.0))
    });
    // Old varnish.
    image.map(|_, _, c| [c[0], c[1] * 0.975, c[2] * 0.92]);
}
