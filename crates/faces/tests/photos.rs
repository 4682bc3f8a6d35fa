//! Photos in every form: the pixels Pillow reads, or one sentence.

mod support;
use faces::{Photo, PhotoLimits};
use support::{digest, fixture, json, pair};

fn small() -> PhotoLimits {
    PhotoLimits { min_side: 16, ..PhotoLimits::default() }
}

fn read(bytes: &[u8]) -> Result<Photo, String> {
    Photo::from_bytes("photo", bytes, &small()).map_err(|e| e.to_string())
}

#[test]
fn photos_read_as_pillow_reads_them() {
    for row in json("photos.json").as_array().unwrap() {
        let file = row["file"].as_str().unwrap();
        let photo = Photo::open_with(&fixture("photos").join(file), &small()).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(photo.image.dimensions(), pair(&row["size"]), "{file}");
        assert_eq!(!photo.notices.is_empty(), file.starts_with("animated"), "{file}: {:?}", photo.notices);
        assert_eq!(digest(photo.image.as_raw()), row["sha"], "{file}");
    }
}

#[test]
fn pictures_that_end_early_are_refused() {
    for row in json("photos.json").as_array().unwrap() {
        let file = row["file"].as_str().unwrap();
        let bytes = std::fs::read(fixture("photos").join(file)).unwrap();
        if file.starts_with("animated") {
            continue; // only the first frame has to be there
        }
        for share in [3, 5, 8] {
            let cut = &bytes[..bytes.len() * share / 10];
            let error = read(cut).expect_err(file);
            assert!(error.contains("incomplete"), "{file} cut to {share}0 %: {error}");
        }
    }
    let jpeg = std::fs::read(fixture("photos/rgb.jpg")).unwrap();
    let error = read(&jpeg[..jpeg.len() / 2]).unwrap_err();
    assert!(error.contains("incomplete"), "{error}");
}

#[test]
fn what_is_no_photo_is_named() {
    let rows: [(&[u8], &str); 9] = [
        (b"", "empty"),
        (b"<?xml version=\"1.0\"?><svg xmlns=\"x\"/>", "SVG"),
        (b"<svg/>", "SVG"),
        (b"II*\0\x08\0\0\0", "TIFF"),
        (b"\x76\x2f\x31\x01rest", "OpenEXR"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"%PDF-1.7", "PDF"),
        (b"hello", "no picture"),
        (b"\xff\xd8\xff\xe0", "incomplete"),
    ];
    for (bytes, word) in rows {
        let error = read(bytes).unwrap_err();
        assert!(error.contains(word), "{word}: {error}");
    }
    let missing = Photo::open(&fixture("nowhere.jpg")).unwrap_err().to_string();
    assert!(missing.contains("no such file"), "{missing}");
    let folder = Photo::open(&fixture("photos")).unwrap_err().to_string();
    assert!(folder.contains("folder"), "{folder}");
}

#[test]
fn inks_that_the_decoder_would_not_put_together_are_refused() {
    let jpeg = std::fs::read(fixture("photos/ycck420.jpg")).unwrap();
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    // Black in half size, as Pillow writes it when asked for subsampling; then chroma half as high, and two sizes of it.
    for sampling in [[0x22, 0x11, 0x11, 0x11], [0x12, 0x11, 0x11, 0x12], [0x22, 0x11, 0x22, 0x22]] {
        let mut jpeg = jpeg.clone();
        for (i, sampling) in sampling.into_iter().enumerate() {
            jpeg[frame + 11 + 3 * i] = sampling;
        }
        let error = read(&jpeg).unwrap_err();
        assert!(error.contains("inks of unusual sizes; save it in RGB"), "{error}");
    }
}

#[test]
fn the_name_does_not_decide() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("picture.jpg");
    std::fs::copy(fixture("photos/rgb.png"), &path).unwrap();
    assert_eq!(Photo::open_with(&path, &small()).unwrap().image.dimensions(), (60, 80));
}

/// A picture of one colour, encoded by the `image` crate.
fn blank(width: u32, height: u32, format: image::ImageFormat) -> Vec<u8> {
    let mut out = Vec::new();
    image::RgbImage::new(width, height).write_to(&mut std::io::Cursor::new(&mut out), format).unwrap();
    out
}

/// A PNG header that claims a size.
fn png_claiming(width: u32, height: u32) -> Vec<u8> {
    let mut png = blank(32, 32, image::ImageFormat::Png);
    png[16..20].copy_from_slice(&width.to_be_bytes());
    png[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&crc.to_be_bytes());
    png
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &b| {
        (0..8).fold(crc ^ u32::from(b), |c, _| if c & 1 != 0 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 })
    })
}

#[test]
fn sizes_are_judged_from_the_header() {
    let default = PhotoLimits::default();
    let rows = [
        (png_claiming(40_000, 40_000), "megapixels"),
        (png_claiming(7_000, 7_000), "incomplete"),
        (png_claiming(0, 0), ""),
        (blank(1, 1, image::ImageFormat::Png), "at least 32"),
        (blank(20, 400, image::ImageFormat::Bmp), "at least 32"),
        (blank(8000, 6400, image::ImageFormat::Bmp), "megapixels"),
    ];
    for (bytes, word) in rows {
        let error = Photo::from_bytes("photo", &bytes, &default).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    let mut jpeg = std::fs::read(fixture("photos/rgb.jpg")).unwrap();
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
    let error = Photo::from_bytes("photo", &jpeg, &default).unwrap_err().to_string();
    assert!(error.contains("megapixels"), "{error}");
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x10, 0, 0x10, 0]);
    let error = Photo::from_bytes("photo", &jpeg, &default).unwrap_err().to_string();
    assert!(error.contains("incomplete"), "{error}");
}
