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

    fn read<T: Number>(&self) -> Result<Vec<T>> {
        match &self.data {
            Data::Random { seed, shape } => Ok(random::fill(*seed, &self.name, shape)),
            Data::Stored(tensor) => match convert(tensor)? {
                (values, true) => Ok(values),
                (_, false) => {
                    Err(Error::NonFinite { name: self.name.clone(), file: self.file.to_string(), target: T::NAME })
                }
            },
        }
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View({} {} {:?})", self.name, self.dtype(), self.shape())
    }
}
