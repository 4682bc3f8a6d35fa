//! The command line as it is written and explained. Nothing here decides: an option that was not given stays `None`,
//! and its default, which the help names, is the plan's.

mod bench;
mod cast;
mod compare;
mod faces;
mod files;
mod generate;
mod models;
mod shared;
mod values;

use clap::{Parser, Subcommand};

pub(crate) use bench::{BenchArgs, BenchCommand, FaceBenchArgs, LoadArgs, RunArgs, ShapeArgs, StepArgs, WatchedArgs};
pub(crate) use cast::{CastArgs, CastCommand, DrawArgs};
pub(crate) use compare::CompareArgs;
pub(crate) use faces::FacesArgs;
pub(crate) use files::ModelFileArgs;
pub(crate) use generate::GenerateArgs;
pub(crate) use models::{ModelsArgs, ModelsCommand, PullArgs};
pub(crate) use shared::{MachineArgs, PictureArgs};
pub(crate) use values::{DeviceArg, PrecisionArg, RngArg, ShardArg, SizeArg};

/// Generates pictures of a person from one photo of their face.
#[derive(Debug, Parser)]
#[command(name = "sameface", version, long_about = ABOUT, after_long_help = AFTER, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const ABOUT: &str = "\
One photo of a face in, the same person in any scene that a prompt describes.

sameface runs InstantID and Stable Diffusion XL without Python: it finds the face in the photo, describes who it is \
and where its eyes, nose and mouth are, and lets both steer the picture.";

const AFTER: &str = "\
First steps:
  sameface generate \"a film noir portrait of a person\" --face cast:1000001      a drawn person, with the built-in models
  sameface models pull instantid                                   bring the models (11.4 GB, once)
  sameface generate \"a film noir portrait\" --face ada.jpg          make a picture

Where things are:
  SAMEFACE_HOME    models are looked for in $SAMEFACE_HOME/models first; the layouts of ComfyUI and A1111 are known
  HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN     as for every program of the Hugging Face hub

Exit status: 0 done; 1 something is missing or went wrong on this machine or the network; 2 something that was given \
cannot be used. \
An error is one sentence on stderr; with --json stdout holds {\"error\": \"...\"} besides.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make pictures of a person in a scene that a prompt describes.
    Generate(Box<GenerateArgs>),
    /// Find the faces in photos: boxes, keypoints and identity embeddings.
    Faces(FacesArgs),
    /// Make the same pictures by several methods and measure how well each keeps the person.
    Compare(Box<CompareArgs>),
    /// Draw characters with known identity: subjects that belong to nobody.
    Cast(CastArgs),
    /// Find, list and bring model files.
    Models(ModelsArgs),
    /// Measure how fast this machine is.
    Bench(BenchArgs),
}
