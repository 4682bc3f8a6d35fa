//! Hair behind head and shoulders.

use crate::canvas::{Canvas, Fill, P, View, circle, smooth};
use crate::character::{Character, HairStyle::*, Trait};
use crate::color::{Rgb, light, shade};
use crate::head::Shape;
use crate::rng::Rng;

/// Hair that falls or stands behind head and shoulders.
pub(crate) fn draw(canvas: &mut Canvas, view: &View, c: &Character, shape: &Shape, hair: Rgb, hat: bool) {
    let (w, u) = (shape.half_width, view.unit);
    let dark = shade(hair, 0.42);
    let body = view.body(0.3);
    let fall = |width: f32, bottom: f32, wave: f32| -> Vec<P> {
        let half = [
            (0.0, -1.42),
            (0.7 * w, -1.24),
            (1.1 * w + 0.06, -0.6),
            (1.14 * w + 0.10 + wave, 0.3),
            (width - wave * 0.6, 1.1),
            (width + wave, bottom - 0.45),
            (width - 0.12, bottom),
        ];
        let at = |x: f32, y: f32| if y > 1.9 { body.flat(x, y, -0.2) } else { view.flat(x, y, -0.25) };
        let mut p: Vec<P> = half.iter().map(|&(x, y)| at(x, y)).collect();
        p.push(at(0.0, bottom + 0.05));
        p.extend(half[1..].iter().rev().map(|&(x, y)| at(-x, y)));
        p
    };
    let big = |canvas: &mut Canvas, points: Vec<P>| {
        let path = smooth(&points, true);
        canvas.shape(&path, dark);
        canvas.side_shadow(&path, view.flat(0.0, 0.4, 0.0), 2.2 * u, shade(hair, 1.0), 0.7);
    };
    match c.hair_style() {
        Bob | BobFringe => big(canvas, fall(1.16 * w + 0.16, 1.38, 0.02)),
        LongStraight => big(canvas, fall(1.12 * w + 0.14, 3.1, 0.0)),
        LongWavy => big(canvas, fall(1.2 * w + 0.2, 2.9, 0.11)),
        LongCurly => {
            big(canvas, fall(1.3 * w + 0.25, 2.4, 0.05));
            let mut rng = Rng::stream(c.seed, 21);
            for i in 0..16 {
                let s = if i % 2 == 0 { 1.0 } else { -1.0 };
                let t = i as f32 / 15.0;
                let (x, y) = (s * (1.18 * w + 0.18 + 0.16 * rng.unit()), -0.75 + 3.0 * t);
                let p = if y > 1.9 { body.flat(x, y, -0.2) } else { view.flat(x, y, -0.25) };
                canvas.shape(&circle(p, (0.27 + 0.06 * rng.unit()) * u), dark);
            }
        }
        Afro => {
            let r = 1.62 + 0.12 * c.get(Trait::HairShade);
            let center = view.flat(0.0, -0.32, -0.2);
            let mut points = Vec::new();
            for i in 0..36 {
                let a = i as f32 / 36.0 * std::f32::consts::TAU;
                let rr = r * (1.0 + if i % 2 == 0 { 0.025 } else { -0.02 });
                let squash = if hat && a.sin() < -0.5 { 0.82 } else { 1.0 };
                points.push((center.0 + a.cos() * rr * u, center.1 + a.sin() * rr * u * 0.96 * squash));
            }
            let path = smooth(&points, true);
            canvas.shape(&path, hair);
            canvas.tone(
                &path,
                Fill::Round(
                    (center.0 + canvas.light.0 * 0.7 * u, center.1 - 0.7 * u),
                    1.6 * u,
                    vec![(0.0, light(hair, 0.35), 0.6), (1.0, hair, 0.0)],
                ),
            );
            canvas.side_shadow(&path, center, r * u, shade(hair, 1.0), 0.85);
            let mut rng = Rng::stream(c.seed, 22);
            for _ in 0..26 {
                let (a, d) = (rng.unit() * std::f32::consts::TAU, (0.5 + 0.48 * rng.unit().sqrt()) * r * u);
                let p = (center.0 + a.cos() * d, center.1 + a.sin() * d * 0.96);
                let curl =
                    smooth(&[(p.0 - 0.09 * u, p.1), (p.0, p.1 - 0.08 * u), (p.0 + 0.08 * u, p.1 + 0.02 * u)], false);
                canvas.line_alpha(
                    &curl,
                    if rng.chance(0.5) { dark } else { light(hair, 0.25) },
                    0.045 * u / canvas.k,
                    0.6,
                );
            }
        }
        Ponytail => {
            // The tail swings out at one side, where the narrow crop of a face encoder still sees it.
            let at = |x: f32, y: f32| view.flat(x, y, -0.35);
            let tail = [
                at(0.75, -1.05),
                at(1.35, -0.95),
                at(1.72, -0.3),
                at(1.68, 0.7),
                at(1.38, 1.45),
                at(1.36, 0.7),
                at(1.22, -0.1),
                at(0.85, -0.45),
            ];
            let path = smooth(&tail, true);
            canvas.shape(&path, hair);
            canvas.side_shadow(&path, at(1.4, 0.2), u, shade(hair, 1.0), 0.7);
            for d in [0.0, 0.14] {
                let strand = smooth(&[at(1.1 + d, -0.8), at(1.48 + d, -0.1), at(1.42 + d, 0.9)], false);
                canvas.line_alpha(&strand, dark, 0.04 * u / canvas.k, 0.6);
            }
        }
        Bun if !hat => {
            let center = view.flat(0.0, -1.5, -0.25);
            let path = circle(center, 0.52 * u);
            canvas.shape(&path, hair);
            canvas.tone(
                &path,
                Fill::Round(
                    (center.0 + canvas.light.0 * 0.2 * u, center.1 - 0.15 * u),
                    0.6 * u,
                    vec![(0.0, light(hair, 0.5), 0.5), (1.0, shade(hair, 0.8), 0.5)],
                ),
            );
            for a in [0.4f32, 1.4, 2.5] {
                let swirl: Vec<P> = (0..4)
                    .map(|i| {
                        let t = a + i as f32 * 0.5;
                        (center.0 + t.cos() * 0.3 * u, center.1 - t.sin() * 0.3 * u)
                    })
                    .collect();
                canvas.line_alpha(&smooth(&swirl, false), dark, 0.04 * u / canvas.k, 0.6);
            }
        }
        Braids => {
            for s in [-1.0f32, 1.0] {
                for i in 0..7 {
                    let y = 0.75 + i as f32 * 0.34;
                    let x = s * (w + 0.16 + 0.10 * (i as f32 * 0.45).min(1.4));
                    let p = if y > 1.9 { body.flat(x, y, -0.1) } else { view.flat(x, y, -0.15) };
                    let r = (0.26 - 0.012 * i as f32) * u;
                    let path = smooth(
                        &[
                            (p.0 - r, p.1 - 0.1 * u),
                            (p.0, p.1 - 0.2 * u),
                            (p.0 + r, p.1 - 0.1 * u),
                            (p.0 + r * 0.6, p.1 + 0.16 * u),
                            (p.0 - r * 0.6, p.1 + 0.16 * u),
                        ],
                        true,
                    );
                    canvas.shape(&path, hair);
                    canvas.tone(
                        &path,
                        Fill::Line(
                            (p.0, p.1 - 0.2 * u),
                            (p.0, p.1 + 0.2 * u),
                            vec![(0.0, light(hair, 0.35), 0.5), (1.0, shade(hair, 1.0), 0.75)],
                        ),
                    );
                }
            }
        }
        _ => {}
    }
}
