//! Shared by the tests of `tensor` and `nets`.

use tensor::Device;

/// Where tests compute: what SAMEFACE_TEST_DEVICE names (`cpu`, `cuda:0`), else the first GPU, else the CPU.
pub(crate) fn device() -> Device {
    if let Ok(folder) = std::env::var("SAMEFACE_TEST_KERNELS") {
        tensor::set_kernel_cache(std::path::Path::new(&folder));
    }
    match std::env::var("SAMEFACE_TEST_DEVICE").ok().as_deref() {
        Some("cpu") => Device::Cpu,
        Some(gpu) => Device::Cuda(gpu.trim_start_matches("cuda:").parse().unwrap()),
        None if Device::gpus() > 0 => Device::Cuda(0),
        None => Device::Cpu,
    }
}
