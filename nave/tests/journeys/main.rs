//! Journeys through a whole market, on real Postgres, a real Docker Engine and real WireGuard.

mod clouds;
mod devices;
mod epochs;
mod groups;
mod hosts;
mod jobs;
mod mesh;
mod quotes;
mod replicas;
mod shares;
#[path = "../support/mod.rs"]
mod support;
mod tenants;
mod transfers;
mod verdicts;

/// Prints ten lines, one every 300 ms, to standard output.
const TICKS: &str = "import time\nfor i in range(10): print('tick', i, flush=True); time.sleep(.3)";

fn ticks() -> String {
    (0..10).map(|i| format!("tick {i}\n")).collect()
}
