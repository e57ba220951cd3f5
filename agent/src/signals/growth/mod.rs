//! Net growth of memory by code: of what each sample of growth stands for, is it still there?
//!
//! The address that a sample touched stands for all the bytes that the sample stands for. As long as its page is there, they are;
//! when it is given back, they are gone: an estimate without bias, whose error is that of the sampling. Pages that are swapped
//! out count as there.

mod held;
mod touched;

pub use held::Held;
pub use touched::{Touched, touched};
