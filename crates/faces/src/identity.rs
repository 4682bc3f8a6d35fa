//! Saved identities: a safetensors file with the keys of ReActor's face models.
//!
//! `embedding` [n], `kps` [5, 2], `bbox` [4] and `det_score` [] as 32-bit floats; the photo's size,
//! the recogniser's SHA-256 and this program's version stand in the metadata. ReActor's own files
//! (which add `landmark_3d_68`, `pose`, `landmark_2d_106`, `gender`, `age`) are read too.

use crate::analyze::{Analysis, Face};
use crate::embed::check_embedding;
use crate::keypoints::{Keypoints, check_keypoints};
use crate::{Error, Result};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// A face model of ReActor has some 4 KB.
const MAX_BYTES: u64 = 16 << 20;

/// Who somebody is, and optionally how the face lay in the photo.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Identity {
    /// The raw embedding, not normalised.
    pub embedding: Vec<f32>,
    /// Keypoints in pixels of the photo.
    pub kps: Option<Keypoints>,
    /// Left, top, right, bottom in pixels of the photo.
    pub bbox: Option<[f32; 4]>,
    /// The detector's confidence.
    pub det_score: Option<f32>,
    /// Width and height of the photo; ReActor's files do not tell.
    pub size: Option<(u32, u32)>,
    /// SHA-256 of the recogniser's file.
    pub encoder: Option<String>,
    /// The program's version that wrote the file.
    pub version: Option<String>,
}

impl Identity {
    /// The identity of one face of a photo.
    pub fn of_face(face: &Face, analysis: &Analysis, encoder: &str) -> Identity {
        Identity {
            embedding: face.embedding.clone(),
            kps: Some(face.kps),
            bbox: Some(face.bbox),
            det_score: Some(face.det_score),
            size: Some(analysis.size),
            encoder: Some(encoder.to_owned()),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        }
    }

    /// Whether a file holds safetensors, judged by its first bytes and not by its name.
    pub fn sniff(path: &Path) -> bool {
        let mut head = [0u8; 9];
        let read =
            crate::files::open_regular(path).and_then(|mut f| f.read_exact(&mut head).map_err(|e| e.to_string()));
        read.is_ok() && head[8] == b'{' && head[3..8] == [0; 5]
    }

    /// Reads an identity file.
    pub fn open(path: &Path) -> Result<Identity> {
        let io = |reason: String| Error::Io { what: "the identity", path: path.to_owned(), action: "read", reason };
        let file = crate::files::open_regular(path).map_err(io)?;
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| io(e.to_string()))?;
        Identity::from_bytes(&path.display().to_string(), &bytes)
    }

    /// Reads an identity from memory; `name` stands for it in messages.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Identity> {
        parse(bytes).map_err(|reason| Error::Identity { name: name.to_owned(), reason })
    }

    /// The file's bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let fail = |reason: String| Error::Identity { name: "to be saved".into(), reason };
        check_embedding(&self.embedding).map_err(|r| fail(format!("cannot be written: its embedding {r}")))?;
        let bytes = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let mut parts = vec![("embedding", vec![self.embedding.len()], bytes(&self.embedding))];
        if let Some(kps) = &self.kps {
            parts.push(("kps", vec![5, 2], bytes(kps.as_flattened())));
        }
        if let Some(bbox) = &self.bbox {
            parts.push(("bbox", vec![4], bytes(bbox)));
        }
        if let Some(score) = self.det_score {
            parts.push(("det_score", vec![], bytes(&[score])));
        }
        // Sorted keys and a padded header: the same identity gives the same bytes.
        let mut metadata = BTreeMap::from([("sameface", env!("CARGO_PKG_VERSION").to_owned())]);
        if let Some((width, height)) = self.size {
            metadata.insert("photo_size", format!("{width}x{height}"));
        }
        if let Some(encoder) = &self.encoder {
            metadata.insert("recogniser_sha256", encoder.clone());
        }
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), serde_json::json!(metadata));
        let mut at = 0;
        for (name, shape, data) in &parts {
            let end = at + data.len();
            let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]});
            header.insert((*name).into(), entry);
            at = end;
        }
        let mut text = serde_json::Value::Object(header).to_string();
        text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
        let mut file = (text.len() as u64).to_le_bytes().to_vec();
        file.extend(text.into_bytes());
        file.extend(parts.iter().flat_map(|(_, _, data)| data));
        Ok(file)
    }

    /// Writes the file beside its place, then renames it, so that it is there whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let bytes = self.to_bytes()?;
        crate::files::write_atomically(path, &bytes).map_err(|e| crate::files::unwritten("the identity", path, &e))
    }
}

/// The error is the rest of a sentence that begins "the identity `x`".
fn parse(bytes: &[u8]) -> std::result::Result<Identity, String> {
    if bytes.len() as u64 > MAX_BYTES {
        return Err("is larger than 16 MiB; a saved identity has some kilobytes".into());
    }
    let damaged = |e: safetensors::SafeTensorError| {
        format!("is no valid safetensors file: {}", crate::onnx::clean(&e.to_string()))
    };
    let file = SafeTensors::deserialize(bytes).map_err(damaged)?;
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(damaged)?;
    let embedding = floats(&file, "embedding", None)?.ok_or_else(|| {
        let mut names = file.names();
        names.sort_unstable();
        let names: Vec<String> = names.into_iter().take(5).map(crate::onnx::clean).collect();
        format!(
            "has no tensor `embedding`; it holds {}",
            if names.is_empty() { "nothing".into() } else { names.join(", ") }
        )
    })?;
    check_embedding(&embedding).map_err(|r| format!("cannot be used: its embedding {r}"))?;
    let kps =
        floats(&file, "kps", Some(10))?.map(|v| -> Keypoints { std::array::from_fn(|p| [v[2 * p], v[2 * p + 1]]) });
    if let Some(kps) = &kps {
        check_keypoints(kps).map_err(|e| format!("cannot be used: {e}"))?;
    }
    let bbox = floats(&file, "bbox", Some(4))?.map(|v| [v[0], v[1], v[2], v[3]]);
    if bbox.is_some_and(|b| b.iter().any(|v| !v.is_finite())) {
        return Err("cannot be used: its bbox is not finite".into());
    }
    let det_score = floats(&file, "det_score", Some(1))?.map(|v| v[0]);
    let metadata = header.metadata().clone().unwrap_or_default();
    let size = metadata.get("photo_size").and_then(|s| {
        let (w, h) = s.split_once('x')?;
        let side = |s: &str| s.parse::<u32>().ok().filter(|v| (1..=1 << 20).contains(v));
        Some((side(w)?, side(h)?))
    });
    Ok(Identity {
        embedding,
        kps,
        bbox,
        det_score,
        size,
        encoder: metadata.get("recogniser_sha256").map(|s| crate::onnx::clean(s)),
        version: metadata.get("sameface").map(|s| crate::onnx::clean(s)),
    })
}

/// A tensor as 32-bit floats; `count` is how many values it must have.
fn floats(file: &SafeTensors, name: &str, count: Option<usize>) -> std::result::Result<Option<Vec<f32>>, String> {
    let Ok(view) = file.tensor(name) else { return Ok(None) };
    let data = view.data();
    let values: Vec<f32> = match view.dtype() {
        Dtype::F32 => data.as_chunks::<4>().0.iter().map(|v| f32::from_le_bytes(*v)).collect(),
        Dtype::F64 => data.as_chunks::<8>().0.iter().map(|v| f64::from_le_bytes(*v) as f32).collect(),
        Dtype::F16 => data.as_chunks::<2>().0.iter().map(|v| half::f16::from_le_bytes(*v).to_f32()).collect(),
        Dtype::BF16 => data.as_chunks::<2>().0.iter().map(|v| half::bf16::from_le_bytes(*v).to_f32()).collect(),
        kind => return Err(format!("stores `{name}` as {kind:?}; floating point is expected")),
    };
    match count {
        Some(n) if values.len() != n => {
            Err(format!("has `{name}` of shape {:?}; {n} values are expected", view.shape()))
        }
        _ => Ok(Some(values)),
    }
}
