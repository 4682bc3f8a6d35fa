//! `sameface compare`.

use std::path::PathBuf;

use clap::Args;

use super::values::{finite, seed, threads, whole};
use super::{DeviceArg, ModelFileArgs, PrecisionArg, SizeArg};

#[derive(Args, Debug)]
#[command(after_long_help = AFTER)]
pub(crate) struct CompareArgs {
    /// A photo of somebody, or cast:SEED for a drawn character. May be given several times.
    #[arg(long, value_name = "PHOTO|cast:SEED", help_heading = "What is compared")]
    pub(crate) face: Vec<PathBuf>,

    /// Adds so many characters that no training has seen: seeds 1000001, 1000005, 1000009 and so on, no two of them
    /// look-alikes by birth.
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "What is compared")]
    pub(crate) cast_faces: Option<usize>,

    /// What the pictures show. May be given several times.
    #[arg(long, value_name = "TEXT", help_heading = "What is compared")]
    pub(crate) prompt: Vec<String>,

    /// Adds so many prompts whose content is known, so that text agreement can be measured: always the same ones, the
    /// eight styles in turn.
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "What is compared")]
    pub(crate) cast_prompts: Option<usize>,

    /// Another photo of the person of the one --face, to measure likeness by. Characters have theirs by themselves.
    #[arg(long, value_name = "PHOTO", help_heading = "What is compared")]
    pub(crate) other: Vec<PathBuf>,

    /// Gives each face only so many of the prompts, in turn.
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "What is compared")]
    pub(crate) per_face: Option<usize>,

    /// adapter, identitynet, instantid. The controls are always run: text alone, nobody's and another person's
    /// identity. [default: all]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "What is compared")]
    pub(crate) methods: Vec<String>,

    /// Runs each method at each of these weights, for a curve. [default: the model's own weight alone]
    #[arg(long, value_name = "X,X,...", value_delimiter = ',', value_parser = finite, allow_negative_numbers = true, help_heading = "What is compared")]
    pub(crate) scales: Vec<f64>,

    /// Among how many people the judge has to find the right one: unseen characters fill up the faces given.
    /// [default: 40 for characters, the faces given for photos]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "What is compared")]
    pub(crate) among: Option<usize>,

    /// A folder with identity.onnx, an encoder of aligned faces that steers none of the pictures, and optionally
    /// content.onnx with judge.json. [default: the built-in one, which knows drawn characters]
    #[arg(long, value_name = "FOLDER", help_heading = "What is compared")]
    pub(crate) judge: Option<PathBuf>,

    /// What the pictures shall not show.
    #[arg(long, value_name = "TEXT", help_heading = "The pictures")]
    pub(crate) negative: Option<String>,

    /// Width and height in pixels, each a multiple of 8. [default: what the model was made for]
    #[arg(long, value_name = "WxH", allow_hyphen_values = true, help_heading = "The pictures")]
    pub(crate) size: Option<SizeArg>,

    /// Steps of the sampler. [default: the model's own, 30 for SDXL]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "The pictures")]
    pub(crate) steps: Option<usize>,

    /// How closely the prompt is followed. [default: the model's own, 5 for SDXL]
    #[arg(long, value_name = "X", value_parser = finite, allow_negative_numbers = true, help_heading = "The pictures")]
    pub(crate) guidance: Option<f64>,

    /// As for `generate`. [default: the one in the model's scheduler_config.json]
    #[arg(long, value_name = "NAME", help_heading = "The pictures")]
    pub(crate) sampler: Option<String>,

    /// Seed of the first row; each row of faces and prompts has its own, which all methods share. [default: 1]
    #[arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true, help_heading = "The pictures")]
    pub(crate) seed: Option<u64>,

    #[command(flatten)]
    pub(crate) models: ModelFileArgs,

    /// auto, cpu or cuda:N. [default: auto]
    #[arg(long, value_name = "DEVICE", help_heading = "The machine")]
    pub(crate) device: Option<DeviceArg>,

    /// The numbers to compute with. [default: auto]
    #[arg(long, value_name = "KIND", value_enum, help_heading = "The machine")]
    pub(crate) precision: Option<PrecisionArg>,

    /// Threads on the CPU. [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads, allow_negative_numbers = true, help_heading = "The machine")]
    pub(crate) threads: Option<u16>,

    /// A new or empty folder for index.html, table.json, grid.png and all pictures.
    #[arg(short, long, value_name = "FOLDER", help_heading = "The result")]
    pub(crate) output: PathBuf,

    /// Prints the content of table.json on stdout.
    #[arg(long, help_heading = "The result")]
    pub(crate) json: bool,
}

const AFTER: &str = "\
Examples:
  sameface compare --face cast:1000001 --prompt \"a film noir portrait of a person in a hat\" -o out
  sameface compare --cast-faces 8 --cast-prompts 8 -o out
  sameface compare --cast-faces 24 --cast-prompts 8 --per-face 2 --scales 0,0.4,0.8,1.2 -o curve
  sameface compare --face ada.jpg --other ada2.jpg --other ada3.jpg --prompt \"a sailor\" --judge buffalo -o ada

What the columns measure, all by the judge, which steers nothing:
  SimRef      cosine to the given picture
  SimGT       mean cosine to other pictures of the person
  copy-paste  SimRef - SimGT: how much nearer to the given picture than to others of the same person
  top-1       share of pictures whose nearest person among all at hand is the right one
  text        share of what the prompt asks for that is seen; none for free text
  keypoints   mean distance of the keypoints seen from those asked for, over the distance of the eyes";
