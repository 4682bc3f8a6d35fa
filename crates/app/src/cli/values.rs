//! Values that options take, read from their text.

use std::str::FromStr;

use clap::ValueEnum;

/// Where networks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceArg {
    Auto,
    Cpu,
    Cuda(usize),
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceArg, String> {
        match text.to_lowercase().as_str() {
            "auto" => Ok(DeviceArg::Auto),
            "cpu" => Ok(DeviceArg::Cpu),
            "cuda" => Ok(DeviceArg::Cuda(0)),
            other => match other.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(index)) => Ok(DeviceArg::Cuda(index)),
                _ => Err("it must be auto, cpu, or cuda:N with the number of a graphics card".to_string()),
            },
        }
    }
}

/// The numbers that networks compute with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrecisionArg {
    /// bf16 where the device has it, else f32.
    Auto,
    /// 32 bits: exact to the reference.
    F32,
    /// 16 bits with the range of f32.
    Bf16,
    /// 16 bits with more digits and less range.
    F16,
}

/// Whose noise a seed stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RngArg {
    /// PyTorch's CPU generator: the pictures of diffusers and ComfyUI.
    Cpu,
    /// PyTorch's generator on NVIDIA cards: the pictures of A1111.
    Philox,
}

/// A picture's width and height in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SizeArg {
    pub(crate) width: usize,
    pub(crate) height: usize,
}

impl FromStr for SizeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<SizeArg, String> {
        let read = |text: &str| text.trim().parse().ok();
        let parts = text.split_once(['x', 'X', '×']).map(|(width, height)| (read(width), read(height)));
        match parts {
            Some((Some(width), Some(height))) => Ok(SizeArg { width, height }),
            _ => Err("it must be WIDTHxHEIGHT in pixels, such as 1024x1024".to_string()),
        }
    }
}

/// A number with a value: neither NaN nor infinite.
pub(crate) fn finite(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(number) if (number as f32).is_finite() => Ok(number),
        _ => Err("it must be a number such as 0.8".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_or_explained() {
        assert_eq!("1024x768".parse(), Ok(SizeArg { width: 1024, height: 768 }));
        for wrong in ["1024", "x", "1024x", "-1x5", "1e3x5", ""] {
            assert!(wrong.parse::<SizeArg>().is_err(), "{wrong}");
        }
        assert_eq!("CUDA:1".parse(), Ok(DeviceArg::Cuda(1)));
        for wrong in ["gpu", "cuda:", "cuda:-1", "cuda:x"] {
            assert!(wrong.parse::<DeviceArg>().is_err(), "{wrong}");
        }
        assert_eq!(finite("0.8"), Ok(0.8));
        for wrong in ["nan", "inf", "-inf", "1e99", "a"] {
            assert!(finite(wrong).is_err(), "{wrong}");
        }
    }
}
