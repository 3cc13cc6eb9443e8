//! Real GPUs, through the CUDA driver: what they compute for proofs, with the kernels of `kernels/`.
//!
//! The driver is loaded when it is needed and need not be there. Whatever it says is wrong becomes a
//! reason; nothing it says is believed otherwise.

mod device;
mod driver;
mod faults;
mod launch;
mod openings;
mod trees;

pub use driver::{has_kernel, no_kernel};
use nave_proof::{Failure, Reason, device::Device};

/// Opens a GPU, or the slice that is all this process sees.
///
/// # Errors
/// Why it cannot be used.
pub fn open(uuid: &str) -> Result<Box<dyn Device>, Failure> {
    let gpu = driver::Gpu::open(uuid)?;
    Ok(Box::new(device::KernelDevice::new(gpu)?))
}

fn aborted(message: &str) -> Failure {
    Failure { code: Reason::Aborted, message: message.to_owned() }
}
