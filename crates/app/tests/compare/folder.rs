//! A comparison in its folder: stopped, gone on with, shared out and joined.

use std::fs;

use crate::place::{Place, fixture, text, timeless};
use serde_json::Value;

/// Two rows of four pictures, on the random stack.
fn line(place: &Place) -> Vec<&'static str> {
    let photo: &str = fixture("faces/tests/fixtures/face.png").leak();
    let faces = ["--face", photo, "--face", "cast:1000001", "--prompt", "a sailor", "--methods", "instantid"];
    [&place.line()[..], &faces, &["--among", "3"]].concat()
}

fn table(place: &Place, folder: &str) -> Value {
    serde_json::from_slice(&fs::read(place.path(&format!("{folder}/table.json"))).unwrap()).unwrap()
}

/// What programs change when they write a file.
fn changed(path: &str) -> std::time::SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

#[test]
fn a_stopped_comparison_goes_on_and_comes_to_the_same() {
    let place = Place::new();
    let line = line(&place);
    let whole = place.json(&[&line[..], &["-o", "whole"]].concat());
    assert_eq!((whole["pictures"].as_array().unwrap().len(), &whole["pictures_wanted"]), (8, &Value::from(8)));
    // Stopped in the middle of the sixth picture's line: the last two are gone, and the tables were never written.
    place.json(&[&line[..], &["-o", "out"]].concat());
    let results = fs::read_to_string(place.path("out/results.jsonl")).unwrap();
    let lines: Vec<&str> = results.lines().collect();
    fs::write(place.path("out/results.jsonl"), format!("{}\n{}", lines[..5].join("\n"), &lines[5][..30])).unwrap();
    for name in ["table.json", "index.html", "grid.png", "pictures/001-00-nobody.png"] {
        fs::remove_file(place.path(&format!("out/{name}"))).unwrap();
    }
    let kept = changed(&place.path("out/pictures/000-00-text.png"));
    let output = place.run(&[&line[..], &["-o", "out"]].concat());
    assert!(text(&output.stderr).contains("5 of 8 pictures are there already"), "{}", text(&output.stderr));
    assert_eq!(timeless(table(&place, "out")), timeless(whole.clone()));
    assert_eq!(changed(&place.path("out/pictures/000-00-text.png")), kept, "what is finished is not made again");
    for name in ["grid.png", "pictures/001-00-nobody.png", "pictures/001-00-stranger.png"] {
        let bytes = |folder: &str| fs::read(place.path(&format!("{folder}/{name}"))).unwrap();
        assert_eq!(bytes("whole"), bytes("out"), "{name}");
    }
    // Finished, it needs no models to be told again; more methods add to it.
    let again = place.json(&[&line[..], &["-o", "out"]].concat());
    assert_eq!(again["pictures"], table(&place, "out")["pictures"], "to the last digit");
    let more: Vec<&str> =
        line.iter().map(|word| if *word == "instantid" { "adapter,instantid" } else { word }).collect();
    let more = place.json(&[&more[..], &["-o", "out"]].concat());
    assert_eq!(more["pictures"].as_array().unwrap().len(), 10);
    assert_eq!(changed(&place.path("out/pictures/000-00-text.png")), kept);
}

#[test]
fn parts_are_joined_and_come_to_the_same() {
    let place = Place::new();
    let line = line(&place);
    let whole = place.json(&[&line[..], &["-o", "whole"]].concat());
    let part = place.json(&[&line[..], &["--shard", "1/2", "-o", "a"]].concat());
    assert_eq!((part["pictures"].as_array().unwrap().len(), &part["pictures_wanted"]), (4, &Value::from(8)));
    let output = place.run(&[&line[..], &["--shard", "2/2", "-o", "b"]].concat());
    assert!(text(&output.stderr).contains("4 of 8 pictures are made"), "{}", text(&output.stderr));
    assert!(fs::read_to_string(place.path("b/index.html")).unwrap().contains("Unfinished: 4 of 8 pictures"));
    let output = place.run(&[&line[..], &["--from", "b", "-o", "a"]].concat());
    assert_eq!(output.status.code(), Some(0));
    let err = text(&output.stderr);
    assert!(err.contains("4 pictures came from b") && err.contains("all 8 pictures are there already"), "{err}");
    assert_eq!(timeless(table(&place, "a")), timeless(whole));
}

#[test]
fn another_comparison_is_not_mixed_in() {
    let place = Place::new();
    let line = line(&place);
    place.json(&[&line[..], &["--shard", "1/2", "-o", "a"]].concat());
    let before = fs::read(place.path("a/results.jsonl")).unwrap();
    let refused = |more: &[&str], said: &str| {
        let output = place.run(&[&line[..], more].concat());
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{err}");
        assert!(err.contains(said), "{said}: {err}");
    };
    refused(&["--guidance", "2", "-o", "a"], "`guidance` is null there and 2.0 here");
    refused(&["--prompt", "a queen", "-o", "a"], "holds another comparison: `prompts`");
    refused(
        &["--seed", "3", "--from", "a", "-o", "b"],
        "--from a: holds another comparison: `seed` is 1 there and 3 here",
    );
    refused(&["--from", "judge", "-o", "b"], "--from judge: is no folder of a comparison");
    refused(&["--shard", "3/2", "-o", "b"], "it must be a part and their number");
    assert_eq!(fs::read(place.path("a/results.jsonl")).unwrap(), before);
}
