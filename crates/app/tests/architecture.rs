//! The invariants of docs/ARCHITECTURE.md, read from the manifests and the sources.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Crates of this workspace and the libraries that an invariant speaks of.
const LAYERS: [&str; 11] =
    ["app", "cast", "compare", "engine", "faces", "hub", "mini", "nets", "tensor", "weights", "training"];

/// The names under `[dependencies]` of a crate, without those for tests.
fn dependencies(name: &str) -> BTreeSet<String> {
    let manifest = std::fs::read_to_string(root().join("crates").join(name).join("Cargo.toml")).unwrap();
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            let section = line.trim_matches(['[', ']']);
            inside = section.ends_with("dependencies") && !section.contains("dev-");
            if let Some((before, dependency)) = section.rsplit_once("dependencies.")
                && !before.contains("dev-")
            {
                names.insert(dependency.to_string());
            }
        } else if inside && !line.is_empty() && !line.starts_with('#') {
            let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
            names.insert(name.to_string());
        }
    }
    names
}

/// The Rust sources of a crate without its tests, comments stripped: (path, text).
fn sources(name: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("crates").join(name).join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
                let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
                found.push((path, code.collect::<Vec<_>>().join("\n")));
            }
        }
    }
    found
}

/// Fails with every place where one of the words stands in a crate.
fn forbid(name: &str, words: &[&str], why: &str) {
    for (path, code) in sources(name) {
        for (number, line) in code.lines().enumerate() {
            let word = words.iter().find(|word| line.contains(**word));
            assert!(word.is_none(), "{}:{}: `{}`: {why}", path.display(), number + 1, line.trim());
        }
    }
}

#[test]
fn layers_depend_downwards_only() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("tensor", &[][..]),
        ("weights", &[]),
        ("hub", &[]),
        ("cast", &[]),
        ("faces", &[]),
        ("nets", &["tensor", "weights"]),
        ("engine", &["faces", "nets", "tensor", "weights"]),
        ("mini", &[]),
        ("compare", &["engine", "faces"]),
        ("app", &["cast", "compare", "engine", "faces", "hub", "mini"]),
    ]);
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        let allowed =
            allowed.get(name.as_str()).unwrap_or_else(|| panic!("`{name}` has no place among the layers yet"));
        let ours = dependencies(&name);
        let ours = ours.iter().filter(|dependency| LAYERS.contains(&dependency.as_str()));
        for dependency in ours {
            assert!(allowed.contains(&dependency.as_str()), "`{name}` may not depend on `{dependency}`");
        }
    }
}

#[test]
fn tensor_knows_no_model_and_weights_no_layer() {
    let models = ["unet", "UNet", "ControlNet", "controlnet", "InstantID", "Resampler", "safetensors"];
    forbid("tensor", &models, "tensor knows no model");
    forbid("weights", &["fn forward", "Conv2d", "Linear {", "tensor::"], "weights knows no layer");
}

#[test]
fn nets_know_no_files_prompts_or_randomness() {
    let words = ["std::fs", "std::path", "std::env", "File::open", "tokenizer", "Tokenizer", "random::", "rand::"];
    forbid("nets", &words, "a net is its fields and `forward`");
}

#[test]
fn the_engine_is_silent_and_reads_no_surroundings() {
    let words =
        ["println!", "eprintln!", "print!(", "eprint!(", "std::env", "env::var", "stdout()", "stderr()", "indicatif"];
    for name in ["compare", "mini", "engine", "nets", "tensor", "weights", "faces", "hub"] {
        let words = words.iter().filter(|word| !(name == "tensor" && word.contains("env")));
        forbid(name, &words.copied().collect::<Vec<_>>(), "libraries print nothing and read no environment");
    }
    for name in ["compare", "mini", "engine", "nets", "tensor", "weights", "faces"] {
        let known = dependencies(name);
        for http in ["ureq", "hyper", "axum", "reqwest", "tokio", "indicatif", "clap"] {
            assert!(!known.contains(http), "`{name}` depends on `{http}`: it knows no HTTP and no terminal");
        }
    }
}

#[test]
fn the_app_knows_no_tensors() {
    forbid("app", &["tensor::", "weights::", "nets::", "Tensor"], "app knows no tensors");
}

/// A variant is an optional part inside a small type. What can be seen of a copy from outside is that two files of the
/// networks or the engine share most of their lines.
#[test]
fn variants_are_not_copied_files() {
    let lines = |text: &str| -> BTreeSet<String> {
        text.lines().map(str::trim).filter(|line| line.len() > 20).map(str::to_string).collect()
    };
    let files: Vec<_> =
        ["nets", "engine"].into_iter().flat_map(sources).map(|(path, code)| (path, lines(&code))).collect();
    for (index, (path, mine)) in files.iter().enumerate() {
        for (other, theirs) in &files[index + 1..] {
            let smaller = mine.len().min(theirs.len());
            let shared = mine.intersection(theirs).count();
            assert!(
                smaller < 30 || 2 * shared < smaller,
                "{} and {} share {shared} of {smaller} lines",
                path.display(),
                other.display()
            );
        }
    }
}

#[test]
fn the_checks_run_the_readmes_test_command() {
    let command = "cargo test --workspace";
    for page in ["README.md", ".ci/run"] {
        let text = std::fs::read_to_string(root().join(page)).unwrap();
        assert!(text.contains(command), "{page} does not say `{command}`");
    }
}

#[test]
fn the_readme_and_the_map_name_what_exists() {
    for page in ["README.md", "docs/ARCHITECTURE.md"] {
        let text = std::fs::read_to_string(root().join(page)).unwrap();
        for part in text.split('`').skip(1).step_by(2) {
            let path = part.trim_end_matches('/');
            let is_path = ["crates/", "docs/", "reference/", "training/"].iter().any(|start| path.starts_with(start));
            if is_path && !path.contains(['*', ' ', '{']) {
                assert!(root().join(path).exists(), "{page} names `{path}`, which does not exist");
            }
        }
    }
}
