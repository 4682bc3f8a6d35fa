//! Any bytes as the pickle of a torch file whose check sums are right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weights::Weights;

#[path = "../../crates/weights/tests/common/zip.rs"]
mod zip;

fuzz_target!(|pickle: &[u8]| {
    let Ok(weights) = Weights::from_bytes("fuzz", zip::torch(pickle)) else { return };
    for name in weights.names() {
        let _ = weights.root().get_any(name).map(|view| view.to_f32().is_ok());
    }
});
