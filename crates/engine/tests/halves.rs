//! The halves of the guidance on two devices make the picture that one makes.

mod stack;

use engine::{Device, DeviceChoice, Request};
use std::ops::ControlFlow;

fn pictures(request: &Request, device: DeviceChoice) -> Vec<Vec<u8>> {
    let request = Request { device, ..request.clone() };
    let output = engine::generate(&request, &mut |_| ControlFlow::Continue(())).unwrap();
    output.pictures.into_iter().map(|picture| picture.rgb).collect()
}

#[test]
fn two_devices_make_the_picture_of_one() {
    let both = DeviceChoice::Halves(Device::Cpu, Device::Cpu);
    // With guidance and without, where the second has nothing to do; one picture, and two that share their steps.
    for (guidance, count, negative) in [(5.0, 1, None), (5.0, 2, Some("blurred")), (1.0, 1, None)] {
        let mut request = stack::request();
        (request.guidance, request.count, request.batch) = (Some(guidance), count, Some(count));
        request.negative = negative.map(str::to_string);
        assert_eq!(pictures(&request, both), pictures(&request, DeviceChoice::Cpu), "{guidance} {count}");
    }
}

#[test]
fn two_gpus_make_the_picture_of_the_cpu() {
    if Device::gpus() < 2 {
        return;
    }
    let mut request = stack::request();
    (request.precision, request.steps) = (engine::Precision::F32, Some(8));
    let [here, both] = [DeviceChoice::Cpu, DeviceChoice::Halves(Device::Cuda(0), Device::Cuda(1))]
        .map(|device| pictures(&request, device));
    let apart: f64 = here[0].iter().zip(&both[0]).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>()
        / here[0].len() as f64;
    let psnr = 10.0 * (255.0f64.powi(2) / apart.max(1e-9)).log10();
    assert!(psnr >= 45.0, "{psnr} dB");
}

#[test]
fn a_cap_is_for_one_gpu() {
    let request =
        Request { device: DeviceChoice::Halves(Device::Cpu, Device::Cpu), vram: Some(8 << 30), ..stack::request() };
    let said = engine::generate(&request, &mut |_| ControlFlow::Continue(())).err().unwrap();
    assert!(said.is_user_fault() && said.to_string().contains("--vram"), "{said}");
}

#[test]
fn without_guidance_the_second_device_rests() {
    let mut request =
        Request { device: DeviceChoice::Halves(Device::Cpu, Device::Cpu), guidance: Some(1.0), ..stack::request() };
    request.precision = engine::Precision::Bf16x3;
    let mut notes = String::new();
    let mut observe = |event| {
        if let engine::Event::Note(note) = event {
            notes += &note;
        }
        ControlFlow::Continue(())
    };
    engine::generate(&request, &mut observe).unwrap();
    // What is said of the numbers is not lost by it.
    let tiles = tensor::instructions().unwrap() == "amx";
    assert!(notes.contains("nothing to do") && (tiles || notes.contains("bf16x3")), "{notes}");
}
