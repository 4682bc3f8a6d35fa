//! The `weights` crate.
