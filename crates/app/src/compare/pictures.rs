//! Small copies of pictures inside the page, so that it can be passed on as one file.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use faces::RgbImage;
use image::codecs::jpeg::JpegEncoder;

use super::grid;
use crate::fault::Fault;

/// The longer side of a small picture: sharp on a dense screen at the size it is shown in.
const SIDE: u32 = 256;
const QUALITY: u8 = 82;

/// A small copy of a picture's file as an address that holds the picture itself.
pub(crate) fn of_file(file: &Path) -> Result<String, Fault> {
    of(&grid::open(file)?)
}

/// A small copy of a picture.
pub(crate) fn of(picture: &RgbImage) -> Result<String, Fault> {
    let small = if picture.width().max(picture.height()) > SIDE { grid::fitted(picture, SIDE) } else { None };
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, QUALITY)
        .encode_image(small.as_ref().unwrap_or(picture))
        .map_err(|error| Fault::Here(format!("a picture could not be made smaller for the page: {error}")))?;
    Ok(format!("data:image/jpeg;base64,{}", STANDARD.encode(bytes)))
}
