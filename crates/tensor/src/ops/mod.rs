//! The operators: each checks its shapes and then calls the back end of the device.

use crate::DType;
use crate::cpu::gemm::splits;

mod attention;
mod conv;
mod elementwise;
mod linear;
mod norm;
mod rows;
mod shape;

pub use attention::{
    KeyValue, PackedKeyValue, attention, attention_joined, attention_joined_for, attention_joined_with,
    attention_packed, attention_packed_for,
};
pub use conv::{Conv2d, ConvOptions, Fused};
pub use elementwise::{activation, add, add_scaled, combine, scale};
pub use linear::Linear;
pub use norm::{Normed, group_norm, group_norm_added, group_norm_joined, layer_norm};
pub use rows::{NarrowRows, Rows, layer_norm_for};
pub use shape::{
    concat_axis1, concat_last, concat_rows, crop, embedding, repeat_rows, slice_last, split_last, upsample_nearest,
};

/// How layers multiply numbers of f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Products {
    /// As they are.
    #[default]
    Whole,
    /// Each number as the sum of two of bf16, on processors with tiles of those ([`Products::in_parts_here`]), faster
    /// and within 1e-5 of a layer's result; elsewhere as they are.
    InParts,
}

impl Products {
    /// Whether this processor multiplies f32 in parts where it shall.
    pub fn in_parts_here() -> bool {
        splits(DType::F32, Products::InParts)
    }
}

/// A function applied to each number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// x
    #[default]
    None,
    /// x * sigmoid(x)
    Silu,
    /// x * Phi(x), by the error function
    Gelu,
    /// GELU's approximation by tanh
    GeluTanh,
    /// x * sigmoid(1.702 x), as OpenAI's CLIP has it
    QuickGelu,
    /// max(x, 0)
    Relu,
}
