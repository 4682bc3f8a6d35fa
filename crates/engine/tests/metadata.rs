//! What pictures carry, and reading it back.

use engine::metadata::{PARAMETERS, PLAN, Parameters, encode_png, read_texts};
use proptest::prelude::*;

fn example() -> Parameters {
    Parameters { prompt: "a cat, (film:1.2)".into(), negative: "blurry".into(), fields: Vec::new() }
        .field("Steps", 30)
        .field("Sampler", "DPM++ 2M Karras")
        .field("CFG scale", 5.0)
        .field("Seed", 965_400_086)
        .field("Size", "512x768")
        .field("Model", "base: v1, \"final\"")
        .field("Version", "sameface 0.1.0")
}

#[test]
fn the_text_is_the_web_uis() {
    let text = example().to_string();
    assert_eq!(
        text,
        "a cat, (film:1.2)\nNegative prompt: blurry\nSteps: 30, Sampler: DPM++ 2M Karras, CFG scale: 5, Seed: 965400086, \
         Size: 512x768, Model: \"base: v1, \\\"final\\\"\", Version: sameface 0.1.0"
    );
    assert_eq!(Parameters::parse(&text), example());
    let without = Parameters { negative: String::new(), ..example() };
    assert!(!without.to_string().contains("Negative prompt"));
    assert_eq!(Parameters::parse(&without.to_string()), without);
}

#[test]
fn texts_of_the_web_ui_are_understood() {
    let text = "girl with an artist's beret, ((eyeshadow)), detailed\nsecond line\nNegative prompt: ugly, [blurry],\nmore\n\
                Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, Model hash: 45dee52b, \
                ControlNet 0: \"Module: none, Model: x [abc], Weight: 0.8\"";
    let parsed = Parameters::parse(text);
    assert_eq!(parsed.prompt, "girl with an artist's beret, ((eyeshadow)), detailed\nsecond line");
    assert_eq!(parsed.negative, "ugly, [blurry],\nmore");
    assert_eq!(parsed.get("Sampler"), Some("Euler a"));
    assert_eq!(parsed.get("ControlNet 0"), Some("Module: none, Model: x [abc], Weight: 0.8"));
    assert_eq!(Parameters::parse("only a prompt, nothing: else").prompt, "only a prompt, nothing: else");
    assert_eq!(Parameters::parse(""), Parameters::default());
}

#[test]
fn pictures_carry_texts_in_the_chunks_that_pillow_would_use() {
    let rgb: Vec<u8> = (0..5 * 3 * 3).map(|i| i as u8 * 5).collect();
    let texts = [(PARAMETERS, "prompt é\nSteps: 1"), (PLAN, "{\"prompt\":\"猫 👩‍👩‍👧\"}")];
    let bytes = encode_png(5, 3, &rgb, &texts).unwrap();
    let contains = |needle: &[u8]| bytes.windows(needle.len()).any(|w| w == needle);
    assert!(contains(b"tEXtparameters\0prompt \xe9\nSteps: 1"), "Latin-1 goes into tEXt");
    assert!(contains("iTXtsameface\0\0\0\0\0{\"prompt\":\"猫 👩‍👩‍👧\"}".as_bytes()), "other text into iTXt, uncompressed");
    let read = read_texts(&bytes).unwrap();
    assert_eq!(read, texts.map(|(k, t)| (k.to_string(), t.to_string())));

    let mut reader = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    assert_eq!(pixels, rgb);
    assert_eq!(encode_png(5, 3, &rgb, &texts).unwrap(), bytes, "the same picture is the same file");
}

#[test]
fn impossible_pictures_are_refused() {
    assert!(
        encode_png(2, 2, &[0; 11], &[])
            .unwrap_err()
            .to_string()
            .contains("11 bytes were given for a picture of 2x2; it has 12")
    );
    assert!(encode_png(0, 0, &[], &[]).is_err());
    assert!(encode_png(1, 1, &[0; 3], &[("", "x")]).is_err());
    assert!(read_texts(b"no picture").is_err());
}

/// A text that grows a thousandfold, once and in many pieces.
#[test]
fn texts_that_would_fill_memory_are_refused() {
    let with = |count: usize, length: usize| {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 1, 1);
        encoder.set_color(png::ColorType::Rgb);
        for i in 0..count {
            encoder.add_ztxt_chunk(format!("k{i}"), "a".repeat(length)).unwrap();
        }
        encoder.write_header().unwrap().write_image_data(&[0; 3]).unwrap();
        bytes
    };
    assert_eq!(read_texts(&with(3, 100_000)).unwrap().len(), 3);
    for (count, length) in [(1, 64 << 20), (40, 1 << 20)] {
        let bomb = with(count, length);
        assert!(bomb.len() < 1 << 20, "{}", bomb.len());
        assert!(read_texts(&bomb).unwrap_err().to_string().contains("no readable PNG"));
    }
}

proptest! {
    #[test]
    fn fields_come_back(values in prop::collection::vec("\\PC{1,40}", 3..6), prompt in "[a-z(),\\[\\]]{0,40}") {
        let mut parameters = Parameters { prompt, ..Parameters::default() };
        for (i, value) in values.iter().enumerate() {
            let value = value.trim();
            prop_assume!(!value.is_empty() && !value.starts_with('"'));
            parameters = parameters.field(&format!("Field {i}"), value);
        }
        prop_assert_eq!(Parameters::parse(&parameters.to_string()), parameters);
    }

    #[test]
    fn no_text_and_no_bytes_make_the_readers_fail(text in "\\PC{0,200}|[a: ,\"\\\\\n]{0,60}", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        Parameters::parse(&text);
        let _ = read_texts(&bytes);
        let mut file = encode_png(1, 1, &[1, 2, 3], &[("parameters", "x")]).unwrap();
        for (i, byte) in bytes.iter().take(4).enumerate() {
            let place = 8 + (usize::from(*byte) * 7 + i * 13) % (file.len() - 8);
            file[place] ^= byte;
        }
        let _ = read_texts(&file);
    }
}
