//! What is behind: eight places, each varied by the scene's detail seed.

use tiny_skia::{PathBuilder, Rect};

use crate::canvas::{Canvas, Fill, P, circle, polygon, smooth};
use crate::color::{Rgb, light, mix, rgb, shade};
use crate::rng::Rng;
use crate::scene::Background;

fn rect(x: f32, y: f32, w: f32, h: f32) -> Option<tiny_skia::Path> {
    Rect::from_xywh(x, y, w.max(0.5), h.max(0.5)).map(PathBuilder::from_rect)
}

pub(crate) fn draw(canvas: &mut Canvas, kind: Background, detail: u64) {
    let n = canvas.pixels.width() as f32;
    let mut rng = Rng::stream(detail, 31);
    let all = rect(0.0, 0.0, n, n);
    let down = |a: Rgb, b: Rgb| Fill::Line((0.0, 0.0), (0.0, n), vec![(0.0, a, 1.0), (1.0, b, 1.0)]);
    // Contours belong to the figure; a far background has none.
    let contour = canvas.contour.take();
    let ridge = |rng: &mut Rng, y: f32, rough: f32| -> Vec<P> {
        let mut p: Vec<P> = (0..=6).map(|i| (i as f32 / 6.0 * n, (y + rough * rng.bell()) * n)).collect();
        p.extend([(n, n), (0.0, n)]);
        p
    };
    match kind {
        Background::Studio => {
            const TONES: &[Rgb] = &[
                rgb(196, 206, 214),
                rgb(222, 206, 188),
                rgb(178, 200, 184),
                rgb(206, 190, 210),
                rgb(120, 130, 146),
                rgb(232, 226, 214),
            ];
            let c = rng.pick(TONES);
            canvas.fill(
                &all,
                Fill::Round(
                    (0.45 * n, 0.35 * n),
                    0.95 * n,
                    vec![(0.0, light(c, 0.45), 1.0), (1.0, shade(c, 0.35), 1.0)],
                ),
            );
        }
        Background::Beach => {
            canvas.fill(&all, down(rgb(104, 182, 236), rgb(214, 238, 248)));
            canvas.fill(
                &circle((n * (0.12 + 0.76 * rng.unit()), 0.14 * n), 0.065 * n),
                Fill::Solid(rgb(255, 244, 196), 1.0),
            );
            for _ in 0..3 {
                let (x, y) = (rng.unit() * n, (0.08 + 0.2 * rng.unit()) * n);
                for (dx, r) in [(-0.06, 0.03), (0.0, 0.045), (0.06, 0.032)] {
                    canvas.fill(&circle((x + dx * n, y), r * n), Fill::Solid([1.0; 3], 0.85));
                }
            }
            let h = 0.50 + 0.05 * rng.bell();
            canvas.fill(
                &rect(0.0, h * n, n, n),
                Fill::Line(
                    (0.0, h * n),
                    (0.0, 0.75 * n),
                    vec![(0.0, rgb(30, 120, 176), 1.0), (1.0, rgb(88, 194, 204), 1.0)],
                ),
            );
            let shore: Vec<P> = vec![
                (0.0, 0.74 * n),
                (0.3 * n, (0.70 + 0.03 * rng.bell()) * n),
                (0.7 * n, 0.75 * n),
                (n, 0.71 * n),
                (n, 1.1 * n),
                (0.0, 1.1 * n),
            ];
            let path = polygon(&shore, true);
            canvas.fill(&path, Fill::Solid(rgb(240, 218, 166), 1.0));
            canvas.line_alpha(&smooth(&shore[..4], false), [1.0; 3], 3.0, 0.8);
        }
        Background::Forest => {
            canvas.fill(&all, down(rgb(196, 224, 190), rgb(92, 140, 84)));
            for layer in 0..3 {
                let c = mix(rgb(126, 172, 122), rgb(34, 84, 52), layer as f32 / 2.0);
                let y = (0.66 + 0.11 * layer as f32) * n;
                for i in 0..5 {
                    let x = (i as f32 + rng.unit()) / 5.0 * n;
                    let h = (0.42 + 0.16 * rng.unit()) * n;
                    let w = 0.10 * n;
                    canvas.fill(
                        &rect(x - 0.012 * n, y - 0.05 * n, 0.024 * n, 0.2 * n),
                        Fill::Solid(rgb(88, 62, 44), 1.0),
                    );
                    for k in 0..3 {
                        let (t, s) = (y - h + k as f32 * h * 0.26, 0.55 + 0.22 * k as f32);
                        canvas.fill(
                            &polygon(&[(x, t), (x + w * s, t + h * 0.42), (x - w * s, t + h * 0.42)], true),
                            Fill::Solid(mix(c, rgb(20, 60, 40), 0.1 * k as f32), 1.0),
                        );
                    }
                }
                canvas.fill(&rect(0.0, y, n, n), Fill::Solid(mix(c, rgb(60, 110, 56), 0.5), 1.0));
            }
        }
        Background::City => {
            canvas.fill(&all, down(rgb(22, 28, 66), rgb(98, 70, 120)));
            canvas.fill(
                &circle((n * (0.15 + 0.7 * rng.unit()), 0.13 * n), 0.05 * n),
                Fill::Solid(rgb(244, 240, 214), 1.0),
            );
            for layer in 0..2 {
                let c = mix(rgb(58, 56, 104), rgb(26, 28, 54), layer as f32);
                let count = 6;
                for i in 0..count {
                    let x = i as f32 / count as f32 * n;
                    let w = n / count as f32;
                    let top = (0.18 + 0.22 * layer as f32 + 0.30 * rng.unit()) * n;
                    canvas.fill(&rect(x, top, w * 0.96, n), Fill::Solid(c, 1.0));
                    if layer == 1 {
                        // Windows keep to the grid of eight pixels.
                        let cell = 8.0 * canvas.k;
                        let mut y = (top / cell).ceil() * cell + cell * 0.5;
                        while y < n {
                            let mut wx = (x / cell).ceil() * cell + cell * 0.5;
                            while wx + cell < x + w * 0.96 {
                                if rng.chance(0.5) {
                                    canvas.fill(
                                        &rect(wx, y, cell * 0.5, cell * 0.5),
                                        Fill::Solid(rgb(250, 216, 120), 0.95),
                                    );
                                }
                                wx += cell;
                            }
                            y += cell * 1.5;
                        }
                    }
                }
            }
        }
        Background::Mountains => {
            canvas.fill(&all, down(rgb(120, 176, 228), rgb(226, 236, 240)));
            for i in 0..4 {
                let x = (i as f32 + 0.2 + 0.6 * rng.unit()) / 4.0 * n;
                let (top, w) = ((0.2 + 0.16 * rng.unit()) * n, (0.26 + 0.1 * rng.unit()) * n);
                canvas.fill(
                    &polygon(&[(x, top), (x + w, 0.8 * n), (x - w, 0.8 * n)], true),
                    Fill::Solid(rgb(118, 132, 156), 1.0),
                );
                canvas.fill(
                    &polygon(&[(x, top), (x + w, 0.8 * n), (x + 0.15 * w, 0.8 * n)], true),
                    Fill::Solid(rgb(92, 104, 132), 1.0),
                );
                let f = 0.32;
                let (dx, y) = (w * f * 0.85, top + (0.8 * n - top) * f * 0.85);
                canvas.fill(
                    &polygon(
                        &[
                            (x, top),
                            (x + dx, y),
                            (x + dx * 0.4, y - 0.02 * n),
                            (x, y + 0.03 * n),
                            (x - dx * 0.4, y - 0.015 * n),
                            (x - dx, y),
                        ],
                        true,
                    ),
                    Fill::Solid(rgb(246, 249, 252), 1.0),
                );
            }
            canvas.fill(&smooth(&ridge(&mut rng, 0.72, 0.04), true), Fill::Solid(rgb(104, 148, 98), 1.0));
            canvas.fill(&smooth(&ridge(&mut rng, 0.86, 0.04), true), Fill::Solid(rgb(74, 122, 74), 1.0));
        }
        Background::Room => {
            canvas.fill(&all, down(rgb(226, 200, 164), rgb(196, 158, 120)));
            let books: &[Rgb] = &[
                rgb(160, 60, 56),
                rgb(60, 92, 128),
                rgb(206, 164, 84),
                rgb(84, 118, 86),
                rgb(112, 80, 118),
                rgb(224, 214, 196),
            ];
            for row in 0..3 {
                let y = (0.10 + 0.27 * row as f32) * n;
                canvas.fill(&rect(0.0, y, n, 0.24 * n), Fill::Solid(rgb(120, 82, 54), 1.0));
                let mut x = 0.02 * n;
                while x < n {
                    let w = (0.028 + 0.022 * rng.unit()) * n;
                    let h = (0.14 + 0.07 * rng.unit()) * n;
                    canvas.fill(&rect(x, y + 0.225 * n - h, w * 0.92, h), Fill::Solid(rng.pick(books), 1.0));
                    x += w;
                    if rng.chance(0.08) {
                        x += 0.06 * n;
                    }
                }
                canvas.fill(&rect(0.0, y + 0.225 * n, n, 0.03 * n), Fill::Solid(rgb(164, 116, 76), 1.0));
            }
            canvas.fill(&rect(0.0, 0.88 * n, n, n), Fill::Solid(rgb(142, 96, 64), 1.0));
            let glow = (n * rng.unit(), 0.15 * n);
            canvas.fill(
                &all,
                Fill::Round(glow, 0.9 * n, vec![(0.0, rgb(255, 226, 160), 0.4), (1.0, rgb(255, 226, 160), 0.0)]),
            );
        }
        Background::Sunset => {
            let sky = Fill::Line(
                (0.0, 0.0),
                (0.0, 0.75 * n),
                vec![(0.0, rgb(96, 64, 140), 1.0), (0.45, rgb(236, 108, 104), 1.0), (1.0, rgb(255, 206, 112), 1.0)],
            );
            canvas.fill(&all, sky);
            let sun = (n * (0.2 + 0.6 * rng.unit()), 0.6 * n);
            canvas.fill(
                &circle(sun, 0.3 * n),
                Fill::Round(sun, 0.3 * n, vec![(0.0, rgb(255, 240, 180), 0.9), (1.0, rgb(255, 220, 140), 0.0)]),
            );
            canvas.fill(&circle(sun, 0.11 * n), Fill::Solid(rgb(255, 242, 196), 1.0));
            for _ in 0..4 {
                let (x, y, w) = (rng.unit() * n, (0.15 + 0.35 * rng.unit()) * n, (0.1 + 0.12 * rng.unit()) * n);
                let cloud = smooth(&[(x - w, y), (x, y - 0.022 * n), (x + w, y), (x, y + 0.012 * n)], true);
                canvas.fill(&cloud, Fill::Solid(rgb(250, 168, 148), 0.7));
            }
            canvas.fill(&smooth(&ridge(&mut rng, 0.72, 0.03), true), Fill::Solid(rgb(108, 58, 100), 1.0));
            canvas.fill(&smooth(&ridge(&mut rng, 0.85, 0.04), true), Fill::Solid(rgb(70, 38, 78), 1.0));
        }
        Background::Space => {
            canvas.fill(&all, down(rgb(12, 14, 38), rgb(34, 20, 62)));
            for _ in 0..2 {
                let p = (rng.unit() * n, rng.unit() * 0.7 * n);
                let c = rng.pick(&[rgb(130, 60, 170), rgb(40, 100, 180), rgb(190, 70, 120)]);
                canvas.fill(&all, Fill::Round(p, 0.45 * n, vec![(0.0, c, 0.55), (1.0, c, 0.0)]));
            }
            for _ in 0..36 {
                let p = (rng.unit() * n, rng.unit() * n);
                canvas.fill(&circle(p, (0.6 + 1.0 * rng.unit()) * canvas.k), Fill::Solid([1.0, 0.98, 0.9], 0.95));
            }
            let p = (n * rng.pick(&[0.14, 0.86]), n * (0.12 + 0.2 * rng.unit()));
            let r = 0.09 * n;
            let c = rng.pick(&[rgb(226, 150, 90), rgb(120, 180, 200), rgb(200, 120, 150)]);
            canvas.fill(
                &circle(p, r),
                Fill::Round(
                    (p.0 - 0.4 * r, p.1 - 0.4 * r),
                    1.7 * r,
                    vec![(0.0, light(c, 0.4), 1.0), (1.0, shade(c, 1.0), 1.0)],
                ),
            );
            let ring =
                smooth(&[(p.0 - 1.7 * r, p.1 + 0.4 * r), (p.0, p.1 + 0.28 * r), (p.0 + 1.7 * r, p.1 - 0.4 * r)], false);
            canvas.line_alpha(&ring, rgb(240, 220, 180), 3.0, 0.9);
        }
    }
    canvas.contour = contour;
}
