//! The CUDA driver, loaded at run time. All that the compiler cannot check about GPUs is here.
#![expect(unsafe_code, reason = "a foreign library takes addresses and launches programs with them")]

use std::{
    ffi::{CStr, CString, c_void},
    ptr,
};

use cudarc::driver::{
    DriverError,
    result::{self, event, function, module, primary_ctx, stream},
    sys,
};
use nave_domain::Bytes;
use nave_proof::{Failure, Reason};

use super::{
    faults,
    launch::{Arg, Kernel, Mark, Queue},
};
use crate::slice::PREFIX;

#[path = "../../kernels/embedded.rs"]
#[allow(dead_code, reason = "the hashes are there for a test")]
mod embedded;

/// The lowest compute capability that there are kernels for.
const LOWEST: (u32, u32) = (8, 0);
/// The lowest version of CUDA whose drivers take these kernels, as the driver writes it: 12.0, of drivers from 525 on.
const CUDA_LOWEST: i32 = 12_000;
/// What is called of the driver's library: without one of these a call would end the process.
const CALLS: [&str; 34] = [
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetUuid_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuCtxGetStreamPriorityRange",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuModuleUnload",
    "cuFuncSetAttribute",
    "cuStreamCreate",
    "cuStreamCreateWithPriority",
    "cuStreamSynchronize",
    "cuStreamWaitEvent",
    "cuStreamDestroy_v2",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventDestroy_v2",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoD_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoH_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuLaunchKernel",
];

/// One GPU with its kernels. It is used by the thread that opened it; what it is asked for happens later,
/// until [`Gpu::settle`].
pub(super) struct Gpu {
    device: sys::CUdevice,
    module: sys::CUmodule,
    functions: [sys::CUfunction; Kernel::ALL.len()],
    gemm: &'static embedded::Artefact,
    queues: [sys::CUstream; 2],
    marks: Vec<sys::CUevent>,
    memory: Vec<u64>,
    of_host: Vec<u64>,
}

// SAFETY: its handles belong to the process, and each device is opened, used and dropped in one thread.
unsafe impl Send for Gpu {}

impl Gpu {
    /// Opens the GPU of this UUID, as NVML writes it.
    pub(super) fn open(uuid: &str) -> Result<Self, Failure> {
        start()?;
        let device = find(uuid)?;
        let capability = of("ask for its compute capability", capability(device))?;
        if capability < LOWEST {
            return Err(unavailable(&no_kernel(capability)));
        }
        // SAFETY: the device is there; the context is given back when this ends, or just below.
        let context = of("open a context", unsafe { primary_ctx::retain(device) })?;
        let opened = Self::prepare(device, context, capability);
        if opened.is_err() {
            // SAFETY: it was retained above, once.
            unsafe { primary_ctx::release(device) }.ok();
        }
        opened
    }

    fn prepare(
        device: sys::CUdevice,
        context: sys::CUcontext,
        capability: (u32, u32),
    ) -> Result<Self, Failure> {
        // SAFETY: the context was just made.
        of("use its context", unsafe { result::ctx::set_current(context) })?;
        let (gemm, module) = load(capability)?;
        let functions = of("prepare its kernels", functions(module, gemm))?;
        let queues = of("prepare its queues", queues())?;
        let (marks, memory, of_host) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { device, module, functions, gemm, queues, marks, memory, of_host })
    }

    fn queue(&self, queue: Queue) -> sys::CUstream {
        self.queues[queue as usize]
    }
}

/// Loads the driver, as far as it is there and can be used.
fn start() -> Result<(), Failure> {
    // SAFETY: it only looks whether the library can be loaded.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable("there is no CUDA driver (libcuda.so.1) here: install NVIDIA's driver"));
    }
    // SAFETY: the library is there, as was just seen, and nothing is called yet.
    let has = |name: &&str| unsafe { sys::culib().get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_ok();
    if let Some(missing) = CALLS.iter().find(|name| !has(name)) {
        let why = format!(
            "the driver's library has no {missing}: it is too old, or not whole; install 525 or newer"
        );
        return Err(unavailable(&why));
    }
    let mut version = 0;
    // SAFETY: the call is there, and may come before all others.
    of("ask for the driver's version", unsafe { sys::cuDriverGetVersion(&raw mut version) }.result())?;
    if version < CUDA_LOWEST {
        let (major, minor) = (version / 1_000, version % 1_000 / 10);
        let why =
            format!("the driver is one for CUDA {major}.{minor}, and proofs need 12.0: install 525 or newer");
        return Err(unavailable(&why));
    }
    of("start the driver", result::init())
}

/// What owners of devices are told that there are no kernels for.
pub fn no_kernel((major, minor): (u32, u32)) -> String {
    let (lowest, of_lowest) = LOWEST;
    format!(
        "this device's compute capability {major}.{minor} has no kernel; supported from {lowest}.{of_lowest}"
    )
}

/// Whether there are kernels for devices of a compute capability.
pub fn has_kernel(capability: (u32, u32)) -> bool {
    capability >= LOWEST
}

/// The GPU that the driver knows by this UUID. One that does not say what it is called does not hide the others.
fn find(uuid: &str) -> Result<sys::CUdevice, Failure> {
    let count = of("list devices", result::device::get_count())?;
    let mut nameless = None;
    for ordinal in 0..count {
        match named(ordinal) {
            // Some drivers name a slice as the device that it is of.
            Ok((device, _)) if uuid.starts_with(PREFIX) && count == 1 => return Ok(device),
            Ok((device, name)) if name == uuid => return Ok(device),
            Ok(_) => {}
            Err(error) => nameless = Some(said("list devices", error)),
        }
    }
    Err(nameless.unwrap_or_else(|| {
        unavailable(
            "the CUDA driver does not know it: was MIG switched since the agent started, is it hidden, or lost? See nvidia-smi",
        )
    }))
}

/// A device, and what it is called.
fn named(ordinal: i32) -> Result<(sys::CUdevice, String), DriverError> {
    let device = result::device::get(ordinal)?;
    let uuid = result::device::get_uuid(device)?;
    Ok((device, written(&uuid.bytes.map(|byte| byte.cast_unsigned()))))
}

/// A UUID as NVML writes it.
fn written(bytes: &[u8; 16]) -> String {
    let hex = hex::encode(bytes);
    format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn capability(device: sys::CUdevice) -> Result<(u32, u32), DriverError> {
    use sys::CUdevice_attribute_enum::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    // SAFETY: the device is one that the driver listed.
    let number = |which| unsafe { result::device::get_attribute(device, which) };
    Ok((number(MAJOR)?.unsigned_abs(), number(MINOR)?.unsigned_abs()))
}

/// The best kernels for a device that its driver takes.
fn load(capability: (u32, u32)) -> Result<(&'static embedded::Artefact, sys::CUmodule), Failure> {
    let mut last = None;
    let fits =
        |artefact: &&embedded::Artefact| artefact.lowest <= capability && capability <= artefact.highest;
    for artefact in embedded::ARTEFACTS.iter().filter(fits) {
        // PTX is text, which ends with a zero; what follows a cubin is not read.
        let image: Vec<u8> = artefact.image.iter().copied().chain([0]).collect();
        // SAFETY: the image is whole, and ends as the driver expects it.
        match unsafe { module::load_data(image.as_ptr().cast::<c_void>()) } {
            Ok(module) => return Ok((artefact, module)),
            Err(error) => last = Some(said(&format!("load {}", artefact.name), error)),
        }
    }
    Err(last.unwrap_or_else(|| unavailable("there are no kernels for it")))
}

fn functions(
    module: sys::CUmodule,
    gemm: &embedded::Artefact,
) -> Result<[sys::CUfunction; Kernel::ALL.len()], DriverError> {
    let mut functions = [ptr::null_mut(); Kernel::ALL.len()];
    for (function, kernel) in functions.iter_mut().zip(Kernel::ALL) {
        let name = CString::new(kernel.name()).unwrap_or_default();
        // SAFETY: the module was just loaded.
        *function = unsafe { module::get_function(module, name) }?;
    }
    let shared = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    let bytes = i32::try_from(gemm.gemm_shared).unwrap_or(i32::MAX);
    // SAFETY: the function is of that module.
    unsafe { function::set_function_attribute(functions[Kernel::Gemm as usize], shared, bytes) }?;
    Ok(functions)
}

/// The second one goes first where both could go on.
fn queues() -> Result<[sys::CUstream; 2], DriverError> {
    let (_, greatest) = stream::get_priority_range()?;
    let kind = || stream::StreamKind::NonBlocking;
    Ok([stream::create(kind())?, stream::create_with_priority(kind(), greatest)?])
}

impl Gpu {
    /// Memory of the device.
    pub(super) fn take(&mut self, bytes: u64) -> Result<u64, Failure> {
        let size = usize::try_from(bytes).unwrap_or(usize::MAX);
        // SAFETY: the memory is given back by `free` or when this ends.
        match unsafe { result::malloc_sync(size) } {
            Ok(address) => {
                self.memory.push(address);
                Ok(address)
            }
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Err(no_memory(bytes)),
            Err(error) => Err(said("allocate memory", error)),
        }
    }

    pub(super) fn free(&mut self, address: u64) {
        if let Some(at) = self.memory.iter().position(|taken| *taken == address) {
            self.memory.swap_remove(at);
            // SAFETY: it was allocated, and is not known any more.
            unsafe { result::free_sync(address) }.ok();
        }
    }

    /// Memory of the host that the device copies from and to at its full rate; it is given back with the GPU.
    pub(super) fn take_host(&mut self, bytes: u64) -> Result<u64, Failure> {
        let size = usize::try_from(bytes).unwrap_or(usize::MAX);
        // SAFETY: the memory is given back when this ends.
        match unsafe { result::malloc_host(size, 0) } {
            Ok(memory) => {
                self.of_host.push(memory as u64);
                Ok(memory as u64)
            }
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let message = format!(
                    "no {} of the host's memory for a copy: free some, or let the agent lock more (ulimit -l)",
                    Bytes(i64::try_from(bytes).unwrap_or(i64::MAX)),
                );
                Err(Failure { code: Reason::MemoryUnavailable, message })
            }
            Err(error) => Err(said("allocate the host's memory", error)),
        }
    }

    /// Launches a kernel as `kernels/README.md` says.
    pub(super) fn launch(
        &mut self,
        queue: Queue,
        kernel: Kernel,
        grid: u64,
        args: &[Arg],
    ) -> Result<(), Failure> {
        let grid = u32::try_from(grid).ok().filter(|grid| *grid > 0);
        let Some(grid) = grid else {
            return Err(unavailable("a launch has no blocks, or too many"));
        };
        let (threads, shared) = match kernel == Kernel::Gemm {
            true => (self.gemm.gemm_threads, self.gemm.gemm_shared),
            false => (kernel.threads(), 0),
        };
        // Numbers are little-endian here and there: a short one is the first half of a long one.
        let mut values: Vec<u64> = args
            .iter()
            .map(|arg| match *arg {
                Arg::At(value) | Arg::U64(value) => value,
                Arg::U32(value) => u64::from(value),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|value| ptr::from_mut(value).cast()).collect();
        let function = self.functions[kernel as usize];
        // SAFETY: `kernels/README.md` says what each kernel takes and how it is launched, and its callers follow
        // that; the values are copied before the call returns.
        let done = unsafe {
            result::launch_kernel(
                function,
                (grid, 1, 1),
                (threads, 1, 1),
                shared,
                self.queue(queue),
                &mut pointers,
            )
        };
        of(kernel.name(), done)
    }

    /// Copies host memory that [`Gpu::take_host`] gave to the device.
    pub(super) fn up(&mut self, queue: Queue, to: u64, host: u64, bytes: u64) -> Result<(), Failure> {
        // SAFETY: the host's memory is this machine's own and stays until it ends.
        let done = unsafe {
            let from = std::slice::from_raw_parts(host as *const u8, usize::try_from(bytes).unwrap_or(0));
            result::memcpy_htod_async(to, from, self.queue(queue))
        };
        of("copy from the host", done)
    }

    /// Copies the device's memory to host memory that [`Gpu::take_host`] gave.
    pub(super) fn down(&mut self, queue: Queue, host: u64, from: u64, bytes: u64) -> Result<(), Failure> {
        // SAFETY: as for `up`; nobody looks at it before `settle`.
        let done = unsafe {
            let to = std::slice::from_raw_parts_mut(host as *mut u8, usize::try_from(bytes).unwrap_or(0));
            result::memcpy_dtoh_async(to, from, self.queue(queue))
        };
        of("copy to the host", done)
    }

    /// This moment in a queue, for the other one to wait for.
    pub(super) fn mark(&mut self, queue: Queue) -> Result<Mark, Failure> {
        let mark = event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        let mark = of("make a mark", mark)?;
        self.marks.push(mark);
        // SAFETY: both were made here and are there until `settle`.
        of("set a mark", unsafe { event::record(mark, self.queue(queue)) })?;
        Ok(Mark(self.marks.len() - 1))
    }

    /// Has a queue wait for a moment of the other one.
    pub(super) fn wait(&mut self, queue: Queue, mark: Mark) -> Result<(), Failure> {
        let Some(mark) = self.marks.get(mark.0).copied() else { return Ok(()) };
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both are there until `settle`.
        of("wait for a mark", unsafe { stream::wait_event(self.queue(queue), mark, flags) })
    }

    /// Waits for both queues; marks are forgotten.
    pub(super) fn settle(&mut self) -> Result<(), Failure> {
        for queue in self.queues {
            // SAFETY: it was made when this was opened.
            of("wait for its work", unsafe { stream::synchronize(queue) })?;
        }
        for mark in self.marks.drain(..) {
            // SAFETY: nothing waits for it any more.
            unsafe { event::destroy(mark) }.ok();
        }
        Ok(())
    }

    /// Writes bytes to the device, after both queues.
    pub(super) fn write(&mut self, to: u64, bytes: &[u8]) -> Result<(), Failure> {
        self.settle()?;
        // SAFETY: the callers own as much memory there.
        of("write", unsafe { result::memcpy_htod_sync(to, bytes) })
    }

    /// Reads bytes of the device, after both queues.
    pub(super) fn read(&mut self, from: u64, into: &mut [u8]) -> Result<(), Failure> {
        self.settle()?;
        // SAFETY: the callers own as much memory there.
        of("read", unsafe { result::memcpy_dtoh_sync(into, from) })
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        drop(self.settle());
        // SAFETY: all of it was made here, and nothing runs any more.
        unsafe {
            for address in self.memory.drain(..) {
                result::free_sync(address).ok();
            }
            for memory in self.of_host.drain(..) {
                result::free_host(memory as *mut c_void).ok();
            }
            for queue in self.queues {
                stream::destroy(queue).ok();
            }
            module::unload(self.module).ok();
            primary_ctx::release(self.device).ok();
        }
    }
}

fn of<T>(deed: &str, done: Result<T, DriverError>) -> Result<T, Failure> {
    done.map_err(|error| said(deed, error))
}

/// Why there is no memory: the GPU is too small, or others hold it.
fn no_memory(wanted: u64) -> Failure {
    let shown = |bytes: u64| Bytes(i64::try_from(bytes).unwrap_or(i64::MAX));
    let (free, total) = result::mem_get_info().map_or((0, 0), |(free, total)| (free as u64, total as u64));
    let message =
        format!("no {} of its memory to be had: {} of {} are free", shown(wanted), shown(free), shown(total));
    let code = if wanted <= total { Reason::DeviceBusy } else { Reason::DeviceUnavailable };
    Failure { code, message }
}

/// What the driver says went wrong, in its words.
fn explained(error: DriverError) -> String {
    let text = |found: Result<&CStr, DriverError>| {
        found.map_or_else(|_| "unknown".to_owned(), |text| text.to_string_lossy().into_owned())
    };
    format!("{} ({})", text(error.error_string()), text(error.error_name()))
}

fn said(deed: &str, error: DriverError) -> Failure {
    faults::failure(deed, error.0, &explained(error))
}

fn unavailable(why: &str) -> Failure {
    Failure { code: Reason::DeviceUnavailable, message: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_written_as_nvml_writes_it() {
        let bytes = std::array::from_fn(|at| u8::try_from(at * 17).expect("small"));
        assert_eq!(written(&bytes), "GPU-00112233-4455-6677-8899-aabbccddeeff");
    }
}
