//! Map and ring bytes → plain values. What comes out here is what every later stage works on.

mod connections;
pub mod descriptors;
pub mod events;
pub mod harvest;
mod histogram;
mod keys;
pub mod listeners;
pub mod model;
pub mod modules;
pub mod ranges;
pub mod sockets;
mod unix;
pub mod waits;
