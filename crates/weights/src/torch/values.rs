//! What a pickle of weights can hold.

use std::path::Path;

use crate::dtype::Dtype;
use crate::error::Error;

/// Why a pickle is not read.
pub(super) enum Refusal {
    /// It does something that weights never need: possibly an attack.
    Forbidden(String),
    /// It is damaged.
    Damaged(String),
}

impl Refusal {
    pub(super) fn into_error(self, path: &Path) -> Error {
        match self {
            Refusal::Forbidden(what) => Error::unsupported(
                path,
                format!(
                    "its pickle {what}, which weights do not need and which is never executed; \
                     if you trust the file, convert it to safetensors with PyTorch"
                ),
            ),
            Refusal::Damaged(reason) => Error::malformed(path, "PyTorch", reason),
        }
    }
}

pub(super) type Outcome<T> = Result<T, Refusal>;

/// A refusal of a damaged pickle.
pub(super) fn damaged<T>(reason: impl Into<String>) -> Outcome<T> {
    Err(Refusal::Damaged(format!("its pickle {}", reason.into())))
}

/// A piece of the pickle that is valid UTF-8.
#[derive(Clone, Copy)]
pub(super) struct Text {
    pub(super) start: u32,
    pub(super) end: u32,
}

#[derive(Clone, Copy)]
pub(super) enum Value {
    /// Anything that carries no tensor: None, floats, bytes, devices.
    Inert,
    Int(i64),
    Text(Text),
    /// A tuple, list or set: an index of `sequences`.
    Sequence(u32),
    /// An index of `dicts`.
    Dict(u32),
    Global(Global),
    /// An index of `storages`.
    Storage(u32),
    /// The arguments that rebuild it, an index of `sequences`.
    Tensor {
        args: u32,
        with_type: bool,
    },
}

/// The names that a pickle of weights may use.
#[derive(Clone, Copy)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildTensorWithType,
    RebuildParameter,
    Size,
    Device,
    Storage(Dtype),
    UntypedStorage,
    Type(Dtype),
}

/// A storage named by a persistent id.
#[derive(Clone, Copy)]
pub(super) struct StorageId {
    pub(super) key: Text,
    /// None for a storage of bytes.
    pub(super) dtype: Option<Dtype>,
    pub(super) count: u64,
}

impl StorageId {
    /// Bytes that the storage claims to hold.
    pub(super) fn bytes(&self) -> Option<u64> {
        self.count.checked_mul(self.dtype.map_or(1, Dtype::size) as u64)
    }
}

/// How a tensor is cut from a storage; strides and offset count elements.
pub(super) struct Cut {
    pub(super) storage: StorageId,
    pub(super) dtype: Dtype,
    pub(super) shape: Box<[usize]>,
    pub(super) strides: Box<[usize]>,
    pub(super) offset: usize,
}

impl Global {
    /// The allow-list.
    pub(super) fn named(module: &str, name: &str) -> Option<Global> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v3") => Global::RebuildTensorWithType,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", "Size") => Global::Size,
            ("torch", "device") => Global::Device,
            ("torch.storage" | "torch", "UntypedStorage") => Global::UntypedStorage,
            ("torch", "DoubleStorage") => Global::Storage(Dtype::F64),
            ("torch", "FloatStorage") => Global::Storage(Dtype::F32),
            ("torch", "HalfStorage") => Global::Storage(Dtype::F16),
            ("torch", "BFloat16Storage") => Global::Storage(Dtype::BF16),
            ("torch", "LongStorage") => Global::Storage(Dtype::I64),
            ("torch", "IntStorage") => Global::Storage(Dtype::I32),
            ("torch", "ShortStorage") => Global::Storage(Dtype::I16),
            ("torch", "CharStorage") => Global::Storage(Dtype::I8),
            ("torch", "ByteStorage") => Global::Storage(Dtype::U8),
            ("torch", "BoolStorage") => Global::Storage(Dtype::Bool),
            ("torch", name) => Global::Type(match name {
                "float64" => Dtype::F64,
                "float32" => Dtype::F32,
                "float16" => Dtype::F16,
                "bfloat16" => Dtype::BF16,
                "float8_e4m3fn" => Dtype::F8E4M3,
                "float8_e5m2" => Dtype::F8E5M2,
                "int64" => Dtype::I64,
                "int32" => Dtype::I32,
                "int16" => Dtype::I16,
                "int8" => Dtype::I8,
                "uint64" => Dtype::U64,
                "uint32" => Dtype::U32,
                "uint16" => Dtype::U16,
                "uint8" => Dtype::U8,
                "bool" => Dtype::Bool,
                _ => return None,
            }),
            _ => return None,
        })
    }
}
