//! The `cast` crate.
