//! All pictures of a comparison in one: a row for each face and prompt, the given picture at the left.

use compare::{Cell, Comparison};
use engine::Picture;
use faces::RgbImage;
use font8x8::UnicodeFonts;

/// More rows make a picture that nobody looks at; the page has all of them.
const MOST_ROWS: usize = 24;
/// Cells are at most so wide.
const CELL: u32 = 256;
const GAP: u32 = 4;
/// Letters are 8 pixels wide; headings are doubled.
const LETTER: u32 = 8;
const HEAD: u32 = 3 * LETTER;
const LINE: u32 = 2 * LETTER;
const PAPER: [u8; 3] = [255; 3];
const INK: [u8; 3] = [30; 3];

/// The grid under work.
pub(crate) struct Grid {
    image: RgbImage,
    columns: u32,
}

impl Grid {
    /// An empty grid with its headings, references and prompts.
    pub(crate) fn new(comparison: &Comparison) -> Grid {
        let columns = comparison.columns.len() as u32;
        let firsts: Vec<Cell> =
            comparison.cells().into_iter().filter(|cell| cell.column == 0 && cell.row < MOST_ROWS).collect();
        let (width, height) = ((columns + 1) * (CELL + GAP) + GAP, HEAD + firsts.len() as u32 * (CELL + GAP + LINE));
        let mut grid = Grid { image: RgbImage::from_pixel(width, height, image_pixel(PAPER)), columns };
        grid.write("given", grid.left(0), LETTER / 2, 2);
        for (i, column) in comparison.columns.iter().enumerate() {
            grid.write(&column.title(), grid.left(1 + i as u32), LETTER / 2, 2);
        }
        for cell in firsts {
            let person = &comparison.people[cell.person];
            let text = format!("{}: {}", person.name, comparison.prompts[cell.prompt].text);
            grid.write(&text, GAP, grid.top(cell.row) - LINE + LETTER / 2, 1);
            grid.paste(&person.photo.image, 0, cell.row);
        }
        grid
    }

    /// Puts a picture in its place.
    pub(crate) fn add(&mut self, cell: Cell, picture: &Picture) {
        if cell.row < MOST_ROWS
            && let Some(image) = RgbImage::from_raw(picture.width, picture.height, picture.rgb.clone())
        {
            self.paste(&image, 1 + cell.column as u32, cell.row);
        }
    }

    /// The finished grid.
    pub(crate) fn picture(self) -> RgbImage {
        debug_assert!(self.image.width() > self.columns * CELL);
        self.image
    }

    fn left(&self, column: u32) -> u32 {
        GAP + column * (CELL + GAP)
    }

    fn top(&self, row: usize) -> u32 {
        HEAD + LINE + row as u32 * (CELL + GAP + LINE)
    }

    /// A picture, made to fit its cell and centred in it.
    fn paste(&mut self, picture: &RgbImage, column: u32, row: usize) {
        let (width, height) = picture.dimensions();
        let longest = width.max(height).max(1);
        let fitted = |side: u32| (u64::from(side) * u64::from(CELL) / u64::from(longest)).max(1) as u32;
        let (w, h) = (fitted(width), fitted(height));
        let resized =
            if (w, h) == (width, height) { None } else { faces::resize_lanczos_like_pillow(picture, w, h).ok() };
        let (x0, y0) = (self.left(column) + (CELL - w) / 2, self.top(row) + (CELL - h) / 2);
        for (x, y, pixel) in resized.as_ref().unwrap_or(picture).enumerate_pixels() {
            self.dot(x0 + x, y0 + y, pixel.0);
        }
    }

    fn write(&mut self, text: &str, left: u32, top: u32, zoom: u32) {
        for (i, letter) in text.chars().enumerate() {
            let rows = font8x8::BASIC_FONTS.get(letter).or_else(|| font8x8::LATIN_FONTS.get(letter));
            let rows = rows.or_else(|| font8x8::BASIC_FONTS.get('?')).unwrap_or_default();
            for (y, bits) in (0..).zip(rows) {
                for x in (0..LETTER).filter(|x| bits >> x & 1 == 1) {
                    for (dx, dy) in (0..zoom).flat_map(|dx| (0..zoom).map(move |dy| (dx, dy))) {
                        self.dot(left + (i as u32 * LETTER + x) * zoom + dx, top + y * zoom + dy, INK);
                    }
                }
            }
        }
    }

    /// What lies outside is cut off.
    fn dot(&mut self, x: u32, y: u32, color: [u8; 3]) {
        if let Some(pixel) = self.image.get_pixel_mut_checked(x, y) {
            pixel.0 = color;
        }
    }
}

/// A pixel without naming the crate that the pictures' type comes from.
fn image_pixel<P: From<[u8; 3]>>(color: [u8; 3]) -> P {
    color.into()
}
