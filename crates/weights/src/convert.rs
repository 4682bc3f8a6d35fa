//! Stored bytes to f32, bf16 or f16, on all cores.
//!
//! Bound by memory: each piece is read into a buffer of one thread and converted from there, or read straight into the
//! result where the types agree.

use bytemuck::Pod;
use half::f16;
use rayon::prelude::*;

use crate::dtype::Dtype;
use crate::error::Result;
use crate::stored::Stored;

/// Elements converted by one thread at a time.
const PIECE: usize = 1 << 19;

/// A type that weights are converted to.
pub(crate) trait Number: Pod + Default + Send + Sync {
    /// The stored type with the same bits.
    const SAME: Dtype;
    /// The type's name in messages.
    const NAME: &'static str;
    /// Rounds to nearest, ties to even; what does not fit becomes non-finite.
    fn from_f32(x: f32) -> Self;
    fn is_finite(self) -> bool;
}

impl Number for f32 {
    const SAME: Dtype = Dtype::F32;
    const NAME: &'static str = "f32";

    fn from_f32(x: f32) -> f32 {
        x
    }

    fn is_finite(self) -> bool {
        f32::is_finite(self)
    }
}

/// The bits of a bf16.
impl Number for u16 {
    const SAME: Dtype = Dtype::BF16;
    const NAME: &'static str = "bf16";

    fn from_f32(x: f32) -> u16 {
        let bits = x.to_bits();
        // The carry of the rounding must not run through a NaN's mantissa into its sign.
        if bits & 0x7f80_0000 == 0x7f80_0000 {
            return 0x7f80;
        }
        (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
    }

    fn is_finite(self) -> bool {
        self & 0x7f80 != 0x7f80
    }
}

impl Number for f16 {
    const SAME: Dtype = Dtype::F16;
    const NAME: &'static str = "f16";

    fn from_f32(x: f32) -> f16 {
        f16::from_f32(x)
    }

    fn is_finite(self) -> bool {
        f16::is_finite(self)
    }
}

/// All elements in row-major order into memory of as many, and whether all of them are finite.
pub(crate) fn convert<T: Number>(tensor: &Stored, out: &mut [T]) -> Result<bool> {
    tensor.storage.unchanged()?;
    tensor.storage.verify()?;
    let finite = if tensor.is_contiguous() { read_contiguous(tensor, out)? } else { gather(tensor, out)? };
    tensor.storage.unchanged()?;
    Ok(finite)
}

fn read_contiguous<T: Number>(tensor: &Stored, out: &mut [T]) -> Result<bool> {
    let size = tensor.dtype.size();
    let straight = tensor.dtype == T::SAME && cfg!(target_endian = "little");
    let piece = |buffer: &mut Vec<u8>, (i, out): (usize, &mut [T])| -> Result<bool> {
        let at = ((tensor.offset + i * PIECE) * size) as u64;
        if straight {
            tensor.storage.read(at, bytemuck::cast_slice_mut(out))?;
            return Ok(out.iter().fold(true, |ok, x| ok & x.is_finite()));
        }
        buffer.resize(out.len() * size, 0);
        tensor.storage.read(at, buffer)?;
        Ok(decode(tensor.dtype, buffer, out))
    };
    if out.len() <= PIECE {
        return if out.is_empty() { Ok(true) } else { piece(&mut Vec::new(), (0, out)) };
    }
    out.par_chunks_mut(PIECE).enumerate().map_init(Vec::new, piece).try_reduce(|| true, |a, b| Ok(a & b))
}

/// The slow way, for transposed and otherwise strided windows: the span of the window is read whole, then picked from.
fn gather<T: Number>(tensor: &Stored, out: &mut [T]) -> Result<bool> {
    let size = tensor.dtype.size();
    let span: usize = tensor.shape.iter().zip(&tensor.strides).map(|(&n, &s)| (n - 1) * s).sum::<usize>() + 1;
    let mut bytes = vec![0; span * size];
    tensor.storage.read((tensor.offset * size) as u64, &mut bytes)?;
    let mut all = vec![T::default(); span];
    // Elements in the span that are not part of the tensor may be anything: only those picked are checked.
    decode(tensor.dtype, &bytes, &mut all);
    drop(bytes);
    let mut index = vec![0; tensor.shape.len()];
    let mut at = 0;
    let mut finite = true;
    for value in out.iter_mut() {
        *value = all[at];
        finite &= value.is_finite();
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            at += tensor.strides[axis];
            if index[axis] < tensor.shape[axis] {
                break;
            }
            at -= tensor.strides[axis] * tensor.shape[axis];
            index[axis] = 0;
        }
    }
    Ok(finite)
}

/// Converts little-endian elements; returns whether all results are finite.
fn decode<T: Number>(dtype: Dtype, bytes: &[u8], out: &mut [T]) -> bool {
    match dtype {
        Dtype::F64 => each(bytes, out, |b| f64::from_le_bytes(b) as f32),
        Dtype::F32 => each(bytes, out, f32::from_le_bytes),
        Dtype::F16 => each(bytes, out, |b| f16_to_f32(u16::from_le_bytes(b))),
        Dtype::BF16 => each(bytes, out, |b| f32::from_bits((u16::from_le_bytes(b) as u32) << 16)),
        Dtype::F8E4M3 => each(bytes, out, |[b]: [u8; 1]| f8e4m3_to_f32(b)),
        // The upper half of an f16.
        Dtype::F8E5M2 => each(bytes, out, |[b]: [u8; 1]| f16_to_f32((b as u16) << 8)),
        Dtype::I64 => each(bytes, out, |b| i64::from_le_bytes(b) as f32),
        Dtype::I32 => each(bytes, out, |b| i32::from_le_bytes(b) as f32),
        Dtype::I16 => each(bytes, out, |b| i16::from_le_bytes(b) as f32),
        Dtype::I8 => each(bytes, out, |b| i8::from_le_bytes(b) as f32),
        Dtype::U64 => each(bytes, out, |b| u64::from_le_bytes(b) as f32),
        Dtype::U32 => each(bytes, out, |b| u32::from_le_bytes(b) as f32),
        Dtype::U16 => each(bytes, out, |b| u16::from_le_bytes(b) as f32),
        Dtype::U8 => each(bytes, out, |[b]: [u8; 1]| b as f32),
        Dtype::Bool => each(bytes, out, |[b]: [u8; 1]| (b != 0) as u8 as f32),
    }
}

#[inline(always)]
fn each<const N: usize, T: Number>(bytes: &[u8], out: &mut [T], value: impl Fn([u8; N]) -> f32) -> bool {
    let mut finite = true;
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *out = T::from_f32(value(*bytes));
        finite &= out.is_finite();
    }
    finite
}

/// Without branches, so that the loop around it becomes vector code: the exponent is rebiased by a multiplication, which
/// is exact for subnormals too.
#[inline(always)]
fn f16_to_f32(h: u16) -> f32 {
    let magnitude = (h & 0x7fff) as u32;
    let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
    let special = if magnitude >= 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | ((h as u32 & 0x8000) << 16))
}

#[inline(always)]
fn f8e4m3_to_f32(b: u8) -> f32 {
    let magnitude = (b & 0x7f) as u32;
    let scaled = f32::from_bits(magnitude << 20) * f32::from_bits((127 + 120) << 23);
    let special = if magnitude == 0x7f { 0x7fc0_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | ((b as u32 & 0x80) << 24))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_is_exact() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0400, 6.103_515_6e-5),
            (0x0001, 5.960_464_5e-8),
            (0x8001, -5.960_464_5e-8),
            (0x0000, 0.0),
        ] {
            assert_eq!(f16_to_f32(bits), value, "{bits:04x}");
        }
        assert!(f16_to_f32(0x8000).is_sign_negative());
        assert!(f16_to_f32(0x7c00).is_infinite() && f16_to_f32(0xfc00) < 0.0 && f16_to_f32(0x7e00).is_nan());
    }

    #[test]
    fn eight_bit_floats_are_exact() {
        for (bits, value) in [(0x38, 1.0), (0x7e, 448.0), (0x01, 0.001_953_125), (0x08, 0.015_625), (0xb8, -1.0)] {
            assert_eq!(f8e4m3_to_f32(bits), value, "{bits:02x}");
        }
        assert!(f8e4m3_to_f32(0x7f).is_nan() && f8e4m3_to_f32(0xff).is_nan());
    }

    #[test]
    fn bf16_rounds_to_even_and_keeps_nan_out() {
        for (x, bits) in [(1.0, 0x3f80), (f32::from_bits(0x3f80_8000), 0x3f80), (f32::from_bits(0x3f81_8000), 0x3f82)] {
            assert_eq!(u16::from_f32(x), bits);
        }
        for x in [f32::NAN, f32::from_bits(0x7fff_ffff), f32::INFINITY, f32::MAX] {
            assert!(!Number::is_finite(u16::from_f32(x)), "{x}");
        }
    }
}
