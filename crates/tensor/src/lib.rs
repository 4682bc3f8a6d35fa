//! The `tensor` crate.
