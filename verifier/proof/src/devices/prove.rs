//! The host's side of a test of GPUs: all of them at work at the same time, each in a thread.

use std::{
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

use nave_domain::Millis;

use super::work::{self, Chosen};
use crate::{
    DeviceTask, DevicesTask, Digest, Failure, Phase, Reason,
    device::Device,
    prover::{Done, Work, aborted, gone},
};

/// Opens a device. It is called in the thread in which the device stays.
pub type Open = dyn Fn(&DeviceTask) -> Result<Box<dyn Device>, Failure> + Send + Sync;

/// How time is counted while devices work: this reads no clock.
const TICK: Duration = Duration::from_millis(50);

/// The devices of a host.
pub(crate) struct Devices {
    phases: Vec<Phase>,
    patience: Vec<Millis>,
    seats: Vec<Seat>,
}

impl Devices {
    /// Starts the threads, in which the devices are opened.
    pub(crate) fn new(task: &DevicesTask, open: &Arc<Open>) -> Result<Self, Failure> {
        let tasks = task.devices.iter().enumerate();
        let seats = tasks.map(|(slot, task)| Seat::take(slot, task.clone(), Arc::clone(open)));
        let seats = seats.collect::<Result<_, _>>()?;
        Ok(Self { phases: task.phases(), patience: task.patience_ms.clone(), seats })
    }

    /// Does the same on all devices, in a step that the verifier waits for so long.
    fn all<T: Send + 'static>(
        &mut self,
        step: usize,
        work: impl Fn(&mut Seated) -> Result<T, Failure> + Clone + Send + 'static,
    ) -> Result<Vec<T>, Failure> {
        let pending: Vec<_> = self.seats.iter().map(|seat| seat.order(work.clone())).collect();
        let mut ticks = ticks(self.patience.get(step));
        // All are waited for, so that none is still at work when the host gives up, unless it hangs.
        let ends = pending.into_iter().zip(&mut self.seats).map(|(end, seat)| seat.wait(&end, &mut ticks));
        ends.collect::<Vec<_>>().into_iter().collect()
    }
}

impl Work for Devices {
    fn go_on(&mut self, bindings: &[Digest]) -> Result<Done, Failure> {
        let Some((&binding, before)) = bindings.split_last() else { return Err(gone()) };
        if let Some(&phase) = self.phases.get(before.len()) {
            let digests = self.all(before.len(), move |seated| seated.work(phase, &binding))?;
            return Ok(Done::Commitment(work::commitment(&digests)));
        }
        let parts = self.all(before.len(), move |seated| seated.open(&binding))?;
        Ok(Done::Opening(parts.concat()))
    }
}

/// How long devices may take for a step: a little less than the verifier waits, so that it hears which one hangs.
fn ticks(patience: Option<&Millis>) -> u64 {
    let most = patience.map_or(0, |most| most.0.unsigned_abs());
    (most - most / 16) / u64::try_from(TICK.as_millis()).unwrap_or(u64::MAX)
}

fn hangs() -> Failure {
    let message = "it had not answered when the time for this step was nearly over: it hangs, or is far too slow. See nvidia-smi, and \
                   dmesg for Xid; reset it (nvidia-smi -r) or reboot";
    Failure { code: Reason::DeviceUnavailable, message: message.into() }
}

/// A device in its thread, with what it has done.
struct Seated {
    slot: usize,
    task: DeviceTask,
    device: Box<dyn Device>,
    /// The phases that are done, each with the roots it left.
    roots: Vec<(Phase, Vec<Digest>)>,
}

impl Seated {
    fn work(&mut self, phase: Phase, binding: &Digest) -> Result<Digest, Failure> {
        let seed = work::seed(binding, self.slot, &self.task.uuid);
        let roots = self.compute(phase, &seed)?;
        let digest = work::digest(phase, &seed, &roots);
        self.roots.push((phase, roots));
        Ok(digest)
    }

    fn compute(&mut self, phase: Phase, seed: &Digest) -> Result<Vec<Digest>, Failure> {
        let DeviceTask { uuid: _, fill, gemm, lanes, stream, spill } = &self.task;
        let device = &mut self.device;
        let roots = match phase {
            Phase::Fill => fill.map(|fill| device.fill(&fill, seed).map(|()| Vec::new())),
            Phase::Gemm => gemm.map(|gemm| device.gemm(&gemm, seed)),
            Phase::Lanes => lanes.map(|lanes| device.lanes(&lanes, seed).map(|root| vec![root])),
            Phase::Stream => stream.map(|stream| device.stream(&stream, seed)),
            Phase::Spill => spill.map(|spill| device.spill(&spill, seed).map(|()| Vec::new())),
            Phase::Return => spill.zip(*lanes).map(|(spill, lanes)| {
                device.give_back(&spill, &lanes, seed).map(|(pass, lanes)| vec![pass, lanes])
            }),
        };
        roots.unwrap_or_else(|| Err(gone()))
    }

    /// This device's part of the opening.
    fn open(&mut self, binding: &Digest) -> Result<Vec<u8>, Failure> {
        let seed = work::seed(binding, self.slot, &self.task.uuid);
        let mut bytes = Vec::new();
        for (phase, roots) in &self.roots {
            let chosen = Chosen::of(&self.task, *phase, &seed);
            let device = &mut self.device;
            let (tiles, proofs) = match &chosen {
                Chosen::Nothing => (Vec::new(), Vec::new()),
                Chosen::Gemm { entries: _, tiles } => {
                    let opening = device.gemm_open(tiles)?;
                    (opening.tiles, opening.proofs)
                }
                Chosen::Lanes(lanes) => (Vec::new(), vec![device.lanes_proof(lanes)?]),
                Chosen::Stream(chunks) => (Vec::new(), device.stream_proofs(chunks)?),
                Chosen::Return { chunks, lanes } => {
                    let (copy, lanes) = device.return_proofs(chunks, lanes)?;
                    (Vec::new(), vec![copy, lanes])
                }
            };
            roots.iter().for_each(|root| bytes.extend_from_slice(&root.0));
            bytes.extend_from_slice(tiles.as_flattened());
            proofs.iter().flatten().for_each(|digest| bytes.extend_from_slice(&digest.0));
        }
        Ok(bytes)
    }
}

/// Gets the device, or why it could not be opened.
type Order = Box<dyn FnOnce(Result<&mut Seated, &Failure>) + Send>;

/// The thread of one device; it ends with this.
struct Seat {
    name: String,
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Seat {
    fn take(slot: usize, task: DeviceTask, open: Arc<Open>) -> Result<Self, Failure> {
        let name = work::name(slot, &task.uuid);
        let (orders, received) = mpsc::channel::<Order>();
        let stay = move || {
            let opened = open(&task);
            let mut seated = opened.map(|device| Seated { slot, task, device, roots: Vec::new() });
            received.into_iter().for_each(|order| order(seated.as_mut().map_err(|failure| &*failure)));
        };
        let thread = thread::Builder::new().name(format!("gpu {slot}")).spawn(stay);
        let thread = thread.map_err(|error| aborted(&format!("{name}: start its thread: {error}")))?;
        Ok(Self { name, orders: Some(orders), thread: Some(thread) })
    }

    fn order<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Seated) -> Result<T, Failure> + Send + 'static,
    ) -> mpsc::Receiver<Result<T, Failure>> {
        let (end, pending) = mpsc::channel();
        let order: Order = Box::new(move |seated| {
            // Nobody waits for it only where the host has given up.
            let _ = end.send(seated.map_err(|failure| failure.clone()).and_then(work));
        });
        // An order that cannot be sent any more is dropped, which ends the waiting.
        let _ = self.orders.as_ref().map(|orders| orders.send(order));
        pending
    }

    fn wait<T>(
        &mut self,
        pending: &mpsc::Receiver<Result<T, Failure>>,
        ticks: &mut u64,
    ) -> Result<T, Failure> {
        let end = loop {
            match pending.recv_timeout(TICK) {
                Ok(end) => break end,
                Err(RecvTimeoutError::Disconnected) => break Err(aborted("what drives it broke off")),
                Err(RecvTimeoutError::Timeout) if *ticks > 0 => *ticks -= 1,
                Err(RecvTimeoutError::Timeout) => {
                    // Nobody waits for its thread either.
                    self.thread = None;
                    break Err(hangs());
                }
            }
        };
        end.map_err(|Failure { code, message }| Failure {
            code,
            message: format!("{}: {message}", self.name),
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // What it panicked with was printed by then.
            let _ = thread.join();
        }
    }
}
