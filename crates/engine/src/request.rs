//! What the user said.

use std::path::PathBuf;

/// A source of noise that other programs have as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rng {
    /// torch's CPU generator: what diffusers with a CPU generator and ComfyUI draw.
    #[default]
    Cpu,
    /// torch's CUDA generator: what the A1111 web UI draws on a GPU.
    Philox,
}

/// Numbers in which the networks compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// f32 for small models, bf16 for those whose f32 weights would fill an ordinary machine.
    #[default]
    Auto,
    /// Single precision.
    F32,
    /// bfloat16 weights and activations, f32 sums.
    Bf16,
    /// Half precision, on a GPU.
    F16,
}

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The best there is.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

/// Where keypoints come from when not from the face's own photo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pose {
    /// A photo or a saved identity.
    Face(PathBuf),
    /// A ready keypoint image.
    Map(PathBuf),
}

/// The files of the stack, already found on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelPaths {
    /// A diffusers folder or a single-file checkpoint.
    pub base: PathBuf,
    /// For a single file: a diffusers folder whose `config.json` files say what tensors cannot (head widths, scheduler).
    pub config: Option<PathBuf>,
    /// IdentityNet; needed unless its scale is 0 or there is no face.
    pub identitynet: Option<PathBuf>,
    /// The identity adapter with its Resampler; needed with a face unless both scales are 0.
    pub ip_adapter: Option<PathBuf>,
    /// The folder with detector and encoder; needed where a photo is given.
    pub face_models: Option<PathBuf>,
}

/// A request for pictures, as said; [`crate::Plan::resolve`] decides the rest.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What the picture shows.
    pub prompt: String,
    /// What it should not show. `None` differs from an empty text: see `force_zeros_for_empty_prompt` of SDXL.
    pub negative: Option<String>,
    /// Take brackets and colons in prompts as text.
    pub plain_prompt: bool,
    /// Photos or saved identities of one person; none for a picture from text alone.
    pub faces: Vec<PathBuf>,
    /// Which face of each photo, by size, the largest being 0; the largest, with a note where there are several, if not given.
    pub face_index: Option<usize>,
    /// Keypoints from elsewhere.
    pub pose: Option<Pose>,
    /// The files of the stack.
    pub models: ModelPaths,
    /// Weight of IdentityNet's residuals.
    pub identitynet_scale: f64,
    /// Weight of the identity branch of cross-attention.
    pub ip_adapter_scale: f64,
    /// Share of the steps before which IdentityNet rests.
    pub identitynet_start: f64,
    /// Share of the steps after which IdentityNet rests.
    pub identitynet_end: f64,
    /// Denoising steps.
    pub steps: usize,
    /// Classifier-free guidance; 1 or less switches it off.
    pub guidance: f64,
    /// A sampler's name; by default what the model's scheduler says.
    pub sampler: Option<String>,
    /// Width and height in pixels; by default the size the model was made for.
    pub size: Option<(u32, u32)>,
    /// The first picture's seed; drawn if not given.
    pub seed: Option<u64>,
    /// How many pictures; picture i has seed + i.
    pub count: usize,
    /// Source of noise.
    pub rng: Rng,
    /// Where to compute.
    pub device: DeviceChoice,
    /// In which numbers to compute.
    pub precision: Precision,
    /// A file in which digests of model files are remembered.
    pub digest_cache: Option<PathBuf>,
}

impl Request {
    /// A request with the published defaults of InstantID.
    pub fn new(prompt: impl Into<String>, models: ModelPaths) -> Request {
        Request {
            prompt: prompt.into(),
            negative: None,
            plain_prompt: false,
            faces: Vec::new(),
            face_index: None,
            pose: None,
            models,
            identitynet_scale: 0.8,
            ip_adapter_scale: 0.8,
            identitynet_start: 0.0,
            identitynet_end: 1.0,
            steps: 30,
            guidance: 5.0,
            sampler: None,
            size: None,
            seed: None,
            count: 1,
            rng: Rng::Cpu,
            device: DeviceChoice::Auto,
            precision: Precision::Auto,
            digest_cache: None,
        }
    }

    /// Whether the request has a face that has any weight.
    pub fn wants_identity(&self) -> bool {
        !self.faces.is_empty() && (self.identitynet_scale != 0.0 || self.ip_adapter_scale != 0.0)
    }

    /// Whether a photo has to be looked at, which takes the face models: saved identities do without.
    pub fn needs_face_models(&self) -> bool {
        let pose = match &self.pose {
            Some(Pose::Face(path)) => Some(path),
            _ => None,
        };
        self.wants_identity() && self.faces.iter().chain(pose).any(|path| !faces::Identity::sniff(path))
    }
}
