//! The head: its outline, neck, ears, shading, and the small marks of skin and age.

use crate::canvas::{Canvas, Fill, P, View, circle, smooth};
use crate::character::{Character, FacialHair, HairStyle, Trait};
use crate::color::{Rgb, light, mix, rgb, shade, skin_shade};
use crate::rng::Rng;

/// Measures of a head, in units of an average distance between the eyes.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) half_width: f32,
    pub(crate) chin: f32,
    pub(crate) jaw: f32,
    chin_width: f32,
    cheek: f32,
}

impl Shape {
    pub(crate) fn of(c: &Character) -> Shape {
        let half_width = c.lerp(Trait::FaceWidth, 0.93, 1.17);
        let man = if c.masculine() { 1.0 } else { 0.0 };
        Shape {
            half_width,
            chin: c.lerp(Trait::FaceLength, 1.52, 1.92),
            jaw: half_width * (c.lerp(Trait::JawWidth, 0.60, 0.88) + 0.05 * man),
            chin_width: c.lerp(Trait::ChinShape, 0.14, 0.44) + 0.03 * man,
            cheek: c.lerp(Trait::Cheekbones, 0.90, 1.03),
        }
    }

    /// The outline of the head, clockwise from the top, with a depth for each point.
    pub(crate) fn outline(&self, view: &View) -> Vec<P> {
        let w = self.half_width;
        let right = [
            (0.0, -1.26, 0.0),
            (0.55 * w, -1.12, 0.0),
            (0.92 * w, -0.62, 0.0),
            (w, -0.02, 0.04),
            (0.985 * w * self.cheek, 0.52, 0.12),
            (self.jaw * 0.6 + 0.4 * w * self.cheek, self.chin - 0.66, 0.2),
            (self.jaw * 0.86, self.chin - 0.33, 0.26),
            (self.chin_width + 0.14, self.chin - 0.06, 0.36),
            (self.chin_width * 0.5, self.chin, 0.4),
        ];
        // The far cheek is seen edge-on and looks flatter, the near one fuller.
        let side = |x: f32, y: f32, z: f32, s: f32| {
            view.flat(s * x * (1.0 - 0.05 * s * view.turn() * (y > -0.3) as u8 as f32), y, z)
        };
        let mut points: Vec<P> = right.iter().map(|&(x, y, z)| side(x, y, z, 1.0)).collect();
        points.extend(right[1..].iter().rev().map(|&(x, y, z)| side(x, y, z, -1.0)));
        points
    }
}

/// Neck, drawn before the clothes.
pub(crate) fn neck(canvas: &mut Canvas, view: &View, c: &Character, shape: &Shape, skin: Rgb) {
    let body = view.body(0.3);
    let half = if c.masculine() { 0.56 } else { 0.44 } * shape.half_width;
    let top = shape.chin - 0.6;
    let points = [
        view.flat(-half, top, 0.05),
        body.flat(-half * 0.95, shape.chin + 0.2, 0.0),
        body.flat(-half * 1.25, 2.75, 0.0),
        body.flat(0.0, 3.0, 0.0),
        body.flat(half * 1.25, 2.75, 0.0),
        body.flat(half * 0.95, shape.chin + 0.2, 0.0),
        view.flat(half, top, 0.05),
    ];
    let path = smooth(&points, true);
    canvas.shape(&path, skin_shade(skin, 0.14));
    let (a, b) = (view.flat(0.0, shape.chin - 0.1, 0.3), body.flat(0.0, shape.chin + 0.75, 0.0));
    canvas.tone(&path, Fill::Line(a, b, vec![(0.0, skin_shade(skin, 0.85), 0.75), (1.0, skin_shade(skin, 0.6), 0.0)]));
    canvas.side_shadow(&path, body.flat(0.0, 2.2, 0.0), view.unit * 0.8, skin_shade(skin, 0.9), 0.5);
}

/// Both ears, behind the head.
pub(crate) fn ears(canvas: &mut Canvas, view: &View, c: &Character, shape: &Shape, skin: Rgb) {
    let size = c.lerp(Trait::EarSize, 0.75, 1.3);
    for s in [-1.0f32, 1.0] {
        // Turning away hides the far ear behind the cheek.
        let out = 0.16 * size * (1.0 - 0.9 * s * view.turn()).clamp(0.25, 1.5);
        let x = s * (shape.half_width - 0.06);
        let z = -0.22;
        let at = |dx: f32, dy: f32| view.flat(x + s * dx * out / 0.16, 0.22 + dy * size, z);
        let path = smooth(
            &[at(-0.08, -0.28), at(0.08, -0.36), at(0.2, -0.2), at(0.15, 0.1), at(0.07, 0.3), at(-0.06, 0.3)],
            true,
        );
        canvas.shape(&path, skin_shade(skin, 0.06));
        let inner = smooth(&[at(0.0, -0.2), at(0.1, -0.22), at(0.11, -0.05), at(0.03, 0.12)], false);
        canvas.line_alpha(&inner, skin_shade(skin, 0.75), 0.045 * view.unit / canvas.k, 0.65);
        canvas.side_shadow(&path, at(0.05, 0.0), view.unit * 0.5, skin_shade(skin, 0.9), 0.4);
    }
}

/// Skin of the face with light and shadow.
pub(crate) fn skin(canvas: &mut Canvas, view: &View, c: &Character, skin: Rgb, outline: &[P]) {
    let path = smooth(outline, true);
    canvas.shape(&path, skin);
    let u = view.unit;
    let middle = view.face(0.0, 0.35, 0.0);
    let (lx, ly) = canvas.light;
    let glow = (middle.0 + lx * 0.6 * u, middle.1 + (ly * 0.7 - 0.1) * u);
    canvas.tone(&path, Fill::Round(glow, 1.5 * u, vec![(0.0, light(skin, 0.55), 0.75), (1.0, light(skin, 0.5), 0.0)]));
    canvas.side_shadow(&path, middle, 1.55 * u, skin_shade(skin, 0.85), 0.75);
    // Edges turn away from the viewer and darken.
    canvas.tone(
        &path,
        Fill::Round(
            middle,
            1.85 * u,
            vec![
                (0.0, skin_shade(skin, 0.7), 0.0),
                (0.55, skin_shade(skin, 0.7), 0.0),
                (0.95, skin_shade(skin, 0.8), 0.5),
            ],
        ),
    );
    // Eye sockets, under the lip, and cheeks.
    for s in [-1.0f32, 1.0] {
        let socket = view.face(s * 0.47, -0.05, 0.0);
        canvas.tone(
            &circle(socket, 0.36 * u),
            Fill::Round(socket, 0.36 * u, vec![(0.0, skin_shade(skin, 0.7), 0.30), (1.0, skin_shade(skin, 0.7), 0.0)]),
        );
        let cheek = view.face(s * 0.62, 0.58, 0.0);
        let red = mix(skin, rgb(226, 82, 70), 0.55);
        let blush = if c.masculine() { 0.26 } else { 0.42 };
        canvas.tone(&path, Fill::Round(cheek, 0.42 * u, vec![(0.0, red, blush), (1.0, red, 0.0)]));
    }
    let lip = view.face(0.0, 1.33, 0.05);
    canvas.tone(
        &circle(lip, 0.2 * u),
        Fill::Round(lip, 0.2 * u, vec![(0.0, skin_shade(skin, 0.8), 0.35), (1.0, skin_shade(skin, 0.7), 0.0)]),
    );
    if c.hair_style() == HairStyle::Bald || c.hair_style() == HairStyle::Receding {
        let shine = view.flat(0.25 * lx.signum() * lx.abs().sqrt(), -0.95, 0.3);
        canvas.tone(
            &circle(shine, 0.34 * u),
            Fill::Round(shine, 0.34 * u, vec![(0.0, [1.0; 3], 0.5), (1.0, [1.0; 3], 0.0)]),
        );
    }
}

/// Freckles, mole and lines of age.
pub(crate) fn marks(canvas: &mut Canvas, view: &View, c: &Character, skin: Rgb) {
    let u = view.unit;
    let freckles = c.get(Trait::Freckles);
    if freckles > 0.62 {
        let mut rng = Rng::stream(c.seed, 11);
        let strength = (freckles - 0.62) / 0.38;
        let count = 10 + (14.0 * strength) as usize;
        let dark = mix(skin_shade(skin, 0.55), rgb(150, 80, 40), 0.4);
        for i in 0..count {
            let side = if i % 2 == 0 { 1.0 } else { -1.0 };
            let (x, y) = (side * (0.12 + 0.62 * rng.unit()), 0.42 + 0.34 * rng.unit());
            let r = (0.020 + 0.022 * rng.unit()) * u;
            canvas.fill(&circle(view.face(x, y, 0.0), r), Fill::Solid(dark, 0.55 + 0.3 * strength));
        }
    }
    let mole = c.get(Trait::Mole);
    if mole > 0.6 {
        const PLACES: &[(f32, f32)] = &[
            (0.42, 0.95),
            (-0.45, 0.98),
            (0.66, 0.42),
            (-0.68, 0.45),
            (0.3, 1.42),
            (-0.34, -0.62),
            (0.5, -0.66),
            (-0.16, 0.86),
        ];
        let i = (((mole - 0.6) / 0.4 * PLACES.len() as f32) as usize).min(PLACES.len() - 1);
        let at = view.face(PLACES[i].0, PLACES[i].1, 0.0);
        canvas.fill(&circle(at, 0.058 * u), Fill::Solid(skin_shade(mix(skin, rgb(70, 40, 30), 0.6), 0.7), 0.95));
        canvas.tone(&circle((at.0 - 0.015 * u, at.1 - 0.02 * u), 0.02 * u), Fill::Solid(light(skin, 0.5), 0.5));
    }
    let age = c.get(Trait::Age);
    if age > 0.62 {
        let s = ((age - 0.62) / 0.3).min(1.0);
        let dark = skin_shade(skin, 0.85);
        let width = 0.034 * u / canvas.k;
        for side in [-1.0f32, 1.0] {
            let fold = smooth(
                &[
                    view.face(side * 0.30, 0.68, 0.02),
                    view.face(side * 0.47, 0.88, 0.02),
                    view.face(side * 0.53, 1.14, 0.0),
                ],
                false,
            );
            canvas.line_alpha(&fold, dark, width, 0.25 + 0.5 * s);
            let bag = smooth(
                &[
                    view.face(side * 0.30, 0.22, 0.0),
                    view.face(side * 0.48, 0.30, 0.0),
                    view.face(side * 0.66, 0.22, 0.0),
                ],
                false,
            );
            canvas.line_alpha(&bag, dark, width, 0.2 + 0.4 * s);
            if age > 0.75 {
                for dy in [-0.07, 0.02, 0.11] {
                    let crow = smooth(
                        &[view.face(side * 0.77, 0.0 + dy, 0.0), view.face(side * 0.88, -0.02 + dy * 1.9, 0.0)],
                        false,
                    );
                    canvas.line_alpha(&crow, dark, width * 0.8, 0.5 * s);
                }
            }
        }
        if age > 0.72 {
            for (i, y) in [-0.66f32, -0.79].iter().enumerate() {
                let line = smooth(
                    &[
                        view.face(-0.42, *y, 0.0),
                        view.face(0.0, y - 0.04 + 0.02 * i as f32, 0.0),
                        view.face(0.42, *y, 0.0),
                    ],
                    false,
                );
                canvas.line_alpha(&line, dark, width, 0.45 * s);
            }
        }
    }
}

/// Beard and moustache; drawn before the mouth.
pub(crate) fn beard(
    canvas: &mut Canvas,
    view: &View,
    c: &Character,
    shape: &Shape,
    hair: Rgb,
    skin: Rgb,
    mouth_y: f32,
) {
    let kind = c.facial_hair();
    let u = view.unit;
    let dark = shade(hair, 0.2);
    let jaw_points = |drop: f32, out: f32, top: f32, under_nose: f32| -> Vec<P> {
        let (w, ch) = (shape.half_width, shape.chin);
        let half = [
            (w * 0.985, top, 0.05),
            (shape.jaw * 0.62 + 0.4 * w, ch - 0.66, 0.2),
            (shape.jaw * 0.88 + out, ch - 0.3, 0.26),
            (0.36 + out, ch - 0.01 + drop * 0.75, 0.38),
            (0.0, ch + 0.03 + drop, 0.42),
        ];
        let mut p: Vec<P> = half.iter().map(|&(x, y, z)| view.flat(x, y, z)).collect();
        p.extend(half[..4].iter().rev().map(|&(x, y, z)| view.flat(-x, y, z)));
        let inner = [
            (-0.80 * w, top + 0.12),
            (-0.74 * w, top + 0.45),
            (-0.52, mouth_y - 0.16),
            (-0.26, under_nose),
            (0.0, under_nose + 0.03),
        ];
        p.extend(inner.iter().map(|&(x, y)| view.face(x, y, 0.0)));
        p.extend(inner[..4].iter().rev().map(|&(x, y)| view.face(-x, y, 0.0)));
        p
    };
    let nose_y = 0.55 + c.lerp(Trait::NoseLength, 0.02, 0.22);
    match kind {
        FacialHair::None => {}
        FacialHair::Stubble => {
            let path = smooth(&jaw_points(0.0, -0.01, 0.45, nose_y + 0.13), true);
            canvas.fill(&path, Fill::Solid(mix(hair, skin, 0.35), 0.38));
        }
        FacialHair::ShortBeard | FacialHair::FullBeard => {
            let full = kind == FacialHair::FullBeard;
            let path = smooth(
                &jaw_points(if full { 0.42 } else { 0.05 }, if full { 0.1 } else { 0.02 }, 0.28, nose_y + 0.14),
                true,
            );
            canvas.shape(&path, hair);
            let m = view.flat(0.0, 1.4, 0.3);
            canvas.side_shadow(&path, m, 1.5 * u, shade(hair, 0.9), 0.7);
            canvas.tone(
                &path,
                Fill::Line(
                    view.face(0.0, 1.0, 0.0),
                    view.flat(0.0, shape.chin + 0.4, 0.4),
                    vec![(0.0, light(hair, 0.3), 0.25), (1.0, shade(hair, 0.9), 0.5)],
                ),
            );
            for i in -3..=3 {
                let x = i as f32 * 0.2;
                let end = shape.chin + if full { 0.26 } else { -0.06 } - 0.12 * x.abs();
                let strand = smooth(
                    &[
                        view.face(x, end - 0.38, 0.05),
                        view.flat(x * 0.95, end - 0.15, 0.38),
                        view.flat(x * 0.85, end, 0.4),
                    ],
                    false,
                );
                canvas.line_alpha(&strand, dark, 0.035 * u / canvas.k, 0.6);
            }
        }
        FacialHair::Moustache | FacialHair::Goatee => {
            let half = [
                (0.0, nose_y + 0.15),
                (0.2, nose_y + 0.13),
                (0.44, mouth_y - 0.08),
                (0.55, mouth_y + 0.10),
                (0.34, mouth_y - 0.02),
                (0.0, mouth_y - 0.05),
            ];
            let mut p: Vec<P> = half.iter().map(|&(x, y)| view.face(x, y, 0.06)).collect();
            p.extend(half[1..5].iter().rev().map(|&(x, y)| view.face(-x, y, 0.06)));
            canvas.shape(&smooth(&p, true), hair);
            if kind == FacialHair::Goatee {
                let half = [
                    (0.0, mouth_y + 0.2),
                    (0.2, mouth_y + 0.22),
                    (0.27, shape.chin - 0.2),
                    (0.15, shape.chin + 0.08),
                    (0.0, shape.chin + 0.16),
                ];
                let at =
                    |x: f32, y: f32| if y > shape.chin - 0.1 { view.flat(x, y, 0.42) } else { view.face(x, y, 0.0) };
                let mut p: Vec<P> = half.iter().map(|&(x, y)| at(x, y)).collect();
                p.extend(half[1..4].iter().rev().map(|&(x, y)| at(-x, y)));
                let path = smooth(&p, true);
                canvas.shape(&path, hair);
                canvas.side_shadow(&path, view.flat(0.0, shape.chin, 0.4), 0.5 * u, shade(hair, 0.9), 0.6);
            }
        }
    }
}
