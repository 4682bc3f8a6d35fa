//! The program as its users meet it: what it prints where, and with which exit status.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Runs the program on a machine that has nothing but an empty home.
fn sameface(home: &Path, line: &[&str]) -> Output {
    command(home, line).output().unwrap()
}

fn command(home: &Path, line: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sameface"));
    command.env_clear().env("HOME", home).args(line).stdin(Stdio::null());
    command
}

/// Whether the program carries the miniature models.
fn is_built_in() -> bool {
    let home = tempfile::tempdir().unwrap();
    text(&sameface(home.path(), &["models", "list", "--json"]).stdout).contains("\"built_in\":true")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn refusals_have_one_sentence_and_a_status() {
    let home = tempfile::tempdir().unwrap();
    let (photo, nets) = (fixture("face.png"), fixture("nets/plain"));
    for (line, status, said) in [
        (&["models", "path", "nonsense"][..], 2, "no model is called `nonsense`; known are `instantid`"),
        (&["models", "path", "instantid"], 2, "`sameface models pull instantid` brings it"),
        (&["generate", "a", "--model", "sdxl"], 2, "`sameface models pull sdxl-base` brings it"),
        (&["generate", "a", "--model", "sdxl-bose"], 2, "or a name (known: `sdxl-base`)"),
        // What was given is told before what is missing, which is this machine's lack.
        (&["generate", "a", "--face", &photo, "--ip-adapter", "none.bin"], 2, "--ip-adapter `none.bin` does not exist"),
        (&["generate", "a", "--face-models", &nets, "--face", &photo], 1, "`sameface models pull instantid` brings it"),
        (&["models", "pull", "no/such/name"], 2, "no model is called `no/such/name`"),
        (&["models", "frobnicate"], 2, "unrecognized subcommand 'frobnicate'"),
        (&["--nonsense"], 2, "unexpected argument '--nonsense'"),
    ] {
        for json in [false, true] {
            let line = if json { [line, &["--json"]].concat() } else { line.to_vec() };
            let output = sameface(home.path(), &line);
            let (out, err) = (text(&output.stdout), text(&output.stderr));
            assert_eq!(output.status.code(), Some(status), "{line:?}: {err}");
            assert!(err.starts_with("sameface: ") && err.contains(said), "{line:?}: {err}");
            assert_eq!(err.trim_end().lines().count(), 1, "{line:?}: {err}");
            match json {
                true => assert!(out.starts_with("{\"error\":\"") && out.contains(said), "{line:?}: {out}"),
                false => assert_eq!(out, "", "{line:?}"),
            }
        }
    }
}

#[test]
fn a_surrounding_that_makes_no_sense_is_named() {
    let home = tempfile::tempdir().unwrap();
    let output = command(home.path(), &["models", "list"]).env("HF_ENDPOINT", "nowhere").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("HF_ENDPOINT is `nowhere`"));
    let unknown = command(home.path(), &["models", "list"]).env("SAMEFACE_ISA", "avx3").output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).starts_with("sameface: SAMEFACE_ISA: it is \"avx3\"; valid here are portable"));
    let offline = command(home.path(), &["models", "pull", "antelopev2"]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    assert_eq!(offline.status.code(), Some(1));
    assert!(text(&offline.stderr).contains("HF_HUB_OFFLINE is set"));
}

#[test]
fn licences_are_shown_before_anything_is_fetched() {
    let home = tempfile::tempdir().unwrap();
    let output = sameface(home.path(), &["models", "pull", "instantid", "--dry-run"]);
    assert_eq!(output.status.code(), Some(0));
    let said = text(&output.stderr);
    for part in ["InstantX/InstantID", "non-commercial research only", "Open RAIL++-M", "11.4 GB would be fetched"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(std::fs::read_dir(home.path()).unwrap().next().is_none(), "a dry run leaves nothing behind");
}

#[test]
fn the_list_is_for_people_and_for_programs() {
    let home = tempfile::tempdir().unwrap();
    let people = text(&sameface(home.path(), &["models", "list"]).stdout);
    assert!(people.contains("not here: `sameface models pull antelopev2` brings it"), "{people}");
    let programs = text(&sameface(home.path(), &["models", "list", "--json"]).stdout);
    let value: serde_json::Value = serde_json::from_str(&programs).unwrap();
    assert_eq!(value["models"][0]["name"], "instantid");
    let model = &value["in_use"]["model"];
    assert!(if is_built_in() { model == "mini" } else { model.is_null() }, "{model}");
}

#[test]
fn help_teaches_and_version_tells() {
    let home = tempfile::tempdir().unwrap();
    for line in [&["--help"][..], &["--version"], &["models", "--help"], &["models", "pull", "--help"]] {
        let output = sameface(home.path(), line);
        assert_eq!(output.status.code(), Some(0), "{line:?}");
        assert!(output.stderr.is_empty() && !output.stdout.is_empty(), "{line:?}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_fault() {
    let home = tempfile::tempdir().unwrap();
    let mut child =
        command(home.path(), &["models", "list"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    // It may have written before the pipe closed; either way there is nothing to complain about.
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

/// Small networks with random weights and the photos that go with them, which the crate `faces` is tested with.
fn fixture(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../faces/tests/fixtures").join(name);
    path.to_string_lossy().into_owned()
}

#[test]
fn faces_are_listed_drawn_and_saved() {
    let home = tempfile::tempdir().unwrap();
    let (photo, nets) = (fixture("face.png"), fixture("nets/plain"));
    let run = |line: &[&str]| {
        let line = [&["faces", &photo, "--face-models", &nets, "--threads", "1"], line].concat();
        let output = sameface(home.path(), &line);
        assert_eq!(output.status.code(), Some(0), "{line:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let one: serde_json::Value = serde_json::from_str(&run(&["--json"])).unwrap();
    assert_eq!((&one["photo"], &one["size"]), (&photo.as_str().into(), &serde_json::json!([200, 240])));
    let faces = one["faces"].as_array().unwrap();
    assert!(faces.len() > 1);
    let face = &faces[1];
    let lengths = ["bbox", "kps", "embedding"].map(|key| face[key].as_array().unwrap().len());
    assert_eq!(lengths, [4, 5, 512]);
    assert_eq!(face["kps"][0].as_array().unwrap().len(), 2);
    assert!(face["det_score"].as_f64().is_some());

    let second: serde_json::Value = serde_json::from_str(&run(&["--json", "--face-index", "1"])).unwrap();
    assert_eq!(second["faces"], serde_json::json!([face]));
    let two: serde_json::Value = serde_json::from_str(&run(&["--json", &photo])).unwrap();
    assert_eq!(two, serde_json::json!([one, one]));

    let file = |name: &str| home.path().join(name).to_string_lossy().into_owned();
    let files = [file("boxes.png"), file("keypoints.png"), file("new/ada.safetensors")];
    let line = ["--draw", &files[0], "--draw-keypoints", &files[1], "--save", &files[2]];
    run(&line);
    for (path, magic) in files.iter().zip([&b"\x89PNG"[..], b"\x89PNG", b""]) {
        assert!(std::fs::read(PathBuf::from(path)).unwrap().starts_with(magic), "{path}");
    }
    // What exists is replaced for those who say so.
    for path in &files {
        std::fs::write(path, "mine").unwrap();
    }
    for option in line.chunks(2) {
        let output = sameface(home.path(), &[&["faces", &photo, "--face-models", &nets], option].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(&format!("{} `{}` exists already", option[0], option[1])), "{said}");
    }
    assert!(files.iter().all(|path| std::fs::read(path).unwrap() == b"mine"));
    run(&[&line[..], &["--force"]].concat());
    assert!(files.iter().all(|path| std::fs::read(path).unwrap() != b"mine"));
}

#[test]
fn photos_that_cannot_be_used_are_reported_and_the_others_done() {
    let home = tempfile::tempdir().unwrap();
    let (photo, nets) = (fixture("face.png"), fixture("nets/plain"));
    let (models, other) = (["--face-models", &nets], fixture("keypoints.json"));
    let none = home.path().join("none.png").to_string_lossy().into_owned();
    for (line, said) in [
        (vec!["faces", &none], "could not be read"),
        (vec!["faces", &other], "keypoints.json"),
        (vec!["faces", &photo, "--face-index", "999"], "999"),
        (vec!["faces", &photo, "--face-models", &none], "--face-models"),
        (vec!["faces", &photo, &photo, "--draw", "x.png"], "--draw `x.png` is for one photo, and 2 are given"),
        (vec!["faces", &photo, "--threads", "0"], "a whole number from 1 to 1024"),
        (vec!["faces", &photo, "--save", "/dev/null/x"], "/dev/null is not a folder"),
        (vec!["faces", &photo, "--draw", "/dev/null", "--force"], "`/dev/null` is not a regular file"),
        (vec!["faces", &photo, "--draw", "x.jpg"], "pictures are written as .png"),
        (vec!["faces", &photo, "--draw", "x.png", "--save", "x.png"], "is what --draw names too"),
        (vec!["faces", &photo, "--draw", &photo, "--force"], "is the photo itself"),
    ] {
        let given = line.contains(&"--face-models");
        let line = [&line[..], if given { &[] } else { &models }].concat();
        let output = sameface(home.path(), &line);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line:?}: {err}");
        assert!(err.lines().any(|line| line.starts_with("sameface: ") && line.contains(said)), "{line:?}: {err}");
        assert!(!home.path().join("x.png").exists());
    }
    let output = sameface(home.path(), &["faces", &none, &photo, "--json", models[0], models[1]]);
    assert_eq!(output.status.code(), Some(2));
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(value[0]["error"].as_str().unwrap().contains("none.png") && value[0]["faces"] == serde_json::json!([]));
    assert!(!value[1]["faces"].as_array().unwrap().is_empty());
}

#[test]
fn without_face_models_the_command_that_brings_them_is_named() {
    let home = tempfile::tempdir().unwrap();
    let output = sameface(home.path(), &["faces", &fixture("face.png")]);
    // The built-in face models know drawn characters, and say so.
    let said = if is_built_in() { "brings those for photographs" } else { "brings it" };
    let said = format!("`sameface models pull antelopev2` {said}");
    assert!(text(&output.stderr).contains(&said), "{}", text(&output.stderr));
}

#[test]
fn a_benchmark_is_one_object() {
    let home = tempfile::tempdir().unwrap();
    for (line, times) in [
        (&["step", "--config", "tiny"][..], &["step_ms", "first_step_ms", "load_ms"][..]),
        (&["step", "--config", "tiny", "--size", "128x64", "--precision", "bf16"], &["step_ms"]),
        (&["step", "--config", "tiny", "--precision", "bf16", "--error", "--profile"], &["error_beside_f32"]),
        (&["step", "--config", "tiny", "--precision", "bf16x3"], &["step_ms"]),
        (&["vae", "--config", "tiny"], &["decode_ms", "first_decode_ms", "load_ms"]),
        (&["text", "--config", "tiny"], &["text_ms", "first_text_ms", "load_ms"]),
    ] {
        let line = [&["bench"], line, &["--threads", "1", "--runs", "1", "--json"]].concat();
        let output = sameface(home.path(), &line);
        assert_eq!(output.status.code(), Some(0), "{line:?}: {}", text(&output.stderr));
        let object: serde_json::Value = serde_json::from_str(&text(&output.stdout)).unwrap();
        let always = ["tflop", "tflop_per_s", "peak_tflop_per_s", "share_of_peak", "peak_memory_mb", "runs", "threads"];
        for key in times.iter().chain(&always) {
            assert!(object[key].as_f64().is_some_and(|number| number > 0.0), "{line:?}: {key} is {}", object[key]);
        }
        assert_eq!((object["config"].as_str(), object["device"].as_str()), (Some("tiny"), Some("cpu")));
        let operators = object["operators"].as_array().map_or(0, Vec::len);
        assert_eq!(operators > 0, line.contains(&"--profile"), "{line:?}: {operators} operators");
        assert!(["f32", "bf16", "bf16x3"].contains(&object["precision"].as_str().unwrap()), "{object}");
        let people = sameface(home.path(), &line[..line.len() - 1]);
        assert!(text(&people.stdout).contains("TFLOP/s") && text(&people.stdout).contains("peak memory"));
    }
}

#[test]
fn a_benchmark_that_cannot_be_run_says_why() {
    let home = tempfile::tempdir().unwrap();
    // A missing model is this machine's lack, as everywhere.
    let (status, said) =
        if is_built_in() { (2, "nobody.jpg") } else { (1, "`sameface models pull antelopev2` brings it") };
    let output = sameface(home.path(), &["bench", "faces", "--photo", "nobody.jpg"]);
    assert_eq!(output.status.code(), Some(status));
    assert!(text(&output.stderr).contains(said), "{}", text(&output.stderr));
    let huge = &["bench", "step", "--config", "sdxl", "--precision", "f32", "--size", "4096x4096"][..];
    for (line, said) in [
        (&["bench", "step", "--config", "flux"][..], "--config is \"flux\"; valid are sdxl, sd15, tiny, mini, and"),
        (
            &["bench", "vae", "--size", "100x100"],
            "--size is 100x100; sides must be multiples of 32 between 32 and 4096",
        ),
        (&["bench", "text", "--precision", "f16"], "--precision f16 needs a GPU"),
        (
            &["bench", "step", "--config", "tiny", "--device", "cpu", "--precision", "fp8"],
            "--precision fp8 needs a GPU",
        ),
        (&["bench", "step", "--runs", "0"], "it must be a whole number from 1 to 1000"),
        (&["bench", "text", "--profile"], "unexpected argument '--profile'"),
        (&["bench", "vae", "--error"], "unexpected argument '--error'"),
        (&["bench", "load", "nowhere"], "nowhere"),
        (&["bench", "load", "x", "--identitynet", "y"], "name it with --ip-adapter"),
        (huge, "in f32 needs at least"),
    ] {
        let line = [line, &["--json"]].concat();
        let output = sameface(home.path(), &line);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(2), "{line:?}: {err}");
        assert!(err.contains(said) && err.trim_end().lines().count() == 1, "{line:?}: {err}");
        assert!(out.starts_with("{\"error\":\""), "{line:?}: {out}");
    }
}
