//! The host's side of a test of GPUs: all of them at work at the same time, each in a thread.

use std::{
    sync::{Arc, mpsc},
    thread,
};

use super::work::{self, Chosen};
use crate::{
    DeviceTask, DevicesTask, Digest, Failure, Phase,
    device::Device,
    prover::{Done, Work, aborted, gone},
};

/// Opens a device. It is called in the thread in which the device stays.
pub type Open = dyn Fn(&DeviceTask) -> Result<Box<dyn Device>, Failure> + Send + Sync;

/// The devices of a host.
pub(crate) struct Devices {
    phases: Vec<Phase>,
    seats: Vec<Seat>,
}

impl Devices {
    /// Starts the threads, in which the devices are opened.
    pub(crate) fn new(task: &DevicesTask, open: &Arc<Open>) -> Result<Self, Failure> {
        let tasks = task.devices.iter().enumerate();
        let seats = tasks.map(|(slot, task)| Seat::take(slot, task.clone(), Arc::clone(open)));
        Ok(Self { phases: task.phases(), seats: seats.collect::<Result<_, _>>()? })
    }

    /// Does the same on all devices.
    fn all<T: Send + 'static>(
        &self,
        work: impl Fn(&mut Seated) -> Result<T, Failure> + Clone + Send + 'static,
    ) -> Result<Vec<T>, Failure> {
        let pending: Vec<_> = self.seats.iter().map(|seat| seat.order(work.clone())).collect();
        // All are waited for, so that none is still at work when the host gives up.
        let ends: Vec<_> = pending.into_iter().zip(&self.seats).map(|(end, seat)| seat.wait(&end)).collect();
        ends.into_iter().collect()
    }
}

impl Work for Devices {
    fn go_on(&mut self, bindings: &[Digest]) -> Result<Done, Failure> {
        let Some((&binding, before)) = bindings.split_last() else { return Err(gone()) };
        if let Some(&phase) = self.phases.get(before.len()) {
            let digests = self.all(move |seated| seated.work(phase, &binding))?;
            return Ok(Done::Commitment(work::commitment(&digests)));
        }
        let parts = self.all(move |seated| seated.open(&binding))?;
        Ok(Done::Opening(parts.concat()))
    }
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

    fn wait<T>(&self, pending: &mpsc::Receiver<Result<T, Failure>>) -> Result<T, Failure> {
        let broke_off = |_| aborted("what drives it broke off");
        let end = pending.recv().map_err(broke_off).and_then(|end| end);
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
