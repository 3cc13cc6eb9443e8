//! What chance has left out is done on purpose at the end, when there is something to strike.

use std::time::{Duration, Instant};

use nave_domain::host::HostState;
use nave_sdk::client::Error;

use crate::{
    Run, blows,
    plan::{Chore, Kind, Rng, Strike},
    stream::{Asked, Deed, Place, patiently},
};

/// Longest time for all blows of a kind that are missing.
const STRIKING_MAX: Duration = Duration::from_secs(300);
/// Rounds in which every crash point may be reached.
const ROUNDS_MAX: usize = 12;
/// How long such a round waits for them.
const ROUND: Duration = Duration::from_secs(25);

impl Run {
    pub async fn mop_up(&mut self) {
        let mut rng = Rng::new(0);
        self.count_blows().await;
        for kind in self.tally.rare().into_iter().filter(|kind| *kind != Kind::Prover) {
            self.strike_rest(kind, &mut rng).await;
        }
        self.settle().await;
        // Hosts are tested while nothing runs on them.
        self.strike_rest(Kind::Prover, &mut rng).await;
        for _ in 0..ROUNDS_MAX {
            self.settle().await;
            if self.tally.unreached().is_empty() {
                return;
            }
            self.reach_rest(&mut rng).await;
        }
        self.settle().await;
    }

    /// Strikes a kind until it was struck often enough.
    async fn strike_rest(&mut self, kind: Kind, rng: &mut Rng) {
        let began = Instant::now();
        while self.tally.rare().contains(&kind) && began.elapsed() < STRIKING_MAX {
            if kind == Kind::Container {
                self.await_container(rng).await;
            }
            let blow = Strike { at_ms: 400, kind, which: rng.next(), for_ms: 1_000 };
            self.begin_blow(blow);
            self.count_blows().await;
        }
        eprintln!("kills: struck {kind:?} on purpose for {} s", began.elapsed().as_secs());
    }

    /// Sees to it that something runs.
    async fn await_container(&mut self, rng: &mut Rng) {
        for _ in 0..12 {
            let began = Instant::now();
            while began.elapsed() < Duration::from_secs(10) {
                if !blows::tagged().is_empty() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            self.test_refused().await;
            self.ask(rng, Deed::Work { lines: 100 }, Place::Any).await;
        }
    }

    /// Spares hosts that failed a test, whose prover was killed, the pause until the next one.
    async fn test_refused(&self) {
        let hosts = patiently(async || self.customers[0].client.hosts().await).await;
        for host in hosts.iter().filter(|host| host.state == HostState::Refused) {
            // Whoever answers may just have been killed.
            drop(self.market.naved().args(["admin", "test", &host.host.to_string()]).output());
        }
    }

    /// Brings about everything at once in which points lie that were not reached.
    async fn reach_rest(&mut self, rng: &mut Rng) {
        let points = self.tally.unreached();
        eprintln!("kills: still to be reached {points:?}");
        points.iter().for_each(|point| self.arm(point));
        self.test_refused().await;
        for chore in [Chore::SlowUpgrade, Chore::Join, Chore::Rotate] {
            self.begin_chore(chore, rng.next());
        }
        let deeds = [Deed::Work { lines: 20 }, Deed::Fail, Deed::Work { lines: 50 }];
        for (deed, place) in deeds.into_iter().zip([Place::Quoted, Place::Any, Place::Rented]) {
            self.ask(rng, deed, place).await;
        }
        let lost = self.ask(rng, Deed::Wait, Place::Any).await;
        let began = Instant::now();
        let mut cut = false;
        while began.elapsed() < ROUND && !self.tally.unreached().is_empty() {
            if !cut && let Ok(Some(which)) = self.host_of(&lost).await {
                self.begin_blow(Strike { at_ms: 0, kind: Kind::Link, which, for_ms: 14_000 });
                cut = true;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            self.take_hits();
        }
    }

    /// Which host a job runs on.
    async fn host_of(&self, asked: &Asked) -> Result<Option<u64>, Error> {
        let job = self.customers[asked.customer].client.job(asked.job).await?;
        let running =
            job.attempts.last().filter(|attempt| attempt.started_at.is_some() && attempt.outcome.is_none());
        let at = running.and_then(|attempt| {
            let id = attempt.host.to_string();
            self.hosts.iter().position(|host| host.id() == id)
        });
        Ok(at.map(|at| at as u64))
    }
}
