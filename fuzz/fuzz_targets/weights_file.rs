//! Any bytes as a weights file. Seeds: `crates/weights/tests/fixtures`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weights::Weights;

fuzz_target!(|bytes: &[u8]| {
    let Ok(weights) = Weights::from_bytes("fuzz", bytes.to_vec()) else { return };
    weights::describe(&weights);
    let scope = weights.root();
    for name in weights.names() {
        let _ = scope.get_any(name).map(|view| (view.to_f32().is_ok(), view.to_bf16().is_ok()));
    }
    let _ = (weights::unet(&weights), weights::vae(&weights), weights::sdxl_checkpoint(&weights));
});
