//! IP-Adapter files, InstantID's among them: an image projection and extra keys and values for the UNet.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::json::read_json;
use crate::kind::describe;
use crate::table::Weights;

/// The two halves of an adapter file.
pub struct IpAdapter {
    /// All of the file; marks are shared with the halves.
    pub file: Weights,
    /// The projection of the image or face embedding: `latents`, `layers.0.0.to_q.weight`, ...
    pub image_proj: Weights,
    /// Keys and values by the number of the attention processor: `1.to_k_ip.weight`, ...
    pub ip_adapter: Weights,
    /// What the file cannot say by shapes, such as `dim_head`: from `<stem>.json` beside the file, else from its
    /// metadata.
    pub config: Option<Value>,
}

/// Opens an adapter: a pickle with `image_proj` and `ip_adapter` inside, or safetensors with these as prefixes.
///
/// # Errors
/// Those of [`Weights::open`], and [`Error::WrongKind`] when one of the halves is missing.
pub fn ip_adapter(path: &Path) -> Result<IpAdapter> {
    let weights = Weights::open(path)?;
    let (image_proj, ip_adapter) = (weights.select("image_proj"), weights.select("ip_adapter"));
    for (half, name) in [(&image_proj, "image_proj"), (&ip_adapter, "ip_adapter")] {
        if half.names().is_empty() {
            return Err(Error::WrongKind {
                file: weights.file().to_owned(),
                found: describe(&weights),
                expected: format!("an IP-Adapter with tensors under `{name}.`"),
            });
        }
    }
    let sidecar = path.with_extension("json");
    let config = if sidecar.is_file() { Some(read_json(&sidecar)?) } else { from_metadata(&weights) };
    Ok(IpAdapter { file: weights, image_proj, ip_adapter, config })
}

/// Metadata values are strings; those that are JSON (numbers, or a whole configuration under `config`) are read as such.
fn from_metadata(weights: &Weights) -> Option<Value> {
    let metadata = weights.metadata();
    let parsed = |text: &String| serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone()));
    if let Some(config @ Value::Object(_)) = metadata.get("config").map(parsed) {
        return Some(config);
    }
    let fields: Map<String, Value> = metadata.iter().map(|(name, text)| (name.clone(), parsed(text))).collect();
    (!fields.is_empty()).then_some(Value::Object(fields))
}
