//! Pictures of a comparison in one: a row for each face and prompt, the given picture at the left.

use std::path::Path;

use ::compare::{Cell, Comparison, Method};
use faces::{Photo, RgbImage};

use super::letters::{BOLD, Letters, PLAIN};
use crate::fault::Fault;

/// More rows make a picture that nobody looks at; the page has more of them.
pub(crate) const MOST_ROWS: usize = 24;
/// Cells are at most so wide.
const CELL: u32 = 256;
const GAP: u32 = 6;
const HEAD: u32 = 34;
const LINE: u32 = 22;
const PAPER: [u8; 3] = [255; 3];
/// Behind controls, and where there is no picture.
const SHADE: [u8; 3] = [228, 228, 232];
const GRAY: Letters = Letters { color: [110, 110, 120], ..BOLD };

/// The grid of the rows that have pictures.
pub(crate) fn grid(
    comparison: &Comparison,
    made: &[Cell],
    file: impl Fn(Cell) -> std::path::PathBuf,
) -> Result<RgbImage, Fault> {
    let mut rows: Vec<usize> = made.iter().map(|cell| cell.row).collect();
    rows.dedup();
    rows.truncate(MOST_ROWS);
    let columns = comparison.columns.len() as u32;
    let (width, height) = ((columns + 1) * (CELL + GAP) + GAP, HEAD + rows.len() as u32 * (CELL + GAP + LINE));
    let mut image = RgbImage::from_pixel(width, height, PAPER.into());
    head(&mut image, comparison);
    for (at, row) in (0..).zip(rows) {
        let top = HEAD + at * (CELL + GAP + LINE);
        let cells: Vec<Cell> = made.iter().copied().filter(|cell| cell.row == row).collect();
        let (person, prompt) = (&comparison.people[cells[0].person], &comparison.prompts[cells[0].prompt]);
        let text = PLAIN.fitted(&format!("{}: {}", person.name, prompt.text), width - 2 * GAP);
        PLAIN.write(&mut image, &text, GAP, top + 2);
        match &person.photo {
            Some(photo) => paste(&mut image, &photo.image, left(0), top + LINE),
            None => blank(&mut image, "saved identity", left(0), top + LINE),
        }
        for cell in cells {
            paste(&mut image, &open(&file(cell))?, left(1 + cell.column as u32), top + LINE);
        }
    }
    Ok(image)
}

/// A finished picture.
pub(crate) fn open(file: &Path) -> Result<RgbImage, Fault> {
    Ok(Photo::open(file)?.image)
}

fn head(image: &mut RgbImage, comparison: &Comparison) {
    BOLD.write(image, "given", left(0), 6);
    for (i, column) in (1..).zip(&comparison.columns) {
        let letters = if is_control(column.method) { GRAY } else { BOLD };
        letters.write(image, &letters.fitted(&column.title(), CELL), left(i), 6);
    }
}

fn is_control(method: &Method) -> bool {
    method.control
}

fn left(column: u32) -> u32 {
    GAP + column * (CELL + GAP)
}

fn blank(image: &mut RgbImage, text: &str, left: u32, top: u32) {
    paste(image, &RgbImage::from_pixel(CELL, CELL, SHADE.into()), left, top);
    PLAIN.write(image, text, left + (CELL - PLAIN.width(text)) / 2, top + CELL / 2 - 8);
}

/// A picture, made to fit its cell and centred in it.
fn paste(image: &mut RgbImage, picture: &RgbImage, left: u32, top: u32) {
    let fitted = fitted(picture, CELL);
    let picture = fitted.as_ref().unwrap_or(picture);
    let (w, h) = picture.dimensions();
    for (x, y, pixel) in picture.enumerate_pixels() {
        if let Some(place) = image.get_pixel_mut_checked(left + (CELL - w) / 2 + x, top + (CELL - h) / 2 + y) {
            *place = *pixel;
        }
    }
}

/// A picture whose longer side is `side`; `None` where it is so already.
pub(crate) fn fitted(picture: &RgbImage, side: u32) -> Option<RgbImage> {
    let (width, height) = picture.dimensions();
    let longest = width.max(height).max(1);
    let scaled = |length: u32| (u64::from(length) * u64::from(side) / u64::from(longest)).max(1) as u32;
    match longest == side {
        true => None,
        false => faces::resize_lanczos_like_pillow(picture, scaled(width), scaled(height)).ok(),
    }
}
