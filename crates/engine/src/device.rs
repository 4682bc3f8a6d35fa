//! Where a request is computed.

use crate::request::{DeviceChoice, Precision};
use crate::{Error, Result};
use std::path::Path;
use tensor::ops::Products;
use tensor::{DType, Device};

/// Names the folder in which kernels that were compiled for a GPU are kept for the next process. Only the first call has
/// an effect.
pub fn keep_kernels_in(folder: &Path) {
    tensor::set_kernel_cache(folder);
}

/// Refuses what the environment asks of the CPU and cannot be had.
///
/// # Errors
/// `SAMEFACE_ISA` names no instruction set, or one that this processor does not have; the sentence lists those it has.
pub fn check_instructions() -> Result<()> {
    tensor::instructions().map(|_| ()).or_else(|error| Error::refused(error.to_string()))
}

/// The device of a choice, opened; a second one where each is to take a half of the guidance; and a sentence for the user
/// where `auto` passed over a GPU.
///
/// # Errors
/// A GPU was named and cannot be used; the sentence says why and what to do.
pub(crate) fn choose(choice: DeviceChoice) -> Result<(Device, Option<Device>, Option<String>)> {
    let opened = |device: Device| match device.open() {
        Ok(()) => Ok(device),
        Err(why) => Error::refused(format!("--device {why}")),
    };
    match choice {
        DeviceChoice::Cpu => Ok((Device::Cpu, None, None)),
        DeviceChoice::Cuda(n) => Ok((opened(Device::Cuda(n))?, None, None)),
        DeviceChoice::Halves(first, second) => Ok((opened(first)?, Some(opened(second)?), None)),
        // The first that can be used: one that failed is passed over.
        DeviceChoice::Auto => {
            let mut why = None;
            for device in (0..Device::gpus()).map(Device::Cuda) {
                match device.open() {
                    Ok(()) => return Ok((device, None, why.map(|why| format!("{device} computes: {why}")))),
                    // That it was lost has been said.
                    Err(tensor::Error::Lost { .. }) => {}
                    Err(error) => why = why.or(Some(error)),
                }
            }
            Ok((Device::Cpu, None, why.map(|why| format!("the CPU computes: {why}"))))
        }
    }
}

/// The numbers of the denoising networks; `auto` is what is fast on the device, or f32 where the networks are `small`.
///
/// # Errors
/// A type in which the device does not compute.
pub(crate) fn dtype(precision: Precision, device: Device, small: bool) -> Result<DType> {
    Ok(match (precision, device) {
        (Precision::F32 | Precision::Bf16x3, _) => DType::F32,
        (Precision::Bf16, _) => DType::BF16,
        (Precision::F16 | Precision::Fp8 | Precision::Auto, Device::Cuda(_)) => DType::F16,
        (Precision::F16, Device::Cpu) => {
            return Error::refused("--precision f16 needs a GPU; on the CPU use auto, f32 or bf16");
        }
        (Precision::Fp8, Device::Cpu) => {
            return Error::refused("--precision fp8 needs a GPU; on the CPU use auto, f32 or bf16");
        }
        (Precision::Auto, Device::Cpu) if small => DType::F32,
        (Precision::Auto, Device::Cpu) => DType::BF16,
    })
}

/// How products of f32 are done, and a sentence for the user where they cannot be done as asked.
pub(crate) fn products(precision: Precision, device: Device) -> (Products, Option<String>) {
    match (precision, device) {
        (Precision::Bf16x3, Device::Cpu) if Products::in_parts_here() => (Products::InParts, None),
        (Precision::Bf16x3, _) => {
            let who = if device == Device::Cpu { "this processor".to_string() } else { device.to_string() };
            (Products::Whole, Some(format!("--precision bf16x3 needs a processor with AMX, so {who} computes in f32")))
        }
        _ => (Products::Whole, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_done_in_parts_is_said() {
        let (done, why) = products(Precision::Bf16x3, Device::Cpu);
        assert_eq!(done == Products::InParts, why.is_none());
        assert!(why.is_none_or(|why| why.contains("AMX, so this processor computes in f32")));
        let (done, why) = products(Precision::Bf16x3, Device::Cuda(1));
        assert_eq!((done, why.is_some_and(|why| why.ends_with("cuda:1 computes in f32"))), (Products::Whole, true));
        assert_eq!(products(Precision::Bf16, Device::Cpu), (Products::Whole, None));
    }
}
