//! The `nets` crate.
