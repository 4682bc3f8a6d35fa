//! Numbers to a GPU and back.

use super::gpu::{Gpu, records};
use super::place;
use crate::storage::Storage;
use crate::tensor::elements;
use crate::{DType, Result, Tensor};
use cudarc::driver::sys;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use rayon::prelude::*;

/// Numbers converted by one task.
const CHUNK: usize = 1 << 16;

/// A tensor whose numbers nobody wrote yet.
pub(super) fn empty(gpu: &'static Gpu, dtype: DType, shape: &[usize]) -> Result<Tensor> {
    let buffer = gpu.allocate(elements("allocation", shape)? * dtype.bytes())?;
    Ok(Tensor::of(gpu.device(), dtype, shape, Storage::Cuda(buffer)))
}

/// A tensor of zeros.
pub(crate) fn zeros(gpu: &'static Gpu, dtype: DType, shape: &[usize]) -> Result<Tensor> {
    let out = empty(gpu, dtype, shape)?;
    let (_, at) = place(&out)?;
    gpu.bind()?;
    let _turn = gpu.turn();
    // SAFETY: the tensor is that large; zero bits are zero in every element type.
    gpu.check("writing zeros", unsafe { sys::cuMemsetD8Async(at, 0, out.len() * dtype.bytes(), gpu.stream()) })?;
    Ok(out)
}

/// Copies bytes from the host into a new tensor.
pub(super) fn upload<T>(gpu: &'static Gpu, dtype: DType, shape: &[usize], data: &[T]) -> Result<Tensor> {
    let out = empty(gpu, dtype, shape)?;
    let (_, at) = place(&out)?;
    gpu.bind()?;
    let bytes = size_of_val(data);
    if bytes == 0 {
        return Ok(out);
    }
    if records() {
        return Err(gpu.failed("recording", "numbers from the host would be the same at each replay"));
    }
    let _turn = gpu.turn();
    // SAFETY: the tensor is as large as the data, as callers checked. The driver has copied pageable memory when it returns.
    gpu.check("copying to it", unsafe { sys::cuMemcpyHtoDAsync_v2(at, data.as_ptr().cast(), bytes, gpu.stream()) })?;
    Ok(out)
}

/// Numbers on the host, as many as the shape holds, converted to `dtype`.
pub(crate) fn from_f32(gpu: &'static Gpu, dtype: DType, shape: &[usize], data: &[f32]) -> Result<Tensor> {
    let narrow = |convert: fn(&[f32], &mut [u16])| {
        let mut bits = vec![0u16; data.len()];
        bits.par_chunks_mut(CHUNK).zip(data.par_chunks(CHUNK)).for_each(|(to, from)| convert(from, to));
        upload(gpu, dtype, shape, &bits)
    };
    match dtype {
        DType::F32 => upload(gpu, dtype, shape, data),
        DType::F16 => narrow(|from, to| to.reinterpret_cast_mut::<f16>().convert_from_f32_slice(from)),
        DType::BF16 => narrow(|from, to| to.reinterpret_cast_mut::<bf16>().convert_from_f32_slice(from)),
    }
}

/// Bit patterns of a 16-bit type, as many as the shape holds.
pub(crate) fn from_bits(gpu: &'static Gpu, dtype: DType, shape: &[usize], bits: &[u16]) -> Result<Tensor> {
    upload(gpu, dtype, shape, bits)
}

/// Copies a tensor's bytes to the host; waits for all that was asked of the GPU before.
fn download<T: Copy>(x: &Tensor, zero: T) -> Result<Vec<T>> {
    let (gpu, at) = place(x)?;
    gpu.bind()?;
    let mut data = vec![zero; x.len()];
    if !data.is_empty() {
        let _turn = gpu.turn();
        // SAFETY: both sides hold that many bytes; the vector lives until the wait below is over.
        let result =
            unsafe { sys::cuMemcpyDtoHAsync_v2(data.as_mut_ptr().cast(), at, size_of_val(&data[..]), gpu.stream()) };
        gpu.check("copying from it", result)?;
    }
    gpu.synchronize()?;
    Ok(data)
}

/// The numbers as f32 on the host.
pub(crate) fn to_vec_f32(x: &Tensor) -> Result<Vec<f32>> {
    Ok(match x.dtype() {
        DType::F32 => download(x, 0f32)?,
        DType::F16 => download(x, f16::ZERO)?.to_f32_vec(),
        DType::BF16 => download(x, bf16::ZERO)?.to_f32_vec(),
    })
}

/// Puts the numbers of one tensor into another of the same type and size.
pub(crate) fn overwrite(to: &Tensor, from: &Tensor) -> Result<()> {
    let ((gpu, to), (_, at)) = (place(to)?, place(from)?);
    // SAFETY: both tensors are of one type and size, as the caller checked.
    unsafe { copy(gpu, to, at, from.len() * from.dtype().bytes()) }
}

/// Copies `bytes` from one place of the GPU to another that does not overlap.
///
/// # Safety
/// Both places are of this GPU and that large.
pub(super) unsafe fn copy(gpu: &Gpu, to: u64, from: u64, bytes: usize) -> Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    gpu.bind()?;
    let _turn = gpu.turn();
    // SAFETY: the caller vouches for the places.
    gpu.check("copying on it", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, gpu.stream()) })
}
