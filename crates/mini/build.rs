//! Lists the files of `models/mini` as a table of `include_bytes!`, with one digest over all of them. Without the
//! folder the table is empty, and the program builds without a built-in model.

use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Without this file the folder holds no model.
const INDEX: &str = "model_index.json";

fn main() -> std::io::Result<()> {
    let crate_folder = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    println!("cargo::rerun-if-env-changed=SAMEFACE_MINI");
    let folder =
        std::env::var_os("SAMEFACE_MINI").map_or_else(|| crate_folder.join("../../models/mini"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut files = Vec::new();
    if folder.join(INDEX).is_file() {
        collect(&folder.canonicalize()?, String::new(), &mut files)?;
    }
    files.sort();
    let mut digest = Sha256::new();
    let mut table = String::from("pub(crate) const FILES: &[(&str, &[u8])] = &[\n");
    for (name, path) in &files {
        let bytes = std::fs::read(path)?;
        digest.update((name.len() as u64).to_le_bytes());
        digest.update(name);
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(&bytes);
        let _ = writeln!(table, "    ({name:?}, include_bytes!({:?})),", path.display().to_string());
    }
    let hex: String = digest.finalize().iter().map(|b| format!("{b:02x}")).collect();
    let _ = writeln!(table, "];\npub(crate) const DIGEST: &str = \"{hex}\";");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    std::fs::write(out.join("table.rs"), table)
}

/// Every file below a folder with its name relative to it, with slashes on every system; hidden files stay out.
fn collect(folder: &Path, prefix: String, files: &mut Vec<(String, PathBuf)>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let path = entry.path();
        match path.is_dir() {
            true => collect(&path, format!("{prefix}{name}/"), files)?,
            false => files.push((format!("{prefix}{name}"), path)),
        }
    }
    Ok(())
}
