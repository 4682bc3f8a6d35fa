//! From names to paths: given ones, `$SAMEFACE_HOME/models`, the hub's cache; and the sentences when there is nothing.

use std::path::{Path, PathBuf};

use hub::{HubConfig, Place, Role, list, locate, path_of};

const INSTANTID: &str = "cache/models--InstantX--InstantID/snapshots/57b32dfee076092ad2930c71fd6d439c2c3b1820";
const OTHER: &str = "cache/models--InstantX--InstantID/snapshots/0000000000000000000000000000000000000001";
const MIRROR: &str = "cache/models--MonsterMMORPG--InstantID_Models/snapshots/397cafa6d8310e96e302e96528c20a4c92a884f2";
const SDXL: &str =
    "cache/models--stabilityai--stable-diffusion-xl-base-1.0/snapshots/462165984030d82259a11f4367a4eed129e94a7b";
const NET: &str = "ControlNetModel/diffusion_pytorch_model.safetensors";
const INDEX: &str = r#"{"unet": ["diffusers", "X"], "vae": ["diffusers", "X"], "feature_extractor": [null, null]}"#;

struct Machine {
    root: tempfile::TempDir,
}

impl Machine {
    fn with(files: &[String]) -> Machine {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let content = if file.ends_with("model_index.json") { INDEX } else { "{}" };
            std::fs::write(path, content).unwrap();
        }
        Machine { root }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn config(&self) -> HubConfig {
        let path = |path: &str| Some(self.path(path).to_string_lossy().into_owned());
        let vars = |name: &str| match name {
            "SAMEFACE_HOME" => path("home"),
            "HF_HUB_CACHE" => path("cache"),
            _ => None,
        };
        HubConfig::from_vars(vars).unwrap()
    }
}

fn files(folder: &str, names: &[&str]) -> Vec<String> {
    names.iter().map(|name| Path::new(folder).join(name).to_string_lossy().into_owned()).collect()
}

#[test]
fn parts_are_found_in_their_order() {
    let face = ["scrfd_10g_bnkps.onnx", "glintr100.onnx"];
    for (role, tree, given, path, place) in [
        // The cache alone; the fixed commit before others.
        (Role::IdentityNet, files(INSTANTID, &[NET]), None, format!("{INSTANTID}/ControlNetModel"), Place::Cache),
        (Role::IpAdapter, files(OTHER, &["ip-adapter.bin"]), None, format!("{OTHER}/ip-adapter.bin"), Place::Cache),
        (
            Role::IpAdapter,
            [files(OTHER, &["ip-adapter.bin"]), files(INSTANTID, &["ip-adapter.bin"])].concat(),
            None,
            format!("{INSTANTID}/ip-adapter.bin"),
            Place::Cache,
        ),
        (
            Role::FaceModels,
            files(&format!("{MIRROR}/models/antelopev2"), &face),
            None,
            format!("{MIRROR}/models/antelopev2"),
            Place::Cache,
        ),
        (
            Role::Base,
            files(SDXL, &["model_index.json", "unet/a.safetensors", "vae/a.safetensors"]),
            None,
            SDXL.into(),
            Place::Cache,
        ),
        // SAMEFACE_HOME before the cache.
        (
            Role::IpAdapter,
            [files(INSTANTID, &["ip-adapter.bin"]), files("home/models/instantid", &["ip-adapter.bin"])].concat(),
            None,
            "home/models/instantid/ip-adapter.bin".into(),
            Place::Home,
        ),
        // Who names ComfyUI's folder of models itself means the same.
        (
            Role::Base,
            files("home/checkpoints", &["a.safetensors"]),
            None,
            "home/checkpoints/a.safetensors".into(),
            Place::Home,
        ),
        // Names.
        (
            Role::FaceModels,
            files(&format!("{MIRROR}/models/antelopev2"), &face),
            Some("antelopev2"),
            format!("{MIRROR}/models/antelopev2"),
            Place::Cache,
        ),
        (
            Role::IdentityNet,
            files(INSTANTID, &[NET]),
            Some("InstantX/InstantID"),
            format!("{INSTANTID}/ControlNetModel"),
            Place::Cache,
        ),
        (
            Role::Base,
            files("home/models/checkpoints", &["b.safetensors", "a.safetensors"]),
            Some("b"),
            "home/models/checkpoints/b.safetensors".into(),
            Place::Home,
        ),
    ] {
        let machine = Machine::with(&tree);
        let found = locate(&machine.config(), role, given).unwrap_or_else(|error| panic!("{tree:?}: {error}"));
        assert_eq!((found.path, found.place), (machine.path(&path), place), "{tree:?}");
    }
}

#[test]
fn a_given_path_wins_and_is_looked_into() {
    let machine = Machine::with(&files("here/models/instantid", &["ip-adapter.bin"]));
    let given = machine.path("here").to_string_lossy().into_owned();
    let found = locate(&machine.config(), Role::IpAdapter, Some(&given)).unwrap();
    assert_eq!(found.path, machine.path("here/models/instantid/ip-adapter.bin"));
    assert_eq!(found.place, Place::Given);
}

#[test]
fn what_is_lacking_is_said() {
    for (role, tree, given, said, by_user) in [
        (Role::IdentityNet, vec![], None, "no IdentityNet was found (looked in", false),
        (
            Role::IdentityNet,
            vec![],
            None,
            "`sameface models pull instantid` brings it, or name one with --identitynet",
            false,
        ),
        (
            Role::Base,
            vec![],
            Some("/no/such/folder"),
            "--model `/no/such/folder` does not exist; it must be a diffusers folder",
            true,
        ),
        (
            Role::Base,
            vec![],
            Some("sdxl-base"),
            "is not on this machine; `sameface models pull sdxl-base` brings it",
            true,
        ),
        (Role::Base, vec![], Some("antelopev2"), "not a base model", true),
        (Role::Base, vec![], Some("SG161222/RealVisXL_V5.0"), "`sameface models pull SG161222/RealVisXL_V5.0`", true),
        (
            Role::Base,
            files("home/models/checkpoints", &["a.safetensors", "b.safetensors"]),
            None,
            "several files that could be the base model (checkpoints/a.safetensors, checkpoints/b.safetensors)",
            true,
        ),
        (
            Role::Base,
            files(SDXL, &["model_index.json", "vae/a.safetensors"]),
            None,
            "lacks the weights in `unet`",
            false,
        ),
    ] {
        let machine = Machine::with(&tree);
        let error = locate(&machine.config(), role, given).expect_err(said);
        assert!(error.to_string().contains(said), "{error}");
        assert_eq!(error.is_given(), by_user, "{error}");
    }
    let machine = Machine::with(&files("half", &["model_index.json", "vae/a.safetensors"]));
    let given = machine.path("half").to_string_lossy().into_owned();
    let error = locate(&machine.config(), Role::Base, Some(&given)).unwrap_err();
    assert!(
        error.is_given() && error.to_string().ends_with("is incomplete: it lacks the weights in `unet`"),
        "{error}"
    );
    let machine = Machine::with(&files("faces", &["readme.txt"]));
    let given = machine.path("faces").to_string_lossy().into_owned();
    let error = locate(&machine.config(), Role::FaceModels, Some(&given)).unwrap_err().to_string();
    assert!(error.ends_with("is not a folder with a detector and an encoder as .onnx files, or a name"), "{error}");
}

#[test]
fn the_list_tells_whole_from_half() {
    let machine = Machine::with(&files(INSTANTID, &["ControlNetModel/config.json", "ip-adapter.bin"]));
    let config = machine.config();
    let instantid = list(&config).into_iter().find(|listing| listing.entry.name == "instantid").unwrap();
    // The adapter is there under its name, but not with its size.
    assert_eq!((instantid.path, instantid.missing), (Some(machine.path(INSTANTID)), 2));
    let error = path_of(&config, "instantid").unwrap_err().to_string();
    assert!(error.contains("lacks 2 of 3 files") && error.contains("pull instantid"), "{error}");
    assert!(path_of(&config, "antelopev2").unwrap_err().is_given());
    assert!(path_of(&config, "nonsense").unwrap_err().to_string().contains("no model is called `nonsense`"));
    assert_eq!(path_of(&config, "InstantX/InstantID").unwrap(), machine.path(INSTANTID));
}
