//! `sameface bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::values::{repeats, threads};
use super::{MachineArgs, SizeArg};

#[derive(Args, Debug)]
#[command(arg_required_else_help = true, after_long_help = AFTER)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// One denoising step of InstantID: IdentityNet and UNet, with guidance.
    Step(StepArgs),
    /// Decoding a latent to a picture with the VAE.
    Vae(WatchedArgs),
    /// A prompt and a negative one through the text encoders.
    Text(ShapeArgs),
    /// Finding a face in a photo and reading whose it is.
    Faces(FaceBenchArgs),
    /// From a model's own files to the first step.
    Load(LoadArgs),
}

/// How it is measured and told.
#[derive(Args, Debug)]
pub(crate) struct RunArgs {
    /// How often to measure after the first time; the middle one is told. [default: 3]
    #[arg(long, alias = "repeat", value_name = "N", value_parser = repeats, allow_negative_numbers = true)]
    pub(crate) runs: Option<u16>,

    /// Prints one object on stdout: times in milliseconds, "tflop_per_s", "share_of_peak", "peak_memory_mb".
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
#[command(after_long_help = AFTER)]
pub(crate) struct ShapeArgs {
    /// The shape of the networks: sdxl, sd15, tiny, mini (the built-in models'), or the folder of a model.
    /// [default: sdxl]
    #[arg(long, value_name = "NAME|FOLDER")]
    pub(crate) config: Option<String>,

    /// Width and height of the picture in pixels. [default: what the model was made for, 1024x1024 for sdxl]
    #[arg(long, value_name = "WxH", allow_hyphen_values = true)]
    pub(crate) size: Option<SizeArg>,

    #[command(flatten)]
    pub(crate) machine: MachineArgs,

    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Args, Debug)]
#[command(after_long_help = AFTER)]
pub(crate) struct WatchedArgs {
    #[command(flatten)]
    pub(crate) shape: ShapeArgs,

    /// Tells what each operator takes.
    #[arg(long)]
    pub(crate) profile: bool,
}

#[derive(Args, Debug)]
#[command(after_long_help = AFTER)]
pub(crate) struct StepArgs {
    #[command(flatten)]
    pub(crate) watched: WatchedArgs,

    /// Tells how far a step's result is from the same in f32 on the same device.
    #[arg(long)]
    pub(crate) error: bool,
}

#[derive(Args, Debug)]
#[command(after_long_help = AFTER)]
pub(crate) struct FaceBenchArgs {
    /// A photo, or cast:SEED for a drawn character. [default: cast:1000001]
    #[arg(long, value_name = "PHOTO")]
    pub(crate) photo: Option<PathBuf>,

    /// A folder with the face detector and the face encoder, such as antelopev2. [default: what is found, else the
    /// built-in ones]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) face_models: Option<String>,

    /// Threads on the CPU. [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads, allow_negative_numbers = true, help_heading = "The machine")]
    pub(crate) threads: Option<u16>,

    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Args, Debug)]
#[command(after_long_help = AFTER)]
pub(crate) struct LoadArgs {
    /// A model: a diffusers folder, a single-file checkpoint, or the name of an installed one such as sdxl.
    #[arg(value_name = "FOLDER|FILE|NAME")]
    pub(crate) model: String,

    /// IdentityNet, a folder or file. [default: none]
    #[arg(long, value_name = "FOLDER|FILE")]
    pub(crate) identitynet: Option<String>,

    /// The identity adapter. [default: none]
    #[arg(long, value_name = "FILE")]
    pub(crate) ip_adapter: Option<String>,

    /// Width and height of the picture in pixels, for the steps after loading. [default: what the model was made for]
    #[arg(long, value_name = "WxH", allow_hyphen_values = true)]
    pub(crate) size: Option<SizeArg>,

    #[command(flatten)]
    pub(crate) machine: MachineArgs,

    #[command(flatten)]
    pub(crate) run: RunArgs,
}

const AFTER: &str = "\
Examples:
  sameface bench step                                        SDXL at 1024x1024
  sameface bench step --size 512x512 --precision bf16 --json
  sameface bench vae --size 512x512
  sameface bench step --profile --error                      where its time goes, and how far it is from f32
  sameface bench text --precision f32
  sameface bench faces --face-models antelopev2
  sameface bench load mini --identitynet mini --ip-adapter mini

Weights are random where no files are named, so nothing has to be installed, and the work is that of the real networks. \
`share_of_peak` compares with what the processor's arithmetic units gave in the same process with no memory in the way, \
and `page_faults` counts pages that a run had to be given by the system. A first time is slower than the later ones: \
memory is taken then. What clearly needs more memory than is free is refused before anything is made.";
