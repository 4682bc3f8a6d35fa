//! Element by element: activations, sums, conversions. Bound: memory.

use super::isa::simd;
use super::math::{activate, activate_all};
use crate::meter::watch;
use crate::ops::Activation;
use crate::tensor::Element;
use crate::{Result, Tensor};
use half::bf16;
use rayon::prelude::*;

/// Elements of a task.
const CHUNK: usize = 1 << 14;

simd! {
    fn widen_chunk(x: &[bf16], out: &mut [f32]) {
        out.iter_mut().zip(x).for_each(|(o, x)| *o = Element::to_f32(*x));
    }
}

simd! {
    fn narrow_chunk(x: &[f32], out: &mut [bf16]) {
        out.iter_mut().zip(x).for_each(|(o, x)| *o = Element::from_f32(*x));
    }
}

/// bf16 to f32.
pub(crate) fn widen(x: &[bf16], out: &mut [f32]) {
    let _watch = watch(|| format!("widen {}", x.len()));
    out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(o, x)| widen_chunk(x, o));
}

/// f32 to bf16, rounded to nearest even.
pub(crate) fn narrow(x: &[f32], out: &mut [bf16]) {
    let _watch = watch(|| format!("narrow {}", x.len()));
    out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(o, x)| narrow_chunk(x, o));
}

simd! {
    fn activate_chunk<T: Element>(x: &[T], activation: Activation, out: &mut [T]) {
        let mut buffer = [0f32; 256];
        for (x, o) in x.chunks(256).zip(out.chunks_mut(256)) {
            let buffer = &mut buffer[..x.len()];
            buffer.iter_mut().zip(x).for_each(|(b, x)| *b = x.to_f32());
            activate_all(buffer, activation);
            o.iter_mut().zip(buffer.iter()).for_each(|(o, b)| *o = T::from_f32(*b));
        }
    }
}

/// `activation(x)`.
pub(crate) fn activation<T: Element>(x: &Tensor, which: Activation) -> Result<Tensor> {
    let _watch = watch(|| format!("{which:?} {:?}", x.shape()));
    let data = x.data::<T>();
    Tensor::build::<T>(x.device(), x.shape(), |out| {
        out.par_chunks_mut(CHUNK).zip(data.par_chunks(CHUNK)).for_each(|(o, x)| activate_chunk(x, which, o));
    })
}

simd! {
    fn add_scaled_chunk<T: Element>(a: &[T], b: &[T], s: f32, out: &mut [T]) {
        out.iter_mut().zip(a.iter().zip(b)).for_each(|(o, (a, b))| *o = T::from_f32(a.to_f32() + s * b.to_f32()));
    }
}

/// `a + s * b`.
pub(crate) fn add_scaled<T: Element>(a: &Tensor, b: &Tensor, s: f32) -> Result<Tensor> {
    let _watch = watch(|| format!("add {:?}", a.shape()));
    let (x, y) = (a.data::<T>(), b.data::<T>());
    Tensor::build::<T>(a.device(), a.shape(), |out| {
        out.par_chunks_mut(CHUNK)
            .zip(x.par_chunks(CHUNK).zip(y.par_chunks(CHUNK)))
            .for_each(|(o, (x, y))| add_scaled_chunk(x, y, s, o));
    })
}

simd! {
    fn scale_chunk<T: Element>(a: &[T], s: f32, out: &mut [T]) {
        out.iter_mut().zip(a).for_each(|(o, a)| *o = T::from_f32(a.to_f32() * s));
    }
}

/// `s * a`.
pub(crate) fn scale<T: Element>(a: &Tensor, s: f32) -> Result<Tensor> {
    let _watch = watch(|| format!("scale {:?}", a.shape()));
    let x = a.data::<T>();
    Tensor::build::<T>(a.device(), a.shape(), |out| {
        out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(o, x)| scale_chunk(x, s, o));
    })
}

/// The sum of `s * x` over the terms, left to right, in f32.
pub(crate) fn combine(terms: &[(f32, &Tensor)]) -> Result<Tensor> {
    let _watch = watch(|| format!("combine {:?}", terms[0].1.shape()));
    let first = terms[0].1;
    let parts: Vec<(f32, &[f32])> = terms.iter().map(|(s, x)| (*s, x.data::<f32>())).collect();
    Tensor::build::<f32>(first.device(), first.shape(), |out| {
        for (i, o) in out.iter_mut().enumerate() {
            let mut sum = parts[0].0 * parts[0].1[i];
            for (s, x) in &parts[1..] {
                sum += s * x[i];
            }
            *o = sum;
        }
    })
}

simd! {
    fn geglu_row<T: Element>(both: &[T], out: &mut [T]) {
        let (value, gate) = both.split_at(out.len());
        out.iter_mut()
            .zip(value.iter().zip(gate))
            .for_each(|(o, (x, g))| *o = T::from_f32(x.to_f32() * activate(g.to_f32(), Activation::Gelu)));
    }
}

/// First half of the last dimension times GELU of the second half.
pub(crate) fn geglu<T: Element>(both: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let _watch = watch(|| format!("gate {:?}", both.shape()));
    let width = both.last_dim() / 2;
    let data = both.data::<T>();
    Tensor::build::<T>(both.device(), shape, |out| {
        out.par_chunks_mut(width.max(1)).zip(data.par_chunks((2 * width).max(1))).for_each(|(o, x)| geglu_row(x, o));
    })
}
