//! Draws a contact sheet: `cargo run --release -p cast --example sheet -- OUT.png [people|styles|scenes] [FIRST_SEED]`.
//!
//! `people` shows one portrait each of 60 seeds; `styles` shows eight people, each in all eight styles; `scenes`
//! shows random scenes.

use cast::{Character, Headwear, Rng, Scene, Style, draw};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let out = args.get(1).map_or("sheet.png", String::as_str);
    let kind = args.get(2).map_or("people", String::as_str);
    let first: u64 = args.get(3).map_or(Ok(1), |s| s.parse())?;
    let (columns, rows, size) = match kind {
        "styles" => (9, 8, 192),
        _ => (10, 6, 192),
    };
    let mut sheet = vec![255u8; columns * rows * size * size * 3];
    for row in 0..rows {
        for column in 0..columns {
            let index = (row * columns + column) as u64;
            let (seed, scene) = match kind {
                "styles" => {
                    let mut scene = Scene::random(&mut Rng::new(first + 77 * column as u64 + row as u64 * 1000));
                    if column == 0 {
                        scene = Scene::reference(&mut Rng::new(first + row as u64));
                    } else {
                        scene.style = Style::ALL[column - 1];
                    }
                    (first + 4 * row as u64, scene)
                }
                "scenes" => (first + 4 * (index / 3), Scene::random(&mut Rng::new(first + index))),
                _ => (
                    first + index,
                    Scene { headwear: Headwear::None, ..Scene::reference(&mut Rng::new(first + index)) },
                ),
            };
            let picture = draw(&Character::from_seed(seed), &scene, size)?;
            for y in 0..size {
                let to = ((row * size + y) * columns * size + column * size) * 3;
                sheet[to..to + size * 3].copy_from_slice(&picture.rgb[y * size * 3..(y + 1) * size * 3]);
            }
        }
    }
    let file = std::io::BufWriter::new(std::fs::File::create(out)?);
    let mut encoder = png::Encoder::new(file, (columns * size) as u32, (rows * size) as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header()?.write_image_data(&sheet)?;
    Ok(())
}
