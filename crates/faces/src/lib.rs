//! The `faces` crate.
