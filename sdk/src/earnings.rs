//! What a miner earns, in words.

use std::fmt::Write as _;

use nave_domain::MicroUsd;
use nave_settlement::evidence::Pay;

use crate::wire::settlement::Earnings;

/// Epochs one below the other, each with every sum.
#[must_use]
pub fn explained(epochs: &[Earnings]) -> String {
    if epochs.is_empty() {
        return NONE_YET.to_owned();
    }
    let all =
        epochs.iter().map(|row| format!("epoch {}, closed {}\n{}", row.epoch, row.closed_at, sums(&row.pay)));
    all.collect::<Vec<_>>().join("\n")
}

/// What is said where there is nothing to tell.
pub const NONE_YET: &str = "no epoch was settled yet in which this hotkey had a host\n";

/// Every sum of a miner, in the order in which they follow from one another.
#[must_use]
pub fn sums(pay: &Pay) -> String {
    let lines = [
        ("used", pay.used, "for use, up to what clouds ask, less the margin"),
        ("realised", pay.realised, "what the weights of the epoch before turned into"),
        ("penalty", pay.penalty, "for confirmed breaches"),
        ("  held", pay.penalty_held, "of which from what was owed"),
        ("  bonded", pay.penalty_collateral, "of which from collateral"),
        ("standby", pay.standby, "for idle devices; begins to vest"),
        ("vested", pay.vested, "of earlier standby"),
        ("granted", pay.granted, "of that, what the emission has room for"),
        ("lost", pay.forfeited, "standby that was lost before it vested"),
        ("bids", pay.bids, "above what clouds ask, in cash"),
        ("cash", pay.cash, "in all: bids, and use that the emission does not cover"),
        ("carry", pay.carry, "owed from now on; a debt where negative"),
    ];
    let shown = |(name, amount, why): &(&str, i64, &str)| {
        format!("  {name:<9} {:>12}  {why}\n", MicroUsd(*amount).to_string())
    };
    let mut text: String =
        lines.iter().filter(|(name, amount, _)| *amount != 0 || *name == "carry").map(shown).collect();
    if pay.breaches > 0 {
        let _ = writeln!(
            text,
            "  breaches  {:>12}  at least {} in a million device-hours; above the limit hosts sell as spot",
            pay.breaches, pay.bound_ppm
        );
    }
    text
}
