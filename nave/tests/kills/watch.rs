//! Watches from outside, while everything goes on, that no job runs twice at once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::blows::tagged;

/// A thread that looks at the machine's processes until it is dropped.
pub struct Watch {
    stop: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    thread: Option<JoinHandle<Vec<String>>>,
}

impl Watch {
    pub fn begin() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let looks = Arc::new(AtomicU64::new(0));
        let (stopping, counted) = (stop.clone(), looks.clone());
        let thread = thread::spawn(move || {
            let mut seen = Vec::new();
            while !stopping.load(Ordering::Relaxed) {
                seen.extend(running_twice());
                counted.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(50));
            }
            seen
        });
        Self { stop, looks, thread: Some(thread) }
    }

    /// Ends the watch and returns what it saw, and how often it looked.
    pub fn end(mut self) -> (Vec<String>, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("ends once");
        (thread.join().expect("no panic"), self.looks.load(Ordering::Relaxed))
    }
}

/// Jobs with processes in more than one container, seen twice in a row: a process that was
/// killed a moment ago may still be listed.
fn running_twice() -> Vec<String> {
    let look = || {
        let mut containers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (_, key, container) in tagged() {
            containers.entry(key).or_default().push(container);
        }
        containers.values_mut().for_each(|list| {
            list.sort();
            list.dedup();
        });
        containers.retain(|_, list| list.len() > 1);
        containers
    };
    let first = look();
    if first.is_empty() {
        return Vec::new();
    }
    thread::sleep(Duration::from_millis(100));
    let second = look();
    let both = second.into_iter().filter(|(key, _)| first.contains_key(key));
    both.map(|(key, list)| format!("{key} runs in {}", list.join(" and "))).collect()
}
