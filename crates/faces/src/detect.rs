//! SCRFD (Guo et al., 2021, arXiv:2105.04714): boxes and keypoints of all faces in a picture.
//!
//! Preparation, decoding and suppression follow insightface's `SCRFD` class number by number, in
//! single precision and in its order, so that boxes agree to the last digits.

use crate::keypoints::Keypoints;
use crate::onnx::{Network, Output, Runner};
use crate::resample::resize_bilinear;
use crate::{Error, Result};
use image::RgbImage;

/// Side of the square that pictures are fitted into for detection, as InstantID sets it.
pub const DETECTION_SIDE: u32 = 640;
/// Sides tried in turn when nothing is found: a face that fills the picture is too large at 640.
const SMALLER_SIDES: [u32; 7] = [576, 512, 448, 384, 320, 256, 192];
const SCORE_THRESHOLD: f32 = 0.5;
const OVERLAP_THRESHOLD: f32 = 0.4;

/// One found face, in pixels of the picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Detection {
    /// Left, top, right, bottom.
    pub bbox: [f32; 4],
    /// Eyes, nose, corners of the mouth; `None` for detectors without keypoints.
    pub kps: Option<Keypoints>,
    /// Confidence, 0.5 to 1.
    pub det_score: f32,
}

/// What a detection run found, and at which size.
#[derive(Clone, Debug)]
pub struct Detections {
    /// Best score first, as insightface gives them.
    pub faces: Vec<Detection>,
    /// The side that the picture was fitted into; below 640 when the first tries found nothing.
    pub side: u32,
}

/// The detector.
pub struct Scrfd {
    runner: Runner,
    /// Width and height of the network's input.
    canvas: (u32, u32),
    strides: &'static [usize],
    has_keypoints: bool,
    fixed: bool,
}

impl Scrfd {
    pub(crate) fn load(network: Network) -> Result<Scrfd> {
        let (strides, has_keypoints): (&[usize], bool) = match network.outputs {
            6 => (&[8, 16, 32], false),
            9 => (&[8, 16, 32], true),
            10 => (&[8, 16, 32, 64, 128], false),
            15 => (&[8, 16, 32, 64, 128], true),
            n => {
                return Err(Error::Model {
                    name: network.name,
                    reason: format!("has {n} outputs; an SCRFD detector has 6, 9, 10 or 15"),
                });
            }
        };
        let side = DETECTION_SIDE as usize;
        let (width, height) = network.input.unwrap_or((side, side));
        let fixed = network.input.is_some();
        if width > 4096 || height > 4096 {
            return Err(Error::Model {
                name: network.name,
                reason: format!("has an input of {width}x{height}; at most 4096x4096 is run"),
            });
        }
        Ok(Scrfd {
            runner: network.load(width, height)?,
            canvas: (width as u32, height as u32),
            strides,
            has_keypoints,
            fixed,
        })
    }

    /// Whether the detector gives keypoints, without which no identity can be read.
    pub fn has_keypoints(&self) -> bool {
        self.has_keypoints
    }

    /// Finds faces at 640 pixels and, when there are none, at ever smaller sizes.
    pub fn detect(&self, picture: &RgbImage) -> Result<Detections> {
        let first = self.canvas.0.max(self.canvas.1);
        let faces = self.detect_at(picture, self.canvas)?;
        if !faces.is_empty() {
            return Ok(Detections { faces, side: first });
        }
        for side in SMALLER_SIDES.into_iter().filter(|&s| s < first) {
            let faces = self.detect_at(picture, (side, side))?;
            if !faces.is_empty() {
                return Ok(Detections { faces, side });
            }
        }
        Ok(Detections { faces: Vec::new(), side: first })
    }

    /// As [`Scrfd::detect`], but a picture smaller than 640 pixels is first tried as it is. Magnified, a drawing or a
    /// generated picture is softer than what a small detector was trained on, and its keypoints lie less exactly.
    pub fn detect_unmagnified(&self, picture: &RgbImage) -> Result<Detections> {
        // Below the smallest side that is ever tried, magnifying helps; every stride has to fit.
        let stride = self.strides.last().copied().unwrap_or(32) as u32;
        let longest = picture.width().max(picture.height()).max(SMALLER_SIDES[6]).next_multiple_of(stride);
        if longest < self.canvas.0.max(self.canvas.1) {
            let faces = self.detect_at(picture, (longest, longest))?;
            if !faces.is_empty() {
                return Ok(Detections { faces, side: longest });
            }
        }
        self.detect(picture)
    }

    /// Finds faces at the first size alone: the same work for every picture.
    pub fn detect_once(&self, picture: &RgbImage) -> Result<Vec<Detection>> {
        self.detect_at(picture, self.canvas)
    }

    /// Multiplications of one run.
    pub(crate) fn products(&self) -> u64 {
        self.runner.products(self.canvas.0 as usize, self.canvas.1 as usize)
    }

    /// Finds faces with the picture fitted into `fit` (width, height). A network of fixed input size
    /// gets the smaller picture in the corner of its input.
    fn detect_at(&self, picture: &RgbImage, fit: (u32, u32)) -> Result<Vec<Detection>> {
        let canvas = if self.fixed { self.canvas } else { fit };
        let fit = (fit.0.min(canvas.0), fit.1.min(canvas.1));
        let (width, height) = fitted_size(picture.dimensions(), fit);
        if width == 0 || height == 0 {
            return Err(Error::Keypoints(format!(
                "a picture of {}x{} is too long and thin to find faces in",
                picture.width(),
                picture.height()
            )));
        }
        let scale = (f64::from(height) / f64::from(picture.height())) as f32;
        let blob = detector_blob(&resize_bilinear(picture, width, height), canvas);
        let outputs = self.runner.run(blob, canvas.0 as usize, canvas.1 as usize)?;
        let found = self.decode(&outputs, canvas, scale)?;
        Ok(suppress(found))
    }

    /// Anchors to boxes: distances from each anchor's centre, in strides.
    fn decode(&self, outputs: &[Output], canvas: (u32, u32), scale: f32) -> Result<Vec<Detection>> {
        let levels = self.strides.len();
        let mut found = Vec::new();
        for (level, &stride) in self.strides.iter().enumerate() {
            let (columns, rows) = (canvas.0 as usize / stride, canvas.1 as usize / stride);
            let cells = columns * rows;
            let scores = &outputs[level].data;
            let anchors = scores.len() / cells.max(1);
            let fits = |group: usize, each: usize| {
                outputs.get(level + group * levels).is_some_and(|o| o.data.len() == scores.len() * each)
            };
            let keypoints_fit = !self.has_keypoints || fits(2, 10);
            if anchors == 0 || anchors * cells != scores.len() || !fits(1, 4) || !keypoints_fit {
                return Err(Error::Model {
                    name: self.runner.name().to_owned(),
                    reason: format!(
                        "answers with shapes {:?} at stride {stride}; for {columns}x{rows} cells an SCRFD detector gives one score, four distances and ten keypoint offsets an anchor",
                        outputs.iter().skip(level).step_by(levels).map(|o| &o.shape).collect::<Vec<_>>()
                    ),
                });
            }
            let pace = stride as f32;
            for (i, &score) in scores.iter().enumerate().filter(|(_, s)| **s >= SCORE_THRESHOLD) {
                let cell = i / anchors;
                let center = [(cell % columns * stride) as f32, (cell / columns * stride) as f32];
                let d = &outputs[level + levels].data[i * 4..][..4];
                let bbox = [
                    (center[0] - d[0] * pace) / scale,
                    (center[1] - d[1] * pace) / scale,
                    (center[0] + d[2] * pace) / scale,
                    (center[1] + d[3] * pace) / scale,
                ];
                let kps = self.has_keypoints.then(|| {
                    let d = &outputs[level + 2 * levels].data[i * 10..][..10];
                    std::array::from_fn(|p| std::array::from_fn(|axis| (center[axis] + d[2 * p + axis] * pace) / scale))
                });
                found.push(Detection { bbox, kps, det_score: score });
            }
        }
        // Stable, as the reference sorts: among equals the finer level comes first.
        found.sort_by(|a, b| b.det_score.total_cmp(&a.det_score));
        Ok(found)
    }
}

/// Fits a picture whole into a box, sides rounded down as the reference does.
fn fitted_size((width, height): (u32, u32), fit: (u32, u32)) -> (u32, u32) {
    let ratio = f64::from(height) / f64::from(width);
    let model_ratio = f64::from(fit.1) / f64::from(fit.0);
    if ratio > model_ratio {
        ((f64::from(fit.1) / ratio) as u32, fit.1)
    } else {
        (fit.0, (f64::from(fit.0) * ratio) as u32)
    }
}

/// RGB in the upper left of a black canvas, `(v - 127.5) / 128`, planes after another.
pub(crate) fn detector_blob(picture: &RgbImage, (width, height): (u32, u32)) -> Vec<f32> {
    let plane = (width * height) as usize;
    let normal = |v: u8| (f32::from(v) - 127.5) / 128.0;
    let mut blob = vec![normal(0); plane * 3];
    for (x, y, pixel) in picture.enumerate_pixels() {
        if x < width && y < height {
            let at = (y * width + x) as usize;
            for c in 0..3 {
                blob[c * plane + at] = normal(pixel.0[c]);
            }
        }
    }
    blob
}

/// Greedy non-maximum suppression; sides count both of their end pixels, as in the reference.
fn suppress(found: Vec<Detection>) -> Vec<Detection> {
    let area = |b: &[f32; 4]| (b[2] - b[0] + 1.0) * (b[3] - b[1] + 1.0);
    let overlap = |a: &[f32; 4], b: &[f32; 4]| {
        let w = (a[2].min(b[2]) - a[0].max(b[0]) + 1.0).max(0.0);
        let h = (a[3].min(b[3]) - a[1].max(b[1]) + 1.0).max(0.0);
        let inter = w * h;
        inter / (area(a) + area(b) - inter)
    };
    let mut kept: Vec<Detection> = Vec::new();
    for face in found {
        // Written so that an overlap that is not a number suppresses, as the reference's does.
        if kept.iter().all(|k| overlap(&k.bbox, &face.bbox) <= OVERLAP_THRESHOLD) {
            kept.push(face);
        }
    }
    kept
}
