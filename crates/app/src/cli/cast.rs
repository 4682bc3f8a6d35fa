//! `sameface cast`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::values::{finite, seed, whole};

#[derive(Args, Debug)]
#[command(arg_required_else_help = true, long_about = ABOUT, after_help = FIRST)]
pub(crate) struct CastArgs {
    #[command(subcommand)]
    pub(crate) command: CastCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CastCommand {
    /// Draw members of the cast: characters with known identity, pose, scene and caption.
    Draw(Box<DrawArgs>),
}

#[derive(Args, Debug)]
#[command(after_long_help = AFTER)]
pub(crate) struct DrawArgs {
    /// Who: the same seed is the same person for ever. Seeds above 1000000 are kept out of all training.
    #[arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true)]
    pub(crate) seed: u64,

    /// Draws so many people, with seeds that count up. [default: 1]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true)]
    pub(crate) count: Option<usize>,

    /// Where everything starts that is not said: the portrait that `--face cast:N` stands for, or any scene; with a
    /// number, the N-th scene of that person. [default: reference]
    #[arg(long, value_name = "reference|N", help_heading = "The scene")]
    pub(crate) scene: Option<String>,

    /// plain, noir, watercolor, ink, comic, pop-art, pixel or oil.
    #[arg(long, value_name = "NAME", help_heading = "The scene")]
    pub(crate) style: Option<String>,

    /// neutral, smile, laugh, sad, angry or surprised.
    #[arg(long, value_name = "NAME", help_heading = "The scene")]
    pub(crate) expression: Option<String>,

    /// t-shirt, hoodie, suit, turtleneck, striped, dress or overalls.
    #[arg(long, value_name = "NAME", help_heading = "The scene")]
    pub(crate) clothing: Option<String>,

    /// The colour of the clothing: red, orange, yellow, green, blue, purple, black or white.
    #[arg(long, value_name = "NAME", help_heading = "The scene")]
    pub(crate) tint: Option<String>,

    /// none, cap, beanie, crown, party-hat, straw-hat, headphones or flowers.
    #[arg(long, value_name = "NAME", help_heading = "The scene")]
    pub(crate) headwear: Option<String>,

    /// none, round, square or sunglasses.
    #[arg(long, value_name = "NAME", help_heading = "The scene")]
    pub(crate) glasses: Option<String>,

    /// studio, beach, forest, city, mountains, room, sunset or space.
    #[arg(long, value_name = "NAME", help_heading = "The scene")]
    pub(crate) background: Option<String>,

    /// front, left, right, warm or cool.
    #[arg(long, value_name = "NAME", help_heading = "The scene")]
    pub(crate) light: Option<String>,

    /// Degrees to the picture's right.
    #[arg(long, value_name = "DEGREES", value_parser = finite, allow_negative_numbers = true, help_heading = "The scene")]
    pub(crate) yaw: Option<f64>,

    /// Degrees upwards.
    #[arg(long, value_name = "DEGREES", value_parser = finite, allow_negative_numbers = true, help_heading = "The scene")]
    pub(crate) pitch: Option<f64>,

    /// Degrees clockwise.
    #[arg(long, value_name = "DEGREES", value_parser = finite, allow_negative_numbers = true, help_heading = "The scene")]
    pub(crate) roll: Option<f64>,

    /// Width and height in pixels, 32 to 2048. [default: 256]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true)]
    pub(crate) size: Option<usize>,

    /// A file, or a folder for generated names. A name that exists gets a number, nothing is overwritten.
    /// [default: the current folder]
    #[arg(short, long, value_name = "FILE|FOLDER")]
    pub(crate) output: Option<PathBuf>,

    /// Prints {"pictures": [{"path", "seed", "bbox", "kps", "caption", "scene", "traits"}]} on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

const ABOUT: &str = "\
Draw characters with known identity: subjects that belong to nobody.

A seed is a person: face, hair and age follow from it, and stay the same in any pose, light, dress and style. What a \
drawing shows is therefore known, and whether a generated picture keeps the person can be measured. cast:SEED stands for \
the person's portrait wherever a photo is taken. The built-in models know these people and nobody else; those with seeds \
above 1000000 were kept out of their training.";

const FIRST: &str = "\
Examples:
  sameface cast draw --seed 1000001
  sameface generate \"a film noir portrait of a person in a hat\" --face cast:1000001
  sameface compare --cast-faces 8 --cast-prompts 8 -o out";

const AFTER: &str = "\
Examples:
  sameface cast draw --seed 1000001                                the portrait that `--face cast:1000001` stands for
  sameface cast draw --seed 1000001 --count 8 --style noir -o people/
  sameface cast draw --seed 7 --scene 3 --headwear crown --json

The truth about a picture, as --json prints it, also stands in the PNG's text chunk `sameface-cast`.";
