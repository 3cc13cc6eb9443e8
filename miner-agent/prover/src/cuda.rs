//! Real GPUs, through the CUDA driver: what they compute for proofs, with the kernels of `kernels/`.
//!
//! The driver is loaded when it is needed and need not be there. Whatever it says is wrong becomes a
//! reason; nothing it says is believed otherwise.

mod device;
mod driver;
mod launch;
mod openings;
mod trees;

use nave_proof::{DeviceTask, Failure, Reason, device::Device};

/// Opens the GPU of a task.
///
/// # Errors
/// Why it cannot be used.
pub fn open(task: &DeviceTask) -> Result<Box<dyn Device>, Failure> {
    let gpu = driver::Gpu::open(&task.uuid)?;
    Ok(Box::new(device::KernelDevice::new(gpu)?))
}

fn aborted(message: &str) -> Failure {
    Failure { code: Reason::Aborted, message: message.to_owned() }
}
