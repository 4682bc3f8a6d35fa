//! The options that every command which makes pictures has.

use clap::Args;

use super::values::{bytes, finite, threads, whole};
use super::{DeviceArg, PrecisionArg, SizeArg};

/// How a picture is made, whoever and whatever it shows.
#[derive(Args, Debug)]
pub(crate) struct PictureArgs {
    /// How strongly the IdentityNet, which holds face shape and place, acts; 0 switches it off. [default: the
    /// model's own, 0.8 for InstantID]
    #[arg(long, value_name = "X", value_parser = finite, allow_negative_numbers = true, help_heading = "The person")]
    pub(crate) identitynet_scale: Option<f64>,

    /// How strongly the adapter, which holds likeness, acts; 0 switches it off. [default: the model's own,
    /// 0.8 for InstantID]
    #[arg(long, value_name = "X", value_parser = finite, allow_negative_numbers = true, help_heading = "The person")]
    pub(crate) ip_adapter_scale: Option<f64>,

    /// What the picture shall not show.
    #[arg(long, value_name = "TEXT", help_heading = "The picture")]
    pub(crate) negative: Option<String>,

    /// Width and height in pixels, each a multiple of 8. [default: what the model was made for, 1024x1024 for SDXL]
    #[arg(long, value_name = "WxH", allow_hyphen_values = true, help_heading = "The picture")]
    pub(crate) size: Option<SizeArg>,

    /// Steps of the sampler. [default: the model's own, 30 for SDXL]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "The picture")]
    pub(crate) steps: Option<usize>,

    /// How closely the prompt is followed; 1 switches guidance off and halves the work. [default: the model's
    /// own, 5 for SDXL]
    #[arg(long, value_name = "X", value_parser = finite, allow_negative_numbers = true, help_heading = "The picture")]
    pub(crate) guidance: Option<f64>,

    /// euler, euler_karras, euler_a, ddim, dpmpp_2m, dpmpp_2m_karras, dpmpp_2m_sde, dpmpp_2m_sde_karras, unipc,
    /// unipc_karras or lcm; names of other programs are understood. [default: the one in the model's
    /// scheduler_config.json]
    #[arg(long, value_name = "NAME", help_heading = "The picture")]
    pub(crate) sampler: Option<String>,
}

/// What it is made on.
#[derive(Args, Debug)]
pub(crate) struct MachineArgs {
    /// auto, cpu, cuda:N, or cuda:N,M; auto takes the first GPU where there is one, and of two that are named each computes a
    /// half of the guidance of every step. [default: auto]
    #[arg(long, value_name = "DEVICE", help_heading = "The machine")]
    pub(crate) device: Option<DeviceArg>,

    /// The numbers to compute with; auto takes f32 for small models and bf16 for large ones, f16 on a GPU.
    /// [default: auto]
    #[arg(long, value_name = "KIND", value_enum, help_heading = "The machine")]
    pub(crate) precision: Option<PrecisionArg>,

    /// How much of a GPU's memory the program may take, such as 8G or 6500M. What does not fit waits in the machine's
    /// memory until its turn, which costs time and changes no picture. [default: what is free]
    #[arg(long, value_name = "SIZE", value_parser = bytes, allow_negative_numbers = true, help_heading = "The machine")]
    pub(crate) vram: Option<u64>,

    /// Threads on the CPU. [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads, allow_negative_numbers = true, help_heading = "The machine")]
    pub(crate) threads: Option<u16>,
}
