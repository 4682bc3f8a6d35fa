//! Working sizes as InstantID's reference chooses them, with Pillow's resampling.

use crate::{Error, Result};
use fast_image_resize as fir;
use image::RgbImage;

/// The reference's defaults: the shorter side goes to 1024, then the longer to 1280, then both down
/// to a multiple of 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkingSize {
    /// The side that the shorter one is scaled to first.
    pub min_side: u32,
    /// The side that the longer one has at last.
    pub max_side: u32,
    /// Both sides are rounded down to a multiple of this.
    pub multiple: u32,
}

impl Default for WorkingSize {
    fn default() -> WorkingSize {
        WorkingSize { min_side: 1024, max_side: 1280, multiple: 64 }
    }
}

impl WorkingSize {
    /// The two sizes that a picture goes through: first the exact fit, then the multiples.
    /// Rounding is Python's, half to even.
    fn steps(&self, width: u32, height: u32) -> [(u32, u32); 2] {
        let round = |v: f64| v.round_ties_even();
        let (w, h) = (f64::from(width), f64::from(height));
        let ratio = f64::from(self.min_side) / w.min(h);
        let (w, h) = (round(ratio * w), round(ratio * h));
        let ratio = f64::from(self.max_side) / w.max(h);
        let (w, h) = (round(ratio * w), round(ratio * h));
        let whole = |v: f64| (v as u32 / self.multiple.max(1)) * self.multiple.max(1);
        [(w as u32, h as u32), (whole(w), whole(h))]
    }

    /// The size that the reference works at for a photo of `width` x `height` pixels.
    pub fn of(&self, width: u32, height: u32) -> (u32, u32) {
        self.steps(width.max(1), height.max(1))[1]
    }
}

/// Resizes a photo as InstantID's reference does before it looks for faces, byte for byte.
///
/// The reference resizes twice, both times bilinear; so does this. Errors: an aspect ratio so long
/// that a side would vanish.
pub fn prepare_like_reference(photo: &RgbImage, size: WorkingSize) -> Result<RgbImage> {
    let (width, height) = photo.dimensions();
    let [fit, whole] = size.steps(width.max(1), height.max(1));
    if whole.0 == 0 || whole.1 == 0 {
        return Err(Error::Keypoints(format!(
            "a photo of {width}x{height} has no working size: scaled to a longer side of {}, its shorter side is below {} pixels",
            size.max_side, size.multiple
        )));
    }
    resize_like_pillow(&resize_like_pillow(photo, fit.0, fit.1)?, whole.0, whole.1)
}

/// `Image.resize((width, height), BILINEAR)` of Pillow: antialiased when it shrinks.
pub fn resize_like_pillow(photo: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    resize(photo, width, height, fir::FilterType::Bilinear)
}

/// `Image.resize((width, height), LANCZOS)` of Pillow, as diffusers resizes control images.
pub fn resize_lanczos_like_pillow(photo: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    resize(photo, width, height, fir::FilterType::Lanczos3)
}

fn resize(photo: &RgbImage, width: u32, height: u32, filter: fir::FilterType) -> Result<RgbImage> {
    let describe = |reason: String| {
        Error::Keypoints(format!(
            "a photo of {}x{} could not be resized to {width}x{height}: {reason}",
            photo.width(),
            photo.height()
        ))
    };
    if photo.dimensions() == (width, height) {
        return Ok(photo.clone());
    }
    let source = fir::images::ImageRef::new(photo.width(), photo.height(), photo.as_raw(), fir::PixelType::U8x3)
        .map_err(|e| describe(e.to_string()))?;
    let mut target = fir::images::Image::new(width, height, fir::PixelType::U8x3);
    let options =
        fir::ResizeOptions::new().resize_alg(fir::ResizeAlg::Convolution(filter)).use_alpha(false);
    fir::Resizer::new().resize(&source, &mut target, &options).map_err(|e| describe(e.to_string()))?;
    RgbImage::from_raw(width, height, target.into_vec()).ok_or_else(|| describe("the buffer has another length".into()))
}
