//! The `tieback` command.

fn main() {}
