//! The shapes of a stack's networks, without weights.

use crate::{Error, Result};
use nets::{ClipTextConfig, ControlNetConfig, UNetConfig, VaeConfig};
use std::path::Path;
use weights::{Folder, Weights};

/// What a stack would be built from.
#[derive(Debug, Clone)]
pub struct Shapes {
    /// As the user said it.
    pub name: String,
    /// Width and height that it was made for.
    pub size: (u32, u32),
    pub(crate) unet: UNetConfig,
    pub(crate) identitynet: ControlNetConfig,
    pub(crate) vae: VaeConfig,
    pub(crate) text: Vec<ClipTextConfig>,
}

/// What [`Shapes::named`] knows.
pub const SHAPES: [&str; 3] = ["sdxl", "sd15", "tiny"];

impl Shapes {
    /// A published shape by its name; none where there is none of that name.
    pub fn named(name: &str) -> Option<Shapes> {
        let (unet, identitynet, vae, text, side) = match name {
            "sdxl" => (
                UNetConfig::sdxl(),
                ControlNetConfig::sdxl(),
                VaeConfig::sdxl(),
                vec![ClipTextConfig::clip_l(), ClipTextConfig::open_clip_g()],
                1024,
            ),
            "sd15" => {
                (UNetConfig::sd15(), ControlNetConfig::sd15(), VaeConfig::sd15(), vec![ClipTextConfig::clip_l()], 512)
            }
            "tiny" => (
                UNetConfig::tiny(),
                ControlNetConfig::tiny(),
                VaeConfig::tiny(),
                vec![ClipTextConfig::tiny(), ClipTextConfig::tiny()],
                64,
            ),
            _ => return None,
        };
        Some(Shapes { name: name.into(), size: (side, side), unet, identitynet, vae, text })
    }

    /// The shape of a diffusers folder's model, from its configurations alone. IdentityNet's is in `ControlNetModel`
    /// inside it, else as InstantID would have it.
    ///
    /// # Errors
    /// A file that is missing or cannot be used, by name.
    pub fn of_folder(name: &str, path: &Path) -> Result<Shapes> {
        let folder = Folder::open(path)?;
        let config = folder.config("unet")?;
        let (unet, vae) = (UNetConfig::from_json(&config)?, VaeConfig::from_json(&folder.config("vae")?)?);
        let random = Weights::random(1).root();
        let encoders = ["text_encoder", "text_encoder_2"].into_iter().filter(|part| folder.has(part));
        let text = encoders
            .map(|part| Ok(ClipTextConfig::from_json(&folder.config(part)?, &random)?))
            .collect::<Result<Vec<_>>>()?;
        let beside = path.join("ControlNetModel");
        let identitynet = match if beside.is_dir() { weights::config(&beside)? } else { None } {
            Some(config) => ControlNetConfig::from_json(&config)?,
            None => ControlNetConfig::beside(unet.clone(), &[16, 32, 96, 256]),
        };
        let zoom = vae.zoom() as u64;
        let side = config.get("sample_size").and_then(serde_json::Value::as_u64);
        let side =
            side.map(|side| side.saturating_mul(zoom)).filter(|side| (1..=4096).contains(side)).unwrap_or(512) as u32;
        if identitynet.hint_zoom() as u64 != zoom {
            return Error::refused(format!(
                "{}: IdentityNet reads pictures {} times the latent's size, and the VAE makes them {zoom} times; they are not of one model",
                path.display(),
                identitynet.hint_zoom()
            ));
        }
        Ok(Shapes { name: name.into(), size: (side, side), unet, identitynet, vae, text })
    }

    /// Sides of pictures must be multiples of this, so that each level halves evenly.
    pub(crate) fn unit(&self) -> u32 {
        (self.vae.zoom() << (self.unet.encoder.levels.len() - 1)).min(64) as u32
    }

    /// Parameters of the denoising networks with the identity branch.
    pub(crate) fn parameters(&self) -> usize {
        self.denoisers() + self.unet.adapter_parameters()
    }

    /// Parameters of UNet and IdentityNet alone.
    pub(crate) fn denoisers(&self) -> usize {
        self.unet.parameters() + self.identitynet.parameters()
    }
}
