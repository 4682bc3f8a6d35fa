//! Writes a training set with all cores:
//! `cargo run --release -p cast --example dataset -- --out DIR --people N --pictures M [--first SEED] [--size 256] [--held-out] [--references K]`
//!
//! `DIR/images.u8` holds the pictures one after the other as raw RGB bytes, `[N*M, size, size, 3]`. `DIR/truth.f32`
//! holds one row of little-endian 32-bit floats per picture: seed, box (4), keypoints (10), attributes (8), pose
//! (yaw, pitch, roll), traits. `DIR/captions.txt` has one caption a line, `DIR/truth.json` the names of the
//! columns and choices. The first K pictures of a person are portraits such as one gives as a reference.
//! Seeds kept for tests are refused unless `--held-out` is given, which in turn refuses all others; held-out
//! people are drawn from families of their own (every fourth seed), so that no two of them are look-alikes by birth.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use cast::{
    Background, Character, Clothing, Expression, Glasses, HELD_OUT, Headwear, Light, Rng, Scene, Style, TRAIT_NAMES,
    Tint, Truth, draw,
};
use rayon::prelude::*;

struct Args {
    out: PathBuf,
    people: u64,
    pictures: u64,
    first: u64,
    size: usize,
    held_out: bool,
    references: u64,
}

fn parse() -> Result<Args, String> {
    let mut args = Args {
        out: PathBuf::from("cast-data"),
        people: 100,
        pictures: 10,
        first: 1,
        size: 256,
        held_out: false,
        references: 1,
    };
    let mut words = std::env::args().skip(1);
    while let Some(name) = words.next() {
        if name == "--held-out" {
            args.held_out = true;
            continue;
        }
        let value = words.next().ok_or(format!("{name} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{name} is {value:?}; it must be a whole number"));
        match name.as_str() {
            "--out" => args.out = PathBuf::from(&value),
            "--people" => args.people = number()?,
            "--pictures" => args.pictures = number()?,
            "--first" => args.first = number()?,
            "--size" => args.size = number()? as usize,
            "--references" => args.references = number()?,
            _ => return Err(format!("there is no option {name}; see the head of this file")),
        }
    }
    let last = args.first + args.people;
    if !args.held_out && last > HELD_OUT {
        return Err(format!(
            "seeds {} to {} reach into those kept for tests, which start at {HELD_OUT}; give --held-out to draw a test set",
            args.first,
            last - 1
        ));
    }
    if args.held_out && args.first < HELD_OUT {
        return Err(format!("--held-out draws a test set, whose seeds start at {HELD_OUT}; --first is {}", args.first));
    }
    Ok(args)
}

fn row(scene: &Scene, truth: &Truth) -> Vec<f32> {
    let mut row = vec![truth.seed as f32];
    row.extend(truth.bbox);
    row.extend(truth.keypoints.iter().flatten());
    row.extend(truth.attributes.iter().map(|&a| f32::from(a)));
    row.extend([scene.yaw, scene.pitch, scene.roll]);
    row.extend(truth.traits);
    row
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = parse()?;
    std::fs::create_dir_all(&args.out)?;
    let mut images = BufWriter::with_capacity(1 << 22, File::create(args.out.join("images.u8"))?);
    let mut rows = BufWriter::new(File::create(args.out.join("truth.f32"))?);
    let mut captions = BufWriter::new(File::create(args.out.join("captions.txt"))?);
    let start = std::time::Instant::now();
    // Blocks of people keep memory small and the order fixed whatever the number of cores. One block is written while
    // the next is drawn.
    let (send, receive) = std::sync::mpsc::sync_channel::<Vec<(Scene, cast::Picture)>>(2);
    let writer = std::thread::spawn(move || -> std::io::Result<()> {
        for (scene, picture) in receive.into_iter().flatten() {
            images.write_all(&picture.rgb)?;
            for value in row(&scene, &picture.truth) {
                rows.write_all(&value.to_le_bytes())?;
            }
            writeln!(captions, "{}", picture.truth.caption)?;
        }
        images.flush()?;
        rows.flush()?;
        captions.flush()
    });
    for block in (0..args.people).step_by(128) {
        let people: Vec<u64> = (block..(block + 128).min(args.people)).collect();
        let drawn: Vec<_> = people
            .par_iter()
            .map(|&i| -> Result<_, cast::Error> {
                let seed = args.first + if args.held_out { 4 * i } else { i };
                let character = Character::from_seed(seed);
                let mut rng = Rng::stream(seed, 99);
                (0..args.pictures)
                    .map(|m| {
                        let scene =
                            if m < args.references { Scene::reference(&mut rng) } else { Scene::random(&mut rng) };
                        draw(&character, &scene, args.size).map(|p| (scene, p))
                    })
                    .collect::<Result<Vec<_>, _>>()
            })
            .collect::<Result<Vec<_>, _>>()?;
        if send.send(drawn.into_iter().flatten().collect()).is_err() {
            break; // the writer has failed, and says why below
        }
    }
    drop(send);
    writer.join().map_err(|_| "the writer stopped")??;

    let names = |all: Vec<&'static str>| serde_json::json!(all);
    let json = serde_json::json!({
        "people": args.people, "pictures": args.pictures, "size": args.size, "first": args.first, "references": args.references,
        "columns": ["seed", "bbox*4", "keypoints*10", "attributes*8", "pose*3", "traits"],
        "traits": TRAIT_NAMES,
        "attributes": {
            "style": names(Style::ALL.iter().map(|c| c.name()).collect()),
            "expression": names(Expression::ALL.iter().map(|c| c.name()).collect()),
            "clothing": names(Clothing::ALL.iter().map(|c| c.name()).collect()),
            "tint": names(Tint::ALL.iter().map(|c| c.name()).collect()),
            "headwear": names(Headwear::ALL.iter().map(|c| c.name()).collect()),
            "glasses": names(Glasses::ALL.iter().map(|c| c.name()).collect()),
            "background": names(Background::ALL.iter().map(|c| c.name()).collect()),
            "light": names(Light::ALL.iter().map(|c| c.name()).collect()),
        },
    });
    std::fs::write(args.out.join("truth.json"), serde_json::to_string_pretty(&json)?)?;
    let count = args.people * args.pictures;
    println!("{count} pictures in {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}
