//! Words in pictures.

use faces::RgbImage;
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster};

/// How words look.
#[derive(Clone, Copy)]
pub(crate) struct Letters {
    pub(crate) size: RasterHeight,
    pub(crate) weight: FontWeight,
    pub(crate) color: [u8; 3],
}

/// Dark, of ordinary size.
pub(crate) const PLAIN: Letters =
    Letters { size: RasterHeight::Size16, weight: FontWeight::Regular, color: [30, 30, 36] };
/// For headings.
pub(crate) const BOLD: Letters = Letters { size: RasterHeight::Size20, weight: FontWeight::Bold, ..PLAIN };

impl Letters {
    /// Pixels from one letter to the next.
    pub(crate) fn step(self) -> u32 {
        get_raster('0', self.weight, self.size).map_or(8, |letter| letter.width() as u32)
    }

    /// Pixels that a text is wide.
    pub(crate) fn width(self, text: &str) -> u32 {
        text.chars().count() as u32 * self.step()
    }

    /// As much of a text as goes into so many pixels, with dots where something is left out.
    pub(crate) fn fitted(self, text: &str, width: u32) -> String {
        let room = (width / self.step()) as usize;
        match text.chars().count() > room {
            true => text.chars().take(room.saturating_sub(3)).chain("...".chars()).collect(),
            false => text.to_owned(),
        }
    }

    /// Writes over a picture; what lies outside is cut off.
    pub(crate) fn write(self, image: &mut RgbImage, text: &str, left: u32, top: u32) {
        for (i, letter) in (0..).zip(text.chars()) {
            let Some(raster) =
                get_raster(letter, self.weight, self.size).or_else(|| get_raster('?', self.weight, self.size))
            else {
                continue;
            };
            for (y, row) in (0..).zip(raster.rows()) {
                for (x, &cover) in (0..).zip(row) {
                    if let Some(pixel) = image.get_pixel_mut_checked(left + i * self.step() + x, top + y) {
                        for (value, ink) in pixel.0.iter_mut().zip(self.color) {
                            let (paper, ink, cover) = (u32::from(*value), u32::from(ink), u32::from(cover));
                            *value = ((paper * (255 - cover) + ink * cover + 127) / 255) as u8;
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_fit_and_leave_ink_only_where_they_are() {
        assert_eq!(PLAIN.fitted("a long sentence", PLAIN.width("a long")), "a l...");
        assert_eq!(PLAIN.fitted("short", 400), "short");
        let mut image = RgbImage::from_pixel(60, 40, [255; 3].into());
        PLAIN.write(&mut image, "aé", 10, 10);
        let inked: Vec<u32> = image.enumerate_pixels().filter(|(_, _, p)| p.0[0] < 128).map(|(x, ..)| x).collect();
        assert!(inked.len() > 20 && inked.iter().all(|x| (10..10 + PLAIN.width("aé")).contains(x)));
        PLAIN.write(&mut image, "outside", 55, 35);
    }
}
