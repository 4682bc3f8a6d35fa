//! Photos from untrusted files: PNG, JPEG, WebP, BMP and the first frame of a GIF.
//!
//! The bytes decide the format, never the name. Size limits are checked from the header before a
//! raster exists, EXIF orientation is applied, alpha is dropped as Pillow's `convert("RGB")` does,
//! 16-bit samples keep their high byte, and a picture that ends early is refused: decoders would
//! fill the rest with grey, and a grey half is somebody else's face.

use crate::jpeg;
use crate::{Error, Result};
use image::codecs::{bmp, gif, png, webp};
use image::{DynamicImage, ImageDecoder, ImageFormat, Limits, RgbImage, metadata::Orientation};
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// What a photo may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhotoLimits {
    /// Most pixels; 50 million by default.
    pub max_pixels: u64,
    /// Most bytes of the file; 256 MiB by default.
    pub max_bytes: u64,
    /// Shortest side in pixels; 32 by default.
    pub min_side: u32,
}

impl Default for PhotoLimits {
    fn default() -> PhotoLimits {
        PhotoLimits { max_pixels: 50_000_000, max_bytes: 256 << 20, min_side: 32 }
    }
}

/// An upright 8-bit RGB picture and what was done to make it one.
#[derive(Clone, Debug)]
pub struct Photo {
    /// Where it came from, for messages.
    pub name: String,
    /// The pixels. Nothing else of the file is kept: no place, no date, no camera.
    pub image: RgbImage,
    /// Sentences the user should see, such as "only the first frame is used".
    pub notices: Vec<String>,
}

impl Photo {
    /// Reads a file within the default limits.
    pub fn open(path: &Path) -> Result<Photo> {
        Photo::open_with(path, &PhotoLimits::default())
    }

    /// Reads a file.
    pub fn open_with(path: &Path, limits: &PhotoLimits) -> Result<Photo> {
        let io = |reason: String| crate::files::unread(path, reason);
        let file = crate::files::open_regular(path).map_err(io)?;
        let mut bytes = Vec::new();
        file.take(limits.max_bytes.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| io(e.to_string()))?;
        Photo::from_bytes(&path.display().to_string(), &bytes, limits)
    }

    /// Reads a picture from memory; `name` stands for it in messages.
    pub fn from_bytes(name: &str, bytes: &[u8], limits: &PhotoLimits) -> Result<Photo> {
        let refuse = |reason: String| Error::Photo { name: name.to_owned(), reason };
        if bytes.len() as u64 > limits.max_bytes {
            return Err(refuse(format!(
                "the file is larger than {} MiB, the most a photo may have",
                limits.max_bytes >> 20
            )));
        }
        // Decoders of hostile bytes are known to panic; that must cost this picture only.
        let decoded = catch_unwind(AssertUnwindSafe(|| decode(bytes, limits)))
            .unwrap_or_else(|_| Err("the decoder gave up on it; the file is damaged".into()));
        let (image, notices) = decoded.map_err(refuse)?;
        Ok(Photo { name: name.to_owned(), image, notices })
    }

    /// Wraps pixels that are already at hand.
    pub fn from_image(name: &str, image: RgbImage) -> Photo {
        Photo { name: name.to_owned(), image, notices: Vec::new() }
    }
}

type Decoded = std::result::Result<(RgbImage, Vec<String>), String>;

const INCOMPLETE: &str = "the {} is incomplete: the file ends before the picture does";

const READABLE: &str = "PNG, JPEG, WebP, BMP and GIF are read";

fn decode(bytes: &[u8], limits: &PhotoLimits) -> Decoded {
    if bytes.is_empty() {
        return Err(format!("the file is empty; {READABLE}"));
    }
    let mut notices = Vec::new();
    let format = image::guess_format(bytes).ok();
    let (picture, orientation) = match format {
        Some(ImageFormat::Jpeg) => jpeg::decode(bytes, |w, h| check_size(w, h, limits))?,
        Some(ImageFormat::Png) => {
            let decoder =
                png::PngDecoder::with_limits(Cursor::new(bytes), cap(limits)).map_err(|e| describe("PNG", &e))?;
            // Deflate shrinks by at most 1032: a raster beyond that cannot come from these bytes.
            let raster = decoder.total_bytes();
            check_size_of(&decoder, limits)?;
            if raster / 1100 > bytes.len() as u64 {
                return Err("the PNG is incomplete: it has far fewer bytes than its size needs".into());
            }
            if decoder.is_apng().unwrap_or(false) {
                notices.push(first_frame("PNG"));
            }
            pixels("PNG", decoder, limits)?
        }
        Some(ImageFormat::WebP) => {
            // The container tells its length behind its name; the decoder would only call the rest corrupt.
            let length = bytes.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
            if u64::from(length) + 8 > bytes.len() as u64 {
                return Err(INCOMPLETE.replace("{}", "WebP"));
            }
            let decoder = webp::WebPDecoder::new(Cursor::new(bytes)).map_err(|e| describe("WebP", &e))?;
            if decoder.has_animation() {
                notices.push(first_frame("WebP"));
            }
            pixels("WebP", decoder, limits)?
        }
        Some(ImageFormat::Bmp) => {
            let decoder = bmp::BmpDecoder::new(Cursor::new(bytes)).map_err(|e| describe("BMP", &e))?;
            pixels("BMP", decoder, limits)?
        }
        Some(ImageFormat::Gif) => {
            if gif_is_animated(bytes) {
                notices.push(first_frame("GIF"));
            }
            let decoder = gif::GifDecoder::new(Cursor::new(bytes)).map_err(|e| describe("GIF", &e))?;
            pixels("GIF", decoder, limits)?
        }
        _ => return Err(format!("{}; {READABLE}", name_unreadable(bytes))),
    };
    let mut picture = DynamicImage::ImageRgb8(to_rgb(picture)?);
    picture.apply_orientation(orientation);
    Ok((picture.into_rgb8(), notices))
}

fn first_frame(format: &str) -> String {
    format!("the {format} is animated; only its first frame is used")
}

fn cap(limits: &PhotoLimits) -> Limits {
    let mut cap = Limits::no_limits();
    cap.max_alloc = Some(limits.max_pixels.saturating_mul(8).saturating_add(64 << 20));
    cap
}

fn check_size_of(decoder: &impl ImageDecoder, limits: &PhotoLimits) -> std::result::Result<(), String> {
    let (width, height) = decoder.dimensions();
    check_size(width, height, limits)
}

fn check_size(width: u32, height: u32, limits: &PhotoLimits) -> std::result::Result<(), String> {
    if width < limits.min_side || height < limits.min_side {
        return Err(format!("the picture is {width}x{height}; each side must be at least {} pixels", limits.min_side));
    }
    let pixels = u64::from(width) * u64::from(height);
    if pixels > limits.max_pixels {
        return Err(format!(
            "the picture is {width}x{height}, {:.1} megapixels; at most {:.0} are allowed",
            pixels as f64 / 1e6,
            limits.max_pixels as f64 / 1e6
        ));
    }
    Ok(())
}

fn pixels(
    format: &str,
    mut decoder: impl ImageDecoder,
    limits: &PhotoLimits,
) -> std::result::Result<(DynamicImage, Orientation), String> {
    check_size_of(&decoder, limits)?;
    decoder.set_limits(cap(limits)).map_err(|e| describe(format, &e))?;
    // A damaged EXIF block is no reason to lose the picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let picture = DynamicImage::from_decoder(decoder).map_err(|e| describe(format, &e))?;
    Ok((picture, orientation))
}

fn describe(format: &str, error: &image::ImageError) -> String {
    let text = error.to_string().to_lowercase();
    if [
        "eof",
        "end of file",
        "unexpected end",
        "fill whole buffer",
        "truncated",
        "no more data",
        "missing image data",
        "imagemissing",
    ]
    .iter()
    .any(|hint| text.contains(hint))
    {
        return INCOMPLETE.replace("{}", format);
    }
    match error {
        image::ImageError::Limits(_) => format!("the {format} asks for more memory than a photo may"),
        image::ImageError::Unsupported(e) => format!("this kind of {format} is not read: {e}"),
        e => {
            let said = e.to_string();
            // The part of the crate's words that says more than ours.
            let why = said.split_once(": ").map_or(said.as_str(), |(_, why)| why).trim();
            format!("the {format} is damaged: {}", crate::onnx::clean(why))
        }
    }
}

/// Grey spreads, alpha goes, 16 bits keep the high byte, as in Pillow.
fn to_rgb(picture: DynamicImage) -> std::result::Result<RgbImage, String> {
    let (width, height) = (picture.width(), picture.height());
    let high = |v: u16| (v >> 8) as u8;
    let raw: Vec<u8> = match picture {
        DynamicImage::ImageRgb8(image) => return Ok(image),
        DynamicImage::ImageLuma8(i) => i.pixels().flat_map(|p| [p.0[0]; 3]).collect(),
        DynamicImage::ImageLumaA8(i) => i.pixels().flat_map(|p| [p.0[0]; 3]).collect(),
        DynamicImage::ImageRgba8(i) => i.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]]).collect(),
        DynamicImage::ImageLuma16(i) => i.pixels().flat_map(|p| [high(p.0[0]); 3]).collect(),
        DynamicImage::ImageLumaA16(i) => i.pixels().flat_map(|p| [high(p.0[0]); 3]).collect(),
        DynamicImage::ImageRgb16(i) => i.pixels().flat_map(|p| p.0.map(high)).collect(),
        DynamicImage::ImageRgba16(i) => i.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]].map(high)).collect(),
        _ => return Err("its samples are floating point; 8 and 16 bits are read".into()),
    };
    RgbImage::from_raw(width, height, raw).ok_or_else(|| "its raster has a wrong length".into())
}

fn name_unreadable(bytes: &[u8]) -> String {
    let head = &bytes[..bytes.len().min(512)];
    let text = String::from_utf8_lossy(head).to_lowercase();
    let brand =
        |names: &[&[u8]]| bytes.len() >= 12 && &bytes[4..8] == b"ftyp" && names.iter().any(|n| &bytes[8..12] == *n);
    let what = if text.trim_start().starts_with('<') && text.contains("<svg") {
        "an SVG drawing"
    } else if head.starts_with(b"II*\0") || head.starts_with(b"MM\0*") {
        "a TIFF or camera raw file"
    } else if head.starts_with(&[0x76, 0x2f, 0x31, 0x01]) {
        "an OpenEXR file"
    } else if brand(&[b"heic", b"heix", b"mif1", b"msf1", b"hevc"]) {
        "a HEIC file"
    } else if brand(&[b"avif", b"avis"]) {
        "an AVIF file"
    } else if head.starts_with(b"%PDF") {
        "a PDF"
    } else if head.starts_with(b"8BPS") {
        "a Photoshop file"
    } else if text.trim_start().starts_with("<!doctype html") || text.trim_start().starts_with("<html") {
        "a web page, perhaps saved in place of the picture"
    } else {
        "no picture that is known here"
    };
    format!("the file is {what}")
}

/// Walks the blocks of a GIF up to a second image. Never decodes.
fn gif_is_animated(bytes: &[u8]) -> bool {
    let table = |flags: u8| if flags & 0x80 != 0 { 3 << ((flags & 7) + 1) } else { 0usize };
    let Some(&flags) = bytes.get(10) else { return false };
    let mut at = 13 + table(flags);
    let mut images = 0;
    loop {
        match bytes.get(at) {
            Some(0x21) => at += 2,
            Some(0x2c) => {
                images += 1;
                if images == 2 {
                    return true;
                }
                let Some(&flags) = bytes.get(at + 9) else { return false };
                at += 11 + table(flags);
            }
            _ => return false,
        }
        while let Some(&length) = bytes.get(at) {
            at += 1 + usize::from(length);
            if length == 0 {
                break;
            }
        }
    }
}
