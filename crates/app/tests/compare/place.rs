//! A folder for one test, and the program in it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use faces::Photo;
use serde_json::Value;

pub(crate) fn fixture(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path).to_string_lossy().into_owned()
}

/// Whether the program carries the miniature models.
pub(crate) fn is_built_in() -> bool {
    text(&Place::new().run(&["models", "list", "--json"]).stdout).contains("\"built_in\":true")
}

/// A folder for one test, with a judge of random weights.
pub(crate) struct Place(pub(crate) tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        fs::create_dir(place.path("judge")).unwrap();
        let encoder = fixture("faces/tests/fixtures/nets/plain/glintr100.onnx");
        fs::copy(encoder, place.path("judge/identity.onnx")).unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }

    pub(crate) fn run(&self, line: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sameface"));
        command.env_clear().env("HOME", self.0.path()).current_dir(self.0.path());
        command.args(line).stdin(Stdio::null()).output().unwrap()
    }

    pub(crate) fn json(&self, line: &[&str]) -> Value {
        let output = self.run(&[line, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{line:?}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// `compare` on the random stack.
    pub(crate) fn compare(&self, more: &[&str]) -> Output {
        self.run(&[&self.line()[..], more].concat())
    }

    pub(crate) fn line(&self) -> [&'static str; 15] {
        let stack = |name: &str| &*fixture(&format!("engine/tests/fixtures/instantid/folder/{name}")).leak();
        let models = fixture("faces/tests/fixtures/nets/plain").leak();
        [
            "compare",
            "--model",
            stack("model"),
            "--identitynet",
            stack("ControlNetModel"),
            "--ip-adapter",
            stack("ip-adapter.bin"),
            "--face-models",
            models,
            "--judge",
            "judge",
            "--size",
            "64x64",
            "--steps",
            "2",
        ]
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

pub(crate) fn pixels(path: &str) -> Vec<u8> {
    Photo::open(Path::new(path)).unwrap().image.into_raw()
}

/// The table without what differs from run to run.
pub(crate) fn timeless(mut table: Value) -> Value {
    for list in ["columns", "pictures"] {
        for row in table[list].as_array_mut().unwrap() {
            row["seconds"].take();
        }
    }
    table
}
