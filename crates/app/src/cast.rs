//! `sameface cast`: drawn characters.

use std::path::Path;

use cast::{Background, Character, Clothing, Expression, Glasses, Headwear, Light, Scene, Style, Tint};
use serde_json::json;

use crate::cli::{CastArgs, CastCommand, DrawArgs};
use crate::fault::Fault;
use crate::{output, people};

/// The most that one call draws.
const MOST: usize = 100_000;

pub(crate) fn run(args: &CastArgs) -> Result<(), Fault> {
    match &args.command {
        CastCommand::Draw(args) => draw(args),
    }
}

fn draw(args: &DrawArgs) -> Result<(), Fault> {
    let count = args.count.unwrap_or(1);
    if !(1..=MOST).contains(&count) {
        return Err(Fault::Given(format!("--count is {count}; it must be between 1 and {MOST}")));
    }
    if args.seed.checked_add(count as u64 - 1).is_none() {
        return Err(Fault::Given(format!(
            "--seed {} leaves no room for {count} people; use a smaller seed",
            args.seed
        )));
    }
    let target = engine::Target::named(args.output.as_deref().unwrap_or(Path::new(".")), "cast")?;
    let mut pictures = Vec::new();
    for seed in (0..count as u64).map(|i| args.seed + i) {
        let scene = scene(args, seed)?;
        let picture = cast::draw(&Character::from_seed(seed), &scene, args.size.unwrap_or(people::SIDE))?;
        let path = target.save_bytes(&people::png(&picture, &scene)?)?;
        if !args.json {
            output::line(&path.display().to_string())?;
            output::say(&format!("{seed}: {}", picture.truth.caption));
            continue;
        }
        let mut truth = people::truth(&picture, &scene);
        truth["path"] = json!(path.display().to_string());
        pictures.push(truth);
    }
    if args.json { output::json(&json!({"pictures": pictures})) } else { Ok(()) }
}

/// The scene of a person, with what the options say put in.
fn scene(args: &DrawArgs, seed: u64) -> Result<Scene, Fault> {
    let number = match args.scene.as_deref() {
        None | Some("reference") => 0,
        Some(text) => match text.parse::<usize>() {
            Ok(number) if number < 1_000_000 => number,
            _ => {
                return Err(Fault::Given(format!(
                    "--scene is {text:?}; it must be `reference` or the number of a scene, from 0 to 999999"
                )));
            }
        },
    };
    let mut scene = cast::album(seed, people::PORTRAITS, number + 1).remove(number);
    choose("--style", &args.style, &mut scene.style, Style::ALL, Style::name)?;
    choose("--expression", &args.expression, &mut scene.expression, Expression::ALL, Expression::name)?;
    choose("--clothing", &args.clothing, &mut scene.clothing, Clothing::ALL, Clothing::name)?;
    choose("--tint", &args.tint, &mut scene.tint, Tint::ALL, Tint::name)?;
    choose("--headwear", &args.headwear, &mut scene.headwear, Headwear::ALL, Headwear::name)?;
    choose("--glasses", &args.glasses, &mut scene.glasses, Glasses::ALL, Glasses::name)?;
    choose("--background", &args.background, &mut scene.background, Background::ALL, Background::name)?;
    choose("--light", &args.light, &mut scene.light, Light::ALL, Light::name)?;
    for (said, value) in [(args.yaw, &mut scene.yaw), (args.pitch, &mut scene.pitch), (args.roll, &mut scene.roll)] {
        *value = said.map_or(*value, |said| said as f32);
    }
    Ok(scene)
}

fn choose<T: Copy>(
    option: &str,
    said: &Option<String>,
    value: &mut T,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<(), Fault> {
    let Some(said) = said else { return Ok(()) };
    let found = all.iter().find(|choice| name(**choice).eq_ignore_ascii_case(said));
    let valid = || all.iter().map(|choice| name(*choice)).collect::<Vec<_>>().join(", ");
    *value = *found.ok_or_else(|| Fault::Given(format!("{option} is {said:?}; valid are {}", valid())))?;
    Ok(())
}
