//! `sameface models`.

use clap::{Args, Subcommand};

#[derive(Args, Debug)]
#[command(arg_required_else_help = true)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    pub(crate) command: ModelsCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// Show which models are known, which are here, and what `generate` would use.
    List {
        /// Prints {"models": [...], "in_use": {...}} on stdout.
        #[arg(long)]
        json: bool,
    },
    /// Bring a model and all that it needs from the Hugging Face hub.
    Pull(PullArgs),
    /// Print the folder of a model.
    Path {
        /// A name from `sameface models list`, or ORG/NAME.
        name: String,
        /// Prints {"path": "..."} on stdout.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args, Debug)]
#[command(after_long_help = AFTER)]
pub(crate) struct PullArgs {
    /// A name from `sameface models list`, or ORG/NAME for a repository of the hub.
    pub(crate) name: String,

    /// Shows what would be fetched, and fetches nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Prints {"models": [{"name", "path", "licence", "bytes", "fetched"}]} on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

const AFTER: &str = "\
Examples:
  sameface models pull instantid                    InstantID, SDXL base and antelopev2: all that `generate` needs
  sameface models pull SG161222/RealVisXL_V5.0      another base model, then: generate --model SG161222/RealVisXL_V5.0

Files go into the Hugging Face cache (HF_HOME, HF_HUB_CACHE), where other programs find them too. An interrupted pull \
goes on where it stopped. Content is checked: sha256 for large files, git's hash for small ones. HF_TOKEN opens gated \
repositories, HF_ENDPOINT names a mirror. The licence of each model is shown before anything is fetched; it binds you. \
insightface's antelopev2 may be used for non-commercial research only.";
