//! `sameface generate` as its users meet it, on the miniature stack of the engine's tests and the face networks of the
//! crate `faces`: what it makes, and a sentence for everything that it cannot make.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A folder for one test, its home and the place for what it writes.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }

    /// What lies here beside the program's cache.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name != ".cache")
            .collect();
        names.sort();
        names
    }

    /// Runs the program here, with nothing in its environment but a home.
    fn run(&self, line: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sameface"));
        command.env_clear().env("HOME", self.0.path()).current_dir(self.0.path());
        command.args(line).stdin(Stdio::null()).output().unwrap()
    }

    /// `generate` with the miniature stack; what `changed` says comes in place of its own options.
    fn generate(&self, changed: &[(&str, &str)], more: &[&str]) -> Output {
        let models = [
            ("--model", stack("model")),
            ("--identitynet", stack("ControlNetModel")),
            ("--ip-adapter", stack("ip-adapter.bin")),
            ("--face-models", faces("nets/plain")),
            ("--size", "64x64".to_string()),
            ("--steps", "2".to_string()),
        ];
        let mut line = vec!["generate".to_string(), "a sailor".to_string()];
        for (option, value) in models {
            let value = changed.iter().find(|(name, _)| *name == option).map_or(value, |(_, value)| value.to_string());
            line.extend([option.to_string(), value]);
        }
        line.extend(more.iter().map(ToString::to_string));
        self.run(&line.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// A copy of the miniature model with one of its files changed.
    fn model_with(&self, file: &str, change: impl FnOnce(&mut Vec<u8>)) -> String {
        let to = self.0.path().join("changed");
        copy(Path::new(&stack("model")), &to);
        let mut bytes = fs::read(to.join(file)).unwrap();
        change(&mut bytes);
        fs::write(to.join(file), bytes).unwrap();
        to.to_string_lossy().into_owned()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() { copy(&from, &to) } else { fs::write(&to, fs::read(&from).unwrap()).unwrap() }
    }
}

fn stack(name: &str) -> String {
    fixture("engine/tests/fixtures/instantid/folder", name)
}

fn faces(name: &str) -> String {
    fixture("faces/tests/fixtures", name)
}

fn fixture(folder: &str, name: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder).join(name);
    path.to_string_lossy().into_owned()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The names of a PNG's chunks.
fn chunks(png: &[u8]) -> Vec<String> {
    let (mut at, mut names) = (8, Vec::new());
    while let Some(head) = png.get(at..at + 8) {
        names.push(text(&head[4..]));
        at += 12 + u32::from_be_bytes(head[..4].try_into().unwrap()) as usize;
    }
    names
}

#[test]
fn a_photo_becomes_a_picture_with_its_record() {
    let place = Place::new();
    let (photo, out) = (faces("astronaut.jpg"), place.path("x.png"));
    let more = ["--face", &photo, "--seed", "7", "-o", &out, "--json"];
    let output = place.generate(&[], &more);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.starts_with("note: ") && said.contains("the largest is used"), "{said}");
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["images"], serde_json::json!([{"path": out, "seed": 7}]));
    assert_eq!((&value["plan"]["width"], &value["plan"]["steps"]), (&64.into(), &2.into()));
    assert_eq!(value["photos"][0]["photo"], photo.as_str());
    assert!(value["timings"]["step_ms"].as_f64().unwrap() > 0.0);
    let first = fs::read(&out).unwrap();
    assert_eq!(chunks(&first), ["IHDR", "tEXt", "tEXt", "IDAT", "IEND"], "nothing of the photo's own record");

    // The same once more, on another number of threads: the same bytes under the next name.
    assert_eq!(place.generate(&[], &[&more[..], &["--threads", "1"]].concat()).status.code(), Some(0));
    assert_eq!(place.names(), ["x-0001.png", "x.png"]);
    assert_eq!(first, fs::read(place.path("x-0001.png")).unwrap());
    let digests = fs::read_to_string(place.path(".cache/sameface/digests.json")).unwrap();
    assert!(digests.contains("ip-adapter.bin"), "gigabytes are not read again for every picture's record");
}

#[test]
fn a_folder_is_its_pictures_or_the_identity_in_it() {
    let place = Place::new();
    fs::create_dir(place.path("ada")).unwrap();
    for name in ["1.jpg", "2.JPG"] {
        fs::copy(faces("astronaut.jpg"), place.path(&format!("ada/{name}"))).unwrap();
    }
    fs::write(place.path("ada/notes.txt"), "x").unwrap();
    let photos = |place: &Place| -> Vec<String> {
        let output = place.generate(&[], &["--face", "ada", "--json"]);
        let object: Value = serde_json::from_slice(&output.stdout).unwrap();
        object["photos"].as_array().unwrap().iter().map(|photo| photo["photo"].as_str().unwrap().into()).collect()
    };
    assert_eq!(photos(&place), ["ada/1.jpg", "ada/2.JPG"]);
    fs::copy(stack("ada.safetensors"), place.path("ada/ada.safetensors")).unwrap();
    assert_eq!(photos(&place), ["ada/ada.safetensors"]);
}

#[test]
fn a_drawn_seed_is_told_and_names_are_given() {
    let place = Place::new();
    let identity = stack("ada.safetensors");
    let output = place.generate(&[], &["--face", &identity, "--count", "2", "--save-latent", "l.safetensors"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "./sameface-0001.png\n./sameface-0002.png\n");
    let said = text(&output.stderr);
    let seeds: Vec<u64> = said.lines().filter_map(|line| line.strip_prefix("seed ")?.parse().ok()).collect();
    assert_eq!(seeds[1], seeds[0] + 1);
    let latents = seeds.iter().map(|seed| format!("l-{seed}.safetensors"));
    let mut names: Vec<String> =
        ["sameface-0001.png".into(), "sameface-0002.png".into()].into_iter().chain(latents).collect();
    names.sort();
    assert_eq!(place.names(), names);
    // As of pictures, nothing that exists is overwritten.
    let again = ["--face", &identity, "--seed", "7", "--save-latent", "l.safetensors", "--json"];
    for latent in ["l.safetensors", "l-0001.safetensors"] {
        let output = place.generate(&[], &again);
        let object: serde_json::Value = serde_json::from_str(&text(&output.stdout)).unwrap();
        assert_eq!(object["images"][0]["latent"], latent, "{}", text(&output.stderr));
        assert!(Path::new(&place.path(latent)).is_file());
    }
}

#[test]
fn what_cannot_be_used_is_one_sentence_and_leaves_nothing() {
    let (photo, identity) = (faces("astronaut.jpg"), stack("ada.safetensors"));
    let (photo, identity) = (photo.as_str(), identity.as_str());
    let (broken, model, adapter) = (faces("photos.json"), stack("model"), stack("ip-adapter.bin"));
    let long = "word ".repeat(20_000);
    // Options in place of the usual ones, further options, words of the sentence.
    type Row<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a [&'a str]);
    let rows: &[Row] = &[
        (&[], &["--face", "none.jpg"], &["`none.jpg` could not be read: no such file"]),
        (&[("--model", "none"), ("--face-models", "none")], &["--face", "none.jpg"], &["`none.jpg`"]),
        (&[("--model", "none")], &["--face", photo, "--pose", "none.png"], &["`none.png`"]),
        (&[], &["--face", "none.jpg", "--face", &broken], &["none of the 2 pictures", "none.jpg", "photos.json"]),
        (&[], &["--face", &model], &["holds folders and no pictures; give a person's own folder"]),
        (&[], &["--face", &broken], &["photos.json", "PNG, JPEG, WebP, BMP and GIF are read"]),
        (&[], &["--face", photo, "--face-index", "999"], &["999", "valid are 0 to"]),
        (&[], &["--face", photo, "--face-index", "-1"], &["--face-index", "'-1'", "whole number"]),
        (&[], &["--face-index", "1"], &["--face-index 1", "add --face"]),
        (&[], &["--pose", photo], &["add --face"]),
        (&[], &["--face", &adapter], &["ip-adapter.bin", "are read"]),
        (&[], &["--negative", &long], &["100000 bytes", "16384"]),
        (&[], &["--negative", "a\u{7}b"], &["U+0007"]),
        (&[("--steps", "0")], &[], &["--steps is 0", "between 1 and 1000"]),
        (&[("--steps", "1000000000")], &[], &["--steps is 1000000000"]),
        (&[("--steps", "x")], &[], &["'x'", "whole number"]),
        (&[], &["--guidance", "nan"], &["'nan'", "a number"]),
        (&[], &["--guidance", "-1"], &["--guidance is -1"]),
        (&[("--size", "7x64")], &[], &["7x64", "8 is the smallest"]),
        (&[("--size", "60x64")], &[], &["60x64", "56 and 64"]),
        (&[("--size", "100000x100000")], &[], &["8192 is the largest"]),
        (&[("--size", "-64x64")], &[], &["'-64x64'", "WIDTHxHEIGHT"]),
        (&[], &["--count", "10000"], &["--count is 10000"]),
        (&[], &["--seed", "-1"], &["'-1'", "without --seed one is drawn"]),
        (&[], &["--sampler", "plms"], &["`plms`", "euler_a"]),
        (&[], &["--device", "cuda:0"], &["cuda:0"]),
        (&[], &["--precision", "f16"], &["f16", "bf16"]),
        (&[], &["-o", "x.gif"], &["x.gif", ".png"]),
        (&[], &["-o", "/dev/null/x.png"], &["/dev/null is not a folder"]),
        (&[], &["--save-latent", "."], &["is a folder"]),
        (&[("--model", "none")], &[], &["--model `none`", "does not exist"]),
        (&[("--model", photo)], &[], &["astronaut.jpg", "neither a safetensors file"]),
        (&[("--model", identity)], &[], &["a saved face", "SDXL checkpoint"]),
        (&[("--identitynet", &adapter)], &["--face", identity], &["an IP-Adapter", "a ControlNet is needed"]),
        (&[("--face-models", &model)], &["--face", photo], &["--face-models", "a detector and an encoder"]),
    ];
    for (changed, more, words) in rows {
        refused(&Place::new(), changed, more, words);
    }
}

/// Runs with and without `--json`: one sentence with these words, status 2, and no new file.
fn refused(place: &Place, changed: &[(&str, &str)], more: &[&str], words: &[&str]) {
    let before = place.names();
    for json in [false, true] {
        let more = if json { [more, &["--json"]].concat() } else { more.to_vec() };
        let output = place.generate(changed, &more);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(2), "{changed:?} {more:?}: {err}");
        assert!(err.starts_with("sameface: ") && err.trim_end().lines().count() == 1, "{more:?}: {err}");
        assert!(words.iter().all(|word| err.contains(word)), "{err} lacks one of {words:?}");
        match json {
            true => {
                let value: Value = serde_json::from_str(&out).unwrap();
                assert_eq!(err, format!("sameface: {}\n", value["error"].as_str().unwrap()));
            }
            false => assert_eq!(out, ""),
        }
        assert_eq!(place.names(), before, "{more:?}");
    }
}

#[test]
fn damaged_models_are_named() {
    const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
    type Change = fn(&mut Vec<u8>);
    let rows: &[(&str, Change, &[&str])] = &[
        (UNET, |bytes| bytes.truncate(bytes.len() / 2), &["is truncated", "fetch it again"]),
        (UNET, |bytes| bytes.clear(), &["is empty"]),
        (UNET, |bytes| not_a_number(bytes), &["unet", "not finite", "damaged"]),
        ("vae/diffusion_pytorch_model.safetensors", |bytes| not_a_number(bytes), &["vae", "not finite"]),
        (
            UNET,
            |bytes| rename(bytes, "conv_out.bias", "conv_out.bios"),
            &["`conv_out.bias` is missing", "needs it as [4]"],
        ),
        ("unet/config.json", |bytes| bytes.truncate(9), &["unet/config.json", "not a valid JSON file"]),
        ("vae/config.json", |bytes| *bytes = vec![b'['; 1_000_000], &["vae/config.json", "not a valid JSON file"]),
        ("scheduler/scheduler_config.json", |bytes| *bytes = b"null".to_vec(), &["scheduler_config.json holds null"]),
        ("tokenizer/tokenizer.json", |bytes| bytes.push(0xff), &["tokenizer.json could not be read"]),
        ("model_index.json", |bytes| *bytes = b"{}".to_vec(), &["it has no component unet; it has none"]),
    ];
    for (file, change, words) in rows {
        let place = Place::new();
        let model = place.model_with(file, change);
        refused(&place, &[("--model", &model)], &["--face", &stack("ada.safetensors")], words);
    }
    let place = Place::new();
    let model = place.model_with(UNET, |_| {});
    fs::remove_file(Path::new(&model).join(UNET)).unwrap();
    refused(&place, &[("--model", &model)], &[], &["--model", "is incomplete: it lacks the weights in `unet`"]);
}

/// The last number of a file, which is half precision, becomes NaN.
fn not_a_number(bytes: &mut [u8]) {
    let end = bytes.len() - 2;
    bytes[end..].copy_from_slice(&0x7e00u16.to_le_bytes());
}

fn rename(bytes: &mut [u8], old: &str, new: &str) {
    let at = bytes.windows(old.len()).position(|window| window == old.as_bytes()).unwrap();
    bytes[at..at + old.len()].copy_from_slice(new.as_bytes());
}

#[test]
fn tensors_that_nothing_takes_are_told() {
    let place = Place::new();
    let model = place.model_with("vae/diffusion_pytorch_model.safetensors", |bytes| {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: String = text(&bytes[8..8 + length]);
        let end = bytes.len() - 8 - length;
        let extra = format!(r#","extra.weight":{{"dtype":"F16","shape":[1],"data_offsets":[{end},{}]}}}}"#, end + 2);
        let header = format!("{}{extra}", header.trim_end().strip_suffix('}').unwrap());
        let file =
            [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes[8 + length..], &[0, 0]].concat();
        *bytes = file;
    });
    let output = place.generate(&[("--model", &model)], &["--seed", "1"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.ends_with("vae/diffusion_pytorch_model.safetensors: 1 tensor is not used: `extra.weight`\n"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1);
}

#[test]
fn without_models_the_command_that_brings_them_is_named() {
    let place = Place::new();
    let output = place.run(&["generate", "a sailor", "--face", &faces("astronaut.jpg"), "--steps", "1"]);
    let said = text(&output.stderr);
    assert!(said.contains("`sameface models pull instantid` brings"), "{said}");
    // The built-in models, where the program carries them, have a note for photographs and do what they can.
    assert!(output.status.code() == Some(1) || said.contains("these models know drawn characters only"), "{said}");
}

/// Nothing says that models are missing where the built-in ones step in, so they say what they are.
#[test]
fn what_the_built_in_models_are_is_said() {
    let place = Place::new();
    let list = text(&place.run(&["models", "list", "--json"]).stdout);
    if !list.contains("\"built_in\":true") {
        return;
    }
    let line = ["generate", "a castle", "--size", "64x64", "--steps", "1", "--json"];
    let output = place.run(&line);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("note: the built-in models draw characters and nothing else"), "{said}");
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(object["notes"][0].as_str().unwrap().contains("`sameface models pull instantid`"), "{object}");

    // A saved identity speaks the language of one encoder.
    let saved = ["faces", "cast:1000001", "--save", "ada.safetensors"];
    assert_eq!(place.run(&saved).status.code(), Some(0));
    let own = text(&place.run(&[&line[..], &["--face", "ada.safetensors"]].concat()).stderr);
    assert!(!own.contains("saved with"), "{own}");
    let foreign = text(&place.generate(&[], &["--face", &place.path("ada.safetensors")]).stderr);
    assert!(foreign.contains("ada.safetensors was saved with the built-in face models"), "{foreign}");

    let mut home = Command::new(env!("CARGO_BIN_EXE_sameface"));
    home.env_clear().env("SAMEFACE_HOME", place.path("home")).current_dir(place.0.path()).args(line);
    let said = text(&home.output().unwrap().stderr);
    assert!(said.contains("home/models, so the built-in ones are used"), "{said}");
}
