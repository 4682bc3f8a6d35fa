//! The options that name model files, the same for every command that makes pictures.

use std::path::PathBuf;

use clap::Args;

#[derive(Args, Debug)]
pub(crate) struct ModelFileArgs {
    /// A diffusers folder, a single .safetensors file, or a name: mini for the built-in models, sdxl-base, ORG/NAME.
    /// [default: what is found, else mini]
    #[arg(long, value_name = "FOLDER|FILE|NAME", help_heading = "The models")]
    pub(crate) model: Option<String>,

    /// For a single file: a diffusers folder whose config.json files say what tensors cannot, such as the number of
    /// attention heads and the scheduler. [default: what SDXL was published with]
    #[arg(long, value_name = "FOLDER", help_heading = "The models")]
    pub(crate) model_config: Option<PathBuf>,

    /// The ControlNet of InstantID: a folder with config.json, or a file. [default: what is found]
    #[arg(long, value_name = "FOLDER|FILE", help_heading = "The models")]
    pub(crate) identitynet: Option<String>,

    /// The adapter of InstantID: ip-adapter.bin or its safetensors form. [default: what is found]
    #[arg(long, value_name = "FILE", help_heading = "The models")]
    pub(crate) ip_adapter: Option<String>,

    /// A folder with the face detector and the face encoder, such as antelopev2. [default: what is found]
    #[arg(long, value_name = "FOLDER", help_heading = "The models")]
    pub(crate) face_models: Option<String>,
}
