//! Tokenizer, weighting and chunks, against transformers (`reference/prompt.py`) and the web UI's documented behaviour.

use std::path::Path;

use engine::prompt::weighting::{self, Piece, Syntax};
use engine::prompt::{Chunks, MAX_PROMPT_BYTES, Tokenizer, encode};
use proptest::prelude::*;
use serde_json::Value;

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

#[test]
fn embedded_tokenizers_equal_transformers() {
    let rows: Vec<Value> = serde_json::from_str(include_str!("fixtures/prompt_tokens.json")).unwrap();
    let (clip, zero) = (Tokenizer::clip(), Tokenizer::clip_padded_with_zero());
    for row in rows {
        let text = row["text"].as_str().unwrap();
        assert_eq!(clip.encode(text), ids(&row["clip"]), "{text:?}");
        assert_eq!(zero.encode(text), ids(&row["zero"]), "{text:?}");
    }
    assert_eq!((clip.bos(), clip.eos(), clip.pad(), clip.max_length()), (49406, 49407, 49407, 77));
    assert_eq!((zero.pad(), clip.largest_id()), (0, 49407));
}

#[test]
fn tokenizer_folders_equal_transformers() {
    for name in ["new", "new_pad", "new_other", "old", "old_pad", "old_bare"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers").join(name);
        let expected: Value =
            serde_json::from_str(&std::fs::read_to_string(folder.join("expected.json")).unwrap()).unwrap();
        let tokenizer = Tokenizer::open(&folder).unwrap();
        let number = |key: &str| expected[key].as_u64().unwrap();
        assert_eq!(u64::from(tokenizer.bos()), number("bos"), "{name}");
        assert_eq!(u64::from(tokenizer.eos()), number("eos"), "{name}");
        assert_eq!(u64::from(tokenizer.pad()), number("pad"), "{name}");
        assert_eq!(tokenizer.max_length() as u64, number("max_length"), "{name}");
        for row in expected["rows"].as_array().unwrap() {
            let text = row[0].as_str().unwrap();
            assert_eq!(tokenizer.encode(text), ids(&row[1]), "{name}: {text:?}");
        }
    }
}

#[test]
fn broken_tokenizer_folders_are_refused_by_name() {
    let cases: [(&[(&str, &str)], &str); 7] = [
        (&[], "neither tokenizer.json nor vocab.json"),
        (&[("vocab.json", r#"{"a":0}"#)], "merges.txt: the file is missing"),
        (&[("vocab.json", "{"), ("merges.txt", "")], "vocab.json is not valid JSON: EOF"),
        (&[("vocab.json", r#"{"a":-1}"#), ("merges.txt", "")], "no table of tokens"),
        (&[("vocab.json", r#"{"a":0,"b":1}"#), ("merges.txt", "a b\n")], "merge rule 1 makes `ab`"),
        (&[("vocab.json", r#"{"a":0,"b":1}"#), ("merges.txt", "ab\n")], "a line is no pair"),
        (&[("tokenizer.json", r#"{"model":{"type":"Unigram"}}"#)], "the kind `Unigram`"),
    ];
    for (files, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let message = Tokenizer::open(folder.path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

/// Files with bytes changed end in a refusal or in a tokenizer that works, never in a panic. `MUTATIONS` says how often.
#[test]
fn damaged_tokenizer_files_never_panic() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers");
    let rounds: usize = std::env::var("MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let folder = tempfile::tempdir().unwrap();
    let mut generator = tensor::random::TorchCpu::new(3);
    let mut pick = |n: usize| ((generator.randn(1)[0].abs() * 1e6) as usize) % n;
    for name in ["new_other", "old_pad"] {
        let files: Vec<(String, Vec<u8>)> = std::fs::read_dir(source.join(name))
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap()))
            .filter(|(file, _)| file != "expected.json")
            .collect();
        for _ in 0..rounds.div_ceil(2) {
            for (file, bytes) in &files {
                let mut bytes = bytes.clone();
                for _ in 0..pick(4) {
                    let place = pick(bytes.len());
                    bytes[place] = b"\"{}[]:,0159 ax<>\\\n\x00\xff"[pick(20)];
                }
                bytes.truncate(if pick(20) == 0 { pick(bytes.len()) } else { bytes.len() });
                std::fs::write(folder.path().join(file), bytes).unwrap();
            }
            if let Ok(tokenizer) = Tokenizer::open(folder.path()) {
                let pieces = weighting::parse("low, (newest:1.2) <w> ! é", Syntax::Weighted).unwrap();
                assert!(!Chunks::new(&tokenizer, &pieces).is_empty());
            }
        }
        files.iter().for_each(|(file, _)| std::fs::remove_file(folder.path().join(file)).unwrap());
    }
}

fn text(text: &str, weight: f32) -> Piece {
    Piece::Text(text.into(), weight)
}

#[test]
fn weighting_syntax() {
    let cases = [
        ("", vec![text("", 1.0)]),
        ("normal text", vec![text("normal text", 1.0)]),
        ("an (important) word", vec![text("an ", 1.0), text("important", 1.1), text(" word", 1.0)]),
        ("(unbalanced", vec![text("unbalanced", 1.1)]),
        ("unbalanced) [x", vec![text("unbalanced) ", 1.0), text("x", 1.0 / 1.1)]),
        (r"\(literal\]", vec![text("(literal]", 1.0)]),
        (r"back\\slash \x", vec![text(r"back\slash x", 1.0)]),
        ("(unnecessary)(parens)", vec![text("unnecessaryparens", 1.1)]),
        ("(word:1.5)", vec![text("word", 1.5)]),
        ("(word: 1.5 )", vec![text("word", 1.5)]),
        ("(word:-.5)", vec![text("word", -0.5)]),
        ("(a:b:1.5)", vec![text("a:b", 1.5)]),
        ("time 12:30) ok", vec![text("time 12:30) ok", 1.0)]),
        ("(ratio 16:9)", vec![text("ratio 16", 9.0)]), // as there
        ("[[x]]", vec![text("x", (1.0 / 1.1 / 1.1) as f32)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            vec![
                text("a ", 1.0),
                text("house", 1.573),
                text(" ", 1.1),
                text("on", 1.0),
                text(" a ", 1.1),
                text("hill", 0.55),
                text(", sun, ", 1.1),
                text("sky", 1.4641),
                text(".", 1.1),
            ],
        ),
        ("a BREAK b", vec![text("a", 1.0), Piece::Break, text("b", 1.0)]),
        ("(a BREAK b)", vec![text("a", 1.1), Piece::Break, text("b", 1.1)]),
        ("BREAK", vec![text("", 1.0), Piece::Break, text("", 1.0)]),
        ("a BREAK BREAK b", vec![text("a", 1.0), Piece::Break, text("", 1.0), Piece::Break, text("b", 1.0)]),
        ("BREAKFAST unBREAK _BREAK", vec![text("BREAKFAST unBREAK _BREAK", 1.0)]),
        ("👩‍👩‍👧 (é:1.2)", vec![text("👩‍👩‍👧 ", 1.0), text("é", 1.2)]),
    ];
    for (prompt, expected) in cases {
        let pieces = weighting::parse(prompt, Syntax::Weighted).unwrap();
        let same = pieces.len() == expected.len()
            && pieces.iter().zip(&expected).all(|pair| match pair {
                (Piece::Text(a, v), Piece::Text(b, w)) => a == b && (v - w).abs() < 1e-6,
                (a, b) => a == b,
            });
        assert!(same, "{prompt:?} gave {pieces:?}");
    }
    let plain = "a (b:1.2) [c] BREAK \\(";
    assert_eq!(weighting::parse(plain, Syntax::Plain).unwrap(), vec![text(plain, 1.0)]);
}

#[test]
fn impossible_weights_are_refused_by_value() {
    for (prompt, value) in
        [("(a:1.2.3)", "`1.2.3`"), ("(a:.)", "`.`"), ("(a:999)", "`999`"), (&"(".repeat(60), "weight")]
    {
        let prompt = format!("{prompt}x");
        let message = weighting::parse(&prompt, Syntax::Weighted).unwrap_err().to_string();
        assert!(message.contains(value), "{message}");
    }
}

#[test]
fn hostile_prompts_are_refused_in_a_sentence() {
    let tokenizer = Tokenizer::clip();
    let refuse = |prompt: &str, negative: &str| {
        encode(&[&tokenizer], prompt, negative, Syntax::Weighted).unwrap_err().to_string()
    };
    assert!(refuse(&"x".repeat(1 << 20), "").contains("the prompt is 1048576 bytes long; at most 16384"));
    assert!(refuse("a\0b", "").contains("U+0000 as its character 2"));
    assert!(
        refuse("", "é\u{1b}[2J").contains("the negative prompt holds the control character U+001B as its character 2")
    );
    assert!(encode(&[&tokenizer], "tabs\tand\r\nlines 👩‍👩‍👧‍👦", "", Syntax::Weighted).is_ok());
}

#[test]
fn a_megabyte_of_one_word_takes_no_time_to_speak_of() {
    let start = std::time::Instant::now();
    assert!(!Tokenizer::clip().encode(&"ab".repeat(1 << 19)).is_empty());
    assert!(start.elapsed().as_secs() < 20, "quadratic time would take hours");
}

fn words(n: usize) -> String {
    vec!["cat"; n].join(" ")
}

fn chunks(prompt: &str) -> Chunks {
    Chunks::new(&Tokenizer::clip(), &weighting::parse(prompt, Syntax::Weighted).unwrap())
}

#[test]
fn chunks_are_laid_out_as_in_the_web_ui() {
    // (prompt, tokens in each chunk)
    let comma_at = |n: usize, after: usize| format!("{}, {}", words(n), words(after));
    let cases: Vec<(String, Vec<usize>)> = vec![
        (String::new(), vec![0]),
        (words(75), vec![75]),
        (words(76), vec![75, 1]),
        (words(151), vec![75, 75, 1]),
        (comma_at(54, 20), vec![75]),     // the chunk is exactly full
        (comma_at(55, 20), vec![56, 20]), // one too many: what follows the comma moves
        (comma_at(54, 21), vec![75, 1]),  // the comma is 21 tokens back: too far
        (comma_at(74, 5), vec![75, 5]),   // the comma is the last token
        (comma_at(75, 5), vec![75, 6]),   // the comma itself starts the next
        ("a BREAK b BREAK".into(), vec![1, 1]),
        ("BREAK a".into(), vec![0, 1]),
        ("a BREAK BREAK b".into(), vec![1, 0, 1]),
    ];
    for (prompt, expected) in cases {
        let chunks = chunks(&prompt);
        let used: Vec<usize> = chunks.ids().iter().map(|c| c.iter().position(|id| *id == 49407).unwrap() - 1).collect();
        assert_eq!(used, expected, "{prompt:?}");
        assert!(chunks.ids().iter().all(|c| c.len() == 77 && c[0] == 49406));
        assert_eq!(chunks.tokens(), expected.iter().sum::<usize>());
    }
}

#[test]
fn both_prompts_get_as_many_chunks_and_the_user_hears_of_it() {
    let (clip, zero) = (Tokenizer::clip(), Tokenizer::clip_padded_with_zero());
    let encoded = encode(&[&clip, &zero], &words(80), "blurry", Syntax::Weighted).unwrap();
    assert!(encoded.prompt.iter().chain(&encoded.negative).all(|c| c.len() == 2));
    assert_eq!(encoded.notes, ["the prompt has 80 tokens, which the text encoder reads in 2 parts of up to 75"]);
    assert_eq!(encoded.negative[1].ids()[1][..4], [49406, 49407, 0, 0]);
    assert_eq!(encoded.negative[0].ids()[1][..4], [49406, 49407, 49407, 49407]);
    assert!(encode(&[&clip], "short", "", Syntax::Plain).unwrap().notes.is_empty());
}

#[test]
fn weights_scale_tokens_and_keep_each_chunks_mean() {
    let weighted = chunks("cat (dog:1.5) BREAK bird");
    assert!(weighted.is_weighted());
    let original: Vec<f32> = (0..2 * 77 * 3).map(|i| ((i * 37 % 101) as f32 - 40.0) / 50.0).collect();
    let mut hidden = original.clone();
    weighted.apply_weights(&mut hidden);
    let (first, second) = hidden.split_at(77 * 3);
    assert_eq!(second, &original[77 * 3..], "the chunk without weights is untouched");
    let mean = |v: &[f32]| v.iter().sum::<f32>() / v.len() as f32;
    assert!((mean(first) - mean(&original[..77 * 3])).abs() < 1e-6);
    // bos, cat, dog: the third token grew by half relative to the others
    let ratio = |i: usize| first[i] / original[i];
    assert!((ratio(6) / ratio(3) - 1.5).abs() < 1e-5 && (ratio(0) / ratio(3) - 1.0).abs() < 1e-6);

    let plain = chunks("(cat:1.0) dog");
    let mut hidden = original[..77 * 3].to_vec();
    plain.apply_weights(&mut hidden);
    assert!(!plain.is_weighted() && hidden == original[..77 * 3]);
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_or_the_tokenizer_fail(prompt in "\\PC{0,200}|[\\\\()\\[\\]:.0-9+\\- aBREAK,é👩\u{200d}]{0,80}") {
        if let Ok(pieces) = weighting::parse(&prompt, Syntax::Weighted) {
            let tokenizer = Tokenizer::clip();
            let count: usize = pieces.iter().map(|p| match p {
                Piece::Text(text, weight) => {
                    assert!(weight.is_finite());
                    tokenizer.encode(text).len()
                }
                Piece::Break => 0,
            }).sum();
            let chunks = Chunks::new(&tokenizer, &pieces);
            // Every token is in a chunk, in order.
            prop_assert_eq!(chunks.tokens(), count);
            let flat: Vec<u32> = pieces.iter().flat_map(|p| match p {
                Piece::Text(text, _) => tokenizer.encode(text),
                Piece::Break => Vec::new(),
            }).collect();
            if !flat.contains(&49407) {
                let laid: Vec<u32> = chunks.ids().iter().flatten().copied().filter(|id| *id < 49406).collect();
                prop_assert_eq!(laid, flat);
            }
        }
    }

    #[test]
    fn text_without_syntax_is_one_piece(prompt in "[^\\\\()\\[\\]B]{0,200}") {
        let pieces = weighting::parse(&prompt, Syntax::Weighted).unwrap();
        prop_assert_eq!(pieces, vec![Piece::Text(prompt, 1.0)]);
    }

    #[test]
    fn any_text_within_the_limit_encodes_plainly(prompt in "\\PC{0,300}") {
        prop_assume!(prompt.len() <= MAX_PROMPT_BYTES);
        let tokenizer = Tokenizer::clip_padded_with_zero();
        let encoded = encode(&[&tokenizer], &prompt, "", Syntax::Plain).unwrap();
        prop_assert!(!encoded.prompt[0].is_weighted());
    }
}
