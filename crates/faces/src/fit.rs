//! Working sizes as InstantID's reference chooses them, with Pillow's resampling.

use crate::keypoints::MAX_SIDE;
use crate::{Error, Result};
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

/// Fraction bits of Pillow's weights for 8-bit samples.
const PRECISION: u32 = 22;

/// For one output position: the first source position and the weights from there on.
struct Window {
    start: usize,
    weights: Vec<i32>,
}

/// Pillow's filters for resizing; each widens with the scale when the picture shrinks.
#[derive(Clone, Copy)]
enum Filter {
    Bilinear,
    Lanczos,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| {
            let x = x * std::f64::consts::PI;
            if x == 0.0 { 1.0 } else { x.sin() / x }
        };
        match self {
            Filter::Bilinear => (1.0 - x.abs()).max(0.0),
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Lanczos => 0.0,
        }
    }
}

fn windows(filter: Filter, from: u32, to: u32) -> Vec<Window> {
    let scale = f64::from(from) / f64::from(to);
    let widening = scale.max(1.0);
    let support = filter.support() * widening;
    (0..to)
        .map(|i| {
            let center = (f64::from(i) + 0.5) * scale;
            let start = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(from as usize);
            let at = |x: usize| (x as f64 + start as f64 - center + 0.5) * (1.0 / widening);
            let raw: Vec<f64> = (0..end - start).map(|x| filter.weight(at(x))).collect();
            let inverse = 1.0 / raw.iter().sum::<f64>();
            let whole = |w: &f64| {
                let scaled = w * inverse * f64::from(1 << PRECISION);
                (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
            };
            Window { start, weights: raw.iter().map(whole).collect() }
        })
        .collect()
}

/// `Image.resize((width, height), LANCZOS)` of Pillow, byte for byte.
pub fn resize_lanczos_like_pillow(photo: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    resize(Filter::Lanczos, photo, width, height)
}

/// `Image.resize((width, height), BILINEAR)` of Pillow, byte for byte: antialiased when it shrinks,
/// one pass a side, 8 bits between the passes. General resizing crates round differently.
pub fn resize_like_pillow(photo: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    resize(Filter::Bilinear, photo, width, height)
}

fn resize(filter: Filter, photo: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    let (from_width, from_height) = photo.dimensions();
    if [width, height, from_width, from_height].contains(&0) || width > MAX_SIDE || height > MAX_SIDE {
        return Err(Error::Keypoints(format!(
            "a photo of {from_width}x{from_height} cannot be resized to {width}x{height}; sides from 1 to {MAX_SIDE} are valid"
        )));
    }
    // Pillow 13 takes the rows first where that saves more than twice as many lines; the bytes between the passes are
    // rounded and cut off at 0 and 255, so the order shows. Earlier versions always take the columns first.
    let saved = |from: u32, to: u32| i64::from(from) - i64::from(to);
    let rows_first = height < from_height && saved(from_height, height) > 2 * saved(from_width, width);
    let raw = photo.as_raw();
    let raw = if rows_first {
        let shrunk = resize_rows(filter, raw, from_width, from_height, height);
        resize_columns(filter, &shrunk, from_width, width)
    } else {
        let narrowed = resize_columns(filter, raw, from_width, width);
        resize_rows(filter, &narrowed, width, from_height, height)
    };
    RgbImage::from_raw(width, height, raw)
        .ok_or_else(|| Error::Keypoints("the resized photo has a wrong length".into()))
}

/// Every line of `from` pixels made `to` pixels wide.
fn resize_columns(filter: Filter, raw: &[u8], from: u32, to: u32) -> Vec<u8> {
    if from == to {
        return raw.to_vec();
    }
    let columns = windows(filter, from, to);
    let lines = raw.chunks_exact(from as usize * 3);
    lines.flat_map(|line| columns.iter().flat_map(move |w| weigh(line, w, 3, 0))).collect()
}

/// `from` lines of `width` pixels made `to` lines.
fn resize_rows(filter: Filter, raw: &[u8], width: u32, from: u32, to: u32) -> Vec<u8> {
    if from == to {
        return raw.to_vec();
    }
    let line = width as usize * 3;
    let mut out = Vec::with_capacity(line * to as usize);
    for window in windows(filter, from, to) {
        for x in 0..width as usize {
            out.extend(weigh(raw, &window, line, x * 3));
        }
    }
    out
}

/// One pixel: samples `stride` apart, `offset` into each line, summed with rounding.
fn weigh(raw: &[u8], window: &Window, stride: usize, offset: usize) -> [u8; 3] {
    let mut sums = [1i32 << (PRECISION - 1); 3];
    for (i, weight) in window.weights.iter().enumerate() {
        let at = (window.start + i) * stride + offset;
        for (sum, &sample) in sums.iter_mut().zip(&raw[at..at + 3]) {
            *sum += i32::from(sample) * weight;
        }
    }
    sums.map(|sum| (sum >> PRECISION).clamp(0, 255) as u8)
}
