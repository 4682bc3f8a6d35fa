//! Eyes, brows, nose and mouth, and the five keypoints that follow from them.

use crate::canvas::{Canvas, Fill, P, View, circle, smooth};
use crate::character::{Character, Trait};
use crate::color::{Rgb, light, mix, rgb, shade, skin_shade};
use crate::scene::Expression;

/// Where the features of a face lie, in head coordinates, with the expression applied.
pub(crate) struct Layout {
    eye_x: f32,
    eye_y: f32,
    eye_w: f32,
    eye_up: f32,
    eye_down: f32,
    eye_tilt: f32,
    brow_y: f32,
    brow_inner: f32,
    brow_outer: f32,
    pub(crate) nose_y: f32,
    pub(crate) mouth_y: f32,
    mouth_w: f32,
    corner: f32,
    open: f32,
    teeth: bool,
}

impl Layout {
    pub(crate) fn of(c: &Character, expression: Expression) -> Layout {
        let open = c.lerp(Trait::EyeOpen, 0.13, 0.22);
        // Each row: eyelids above and below, inner and outer brow, mouth corners, mouth opening, mouth width.
        let (up, down, inner, outer, corner, gap, wide) = match expression {
            Expression::Neutral => (1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0),
            Expression::Smile => (0.92, 0.8, 0.0, -0.02, -0.12, 0.0, 1.15),
            Expression::Laugh => (0.72, 0.45, -0.05, -0.03, -0.13, 0.30, 1.12),
            Expression::Sad => (0.82, 1.0, -0.15, 0.09, 0.13, 0.0, 0.9),
            Expression::Angry => (0.78, 0.85, 0.16, -0.08, 0.08, 0.05, 0.95),
            Expression::Surprised => (1.4, 1.2, -0.15, -0.14, 0.02, 0.33, 0.62),
        };
        let nose_y = 0.55 + c.lerp(Trait::NoseLength, 0.02, 0.22);
        Layout {
            eye_x: c.lerp(Trait::EyeSpacing, 0.45, 0.55),
            eye_y: 0.0,
            eye_w: c.lerp(Trait::EyeSize, 0.225, 0.31),
            eye_up: open * up,
            eye_down: open * 0.72 * down,
            eye_tilt: c.lerp(Trait::EyeTilt, -0.06, 0.075),
            brow_y: -c.lerp(Trait::BrowHeight, 0.30, 0.46),
            brow_inner: inner,
            brow_outer: outer,
            nose_y,
            mouth_y: 0.62 + 0.55 * nose_y + 0.1,
            mouth_w: c.lerp(Trait::MouthWidth, 0.29, 0.47) * wide,
            corner,
            open: gap,
            teeth: matches!(expression, Expression::Laugh | Expression::Angry),
        }
    }

    /// Left eye, right eye, nose, left and right mouth corner, as seen in the picture.
    pub(crate) fn keypoints(&self, view: &View) -> [P; 5] {
        [
            view.face(-self.eye_x, self.eye_y, 0.02),
            view.face(self.eye_x, self.eye_y, 0.02),
            view.face(0.0, self.nose_y, 0.24),
            view.face(-self.mouth_w, self.mouth_y + self.corner, 0.03),
            view.face(self.mouth_w, self.mouth_y + self.corner, 0.03),
        ]
    }
}

pub(crate) fn eyes(canvas: &mut Canvas, view: &View, c: &Character, l: &Layout, skin: Rgb) {
    let u = view.unit;
    let iris = c.iris();
    let line = u / canvas.k;
    for s in [-1.0f32, 1.0] {
        let at = |x: f32, y: f32| view.face(s * (l.eye_x + x), l.eye_y + y - x / l.eye_w * l.eye_tilt, 0.02);
        let w = l.eye_w;
        let (inner, outer) = (at(-w, 0.02), at(w, 0.0));
        let upper =
            [inner, at(-0.55 * w, -0.78 * l.eye_up), at(0.05 * w, -l.eye_up), at(0.62 * w, -0.72 * l.eye_up), outer];
        let lower =
            [outer, at(0.5 * w, 0.8 * l.eye_down), at(-0.05 * w, l.eye_down), at(-0.6 * w, 0.62 * l.eye_down), inner];
        let mut ring = upper.to_vec();
        ring.extend(&lower[1..4]);
        let path = smooth(&ring, true);
        let white = mix(rgb(250, 248, 244), skin, 0.06);
        canvas.fill(&path, Fill::Solid(white, 1.0));
        let look = view.face(s * l.eye_x, l.eye_y - 0.1 * l.eye_up, 0.02);
        let r = 0.158 * u;
        let rim = shade(iris, 0.75);
        let pupil = rgb(14, 10, 12);
        let stops = vec![
            (0.0, pupil, 1.0),
            (0.30, pupil, 1.0),
            (0.38, shade(iris, 0.25), 1.0),
            (0.55, light(iris, 0.12), 1.0),
            (0.76, iris, 1.0),
            (0.84, rim, 1.0),
            (0.90, rim, 1.0),
            (0.985, rim, 0.0),
        ];
        canvas.fill(&path, Fill::Round(look, r * 1.04, stops));
        // The lid casts a shadow on the eyeball.
        canvas.tone(
            &path,
            Fill::Line(
                at(0.0, -l.eye_up),
                at(0.0, l.eye_down),
                vec![(0.0, rgb(60, 40, 50), 0.5), (0.45, rgb(60, 40, 50), 0.0)],
            ),
        );
        let shine = (look.0 + canvas.light.0 * 0.045 * u + 0.01 * u, look.1 - 0.045 * u);
        canvas.fill(&circle(shine, 0.034 * u), Fill::Solid([1.0; 3], 0.95));
        // Lids and lashes.
        let lash = if c.masculine() { c.lerp(Trait::Lashes, 0.035, 0.055) } else { c.lerp(Trait::Lashes, 0.05, 0.085) };
        let lid = mix(rgb(30, 20, 20), skin_shade(skin, 1.0), 0.25);
        canvas.line(&smooth(&upper, false), lid, lash * line);
        canvas.line_alpha(&smooth(&lower, false), skin_shade(skin, 0.95), 0.022 * line, 0.8);
        let crease: Vec<P> =
            [(-0.7, -1.0), (0.0, -1.42), (0.75, -1.1)].iter().map(|&(x, y)| at(x * w, y * l.eye_up - 0.03)).collect();
        canvas.line_alpha(&smooth(&crease, false), skin_shade(skin, 0.9), 0.026 * line, 0.6);
        if !c.masculine() && c.get(Trait::Lashes) > 0.35 {
            for (x, y, dx, dy) in [(0.55, -0.78, 0.10, -0.08), (0.82, -0.45, 0.13, -0.05), (1.0, 0.0, 0.13, -0.03)] {
                let (a, b) = (at(x * w, y * l.eye_up), at(x * w + dx, y * l.eye_up + dy));
                canvas.line(&smooth(&[a, b], false), lid, lash * 0.6 * line);
            }
        }
    }
}

pub(crate) fn brows(canvas: &mut Canvas, view: &View, c: &Character, l: &Layout, hair: Rgb) {
    let thick = c.lerp(Trait::BrowThickness, 0.05, 0.155) * if c.masculine() { 1.12 } else { 0.85 };
    let arch = c.lerp(Trait::BrowArch, 0.0, 0.12);
    let dark = mix(shade(hair, 0.35), rgb(40, 28, 24), 0.25);
    for s in [-1.0f32, 1.0] {
        let at = |x: f32, y: f32| view.face(s * (l.eye_x + x), l.brow_y + y, 0.06);
        let (inner, outer) = (l.brow_inner, l.brow_outer);
        let points = [
            at(-0.29, inner + thick * 0.45),
            at(-0.28, inner - thick * 0.45),
            at(0.02, -arch - thick * 0.62 + (inner + outer) * 0.5),
            at(0.33, -arch * 0.35 + outer),
            at(0.36, 0.03 + outer),
            at(0.03, -arch + thick * 0.42 + (inner + outer) * 0.5),
        ];
        canvas.fill(&smooth(&points, true), Fill::Solid(dark, 0.96));
    }
}

pub(crate) fn nose(canvas: &mut Canvas, view: &View, c: &Character, l: &Layout, skin: Rgb) {
    let u = view.unit;
    let line = u / canvas.k;
    let w = c.lerp(Trait::NoseWidth, 0.13, 0.27);
    let bump = c.lerp(Trait::NoseShape, -0.05, 0.12);
    let (dark, y) = (skin_shade(skin, 0.85), l.nose_y);
    // The bridge is shaded on the side away from the light, or away from the turn.
    let side = if view.turn().abs() > 0.2 {
        -view.turn().signum()
    } else if canvas.light.0 > 0.1 {
        -1.0
    } else {
        1.0
    };
    let bridge = [
        view.face(side * 0.13, -0.08, 0.02),
        view.face(side * 0.075, 0.15, 0.1 + bump),
        view.face(side * 0.09, 0.36, 0.17 + bump * 0.6),
        view.face(side * w * 0.75, y - 0.1, 0.15),
    ];
    let mut plane = bridge.to_vec();
    plane.extend([
        view.face(side * w * 1.15, y - 0.02, 0.03),
        view.face(side * 0.26, 0.3, 0.0),
        view.face(side * 0.24, 0.0, 0.0),
    ]);
    canvas.tone(&smooth(&plane, true), Fill::Solid(skin_shade(skin, 0.75), 0.32));
    canvas.line_alpha(&smooth(&bridge, false), dark, 0.03 * line, 0.55);
    // Highlight along the ridge and on the tip.
    let ridge = smooth(
        &[view.face(-side * 0.015, 0.0, 0.06), view.face(0.0, 0.3, 0.17 + bump * 0.7), view.face(0.0, y - 0.12, 0.24)],
        false,
    );
    canvas.line_alpha(&ridge, light(skin, 0.6), 0.07 * line, 0.35 * canvas.shading);
    let tip = view.face(-side * 0.02, y - 0.07, 0.27);
    canvas.tone(
        &circle(tip, 0.1 * u),
        Fill::Round(tip, 0.1 * u, vec![(0.0, [1.0, 0.97, 0.92], 0.6), (1.0, [1.0, 0.97, 0.92], 0.0)]),
    );
    // Wings and underside.
    let base = [
        view.face(-w * 1.1, y - 0.09, 0.02),
        view.face(-w * 1.08, y + 0.05, 0.05),
        view.face(-w * 0.5, y + 0.065, 0.13),
        view.face(0.0, y + 0.11, 0.18),
        view.face(w * 0.5, y + 0.065, 0.13),
        view.face(w * 1.08, y + 0.05, 0.05),
        view.face(w * 1.1, y - 0.09, 0.02),
    ];
    canvas.line_alpha(&smooth(&base, false), skin_shade(skin, 1.0), 0.042 * line, 0.85);
    for s in [-1.0f32, 1.0] {
        let nostril = view.face(s * w * 0.52, y + 0.035, 0.12);
        canvas.fill(&circle(nostril, 0.04 * u), Fill::Solid(shade(skin_shade(skin, 1.0), 0.7), 0.75));
    }
    let under = view.face(0.0, y + 0.15, 0.08);
    canvas.tone(&circle(under, 0.2 * u), Fill::Round(under, 0.2 * u, vec![(0.0, dark, 0.3), (1.0, dark, 0.0)]));
}

pub(crate) fn mouth(canvas: &mut Canvas, view: &View, c: &Character, l: &Layout, skin: Rgb) {
    let line = view.unit / canvas.k;
    let full = c.lerp(Trait::LipFullness, 0.055, 0.165);
    let tint = if c.masculine() { 0.28 } else { 0.35 + 0.4 * c.get(Trait::LipColor) };
    let lip = mix(
        mix(skin, rgb(178, 70, 66), tint),
        rgb(200, 40, 70),
        if c.masculine() { 0.0 } else { 0.35 * c.get(Trait::LipColor) },
    );
    let (w, y, k) = (l.mouth_w, l.mouth_y, l.corner);
    let at = |x: f32, dy: f32| {
        let bend = k * x.abs().powf(1.6);
        view.face(x * w, y + bend + dy, 0.06 + 0.05 * (1.0 - x * x))
    };
    let (top, bottom) = (-0.42 * l.open, 0.58 * l.open);
    let upper = [
        at(-1.0, 0.0),
        at(-0.5, top - full * 0.62),
        at(-0.16, top - full * 0.95),
        at(0.0, top - full * 0.72),
        at(0.16, top - full * 0.95),
        at(0.5, top - full * 0.62),
        at(1.0, 0.0),
    ];
    let lower =
        [at(1.0, 0.0), at(0.55, bottom + full * 0.85), at(0.0, bottom + full * 1.3), at(-0.55, bottom + full * 0.85)];
    let mut ring = upper.to_vec();
    ring.extend(&lower[1..]);
    let path = smooth(&ring, true);
    canvas.fill(&path, Fill::Solid(lip, 1.0));
    canvas.tone(
        &path,
        Fill::Line(
            at(0.0, top - full),
            at(0.0, bottom + full * 1.3),
            vec![
                (0.0, shade(lip, 0.9), 0.55),
                (0.5, shade(lip, 0.5), 0.15),
                (0.75, light(lip, 0.6), 0.35),
                (1.0, lip, 0.0),
            ],
        ),
    );
    let parting =
        [at(-1.0, 0.0), at(-0.4, top * 0.96 + 0.012), at(0.0, top), at(0.4, top * 0.96 + 0.012), at(1.0, 0.0)];
    let dark = shade(mix(lip, rgb(80, 20, 24), 0.5), 0.8);
    if l.open > 0.0 {
        let mut hole = parting.to_vec();
        hole.extend([at(0.55, bottom * 0.88), at(0.0, bottom), at(-0.55, bottom * 0.88)]);
        let hole_path = smooth(&hole, true);
        canvas.fill(&hole_path, Fill::Solid(rgb(92, 26, 32), 1.0));
        if l.teeth {
            let drop = (bottom - top) * 0.36;
            let teeth = [
                at(-0.78, top * 0.5 + 0.01),
                at(-0.4, top * 0.93 + 0.012),
                at(0.0, top + 0.012),
                at(0.4, top * 0.93 + 0.012),
                at(0.78, top * 0.5 + 0.01),
                at(0.45, top + drop),
                at(0.0, top + drop * 1.1),
                at(-0.45, top + drop),
            ];
            canvas.fill(&smooth(&teeth, true), Fill::Solid(rgb(250, 246, 238), 1.0));
        }
        if l.open > 0.2 {
            let tongue =
                [at(-0.4, bottom * 0.75), at(0.0, bottom * 0.4), at(0.4, bottom * 0.75), at(0.0, bottom * 0.97)];
            canvas.fill(&smooth(&tongue, true), Fill::Solid(rgb(206, 92, 96), 0.95));
        }
        canvas.line_alpha(&hole_path, dark, 0.028 * line, 0.9);
    } else {
        canvas.line(&smooth(&parting, false), dark, 0.042 * line);
    }
    for s in [-1.0f32, 1.0] {
        let dimple = smooth(&[at(s * 0.97, -0.01), at(s * 1.08, 0.015 - 0.03 * k.signum())], false);
        canvas.line_alpha(&dimple, skin_shade(skin, 1.0), 0.045 * line, 0.7);
    }
}
