//! `sameface compare` and `sameface cast` as their users meet them, on the miniature stack of random weights; and, where
//! `models/mini` is in the tree, what its trained weights must hold.

mod folder;
mod people;
mod place;

use std::fs;
use std::path::Path;

use place::{Place, fixture, is_built_in, pixels, text, timeless};
use serde_json::Value;

#[test]
fn a_comparison_is_pictures_a_page_and_a_table() {
    let place = Place::new();
    let photo = fixture("faces/tests/fixtures/face.png");
    let faces = ["--face", &photo, "--face", "cast:1000001", "--among", "3"];
    let line = ["--prompt", "a <sailor>", "--scales", "0,0.8", "--methods", "adapter,instantid"];
    let line = [&place.line()[..], &faces, &line].concat();
    let table = place.json(&[&line[..], &["-o", "out"]].concat());
    let names: Vec<&str> = table["columns"].as_array().unwrap().iter().map(|c| c["column"].as_str().unwrap()).collect();
    assert_eq!(names, ["text", "adapter-0", "adapter-0.8", "instantid-0", "instantid-0.8", "nobody", "stranger"]);
    let written: Value = serde_json::from_slice(&fs::read(place.path("out/table.json")).unwrap()).unwrap();
    assert_eq!(written, table);

    // Controls and weights: nothing at weight 0, something at any other, and each control is another picture. What
    // InstantID keeps at weight 0 is IdentityNet.
    let picture = |name: &str| pixels(&place.path(&format!("out/pictures/000-00-{name}.png")));
    assert_eq!(picture("text"), picture("adapter-0"));
    let all = ["text", "adapter-0.8", "instantid-0", "instantid-0.8", "nobody", "stranger"].map(picture);
    for (i, one) in all.iter().enumerate() {
        assert!(all[i + 1..].iter().all(|other| one != other), "picture {i} is there twice");
    }
    for row in table["pictures"].as_array().unwrap() {
        assert_eq!(row["text"], Value::Null, "free text asks for nothing");
        // Other pictures are known of the character alone.
        assert_eq!(row["sim_gt"].is_number(), row["face"] == "cast:1000001");
        if let (Some(reference), Some(truth)) = (row["sim_ref"].as_f64(), row["sim_gt"].as_f64()) {
            assert!((row["copy_paste"].as_f64().unwrap() - (reference - truth)).abs() < 1e-12);
        }
        assert_eq!(row["sim_stranger"].is_number(), row["column"] == "stranger");
        assert!(Path::new(&place.path("out")).join(row["path"].as_str().unwrap()).exists());
    }

    let page = fs::read_to_string(place.path("out/index.html")).unwrap();
    assert!(page.contains("a &lt;sailor&gt;") && !page.contains("<sailor>"));
    assert!(!page.contains("://") && !page.contains("<script"), "the page needs neither network nor script");
    let parts = |name: &str| -> Vec<String> {
        page.split(&format!("{name}=\"")).skip(1).map(|rest| rest.split('"').next().unwrap().to_string()).collect()
    };
    assert_eq!(parts("src").len(), 2 * 8);
    assert!(parts("src").iter().all(|source| source.starts_with("data:image/jpeg;base64,")), "one file to pass on");
    for link in parts("href") {
        assert!(Path::new(&place.path("out")).join(&link).exists(), "{link}");
    }
    for said in ["no identity", "SimRef", "Not measured here: text, keypoints", "their own pictures", "class=\"best\""]
    {
        assert!(page.contains(said), "{said}");
    }
    assert!(page.contains("<svg") && pixels(&place.path("out/grid.png")).len() > 256 * 256 * 3);
    let curve = pixels(&place.path("out/curve.png"));
    assert!(curve.iter().filter(|value| **value < 100).count() > 1000, "an empty curve");

    let again = place.json(&[&line[..], &["-o", "again"]].concat());
    assert_eq!(timeless(again), timeless(table.clone()));
    for name in names {
        let file = |folder: &str| fs::read(place.path(&format!("{folder}/pictures/000-00-{name}.png"))).unwrap();
        assert_eq!(file("out"), file("again"), "{name}");
    }
}

#[test]
fn a_whole_stack_lies_in_one_folder() {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
            match entry.path().is_dir() {
                true => copy(&entry.path(), &to.join(entry.file_name())),
                false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
            }
        }
    }
    let place = Place::new();
    let stack = |name: &str| fixture(&format!("engine/tests/fixtures/instantid/folder/{name}"));
    for (from, to) in [
        (stack("model"), "stack"),
        (stack("ControlNetModel"), "stack/ControlNetModel"),
        (fixture("faces/tests/fixtures/nets/plain"), "stack/faces"),
        (place.path("judge"), "stack/judge"),
    ] {
        copy(Path::new(&from), Path::new(&place.path(to)));
    }
    let line = ["compare", "--model", "stack", "--size", "64x64", "--steps", "1", "--face", "cast:1000001"];
    let line = [&line[..], &["--prompt", "a sailor", "--methods", "adapter", "--among", "2", "-o", "out"]].concat();
    let output = place.run(&line);
    assert!(text(&output.stderr).contains("no identity adapter was found"), "{}", text(&output.stderr));
    fs::copy(stack("ip-adapter.bin"), place.path("stack/ip-adapter.bin")).unwrap();
    let table = place.json(&line);
    assert_eq!(table["judge"], "stack/judge");
    assert_eq!(table["settings"]["models"]["ip_adapter"]["name"], "ip-adapter.bin", "{}", table["settings"]["models"]);
}

#[test]
fn rows_are_spread_over_faces_and_prompts() {
    let place = Place::new();
    let photo = fixture("faces/tests/fixtures/face.png");
    let faces = ["--face", &photo, "--face", "cast:1000001", "--cast-prompts", "3", "--per-face", "2"];
    let line = [&place.line()[..], &faces, &["--methods", "adapter", "--among", "3", "-o", "out"]].concat();
    let table = place.json(&line);
    let rows = table["pictures"].as_array().unwrap();
    assert_eq!(rows.len(), 2 * 2 * 4);
    let prompts = |face: &str| -> Vec<&str> {
        let mine = rows.iter().filter(|row| row["face"] == face && row["column"] == "text");
        mine.map(|row| row["prompt"].as_str().unwrap()).collect()
    };
    let asked: Vec<&str> = table["prompts"].as_array().unwrap().iter().map(|p| p["prompt"].as_str().unwrap()).collect();
    assert_eq!(prompts("face.png"), asked[..2]);
    assert_eq!(prompts("cast:1000001"), [asked[2], asked[0]]);
    assert_eq!(table["people_at_hand"], 3);
    assert_eq!(table["people"][1]["others"], 7);
    assert!(table["columns"][0]["top1"].is_number());
    let seeds: Vec<u64> = rows.iter().map(|row| row["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds[..8], [1, 1, 1, 1, 2, 2, 2, 2], "a row shares its noise");
}

#[test]
fn what_cannot_be_compared_is_refused_by_name() {
    let place = Place::new();
    let (photo, empty) = (fixture("faces/tests/fixtures/face.png"), place.path("judge"));
    fs::create_dir(place.path("full")).unwrap();
    fs::write(place.path("full/a"), "x").unwrap();
    fs::create_dir_all(place.path("people/ada")).unwrap();
    let good = ["--face", &photo, "--prompt", "a sailor", "-o", "out"];
    for (line, said) in [
        (&["--prompt", "a", "-o", "out"][..], "there is nobody to compare"),
        (&["--face", &photo, "-o", "out"], "there is nothing to show"),
        (&["--face", &photo, "--prompt", "a", "-o", "full"], "holds something already that is no comparison"),
        (&["--face", &empty, "--prompt", "a", "-o", "out"], "holds no pictures of a person (png, jpg"),
        (&["--face", "cast:anna", "--prompt", "a", "-o", "out"], "such as 1000001"),
        (&["--face", "none.png", "--prompt", "a", "-o", "out"], "none.png"),
        (&[&good[..], &["--methods", "magic"]].concat(), "valid are text, adapter, identitynet, instantid"),
        (&[&good[..], &["--scales", "0.4,-1"]].concat(), "a weight must be between 0 and 10"),
        (&[&good[..], &["--scales", "0.4,1,0.40"]].concat(), "--scales names 0.4 twice"),
        (&[&good[..], &["--face", &photo]].concat(), "face.png is given twice"),
        (&["--face", "cast:1000005", "--cast-faces", "2", "--prompt", "a", "-o", "out"], "cast:1000005 is given twice"),
        (
            &["--face", "people", "--prompt", "a", "-o", "out"],
            "holds folders and no pictures; give a person's own folder",
        ),
        (&[&good[..], &["--per-face", "0"]].concat(), "--per-face is 0"),
        (&[&good[..], &["--cast-faces", "99999999"]].concat(), "--cast-faces is 99999999"),
        (&[&good[..], &["--face", &photo, "--other", &photo]].concat(), "give each person a folder of pictures"),
        (&[&good[..], &["--guidance", "101"]].concat(), "--guidance is 101"),
    ] {
        let output = place.compare(line);
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line:?}: {err}");
        assert!(err.lines().any(|line| line.starts_with("sameface: ") && line.contains(said)), "{line:?}: {err}");
        assert!(!Path::new(&place.path("out")).exists(), "{line:?}");
    }
}

#[test]
fn drawings_carry_the_truth_and_are_the_same_twice() {
    let place = Place::new();
    let drawn = place.json(&["cast", "draw", "--seed", "1000001", "--count", "2", "--style", "noir", "-o", "people"]);
    let pictures = drawn["pictures"].as_array().unwrap();
    assert_eq!(pictures.len(), 2);
    for (i, picture) in pictures.iter().enumerate() {
        let path = place.path(picture["path"].as_str().unwrap());
        let mut truth = engine::metadata::drawn(Path::new(&path)).unwrap();
        truth["path"] = picture["path"].clone();
        assert_eq!(&truth, picture);
        assert_eq!((&truth["seed"], &truth["scene"]["style"]), (&Value::from(1_000_001 + i), &Value::from("noir")));
        assert_eq!(truth["kps"].as_array().unwrap().len(), 5);
    }
    let again = place.json(&["cast", "draw", "--seed", "1000001", "--style", "noir", "-o", "again.png"]);
    let first = place.path(pictures[0]["path"].as_str().unwrap());
    assert_eq!(fs::read(first).unwrap(), fs::read(place.path("again.png")).unwrap());
    assert_eq!(again["pictures"][0]["caption"], pictures[0]["caption"]);
    for (line, said) in [
        (&["--seed", "1", "--style", "cubist"][..], "valid are plain, noir"),
        (&["--seed", "1", "--count", "0"], "--count is 0"),
        (&["--seed", "18446744073709551615", "--count", "2"], "use a smaller seed"),
        (&["--seed", "1", "--scene", "nowhere"], "--scene is \"nowhere\""),
        (&["--seed", "1", "--yaw", "400"], "yaw is 400"),
        (&["--seed", "1", "--size", "8"], "8 pixels"),
    ] {
        let output = place.run(&[&["cast", "draw", "-o", "x.png"], line].concat());
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line:?}: {err}");
        assert!(err.contains(said), "{line:?}: {err}");
        assert!(!Path::new(&place.path("x.png")).exists());
    }
}

#[test]
fn a_drawn_face_stands_for_a_photo() {
    let place = Place::new();
    let stack = place.line();
    let models = &stack[1..9];
    let line =
        [&["generate", "a sailor", "--face", "cast:1000001", "--size", "64x64", "--steps", "2"][..], models].concat();
    let made = place.json(&[&line[..], &["-o", "x.png", "--seed", "1"]].concat());
    assert_eq!(made["photos"][0]["photo"], "cast:1000001");
    assert!(made["images"][0].get("likeness").is_none(), "nobody judges pictures of other models");
}

#[test]
fn the_name_of_the_built_in_models_is_known() {
    let place = Place::new();
    let output = place.run(&["generate", "a sailor", "--model", "mini", "--steps", "1", "-o", "x.png"]);
    match is_built_in() {
        true => assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr)),
        false => {
            assert!(text(&output.stderr).contains("built without the built-in models"), "{}", text(&output.stderr))
        }
    }
}

/// Trained weights keep a person: the first command of the README, and two people against text alone.
#[test]
fn the_built_in_models_keep_identity() {
    if !is_built_in() {
        return;
    }
    let place = Place::new();
    let made =
        place.json(&["generate", "portrait of a person", "--face", "cast:1000001", "--steps", "4", "-o", "x.png"]);
    assert!(made["images"][0]["likeness"].is_number() && Path::new(&place.path("x.png")).exists());
    let line = ["compare", "--cast-faces", "2", "--cast-prompts", "1", "--methods", "instantid", "--steps", "8"];
    let table = place.json(&[&line[..], &["--among", "2", "-o", "out"]].concat());
    let mean = |name: &str, key: &str| {
        let columns = table["columns"].as_array().unwrap();
        columns.iter().find(|column| column["column"] == name).unwrap()[key].as_f64().unwrap()
    };
    let (text, both) = (mean("text", "sim_ref"), mean("instantid", "sim_ref"));
    assert!(both > text + 0.25, "InstantID {both:.3}, text alone {text:.3}");
    assert!(mean("stranger", "sim_stranger") > mean("stranger", "sim_ref") + 0.2);
    assert!(mean("instantid", "text").is_finite());
}
