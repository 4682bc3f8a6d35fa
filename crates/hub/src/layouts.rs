//! Where other programs keep these files, as patterns below a folder of models: the official demo's, ComfyUI's,
//! A1111's and insightface's. Capitals do not matter, `*` stands for any part of one name.

use std::path::{Path, PathBuf};

use crate::Role;

impl Role {
    /// Patterns, best first. A pattern ending in a file's name finds the file, another one the folder.
    fn patterns(self) -> &'static [&'static str] {
        match self {
            Role::Base => &[
                "sdxl-base",
                "stable-diffusion-xl-base-1.0",
                "stabilityai/stable-diffusion-xl-base-1.0",
                "diffusers/stable-diffusion-xl-base-1.0",
                "checkpoints/sd_xl_base_1.0.safetensors",
                "checkpoints/sd_xl_base_1.0*.safetensors",
                "stable-diffusion/sd_xl_base_1.0.safetensors",
                "stable-diffusion/sd_xl_base_1.0*.safetensors",
                "checkpoints/*.safetensors",
                "stable-diffusion/*.safetensors",
            ],
            Role::IdentityNet => &[
                "controlnetmodel",
                "instantid/controlnetmodel",
                "instantx/instantid/controlnetmodel",
                "checkpoints/controlnetmodel",
                "controlnet/control_instant_id_sdxl.safetensors",
                "controlnet/instant*id*/diffusion_pytorch_model.safetensors",
                "controlnet/*instant*id*.safetensors",
                "controlnet/*instant*id*.bin",
                "instantid/diffusion_pytorch_model.safetensors",
            ],
            Role::IpAdapter => &[
                "ip-adapter.bin",
                "ip-adapter.safetensors",
                "instantid/ip-adapter.bin",
                "instantid/ip-adapter.safetensors",
                "instantid/*ip*adapter*",
                "instantx/instantid/ip-adapter.bin",
                "checkpoints/ip-adapter.bin",
                "controlnet/ip-adapter_instant_id_sdxl.bin",
                "controlnet/ip-adapter_instant_id_sdxl.safetensors",
                "ipadapter/*instant*id*",
            ],
            Role::FaceModels => &[
                "antelopev2",
                "antelopev2/antelopev2",
                "models/antelopev2",
                "models/antelopev2/antelopev2",
                "insightface/models/antelopev2",
                "insightface/models/antelopev2/antelopev2",
                "insightface/antelopev2",
                "extensions/sd-webui-controlnet/annotator/downloads/insightface/models/antelopev2",
                "faces",
            ],
        }
    }

    /// Folders in which a file of a given name is looked for.
    fn shelves(self) -> &'static [&'static str] {
        match self {
            Role::Base => &["", "checkpoints", "stable-diffusion", "diffusers"],
            Role::IdentityNet => &["", "controlnet", "instantid"],
            Role::IpAdapter => &["", "instantid", "ipadapter", "controlnet"],
            Role::FaceModels => &["", "insightface/models", "insightface"],
        }
    }
}

/// The thing itself, or what a folder of models holds for this role. `Err` names the candidates if the best pattern
/// has several.
pub(crate) fn settle(role: Role, path: &Path) -> Result<Option<PathBuf>, Vec<PathBuf>> {
    if is_it(role, path) {
        return Ok(Some(path.to_path_buf()));
    }
    if !path.is_dir() {
        return Ok(None);
    }
    // ComfyUI and A1111 keep all of it one level down.
    for root in [path.to_path_buf(), path.join("models")] {
        for pattern in role.patterns() {
            let mut found = matches(&root, pattern);
            found.retain(|path| is_it(role, path) && (path.is_dir() || holds_tensors(path)));
            match found.len() {
                0 => {}
                1 => return Ok(found.pop()),
                _ => return Err(found),
            }
        }
    }
    Ok(None)
}

/// What a folder of models holds under this name, with or without its ending.
pub(crate) fn named(role: Role, root: &Path, name: &str) -> Option<PathBuf> {
    if name.is_empty() || name.contains(['*', '\\']) || name.split('/').any(|part| part == "..") {
        return None;
    }
    let endings = ["", ".safetensors", ".ckpt", ".bin"];
    role.shelves().iter().find_map(|shelf| {
        endings.iter().find_map(|ending| {
            let pattern = format!("{shelf}/{name}{ending}").to_lowercase();
            let found = matches(root, pattern.trim_start_matches('/')).into_iter();
            found.filter_map(|path| settle(role, &path).ok().flatten()).next()
        })
    })
}

/// Whether a folder that is not quite it is near enough for its loader to say what it lacks.
pub(crate) fn nearly(role: Role, path: &Path) -> bool {
    role == Role::FaceModels && names(path).iter().any(|name| name.ends_with(".onnx"))
}

/// Whether a path can be loaded as this part of the stack, judged by the names in it alone.
fn is_it(role: Role, path: &Path) -> bool {
    match role {
        Role::FaceModels => names(path).iter().filter(|name| name.ends_with(".onnx")).count() >= 2,
        _ if path.is_file() => true,
        Role::Base => path.join("model_index.json").is_file() || path.join("unet").is_dir(),
        Role::IdentityNet => {
            let weights = |name: &String| is_weights(name) && !name.contains("adapter");
            !path.join("model_index.json").is_file() && names(path).iter().any(weights)
        }
        Role::IpAdapter => false,
    }
}

/// What a folder that [`settle`] found still needs before it can be loaded, in words.
pub(crate) fn lacks(role: Role, path: &Path) -> Option<String> {
    if role != Role::Base || !path.is_dir() {
        return None;
    }
    let parts = ["unet", "vae", "text_encoder", "text_encoder_2"];
    let index = std::fs::read_to_string(path.join("model_index.json")).unwrap_or_default();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap_or_default();
    let asked = |part: &str| match index.as_object() {
        Some(index) => index.get(part).is_some_and(|kind| kind[1].is_string()),
        None => part != "text_encoder_2",
    };
    let empty = |part: &str| !names(&path.join(part)).iter().any(|name| is_weights(name));
    let missing = parts.into_iter().filter(|part| asked(part) && empty(part));
    let missing: Vec<String> = missing.map(|part| format!("the weights in `{part}`")).collect();
    (!missing.is_empty()).then(|| missing.join(" and "))
}

fn holds_tensors(file: &Path) -> bool {
    let ending = file.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    ["safetensors", "bin", "ckpt", "pt", "pth"].contains(&ending.as_str())
}

fn is_weights(name: &str) -> bool {
    [".safetensors", ".bin", ".safetensors.index.json"].iter().any(|ending| name.ends_with(ending))
}

/// The names in a folder, in lower case. A dangling link is no name.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let real = entries.filter(|entry| entry.path().exists());
    real.map(|entry| entry.file_name().to_string_lossy().to_lowercase()).collect()
}

/// The paths below `root` that fit a pattern, sorted.
fn matches(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![root.to_path_buf()];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        let mut next = Vec::new();
        for folder in &found {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().to_lowercase();
                if fits(&name, part) && entry.path().exists() {
                    next.push(entry.path());
                }
            }
        }
        found = next;
    }
    found.sort();
    found
}

/// Whether a name fits a pattern with `*`.
fn fits(name: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files, each of one byte.
    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        root
    }

    #[test]
    fn other_programs_layouts_are_known() {
        let onnx = |folder: &str| ["scrfd_10g_bnkps.onnx", "glintr100.onnx"].map(|name| format!("{folder}/{name}"));
        let weights = "diffusion_pytorch_model.safetensors";
        for (role, files, wanted) in [
            (Role::IpAdapter, vec!["models/instantid/ip-adapter.bin".into()], "models/instantid/ip-adapter.bin"),
            (
                Role::IpAdapter,
                vec!["models/ControlNet/ip-adapter_instant_id_sdxl.bin".into()],
                "models/ControlNet/ip-adapter_instant_id_sdxl.bin",
            ),
            (
                Role::IdentityNet,
                vec!["ControlNet/control_instant_id_sdxl.safetensors".into(), "ControlNet/canny.safetensors".into()],
                "ControlNet/control_instant_id_sdxl.safetensors",
            ),
            (
                Role::IdentityNet,
                vec![format!("controlnet/instantid/{weights}")],
                "controlnet/instantid/diffusion_pytorch_model.safetensors",
            ),
            (Role::IdentityNet, vec![format!("checkpoints/ControlNetModel/{weights}")], "checkpoints/ControlNetModel"),
            (Role::IdentityNet, vec![format!("ControlNetModel/{weights}"), "ip-adapter.bin".into()], "ControlNetModel"),
            (Role::IdentityNet, vec![weights.into(), "config.json".into()], ""),
            (
                Role::FaceModels,
                onnx("models/insightface/models/antelopev2").to_vec(),
                "models/insightface/models/antelopev2",
            ),
            (Role::FaceModels, onnx("antelopev2/antelopev2").to_vec(), "antelopev2/antelopev2"),
            (Role::FaceModels, onnx("models/antelopev2").to_vec(), "models/antelopev2"),
            (Role::FaceModels, onnx("faces").to_vec(), "faces"),
            (Role::Base, vec!["checkpoints/juggernautXL.safetensors".into()], "checkpoints/juggernautXL.safetensors"),
            (Role::Base, vec!["models/Stable-diffusion/a.safetensors".into()], "models/Stable-diffusion/a.safetensors"),
            (Role::Base, vec!["model_index.json".into(), "unet/config.json".into()], ""),
        ] {
            let files: Vec<&str> = files.iter().map(String::as_str).collect();
            let root = tree(&files);
            let wanted = if wanted.is_empty() { root.path().to_path_buf() } else { root.path().join(wanted) };
            assert_eq!(settle(role, root.path()), Ok(Some(wanted)), "{role:?} {files:?}");
        }
    }

    #[test]
    fn several_candidates_are_told_not_guessed() {
        let root = tree(&["checkpoints/a.safetensors", "checkpoints/b.safetensors"]);
        assert_eq!(settle(Role::Base, root.path()).unwrap_err().len(), 2);
        assert_eq!(named(Role::Base, root.path(), "B"), Some(root.path().join("checkpoints/b.safetensors")));
        assert_eq!(named(Role::Base, root.path(), "../b"), None);
        assert_eq!(settle(Role::IpAdapter, root.path()), Ok(None));
    }

    #[test]
    fn a_folder_without_weights_is_incomplete() {
        let root = tree(&["unet/config.json", "vae/a.safetensors", "text_encoder/a.bin"]);
        assert_eq!(lacks(Role::Base, root.path()).unwrap(), "the weights in `unet`");
    }

    #[test]
    fn patterns() {
        for (name, pattern, answer) in [
            ("a.bin", "a.bin", true),
            ("a.bin", "*.bin", true),
            ("instantid-controlnet.safetensors", "*instant*id*.safetensors", true),
            ("control_instant_id_sdxl.safetensors", "*instant*id*.safetensors", true),
            ("canny.safetensors", "*instant*id*.safetensors", false),
            ("ab", "a*b*", true),
            ("a", "a*a", false),
        ] {
            assert_eq!(fits(name, pattern), answer, "{name} {pattern}");
        }
    }
}
