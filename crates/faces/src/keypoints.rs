//! The keypoint image that IdentityNet is conditioned on.
//!
//! InstantID draws it with OpenCV; its pixels are part of the model's input, so they are equal here
//! byte for byte: four limbs towards the nose, each a filled ellipse polygon of half width 4, dimmed
//! by 0.6, then five filled circles of radius 10 over them. Truncations follow the reference
//! (`int(...)` rounds towards zero, means and lengths are single precision).

use crate::raster::{Canvas, ellipse_polygon};
use crate::{Error, Result};
use image::RgbImage;

/// Left eye, right eye, nose, left and right corner of the mouth, as seen in the picture.
pub type Keypoints = [[f32; 2]; 5];

/// One colour a point, RGB, in the order of the points.
pub const COLORS: [[u8; 3]; 5] = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255]];

/// Each limb joins a point to the nose and has the colour of its first point.
const LIMBS: [(usize, usize); 4] = [(0, 2), (1, 2), (3, 2), (4, 2)];
const STICK_WIDTH: f64 = 4.0;
const RADIUS: i64 = 10;

/// The largest side of a keypoint image.
pub const MAX_SIDE: u32 = 16_384;
/// Points farther out than this are refused; the reference would draw nothing for them, slowly.
const MAX_COORDINATE: f32 = 1_000_000.0;

/// Draws five keypoints (pixels of a `width` x `height` picture) as InstantID's reference does.
///
/// Points outside the picture are allowed and clipped. Errors: sizes of 0 or above [`MAX_SIDE`],
/// and coordinates that are not finite.
pub fn draw_keypoints(width: u32, height: u32, kps: &Keypoints) -> Result<RgbImage> {
    check_size(width, height)?;
    check_keypoints(kps)?;
    let mut canvas = Canvas::new(width, height);
    for (from, to) in LIMBS {
        let ([x0, y0], [x1, y1]) = (kps[from], kps[to]);
        // numpy's mean of two float32 stays float32; so does the length.
        let center = (((x0 + x1) / 2.0) as i64, ((y0 + y1) / 2.0) as i64);
        let length = ((x0 - x1) * (x0 - x1) + (y0 - y1) * (y0 - y1)).sqrt();
        let angle = f64::from(y0 - y1).atan2(f64::from(x0 - x1)).to_degrees() as i32;
        let axes = ((length / 2.0).trunc().into(), STICK_WIDTH);
        let polygon = ellipse_polygon(center, axes, angle);
        canvas.fill_convex(&polygon, dim(COLORS[from]));
    }
    for (&[x, y], color) in kps.iter().zip(COLORS) {
        canvas.fill_circle((x as i64, y as i64), RADIUS, color);
    }
    Ok(canvas.into_image())
}

/// `(value * 0.6).astype(uint8)`: later limbs overwrite earlier ones before dimming, so the colour
/// itself can be dimmed.
fn dim(color: [u8; 3]) -> [u8; 3] {
    color.map(|value| (f64::from(value) * 0.6) as u8)
}

/// Moves keypoints of a photo of `from` (width, height) into an output of size `to`, keeping the
/// aspect ratio: the photo is fitted whole into the output and centred.
pub fn place_keypoints(kps: &Keypoints, from: (u32, u32), to: (u32, u32)) -> Result<Keypoints> {
    check_size(from.0, from.1)?;
    check_size(to.0, to.1)?;
    check_keypoints(kps)?;
    let (fw, fh) = (f64::from(from.0), f64::from(from.1));
    let (tw, th) = (f64::from(to.0), f64::from(to.1));
    let scale = (tw / fw).min(th / fh);
    let (dx, dy) = ((tw - fw * scale) / 2.0, (th - fh * scale) / 2.0);
    Ok(kps.map(|[x, y]| [(f64::from(x) * scale + dx) as f32, (f64::from(y) * scale + dy) as f32]))
}

/// Keypoints that can be used: finite, within reason, and not all in one place.
pub fn check_keypoints(kps: &Keypoints) -> Result<()> {
    for (index, [x, y]) in kps.iter().enumerate() {
        let sane = |v: &f32| v.is_finite() && v.abs() <= MAX_COORDINATE;
        if !sane(x) || !sane(y) {
            return Err(Error::Keypoints(format!(
                "keypoint {} is [{x}, {y}]; both coordinates must be finite and within {MAX_COORDINATE} pixels",
                index + 1
            )));
        }
    }
    Ok(())
}

fn check_size(width: u32, height: u32) -> Result<()> {
    if width == 0 || height == 0 || width > MAX_SIDE || height > MAX_SIDE {
        return Err(Error::Keypoints(format!(
            "the keypoint image is to be {width}x{height}; each side must be from 1 to {MAX_SIDE} pixels"
        )));
    }
    Ok(())
}
