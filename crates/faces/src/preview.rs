//! A photo with its faces drawn in: boxes, keypoints and the number that `--face-index` takes.

use crate::Result;
use crate::analyze::Face;
use crate::keypoints::COLORS;
use crate::raster::Canvas;
use image::RgbImage;
use std::path::Path;

/// Digits as five rows of three bits.
const DIGITS: [[u8; 5]; 10] = [
    [7, 5, 5, 5, 7],
    [2, 6, 2, 2, 7],
    [7, 1, 7, 4, 7],
    [7, 1, 7, 1, 7],
    [5, 5, 7, 1, 1],
    [7, 4, 7, 1, 7],
    [7, 4, 7, 5, 7],
    [7, 1, 2, 2, 2],
    [7, 5, 7, 5, 7],
    [7, 5, 7, 1, 7],
];

/// Draws boxes, keypoints and numbers over a copy of the picture. Numbers follow the order of `faces`.
pub fn draw_faces(picture: &RgbImage, faces: &[Face]) -> RgbImage {
    let stroke = i64::from(picture.width().max(picture.height()) / 400).max(1);
    let mut canvas = Canvas::over(picture.clone());
    let box_color = [0, 255, 0];
    // The largest last, so that it lies on top.
    for (index, face) in faces.iter().enumerate().rev() {
        let [left, top, right, bottom] = face.bbox.map(|v| v as i64);
        for y in (top - stroke).max(-1)..(bottom + stroke).min(i64::from(picture.height()) + 1) {
            if y < top || y >= bottom {
                canvas.row(y, left - stroke, right + stroke - 1, box_color);
            } else {
                canvas.row(y, left - stroke, left - 1, box_color);
                canvas.row(y, right, right + stroke - 1, box_color);
            }
        }
        for ([x, y], color) in face.kps.iter().zip(COLORS) {
            canvas.fill_circle((*x as i64, *y as i64), 2 * stroke, color);
        }
        number(&mut canvas, index, (left.max(0), top.max(0)), stroke * 3, box_color);
    }
    canvas.into_image()
}

fn number(canvas: &mut Canvas, value: usize, (left, top): (i64, i64), unit: i64, color: [u8; 3]) {
    let text = value.to_string();
    let width = (text.len() as i64 * 4 + 1) * unit;
    for y in 0..7 * unit {
        canvas.row(top + y, left, left + width - 1, [0, 0, 0]);
    }
    for (i, digit) in text.bytes().enumerate() {
        let x0 = left + (1 + 4 * i as i64) * unit;
        for (row, bits) in DIGITS[usize::from(digit - b'0')].iter().enumerate() {
            for column in (0..3).filter(|c| bits & (4 >> c) != 0) {
                for y in 0..unit {
                    let x = x0 + column * unit;
                    canvas.row(top + (1 + row as i64) * unit + y, x, x + unit - 1, color);
                }
            }
        }
    }
}

/// Writes a PNG whole or not at all.
pub fn save_png(path: &Path, picture: &RgbImage) -> Result<()> {
    let unwritten = |e: std::io::Error| crate::files::unwritten("the picture", path, &e);
    let mut bytes = Vec::new();
    let encoded = picture.write_to(&mut std::io::Cursor::new(&mut bytes), image::ImageFormat::Png);
    encoded.map_err(|e| unwritten(std::io::Error::other(e)))?;
    crate::files::write_atomically(path, &bytes).map_err(unwritten)
}
