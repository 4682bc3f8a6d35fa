//! OpenCV's bilinear resize and affine warp of 8-bit RGB, to the byte.
//!
//! Detection and recognition see what these make of a photo, and insightface made it with OpenCV;
//! a different rounding moves boxes and embeddings. Compared with opencv-python 5.0.

use image::RgbImage;

/// One axis of a resize: for each output position the two source positions and their weights of
/// 11 bits.
struct Axis {
    taps: Vec<(usize, usize, i32, i32)>,
}

impl Axis {
    /// `clamp_weights`: OpenCV zeroes the fraction outside the source in x, but in y it only repeats
    /// the border row, which gives the same pixels by other products.
    fn new(from: u32, to: u32, clamp_weights: bool) -> Axis {
        // The scale goes through its reciprocal, as in the reference, for the same last bit.
        let scale = 1.0 / (f64::from(to) / f64::from(from));
        let last = i64::from(from) - 1;
        let taps = (0..to)
            .map(|i| {
                let position = ((f64::from(i) + 0.5) * scale - 0.5) as f32;
                let mut index = position.floor() as i64;
                let mut fraction = position - index as f32;
                if clamp_weights && (index < 0 || index >= last) {
                    index = index.clamp(0, last);
                    fraction = 0.0;
                }
                let weight = |v: f32| (v * 2048.0).round_ties_even() as i32;
                let at = |i: i64| i.clamp(0, last) as usize;
                (at(index), at(index + 1), weight(1.0 - fraction), weight(fraction))
            })
            .collect();
        Axis { taps }
    }
}

/// `cv2.resize(image, (width, height))`: bilinear without antialiasing, in fixed point.
///
/// The picture and both sides must be at least 1 pixel.
pub fn resize_bilinear(image: &RgbImage, width: u32, height: u32) -> RgbImage {
    if image.dimensions() == (width, height) || image.width() == 0 || image.height() == 0 {
        return image.clone();
    }
    let columns = Axis::new(image.width(), width, true);
    let rows = Axis::new(image.height(), height, false);
    let stride = image.width() as usize * 3;
    let source = image.as_raw();
    let line = width as usize * 3;
    let mut out = vec![0u8; line * height as usize];
    // The two horizontally resized rows in use, kept with their row number: rows repeat downwards.
    let mut cache: [(usize, Vec<i32>); 2] = [(usize::MAX, vec![0; line]), (usize::MAX, vec![0; line])];
    for (y, &(top, bottom, w0, w1)) in rows.taps.iter().enumerate() {
        if cache[1].0 == top {
            cache.swap(0, 1);
        }
        for (slot, row) in cache.iter_mut().zip([top, bottom]) {
            if slot.0 != row {
                stretch(&source[row * stride..][..stride], &columns, &mut slot.1);
                slot.0 = row;
            }
        }
        let (a, b) = (&cache[0].1, &cache[1].1);
        for ((out, &a), &b) in out[y * line..][..line].iter_mut().zip(a).zip(b) {
            let sum = ((w0 * (a >> 4)) >> 16) + ((w1 * (b >> 4)) >> 16) + 2;
            *out = (sum >> 2).clamp(0, 255) as u8;
        }
    }
    RgbImage::from_raw(width, height, out).unwrap_or_default()
}

fn stretch(row: &[u8], columns: &Axis, out: &mut [i32]) {
    for (out, &(a, b, w0, w1)) in out.chunks_exact_mut(3).zip(&columns.taps) {
        for c in 0..3 {
            out[c] = i32::from(row[a * 3 + c]) * w0 + i32::from(row[b * 3 + c]) * w1;
        }
    }
}

/// A 2x3 affine map, row by row: `x' = m[0] x + m[1] y + m[2]`, `y' = m[3] x + m[4] y + m[5]`.
pub type Affine = [f64; 6];

/// `cv2.warpAffine(image, map, (size, size), borderValue=0)`: bilinear, in single precision with
/// fused multiply-adds, the picture's outside black.
pub fn warp_affine(image: &RgbImage, map: &Affine, size: u32) -> RgbImage {
    let inverse = invert(map).map(|v| v as f32);
    let (width, height) = (i64::from(image.width()), i64::from(image.height()));
    let source = image.as_raw();
    let pixel = |x: i64, y: i64, c: usize| -> f32 {
        if x < 0 || y < 0 || x >= width || y >= height {
            return 0.0;
        }
        f32::from(source[((y * width + x) * 3) as usize + c])
    };
    RgbImage::from_fn(size, size, |x, y| {
        let (x, y) = (x as f32, y as f32);
        let sx = x.mul_add(inverse[0], y * inverse[1] + inverse[2]);
        let sy = x.mul_add(inverse[3], y * inverse[4] + inverse[5]);
        let (left, top) = (sx.floor(), sy.floor());
        let (ax, ay) = (sx - left, sy - top);
        // Casts saturate, so that a wild map only reads the black outside.
        let near = |v: f32| (v as i64).clamp(-2, i64::from(i32::MAX));
        let (ix, iy) = (near(left), near(top));
        image::Rgb(std::array::from_fn(|c| {
            let (p00, p01) = (pixel(ix, iy, c), pixel(ix + 1, iy, c));
            let (p10, p11) = (pixel(ix, iy + 1, c), pixel(ix + 1, iy + 1, c));
            let upper = ax.mul_add(p01 - p00, p00);
            let lower = ax.mul_add(p11 - p10, p10);
            ay.mul_add(lower - upper, upper).round_ties_even().clamp(0.0, 255.0) as u8
        }))
    })
}

fn invert(m: &Affine) -> Affine {
    let determinant = m[0] * m[4] - m[1] * m[3];
    let d = if determinant == 0.0 { 0.0 } else { 1.0 / determinant };
    let (a, e) = (m[4] * d, m[0] * d);
    let (b, f) = (m[1] * -d, m[3] * -d);
    [a, b, -a * m[2] - b * m[5], f, e, -f * m[2] - e * m[5]]
}

/// The similarity (rotation, one scale, translation) that moves `from` nearest to `to` in least
/// squares: Umeyama's estimate (PAMI 1991), in two dimensions in closed form.
///
/// `None` when the points of `from` coincide.
pub fn similarity(from: &[[f32; 2]; 5], to: &[[f64; 2]; 5]) -> Option<Affine> {
    let n = from.len() as f64;
    let from = from.map(|p| p.map(f64::from));
    let mean = |points: &[[f64; 2]; 5], axis: usize| points.iter().map(|p| p[axis]).sum::<f64>() / n;
    let (fx, fy) = (mean(&from, 0), mean(&from, 1));
    let (tx, ty) = (mean(to, 0), mean(to, 1));
    let (mut dot, mut cross, mut variance) = (0.0, 0.0, 0.0);
    for (f, t) in from.iter().zip(to) {
        let (x, y, u, v) = (f[0] - fx, f[1] - fy, t[0] - tx, t[1] - ty);
        dot += x * u + y * v;
        cross += x * v - y * u;
        variance += x * x + y * y;
    }
    let (a, b) = (dot / variance, cross / variance);
    if !(a.is_finite() && b.is_finite()) || variance < 1e-6 || a * a + b * b < 1e-12 {
        return None;
    }
    Some([a, -b, tx - a * fx + b * fy, b, a, ty - b * fx - a * fy])
}
