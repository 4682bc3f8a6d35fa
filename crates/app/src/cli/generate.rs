//! `sameface generate`.

use std::path::PathBuf;

use clap::Args;

use super::values::{finite, seed, whole};
use super::{MachineArgs, ModelFileArgs, PictureArgs, RngArg};

#[derive(Args, Debug)]
#[command(after_long_help = AFTER)]
pub(crate) struct GenerateArgs {
    /// What the picture shows. A1111's weights are understood: (word:1.2) counts more, [word] less, BREAK begins a new
    /// chunk of 77 tokens; a long prompt is cut into chunks by itself.
    pub(crate) prompt: String,

    /// A photo of the person, an identity saved by `sameface faces --save`, or a folder with pictures of one person. Several
    /// are averaged; one that cannot be used is reported and left out. cast:SEED is a drawn character's portrait.
    /// [default: nobody, a picture from the text alone]
    #[arg(long, value_name = "PHOTO|IDENTITY|FOLDER|cast:SEED", help_heading = "The person")]
    pub(crate) face: Vec<PathBuf>,

    /// Which face of each photo, counted from 0, the largest first. [default: 0, the largest]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "The person")]
    pub(crate) face_index: Option<usize>,

    /// Takes the place and pose of the face from another photo or identity. [default: the first --face]
    #[arg(long, value_name = "PHOTO|IDENTITY", help_heading = "The person", conflicts_with = "pose_map")]
    pub(crate) pose: Option<PathBuf>,

    /// Takes the place and pose of the face from a ready keypoint image, such as `sameface faces --draw-keypoints`
    /// makes.
    #[arg(long, value_name = "IMAGE", help_heading = "The person")]
    pub(crate) pose_map: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) picture: PictureArgs,

    /// The IdentityNet acts from this part of the steps on: 0 is the first, 1 the end. [default: 0]
    #[arg(long, value_name = "X", value_parser = finite, allow_negative_numbers = true, help_heading = "The person")]
    pub(crate) identitynet_start: Option<f64>,

    /// The IdentityNet acts until this part of the steps. [default: 1]
    #[arg(long, value_name = "X", value_parser = finite, allow_negative_numbers = true, help_heading = "The person")]
    pub(crate) identitynet_end: Option<f64>,

    /// Takes brackets and BREAK in prompts as plain text.
    #[arg(long, help_heading = "The picture")]
    pub(crate) plain_prompt: bool,

    /// The same seed and settings give the same picture. [default: drawn, and told]
    #[arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true, help_heading = "The picture")]
    pub(crate) seed: Option<u64>,

    /// Makes so many pictures, with seeds that count up. [default: 1]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "The picture")]
    pub(crate) count: Option<usize>,

    /// So many of the pictures share each step, which takes memory for all of them. Seeds mean the same; on a GPU pictures
    /// may differ in their last bits from those made alone. [default: on the CPU 4 of small models, else 1]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "The picture")]
    pub(crate) batch: Option<usize>,

    /// Whose noise a seed stands for. [default: cpu]
    #[arg(long, value_name = "KIND", value_enum, help_heading = "The picture")]
    pub(crate) rng: Option<RngArg>,

    #[command(flatten)]
    pub(crate) models: ModelFileArgs,

    #[command(flatten)]
    pub(crate) machine: MachineArgs,

    /// A file, or a folder for generated names. A name that exists gets a number, nothing is overwritten.
    /// [default: the current folder]
    #[arg(short, long, value_name = "FILE|FOLDER", help_heading = "The result")]
    pub(crate) output: Option<PathBuf>,

    /// Also writes the latent before the VAE decodes it, as safetensors. A name that exists gets a number.
    #[arg(long, value_name = "FILE", help_heading = "The result")]
    pub(crate) save_latent: Option<PathBuf>,

    /// Prints {"images": [{"path", "seed"}], "plan", "photos", "notes", "timings"} on stdout.
    #[arg(long, help_heading = "The result")]
    pub(crate) json: bool,
}

const AFTER: &str = "\
Examples:
  sameface generate \"a film noir portrait of a person in a hat\" --face cast:1000001
  sameface generate \"a film noir portrait, hard light\" --face ada.jpg
  sameface generate \"an astronaut, watercolour\" --face ada1.jpg --face ada2.jpg --seed 7 --count 4 -o out/
  sameface generate \"a sailor\" --face ada.jpg --pose someone.jpg --negative \"blurry\"
  sameface generate \"a sailor\" --face ada.jpg --model checkpoints/juggernautXL.safetensors --sampler dpmpp_2m

Models are found in this order: the given path, $SAMEFACE_HOME/models, the Hugging Face cache. `sameface models pull \
instantid` brings them. The picture is a PNG that carries the A1111 `parameters` text and the whole plan.";
