//! `sameface bench`.

use clap::{Args, Subcommand};

use super::values::{repeats, threads};
use super::{DeviceArg, PrecisionArg, SizeArg};

#[derive(Args, Debug)]
#[command(arg_required_else_help = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: BenchCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// One step of InstantID: IdentityNet and UNet, with guidance.
    Step(StepArgs),
}

#[derive(Args, Debug)]
#[command(after_long_help = AFTER)]
pub(crate) struct StepArgs {
    /// The published shape: sdxl, sd15 or tiny. [default: sdxl]
    #[arg(long, value_name = "NAME")]
    pub(crate) config: Option<String>,

    /// Width and height of the picture in pixels. [default: 1024x1024]
    #[arg(long, value_name = "WxH", allow_hyphen_values = true)]
    pub(crate) size: Option<SizeArg>,

    /// auto, cpu or cuda:N. [default: auto]
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<DeviceArg>,

    /// The numbers to compute with. [default: auto]
    #[arg(long, value_name = "KIND", value_enum)]
    pub(crate) precision: Option<PrecisionArg>,

    /// Steps to measure after the first; the middle one is told. [default: 3]
    #[arg(long, value_name = "N", value_parser = repeats, allow_negative_numbers = true)]
    pub(crate) repeat: Option<u16>,

    /// Threads on the CPU. [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads, allow_negative_numbers = true)]
    pub(crate) threads: Option<u16>,

    /// Prints {"step_ms", "first_step_ms", "tflop_per_s", "share_of_peak", "peak_memory_mb"} on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

const AFTER: &str = "\
Example:
  sameface bench step --config sdxl --size 1024x1024 --device cpu --precision bf16 --json

Weights are random, so no model files are needed; the work is that of the real networks.";
