//! Judging on the side: however much there is to judge, others get their nonces at once, and no miner's
//! openings keep those of others waiting.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Context as _;
use nave_crash_point::crash_point;
use nave_domain::ChallengeId;
use nave_proof::{Failure, OPENING_MAX, Opening, Reason};
use nave_store::{OpenChallenge, Store};
use tokio::task::{JoinSet, spawn_blocking};

use super::{Config, is_news, silent, transfers, write_down, written};
use crate::decide::{CANNOT_BE_JUDGED, Case, Next, Ruling, decide, decide_again};

/// Why a challenge is void where the judge is to blame.
const BROKE_OFF: &str = "the judge broke off";

/// What a judgement is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    Verdict,
    Appeal,
}

/// A challenge that is to be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    challenge: ChallengeId,
    end: End,
    hotkey: String,
}

/// Who is judged next. Pure: a free seat goes to the miner that has the fewest, and among those to the one
/// that was served longest ago.
#[derive(Debug, Default)]
struct Docket {
    /// What waits, by miner, the oldest first.
    waiting: BTreeMap<String, VecDeque<Entry>>,
    /// The miners that something waits of, who was served longest ago first.
    turns: VecDeque<String>,
    /// How many seats each miner has.
    seated: BTreeMap<String, usize>,
    /// All that waits or is judged.
    known: BTreeSet<ChallengeId>,
    free: usize,
}

impl Docket {
    fn push(&mut self, entry: Entry) {
        if !self.known.insert(entry.challenge) {
            return;
        }
        let waiting = self.waiting.entry(entry.hotkey.clone()).or_default();
        if waiting.is_empty() {
            self.turns.push_back(entry.hotkey.clone());
        }
        waiting.push_back(entry);
    }

    /// Takes a seat for what is next.
    fn take(&mut self) -> Option<Entry> {
        let seats = |hotkey: &String| self.seated.get(hotkey).copied().unwrap_or_default();
        let alone = self.turns.iter().position(|hotkey| seats(hotkey) == 0);
        let fewest = || (0..self.turns.len()).min_by_key(|turn| seats(&self.turns[*turn]));
        let turn = alone.or_else(fewest).filter(|_| self.free > 0)?;
        let hotkey = self.turns.remove(turn)?;
        let waiting = self.waiting.get_mut(&hotkey)?;
        let entry = waiting.pop_front()?;
        match waiting.is_empty() {
            true => drop(self.waiting.remove(&hotkey)),
            false => self.turns.push_back(hotkey.clone()),
        }
        self.free -= 1;
        *self.seated.entry(hotkey).or_default() += 1;
        Some(entry)
    }

    fn leave(&mut self, entry: &Entry) {
        self.free += 1;
        self.known.remove(&entry.challenge);
        if let Some(seats) = self.seated.get_mut(&entry.hotkey) {
            *seats -= 1;
            if *seats == 0 {
                self.seated.remove(&entry.hotkey);
            }
        }
    }
}

/// Where challenges are judged.
#[derive(Debug)]
pub(super) struct Court {
    bench: Arc<Bench>,
    /// Each judges until nothing waits; they end with the verifier.
    judges: JoinSet<()>,
}

#[derive(Debug)]
struct Bench {
    config: Config,
    store: Store,
    docket: Mutex<Docket>,
}

impl Court {
    pub(super) fn new(config: Config, store: Store) -> Self {
        let docket = Mutex::new(Docket { free: config.judges.get(), ..Docket::default() });
        Self { bench: Arc::new(Bench { config, store, docket }), judges: JoinSet::new() }
    }

    /// Whether a challenge is judged, or waits to be.
    pub(super) fn knows(&self, challenge: ChallengeId) -> bool {
        self.bench.docket().known.contains(&challenge)
    }

    /// Has a challenge judged when its turn comes.
    pub(super) fn call(&mut self, open: &OpenChallenge, end: End) {
        let entry = Entry { challenge: open.challenge, end, hotkey: open.hotkey.clone() };
        self.bench.docket().push(entry);
    }

    /// Has as many judges at work as there are seats. All that is known by now is called first, so that
    /// turns are fair from the start.
    pub(super) fn sit(&mut self) {
        while self.judges.try_join_next().is_some() {}
        let (free, waits) = {
            let docket = self.bench.docket();
            (docket.free, docket.waiting.values().map(VecDeque::len).sum())
        };
        for _ in 0..free.min(waits) {
            let bench = self.bench.clone();
            self.judges.spawn(async move {
                while let Some(seat) = Seat::take(&bench) {
                    bench.judge(&seat.entry).await;
                }
            });
        }
    }

    /// Waits until all is judged that was to be judged.
    pub(super) async fn settle(&mut self) {
        while self.judges.join_next().await.is_some() {}
    }
}

/// A seat of a judge, which takes a core, and up to an opening's bytes.
struct Seat<'a> {
    bench: &'a Bench,
    entry: Entry,
}

impl<'a> Seat<'a> {
    fn take(bench: &'a Bench) -> Option<Self> {
        let entry = bench.docket().take()?;
        Some(Self { bench, entry })
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.bench.docket().leave(&self.entry);
    }
}

impl Bench {
    fn docket(&self) -> MutexGuard<'_, Docket> {
        // What it holds is whole between any two lines.
        self.docket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn judge(&self, entry: &Entry) {
        let id = entry.challenge;
        if let Err(error) = self.reach(id, entry.end).await {
            let error = format!("{error:#}");
            tracing::warn!(challenge.id = %id, error, "could not judge a challenge; trying again");
        }
        // Where nothing was written down, it is looked at again soon. An appeal always is.
        if let Err(error) = self.store.look_now(id).await {
            tracing::debug!(challenge.id = %id, %error, "a challenge is judged again later");
        }
    }

    /// Reaches a verdict, unless there is nothing to judge any more.
    async fn reach(&self, id: ChallengeId, end: End) -> anyhow::Result<()> {
        let open = match end {
            End::Verdict => self.store.challenges_undecided(&[id]).await.context("load a challenge")?.pop(),
            End::Appeal => Some(self.store.challenge_get(id).await.context("load an appeal")?),
        };
        let Some(open) = open else { return Ok(()) };
        let silent = silent(&self.config, &open);
        let next = match end {
            End::Verdict => decide(&open, silent),
            End::Appeal => decide_again(&open, silent),
        };
        let Next::Judge(case) = next else { return Ok(()) };
        let ruling = self.try_case(&open, case).await?;
        crash_point!("verifier.judge.before_store");
        match end {
            End::Verdict => write_down(&self.store, &open, ruling, &self.config.bans).await,
            End::Appeal => write_appeal_down(&self.store, &open, ruling).await,
        }
    }

    async fn try_case(&self, open: &OpenChallenge, case: Box<Case>) -> anyhow::Result<Ruling> {
        let opening = fetch(&self.store, &case.opening).await?;
        let judged = spawn_blocking(move || case.rule(opening)).await;
        // What breaks the judge would break it again: it is our fault, and not the host's.
        let ruling = judged.unwrap_or_else(|error| {
            tracing::error!(challenge.id = %open.challenge, %error, "a judge broke off");
            Ruling::Void(BROKE_OFF.into())
        });
        transfers::settle(&self.store, open, ruling).await
    }
}

/// The bytes of an opening, or why there are none that could be right.
async fn fetch(store: &Store, opening: &Opening) -> anyhow::Result<Result<Vec<u8>, Failure>> {
    let malformed = |message: String| Failure { code: Reason::EvidenceMalformed, message };
    match opening {
        Opening::Inline(bytes) => Ok(Ok(bytes.clone())),
        Opening::Blob { size, .. } if *size > OPENING_MAX as u64 => {
            Ok(Err(malformed(format!("an opening has {size} bytes, at most {OPENING_MAX}"))))
        }
        Opening::Blob { sha256, .. } => {
            let bytes = store.blob_get(&sha256.0).await.context("load an opening")?;
            Ok(bytes.ok_or_else(|| malformed(format!("the opening {sha256} was never stored"))))
        }
    }
}

pub(super) async fn write_appeal_down(
    store: &Store,
    open: &OpenChallenge,
    ruling: Ruling,
) -> anyhow::Result<()> {
    let written = written(store, open, ruling).await?;
    let verdict = serde_json::to_value(&written).context("write a verdict as JSON")?;
    let is_right = match &written.ruling {
        Ruling::Passed(_) => true,
        // That nobody can tell is no reason to take a verdict back.
        Ruling::Void(why) => why != CANNOT_BE_JUDGED && why != BROKE_OFF,
        Ruling::Failed(_) => false,
    };
    if is_news(store.appeal_decide(open.challenge, &verdict, is_right).await)? {
        let (host, id, code) = (open.host, open.challenge, written.ruling.code());
        tracing::info!(host.id = %host, challenge.id = %id, code, "a verdict was reached again");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn docket(seats: usize, waiting: &[&str]) -> Docket {
        let mut docket = Docket { free: seats, ..Docket::default() };
        for (number, hotkey) in (0..).zip(waiting) {
            let challenge = ChallengeId(Uuid::from_u128(number));
            docket.push(Entry { challenge, end: End::Verdict, hotkey: (*hotkey).to_owned() });
        }
        docket
    }

    /// Who is judged, one after the other.
    fn order(mut docket: Docket) -> String {
        let mut order = String::new();
        while let Some(entry) = docket.take() {
            order.push_str(&entry.hotkey);
            docket.leave(&entry);
        }
        assert!(docket.known.is_empty() && docket.seated.is_empty());
        order
    }

    #[test]
    fn miners_take_turns_however_much_waits_of_one() {
        assert_eq!(order(docket(1, &["a", "a", "a", "a", "b", "c", "b"])), "abcabaa");
    }

    #[test]
    fn a_miner_has_half_of_the_seats_while_another_waits_and_all_of_them_while_nobody_does() {
        let mut busy = docket(4, &["a", "a", "a", "a", "a", "b", "b", "b"]);
        let first: Vec<String> = std::iter::from_fn(|| busy.take()).map(|entry| entry.hotkey).collect();
        assert_eq!(first.concat(), "abab");
        let mut alone = docket(4, &["a", "a", "a", "a", "a"]);
        let taken: Vec<Entry> = std::iter::from_fn(|| alone.take()).collect();
        assert_eq!(taken.len(), 4);
        for number in 10..13 {
            let challenge = ChallengeId(Uuid::from_u128(number));
            alone.push(Entry { challenge, end: End::Verdict, hotkey: "b".into() });
        }
        for (leaves, next) in taken.iter().zip(["b", "b", "a"]) {
            alone.leave(leaves);
            assert_eq!(alone.take().map(|entry| entry.hotkey).as_deref(), Some(next));
        }
    }

    #[test]
    fn what_waits_already_waits_once() {
        let mut docket = docket(1, &["a"]);
        let again =
            Entry { challenge: ChallengeId(Uuid::from_u128(0)), end: End::Verdict, hotkey: "a".into() };
        docket.push(again.clone());
        assert!(docket.take().is_some() && docket.take().is_none());
        docket.push(again.clone());
        docket.leave(&again);
        assert!(docket.take().is_none(), "it was judged just now");
    }
}
