//! The `sameface` command.
fn main() {}
