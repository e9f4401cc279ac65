//! chiral
fn main() {}
