//! Which key the interface speaks with and where it looks for the hub: a pure
//! function of what is known.
//!
//! A host has one mesh key, and two while it changes them. The market is told of the
//! next one; its hub swaps them some time after it has said so; a killed agent does
//! not know when that was. So both stay on the disk, and where one is met with
//! silence the other is tried, until a spec names the next one.

use nave_domain::Millis;

/// Silence after which something else is tried.
pub const SILENCE: Millis = Millis(10_000);
/// Longest pause between two tries of a key that the market has been told of.
const PAUSE_MAX: Millis = Millis(320_000);

/// One of the two keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Side {
    /// The one that was in use before.
    #[default]
    Current,
    /// The one that will be.
    Next,
}

/// What is tried now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Turn {
    /// With which key.
    pub side: Side,
    /// At which of the hub's endpoints.
    pub endpoint: usize,
    /// Since when, on the boot clock.
    pub since: Millis,
    /// How often the next key was tried and met with silence.
    pub failures: u32,
}

/// What is known.
#[derive(Debug, Clone, Copy, Default)]
pub struct View {
    /// On the boot clock, as all times here.
    pub now: Millis,
    /// When something last came from the hub.
    pub heard: Option<Millis>,
    /// How many endpoints the hub has.
    pub endpoints: usize,
    /// Whether there is a next key.
    pub has_next: bool,
    /// When the market last acknowledged that it knows the next key.
    pub told: Option<Millis>,
    /// Whether a spec names the next key as the one that is let in.
    pub confirmed: bool,
    /// Whether a new key is due.
    pub due: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Stay,
    /// Make the next key; from then on reports name it.
    Make,
    /// Speak like this from now on.
    Try(Turn),
    /// The next key is the only one from now on.
    Settle,
}

impl Turn {
    /// What to do at the time of `view`.
    #[must_use]
    pub fn step(self, view: View) -> Step {
        if view.has_next && view.confirmed {
            return Step::Settle;
        }
        if view.due && !view.has_next {
            return Step::Make;
        }
        let alive = view.heard.map_or(self.since, |heard| heard.max(self.since));
        if view.now.0 - alive.0 > SILENCE.0 {
            return Step::Try(self.after_silence(view));
        }
        let told = view.has_next && view.told.is_some_and(|told| told > self.since);
        if told && self.side == Side::Current && view.now.0 - self.since.0 >= self.pause().0 {
            return Step::Try(Self { side: Side::Next, since: view.now, ..self });
        }
        Step::Stay
    }

    /// The other key, and after both keys the next endpoint.
    fn after_silence(self, view: View) -> Self {
        let further = (self.endpoint + 1) % view.endpoints.max(1);
        let since = view.now;
        match self.side {
            Side::Current if view.has_next => Self { side: Side::Next, since, ..self },
            Side::Current => Self { endpoint: further, since, ..self },
            Side::Next => Self {
                side: Side::Current,
                endpoint: further,
                since,
                failures: self.failures.saturating_add(1),
            },
        }
    }

    /// How long the present key is used before the next one is tried again.
    fn pause(self) -> Millis {
        match self.failures {
            0 => Millis::ZERO,
            failures => Millis((SILENCE.0 << failures.min(6)).min(PAUSE_MAX.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(now: i64) -> View {
        View { now: Millis(now), endpoints: 2, ..View::default() }
    }

    fn tried(step: Step) -> (Side, usize) {
        match step {
            Step::Try(turn) => (turn.side, turn.endpoint),
            Step::Stay | Step::Make | Step::Settle => panic!("nothing is tried: {step:?}"),
        }
    }

    #[test]
    fn a_hub_that_answers_is_not_left() {
        let view = View { heard: Some(Millis(95_000)), ..at(100_000) };
        assert_eq!(Turn::default().step(view), Step::Stay);
    }

    #[test]
    fn a_silent_hub_is_looked_for_at_its_other_endpoints() {
        let view = View { heard: Some(Millis(1)), ..at(SILENCE.0 + 2) };
        assert_eq!(tried(Turn::default().step(view)), (Side::Current, 1));
        let last = Turn { endpoint: 1, ..Turn::default() };
        assert_eq!(tried(last.step(view)), (Side::Current, 0));
    }

    #[test]
    fn the_next_key_is_used_once_the_market_knows_it() {
        let made = View { has_next: true, heard: Some(Millis(5)), ..at(6) };
        assert_eq!(Turn::default().step(made), Step::Stay);
        let told = View { told: Some(Millis(6)), ..made };
        assert_eq!(tried(Turn::default().step(told)), (Side::Next, 0));
    }

    #[test]
    fn an_agent_that_forgot_what_it_told_finds_the_right_key_by_silence() {
        let view = View { has_next: true, ..at(SILENCE.0 + 1) };
        assert_eq!(tried(Turn::default().step(view)), (Side::Next, 0));
        let next = Turn { side: Side::Next, ..Turn::default() };
        assert_eq!(tried(next.step(view)), (Side::Current, 1));
    }

    #[test]
    fn a_market_that_knows_the_key_and_does_not_swap_it_is_not_left_alone_for_long() {
        let failed = Turn { failures: 1, ..Turn::default() };
        let told =
            |now: i64| View { has_next: true, told: Some(Millis(now)), heard: Some(Millis(now)), ..at(now) };
        assert_eq!(failed.step(told(2 * SILENCE.0 - 1)), Step::Stay);
        assert_eq!(tried(failed.step(told(2 * SILENCE.0))), (Side::Next, 0));
    }

    #[test]
    fn only_a_spec_ends_the_change() {
        let view = View { has_next: true, told: Some(Millis(1)), heard: Some(Millis(9)), ..at(10) };
        let next = Turn { side: Side::Next, since: Millis(2), ..Turn::default() };
        assert_eq!(next.step(view), Step::Stay);
        assert_eq!(next.step(View { confirmed: true, ..view }), Step::Settle);
    }

    #[test]
    fn a_key_is_made_when_it_is_due_and_none_is_under_way() {
        assert_eq!(Turn::default().step(View { due: true, ..at(1) }), Step::Make);
        let under_way = View { due: true, has_next: true, ..at(1) };
        assert_eq!(Turn::default().step(under_way), Step::Stay);
    }

    proptest! {
        /// Whatever the hub lets in and wherever it is, silence leads there in bounded time.
        #[test]
        fn every_key_and_endpoint_is_tried(endpoints in 1_usize..8, right in 0_usize..8, wants_next: bool) {
            let right = (if wants_next { Side::Next } else { Side::Current }, right % endpoints);
            let (mut turn, mut now) = (Turn::default(), 0);
            for _ in 0..2 * endpoints {
                if (turn.side, turn.endpoint) == right {
                    return Ok(());
                }
                now += SILENCE.0 + 1;
                let view = View { now: Millis(now), endpoints, has_next: true, ..View::default() };
                let Step::Try(next) = turn.step(view) else { return Err(TestCaseError::fail("it stays")) };
                turn = next;
            }
            prop_assert_eq!((turn.side, turn.endpoint), right);
        }
    }
}
