//! ArcFace (Deng et al., 2019, arXiv:1801.07698): an aligned face to a vector that tells who it is.

use crate::keypoints::Keypoints;
use crate::onnx::{Network, Runner};
use crate::resample::{similarity, warp_affine};
use crate::{Error, Result};
use image::RgbImage;

/// Where the five points go in an aligned face of 112 pixels (insightface's `arcface_dst`).
const TEMPLATE: [[f32; 2]; 5] =
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]];

/// The recogniser.
pub struct ArcFace {
    runner: Runner,
    side: u32,
    mean: f32,
    scale: f32,
}

impl ArcFace {
    pub(crate) fn load(network: Network) -> Result<ArcFace> {
        let (side, _) = network.input.unwrap_or((112, 112));
        if side % 112 != 0 && side % 128 != 0 || side > 1024 {
            return Err(Error::Model {
                name: network.name,
                reason: format!(
                    "has an input of {side}x{side}; faces are aligned to multiples of 112 or 128 up to 1024"
                ),
            });
        }
        let (mean, scale) = if network.normalises { (0.0, 1.0) } else { (127.5, (1.0 / 127.5_f64) as f32) };
        Ok(ArcFace { runner: network.load(side, side)?, side: side as u32, mean, scale })
    }

    /// Side of the aligned face in pixels.
    pub fn side(&self) -> u32 {
        self.side
    }

    /// Multiplications of one run.
    pub(crate) fn products(&self) -> u64 {
        self.runner.products(self.side as usize, self.side as usize)
    }

    /// The raw embedding, not normalised, as InstantID wants it. The error is the end of a sentence
    /// about this face.
    pub fn embed(&self, picture: &RgbImage, kps: &Keypoints) -> Result<Vec<f32>> {
        let face = align(picture, kps, self.side)?;
        let plane = (self.side * self.side) as usize;
        let mut blob = vec![0.0; plane * 3];
        for (i, pixel) in face.pixels().enumerate() {
            for c in 0..3 {
                blob[c * plane + i] = (f32::from(pixel.0[c]) - self.mean) * self.scale;
            }
        }
        let side = self.side as usize;
        let outputs = self.runner.run(blob, side, side)?;
        let embedding = outputs.into_iter().next().map(|o| o.data).unwrap_or_default();
        check_embedding(&embedding).map_err(|reason| Error::Model {
            name: self.runner.name().to_owned(),
            reason: format!("answers with an embedding that {reason}"),
        })?;
        Ok(embedding)
    }
}

/// An embedding must be finite and not zero; either would come out as a black or foreign face.
pub(crate) fn check_embedding(embedding: &[f32]) -> std::result::Result<(), String> {
    let norm = embedding.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    if embedding.len() < 16 || embedding.len() > 65_536 {
        return Err(format!("has {} values; face embeddings have 16 to 65536, mostly 512", embedding.len()));
    }
    if !norm.is_finite() {
        return Err("has values that are not finite".into());
    }
    if norm < 1e-6 {
        return Err("is zero".into());
    }
    Ok(())
}

/// The face turned upright and scaled so that its five points meet the template.
pub fn align(picture: &RgbImage, kps: &Keypoints, side: u32) -> Result<RgbImage> {
    crate::check_keypoints(kps)?;
    let (ratio, shift) = if side.is_multiple_of(112) {
        (side as f32 / 112.0, 0.0)
    } else {
        let ratio = side as f32 / 128.0;
        (ratio, 8.0 * ratio)
    };
    let target = TEMPLATE.map(|[x, y]| [f64::from(x * ratio + shift), f64::from(y * ratio)]);
    let map = similarity(kps, &target).ok_or_else(|| {
        Error::Keypoints(format!("the keypoints {kps:?} lie on one another, so that the face cannot be aligned"))
    })?;
    Ok(warp_affine(picture, &map, side))
}

/// Cosine of the angle between two embeddings.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
