//! Epochs: delivered value becomes weights.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::units::MicroUsd;

/// Where an epoch stands. A crash resumes from the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum EpochState {
    /// Deliveries are still added.
    Open,
    /// Its deliveries are fixed.
    Closed,
    /// Its weights are computed.
    Settled,
    /// Its weights were sent to the chain.
    Submitted,
    /// The chain shows these weights.
    Confirmed,
}

impl EpochState {
    /// All states, in the order of an epoch's life.
    pub const ALL: [Self; 5] = [Self::Open, Self::Closed, Self::Settled, Self::Submitted, Self::Confirmed];

    /// The name in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Settled => "settled",
            Self::Submitted => "submitted",
            Self::Confirmed => "confirmed",
        }
    }

    /// The state that follows; none after the last.
    #[must_use]
    pub fn next(self) -> Option<Self> {
        match self {
            Self::Open => Some(Self::Closed),
            Self::Closed => Some(Self::Settled),
            Self::Settled => Some(Self::Submitted),
            Self::Submitted => Some(Self::Confirmed),
            Self::Confirmed => None,
        }
    }
}

/// The weight that a vector adds up to.
pub const WEIGHT_TOTAL: u16 = u16::MAX;

/// Shares [`WEIGHT_TOTAL`] among miners in proportion to the value they delivered,
/// by largest remainder, ties by name. With nothing delivered the sink gets all.
///
/// Miners who delivered nothing are left out; negative values count as nothing.
#[must_use]
pub fn weights(delivered: &BTreeMap<String, MicroUsd>, sink: &str) -> BTreeMap<String, u16> {
    let earning: Vec<(&String, i128)> = delivered
        .iter()
        .filter(|(_, value)| value.0 > 0)
        .map(|(miner, value)| (miner, i128::from(value.0)))
        .collect();
    let sum: i128 = earning.iter().map(|(_, value)| value).sum();
    if sum == 0 {
        return BTreeMap::from([(sink.to_owned(), WEIGHT_TOTAL)]);
    }
    let total = i128::from(WEIGHT_TOTAL);
    let mut shares: Vec<(i128, i128, &String)> =
        earning.iter().map(|(miner, value)| (value * total / sum, value * total % sum, *miner)).collect();
    let given: i128 = shares.iter().map(|(share, _, _)| share).sum();
    shares.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.2.cmp(b.2)));
    let left = usize::try_from(total - given).unwrap_or(0);
    for (share, _, _) in shares.iter_mut().take(left) {
        *share += 1;
    }
    shares
        .into_iter()
        .filter(|(share, _, _)| *share > 0)
        .map(|(share, _, miner)| (miner.clone(), u16::try_from(share).unwrap_or(WEIGHT_TOTAL)))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_epoch_without_deliveries_gives_everything_to_the_sink() {
        let idle = BTreeMap::from([("miner".to_owned(), MicroUsd(0))]);
        assert_eq!(weights(&idle, "sink"), BTreeMap::from([("sink".to_owned(), WEIGHT_TOTAL)]));
    }

    #[test]
    fn equal_deliveries_differ_by_one_at_most_and_the_first_name_has_it() {
        let same = ["a", "b"].map(|miner| (miner.to_owned(), MicroUsd(5)));
        let expected = [("a".to_owned(), 32_768), ("b".to_owned(), 32_767)];
        assert_eq!(weights(&BTreeMap::from(same), "sink"), BTreeMap::from(expected));
    }

    proptest! {
        #[test]
        fn weights_sum_exactly_and_follow_the_value_delivered(
            values in proptest::collection::btree_map("[a-z]{1,6}", 0..i64::MAX / 1_000, 0..40),
        ) {
            let delivered = values.into_iter().map(|(miner, value)| (miner, MicroUsd(value))).collect();
            let vector = weights(&delivered, "SINK");
            prop_assert_eq!(vector.values().map(|w| u32::from(*w)).sum::<u32>(), u32::from(WEIGHT_TOTAL));
            for (a, x) in &delivered {
                for (b, y) in &delivered {
                    let weight = |miner: &String| vector.get(miner).copied().unwrap_or(0);
                    prop_assert!(x < y || weight(a).saturating_add(1) > weight(b) || weight(a) >= weight(b));
                }
            }
        }
    }
}
