//! Tieback's kernel side. The library also compiles for the host, where only the wire types and the probe
//! descriptions exist.
#![no_std]

pub mod wire;
