//! The tensor: contiguous numbers of one type with a shape, on a device.

use crate::storage::{Block, Storage};
use crate::{Device, Error, Result, cuda};
use half::{bf16, f16};
use std::sync::Arc;

/// Element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// bfloat16: 8 bits of exponent, 7 of mantissa.
    BF16,
    /// IEEE half precision: 5 bits of exponent, 10 of mantissa. Storage only on the CPU.
    F16,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::BF16 | DType::F16 => 2,
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            DType::F16 => "f16",
        })
    }
}

/// A Rust type that tensors hold.
pub(crate) trait Element: Copy + Send + Sync + 'static {
    const DTYPE: DType;
    fn to_f32(self) -> f32;
    fn from_f32(value: f32) -> Self;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(value: f32) -> f32 {
        value
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::BF16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    // Round to nearest even in a form that vectorises; `half` branches on NaN.
    #[inline(always)]
    fn from_f32(value: f32) -> bf16 {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        bf16::from_bits(if value.is_nan() { quiet } else { rounded } as u16)
    }
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    fn from_f32(value: f32) -> f16 {
        f16::from_f32(value)
    }
}

/// Runs an expression with `$T` bound to the Rust type of a compute [`DType`] (f32 or bf16 on the CPU).
macro_rules! by_dtype {
    ($op:expr, $what:expr, $dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            got @ $crate::DType::F16 => {
                Err($crate::Error::DType { op: $op, what: $what, got, expected: "f32 or bf16 (f16 needs a GPU)" })
            }
        }
    };
}
pub(crate) use by_dtype;

/// What the kernel that wrote a tensor on a GPU left of it for the norm that reads it, f32.
#[derive(Clone)]
pub(crate) enum Sums {
    /// Sums of each row's parts and of their squares, and the rows in 8 bits where others compute in those.
    Rows(Box<cuda::tiles::Left>),
    /// `[b, chunks, c, 2]`: sums of the channels of each chunk of a picture, and of their squares.
    Channels(Tensor),
}

/// Contiguous numbers with a shape. Clones share the memory, which nobody writes any more.
#[derive(Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    dtype: DType,
    device: Device,
    storage: Arc<Storage>,
    /// First element, counted in elements.
    offset: usize,
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({}{:?} on {})", self.dtype, self.shape, self.device)
    }
}

/// The number of elements of a shape, or an error where it cannot be held in memory.
pub(crate) fn elements(op: &'static str, shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d))
        .filter(|&n| n <= isize::MAX as usize / 8)
        .ok_or_else(|| Error::shape(op, "the result", shape, "a shape that fits in memory"))
}

impl Tensor {
    /// A tensor from host numbers, converted to `dtype`.
    ///
    /// # Errors
    /// `data` does not hold as many numbers as `shape` says, or memory runs out.
    pub fn from_f32(device: &Device, dtype: DType, shape: &[usize], data: &[f32]) -> Result<Tensor> {
        if elements("from_f32", shape)? != data.len() {
            return Err(Error::shape("from_f32", "the data", &[data.len()], format!("as many as {shape:?} holds")));
        }
        fn fill<T: Element>(out: &mut [T], data: &[f32]) {
            out.iter_mut().zip(data).for_each(|(o, &x)| *o = T::from_f32(x));
        }
        if let Device::Cuda(n) = *device {
            return cuda::transfer::from_f32(cuda::gpu(n)?, dtype, shape, data);
        }
        match dtype {
            DType::F32 => Tensor::build::<f32>(device, shape, |out| out.copy_from_slice(data)),
            DType::BF16 => Tensor::build::<bf16>(device, shape, |out| fill(out, data)),
            DType::F16 => Tensor::build::<f16>(device, shape, |out| fill(out, data)),
        }
    }

    /// A bf16 tensor from the bit patterns of its elements.
    ///
    /// # Errors
    /// As [`Tensor::from_f32`].
    pub fn from_bf16_bits(device: &Device, shape: &[usize], bits: &[u16]) -> Result<Tensor> {
        if elements("from_bf16_bits", shape)? != bits.len() {
            return Err(Error::shape(
                "from_bf16_bits",
                "the data",
                &[bits.len()],
                format!("as many as {shape:?} holds"),
            ));
        }
        if let Device::Cuda(n) = *device {
            return cuda::transfer::from_bits(cuda::gpu(n)?, DType::BF16, shape, bits);
        }
        Tensor::build::<bf16>(device, shape, |out| {
            out.iter_mut().zip(bits).for_each(|(o, &x)| *o = bf16::from_bits(x));
        })
    }

    /// A tensor of f32 whose numbers `write` puts into the tensor's own memory: none in between for gigabytes of weights.
    ///
    /// # Errors
    /// Memory runs out; whatever `write` says.
    pub fn write_f32<E: From<Error>>(
        device: &Device,
        shape: &[usize],
        write: impl FnOnce(&mut [f32]) -> std::result::Result<(), E>,
    ) -> std::result::Result<Tensor, E> {
        if let Device::Cuda(n) = *device {
            return cuda::staging::written(cuda::gpu(n)?, DType::F32, shape, write);
        }
        let mut written = Ok(());
        let tensor = Tensor::build::<f32>(device, shape, |out| written = write(out))?;
        written.map(|()| tensor)
    }

    /// As [`Tensor::write_f32`] for the bit patterns of bf16.
    ///
    /// # Errors
    /// As there.
    pub fn write_bf16_bits<E: From<Error>>(
        device: &Device,
        shape: &[usize],
        write: impl FnOnce(&mut [u16]) -> std::result::Result<(), E>,
    ) -> std::result::Result<Tensor, E> {
        Tensor::write_bits::<bf16, E>(device, shape, write)
    }

    /// As [`Tensor::write_f32`] for the bit patterns of f16.
    ///
    /// # Errors
    /// As there.
    pub fn write_f16_bits<E: From<Error>>(
        device: &Device,
        shape: &[usize],
        write: impl FnOnce(&mut [u16]) -> std::result::Result<(), E>,
    ) -> std::result::Result<Tensor, E> {
        Tensor::write_bits::<f16, E>(device, shape, write)
    }

    fn write_bits<T: Element, E: From<Error>>(
        device: &Device,
        shape: &[usize],
        write: impl FnOnce(&mut [u16]) -> std::result::Result<(), E>,
    ) -> std::result::Result<Tensor, E>
    where
        [T]: half::slice::HalfFloatSliceExt,
    {
        if let Device::Cuda(n) = *device {
            return cuda::staging::written(cuda::gpu(n)?, T::DTYPE, shape, write);
        }
        let mut written = Ok(());
        let tensor = Tensor::build::<T>(device, shape, |out| {
            use half::slice::HalfFloatSliceExt;
            written = write(out.reinterpret_cast_mut());
        })?;
        written.map(|()| tensor)
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// Memory runs out.
    pub fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Result<Tensor> {
        let bytes = elements("zeros", shape)? * dtype.bytes();
        if let Device::Cuda(n) = *device {
            return cuda::transfer::zeros(cuda::gpu(n)?, dtype, shape);
        }
        let block = Block::new(bytes)?;
        // SAFETY: the block has at least `bytes` bytes and no other owner.
        unsafe { std::ptr::write_bytes(block.as_ptr(), 0, bytes) };
        Ok(Tensor::of(*device, dtype, shape, Storage::Cpu(block)))
    }

    /// A tensor over memory that holds its numbers.
    pub(crate) fn of(device: Device, dtype: DType, shape: &[usize], storage: Storage) -> Tensor {
        Tensor { shape: shape.to_vec(), dtype, device, storage: Arc::new(storage), offset: 0 }
    }

    /// Allocates a tensor of type `T` on the CPU and lets `fill` write all of it.
    pub(crate) fn build<T: Element>(device: &Device, shape: &[usize], fill: impl FnOnce(&mut [T])) -> Result<Tensor> {
        let count = elements("allocation", shape)?;
        let block = Block::new(count * size_of::<T>())?;
        // SAFETY: the block is large enough, aligned for every element type, initialised, and not shared yet.
        fill(unsafe { std::slice::from_raw_parts_mut(block.as_ptr().cast::<T>(), count) });
        Ok(Tensor::of(*device, T::DTYPE, shape, Storage::Cpu(block)))
    }

    /// The elements of a tensor on the CPU; the type must be the tensor's.
    pub(crate) fn data<T: Element>(&self) -> &[T] {
        assert_eq!(T::DTYPE, self.dtype, "operators check element types before they read");
        let Storage::Cpu(block) = &*self.storage else { unreachable!("operators check devices before they read") };
        // SAFETY: the block is initialised, aligned and outlives `self`; construction checked the range.
        unsafe { std::slice::from_raw_parts(block.as_ptr().cast::<T>().add(self.offset), self.len()) }
    }

    /// Where the numbers of a tensor on a GPU begin, and the GPU; none on the CPU.
    pub(crate) fn on_gpu(&self) -> Option<(&'static cuda::Gpu, u64)> {
        match &*self.storage {
            Storage::Cpu(_) => None,
            Storage::Cuda(buffer) => Some((buffer.gpu(), buffer.address() + (self.offset * self.dtype.bytes()) as u64)),
        }
    }

    /// What a GPU's product left of its rows with its result; none for a part that begins later and on the CPU.
    pub(crate) fn left(&self) -> Option<cuda::tiles::Left> {
        match self.sums()? {
            Sums::Rows(left) => Some(*left),
            Sums::Channels(_) => None,
        }
    }

    /// The sums of its channels that a GPU's convolution left with its result `[b, .., c]`; none for a part of it.
    pub(crate) fn channel_sums(&self) -> Option<Tensor> {
        match self.sums()? {
            Sums::Channels(sums) if sums.dim(0) == self.dim(0) && sums.dim(2) == self.last_dim() => Some(sums),
            _ => None,
        }
    }

    fn sums(&self) -> Option<Sums> {
        match &*self.storage {
            Storage::Cuda(buffer) if self.offset == 0 => buffer.sums(),
            _ => None,
        }
    }

    /// Leaves sums of its numbers with a new tensor, or forgets them where its numbers change.
    pub(crate) fn keep_sums(&self, sums: Option<Sums>) {
        if let Storage::Cuda(buffer) = &*self.storage {
            buffer.keep_sums(sums);
        }
    }

    /// The same numbers on another device; the same tensor where the device is the same.
    ///
    /// # Errors
    /// Memory runs out, or the device cannot be used.
    pub fn to_device(&self, device: &Device) -> Result<Tensor> {
        if *device == self.device {
            return Ok(self.clone());
        }
        match (self.dtype, device) {
            (DType::BF16, Device::Cuda(n)) if self.device == Device::Cpu => {
                let bits: Vec<u16> = self.data::<bf16>().iter().map(|x| x.to_bits()).collect();
                cuda::transfer::from_bits(cuda::gpu(*n)?, DType::BF16, &self.shape, &bits)
            }
            _ => Tensor::from_f32(device, self.dtype, &self.shape, &self.to_vec_f32()?),
        }
    }

    /// Puts the numbers of `from` into this tensor on a GPU, for the inputs of a [`crate::Recording`]. Everyone who
    /// shares its memory sees the new numbers, in the order in which work was asked for.
    ///
    /// # Errors
    /// Another shape, type or device; a tensor on the CPU, whose numbers never change.
    pub fn overwrite(&self, from: &Tensor) -> Result<()> {
        if self.shape != from.shape || self.dtype != from.dtype || self.device != from.device {
            return Err(Error::argument("overwrite", format!("{from:?} does not fit into {self:?}")));
        }
        match self.on_gpu() {
            Some(_) => {
                self.keep_sums(None);
                cuda::transfer::overwrite(self, from)
            }
            None => Err(Error::argument("overwrite", "the numbers of a tensor on the CPU never change")),
        }
    }

    /// The elements as f32, on the host.
    ///
    /// # Errors
    /// None on the CPU; on a GPU whatever failed before, as this waits for all that was asked of it.
    pub fn to_vec_f32(&self) -> Result<Vec<f32>> {
        if self.on_gpu().is_some() {
            return cuda::transfer::to_vec_f32(self);
        }
        Ok(match self.dtype {
            DType::F32 => self.data::<f32>().to_vec(),
            DType::BF16 => self.data::<bf16>().iter().map(|x| Element::to_f32(*x)).collect(),
            DType::F16 => self.data::<f16>().iter().map(|x| x.to_f32()).collect(),
        })
    }

    /// The same numbers in another type; the same tensor where the type is the same.
    ///
    /// # Errors
    /// Memory runs out.
    pub fn cast(&self, dtype: DType) -> Result<Tensor> {
        if dtype == self.dtype {
            return Ok(self.clone());
        }
        if self.on_gpu().is_some() {
            return cuda::elementwise::cast(self, dtype);
        }
        if let (DType::BF16, DType::F32) = (self.dtype, dtype) {
            return Tensor::build::<f32>(&self.device, &self.shape, |out| {
                crate::cpu::elementwise::widen(self.data::<bf16>(), out);
            });
        }
        if let (DType::F32, DType::BF16) = (self.dtype, dtype) {
            return Tensor::build::<bf16>(&self.device, &self.shape, |out| {
                crate::cpu::elementwise::narrow(self.data::<f32>(), out);
            });
        }
        Tensor::from_f32(&self.device, dtype, &self.shape, &self.to_vec_f32()?)
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Size of dimension `i`; 1 where there is none.
    pub fn dim(&self, i: usize) -> usize {
        self.shape.get(i).copied().unwrap_or(1)
    }

    /// Size of the last dimension.
    pub fn last_dim(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The shape of a token sequence `[b, n, c]`.
    ///
    /// # Errors
    /// The tensor has another number of dimensions.
    pub fn dims3(&self) -> Result<[usize; 3]> {
        self.shape
            .as_slice()
            .try_into()
            .map_err(|_| Error::shape("dims3", "the tensor", &self.shape, "three dimensions"))
    }

    /// The shape of a picture `[b, h, w, c]`.
    ///
    /// # Errors
    /// The tensor has another number of dimensions.
    pub fn dims4(&self) -> Result<[usize; 4]> {
        self.shape
            .as_slice()
            .try_into()
            .map_err(|_| Error::shape("dims4", "the tensor", &self.shape, "four dimensions"))
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same elements under another shape; the memory is shared.
    ///
    /// # Errors
    /// The shapes hold different numbers of elements.
    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        if elements("reshape", shape)? != self.len() {
            return Err(Error::shape("reshape", "the tensor", &self.shape, format!("as many elements as {shape:?}")));
        }
        Ok(Tensor { shape: shape.to_vec(), ..self.clone() })
    }

    /// `count` entries of the first dimension from `start`; the memory is shared.
    ///
    /// # Errors
    /// The range leaves the tensor.
    pub fn rows(&self, start: usize, count: usize) -> Result<Tensor> {
        let total = self.dim(0);
        if self.shape.is_empty() || start.checked_add(count).is_none_or(|end| end > total) {
            return Err(Error::argument("rows", format!("rows {start}+{count} of {total} do not exist")));
        }
        let stride: usize = self.shape[1..].iter().product();
        let mut shape = self.shape.clone();
        shape[0] = count;
        Ok(Tensor { shape, offset: self.offset + start * stride, ..self.clone() })
    }
}
