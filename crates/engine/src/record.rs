//! The record in the picture: the web UI's text, and the whole plan.

use crate::generate::Picture;
use crate::metadata::{PARAMETERS, PLAN, Parameters, encode_png};
use crate::plan::{ModelRecord, Plan};
use crate::{Error, Result};

/// Digits of a digest that the web UI shows.
const SHORT: usize = 10;

impl Plan {
    /// The picture as a PNG file with its record.
    ///
    /// # Errors
    /// A prompt that PNG text cannot hold.
    pub fn png(&self, picture: &Picture) -> Result<Vec<u8>> {
        let parameters = self.parameters(picture.seed).to_string();
        // The plan of this very picture: its own seed alone.
        let own = Plan { seeds: vec![picture.seed], ..self.clone() };
        let json =
            serde_json::to_string(&own).map_err(|e| Error::Refused(format!("the plan cannot be written: {e}")))?;
        let texts = [(PARAMETERS, parameters.as_str()), (PLAN, json.as_str())];
        encode_png(picture.width, picture.height, &picture.rgb, &texts)
    }

    /// The settings as the A1111 web UI writes them.
    pub fn parameters(&self, seed: u64) -> Parameters {
        let mut text = Parameters {
            prompt: self.prompt.clone(),
            negative: self.negative.clone().unwrap_or_default(),
            fields: Vec::new(),
        }
        .field("Steps", self.steps)
        .field("Sampler", self.sampler_title)
        .field("CFG scale", self.guidance)
        .field("Seed", seed)
        .field("Size", format!("{}x{}", self.width, self.height));
        if let Some(model) = self.models.get("model") {
            if let Some(hash) = short_hash(model) {
                text = text.field("Model hash", hash);
            }
            text = text.field("Model", stem(&model.name));
        }
        if let Some(identity) = &self.identity {
            let mut unit = 0;
            for (module, role, weight, start, end) in [
                ("instant_id_face_embedding", "ip_adapter", identity.ip_adapter_scale, 0.0, 1.0),
                (
                    "instant_id_face_keypoints",
                    "identitynet",
                    identity.identitynet_scale,
                    identity.identitynet_start,
                    identity.identitynet_end,
                ),
            ] {
                let Some(model) = self.models.get(role) else { continue };
                let value = format!(
                    "Module: {module}, Model: {}, Weight: {weight}, Guidance Start: {start}, Guidance End: {end}",
                    stem(&model.name)
                );
                text = text.field(&format!("ControlNet {unit}"), value);
                unit += 1;
            }
        }
        if self.rng == crate::Rng::Cpu {
            text = text.field("RNG", "CPU");
        }
        text.field("Version", format!("sameface {}", self.version))
    }
}

/// The digest of a single file, or of a folder's UNet: what a checkpoint is told by.
fn short_hash(model: &ModelRecord) -> Option<&str> {
    let unet = model.sha256.iter().find(|(name, _)| name.starts_with("unet"));
    let (_, digest) = unet.or_else(|| model.sha256.first_key_value())?;
    digest.get(..SHORT)
}

fn stem(name: &str) -> &str {
    ["safetensors", "bin", "ckpt", "pt"]
        .iter()
        .find_map(|end| name.strip_suffix(end)?.strip_suffix('.'))
        .unwrap_or(name)
}
