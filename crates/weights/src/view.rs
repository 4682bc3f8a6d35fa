//! One tensor, read and converted when asked.

use std::sync::Arc;

use crate::convert::{Number, convert};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::random;
use crate::stored::Stored;

/// A named tensor that has not been read yet.
pub struct View {
    pub(crate) name: String,
    pub(crate) file: Arc<str>,
    pub(crate) data: Data,
}

pub(crate) enum Data {
    Stored(Arc<Stored>),
    Random { seed: u64, shape: Vec<usize> },
}

impl View {
    /// The full name in its file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The shape, as in the checkpoint.
    pub fn shape(&self) -> &[usize] {
        match &self.data {
            Data::Stored(tensor) => &tensor.shape,
            Data::Random { shape, .. } => shape,
        }
    }

    /// The type it is stored in.
    pub fn dtype(&self) -> Dtype {
        match &self.data {
            Data::Stored(tensor) => tensor.dtype,
            Data::Random { .. } => Dtype::F32,
        }
    }

    /// All elements in row-major order as f32. NaN or infinity is an error that names the tensor.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        self.read()
    }

    /// All elements in row-major order as the bits of bf16, rounded to nearest even. NaN, infinity or overflow is an
    /// error that names the tensor.
    pub fn to_bf16(&self) -> Result<Vec<u16>> {
        self.read()
    }

    /// As [`View::to_f32`] into memory that is there already, of exactly as many elements.
    pub fn read_f32(&self, out: &mut [f32]) -> Result<()> {
        self.read_into(out)
    }

    /// As [`View::to_bf16`] into memory that is there already, of exactly as many elements.
    pub fn read_bf16(&self, out: &mut [u16]) -> Result<()> {
        self.read_into(out)
    }

    /// As [`View::read_bf16`] for the bits of f16; a number beyond 65504 is an error that names the tensor.
    pub fn read_f16(&self, out: &mut [u16]) -> Result<()> {
        self.read_into(bytemuck::cast_slice_mut::<u16, half::f16>(out))
    }

    fn read<T: Number>(&self) -> Result<Vec<T>> {
        let mut out = vec![T::default(); self.shape().iter().product()];
        self.read_into(&mut out)?;
        Ok(out)
    }

    fn read_into<T: Number>(&self, out: &mut [T]) -> Result<()> {
        let count: usize = self.shape().iter().product();
        assert!(out.len() == count, "{}: {count} elements do not fill memory for {}", self.name, out.len());
        let finite = match &self.data {
            Data::Random { seed, shape } => {
                random::fill(*seed, &self.name, shape, out);
                true
            }
            Data::Stored(tensor) => convert(tensor, out)?,
        };
        let refuse = || Error::NonFinite { name: self.name.clone(), file: self.file.to_string(), target: T::NAME };
        if finite { Ok(()) } else { Err(refuse()) }
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View({} {} {:?})", self.name, self.dtype(), self.shape())
    }
}
