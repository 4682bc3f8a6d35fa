//! The `hub` crate.
