//! Where the time of simulated devices comes from.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// Makes work take as long as a model says.
pub trait Pace: Send {
    /// Does `work` and returns when `length` has passed since it began, or later where the work itself took
    /// longer. Who has a `turn` waits for it first, and keeps it meanwhile.
    fn spend(&mut self, length: Duration, turn: Option<&Turn>, work: &mut dyn FnMut());
}

/// What several simulated devices use one after the other.
#[derive(Debug, Clone, Default)]
pub struct Turn {
    /// When it is free, for who counts time instead of letting it pass.
    free: Arc<Mutex<Duration>>,
}

impl Turn {
    fn wait(&self) -> MutexGuard<'_, Duration> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The turns of all devices that secretly are fewer, by their names.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<Mutex<BTreeMap<String, Turn>>>);

impl Turns {
    pub(super) fn of(&self, name: &str) -> Turn {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.entry(name.to_owned()).or_default().clone()
    }
}

/// Real time: sleeps as long as the work would take.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sleeping;

impl Pace for Sleeping {
    fn spend(&mut self, length: Duration, turn: Option<&Turn>, work: &mut dyn FnMut()) {
        let _turn = turn.map(Turn::wait);
        thread::scope(|scope| {
            let sleep = || thread::sleep(length);
            if thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, sleep).is_err() {
                sleep();
            }
            work();
        });
    }
}

/// Time that is counted and not waited for, with a hand for each device.
#[derive(Debug, Clone, Default)]
pub struct VirtualClock {
    face: Arc<Mutex<Face>>,
}

#[derive(Debug, Default)]
struct Face {
    /// Where all hands were last set to.
    set: Duration,
    hands: Vec<Duration>,
}

/// A device's hand of a [`VirtualClock`].
#[derive(Debug)]
struct Hand {
    clock: VirtualClock,
    number: usize,
}

impl Face {
    fn now(&self) -> Duration {
        self.hands.iter().copied().fold(self.set, Duration::max)
    }
}

impl VirtualClock {
    fn face(&self) -> MutexGuard<'_, Face> {
        self.face.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pace of one more device, which begins where all hands were last set to.
    #[must_use]
    pub fn pace(&self) -> Box<dyn Pace> {
        let mut face = self.face();
        let set = face.set;
        face.hands.push(set);
        Box::new(Hand { clock: self.clone(), number: face.hands.len() - 1 })
    }

    /// What the hand that is ahead of all others shows.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.face().now()
    }

    /// Sets all hands to `length` after the one that is ahead, and returns that: what devices begin
    /// after this, they begin then and together.
    pub fn pass(&self, length: Duration) -> Duration {
        let mut face = self.face();
        face.set = face.now() + length;
        let set = face.set;
        face.hands.fill(set);
        set
    }
}

impl Pace for Hand {
    fn spend(&mut self, length: Duration, turn: Option<&Turn>, work: &mut dyn FnMut()) {
        let mut free = turn.map(Turn::wait);
        work();
        let mut face = self.clock.face();
        let begins = face.hands[self.number].max(free.as_ref().map(|free| **free).unwrap_or_default());
        face.hands[self.number] = begins + length;
        if let Some(free) = &mut free {
            **free = begins + length;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const LENGTH: Duration = Duration::from_millis(60);

    #[test]
    fn work_takes_as_long_as_it_should() {
        let began = Instant::now();
        let mut done = 0;
        Sleeping.spend(LENGTH, None, &mut || done += 1);
        assert!(began.elapsed() >= LENGTH);
        assert_eq!(done, 1);
    }

    #[test]
    fn who_shares_waits_for_the_others() {
        let (turns, began) = (Turns::default(), Instant::now());
        thread::scope(|scope| {
            for _ in 0..3 {
                let turn = turns.of("one");
                scope.spawn(move || Sleeping.spend(LENGTH, Some(&turn), &mut || {}));
            }
        });
        assert!(began.elapsed() >= LENGTH * 3);
    }

    #[test]
    fn hands_move_apart_and_are_set_together() {
        let clock = VirtualClock::default();
        let (mut one, mut other) = (clock.pace(), clock.pace());
        one.spend(LENGTH, None, &mut || {});
        other.spend(LENGTH / 2, None, &mut || {});
        assert_eq!(clock.now(), LENGTH);
        // It joins where the others began, not where they are.
        clock.pace().spend(LENGTH / 3, None, &mut || {});
        assert_eq!(clock.pass(LENGTH), LENGTH * 2);
        other.spend(LENGTH, None, &mut || {});
        assert_eq!(clock.now(), LENGTH * 3);
    }
}
