//! `sameface generate`.

use std::path::PathBuf;

use clap::Args;

use super::values::{finite, seed, threads, whole};
use super::{DeviceArg, ModelFileArgs, PrecisionArg, RngArg, SizeArg};

#[derive(Args, Debug)]
#[command(after_long_help = AFTER)]
pub(crate) struct GenerateArgs {
    /// What the picture shows. A1111's weights are understood: (word:1.2) counts more, [word] less, BREAK begins a new
    /// chunk of 77 tokens; a long prompt is cut into chunks by itself.
    pub(crate) prompt: String,

    /// A photo of the person, or an identity saved by `sameface faces --save`. Several are averaged; one that cannot be
    /// used is reported and left out. cast:SEED is a drawn character's portrait. [default: nobody, a picture from the text
    /// alone]
    #[arg(long, value_name = "PHOTO|IDENTITY|cast:SEED", help_heading = "The person")]
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

    /// How strongly the IdentityNet, which holds face shape and place, acts; 0 switches it off. [default: the
    /// model's own, 0.8 for InstantID]
    #[arg(long, value_name = "X", value_parser = finite, allow_negative_numbers = true, help_heading = "The person")]
    pub(crate) identitynet_scale: Option<f64>,

    /// How strongly the adapter, which holds likeness, acts; 0 switches it off. [default: the model's own,
    /// 0.8 for InstantID]
    #[arg(long, value_name = "X", value_parser = finite, allow_negative_numbers = true, help_heading = "The person")]
    pub(crate) ip_adapter_scale: Option<f64>,

    /// The IdentityNet acts from this part of the steps on: 0 is the first, 1 the end. [default: 0]
    #[arg(long, value_name = "X", value_parser = finite, allow_negative_numbers = true, help_heading = "The person")]
    pub(crate) identitynet_start: Option<f64>,

    /// The IdentityNet acts until this part of the steps. [default: 1]
    #[arg(long, value_name = "X", value_parser = finite, allow_negative_numbers = true, help_heading = "The person")]
    pub(crate) identitynet_end: Option<f64>,

    /// What the picture shall not show.
    #[arg(long, value_name = "TEXT", help_heading = "The picture")]
    pub(crate) negative: Option<String>,

    /// Takes brackets and BREAK in prompts as plain text.
    #[arg(long, help_heading = "The picture")]
    pub(crate) plain_prompt: bool,

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

    /// euler, euler_karras, euler_a, ddim, dpmpp_2m, dpmpp_2m_karras, unipc, unipc_karras or lcm. [default: the one in
    /// the model's scheduler_config.json]
    #[arg(long, value_name = "NAME", help_heading = "The picture")]
    pub(crate) sampler: Option<String>,

    /// The same seed and settings give the same picture. [default: drawn, and told]
    #[arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true, help_heading = "The picture")]
    pub(crate) seed: Option<u64>,

    /// Makes so many pictures, with seeds that count up. [default: 1]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true, help_heading = "The picture")]
    pub(crate) count: Option<usize>,

    /// Whose noise a seed stands for. [default: cpu]
    #[arg(long, value_name = "KIND", value_enum, help_heading = "The picture")]
    pub(crate) rng: Option<RngArg>,

    #[command(flatten)]
    pub(crate) models: ModelFileArgs,

    /// auto, cpu or cuda:N (experimental; auto takes the CPU). [default: auto]
    #[arg(long, value_name = "DEVICE", help_heading = "The machine")]
    pub(crate) device: Option<DeviceArg>,

    /// The numbers to compute with; auto takes f32 for small models and bf16 for large ones. [default: auto]
    #[arg(long, value_name = "KIND", value_enum, help_heading = "The machine")]
    pub(crate) precision: Option<PrecisionArg>,

    /// Threads on the CPU. [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads, allow_negative_numbers = true, help_heading = "The machine")]
    pub(crate) threads: Option<u16>,

    /// A file, or a folder for generated names. A name that exists gets a number, nothing is overwritten.
    /// [default: the current folder]
    #[arg(short, long, value_name = "FILE|FOLDER", help_heading = "The result")]
    pub(crate) output: Option<PathBuf>,

    /// Also writes the latent before the VAE decodes it, as safetensors. A name that exists gets a number.
    #[arg(long, value_name = "FILE", help_heading = "The result")]
    pub(crate) save_latent: Option<PathBuf>,

    /// Prints {"images": [{"path", "seed"}], "plan", "photos", "timings"} on stdout.
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
