//! One picture: backdrop, figure, style, and the truth about it.

use tiny_skia::Pixmap;

use crate::canvas::{Canvas, Fill, View};
use crate::caption;
use crate::character::{Character, TRAIT_COUNT};
use crate::color::{Rgb, rgb};
use crate::effects::{self, Image};
use crate::features::{self, Layout};
use crate::head::{self, Shape};
use crate::rng::Rng;
use crate::scene::{Expression, Light, Scene, Style};
use crate::{Error, backdrop, hair, hair_back, wear};

/// What is known about a picture because it was drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Truth {
    /// The identity seed.
    pub seed: u64,
    /// Face box in pixels: left, top, right, bottom.
    pub bbox: [f32; 4],
    /// Left eye, right eye, nose, left and right mouth corner as seen in the picture (the order of ArcFace), in pixels.
    pub keypoints: [[f32; 2]; 5],
    /// The identity traits.
    pub traits: [f32; TRAIT_COUNT],
    /// The scene's choices as numbers; see [`Scene::attributes`].
    pub attributes: [u8; 8],
    /// A caption in natural words.
    pub caption: String,
}

/// A drawn picture.
#[derive(Clone, Debug)]
pub struct Picture {
    /// Width and height.
    pub size: usize,
    /// Red, green, blue bytes, row by row.
    pub rgb: Vec<u8>,
    /// What is in it.
    pub truth: Truth,
}

/// Draws a character in a scene as a square picture of `size` pixels.
///
/// # Errors
/// `size` outside 32..=2048, or a scene whose numbers are not finite or whose face would not fit any picture.
pub fn draw(character: &Character, scene: &Scene, size: usize) -> Result<Picture, Error> {
    if !(32..=2048).contains(&size) {
        return Err(Error::Size { size });
    }
    for (what, value, low, high) in [
        ("yaw", scene.yaw, -50.0, 50.0),
        ("pitch", scene.pitch, -30.0, 30.0),
        ("roll", scene.roll, -60.0, 60.0),
        ("size", scene.size, 0.02, 0.4),
        ("center x", scene.center[0], 0.0, 1.0),
        ("center y", scene.center[1], 0.0, 1.0),
    ] {
        if !(low..=high).contains(&value) {
            return Err(Error::Scene { what, value, low, high });
        }
    }
    let pixels = Pixmap::new(size as u32, size as u32).ok_or(Error::Size { size })?;
    let n = size as f32;
    let k = n / 256.0;
    let light = match scene.light {
        Light::Front => (0.12, -0.42),
        Light::Left => (-0.85, -0.45),
        Light::Right => (0.85, -0.45),
        Light::Warm => (0.55, -0.55),
        Light::Cool => (-0.5, -0.55),
    };
    let black: Rgb = rgb(24, 20, 28);
    let (contour, shading) = match scene.style {
        Style::Ink => (Some((black, 1.5)), 0.55),
        Style::Comic => (Some((black, 1.9)), 0.6),
        Style::PopArt => (Some((black, 2.3)), 0.7),
        Style::Pixel => (Some((black, 1.6)), 0.8),
        Style::Noir => (None, 1.25),
        _ => (None, 1.0),
    };
    let mut canvas = Canvas { pixels, k, contour, shading, light };
    backdrop::draw(&mut canvas, scene.background, scene.detail);
    if scene.style == Style::Ink {
        // A sketch only hints at what is far.
        let all = tiny_skia::Rect::from_xywh(0.0, 0.0, n, n).map(tiny_skia::PathBuilder::from_rect);
        canvas.fill(&all, Fill::Solid([1.0; 3], 0.62));
    }
    let truth = figure(&mut canvas, character, scene, n);

    let mut image = Image {
        n: size,
        data: canvas
            .pixels
            .data()
            .chunks_exact(4)
            .map(|p| [f32::from(p[0]) / 255.0, f32::from(p[1]) / 255.0, f32::from(p[2]) / 255.0])
            .collect(),
    };
    effects::apply(&mut image, scene, k);
    let rgb = image.data.iter().flat_map(|c| c.map(|v| (v * 255.0 + 0.5).clamp(0.0, 255.0) as u8)).collect();
    Ok(Picture { size, rgb, truth })
}

fn figure(canvas: &mut Canvas, c: &Character, scene: &Scene, n: f32) -> Truth {
    let shape = Shape::of(c);
    let unit = scene.size * n;
    let center = (scene.center[0] * n, scene.center[1] * n);
    let view = View::new(unit, center, scene.yaw, scene.pitch, scene.roll, shape.half_width);
    let layout = Layout::of(c, scene.expression);
    let (skin, hair_color) = (c.skin(), c.hair());
    let hat = !matches!(
        scene.headwear,
        crate::scene::Headwear::None | crate::scene::Headwear::Headphones | crate::scene::Headwear::Flowers
    );
    // An open mouth lowers the chin.
    let drop = match scene.expression {
        Expression::Laugh => 0.10,
        Expression::Surprised => 0.13,
        _ => 0.0,
    };
    let mut shape = shape;
    shape.chin += drop;
    let outline = shape.outline(&view);

    hair_back::draw(canvas, &view, c, &shape, hair_color, hat);
    head::neck(canvas, &view, c, &shape, skin);
    wear::clothes(canvas, &view, c, &shape, scene.clothing, scene.tint);
    head::ears(canvas, &view, c, &shape, skin);
    head::skin(canvas, &view, c, skin, &outline);
    head::marks(canvas, &view, c, skin);
    head::beard(canvas, &view, c, &shape, hair_color, skin, layout.mouth_y);
    features::mouth(canvas, &view, c, &layout, skin);
    features::nose(canvas, &view, c, &layout, skin);
    features::eyes(canvas, &view, c, &layout, skin);
    features::brows(canvas, &view, c, &layout, hair_color);
    wear::glasses(canvas, &view, &shape, scene.glasses);
    hair::front(canvas, &view, c, &shape, hair_color, hat);
    wear::headwear(canvas, &view, c, &shape, scene.headwear);

    // The box spans the face from the middle of the forehead to the chin, as detectors of photographs mark it.
    let mut bbox = [f32::MAX, f32::MAX, f32::MIN, f32::MIN];
    let forehead = view.face(0.0, -0.78, 0.0);
    for p in outline
        .iter()
        .filter(|p| {
            (p.1 - forehead.1) * scene.roll.to_radians().cos() >= (p.0 - forehead.0) * scene.roll.to_radians().sin()
        })
        .chain([&forehead])
    {
        bbox = [bbox[0].min(p.0), bbox[1].min(p.1), bbox[2].max(p.0), bbox[3].max(p.1)];
    }
    Truth {
        seed: c.seed,
        bbox,
        keypoints: layout.keypoints(&view).map(|p| [p.0, p.1]),
        traits: c.traits,
        attributes: scene.attributes(),
        caption: caption::caption(c, scene, &mut Rng::stream(scene.detail, 51)),
    }
}
