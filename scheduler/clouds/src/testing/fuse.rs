//! Points at which a process may be killed, or stand still for a while.

use std::{
    future::{Future, poll_fn},
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    task::Poll,
};

/// Lets a process pass so many points, then holds it: whoever drops it has killed it there, by
/// `kill -9`; whoever mends the fuse lets it go on.
#[derive(Debug, Default)]
pub struct Fuse {
    left: AtomicI64,
    blown: AtomicBool,
    passed: AtomicU64,
    held_at: OnceLock<&'static str>,
}

impl Fuse {
    /// One that lets `left` points pass.
    #[must_use]
    pub fn new(left: i64) -> Self {
        Self { left: AtomicI64::new(left), ..Self::default() }
    }

    /// One that holds nobody.
    #[must_use]
    pub fn whole() -> Self {
        Self::new(i64::MAX)
    }

    /// How many points were passed.
    #[must_use]
    pub fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    /// Whether it holds a process now.
    #[must_use]
    pub fn has_blown(&self) -> bool {
        self.blown.load(Ordering::Relaxed)
    }

    /// The point that has held a process, once one has.
    #[must_use]
    pub fn held_at(&self) -> Option<&'static str> {
        self.held_at.get().copied()
    }

    /// Lets the process that is held go on, past all points.
    pub fn mend(&self) {
        self.left.store(i64::MAX, Ordering::Relaxed);
        self.blown.store(false, Ordering::Relaxed);
    }

    /// The point that is called `at`.
    pub fn point(&self, at: &'static str) -> impl Future<Output = ()> + Send + '_ {
        let mut is_counted = false;
        poll_fn(move |_| {
            if !is_counted {
                is_counted = true;
                self.passed.fetch_add(1, Ordering::Relaxed);
                if self.left.fetch_sub(1, Ordering::Relaxed) <= 0 {
                    self.blown.store(true, Ordering::Relaxed);
                    self.held_at.get_or_init(|| at);
                }
            }
            if self.blown.load(Ordering::Relaxed) { Poll::Pending } else { Poll::Ready(()) }
        })
    }
}
