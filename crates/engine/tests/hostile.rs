//! A model's folder with its small files damaged: a picture or a sentence, never a panic and never more memory than is
//! allowed. `MUTATIONS` says how often.

mod stack;

use engine::{Event, ModelPaths, Request, Session};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Marsaglia's xorshift, the same on every run.
struct Pick(u64);

impl Pick {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n.max(1)
    }
}

/// Changes, cuts or repeats what stands at one to three places.
fn mutate(text: &[u8], pick: &mut Pick) -> Vec<u8> {
    const WORDS: [&str; 18] = [
        "null",
        "true",
        "-1",
        "0",
        "7",
        "1e400",
        "4294967296",
        "18446744073709551616",
        "0.5",
        "\"\"",
        "[]",
        "{}",
        "[[8]]",
        "\"\\u0000\"",
        "\u{fffd}",
        "\"../../etc\"",
        "\"DownBlock2D\"",
        ",",
    ];
    let mut text = text.to_vec();
    for _ in 0..1 + pick.below(3) {
        let at = pick.below(text.len());
        let end = (at + pick.below(12)).min(text.len());
        match pick.below(6) {
            0 => text.truncate(at.max(1)),
            1 => text = [&text[..end], &text[at..]].concat(),
            2 => drop(text.drain(at..end)),
            // A whole value, where one stands.
            3 | 4 => {
                let Some(from) = text[at..].iter().position(|byte| *byte == b':').map(|i| at + i + 1) else { continue };
                let stop = text[from..].iter().position(|byte| b",}\n".contains(byte)).map_or(text.len(), |i| from + i);
                let word = WORDS[pick.below(WORDS.len())].bytes();
                text.splice(from..stop, word);
            }
            _ => text[at] = b"\"{}[]:,0159 ax<>\\\n\x00\xff"[pick.below(20)],
        }
    }
    text
}

/// All files but the tensors.
fn small_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.extension().map(|ending| ending.to_string_lossy().into_owned()).as_deref() {
            None => found.extend(small_files(&entry)),
            Some("json" | "txt") => found.push(entry),
            Some(_) => {}
        }
    }
    found.sort();
    found
}

#[test]
fn damaged_folders_make_a_picture_or_a_sentence() {
    let place = tempfile::tempdir().unwrap();
    let source = stack::fixtures().join("folder");
    stack::copy(&source.join("model"), &place.path().join("model"));
    stack::copy(&source.join("ControlNetModel"), &place.path().join("ControlNetModel"));
    let about = br#"{"defaults": {"steps": 20, "guidance": 3, "identitynet_scale": 1}, "subject": "drawn characters"}"#;
    std::fs::write(place.path().join("model/sameface.json"), about).unwrap();
    let mut request = Request::new(
        "a sailor",
        ModelPaths {
            base: place.path().join("model"),
            config: None,
            identitynet: Some(place.path().join("ControlNetModel")),
            ip_adapter: Some(source.join("ip-adapter.bin")),
            face_models: None,
        },
    );
    (request.faces, request.seed) = (vec![source.join("ada.safetensors")], Some(1));
    (request.size, request.steps, request.memory) = (Some((64, 64)), Some(1), Some(1 << 30));

    let files = small_files(place.path());
    assert!(files.len() > 12, "{files:?}");
    let rounds: usize = std::env::var("MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(600);
    let mut pick = Pick(0x2545_f491_4f6c_dd1d);
    let (mut opened, mut made) = (0, 0);
    for round in 0..rounds {
        let file = &files[round % files.len()];
        let whole = std::fs::read(file).unwrap();
        std::fs::write(file, mutate(&whole, &mut pick)).unwrap();
        // Opening reads all of them; a picture, which takes longer, is made now and then.
        let mut observe = |_: Event| ControlFlow::Continue(());
        let outcome = Session::open(&request, false).and_then(|mut session| {
            opened += 1;
            if opened % 8 == 1 { session.generate(&request, &mut observe).map(|_| made += 1) } else { Ok(()) }
        });
        if let Err(error) = outcome {
            let said = error.to_string();
            assert!(!said.trim_end().contains('\n'), "{}: {said}", file.display());
        }
        std::fs::write(file, whole).unwrap();
    }
    println!("{opened} of {rounds} damaged folders were opened, {made} made a picture");
    assert!(opened > rounds / 10 && made > 0, "{opened} of {rounds}, {made}");
}
