//! `sameface faces`.

use std::path::PathBuf;

use clap::Args;

use super::values::{threads, whole};

#[derive(Args, Debug)]
#[command(after_long_help = AFTER)]
pub(crate) struct FacesArgs {
    /// Photos: JPEG, PNG, WebP, BMP or GIF, turned upright as their EXIF says; or cast:SEED, a drawn character.
    #[arg(required = true, value_name = "PHOTO")]
    pub(crate) photos: Vec<PathBuf>,

    /// A folder with the face detector and the face encoder, such as antelopev2. [default: what is found]
    #[arg(long, value_name = "FOLDER")]
    pub(crate) face_models: Option<String>,

    /// Takes only this face of each photo, counted from 0, the largest first. [default: all are listed;
    /// --draw-keypoints and --save take the largest]
    #[arg(long, value_name = "N", value_parser = whole, allow_negative_numbers = true)]
    pub(crate) face_index: Option<usize>,

    /// Writes the photo with boxes, keypoints and numbers drawn in. For one photo.
    #[arg(long, value_name = "OUT.png")]
    pub(crate) draw: Option<PathBuf>,

    /// Writes the keypoint image of the face, which `sameface generate --pose-map` takes. For one photo.
    #[arg(long, value_name = "OUT.png")]
    pub(crate) draw_keypoints: Option<PathBuf>,

    /// Saves the identity, which `sameface generate --face` takes. Several photos are averaged.
    #[arg(long, value_name = "IDENTITY.safetensors")]
    pub(crate) save: Option<PathBuf>,

    /// Replaces files that exist already; without it, --draw, --draw-keypoints and --save refuse such names.
    #[arg(long)]
    pub(crate) force: bool,

    /// Threads on the CPU. [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads, allow_negative_numbers = true)]
    pub(crate) threads: Option<u16>,

    /// Prints {"photo", "size", "faces": [{"bbox", "det_score", "kps", "embedding"}]} on stdout, a list of these for
    /// several photos.
    #[arg(long)]
    pub(crate) json: bool,
}

const AFTER: &str = "\
Examples:
  sameface faces ada.jpg
  sameface faces ada.jpg --json | jq '.faces[0].kps'
  sameface faces ada1.jpg ada2.jpg ada3.jpg --save ada.safetensors
  sameface faces crowd.jpg --face-index 2 --draw-keypoints pose.png

Faces are ordered by size, the largest first. `bbox` is [x1, y1, x2, y2] and `kps` are the eyes, the tip of the nose and \
the corners of the mouth, the ones at the picture's left first, all in pixels of the upright photo, whose width and \
height are `size`. `embedding` is what \
the encoder says, 512 numbers, not normalised. A photo that cannot be used has its sentence on stderr and, with --json, \
an `error`; the others are done, and the exit status is 2.";
