//! diffusers' folders: `model_index.json` with a folder per component, each with a `config.json` and weights in one file
//! or in shards.
//!
//! File names inside the folder's own JSON are untrusted and must be plain names in that folder. Symbolic links are
//! followed, since the hub's cache consists of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Quoted, Result};
use crate::json::read_json;
use crate::table::{Entry, Weights};

const MOST_SHARDS: usize = 512;

/// A folder that diffusers' `save_pretrained` wrote for a whole pipeline.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    index: serde_json::Map<String, Value>,
}

impl Folder {
    /// Whether `path` is such a folder.
    pub fn is_at(path: &Path) -> bool {
        path.join("model_index.json").is_file()
    }

    /// Reads `model_index.json`.
    ///
    /// # Errors
    /// [`Error::Folder`] without it, [`Error::Malformed`] if it is no JSON object.
    pub fn open(path: &Path) -> Result<Folder> {
        let file = path.join("model_index.json");
        if !file.is_file() {
            let reason = match path.exists() {
                true => "it has no model_index.json",
                false => "it does not exist",
            };
            return Err(Error::Folder { path: path.to_owned(), reason: reason.to_owned() });
        }
        match read_json(&file)? {
            Value::Object(index) => Ok(Folder { path: path.to_owned(), index }),
            _ => Err(Error::malformed(&file, "model index", "it is no JSON object")),
        }
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The pipeline's class, as `StableDiffusionXLPipeline`.
    pub fn class(&self) -> Option<&str> {
        self.index.get("_class_name")?.as_str()
    }

    /// Any other entry of `model_index.json`, such as `force_zeros_for_empty_prompt`.
    pub fn entry(&self, name: &str) -> Option<&Value> {
        self.index.get(name)
    }

    /// The names of the components that are present.
    pub fn components(&self) -> Vec<&str> {
        self.index.keys().map(String::as_str).filter(|name| self.has(name)).collect()
    }

    /// Whether the index lists this component and its folder is there.
    pub fn has(&self, name: &str) -> bool {
        let listed = self.index.get(name).and_then(Value::as_array).and_then(|class| class.get(1));
        listed.is_some_and(Value::is_string) && is_plain(name) && self.path.join(name).is_dir()
    }

    /// The folder of a component.
    ///
    /// # Errors
    /// [`Error::Folder`], naming the components that are there.
    pub fn component(&self, name: &str) -> Result<PathBuf> {
        if self.has(name) {
            return Ok(self.path.join(name));
        }
        let there = self.components().join(", ");
        let reason = format!("it has no component {name}; it has {}", if there.is_empty() { "none" } else { &there });
        Err(Error::Folder { path: self.path.clone(), reason })
    }

    /// A component's configuration: `config.json`, `scheduler_config.json` or `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`Error::Folder`] without one.
    pub fn config(&self, name: &str) -> Result<Value> {
        let path = self.component(name)?;
        let file = match name {
            "scheduler" => "scheduler_config.json",
            name if name.starts_with("tokenizer") => "tokenizer_config.json",
            _ => "config.json",
        };
        config(&path)?.ok_or_else(|| Error::Folder { path, reason: format!("it has no {file}") })
    }

    /// A component's weights.
    ///
    /// # Errors
    /// Those of [`Weights::open`].
    pub fn weights(&self, name: &str) -> Result<Weights> {
        open(&self.component(name)?)
    }
}

/// The configuration in a component's folder, if there is one.
///
/// # Errors
/// [`Error::Malformed`] if it is no JSON.
pub fn config(path: &Path) -> Result<Option<Value>> {
    let names = ["config.json", "scheduler_config.json", "tokenizer_config.json"];
    let found = names.iter().map(|name| path.join(name)).find(|path| path.is_file());
    found.map(|path| read_json(&path)).transpose()
}

/// Opens the weights in a component's folder: full precision before 16 bits, safetensors before pickles.
pub(crate) fn open(path: &Path) -> Result<Weights> {
    const FORMATS: [(&str, &[&str]); 2] = [
        ("safetensors", &["diffusion_pytorch_model", "model", "pytorch_model"]),
        ("bin", &["diffusion_pytorch_model", "pytorch_model", "model"]),
    ];
    for variant in ["", ".fp16", ".bf16"] {
        for (extension, stems) in FORMATS {
            for stem in stems {
                let whole = path.join(format!("{stem}{variant}.{extension}"));
                if whole.is_file() {
                    return crate::file::open(&whole);
                }
                let index = path.join(format!("{stem}.{extension}.index{variant}.json"));
                if index.is_file() {
                    return open_shards(path, &index);
                }
            }
        }
    }
    let entries = std::fs::read_dir(path).map_err(|e| Error::io(path, e))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "safetensors"));
    match files.as_slice() {
        [only] => crate::file::open(only),
        [] => {
            let reason = match Folder::is_at(path) {
                true => "it is a whole pipeline; name one of its components",
                false => "it has neither diffusion_pytorch_model nor model as .safetensors or .bin",
            };
            Err(Error::Folder { path: path.to_owned(), reason: reason.to_owned() })
        }
        _ => {
            let reason = format!("it has {} safetensors files; name one", files.len());
            Err(Error::Folder { path: path.to_owned(), reason })
        }
    }
}

/// Opens all files that an index lists and checks that each tensor is where it says.
fn open_shards(path: &Path, index: &Path) -> Result<Weights> {
    let bad = |reason: String| Error::malformed(index, "shard index", reason);
    let json = read_json(index)?;
    let map = json.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| bad("it has no weight_map".into()))?;
    let mut shards = BTreeSet::new();
    for file in map.values() {
        let file = file.as_str().ok_or_else(|| bad("a file name is no string".into()))?;
        if !is_plain(file) {
            return Err(bad(format!("{} is not the name of a file in this folder", Quoted(file))));
        }
        shards.insert(file);
    }
    if shards.len() > MOST_SHARDS {
        return Err(bad(format!("it lists {} files; at most {MOST_SHARDS} are read", shards.len())));
    }
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    for shard in shards {
        let weights = crate::file::open(&path.join(shard))?;
        for (name, entry) in weights.entries() {
            if map.get(name).and_then(Value::as_str) != Some(shard) {
                return Err(bad(format!("it does not list {}, which is in {shard}", Quoted(name))));
            }
            entries.insert(name.clone(), entry.clone());
        }
    }
    if let Some(missing) = map.keys().find(|name| !entries.contains_key(*name)) {
        return Err(bad(format!("it lists {}, which none of its files holds", Quoted(missing))));
    }
    Ok(Weights::new(&path.display().to_string(), entries, BTreeMap::new()))
}

/// One component, and none that leads elsewhere on any system.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) && !name.contains(['/', '\\', ':', '\0'])
}
