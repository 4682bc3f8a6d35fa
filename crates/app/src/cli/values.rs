//! Values that options take, read from their text.

use std::str::FromStr;

use clap::ValueEnum;

/// Where networks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceArg {
    Auto,
    Cpu,
    Cuda(usize),
    /// Each takes a half of the guidance.
    Two(usize, usize),
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceArg, String> {
        match text.to_lowercase().as_str() {
            "auto" => Ok(DeviceArg::Auto),
            "cpu" => Ok(DeviceArg::Cpu),
            "cuda" => Ok(DeviceArg::Cuda(0)),
            other => {
                let numbers = other.strip_prefix("cuda:").map(|numbers| numbers.split(',').map(str::parse).collect());
                match numbers.and_then(|numbers: Result<Vec<usize>, _>| numbers.ok()).as_deref() {
                    Some([one]) => Ok(DeviceArg::Cuda(*one)),
                    Some([one, other]) if one != other => Ok(DeviceArg::Two(*one, *other)),
                    _ => Err("it must be auto, cpu, cuda:N with the number of a graphics card, or cuda:N,M with those of two"
                        .to_string()),
                }
            }
        }
    }
}

/// The numbers that networks compute with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PrecisionArg {
    /// f32 for small models, bf16 for those whose f32 weights would fill an ordinary machine.
    Auto,
    /// 32 bits: exact to the reference.
    F32,
    /// 16 bits with the range of f32.
    Bf16,
    /// f32, but products as three of bf16, on processors with AMX: in about half of the time, within 1e-4 of f32.
    Bf16x3,
    /// 16 bits with more digits and less range.
    F16,
    /// f16, but 8 bits in most linear layers of the transformers: faster on a Hopper, less exact.
    Fp8,
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
    pub(crate) width: u32,
    pub(crate) height: u32,
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

/// One of several equal parts of a work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShardArg {
    /// From 1.
    part: usize,
    of: usize,
}

impl ShardArg {
    /// Whether the part has the i-th piece.
    pub(crate) fn has(self, i: usize) -> bool {
        i % self.of == self.part - 1
    }
}

impl FromStr for ShardArg {
    type Err = String;

    fn from_str(text: &str) -> Result<ShardArg, String> {
        let numbers = text.split_once('/').and_then(|(part, of)| Some((part.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((part, of)) if (1..=of).contains(&part) => Ok(ShardArg { part, of }),
            _ => Err("it must be a part and their number, such as 1/4, 2/4, 3/4 and 4/4".to_string()),
        }
    }
}

/// A whole number; its range is the plan's business.
pub(crate) fn whole(text: &str) -> Result<usize, String> {
    text.trim().parse().map_err(|_| "it must be a whole number such as 1 or 30".to_string())
}

/// A seed. Minus one, which asks other programs for a drawn one, is explained.
pub(crate) fn seed(text: &str) -> Result<u64, String> {
    let sentence = || format!("it must be a whole number from 0 to {}; without --seed one is drawn", u64::MAX);
    text.trim().parse().map_err(|_| sentence())
}

/// An amount of memory in bytes: a number with G or M, of 2^30 or 2^20 bytes as cards are sold.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let sentence = || "it must be an amount of memory such as 8G, 6.5G or 6500M".to_string();
    let lower = text.trim().to_lowercase();
    let short = lower.strip_suffix("ib").or(lower.strip_suffix('b')).unwrap_or(&lower);
    let (number, unit) = match (short.strip_suffix('g'), short.strip_suffix('m')) {
        (Some(number), _) => (number, 30),
        (None, Some(number)) => (number, 20),
        (None, None) => return Err(sentence()),
    };
    let number: f64 = number.trim().parse().map_err(|_| sentence())?;
    let bytes = number * f64::from(1u32 << unit);
    if bytes >= 1.0 && bytes < 2f64.powi(60) { Ok(bytes as u64) } else { Err(sentence()) }
}

/// A number of threads.
pub(crate) fn threads(text: &str) -> Result<u16, String> {
    within(text, 1, 1024)
}

/// A number of measured steps.
pub(crate) fn repeats(text: &str) -> Result<u16, String> {
    within(text, 1, 1000)
}

fn within(text: &str, low: u16, high: u16) -> Result<u16, String> {
    let number = text.trim().parse().ok().filter(|number| (low..=high).contains(number));
    number.ok_or_else(|| format!("it must be a whole number from {low} to {high}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What people paste: a value or a sentence, never a panic.
    #[test]
    fn any_text_is_a_value_or_a_sentence() {
        let parts = [
            "1",
            "-",
            "0",
            "x",
            "×",
            "X",
            "/",
            ":",
            ".",
            ",",
            "e",
            "cuda",
            "9999999999",
            " ",
            "é",
            "\u{0}",
            "inf",
            "+",
        ];
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut below = |n: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as usize % n
        };
        let mut read = 0;
        for _ in 0..20_000 {
            let text: String = (0..below(6)).map(|_| parts[below(parts.len())]).collect();
            let errors = [
                text.parse::<SizeArg>().err(),
                text.parse::<DeviceArg>().err(),
                text.parse::<ShardArg>().err(),
                finite(&text).err(),
                whole(&text).err(),
                seed(&text).err(),
                threads(&text).err(),
                repeats(&text).err(),
                bytes(&text).err(),
            ];
            read += errors.iter().filter(|error| error.is_none()).count();
            assert!(errors.iter().flatten().all(|said| !said.is_empty() && !said.contains('\n')), "{text:?}");
            if let Ok(shard) = text.parse::<ShardArg>() {
                assert!((0..shard.of.min(1000)).filter(|i| shard.has(*i)).count() <= 1, "{text:?}");
            }
        }
        assert!(read > 1_000, "{read}");
    }

    #[test]
    fn values_are_read_or_explained() {
        assert_eq!("1024x768".parse(), Ok(SizeArg { width: 1024, height: 768 }));
        for wrong in ["1024", "x", "1024x", "-1x5", "1e3x5", "", "4294967296x64"] {
            assert!(wrong.parse::<SizeArg>().is_err(), "{wrong}");
        }
        assert_eq!(("CUDA:1".parse(), "cuda:2,0".parse()), (Ok(DeviceArg::Cuda(1)), Ok(DeviceArg::Two(2, 0))));
        for wrong in ["gpu", "cuda:", "cuda:-1", "cuda:x", "cuda:0,0", "cuda:0,", "cuda:0,1,2"] {
            assert!(wrong.parse::<DeviceArg>().is_err(), "{wrong}");
        }
        assert_eq!((whole("30"), seed("18446744073709551615"), threads("1024")), (Ok(30), Ok(u64::MAX), Ok(1024)));
        for wrong in ["-1", "1.5", "", "99999999999999999999"] {
            assert!(whole(wrong).is_err() && seed(wrong).is_err() && threads(wrong).is_err(), "{wrong}");
        }
        assert!(threads("0").is_err() && repeats("1001").is_err());
        let parts: Vec<ShardArg> = ["1/3", "2/3", "3/3"].map(|text| text.parse().unwrap()).into();
        assert!((0..9).all(|i| parts.iter().filter(|part| part.has(i)).count() == 1), "each piece belongs to one part");
        for wrong in ["0/3", "4/3", "1/0", "1", "a/b", "-1/3"] {
            assert!(wrong.parse::<ShardArg>().is_err(), "{wrong}");
        }
        assert_eq!((bytes("8G"), bytes("6.5 GiB"), bytes("500mb")), (Ok(8 << 30), Ok(13 << 29), Ok(500 << 20)));
        for wrong in ["8", "G", "-1G", "nanG", "1e30G", "8T", ""] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(finite("0.8"), Ok(0.8));
        for wrong in ["nan", "inf", "-inf", "1e99", "a"] {
            assert!(finite(wrong).is_err(), "{wrong}");
        }
    }
}
