//! Values as PyTorch reads them, and files that must be refused with a sentence.
#![allow(missing_docs)]

mod common;

use common::{bytes, fixture, json, numbers, open, safetensors, shape};
use weights::{Error, Weights, ip_adapter};

/// Every tensor of `name` with its values; returns how many there were.
fn agrees(weights: &Weights, expected: &serde_json::Value) -> usize {
    let scope = weights.root();
    for name in weights.names() {
        let row = &expected[name];
        let view = scope.get_any(name).unwrap();
        assert_eq!(view.shape(), shape(row), "{name}");
        let values: Vec<f32> = numbers(&row[1]).into_iter().map(|x| x as f32).collect();
        assert_eq!(view.to_f32().unwrap(), values, "{name}");
        let rounded = view.to_bf16().unwrap();
        for (bits, x) in rounded.iter().zip(&values) {
            let back = f32::from_bits((*bits as u32) << 16);
            assert!((back - x).abs() <= x.abs() / 256.0, "{name}: {x} became {back}");
        }
    }
    assert_eq!(weights.unused(), Vec::<String>::new());
    weights.names().len()
}

#[test]
fn safetensors_of_all_types() {
    let weights = open("tensors.safetensors");
    assert_eq!(weights.metadata()["title"], "types");
    assert_eq!(agrees(&weights, &json("tensors.json")), 18);
}

#[test]
fn pickles_of_all_protocols() {
    let expected = json("tensors.json");
    for protocol in 2..=5 {
        let weights = open(&format!("tensors-{protocol}.bin"));
        assert_eq!(agrees(&weights, &expected), expected.as_object().unwrap().len());
    }
}

#[test]
fn training_checkpoints_are_their_state_dict() {
    let expected = json("training.json");
    assert_eq!(agrees(&open("training.ckpt"), &expected), expected.as_object().unwrap().len());
}

#[test]
fn adapters_in_both_forms() {
    let [nested, flat] = ["ip-adapter.bin", "ip-adapter.safetensors"].map(|name| ip_adapter(&fixture(name)).unwrap());
    for (a, b) in [(&nested.image_proj, &flat.image_proj), (&nested.ip_adapter, &flat.ip_adapter)] {
        assert_eq!(a.names(), b.names());
        for name in a.names() {
            let [x, y] = [a, b].map(|half| half.root().get_any(name).unwrap().to_f32().unwrap());
            assert_eq!(x, y, "{name}");
        }
    }
    assert_eq!(nested.ip_adapter.names(), ["1.to_k_ip.weight", "1.to_v_ip.weight"]);
    assert!(nested.config.is_none());
    assert_eq!(flat.config.unwrap()["dim_head"], 4);
}

#[test]
fn a_sidecar_configures_an_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.bin");
    std::fs::write(&path, bytes("ip-adapter.bin")).unwrap();
    std::fs::write(folder.path().join("adapter.json"), r#"{"dim_head": 8}"#).unwrap();
    assert_eq!(ip_adapter(&path).unwrap().config.unwrap()["dim_head"], 8);
}

/// Files that torch.save or an attacker wrote, and a piece of the sentence each gets.
#[test]
fn refused_files_say_why() {
    let rows = [
        ("legacy.bin", "format of before 1.6"),
        ("bare.pkl", "bare pickle"),
        ("scripted.pt", "TorchScript"),
        ("system.bin", "asks for `posix.system`"),
        ("eval.bin", "asks for `__builtin__.eval`"),
        ("complex.bin", "asks for `torch.ComplexFloatStorage`"),
        ("sparse.bin", "asks for `torch._utils._rebuild_sparse_tensor`"),
        ("object.bin", "asks for `__main__.Object`"),
        ("deflated.bin", "is compressed"),
        ("duplicate.bin", "appears twice"),
        ("no-storage.bin", "/data/0` is missing"),
        ("short-storage.bin", "claims more than the 100 bytes"),
        ("no-pickle.bin", "without data.pkl"),
        ("two-pickles.bin", "several data.pkl"),
        ("big-endian.bin", "not little-endian"),
        ("truncated.bin", "truncated"),
    ];
    for (name, sentence) in rows {
        let error = Weights::open(&fixture("refused").join(name)).unwrap_err().to_string();
        assert!(error.contains(sentence), "{name}: {error}");
        assert!(!error.contains('\n'), "{name}: {error}");
    }
}

#[test]
fn a_damaged_storage_is_told_when_it_is_read() {
    let view = open("refused/bad-crc.bin").root().get_any("a").unwrap();
    let error = view.to_f32().unwrap_err().to_string();
    assert!(error.contains("check sum"), "{error}");
}

/// What else users hand over, and headers that lie.
#[test]
fn damaged_safetensors_say_why() {
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
        )
    };
    let twice =
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(5000), "]".repeat(5000));
    let rows: Vec<(Vec<u8>, &str)> = vec![
        (Vec::new(), "is empty"),
        (vec![1, 2, 3], "is truncated: it has 3 bytes and needs 8"),
        (b"<!DOCTYPE html>...".to_vec(), "web page"),
        (b"version https://git-lfs.github.com/spec/v1".to_vec(), "Git LFS pointer"),
        (b"GGUF\x03\0\0\0\0\0\0\0".to_vec(), "GGUF"),
        (b"\x08\x07\x12\x04onnx....".to_vec(), "neither a safetensors file nor"),
        (b"PK\x05\x06".to_vec(), "directory is missing"),
        (safetensors(&one("F32", "[2]", "[0,8]"), 7), "is truncated: it has 69 bytes and needs 70"),
        (safetensors(&one("F32", "[2]", "[0,8]"), 9), "1 bytes follow"),
        (safetensors(&one("F32", "[3]", "[0,8]"), 8), "another size"),
        (safetensors(&one("F32", "[2]", "[8,0]"), 8), "gap"),
        (safetensors(&one("F32", "[4294967296,4294967296,4294967296]", "[0,8]"), 8), "another size"),
        (safetensors(&one("F32", "[0,9223372036854775807,9223372036854775807]", "[0,0]"), 0), "another size"),
        (safetensors(&one("F32", "[-1]", "[0,8]"), 8), "header is wrong"),
        (safetensors(&one("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4), "9 axes"),
        (safetensors(&one("F4", "[2]", "[0,1]"), 1), "type `F4` is not read"),
        (safetensors(&one("U8", "[18446744073709551615]", "[0,18446744073709551615]"), 8), "another size"),
        (safetensors(&two("[0,4]", "[2,6]"), 8), "overlaps"),
        (safetensors(&two("[0,4]", "[5,9]"), 9), "gap"),
        (safetensors(twice, 1), "appears twice"),
        (safetensors(&deep, 0), "header is wrong"),
        (safetensors("{\"a\"", 0), "header is wrong"),
        ([100_000_001u64.to_le_bytes().as_slice(), b"{}"].concat(), "at most 100000000"),
        ([u64::MAX.to_le_bytes().as_slice(), b"{}"].concat(), "at most 100000000"),
        ([99_999_999u64.to_le_bytes().as_slice(), b"{}"].concat(), "is truncated: it has 10 bytes and needs 100000007"),
    ];
    for (file, sentence) in rows {
        let shown = String::from_utf8_lossy(&file[..file.len().min(80)]).into_owned();
        let error = Weights::from_bytes("x.safetensors", file).unwrap_err().to_string();
        assert!(error.contains(sentence), "{shown}: {error}");
    }
}

#[test]
fn names_cannot_forge_a_log_line() {
    let header = r#"{"a\n\u001b[2JERROR\u202e":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}}"#;
    let error = Weights::from_bytes("x", safetensors(header, 1)).unwrap_err().to_string();
    assert!(error.contains(r"`a\u{a}\u{1b}[2JERROR\u{202e}`"), "{error}");
}

#[test]
fn values_that_are_not_finite_name_their_tensor() {
    let header = r#"{"blocks.0.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    for (value, f32_fails, bf16_fails) in
        [(f32::NAN, true, true), (f32::NEG_INFINITY, true, true), (f32::MAX, false, true), (1.0, false, false)]
    {
        let mut file = safetensors(header, 8);
        let end = file.len();
        file[end - 4..].copy_from_slice(&value.to_le_bytes());
        let view = Weights::from_bytes("x", file).unwrap().root().get_any("blocks.0.weight").unwrap();
        assert_eq!(view.to_f32().is_err(), f32_fails, "{value}");
        assert_eq!(view.to_bf16().is_err(), bf16_fails, "{value}");
        if bf16_fails {
            let error = view.to_bf16().unwrap_err().to_string();
            assert!(error.starts_with("`blocks.0.weight` in x holds values that are not finite"), "{error}");
        }
    }
}

/// A file that is cut or rewritten under an open table is an error, and never a signal or silent garbage.
#[test]
fn a_file_that_changes_is_told() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tensors.safetensors", "tensors-2.bin"] {
        let path = folder.path().join(name);
        let whole = bytes(name);
        std::fs::write(&path, &whole).unwrap();
        let view = Weights::open(&path).unwrap().root().get_any("wide").unwrap();
        view.to_f32().unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
        assert!(matches!(view.to_f32(), Err(Error::Changed { .. })), "{name}");
        // Long again, with other bytes and another time.
        std::fs::write(&path, vec![0; whole.len()]).unwrap();
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(10);
        std::fs::File::open(&path).unwrap().set_modified(later).unwrap();
        assert!(matches!(view.to_f32(), Err(Error::Changed { .. })), "{name}");
    }
}

/// Large tensors are converted in pieces on several threads.
#[test]
fn pieces_meet_without_a_seam() {
    let n = 3 * (1 << 19) + 17;
    let values: Vec<u16> = (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 17) as u16 & 0x7bff).collect();
    let header = format!(r#"{{"a":{{"dtype":"F16","shape":[{n}],"data_offsets":[0,{}]}}}}"#, 2 * n);
    let mut file = safetensors(&header, 0);
    file.extend(values.iter().flat_map(|x| x.to_le_bytes()));
    let read = Weights::from_bytes("x", file).unwrap().root().get("a", &[n]).unwrap().to_f32().unwrap();
    let slow = |h: u16| match (h >> 10, (h & 0x3ff) as f32) {
        (0, fraction) => fraction * 2f32.powi(-24),
        (exponent, fraction) => (1.0 + fraction / 1024.0) * 2f32.powi(exponent as i32 - 15),
    };
    assert!(read.iter().zip(&values).all(|(x, &h)| *x == slow(h)));
}
