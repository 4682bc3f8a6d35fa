//! Mutated photos, networks, judges and identities: an answer or a sentence, never a panic that escapes, a
//! hang, or memory beyond what the file justifies.
//!
//! `SAMEFACE_MUTATIONS=1000000 cargo test -p faces --release --test hostile` runs as long as wanted.

mod support;
use faces::{FaceAnalyzer, Identity, Judge, Photo, PhotoLimits};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};
use support::{Dice, fixture};

/// Counts what is allocated, so that a test can say how much a file made the program take.
struct Counting;
static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(now, Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The counter is one for the process, so that tests take turns.
static TURN: Mutex<()> = Mutex::new(());

fn rounds() -> usize {
    std::env::var("SAMEFACE_MUTATIONS").ok().and_then(|v| v.parse().ok()).unwrap_or(2000)
}

/// Another sequence of mutations for each `SAMEFACE_SEED`, so that long runs can share the cores.
fn seed() -> u64 {
    std::env::var("SAMEFACE_SEED").ok().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0) << 8
}

/// Runs one case and returns how much memory it took above what was there before.
fn measured(what: &str, case: impl FnOnce()) -> usize {
    let before = NOW.load(Relaxed);
    PEAK.store(before, Relaxed);
    let start = Instant::now();
    case();
    assert!(start.elapsed() < Duration::from_secs(60), "{what} took {:?}", start.elapsed());
    PEAK.load(Relaxed).saturating_sub(before)
}

fn quietly() {
    std::panic::set_hook(Box::new(|_| {}));
}

#[test]
fn mutated_photos() {
    let _turn = TURN.lock();
    quietly();
    let mut files: Vec<_> = std::fs::read_dir(fixture("photos")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let originals: Vec<Vec<u8>> = files.iter().map(|f| std::fs::read(f).unwrap()).collect();
    let limits = PhotoLimits { min_side: 1, max_pixels: 4_000_000, ..PhotoLimits::default() };
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let (mut read, mut most) = (0, 0);
    for round in 0..rounds() {
        let bytes = dice.mutate(&originals[round % originals.len()]);
        let mut ok = false;
        let name = &files[round % files.len()];
        let took = measured(&format!("{name:?}, round {round}"), || {
            ok = match Photo::from_bytes("photo", &bytes, &limits) {
                Ok(photo) => photo.image.width() > 0,
                Err(error) => {
                    assert!(!error.to_string().contains('\n'), "{error}");
                    false
                }
            };
        });
        read += usize::from(ok);
        most = most.max(took);
        assert!(took < 300 << 20, "{name:?}, round {round}: {} MiB", took >> 20);
    }
    println!("{read} of {} mutated photos were read; most memory {} KiB", rounds(), most >> 10);
}

#[test]
fn mutated_networks() {
    let _turn = TURN.lock();
    quietly();
    let load = |net: &str, file: &str| std::fs::read(fixture("nets").join(net).join(file)).unwrap();
    let pairs = [
        (load("fixed", "scrfd_10g_bnkps.onnx"), load("fixed", "glintr100.onnx")),
        (load("plain", "scrfd_10g_bnkps.onnx"), load("plain", "glintr100.onnx")),
        (load("five", "a_detector.onnx"), load("five", "w600k.onnx")),
    ];
    let photo = Photo::open(&fixture("face.png")).unwrap();
    let mut dice = Dice(0x2545_f491_4f6c_dd1d ^ seed());
    let (mut ran, mut loaded, mut most) = (0, 0, 0);
    for round in 0..rounds() {
        let (detector, recogniser) = &pairs[round % pairs.len()];
        let mutate_detector = dice.roll(2) == 0;
        let (detector, recogniser) = if mutate_detector {
            (dice.mutate(detector), recogniser.clone())
        } else {
            (detector.clone(), dice.mutate(recogniser))
        };
        let took = measured(&format!("network round {round}"), || {
            match FaceAnalyzer::from_bytes(detector, recogniser) {
                Ok(analyzer) => {
                    loaded += 1;
                    // Running all is slow; loading is where most of the parsing is.
                    if round % 8 == 0 {
                        ran += usize::from(analyzer.analyze(&photo).is_ok());
                    }
                }
                Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
            }
        });
        most = most.max(took);
        assert!(took < 2 << 30, "round {round}: {} MiB", took >> 20);
    }
    println!("{loaded} of {} mutated networks were loaded, {ran} ran; most memory {} MiB", rounds(), most >> 20);
}

#[test]
fn mutated_judges() {
    let _turn = TURN.lock();
    quietly();
    let folder = tempfile::tempdir().unwrap();
    let encoder = fixture("nets/plain/glintr100.onnx");
    std::fs::copy(&encoder, folder.path().join("identity.onnx")).unwrap();
    // Its shapes are not a judge's, which is found out when it reads a picture.
    std::fs::copy(&encoder, folder.path().join("content.onnx")).unwrap();
    let about = br#"{"content": {"size": 112, "attributes": {"style": ["ink", "oil"], "age": ["young", "old"]}}}"#;
    let picture = image::RgbImage::new(64, 64);
    let mut dice = Dice(0x6a09_e667_f3bc_c908 ^ seed());
    let (mut opened, few) = (0, rounds() / 4);
    for round in 0..few {
        std::fs::write(folder.path().join("judge.json"), dice.mutate(about)).unwrap();
        let took = measured("judge", || match Judge::open(folder.path()) {
            Ok(judge) => {
                opened += 1;
                let said = judge.read(&picture).unwrap_err().to_string();
                assert!(!said.contains('\n'), "{said}");
            }
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        });
        assert!(took < 64 << 20, "round {round}: {} MiB", took >> 20);
    }
    println!("{opened} of {few} mutated judges were opened");
}

#[test]
fn mutated_identities() {
    let _turn = TURN.lock();
    quietly();
    let reactor = std::fs::read(fixture("reactor.safetensors")).unwrap();
    let own = Identity::from_bytes("x", &reactor).unwrap().to_bytes().unwrap();
    let mut dice = Dice(0xda94_2042_e4dd_58b5);
    let mut read = 0;
    for round in 0..rounds() * 4 {
        let bytes = dice.mutate(if round % 2 == 0 { &reactor } else { &own });
        let took = measured("identity", || match Identity::from_bytes("x", &bytes) {
            Ok(identity) => {
                read += 1;
                assert!(identity.embedding.iter().all(|v| v.is_finite()));
            }
            Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
        });
        assert!(took < 1 << 20, "round {round}: {took} bytes");
    }
    println!("{read} of {} mutated identities were read", rounds() * 4);
}
