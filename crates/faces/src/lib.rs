//! From a photo to a face: reading pictures, finding faces (SCRFD), telling who it is (ArcFace),
//! drawing the keypoints that InstantID's IdentityNet is conditioned on, and keeping identities.
//!
//! [`FaceAnalyzer::open`] takes an antelopev2 folder; [`FaceAnalyzer::analyze`] gives a [`Photo`]'s
//! faces, the largest first (that is also the order of `--face-index`, from 0, since InstantID takes
//! the largest); [`FaceAnalyzer::average`] makes one [`Identity`] of several pictures.
//!
//! Pixels follow the reference libraries to the byte: JPEGs as libjpeg-turbo decodes them, resizing
//! for detection and the affine warp as OpenCV 5, photos' working size as Pillow. (OpenCV 4 warped in
//! 5-bit fixed point; most pixels of an aligned face then differ by a level or two.) Colour profiles
//! are ignored, as the reference ignores them.
//!
//! The modules stand in the order in which data flows.

mod error;
mod files;

mod jpeg;
mod photo;

mod fit;
mod resample;

mod onnx;

mod detect;
mod embed;

mod analyze;
mod average;
mod identity;
mod judge;

mod keypoints;
mod preview;
mod raster;

pub use analyze::{Analysis, Face, FaceAnalyzer, MIN_FACE};
pub use average::{Averaged, Read, SAME_PERSON, SourceReport, average};
pub use detect::{DETECTION_SIDE, Detection, Detections, Scrfd};
pub use embed::{ArcFace, align, cosine};
pub use error::{Error, Result};
pub use files::readable;
pub use fit::{WorkingSize, prepare_like_reference, resize_lanczos_like_pillow, resize_like_pillow};
pub use identity::Identity;
pub use image::RgbImage;
pub use judge::{Judge, Reading};
pub use keypoints::{COLORS, Keypoints, MAX_SIDE, check_keypoints, draw_keypoints, place_keypoints};
pub use photo::{Photo, PhotoLimits};
pub use preview::{draw_faces, save_png};
pub use resample::{Affine, resize_bilinear, similarity, warp_affine};
