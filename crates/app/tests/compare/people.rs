//! Whose pictures are compared: photos, folders, saved identities.

use std::fs;

use crate::place::{Place, fixture, text};
use serde_json::Value;

#[test]
fn other_photos_of_one_person_are_used_and_a_missing_stranger_is_told() {
    let place = Place::new();
    let photo = fixture("faces/tests/fixtures/face.png");
    let line = ["--face", &photo, "--other", &photo, "--prompt", "a sailor", "--methods", "adapter", "-o", "out"];
    let output = place.compare(&line);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{err}");
    assert!(err.contains("needs a second --face"), "{err}");
    assert!(out.lines().next().unwrap().contains("SimRef") && out.trim_end().ends_with("index.html"), "{out}");
    let table: Value = serde_json::from_slice(&fs::read(place.path("out/table.json")).unwrap()).unwrap();
    let of_itself = table["pictures"][0]["sim_gt"].as_f64().unwrap();
    assert_eq!(table["columns"].as_array().unwrap().len(), 3);
    let line = ["--face", &photo, "--other", "cast:1000001", "--prompt", "a sailor", "--methods", "adapter"];
    let table = place.json(&[&place.line()[..], &line, &["-o", "other"]].concat());
    let of_another = table["pictures"][0]["sim_gt"].as_f64().unwrap();
    assert!((of_itself - of_another).abs() > 1e-6, "SimGT is that of the other photo: {of_itself} {of_another}");
}

#[test]
fn a_folder_is_a_person_and_a_saved_identity_is_one_without_a_picture() {
    let place = Place::new();
    let (photo, identity) =
        (fixture("faces/tests/fixtures/face.png"), fixture("engine/tests/fixtures/instantid/folder/ada.safetensors"));
    fs::create_dir_all(place.path("people/eve")).unwrap();
    for name in ["a.png", "b.PNG"] {
        fs::copy(&photo, place.path(&format!("people/eve/{name}"))).unwrap();
    }
    // None of these is a picture to measure by; the last is said to be left out.
    for name in ["notes.txt", "._a.png", "broken.jpg"] {
        fs::write(place.path(&format!("people/eve/{name}")), "x").unwrap();
    }
    let faces = ["--face", "people/eve", "--face", &identity, "--face", &photo, "--prompt", "a sailor"];
    let output = place.compare(&[&faces[..], &["--methods", "instantid", "-o", "out"]].concat());
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{err}");
    for said in [
        "note: ada.safetensors, face.png: no other picture of the person is known",
        "note: ada.safetensors: a saved identity has no picture, so SimRef is not measured",
        "the judge has no content.onnx, so text and keypoints are not measured",
        "broken.jpg: the file is no picture that is known here; PNG, JPEG, WebP, BMP and GIF are read; it is left out",
    ] {
        assert!(err.contains(said), "{said}: {err}");
    }
    let head = out.lines().next().unwrap();
    assert!(head.contains("SimGT") && !head.contains("keypoints"), "what is not measured has no column: {head}");
    let table: Value = serde_json::from_slice(&fs::read(place.path("out/table.json")).unwrap()).unwrap();
    let others: Vec<_> = table["people"].as_array().unwrap().iter().map(|p| p["others"].as_u64().unwrap()).collect();
    assert_eq!((others, table["people_at_hand"].as_u64()), (vec![1, 0, 0], Some(2)));
    for row in table["pictures"].as_array().unwrap() {
        let face = row["face"].as_str().unwrap();
        assert_eq!(row["sim_ref"].is_number(), face != "ada.safetensors", "{row}");
        assert_eq!(row["sim_gt"].is_number(), face == "eve", "{row}");
        assert_eq!(row["top1"].is_boolean(), face != "ada.safetensors", "{row}");
    }
    assert_eq!(table["people"][1]["reference"], Value::Null);
    assert!(!std::path::Path::new(&place.path("out/pictures/001-reference.png")).exists());
}
