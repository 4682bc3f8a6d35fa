//! `cast:SEED` where a photo is meant: the character's portrait, drawn into a temporary file.

use std::path::{Path, PathBuf};

use cast::{Character, Picture, Scene, Style};
use compare::Known;
use engine::metadata::{DRAWN, encode_png};
use faces::{Identity, Keypoints, Photo, RgbImage};
use serde_json::{Value, json};

use crate::fault::Fault;

/// Pixels of a portrait's side.
pub(crate) const SIDE: usize = 256;
/// How many scenes of an album are portraits, and how many there are: what training draws for each person.
pub(crate) const PORTRAITS: usize = 2;
pub(crate) const ALBUM: usize = 8;
/// What stands before the seed.
const SCHEME: &str = "cast:";

/// Files that are drawn for a command and go with it.
pub(crate) struct Drawn {
    folder: Option<tempfile::TempDir>,
}

impl Drawn {
    pub(crate) fn new() -> Drawn {
        Drawn { folder: None }
    }

    /// The path itself, or that of the drawing which it stands for.
    pub(crate) fn file(&mut self, path: &Path) -> Result<PathBuf, Fault> {
        let Some(seed) = seed(path)? else { return Ok(path.to_path_buf()) };
        let scene = cast::album(seed, PORTRAITS, 1).remove(0);
        let picture = cast::draw(&Character::from_seed(seed), &scene, SIDE)?;
        let temporary = |e: std::io::Error| Fault::Here(format!("the temporary folder could not be written: {e}"));
        let folder = match &self.folder {
            Some(folder) => folder,
            None => self.folder.insert(tempfile::tempdir().map_err(temporary)?),
        };
        let file = folder.path().join(format!("cast-{seed}.png"));
        std::fs::write(&file, png(&picture, &scene)?).map_err(temporary)?;
        Ok(file)
    }

    /// A sentence in the words that the user used.
    pub(crate) fn in_words(&self, sentence: &str) -> String {
        let Some(folder) = &self.folder else { return sentence.to_owned() };
        let mut said = sentence.to_owned();
        let begin = format!("{}{}cast-", folder.path().display(), std::path::MAIN_SEPARATOR);
        while let Some(at) = said.find(&begin) {
            let rest = said.split_off(at);
            let rest = &rest[begin.len()..];
            let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
            let after = rest[digits..].strip_prefix(".png").unwrap_or(&rest[digits..]);
            said += &format!("{SCHEME}{}{after}", &rest[..digits]);
        }
        said
    }
}

/// Endings of pictures in a person's folder.
const PICTURES: [&str; 6] = ["png", "jpg", "jpeg", "webp", "bmp", "gif"];

/// What a folder of one person holds, at least one file: a saved identity first, if there is one, then pictures by name.
pub(crate) fn pictures_of(folder: &Path) -> Result<Vec<PathBuf>, Fault> {
    let sentence = |why: String| Fault::Given(format!("--face {}: {why}", folder.display()));
    let entries = std::fs::read_dir(folder).map_err(|e| sentence(format!("the folder could not be read: {e}")))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    let is_picture = |path: &PathBuf| {
        // Systems put files of their own beside pictures, such as `._ada.jpg`.
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
        !hidden && path.is_file() && ending.is_some_and(|ending| PICTURES.contains(&&*ending))
    };
    let identity = files.iter().find(|path| Identity::sniff(path)).cloned();
    let found: Vec<PathBuf> =
        identity.into_iter().chain(files.iter().filter(|path| is_picture(path)).cloned()).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    Err(sentence(match files.iter().any(|path| path.is_dir()) {
        true => "holds folders and no pictures; give a person's own folder".into(),
        false => format!("holds no pictures of a person ({})", PICTURES.join(", ")),
    }))
}

/// The seed of `cast:SEED`; `None` for anything else. A file of that name comes first.
pub(crate) fn seed(path: &Path) -> Result<Option<u64>, Fault> {
    let Some(said) = path.to_str().and_then(|text| text.strip_prefix(SCHEME)).filter(|_| !path.exists()) else {
        return Ok(None);
    };
    let sentence = || format!("`{}`: after `{SCHEME}` stands the seed of a character, such as 1000001", path.display());
    said.parse().map(Some).map_err(|_| Fault::Given(sentence()))
}

/// The portrait that `cast:SEED` stands for, with what is known about it.
pub(crate) fn portrait(seed: u64) -> Result<Known, Fault> {
    known(seed, &cast::album(seed, PORTRAITS, 1)[0])
}

/// Drawings of a character beside the portrait, with what is known about them.
pub(crate) fn drawings(seed: u64, count: usize) -> Result<Vec<Known>, Fault> {
    cast::album(seed, PORTRAITS, 1 + count).iter().skip(1).map(|scene| known(seed, scene)).collect()
}

fn known(seed: u64, scene: &Scene) -> Result<Known, Fault> {
    let picture = cast::draw(&Character::from_seed(seed), scene, SIDE)?;
    let side = picture.size as u32;
    let image = RgbImage::from_raw(side, side, picture.rgb).unwrap_or_default();
    // Gray styles do not show the cloth's colour.
    let gray = matches!(scene.style, Style::Noir | Style::Ink);
    let shows = scene.choices().into_iter().filter(|(name, _)| !(gray && *name == "tint"));
    Ok(Known {
        photo: Photo::from_image(&format!("{SCHEME}{seed}"), image),
        keypoints: Some(picture.truth.keypoints),
        shows: shows.map(|(name, choice)| (name.to_string(), choice.to_string())).collect(),
    })
}

/// A drawing as PNG, with the truth about it.
pub(crate) fn png(picture: &Picture, scene: &Scene) -> Result<Vec<u8>, Fault> {
    let text = truth(picture, scene).to_string();
    let side = picture.size as u32;
    Ok(encode_png(side, side, &picture.rgb, &[(DRAWN, &text)])?)
}

/// What is known about a drawing.
pub(crate) fn truth(picture: &Picture, scene: &Scene) -> Value {
    let number = |v: &f32| json!((f64::from(*v) * 1e3).round() / 1e3);
    let numbers = |values: &[f32]| values.iter().map(number).collect::<Vec<_>>();
    let truth = &picture.truth;
    let mut choices: serde_json::Map<String, Value> =
        scene.choices().iter().map(|(name, choice)| (name.to_string(), json!(choice))).collect();
    for (name, value) in [("yaw", scene.yaw), ("pitch", scene.pitch), ("roll", scene.roll)] {
        choices.insert(name.into(), number(&value));
    }
    let traits: serde_json::Map<String, Value> =
        cast::TRAIT_NAMES.iter().zip(&truth.traits).map(|(name, value)| (name.to_string(), number(value))).collect();
    json!({
        "seed": truth.seed,
        "bbox": numbers(&truth.bbox),
        "kps": truth.keypoints.iter().map(|point| numbers(point)).collect::<Vec<_>>(),
        "caption": truth.caption,
        "scene": choices,
        "traits": traits,
    })
}

/// Who a drawing shows, and where, by the truth that it carries; `None` where that does not say.
pub(crate) fn of_truth(truth: &Value) -> Option<(u64, Keypoints)> {
    let kps: Keypoints = serde_json::from_value(truth["kps"].clone()).ok()?;
    let [[x1, y1], [x2, y2], ..] = kps;
    // A face can be aligned by them.
    let eyes = (x2 - x1).hypot(y2 - y1);
    (eyes > 1.0 && kps.iter().flatten().all(|v| v.is_finite())).then_some((truth["seed"].as_u64()?, kps))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_read_or_explained() {
        for (text, wanted) in [("cast:7", Some(7)), ("ada.png", None), ("cast", None)] {
            assert_eq!(seed(Path::new(text)).unwrap(), wanted, "{text}");
        }
        assert!(seed(Path::new("cast:anna")).unwrap_err().to_string().contains("such as 1000001"));
    }

    #[test]
    fn drawings_keep_their_name_in_sentences_and_carry_the_truth() {
        let mut drawn = Drawn::new();
        let file = drawn.file(Path::new("cast:1000001")).unwrap();
        let said = drawn.in_words(&format!("{}: two faces; see {}", file.display(), file.display()));
        assert_eq!(said, "cast:1000001: two faces; see cast:1000001");
        let truth = engine::metadata::drawn(&file).unwrap();
        let (seed, kps) = of_truth(&truth).unwrap();
        assert_eq!((seed, kps[0][0]), (1_000_001, truth["kps"][0][0].as_f64().unwrap() as f32));
        for hostile in [
            json!({}),
            json!({"seed": 1, "kps": [[1, 2], [1, 2], [1, 2], [1, 2], [1, 2]]}),
            json!({"seed": 1, "kps": [[1, 2]]}),
            json!({"seed": -1, "kps": truth["kps"]}),
        ] {
            assert!(of_truth(&hostile).is_none(), "{hostile}");
        }
        assert_eq!(drawn.file(Path::new("ada.png")).unwrap(), Path::new("ada.png"));
    }
}
