//! Clothes, headwear and glasses.

use crate::canvas::{Canvas, Fill, P, View, circle, polygon, smooth};
use crate::character::{Character, HairStyle};
use crate::color::{Rgb, light, luma, rgb, shade};
use crate::head::Shape;
use crate::scene::{Clothing, Glasses, Headwear, Tint};

/// The upper body with its garment, over the neck.
pub(crate) fn clothes(canvas: &mut Canvas, view: &View, c: &Character, shape: &Shape, kind: Clothing, tint: Tint) {
    let body = view.body(0.3);
    let u = view.unit;
    let line = u / canvas.k;
    let cloth = tint.rgb();
    let dark = shade(cloth, 0.65);
    let y = shape.chin + 0.40;
    let wide = if c.masculine() { 2.45 } else { 2.05 };
    let at = |x: f32, dy: f32| body.flat(x, y + dy, 0.0);
    let low = 6.0;
    let neck = 0.62 * shape.half_width;
    // The neckline is cut by where the left and right shoulders meet.
    let cut = match kind {
        Clothing::Turtleneck => -0.05,
        Clothing::Hoodie => 0.15,
        Clothing::Suit | Clothing::Dress => 0.95,
        _ => 0.24,
    };
    let mut ring = vec![
        at(-wide - 0.25, low),
        at(-wide, 1.1),
        at(-wide * 0.82, 0.55),
        at(-wide * 0.45, 0.2),
        at(-neck - 0.06, -0.08),
    ];
    match kind {
        Clothing::Suit | Clothing::Dress => ring.push(at(0.0, cut)),
        _ => ring.extend([at(-neck * 0.7, cut * 0.75), at(0.0, cut), at(neck * 0.7, cut * 0.75)]),
    }
    ring.extend([
        at(neck + 0.06, -0.08),
        at(wide * 0.45, 0.2),
        at(wide * 0.82, 0.55),
        at(wide, 1.1),
        at(wide + 0.25, low),
    ]);
    if kind == Clothing::Suit {
        // Shirt and tie show in the opening.
        let shirt = [
            at(-neck - 0.1, -0.05),
            at(0.0, cut + 0.5),
            at(neck + 0.1, -0.05),
            at(neck * 0.5, 0.1),
            at(0.0, 0.2),
            at(-neck * 0.5, 0.1),
        ];
        canvas.fill(
            &polygon(&[at(-neck - 0.12, -0.06), at(0.0, cut + 0.4), at(neck + 0.12, -0.06), at(0.0, 0.3)], true),
            Fill::Solid(rgb(246, 246, 244), 1.0),
        );
        canvas.shape(&polygon(&shirt, true), rgb(246, 246, 244));
        let tie_color = if tint == Tint::Red { rgb(40, 48, 90) } else { rgb(170, 36, 48) };
        canvas.shape(
            &polygon(
                &[at(-0.13, 0.2), at(0.13, 0.2), at(0.09, 0.42), at(0.2, 1.3), at(-0.2, 1.3), at(-0.09, 0.42)],
                true,
            ),
            tie_color,
        );
    }
    let path = match kind {
        Clothing::Suit | Clothing::Dress => polygon(&ring, true),
        _ => smooth(&ring, true),
    };
    canvas.shape(&path, cloth);
    let middle = at(0.0, 0.6);
    canvas.tone(
        &path,
        Fill::Line(
            at(0.0, -0.2),
            at(0.0, 2.6),
            vec![(0.0, light(cloth, 0.35), 0.35), (0.4, cloth, 0.0), (1.0, shade(cloth, 1.0), 0.55)],
        ),
    );
    canvas.side_shadow(&path, middle, 2.6 * u, shade(cloth, 1.0), 0.65);
    for s in [-1.0f32, 1.0] {
        let arm = smooth(&[at(s * (wide - 0.42), 1.05), at(s * (wide - 0.52), 1.7), at(s * (wide - 0.45), 2.6)], false);
        canvas.line_alpha(&arm, dark, 0.05 * line, 0.7);
    }
    let collar = || {
        let points =
            [(-neck - 0.02, -0.04), (-neck * 0.7, 0.24), (0.0, 0.33), (neck * 0.7, 0.24), (neck + 0.02, -0.04)];
        smooth(&points.map(|(x, dy)| at(x, dy)), false)
    };
    match kind {
        Clothing::TShirt => {
            canvas.line(&collar(), shade(cloth, 0.35), 0.11 * line);
        }
        Clothing::Turtleneck => {
            let roll = [
                at(-neck - 0.1, -0.42),
                at(0.0, -0.32),
                at(neck + 0.1, -0.42),
                at(neck + 0.12, 0.06),
                at(0.0, 0.2),
                at(-neck - 0.12, 0.06),
            ];
            let path = smooth(&roll, true);
            canvas.shape(&path, light(cloth, 0.1));
            canvas.side_shadow(&path, at(0.0, -0.2), 0.9 * u, shade(cloth, 1.0), 0.6);
            canvas.line_alpha(
                &smooth(&[at(-neck - 0.1, -0.14), at(0.0, -0.02), at(neck + 0.1, -0.14)], false),
                dark,
                0.045 * line,
                0.7,
            );
            for i in -4..=4 {
                let x = i as f32 * 0.14;
                canvas.line_alpha(&smooth(&[at(x, -0.33), at(x * 1.02, 0.12)], false), dark, 0.03 * line, 0.35);
            }
        }
        Clothing::Hoodie => {
            for s in [-1.0f32, 1.0] {
                let hood = [
                    at(s * (neck + 0.02), -0.30),
                    at(s * (neck + 0.42), -0.02),
                    at(s * (neck + 0.36), 0.42),
                    at(s * 0.08, 0.62),
                    at(s * 0.05, 0.30),
                    at(s * neck * 0.8, 0.1),
                ];
                let path = smooth(&hood, true);
                canvas.shape(&path, shade(cloth, 0.2));
                canvas.tone(
                    &path,
                    Fill::Line(
                        at(0.0, -0.3),
                        at(0.0, 0.7),
                        vec![(0.0, light(cloth, 0.4), 0.45), (1.0, shade(cloth, 1.0), 0.6)],
                    ),
                );
                let cord = if luma(cloth) > 0.8 { rgb(120, 120, 130) } else { rgb(245, 245, 240) };
                canvas.line(
                    &smooth(&[at(s * 0.2, 0.5), at(s * 0.23, 0.85), at(s * 0.2, 1.2)], false),
                    cord,
                    0.065 * line,
                );
            }
        }
        Clothing::Suit => {
            for s in [-1.0f32, 1.0] {
                let lapel = [
                    at(s * (neck + 0.10), -0.1),
                    at(s * (neck + 0.42), 0.22),
                    at(s * 0.52, 0.62),
                    at(s * 0.62, 0.72),
                    at(0.0, cut + 0.1),
                ];
                let path = polygon(&lapel, true);
                canvas.shape(&path, light(shade(cloth, 0.12), 0.08));
                canvas.line_alpha(&path, dark, 0.035 * line, 0.8);
            }
            canvas.line_alpha(&smooth(&[at(0.0, cut), at(0.02, 2.6)], false), dark, 0.05 * line, 0.9);
        }
        Clothing::Striped => {
            let stripe = if luma(cloth) > 0.7 { rgb(44, 60, 110) } else { rgb(248, 244, 234) };
            for i in 0..7 {
                let dy = 0.62 + i as f32 * 0.42;
                let reach = (wide - 0.52).min(wide * (0.55 + 0.25 * i as f32));
                canvas.line(
                    &smooth(&[at(-reach, dy + 0.12), at(0.0, dy + 0.22), at(reach, dy + 0.12)], false),
                    stripe,
                    0.15 * line,
                );
            }
            canvas.side_shadow(&path, middle, 2.6 * u, shade(cloth, 1.0), 0.45);
            canvas.line(&collar(), shade(cloth, 0.3), 0.1 * line);
        }
        Clothing::Dress => {
            let necklace = smooth(
                &[
                    at(-neck * 0.9, 0.05),
                    at(-neck * 0.45, 0.38),
                    at(0.0, 0.5),
                    at(neck * 0.45, 0.38),
                    at(neck * 0.9, 0.05),
                ],
                false,
            );
            canvas.line(&necklace, rgb(236, 196, 88), 0.055 * line);
            canvas.fill(&circle(at(0.0, 0.57), 0.08 * u), Fill::Solid(rgb(240, 206, 110), 1.0));
            canvas.line_alpha(
                &polygon(&[at(-neck - 0.04, -0.05), at(0.0, cut + 0.06), at(neck + 0.04, -0.05)], false),
                dark,
                0.05 * line,
                0.7,
            );
        }
        Clothing::Overalls => {
            let bib = rgb(52, 78, 130);
            let under = if tint == Tint::Blue { rgb(120, 86, 60) } else { bib };
            for s in [-1.0f32, 1.0] {
                canvas.shape(
                    &polygon(&[at(s * 0.72, 0.12), at(s * 1.0, 0.28), at(s * 0.92, 1.3), at(s * 0.62, 1.3)], true),
                    under,
                );
            }
            let path = polygon(&[at(-0.98, 1.05), at(0.98, 1.05), at(1.25, 3.2), at(-1.25, 3.2)], true);
            canvas.shape(&path, under);
            canvas.side_shadow(&path, at(0.0, 1.6), 1.6 * u, shade(under, 1.0), 0.6);
            for s in [-1.0f32, 1.0] {
                canvas.fill(&circle(at(s * 0.78, 1.2), 0.1 * u), Fill::Solid(rgb(240, 206, 110), 1.0));
            }
        }
    }
}

/// Hats, crowns and headphones, on top of the hair.
pub(crate) fn headwear(canvas: &mut Canvas, view: &View, c: &Character, shape: &Shape, kind: Headwear) {
    let u = view.unit;
    let line = u / canvas.k;
    let big = matches!(c.hair_style(), HairStyle::Afro | HairStyle::LongCurly | HairStyle::Curly);
    let w = shape.half_width + if big { 0.22 } else { 0.12 };
    let brim = -0.66;
    let dome = |top: f32, low: f32| -> Vec<P> {
        let half =
            [(1.0 * w, low, -0.1), (1.02 * w, low - 0.3, -0.12), (0.78 * w, top + 0.28, -0.12), (0.0, top, -0.12)];
        let mut p: Vec<P> = half.iter().map(|&(x, y, z)| view.flat(x, y, z)).collect();
        p.extend(half[..3].iter().rev().map(|&(x, y, z)| view.flat(-x, y, z)));
        p.extend(
            [(-0.6, low + 0.03), (0.0, low + 0.1), (0.6, low + 0.03)].iter().map(|&(x, y)| view.flat(x * w, y, 0.75)),
        );
        p
    };
    let shaded = |canvas: &mut Canvas, path: &Option<tiny_skia::Path>, color: Rgb| {
        canvas.shape(path, color);
        let m = view.flat(0.0, -1.1, 0.0);
        let glow = (m.0 + canvas.light.0 * 0.5 * u, m.1 - 0.3 * u);
        canvas.tone(path, Fill::Round(glow, 1.3 * u, vec![(0.0, light(color, 0.45), 0.55), (1.0, color, 0.0)]));
        canvas.side_shadow(path, m, 1.6 * u, shade(color, 1.0), 0.75);
    };
    match kind {
        Headwear::None => {}
        Headwear::Cap => {
            let color = rgb(214, 60, 60);
            shaded(canvas, &smooth(&dome(-1.72, brim), true), color);
            let peak = [
                view.flat(-0.84 * w, brim - 0.06, 0.7),
                view.flat(-0.45 * w, brim + 0.12, 1.15),
                view.flat(0.0, brim + 0.18, 1.3),
                view.flat(0.45 * w, brim + 0.12, 1.15),
                view.flat(0.84 * w, brim - 0.06, 0.7),
                view.flat(0.0, brim - 0.14, 0.85),
            ];
            shaded(canvas, &smooth(&peak, true), shade(color, 0.45));
            canvas.fill(&circle(view.flat(0.0, -1.18, 0.6), 0.2 * u), Fill::Solid(rgb(250, 246, 236), 1.0));
        }
        Headwear::Beanie => {
            let color = rgb(70, 120, 128);
            shaded(canvas, &smooth(&dome(-1.8, brim), true), color);
            let band: Vec<P> = [
                (-1.06, brim - 0.32, -0.05),
                (0.0, brim - 0.2, 0.6),
                (1.06, brim - 0.32, -0.05),
                (1.08, brim + 0.0, -0.05),
                (0.0, brim + 0.14, 0.6),
                (-1.08, brim + 0.0, -0.05),
            ]
            .iter()
            .map(|&(x, y, z)| view.flat(x * w, y, z))
            .collect();
            shaded(canvas, &smooth(&band, true), light(color, 0.2));
            for i in -4..=4 {
                let x = i as f32 * 0.23 * w;
                canvas.line_alpha(
                    &smooth(&[view.flat(x, brim - 0.24, 0.4), view.flat(x, brim + 0.06, 0.4)], false),
                    shade(color, 0.7),
                    0.04 * line,
                    0.6,
                );
            }
            shaded(canvas, &circle(view.flat(0.0, -1.9, -0.12), 0.24 * u), rgb(238, 232, 220));
        }
        Headwear::Crown => {
            let gold = rgb(244, 196, 66);
            let mut p: Vec<P> =
                vec![view.flat(-0.9 * w, -0.86, 0.0), view.flat(0.0, -0.74, 0.55), view.flat(0.9 * w, -0.86, 0.0)];
            for i in 0..=8 {
                let t = 1.0 - i as f32 / 4.0;
                let y = if i % 2 == 0 { -1.68 } else { -1.22 };
                p.push(view.flat(t * w * 0.98, y - 0.1 * (1.0 - t * t), 0.1));
            }
            shaded(canvas, &polygon(&p, true), gold);
            for (i, x) in [-0.5f32, 0.0, 0.5].iter().enumerate() {
                let gem = [rgb(206, 44, 70), rgb(60, 110, 210), rgb(206, 44, 70)][i];
                canvas.fill(
                    &circle(view.flat(x * w, -0.95 + 0.06 * (1.0 - x * x), 0.5), 0.11 * u),
                    Fill::Solid(gem, 1.0),
                );
            }
        }
        Headwear::PartyHat => {
            let color = rgb(240, 96, 150);
            let p = [
                view.flat(-0.62 * w, -0.98, 0.1),
                view.flat(0.0, -0.86, 0.4),
                view.flat(0.62 * w, -0.98, 0.1),
                view.flat(0.05, -2.35, 0.0),
            ];
            let path = polygon(&p, true);
            shaded(canvas, &path, color);
            for i in 0..3 {
                let y = -1.15 - 0.36 * i as f32;
                let reach = (0.52 - 0.15 * i as f32) * w;
                canvas.line(
                    &smooth(
                        &[view.flat(-reach, y, 0.15), view.flat(0.0, y + 0.1, 0.3), view.flat(reach, y, 0.15)],
                        false,
                    ),
                    rgb(252, 222, 90),
                    0.12 * line,
                );
            }
            canvas.fill(&circle(view.flat(0.05, -2.35, 0.0), 0.17 * u), Fill::Solid(rgb(252, 236, 150), 1.0));
        }
        Headwear::StrawHat => {
            let straw = rgb(230, 196, 120);
            let p: Vec<P> = (0..20)
                .map(|i| {
                    let a = i as f32 / 20.0 * std::f32::consts::TAU;
                    view.flat(a.cos() * (w + 0.85), brim - 0.12 + a.sin() * 0.26, 0.15 + 0.4 * a.sin())
                })
                .collect();
            shaded(canvas, &smooth(&p, true), shade(straw, 0.12));
            shaded(canvas, &smooth(&dome(-1.62, brim - 0.16), true), straw);
            let band: Vec<P> = [
                (-1.03, brim - 0.38, -0.1),
                (0.0, brim - 0.24, 0.5),
                (1.03, brim - 0.38, -0.1),
                (1.02, brim - 0.17, -0.1),
                (0.0, brim - 0.02, 0.5),
                (-1.02, brim - 0.17, -0.1),
            ]
            .iter()
            .map(|&(x, y, z)| view.flat(x * w, y, z))
            .collect();
            canvas.fill(&smooth(&band, true), Fill::Solid(rgb(170, 56, 52), 1.0));
        }
        Headwear::Headphones => {
            let band: Vec<P> = (0..=8)
                .map(|i| {
                    let a = std::f32::consts::PI * (1.0 + i as f32 / 8.0);
                    view.flat(a.cos() * (w + 0.14), -0.05 + a.sin() * 1.52, -0.15)
                })
                .collect();
            canvas.line(&smooth(&band, false), rgb(38, 40, 48), 0.2 * line);
            canvas.line_alpha(&smooth(&band, false), rgb(120, 126, 140), 0.06 * line, 0.8);
            for s in [-1.0f32, 1.0] {
                let p = view.flat(s * (w + 0.1), 0.2, -0.15);
                let pad = smooth(
                    &[
                        (p.0 - 0.2 * u, p.1 - 0.3 * u),
                        (p.0 + 0.2 * u, p.1 - 0.3 * u),
                        (p.0 + 0.24 * u, p.1 + 0.3 * u),
                        (p.0 - 0.24 * u, p.1 + 0.3 * u),
                    ],
                    true,
                );
                shaded(canvas, &pad, rgb(56, 60, 72));
                canvas.fill(&circle(p, 0.12 * u), Fill::Solid(rgb(90, 200, 190), 1.0));
            }
        }
        Headwear::Flowers => {
            for i in 0..7 {
                let t = i as f32 / 6.0 * 2.0 - 1.0;
                let p = view.flat(t * w * 0.98, -0.92 - 0.32 * (1.0 - t * t), 0.3 * (1.0 - t * t));
                let leaf = circle((p.0 + 0.16 * u, p.1 + 0.1 * u), 0.13 * u);
                canvas.shape(&leaf, rgb(80, 140, 74));
                let petal = [rgb(244, 120, 150), rgb(250, 240, 236), rgb(248, 196, 84)][i % 3];
                for k in 0..5 {
                    let a = k as f32 / 5.0 * std::f32::consts::TAU + t;
                    canvas.shape(&circle((p.0 + a.cos() * 0.13 * u, p.1 + a.sin() * 0.13 * u), 0.105 * u), petal);
                }
                canvas.fill(&circle(p, 0.075 * u), Fill::Solid(rgb(206, 130, 40), 1.0));
            }
        }
    }
}

/// Glasses over the eyes.
pub(crate) fn glasses(canvas: &mut Canvas, view: &View, shape: &Shape, kind: Glasses) {
    if kind == Glasses::None {
        return;
    }
    let line = view.unit / canvas.k;
    let frame = if kind == Glasses::Round { rgb(112, 76, 40) } else { rgb(26, 26, 32) };
    for s in [-1.0f32, 1.0] {
        let at = |x: f32, y: f32| view.face(s * (0.5 + x), y + 0.03, 0.16);
        let path = match kind {
            Glasses::Round => smooth(
                &(0..12)
                    .map(|i| {
                        let a = i as f32 / 12.0 * std::f32::consts::TAU;
                        at(a.cos() * 0.36, a.sin() * 0.35)
                    })
                    .collect::<Vec<_>>(),
                true,
            ),
            _ => smooth(
                &[
                    at(-0.38, -0.22),
                    at(0.0, -0.27),
                    at(0.40, -0.24),
                    at(0.38, 0.12),
                    at(0.22, 0.27),
                    at(-0.18, 0.27),
                    at(-0.36, 0.12),
                ],
                true,
            ),
        };
        if kind == Glasses::Sun {
            canvas.fill(
                &path,
                Fill::Line(
                    at(0.0, -0.3),
                    at(0.0, 0.3),
                    vec![(0.0, rgb(16, 18, 26), 0.97), (1.0, rgb(64, 58, 74), 0.9)],
                ),
            );
            canvas.line_alpha(&smooth(&[at(-0.2, -0.02), at(-0.05, -0.16)], false), [1.0; 3], 0.06 * line, 0.55);
        } else {
            canvas.fill(&path, Fill::Solid([0.9, 0.96, 1.0], 0.13));
            canvas.line_alpha(&smooth(&[at(0.12, -0.18), at(0.24, -0.04)], false), [1.0; 3], 0.04 * line, 0.6);
        }
        canvas.line(&path, frame, if kind == Glasses::Round { 0.055 } else { 0.08 } * line);
        let temple = smooth(&[at(0.37, -0.08), view.flat(s * shape.half_width * 0.99, -0.05, 0.0)], false);
        canvas.line(&temple, frame, 0.06 * line);
    }
    canvas.line(
        &smooth(&[view.face(-0.14, -0.02, 0.16), view.face(0.0, -0.07, 0.2), view.face(0.14, -0.02, 0.16)], false),
        frame,
        0.06 * line,
    );
}
