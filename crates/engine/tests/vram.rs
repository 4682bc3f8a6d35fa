//! A cap on a GPU's memory changes what waits where, and no picture of networks whose convolutions are never done in tiles, as
//! these are; on the CPU it has no effect and says so.

mod stack;

use engine::{DeviceChoice, Event, Request, Stage};
use std::ops::ControlFlow;

/// The pictures, and what was said.
fn run(request: &Request) -> engine::Result<(Vec<Vec<u8>>, Vec<String>)> {
    let mut notes = Vec::new();
    let output = engine::generate(request, &mut |event| {
        if let Event::Note(note) = event {
            notes.push(note);
        }
        ControlFlow::Continue(())
    })?;
    Ok((output.pictures.into_iter().map(|picture| picture.rgb).collect(), notes))
}

#[test]
fn a_cap_changes_no_picture() {
    let mut request = stack::request();
    let (free, notes) = run(&request).unwrap();
    assert!(notes.iter().all(|note| !note.contains("wait")), "{notes:?}");

    request.vram = Some(8 << 30);
    if tensor::Device::gpus() == 0 || request.device == DeviceChoice::Cpu {
        request.device = DeviceChoice::Cpu;
        let said = run(&request).unwrap_err();
        assert!(said.is_user_fault() && said.to_string().contains("--vram"), "{said}");
        return;
    }
    assert_eq!(run(&request).unwrap().0, free);
    for count in [1, 2] {
        request.count = count;
        let refused = smallest(&mut request);
        assert!(refused.contains("--vram"), "{refused}");
        let (capped, notes) = run(&request).unwrap();
        assert!(notes.iter().any(|note| note.contains("wait in the machine's memory")), "{notes:?}");
        assert_eq!(capped[0], free[0], "{count}");
    }
}

/// Gives a request the smallest cap that is not refused; what is said of a smaller one.
fn smallest(request: &mut Request) -> String {
    let (mut small, mut large) = (0u64, 8u64 << 30);
    let mut refused = String::new();
    // Stopped as soon as it is decided.
    let mut stop = |event| match event {
        Event::Begin(Stage::Text) => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    while large - small > 1024 {
        let cap = (small + large) / 2;
        request.vram = Some(cap);
        match engine::generate(request, &mut stop) {
            Err(engine::Error::Cancelled) => large = cap,
            Err(error) => (small, refused) = (cap, error.to_string()),
            Ok(_) => unreachable!("it was stopped"),
        }
    }
    request.vram = Some(large);
    refused
}
