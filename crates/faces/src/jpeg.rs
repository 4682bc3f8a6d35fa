//! JPEG with the checks that a decoder alone does not make: the file must reach its end marker, its
//! entropy-coded data must last to the final row, and four-component files must say how their inks
//! are stored.

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

type Answer<T> = Result<T, String>;

/// What the markers say.
struct Markers {
    width: u32,
    height: u32,
    components: u8,
    adobe: bool,
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
    match markers.components {
        1 | 3 => {}
        4 if markers.adobe => {}
        4 => {
            return Err("the JPEG has four inks (CMYK) but does not say how they are stored; save it as RGB".into());
        }
        n => return Err(format!("the JPEG has {n} components; 1, 3 and 4 are read")),
    }
    let out = if markers.components == 1 { ColorSpace::Luma } else { ColorSpace::RGB };
    // Strict, because only the strict decoder admits that data ran out or is damaged; the other one
    // would fill the rest with grey. Stray bytes between segments are common and let pass.
    let (decoder, raw) = match run(bytes, out, true) {
        Err(DecodeErrors::FormatStatic(text)) if text.contains("Extra bytes") => run(bytes, out, false),
        done => done,
    }
    .map_err(|error| match error {
        DecodeErrors::FormatStatic(text) if text.contains("Premature") => incomplete(),
        DecodeErrors::ExhaustedData => incomplete(),
        error => format!("the JPEG is damaged: {error:?}"),
    })?;
    let orientation =
        decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif)).unwrap_or(Orientation::NoTransforms);
    let size = decoder.dimensions().unwrap_or((0, 0));
    let (width, height) = (size.0 as u32, size.1 as u32);
    let picture = if out == ColorSpace::Luma {
        GrayImage::from_raw(width, height, raw).map(DynamicImage::ImageLuma8)
    } else {
        RgbImage::from_raw(width, height, raw).map(DynamicImage::ImageRgb8)
    };
    let picture = picture.ok_or("the JPEG's raster has a wrong length")?;
    Ok((picture, orientation))
}

type Reader<'a> = JpegDecoder<ZCursor<&'a [u8]>>;

fn run(bytes: &[u8], out: ColorSpace, strict: bool) -> Result<(Reader<'_>, Vec<u8>), DecodeErrors> {
    let options = DecoderOptions::default()
        .jpeg_set_out_colorspace(out)
        .set_strict_mode(strict)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX));
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    let raw = decoder.decode()?;
    Ok((decoder, raw))
}

/// Walks the markers up to the end of the first picture.
fn scan(bytes: &[u8]) -> Answer<Markers> {
    let mut found = Markers { width: 0, height: 0, components: 0, adobe: false, complete: false };
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
        }
        if marker == 0xee && bytes.get(at + 4..at + 9) == Some(b"Adobe") {
            found.adobe = true;
        }
        at += 2 + length.max(2);
    }
    if found.components == 0 {
        return Err("the JPEG is incomplete: it ends before its size is told".into());
    }
    Ok(found)
}
