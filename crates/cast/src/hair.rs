//! Hair on top of the head and in front of it.

use crate::canvas::{Canvas, Fill, P, View, circle, polygon, smooth};
use crate::character::{Character, HairStyle, Trait};
use crate::color::{Rgb, light, rgb, shade};
use crate::head::Shape;
use crate::rng::Rng;

use HairStyle::*;

struct Cap {
    /// How far the hair stands off the skull at the side and at the top.
    side: f32,
    top: f32,
    /// Height of the hairline above the eyes, in the middle and at the temples.
    middle: f32,
    temple: f32,
    /// How far down the sideburns reach.
    low: f32,
}

fn cap_points(view: &View, shape: &Shape, cap: &Cap) -> Vec<P> {
    let w = shape.half_width;
    let half = [
        (0.97 * w, cap.low, 0.0, 0.0),
        (w + cap.side, -0.1, 0.0, -0.05),
        (0.95 * w + cap.side, -0.66, 0.0, -0.1),
        (0.58 * w + cap.side * 0.6, -1.14 - cap.top * 0.8, 0.0, -0.1),
        (0.0, -1.27 - cap.top, 0.0, -0.1),
    ];
    let mut p: Vec<P> = half.iter().map(|&(x, y, _, z)| view.flat(x, y, z)).collect();
    p.extend(half[..4].iter().rev().map(|&(x, y, _, z)| view.flat(-x, y, z)));
    let inner = [(0.86 * w, cap.low - 0.12), (0.80 * w, -0.36), (0.62 * w, -cap.temple), (0.3 * w, -cap.middle)];
    p.extend(inner.iter().map(|&(x, y)| view.face(-x, y, 0.0)));
    p.push(view.face(0.0, -cap.middle - 0.01, 0.0));
    p.extend(inner.iter().rev().map(|&(x, y)| view.face(x, y, 0.0)));
    p
}

fn cap(canvas: &mut Canvas, view: &View, shape: &Shape, cap: &Cap, hair: Rgb, strands: bool) {
    let u = view.unit;
    let path = smooth(&cap_points(view, shape, cap), true);
    canvas.shape(&path, hair);
    let crown = view.flat(0.0, -1.0 - cap.top, -0.1);
    canvas.tone(
        &path,
        Fill::Round(
            (crown.0 + canvas.light.0 * 0.5 * u, crown.1 + 0.1 * u),
            0.95 * u,
            vec![(0.0, light(hair, 0.5), 0.55), (0.5, light(hair, 0.3), 0.2), (1.0, hair, 0.0)],
        ),
    );
    canvas.side_shadow(&path, view.flat(0.0, -0.7, 0.0), 1.4 * u, shade(hair, 1.0), 0.8);
    if strands {
        for i in -3..=3 {
            let x = i as f32 / 3.0;
            let strand = smooth(
                &[
                    view.face(x * 0.62 * shape.half_width, -cap.middle.max(cap.temple) - 0.02, 0.0),
                    view.flat(x * 0.62 * shape.half_width, -1.05 - cap.top * 0.3, 0.1),
                    view.flat(x * 0.4 * shape.half_width, -1.2 - cap.top * 0.8, -0.05),
                ],
                false,
            );
            canvas.line_alpha(&strand, shade(hair, 0.6), 0.035 * u / canvas.k, 0.5);
        }
    }
}

/// A lock: filled, lit and shaded.
fn lock(canvas: &mut Canvas, view: &View, points: &[P], hair: Rgb, middle: P) {
    let path = smooth(points, true);
    canvas.shape(&path, hair);
    let u = view.unit;
    canvas.tone(
        &path,
        Fill::Line(
            (middle.0, middle.1 - 1.1 * u),
            (middle.0, middle.1 + 1.3 * u),
            vec![(0.0, light(hair, 0.45), 0.55), (0.4, hair, 0.0), (1.0, shade(hair, 1.0), 0.5)],
        ),
    );
    canvas.side_shadow(&path, middle, 1.5 * u, shade(hair, 1.0), 0.6);
}

/// A curl: a ball around `p`, with how strongly it is lit and shaded.
fn curl(canvas: &mut Canvas, p: P, radius: f32, hair: Rgb, (lit, shaded): (f32, f32)) {
    let path = circle(p, radius);
    canvas.shape(&path, hair);
    canvas.tone(
        &path,
        Fill::Round(
            (p.0 + canvas.light.0 * 0.3 * radius, p.1 - 0.4 * radius),
            1.3 * radius,
            vec![(0.0, light(hair, 0.5), lit), (0.5, hair, 0.0), (1.0, shade(hair, 1.0), shaded)],
        ),
    );
}

/// Hair on top of the head and in front of it.
pub(crate) fn front(canvas: &mut Canvas, view: &View, c: &Character, shape: &Shape, hair: Rgb, hat: bool) {
    let (w, u) = (shape.half_width, view.unit);
    let line = u / canvas.k;
    let hl = c.lerp(Trait::Hairline, 0.62, 0.92);
    let dark = shade(hair, 0.6);
    let body = view.body(0.3);
    let part = if c.get(Trait::HairShade) > 0.5 { 1.0f32 } else { -1.0 };
    let base = Cap { side: 0.05, top: 0.08, middle: hl, temple: hl - 0.1, low: 0.3 };
    let side_locks = |canvas: &mut Canvas, bottom: f32, wave: f32, out: f32| {
        for s in [-1.0f32, 1.0] {
            let at = |x: f32, y: f32| if y > 1.9 { body.flat(s * x, y, 0.0) } else { view.flat(s * x, y, 0.0) };
            let y1 = 0.3 + (bottom - 0.3) * 0.4;
            let y2 = 0.3 + (bottom - 0.3) * 0.75;
            let points = [
                view.flat(part * 0.12, -1.36, -0.1),
                at(0.75 * w + out, -1.12),
                at(1.04 * w + 0.1 + out, -0.45),
                at(1.08 * w + 0.14 + out + wave, 0.3),
                at(1.06 * w + 0.16 + out - wave, y1),
                at(1.06 * w + 0.18 + out + wave, y2),
                at(1.0 * w + 0.1 + out, bottom),
                at(0.86 * w + out * 0.5, bottom - 0.1),
                at(0.93 * w + wave * 0.8, y2),
                at(0.90 * w - wave * 0.8, y1),
                view.face(s * 0.92 * w, 0.25, 0.05),
                view.face(s * 0.78 * w, -0.4, 0.05),
                view.face(s * 0.42 * w, -hl - 0.02, 0.05),
                view.face(part * 0.1, -hl - 0.18, 0.05),
            ];
            lock(canvas, view, &points, hair, view.flat(s * w, 0.0, 0.0));
            for d in [0.35f32, 0.7] {
                let strand = smooth(
                    &[
                        view.flat(part * 0.12 + s * 0.1, -1.28, 0.0),
                        at((0.72 + 0.25 * d) * w, -0.62 - 0.2 * d),
                        at((0.95 + 0.08 * d) * w + 0.06 * d, 0.2),
                        at(0.97 * w + 0.12 * d + wave, y1),
                    ],
                    false,
                );
                canvas.line_alpha(&strand, dark, 0.035 * line, 0.55);
            }
        }
    };
    let fringe = |canvas: &mut Canvas, low: f32, round: f32| {
        let mut points: Vec<P> = [
            (-0.93, -0.1),
            (-0.8, low),
            (-0.4, low + round),
            (0.0, low + round * 1.2),
            (0.4, low + round),
            (0.8, low),
            (0.93, -0.1),
        ]
        .iter()
        .map(|&(x, y)| view.face(x * w, y, 0.06))
        .collect();
        points.extend(
            [(1.02 * w, -0.62), (0.62 * w, -1.2), (0.0, -1.36), (-0.62 * w, -1.2), (-1.02 * w, -0.62)]
                .iter()
                .map(|&(x, y)| view.flat(x, y, -0.05)),
        );
        lock(canvas, view, &points, hair, view.flat(0.0, -0.5, 0.0));
        for i in -3..=3 {
            let x = i as f32 * 0.24 * w;
            let strand = smooth(
                &[
                    view.face(x, low + round * 0.7, 0.06),
                    view.face(x * 0.95, -0.8, 0.06),
                    view.flat(x * 0.6, -1.2, 0.0),
                ],
                false,
            );
            canvas.line_alpha(&strand, dark, 0.035 * line, 0.55);
        }
    };
    let curls = |canvas: &mut Canvas, r: f32, low: f32, rows: usize| {
        let mut rng = Rng::stream(c.seed, 23);
        for row in 0..rows {
            for i in 0..9 {
                let a = std::f32::consts::PI * (1.0 + (i as f32 + 0.5 * (row % 2) as f32) / 8.5);
                let reach = 1.0 - 0.2 * row as f32;
                let (x, y) = (a.cos() * (w + 0.05) * reach, low + a.sin() * (1.2 + low) * reach);
                let p = view.flat(x, y.min(-hl * 0.55 + 0.55 * (x / w).abs()), -0.05 + 0.35 * (1.0 - reach));
                curl(canvas, p, r * (0.85 + 0.3 * rng.unit()) * u, hair, (0.55, 0.75));
            }
        }
    };
    match c.hair_style() {
        Bald => {}
        Buzz => {
            let path = smooth(&cap_points(view, shape, &Cap { side: 0.0, top: 0.0, low: 0.2, ..base }), true);
            canvas.fill(&path, Fill::Solid(hair, 0.72));
            canvas.side_shadow(&path, view.flat(0.0, -0.7, 0.0), 1.4 * u, shade(hair, 1.0), 0.6);
        }
        Crop => {
            cap(canvas, view, shape, &Cap { side: 0.04, top: 0.12, ..base }, hair, false);
            let points: Vec<P> = (0..=8)
                .flat_map(|i| {
                    let x = (i as f32 / 8.0 * 2.0 - 1.0) * 0.72 * w;
                    let tip = view.face(x, -hl + 0.14 - 0.1 * (x / w).abs(), 0.06);
                    let gap = view.face(x + 0.09 * w, -hl + 0.02, 0.06);
                    if i < 8 { vec![tip, gap] } else { vec![tip] }
                })
                .chain([view.flat(0.72 * w, -0.98, 0.0), view.flat(0.0, -1.3, 0.0), view.flat(-0.72 * w, -0.98, 0.0)])
                .collect();
            canvas.fill(&polygon(&points, true), Fill::Solid(hair, 1.0));
            for i in 0..5 {
                let x = (i as f32 / 4.0 * 2.0 - 1.0) * 0.5 * w;
                canvas.line_alpha(
                    &smooth(
                        &[
                            view.face(x, -hl + 0.06, 0.06),
                            view.flat(x * 1.1 + 0.05, -1.08, 0.05),
                            view.flat(x, -1.25, 0.0),
                        ],
                        false,
                    ),
                    dark,
                    0.035 * line,
                    0.5,
                );
            }
        }
        SidePart => {
            cap(canvas, view, shape, &base, hair, false);
            let s = part;
            let sweep = [
                view.face(s * 0.45 * w, -hl - 0.08, 0.06),
                view.face(0.0, -hl + 0.16, 0.08),
                view.face(-s * 0.55 * w, -hl + 0.20, 0.06),
                view.face(-s * 0.88 * w, -0.22, 0.05),
                view.flat(-s * (w + 0.10), -0.45, -0.05),
                view.flat(-s * (0.72 * w + 0.06), -1.22, -0.05),
                view.flat(0.0, -1.46, -0.1),
                view.flat(s * 0.5 * w, -1.26, -0.05),
            ];
            lock(canvas, view, &sweep, hair, view.flat(0.0, -0.8, 0.0));
            for d in [0.0f32, 0.16, 0.32] {
                let strand = smooth(
                    &[
                        view.flat(s * 0.42 * w, -1.12 - d * 0.4, 0.1),
                        view.face(-s * 0.2 * w, -hl - 0.05 - d, 0.06),
                        view.flat(-s * 0.85 * w, -0.48 - d, 0.05),
                    ],
                    false,
                );
                canvas.line_alpha(&strand, dark, 0.035 * line, 0.55);
            }
        }
        Quiff => {
            cap(canvas, view, shape, &Cap { side: 0.0, top: 0.04, ..base }, shade(hair, 0.25), false);
            let lift = if hat { 0.0 } else { 0.34 };
            let s = part;
            let tuft = [
                view.face(-0.62 * w, -hl + 0.08, 0.05),
                view.face(0.0, -hl - 0.02, 0.06),
                view.face(0.62 * w, -hl + 0.08, 0.05),
                view.flat(0.86 * w, -1.05, 0.05),
                view.flat(s * 0.5 * w + 0.2, -1.30 - lift, 0.1),
                view.flat(s * 0.15 * w, -1.38 - lift * 1.2, 0.1),
                view.flat(-0.5 * w, -1.28 - lift * 0.6, 0.05),
                view.flat(-0.88 * w, -0.98, 0.0),
            ];
            lock(canvas, view, &tuft, hair, view.flat(0.0, -1.0, 0.0));
            for i in -2..=2 {
                let x = i as f32 * 0.2;
                canvas.line_alpha(
                    &smooth(
                        &[
                            view.face(x * w * 1.2, -hl - 0.06, 0.06),
                            view.flat(x * 1.3, -1.1, 0.1),
                            view.flat(x + s * 0.2, -1.3 - lift * 0.8, 0.1),
                        ],
                        false,
                    ),
                    dark,
                    0.04 * line,
                    0.6,
                );
            }
        }
        Curly => {
            cap(canvas, view, shape, &Cap { side: 0.08, top: 0.1, ..base }, shade(hair, 0.3), false);
            curls(canvas, 0.25, 0.1, if hat { 1 } else { 3 });
        }
        Afro => {
            cap(
                canvas,
                view,
                shape,
                &Cap { side: 0.12, top: 0.2, middle: hl, temple: hl - 0.05, low: 0.35 },
                hair,
                false,
            );
        }
        Receding => {
            for s in [-1.0f32, 1.0] {
                let points = [
                    view.flat(s * 0.98 * w, 0.35, 0.0),
                    view.flat(s * (w + 0.07), -0.1, -0.1),
                    view.flat(s * (0.94 * w + 0.07), -0.62, -0.15),
                    view.flat(s * 0.74 * w, -0.95, -0.2),
                    view.face(s * 0.80 * w, -0.55, 0.0),
                    view.face(s * 0.87 * w, 0.05, 0.0),
                ];
                lock(canvas, view, &points, hair, view.flat(s * w, 0.0, 0.0));
            }
        }
        SlickBack => cap(
            canvas,
            view,
            shape,
            &Cap { side: 0.02, top: 0.12, middle: hl + 0.06, temple: hl + 0.02, low: 0.2 },
            hair,
            true,
        ),
        Mohawk => {
            let path = smooth(&cap_points(view, shape, &Cap { side: 0.0, top: 0.0, low: 0.15, ..base }), true);
            canvas.fill(&path, Fill::Solid(shade(hair, 0.3), 0.4));
            if !hat {
                let mut spikes: Vec<P> = Vec::new();
                for i in 0..=6 {
                    let t = i as f32 / 6.0 * 2.0 - 1.0;
                    spikes.push(view.flat(t * 0.36, -1.5 - 0.36 * (1.0 - t * t) - 0.1, 0.1));
                    if i < 6 {
                        spikes.push(view.flat((t + 1.0 / 6.0) * 0.34, -1.42 - 0.2 * (1.0 - t * t), 0.1));
                    }
                }
                spikes.extend([
                    view.face(0.34, -0.95, 0.05),
                    view.face(0.2, -hl, 0.05),
                    view.face(0.0, -hl + 0.05, 0.05),
                    view.face(-0.2, -hl, 0.05),
                    view.face(-0.34, -0.95, 0.05),
                ]);
                let path = polygon(&spikes, true);
                canvas.shape(&path, hair);
                let m = view.flat(0.0, -1.2, 0.0);
                canvas.tone(
                    &path,
                    Fill::Line(
                        (m.0, m.1 - 0.7 * u),
                        (m.0, m.1 + 0.6 * u),
                        vec![(0.0, light(hair, 0.5), 0.5), (1.0, shade(hair, 0.9), 0.6)],
                    ),
                );
            }
        }
        Bob => side_locks(canvas, 1.32, 0.0, 0.06),
        BobFringe => {
            side_locks(canvas, 1.30, 0.0, 0.06);
            fringe(canvas, -0.46, 0.05);
        }
        LongStraight => side_locks(canvas, 3.0, 0.0, 0.0),
        LongWavy => side_locks(canvas, 2.8, 0.07, 0.05),
        LongCurly => {
            cap(
                canvas,
                view,
                shape,
                &Cap { side: 0.18, top: 0.2, middle: hl, temple: hl - 0.1, low: 0.6 },
                shade(hair, 0.2),
                false,
            );
            curls(canvas, 0.30, 0.25, if hat { 1 } else { 2 });
            for s in [-1.0f32, 1.0] {
                for i in 0..5 {
                    let y = 0.2 + 0.42 * i as f32;
                    let x = s * (1.08 * w + 0.1 + 0.03 * i as f32);
                    let p = if y > 1.9 { body.flat(x, y, 0.0) } else { view.flat(x, y, -0.02) };
                    curl(canvas, p, 0.25 * u, hair, (0.5, 0.7));
                }
            }
        }
        Ponytail => {
            cap(
                canvas,
                view,
                shape,
                &Cap { side: 0.03, top: 0.08, middle: hl + 0.04, temple: hl - 0.02, low: 0.15 },
                hair,
                true,
            );
            let knot = view.flat(0.92, -1.0, -0.3);
            canvas.shape(&circle(knot, 0.15 * u), rgb(214, 70, 90));
        }
        Bun => cap(
            canvas,
            view,
            shape,
            &Cap { side: 0.02, top: 0.05, middle: hl + 0.08, temple: hl - 0.2, low: 0.1 },
            hair,
            true,
        ),
        Braids => {
            cap(
                canvas,
                view,
                shape,
                &Cap { side: 0.08, top: 0.08, middle: hl, temple: hl - 0.18, low: 0.75 },
                hair,
                false,
            );
            let seam =
                smooth(&[view.face(0.0, -hl, 0.0), view.flat(0.0, -1.0, 0.2), view.flat(0.0, -1.32, 0.0)], false);
            canvas.line_alpha(&seam, dark, 0.05 * line, 0.9);
            for s in [-1.0f32, 1.0] {
                for d in [0.25f32, 0.5] {
                    let strand = smooth(
                        &[
                            view.flat(s * 0.05, -1.2 + d * 0.4, 0.2),
                            view.face(s * 0.6 * w, -hl - 0.05, 0.05),
                            view.flat(s * (w * 0.98), -0.2 + 0.3 * d, 0.0),
                        ],
                        false,
                    );
                    canvas.line_alpha(&strand, dark, 0.035 * line, 0.5);
                }
            }
        }
    }
}
