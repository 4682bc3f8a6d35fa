//! Mutated files through every parser: no panic, no hang, and no more memory than the file justifies.
//!
//! `cargo test` runs some 20,000 a parser; a million each with
//! `MUTATIONS=1000000 cargo test --release -p weights --test mutations`.
#![allow(missing_docs)]

mod common;
#[path = "common/zip.rs"]
mod zip;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use common::{bytes, safetensors};
use weights::{Weights, describe};

/// Counts what each thread holds, so that tests do not see each other.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    let _ = HELD.try_with(|held| {
        held.set(held.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Beyond this many bytes for each byte of the file, and this much for any file, something was believed unchecked.
const PER_BYTE: usize = 128;
const FOR_ANY: usize = 64 << 10;

/// Opens a file and reads all of it in every way; returns whether it was accepted.
fn survive(file: Vec<u8>) -> bool {
    let len = file.len();
    PEAK.set(HELD.get());
    let before = HELD.get();
    let start = Instant::now();
    let accepted = match Weights::from_bytes("mutant", file) {
        Err(error) => {
            let text = error.to_string();
            assert!(!text.is_empty() && !text.contains('\n') && text.len() < 2000, "{text}");
            false
        }
        Ok(weights) => {
            read_all(&weights);
            describe(&weights);
            let parts = [weights::unet, weights::controlnet, weights::vae].map(|part| part(&weights));
            parts.into_iter().flatten().for_each(|part| read_all(&part));
            if let Ok(parts) = weights::sdxl_checkpoint(&weights) {
                read_all(&parts.unet);
                read_all(&parts.vae);
                read_all(&parts.text_encoder_2);
            }
            true
        }
    };
    let (took, held) = (start.elapsed(), PEAK.get() - before);
    assert!(took < Duration::from_secs(5), "took {took:?}");
    assert!(held <= (FOR_ANY + PER_BYTE * len) as isize, "a file of {len} bytes took {held}");
    accepted
}

fn read_all(weights: &Weights) {
    let scope = weights.root();
    for name in weights.names() {
        let view = scope.get_any(name).expect("a listed name");
        let count: usize = view.shape().iter().product();
        if let Ok(values) = view.to_f32() {
            assert_eq!(values.len(), count);
        }
        let _ = view.to_bf16();
    }
}

/// SplitMix64: the same mutants in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// One to eight changes: bits, bytes, numbers at the edges, pieces copied, dropped or cut, words of the format put in.
fn mutate(random: &mut Random, file: &mut Vec<u8>, words: &[&[u8]]) {
    for _ in 0..1 << random.below(4) {
        let at = random.below(file.len());
        let n = 1 + random.below(16);
        match random.below(10) {
            0 | 1 if at < file.len() => file[at] ^= 1 << random.below(8),
            2 if at < file.len() => file[at] = random.next() as u8,
            3 => {
                let edges = [0, 1, u64::MAX, u64::MAX >> 1, 1 << 31, u32::MAX as u64, 1 << 40, 0xffff];
                let edge = edges[random.below(edges.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)];
                for (place, byte) in file.iter_mut().skip(at).zip(&edge[..width]) {
                    *place = *byte;
                }
            }
            4 => {
                let piece: Vec<u8> = file.iter().skip(at).take(n).copied().collect();
                let to = random.below(file.len());
                file.splice(to..to, piece);
            }
            5 => drop(file.drain(at..(at + n).min(file.len()))),
            6 if random.below(8) == 0 => file.truncate(at),
            7 | 8 => {
                let word = words[random.below(words.len())];
                let end = if random.below(2) == 0 { at } else { (at + word.len()).min(file.len()) };
                file.splice(at..end, word.iter().copied());
            }
            _ => {
                let to = random.below(file.len());
                if at < file.len() {
                    file.swap(at, to);
                }
            }
        }
    }
}

fn rounds() -> usize {
    std::env::var("MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000)
}

/// Runs the mutants of a parser; some must be accepted, or the mutations never get past the door.
fn run(name: &str, seed: u64, mut mutant: impl FnMut(&mut Random) -> Vec<u8>) {
    let mut random = Random(seed);
    let start = Instant::now();
    let accepted = (0..rounds()).filter(|_| survive(mutant(&mut random))).count();
    println!("{name}: {} mutants, {accepted} accepted, {:?}", rounds(), start.elapsed());
    assert!(accepted > 0);
}

#[test]
fn safetensors_files() {
    const WORDS: [&[u8]; 22] = [
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"\"",
        b"\"shape\":[",
        b"\"dtype\":\"F64\"",
        b"\"data_offsets\":[0,0]",
        b"0",
        b"-1",
        b"18446744073709551615",
        b"9223372036854775807",
        b"1e99",
        b"null",
        b"\\ud800",
        b"\xff",
        b"__metadata__",
        b"{\"a\":{\"a\":",
        b"[[[[[[",
        b"F32",
    ];
    let small = [bytes("tensors.safetensors"), bytes("ip-adapter.safetensors"), bytes("half-adapter.safetensors")];
    let large = [bytes("controlnet.safetensors"), bytes("only-unet.safetensors")];
    run("safetensors", 1, |random| {
        let from = if random.below(32) == 0 { &large } else { &small[..] };
        let mut file = from[random.below(from.len())].clone();
        if random.below(2) == 0 {
            mutate(random, &mut file, &WORDS);
            return file;
        }
        // Only the header, with its length kept right: deeper into the parser.
        let end = 8 + u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
        let mut header = file[8..end].to_vec();
        mutate(random, &mut header, &WORDS);
        [&(header.len() as u64).to_le_bytes(), header.as_slice(), &file[end..]].concat()
    });
}

const FIXTURES: [&str; 5] =
    ["tensors-2.bin", "tensors-4.bin", "training.ckpt", "ip-adapter.bin", "folder/unet/diffusion_pytorch_model.bin"];

#[test]
fn zip_files() {
    const WORDS: [&[u8]; 6] =
        [b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"\x01\0\x18\0"];
    let files = FIXTURES.map(bytes);
    run("zip", 2, |random| {
        let mut file = files[random.below(files.len())].clone();
        // Half of the changes near the end, where the directory is.
        let from = if random.below(2) == 0 { file.len() * 3 / 4 } else { 0 };
        let mut tail = file.split_off(from);
        mutate(random, &mut tail, &WORDS);
        file.extend(tail);
        file
    });
}

#[test]
fn pickles() {
    const WORDS: [&[u8]; 24] = [
        b"(",
        b"}",
        b"]",
        b")",
        b"t",
        b"u",
        b"s",
        b"e",
        b"a",
        b"R",
        b"Q",
        b"b",
        b"0",
        b"1",
        b"h\x00",
        b"h\x01",
        b"q\x01",
        b"\x94",
        b"\x93",
        b"\x85",
        b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"J\xff\xff\xff\xff",
        b"X\xff\xff\xff\xff",
        b"ctorch\nbfloat16\n",
    ];
    let files = FIXTURES.map(bytes);
    run("pickle", 3, |random| {
        let mut pickle = zip::pickle_of(&files[random.below(files.len())]).to_vec();
        mutate(random, &mut pickle, &WORDS);
        let storages: Vec<String> = (0..24).map(|i| format!("a/data/{i}")).collect();
        let mut records: Vec<(&str, &[u8])> = vec![("a/data.pkl", &pickle)];
        records.extend(storages.iter().map(|name| (name.as_str(), [0x3c; 480].as_slice())));
        zip::stored(&records)
    });
}

#[test]
fn layouts() {
    const WORDS: [&[u8]; 16] = [
        b".0.",
        b".1.",
        b".18446744073709551615.",
        b".-1.",
        b"..",
        b"input_blocks.",
        b"output_blocks.",
        b"middle_block.",
        b"conv.",
        b"op.",
        b"attn_",
        b"block_",
        b"in_proj_weight",
        b"decoder.up.",
        b"zero_convs.",
        b"input_hint_block.",
    ];
    let files = ["sdxl.safetensors", "controlnet.safetensors", "sd15.safetensors"].map(common::open);
    let names = files.each_ref().map(Weights::names);
    run("layouts", 4, |random| {
        let names = &names[random.below(3)];
        let few: Vec<&str> = (0..24).map(|_| names[random.below(names.len())]).collect();
        let mut text = few.join("\n").into_bytes();
        mutate(random, &mut text, &WORDS);
        let mut header = serde_json::Map::new();
        for name in String::from_utf8_lossy(&text).lines() {
            let at = header.len() * 12;
            let shape = [&[3][..], &[3, 1], &[1, 3, 1, 1]][random.below(3)];
            let row = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [at, at + 12]});
            // A name that came twice keeps its first range.
            header.entry(name).or_insert(row);
        }
        let data = header.len() * 12;
        safetensors(&serde_json::Value::Object(header).to_string(), data)
    });
}

/// Files made to blow up rather than by chance.
#[test]
fn hostile_files() {
    let open = |pickle: &[u8]| {
        let file = zip::torch(pickle);
        let len = file.len();
        PEAK.set(HELD.get());
        let before = HELD.get();
        let start = Instant::now();
        let error = Weights::from_bytes("hostile", file).map(|_| ()).unwrap_err().to_string();
        assert!(start.elapsed() < Duration::from_secs(5), "{error}: {:?}", start.elapsed());
        let held = PEAK.get() - before;
        assert!(held <= (FOR_ANY + PER_BYTE * len) as isize, "{error}: {len} bytes took {held}");
        error
    };
    let with = |head: &[u8], body: &[u8], n: usize, tail: &[u8]| [head, &body.repeat(n), tail].concat();

    // A dictionary that holds the one before it twice, sixty times over: 2^60 names.
    let mut doubling = b"\x80\x04}\x94".to_vec();
    for i in 0..60u8 {
        doubling.extend([b'}', 0x94, b'(', 0x8c, 1, b'a', b'h', i, 0x8c, 1, b'b', b'h', i, b'u']);
    }
    doubling.push(b'.');
    let error = open(&doubling);
    assert!(error.contains("too deeply") || error.contains("too often"), "{error}");

    // Wide rather than deep: a list of many, many times over.
    let wide = |head: &[u8], after: &[u8]| {
        let mut bytes = [head, &b"N".repeat(100_000), after].concat();
        for i in 0..50_000u32 {
            bytes.push(b'J');
            bytes.extend(i.to_le_bytes());
            bytes.extend(b"h\0");
        }
        bytes.extend(b"u.");
        bytes
    };
    // The list is remembered while it lies on the stack; the dictionary below it takes none of it.
    let error = open(&wide(b"\x80\x04}](", b"e\x94("));
    assert!(error.contains("something other than a dictionary"), "{error}");
    let error = open(&wide(b"\x80\x04](", b"e\x940}("));
    assert!(error.contains("too often"), "{error}");

    let million = 1_000_000;
    let rows: [(Vec<u8>, &str); 14] = [
        // Tuples in tuples: nothing recurses over them.
        (with(b"\x80\x02)", b"\x85", million, b"."), "no dictionary of tensors"),
        (with(b"\x80\x02", b"}", 2 * million, b"."), "makes more than 1048576 values"),
        (with(b"\x80\x02", b"(", million, b"."), "past a mark"),
        (with(b"\x80\x02}", b"\x94", 3 * million, b"."), "makes more than 1048576 values"),
        (
            with(b"\x80\x02}X\x01\0\0\0a", b"}X\x01\0\0\0a", 100, &[b"}".as_slice(), &b"s".repeat(101), b"."].concat()),
            "too deeply",
        ),
        // A dictionary inside itself.
        (b"\x80\x02}q\0X\x01\0\0\0ah\0s.".to_vec(), "too deeply"),
        // Lengths that are not there.
        (b"\x80\x02X\xff\xff\xff\xff".to_vec(), "within an instruction"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(), "within an instruction"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f".to_vec(), "within an instruction"),
        (b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.".to_vec(), "asks for `os.system`"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.".to_vec(), "asks for `os.system`"),
        (b"\x80\x02(cos\nsystem\no.".to_vec(), "asks for `os.system`"),
        (b"\x80\x02}X\x01\0\0\0ai0\n.".to_vec(), "uses the instruction INST at byte 9"),
        (b"\x80\x02}}\x81.".to_vec(), "uses the instruction NEWOBJ at byte 4"),
    ];
    for (pickle, sentence) in rows {
        let error = open(&pickle);
        assert!(error.contains(sentence), "{sentence}: {error}");
    }

    // Shapes beyond a storage of eight floats, by size, by stride and by offset.
    let tensor = |shape: &str, strides: &str, offset: &str| {
        let head =
            "\u{80}\u{2}}X\u{1}\0\0\0actorch._utils\n_rebuild_tensor_v2\n((X\u{7}\0\0\0storagectorch\nFloatStorage\n";
        let tail = format!("X\u{1}\0\0\0\u{30}X\u{3}\0\0\0cpuK\u{8}tQ{offset}({shape}t({strides}t\u{89}cc\n");
        let text = format!("{head}{tail}");
        let mut pickle: Vec<u8> = text.chars().map(|c| c as u8).collect();
        pickle.truncate(pickle.len() - 3);
        pickle.extend(b"ccollections\nOrderedDict\n)RtRs.");
        pickle
    };
    for (shape, strides, offset) in [
        ("K\u{9}", "K\u{1}", "K\u{0}"),
        ("K\u{8}", "K\u{1}", "K\u{1}"),
        ("K\u{3}", "K\u{4}", "K\u{0}"),
        ("J\u{ff}\u{ff}\u{ff}\u{7f}", "K\u{0}", "K\u{0}"),
        ("J\u{ff}\u{ff}\u{ff}\u{7f}J\u{ff}\u{ff}\u{ff}\u{7f}J\u{ff}\u{ff}\u{ff}\u{7f}", "K\u{0}K\u{0}K\u{0}", "K\u{0}"),
    ] {
        let error = open(&tensor(shape, strides, offset));
        assert!(error.contains("reaches beyond a storage of 8 elements"), "{error}");
    }
    let error = open(&tensor("J\u{ff}\u{ff}\u{ff}\u{ff}", "K\u{1}", "K\u{0}"));
    assert!(error.contains("are not at most 8 counts"), "{error}");
    // A stride that nothing is reached by may be any number.
    let one = zip::torch(&tensor(
        "K\u{1}K\u{2}K\u{1}",
        "\u{8a}\u{8}\u{ff}\u{ff}\u{ff}\u{ff}\u{ff}\u{ff}\u{ff}\u{7f}K\u{2}J\u{ff}\u{ff}\u{ff}\u{7f}",
        "K\u{0}",
    ));
    assert!(survive(one));
    let fits = Weights::from_bytes("fits", zip::torch(&tensor("K\u{2}K\u{2}", "K\u{4}K\u{3}", "K\u{0}"))).unwrap();
    assert_eq!(fits.root().get("a", &[2, 2]).unwrap().to_f32().unwrap(), [0.0; 4]);

    // A header of many megabytes is paid for by the file that holds it.
    let many: Vec<String> =
        (0..100_000).map(|i| format!(r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#)).collect();
    assert!(survive(safetensors(&format!("{{{}}}", many.join(",")), 0)));
}
