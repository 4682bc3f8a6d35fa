//! What a name stands for and what of it is lacking: decided before anything is fetched, and shown with its licences.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cache::{RepoCache, below, is_commit, is_file_path, is_repo, is_sha256};
use crate::catalog::{self, Entry};
use crate::http::Client;
use crate::{Error, HubConfig, Result};

/// A file that is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Its path, below the part's folder.
    pub path: String,
    /// Its size, where known.
    pub bytes: Option<u64>,
    /// The sha256 of its content, where known.
    pub sha256: Option<String>,
}

/// A repository at a commit, and the folder in it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct At {
    pub(crate) repo: String,
    pub(crate) revision: String,
    pub(crate) folder: String,
}

/// One model of a plan.
#[derive(Clone, Debug)]
pub struct Part {
    /// Its name, or `ORG/NAME`.
    pub name: String,
    /// What it is.
    pub about: String,
    /// The licence of its weights.
    pub licence: String,
    /// Its files.
    pub files: Vec<Wanted>,
    /// Where it lies, if all of it is there.
    pub here: Option<PathBuf>,
    /// Bytes to fetch.
    pub missing: u64,
    pub(crate) sources: Vec<At>,
}

impl Part {
    /// The size of all files together.
    pub fn bytes(&self) -> u64 {
        total(self.files.iter().filter_map(|file| file.bytes))
    }

    /// The repository that is asked first.
    pub fn repo(&self) -> &str {
        self.sources.first().map_or("", |at| &at.repo)
    }

    fn of(entry: &Entry, cache: &Path) -> Part {
        let files = entry.files.iter().map(|file| Wanted {
            path: file.path.to_string(),
            bytes: Some(file.bytes),
            sha256: file.sha256.map(str::to_string),
        });
        let sources = entry.sources.iter().map(|source| At {
            repo: source.repo.to_string(),
            revision: source.revision.to_string(),
            folder: source.folder.to_string(),
        });
        let (name, about) = (entry.name.to_string(), entry.about.to_string());
        Part {
            name,
            about,
            licence: entry.licence.to_string(),
            files: files.collect(),
            here: None,
            missing: 0,
            sources: sources.collect(),
        }
        .looked_up(cache)
    }

    /// Sees what is in the cache already.
    fn looked_up(mut self, cache: &Path) -> Part {
        self.here = self.sources.iter().find_map(|at| {
            let snapshots = RepoCache::new(cache, &at.repo).snapshots(Some(&at.revision));
            let folders = snapshots.into_iter().map(|snapshot| below(&snapshot, &at.folder));
            folders.into_iter().find(|folder| self.files.iter().all(|file| is_here(folder, file)))
        });
        self.missing = match (&self.here, self.sources.first()) {
            (None, Some(at)) => total(self.files.iter().map(|file| lacking(cache, at, file))),
            _ => 0,
        };
        self
    }
}

/// A sum of sizes, which a server can make as large as it likes.
fn total(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

/// Whether a file is there; one whose content is known must have its size.
pub(crate) fn is_here(folder: &Path, file: &Wanted) -> bool {
    let size = file.bytes.filter(|_| file.sha256.is_some());
    std::fs::metadata(folder.join(&file.path))
        .is_ok_and(|data| data.is_file() && size.is_none_or(|size| data.len() == size))
}

/// The bytes still to come of a file: large ones name their partial file by their checksum.
fn lacking(cache: &Path, at: &At, file: &Wanted) -> u64 {
    let repo = RepoCache::new(cache, &at.repo);
    if is_here(&repo.folder_at(&at.revision, &at.folder), file) {
        return 0;
    }
    let sum = file.sha256.as_deref().unwrap_or("-");
    let length = |path: PathBuf| std::fs::metadata(path).map_or(0, |data| data.len());
    let there = length(repo.partial(sum)).max(length(repo.blob(sum)));
    file.bytes.unwrap_or(0).saturating_sub(there)
}

/// What a pull will do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The models, the one asked for first.
    pub parts: Vec<Part>,
}

impl Plan {
    /// The size of all models that are not wholly here.
    pub fn lacking(&self) -> u64 {
        total(self.parts.iter().filter(|part| part.here.is_none()).map(Part::bytes))
    }

    /// Bytes to fetch.
    pub fn missing(&self) -> u64 {
        total(self.parts.iter().map(|part| part.missing))
    }
}

/// What `name` stands for: an entry of the catalogue with all that it needs, or `ORG/NAME`, for which the hub is asked.
pub fn plan(config: &HubConfig, name: &str) -> Result<Plan> {
    let name = name.trim();
    if catalog::entry(name).is_some() {
        let mut names = vec![name.to_string()];
        let mut parts: Vec<Part> = Vec::new();
        while let Some(entry) = names.pop().as_deref().and_then(catalog::entry) {
            if parts.iter().all(|part| part.name != entry.name) {
                parts.push(Part::of(entry, &config.cache));
                names.extend(entry.needs.iter().rev().map(|need| need.to_string()));
            }
        }
        return Ok(Plan { parts });
    }
    if !is_repo(name) {
        return Err(Error::UnknownModel { name: name.to_string(), known: catalog::names(None) });
    }
    if config.offline {
        return Err(Error::Offline { name: name.to_string() });
    }
    let client = Client::new(config)?;
    let info = client.patiently(name, &mut |_| Ok(()), || client.repo_info(name, "main"))?;
    Ok(Plan { parts: vec![described(&client, name, &info)?.looked_up(&config.cache)] })
}

/// A repository as the hub describes it.
fn described(client: &Client, repo: &str, info: &Value) -> Result<Part> {
    let revision = info["sha"].as_str().filter(|sha| is_commit(sha));
    let siblings = info["siblings"].as_array();
    let (Some(revision), Some(siblings)) = (revision, siblings) else {
        return Err(client.odd(repo, "its description lacks `sha` or `siblings`".to_string()));
    };
    let files: Vec<Wanted> = siblings
        .iter()
        .filter_map(|file| {
            let path = file["rfilename"].as_str().filter(|path| is_file_path(path))?;
            let sum = file["lfs"]["sha256"].as_str().filter(|sum| is_sha256(sum));
            Some(Wanted { path: path.to_string(), bytes: file["size"].as_u64(), sha256: sum.map(str::to_string) })
        })
        .collect();
    let files = needed(files);
    if files.is_empty() {
        let why = "it holds neither a diffusers folder nor safetensors weights".to_string();
        return Err(client.odd(repo, why));
    }
    let tag = info["tags"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .find_map(|tag| tag.strip_prefix("license:"));
    let licence = info["cardData"]["license_name"].as_str().filter(|name| *name != "other");
    let licence = licence.or(info["cardData"]["license"].as_str()).or(tag).unwrap_or("not stated");
    // It is shown on a terminal, which would obey control characters.
    let licence: String = licence.chars().filter(|c| !c.is_control()).take(200).collect();
    let page = format!("{}/{repo}", client.endpoint());
    Ok(Part {
        name: repo.to_string(),
        about: "a repository of the hub".to_string(),
        licence: format!("{licence} ({page})"),
        files,
        here: None,
        missing: 0,
        sources: vec![At { repo: repo.to_string(), revision: revision.to_string(), folder: String::new() }],
    })
}

/// The files of a repository that a network is loaded from: of a diffusers folder the configurations and one set of
/// weights for each component, half precision where there is a choice; else the weights at the top.
fn needed(files: Vec<Wanted>) -> Vec<Wanted> {
    let pipeline = files.iter().any(|file| file.path == "model_index.json");
    let folder = |path: &str| path.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_string());
    let all: Vec<(String, String)> = files.iter().map(|file| (folder(&file.path), file.path.clone())).collect();
    let beside = |path: &str, test: &dyn Fn(&str) -> bool| all.iter().any(|(f, p)| *f == folder(path) && test(p));
    let half = |path: &str| path.ends_with(".safetensors") && path.contains(".fp16");
    let whole = |path: &str| path.ends_with(".safetensors") && !path.contains(".fp16") && !path.contains(".non_ema");
    let wanted = |file: &Wanted| {
        let path = file.path.as_str();
        let depth = path.matches('/').count();
        let unused =
            ["safety_checker/", "feature_extractor/", "watermarker/"].iter().any(|name| path.starts_with(name));
        if unused || (pipeline && depth > 1) || (pipeline && depth == 0 && path != "model_index.json") {
            return false;
        }
        match path.rsplit('.').next().unwrap_or_default() {
            "json" => !path.contains("index.fp16") || beside(path, &half),
            "txt" => path.ends_with("merges.txt") || path.ends_with("vocab.txt"),
            "safetensors" if half(path) => true,
            "safetensors" => whole(path) && !beside(path, &half),
            "bin" => {
                let old = path.contains(".fp16") || path.contains("flax") || path.contains("openvino");
                !old && !beside(path, &half) && !beside(path, &whole)
            }
            "onnx" => !pipeline,
            _ => false,
        }
    };
    let chosen: Vec<bool> = files.iter().map(wanted).collect();
    files.into_iter().zip(chosen).filter_map(|(file, chosen)| chosen.then_some(file)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn files(paths: &[&str]) -> Vec<Wanted> {
        paths.iter().map(|path| Wanted { path: path.to_string(), bytes: Some(1), sha256: None }).collect()
    }

    #[test]
    fn one_set_of_weights_is_chosen() {
        let repo = files(&[
            "README.md",
            "model.safetensors",
            "model_index.json",
            "safety_checker/model.safetensors",
            "text_encoder/config.json",
            "text_encoder/flax_model.msgpack",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/model.safetensors",
            "text_encoder/pytorch_model.bin",
            "tokenizer/merges.txt",
            "unet/diffusion_pytorch_model.bin",
            "vae/diffusion_pytorch_model.bin",
            "vae/diffusion_pytorch_model.safetensors",
        ]);
        let paths: Vec<String> = needed(repo).into_iter().map(|file| file.path).collect();
        assert_eq!(
            paths,
            [
                "model_index.json",
                "text_encoder/config.json",
                "text_encoder/model.fp16.safetensors",
                "tokenizer/merges.txt",
                "unet/diffusion_pytorch_model.bin",
                "vae/diffusion_pytorch_model.safetensors",
            ]
        );
        let plain: Vec<String> =
            needed(files(&["a.png", "config.json", "lora.safetensors"])).into_iter().map(|file| file.path).collect();
        assert_eq!(plain, ["config.json", "lora.safetensors"]);
    }

    /// A mirror can answer anything: a plan that is shown in whole lines and stays in its folder, or a sentence.
    #[test]
    fn descriptions_at_random_are_planned_or_refused() {
        let config = HubConfig::from_vars(|name| (name == "HOME").then(|| "/nowhere".to_string())).unwrap();
        let client = Client::new(&config).unwrap();
        let long = "../".repeat(21) + "a";
        let values = [
            json!(null),
            json!(0),
            json!(-1),
            json!(u64::MAX),
            json!(1e300),
            json!(""),
            json!("a\u{1b}[2J\nb"),
            json!([]),
            json!({}),
            json!("../../x.safetensors"),
            json!("x\u{7}.safetensors"),
            json!(long),
            json!(true),
            json!(["license:\n"]),
        ];
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as usize % n
        };
        let mut planned = 0;
        for _ in 0..3000 {
            let file = |name: &str| json!({"rfilename": name, "size": u64::MAX, "lfs": {"sha256": "a".repeat(64)}});
            let mut info = json!({
                "sha": "0".repeat(40), "tags": ["license:mit"], "cardData": {"license": "mit", "license_name": "mit"},
                "siblings": [file("model_index.json"), file("unet/a.safetensors"), file("vae/b.safetensors")],
            });
            for _ in 0..1 + below(3) {
                let value = values[below(values.len())].clone();
                let i = below(3);
                match below(7) {
                    0 => info["sha"] = value,
                    1 => info["tags"] = value,
                    2 => info["cardData"] = value,
                    3 => info["siblings"] = value,
                    which => match info["siblings"].get_mut(i) {
                        Some(Value::Object(file)) => {
                            file.insert(["rfilename", "size", "lfs"][which - 4].into(), value);
                        }
                        _ => continue,
                    },
                }
            }
            match described(&client, "a/b", &info) {
                Ok(part) => {
                    let part = part.looked_up(Path::new("/nowhere"));
                    assert!(part.bytes() >= part.missing && !part.licence.contains(char::is_control), "{info}");
                    assert!(part.files.iter().all(|file| is_file_path(&file.path)), "{info}");
                    assert!(part.files.iter().flat_map(|file| &file.sha256).all(|sum| is_sha256(sum)), "{info}");
                    planned += 1;
                }
                Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
            }
        }
        assert!(planned > 1000, "{planned}");
    }

    #[test]
    fn a_name_brings_what_it_needs() {
        let config = HubConfig::from_vars(|name| (name == "HOME").then(|| "/nowhere".to_string())).unwrap();
        let names: Vec<String> = plan(&config, "instantid").unwrap().parts.into_iter().map(|part| part.name).collect();
        assert_eq!(names, ["instantid", "antelopev2", "sdxl-base"]);
        assert!(matches!(plan(&config, "sd 15"), Err(Error::UnknownModel { .. })));
    }
}
