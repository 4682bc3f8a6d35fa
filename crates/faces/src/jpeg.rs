//! JPEG, pixel for pixel as libjpeg-turbo decodes it, since Pillow and OpenCV read with that: the
//! usual decoders of Rust round chroma otherwise, which moves boxes and embeddings.
//!
//! On top come the checks that a decoder alone does not make: the file must reach its end marker,
//! its entropy-coded data must last to the final row, and damage is refused, not painted grey.

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};
use libjpeg_turbo_rs::{DecodeLimits, DecodeWarning, Decoder, JpegError, PixelFormat};

type Answer<T> = Result<T, String>;

/// What the markers say.
struct Markers {
    width: u32,
    height: u32,
    components: u8,
    /// Of each of four components, how many samples wide and high it is in a block of all: 0x21 is two by one.
    sampling: [u8; 4],
    complete: bool,
}

/// Decodes to grey or RGB and reports the EXIF orientation. `check` judges the size from the header.
pub(crate) fn decode(bytes: &[u8], check: impl Fn(u32, u32) -> Answer<()>) -> Answer<(DynamicImage, Orientation)> {
    let markers = scan(bytes)?;
    check(markers.width, markers.height)?;
    let incomplete = || "the JPEG is incomplete: the file ends before the picture does".to_owned();
    // A block needs at least a bit in the densest scan, so that a byte makes fewer than 1024 pixels.
    let pixels = u64::from(markers.width) * u64::from(markers.height);
    if !markers.complete || pixels / 1024 > bytes.len() as u64 {
        return Err(incomplete());
    }
    let out = match markers.components {
        1 => PixelFormat::Grayscale,
        3 => PixelFormat::Rgb,
        4 if has_usual_inks(markers.sampling) => PixelFormat::Cmyk,
        4 => return Err("this kind of JPEG is not read: inks of unusual sizes; save it in RGB".into()),
        n => return Err(format!("the JPEG has {n} components; 1, 3 and 4 are read")),
    };
    let limits = DecodeLimits {
        max_pixels: pixels,
        max_scans: 500,
        // Coefficients of a progressive picture, planes and raster, with room to spare.
        max_memory: Some(pixels.saturating_mul(32).saturating_add(64 << 20)),
        ..DecodeLimits::default()
    };
    let fail = |error: JpegError| match error {
        JpegError::UnexpectedEof => incomplete(),
        JpegError::Unsupported(what) => format!("this kind of JPEG is not read: {what}"),
        error => format!("the JPEG is damaged: {error}"),
    };
    let mut decoder = Decoder::new_with_limits(bytes, limits).map_err(fail)?;
    decoder.set_output_format(out);
    // A damaged EXIF block is no reason to lose the picture.
    let orientation = decoder.exif_orientation().and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms);
    let decoded = decoder.decode_image().map_err(fail)?;
    // Stray bytes between segments are common and harmless; every other warning means lost pixels.
    if let Some(warning) = decoded.warnings.iter().find(|w| !matches!(w, DecodeWarning::ExtraneousData { .. })) {
        return Err(format!("the JPEG is damaged: {warning}"));
    }
    let (width, height) = (decoded.width as u32, decoded.height as u32);
    let picture = match out {
        PixelFormat::Grayscale => GrayImage::from_raw(width, height, decoded.data).map(DynamicImage::ImageLuma8),
        PixelFormat::Rgb => RgbImage::from_raw(width, height, decoded.data).map(DynamicImage::ImageRgb8),
        _ => RgbImage::from_raw(width, height, from_inks(&decoded.data)).map(DynamicImage::ImageRgb8),
    };
    let picture = picture.ok_or("the JPEG's raster has a wrong length")?;
    Ok((picture, orientation))
}

/// Whether the decoder puts four components together as libjpeg-turbo does: black in full size, and the two in the middle
/// in that size too, half as wide, or half as wide and high.
fn has_usual_inks([first, second, third, black]: [u8; 4]) -> bool {
    black == first && third == second && (second == first || second == 0x11 && matches!(first, 0x21 | 0x22))
}

/// Four inks to RGB as Pillow does it: stored inverted, as Adobe's programs do, whether marked or not.
fn from_inks(inks: &[u8]) -> Vec<u8> {
    let multiply = |a: u8, b: u8| {
        let product = u32::from(a) * u32::from(b) + 128;
        ((product + (product >> 8)) >> 8) as u8
    };
    let pixels = inks.as_chunks::<4>().0;
    pixels.iter().flat_map(|&[c, m, y, k]| [c, m, y].map(|ink| k - multiply(255 - ink, k))).collect()
}

/// Walks the markers up to the end of the first picture.
fn scan(bytes: &[u8]) -> Answer<Markers> {
    let mut found = Markers { width: 0, height: 0, components: 0, sampling: [0; 4], complete: false };
    let mut at = 2;
    while let Some(&byte) = bytes.get(at) {
        // Between segments, and inside scans, anything up to the next marker is skipped.
        let marker = match (byte, bytes.get(at + 1)) {
            (0xff, Some(&m)) if m != 0 && m != 0xff && !(0xd0..=0xd7).contains(&m) => m,
            _ => {
                at += 1;
                continue;
            }
        };
        if marker == 0xd9 {
            found.complete = true;
            break;
        }
        if marker == 0xd8 || marker == 0x01 {
            at += 2;
            continue;
        }
        let word = |i: usize| Some(usize::from(*bytes.get(i)?) << 8 | usize::from(*bytes.get(i + 1)?));
        let Some(length) = word(at + 2) else { break };
        let is_frame = (0xc0..=0xcf).contains(&marker) && ![0xc4, 0xc8, 0xcc].contains(&marker);
        if is_frame && found.components == 0 {
            let (Some(height), Some(width), Some(&n)) = (word(at + 5), word(at + 7), bytes.get(at + 9)) else {
                break;
            };
            (found.width, found.height, found.components) = (width as u32, height as u32, n);
            found.sampling = [11, 14, 17, 20].map(|i| bytes.get(at + i).copied().unwrap_or_default());
        }
        at += 2 + length.max(2);
    }
    if found.components == 0 {
        return Err("the JPEG is incomplete: it ends before its size is told".into());
    }
    Ok(found)
}
