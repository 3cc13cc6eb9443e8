//! How fast a simulated device is, and how it deceives.

use std::time::Duration;

use nave_domain::{Bytes, Millis};
use serde::{Deserialize, Serialize};

use crate::{Fill, Gemm, Lanes, Phase, Spill, device::VRAM_BLOCK};

/// A simulated device: what it says it is, how fast it is, and what it does not do honestly.
///
/// It computes everything really and then waits until the time has passed that its rates give. A device that
/// says it is a better one is an honest one whose `model` and `vram` are another's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SoftwareModel {
    /// What it says it is.
    pub model: String,
    /// What memory it says it has; it cannot be filled with more.
    pub vram: Bytes,
    /// Operations on signed bytes in a second, two for each product that is added.
    pub ops_per_s: u64,
    /// Bytes of its memory that it reads in a second, one after the other.
    pub bytes_per_s: u64,
    /// Blocks of 32 bytes that it reads in a second, here and there.
    pub reads_per_s: u64,
    /// Compressions of SHA-256 in a second.
    pub hashes_per_s: u64,
    /// Bytes in a second to and from the host's memory.
    pub return_bytes_per_s: u64,
    /// How it deceives; the last of a kind counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dishonesty: Vec<Dishonesty>,
}

/// A way to deceive. Fractions are in thousandths, and more than all is all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Dishonesty {
    /// Makes up a fraction of the tiles of products.
    Skip {
        /// Of all tiles.
        per_mille: u16,
    },
    /// Makes up a fraction of the lanes.
    CheatReads {
        /// Of all lanes.
        per_mille: u16,
    },
    /// Makes up a fraction of the chunks of passes and of a copy that comes back.
    CheatStream {
        /// Of all chunks.
        per_mille: u16,
    },
    /// Is the same device as all others of this name: one does its work after the other.
    Shared {
        /// The name of the one device.
        with: String,
    },
    /// Keeps a fraction of its memory and computes the rest again whenever it is read.
    KeepVram {
        /// What is kept.
        per_mille: u16,
    },
    /// Keeps a fraction of its memory in the host's, which is slower.
    HostVram {
        /// What is elsewhere.
        per_mille: u16,
        /// Blocks that are read from there in a second.
        reads_per_s: u64,
        /// Bytes that are read from there in a second.
        bytes_per_s: u64,
    },
    /// Keeps no copy in the host's memory, and computes it again when it should come back.
    ForgetCopy,
    /// Leaves the copy where it is, and computes again what should be there instead when lanes read it.
    KeepCopy,
    /// Is a device of another machine.
    Away {
        /// What each phase takes longer.
        delay_ms: Millis,
        /// Bytes of a copy in a second, there and back.
        bytes_per_s: u64,
    },
    /// Works for others at the same time.
    Lent {
        /// Of its time.
        per_mille: u16,
        /// Memory that others hold.
        vram: Bytes,
    },
    /// Answers at once with what it has computed before it knew what would be asked.
    Precomputed,
    /// Breaks down in a phase.
    Broken {
        /// The phase.
        phase: Phase,
    },
}

/// All ways in which a device deceives, together.
#[derive(Debug, Clone, Default)]
pub(super) struct Ways {
    pub(super) skip: u16,
    pub(super) cheat_reads: u16,
    pub(super) cheat_stream: u16,
    pub(super) shared: Option<String>,
    pub(super) forgets_copy: bool,
    keeps_copy: bool,
    pub(super) lent_vram: Bytes,
    pub(super) is_precomputed: bool,
    pub(super) broken: Vec<Phase>,
    missing: u16,
    elsewhere: Option<Elsewhere>,
    delay: Duration,
    copy_bytes_per_s: Option<u64>,
    lent: u16,
}

#[derive(Debug, Clone)]
struct Elsewhere {
    per_mille: u16,
    reads_per_s: u64,
    bytes_per_s: u64,
}

impl Ways {
    pub(super) fn of(model: &SoftwareModel) -> Self {
        let mut ways = Self::default();
        for way in &model.dishonesty {
            match way {
                Dishonesty::Skip { per_mille } => ways.skip = *per_mille,
                Dishonesty::CheatReads { per_mille } => ways.cheat_reads = *per_mille,
                Dishonesty::CheatStream { per_mille } => ways.cheat_stream = *per_mille,
                Dishonesty::Shared { with } => ways.shared = Some(with.clone()),
                Dishonesty::KeepVram { per_mille } => ways.missing = 1000 - (*per_mille).min(1000),
                Dishonesty::HostVram { per_mille, reads_per_s, bytes_per_s } => {
                    let (reads_per_s, bytes_per_s) = (*reads_per_s, *bytes_per_s);
                    ways.elsewhere = Some(Elsewhere { per_mille: *per_mille, reads_per_s, bytes_per_s });
                }
                Dishonesty::ForgetCopy => ways.forgets_copy = true,
                Dishonesty::KeepCopy => ways.keeps_copy = true,
                Dishonesty::Away { delay_ms, bytes_per_s } => {
                    ways.delay = Duration::from_millis(u64::try_from(delay_ms.0).unwrap_or(0));
                    ways.copy_bytes_per_s = Some(*bytes_per_s);
                }
                Dishonesty::Lent { per_mille, vram } => (ways.lent, ways.lent_vram) = (*per_mille, *vram),
                Dishonesty::Precomputed => ways.is_precomputed = true,
                Dishonesty::Broken { phase } => ways.broken.push(*phase),
            }
        }
        ways
    }

    /// How many of a fill's blocks are kept, or read from elsewhere: the first ones.
    pub(super) fn kept(&self, blocks: u64) -> u64 {
        u64::try_from(without(blocks.into(), self.missing)).unwrap_or(blocks)
    }
}

/// A model with its ways: how long everything takes.
#[derive(Debug, Clone)]
pub(super) struct Speed {
    model: SoftwareModel,
    ways: Ways,
}

impl Speed {
    pub(super) fn new(model: &SoftwareModel, ways: &Ways) -> Self {
        Self { model: model.clone(), ways: ways.clone() }
    }

    /// What a phase takes whose parts take `parts`.
    pub(super) fn phase(&self, parts: impl IntoIterator<Item = Duration>) -> Duration {
        if self.ways.is_precomputed {
            return Duration::ZERO;
        }
        let alone: Duration = parts.into_iter().sum();
        let own = 1000 - u64::from(self.ways.lent.min(999));
        self.ways.delay + rate(alone.as_nanos().saturating_mul(1000), own.saturating_mul(1_000_000_000))
    }

    pub(super) fn fill(&self, fill: &Fill) -> Duration {
        let blocks = without((fill.bytes / VRAM_BLOCK).into(), self.ways.missing);
        self.hashes(blocks, fill)
    }

    pub(super) fn gemm(&self, gemm: &Gemm) -> Duration {
        let products: u128 = [gemm.m, gemm.n, gemm.k, gemm.rounds].into_iter().map(u128::from).product();
        rate(without(2 * products, self.ways.skip), self.model.ops_per_s)
    }

    pub(super) fn lanes(&self, lanes: &Lanes, fill: &Fill) -> Duration {
        let reads = u128::from(lanes.lanes) * u128::from(lanes.reads);
        let (here, elsewhere, missing) = self.divided(without(reads, self.ways.cheat_reads));
        let slower = self.ways.elsewhere.as_ref().map_or(0, |elsewhere| elsewhere.reads_per_s);
        rate(here, self.model.reads_per_s) + rate(elsewhere, slower) + self.hashes(missing, fill)
    }

    /// Lanes over what a spill left.
    pub(super) fn lanes_of_return(&self, lanes: &Lanes, spill: &Spill, fill: &Fill) -> Duration {
        if !self.ways.keeps_copy {
            return self.lanes(lanes, fill);
        }
        let reads = u128::from(lanes.lanes) * u128::from(lanes.reads);
        let computed = reads * u128::from(spill.bytes) / u128::from(fill.bytes.max(1));
        rate(reads - computed, self.model.reads_per_s) + self.hashes(computed, fill)
    }

    /// Filling anew what was copied.
    pub(super) fn fill_anew(&self, spill: &Spill, fill: &Fill) -> Duration {
        match self.ways.keeps_copy {
            true => Duration::ZERO,
            false => self.fill(&Fill { bytes: spill.bytes, ..*fill }),
        }
    }

    /// Reading `bytes` of the fill from end to end.
    pub(super) fn pass(&self, bytes: u64, fill: &Fill) -> Duration {
        let (here, elsewhere, missing) = self.divided(without(bytes.into(), self.ways.cheat_stream));
        let slower = self.ways.elsewhere.as_ref().map_or(0, |elsewhere| elsewhere.bytes_per_s);
        let missing = self.hashes(missing / u128::from(VRAM_BLOCK), fill);
        rate(here, self.model.bytes_per_s) + rate(elsewhere, slower) + missing
    }

    /// `bytes` of the fill on their way to the host's memory; what is not there is computed.
    pub(super) fn copy(&self, bytes: u64, fill: &Fill) -> Duration {
        if self.ways.forgets_copy || self.ways.keeps_copy {
            return Duration::ZERO;
        }
        let (_, _, missing) = self.divided(bytes.into());
        self.travel(bytes.into()) + self.hashes(missing / u128::from(VRAM_BLOCK), fill)
    }

    /// `bytes` of a copy on their way back.
    pub(super) fn copy_back(&self, bytes: u64, fill: &Fill) -> Duration {
        let bytes = without(bytes.into(), self.ways.cheat_stream);
        match (self.ways.forgets_copy, self.ways.keeps_copy) {
            (true, _) => self.hashes(bytes / u128::from(VRAM_BLOCK), fill),
            (false, true) => rate(bytes, self.model.bytes_per_s),
            (false, false) => self.travel(bytes),
        }
    }

    fn travel(&self, bytes: u128) -> Duration {
        rate(bytes, self.ways.copy_bytes_per_s.unwrap_or(self.model.return_bytes_per_s))
    }

    fn hashes(&self, blocks: u128, fill: &Fill) -> Duration {
        rate(blocks * u128::from(fill.depth), self.model.hashes_per_s)
    }

    /// What is read here, read from elsewhere, and missing, of all that is read.
    fn divided(&self, all: u128) -> (u128, u128, u128) {
        let there = without(all, self.ways.missing);
        let fraction = self.ways.elsewhere.as_ref().map_or(0, |elsewhere| elsewhere.per_mille);
        let here = without(there, fraction);
        (here, there - here, all - there)
    }
}

/// What is left of `all` without a fraction of it.
fn without(all: u128, per_mille: u16) -> u128 {
    all.saturating_mul(1000 - u128::from(per_mille.min(1000))) / 1000
}

fn rate(count: u128, per_s: u64) -> Duration {
    let nanos = count.saturating_mul(1_000_000_000) / u128::from(per_s.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(dishonesty: Vec<Dishonesty>) -> SoftwareModel {
        SoftwareModel {
            model: "Simulated".into(),
            vram: Bytes(1 << 30),
            ops_per_s: 1_000_000_000,
            bytes_per_s: 1 << 30,
            reads_per_s: 1_000_000,
            hashes_per_s: 32_000_000,
            return_bytes_per_s: 1 << 28,
            dishonesty,
        }
    }

    fn speed(dishonesty: Vec<Dishonesty>) -> Speed {
        let model = model(dishonesty);
        Speed::new(&model, &Ways::of(&model))
    }

    const FILL: Fill = Fill { bytes: 1 << 28, depth: 32 };
    const GEMM: Gemm = Gemm { m: 1000, n: 1000, k: 500, rounds: 1, samples: 1 };
    const LANES: Lanes = Lanes { lanes: 1000, reads: 1000, samples: 1 };

    #[test]
    fn an_honest_device_takes_what_its_rates_say() {
        let speed = speed(vec![]);
        let blocks_ms = (1 << 23) * 32 / 32_000;
        assert_eq!(speed.phase([speed.fill(&FILL)]).as_millis(), blocks_ms);
        assert_eq!(speed.phase([speed.gemm(&GEMM)]).as_millis(), 1000);
        assert_eq!(speed.phase([speed.lanes(&LANES, &FILL)]).as_millis(), 1000);
        assert_eq!(speed.phase([speed.pass(FILL.bytes, &FILL)]).as_millis(), 250);
        assert_eq!(speed.phase([speed.copy(FILL.bytes, &FILL)]).as_millis(), 1000);
        assert_eq!(speed.phase([speed.copy_back(FILL.bytes, &FILL)]).as_millis(), 1000);
    }

    #[test]
    fn what_is_skipped_takes_no_time_and_what_is_missing_takes_more() {
        let skipping = speed(vec![Dishonesty::Skip { per_mille: 100 }]);
        assert_eq!(skipping.gemm(&GEMM).as_millis(), 900);
        // 900 000 reads at the rate of reads, 100 000 blocks of 32 hashes each.
        let keeping = speed(vec![Dishonesty::KeepVram { per_mille: 900 }]);
        assert_eq!(keeping.lanes(&LANES, &FILL).as_millis(), 900 + 100);
        let elsewhere = Dishonesty::HostVram { per_mille: 500, reads_per_s: 100_000, bytes_per_s: 1 << 27 };
        let elsewhere = speed(vec![elsewhere]);
        assert_eq!(elsewhere.lanes(&LANES, &FILL).as_millis(), 500 + 5000);
        assert_eq!(elsewhere.pass(FILL.bytes, &FILL).as_millis(), 125 + 1000);
        let forgetful = speed(vec![Dishonesty::ForgetCopy]);
        assert_eq!(forgetful.copy_back(FILL.bytes, &FILL), forgetful.fill(&FILL));
        let lent = speed(vec![Dishonesty::Lent { per_mille: 500, vram: Bytes(0) }]);
        assert_eq!(lent.phase([lent.gemm(&GEMM)]).as_millis(), 2000);
        let away = speed(vec![Dishonesty::Away { delay_ms: Millis(30), bytes_per_s: 1 << 27 }]);
        assert_eq!(away.phase([away.copy_back(FILL.bytes, &FILL)]).as_millis(), 2030);
    }

    #[test]
    fn a_model_is_read_from_json_and_nothing_in_it_is_overlooked() {
        let model = model(vec![Dishonesty::Skip { per_mille: 50 }, Dishonesty::ForgetCopy]);
        let mut json = serde_json::to_value(&model).unwrap();
        assert_eq!(json["dishonesty"].to_string(), r#"[{"skip":{"per_mille":50}},"forget_copy"]"#);
        assert_eq!(serde_json::from_value::<SoftwareModel>(json.clone()).unwrap(), model);
        json["dishonest"] = true.into();
        assert!(serde_json::from_value::<SoftwareModel>(json).is_err());
    }
}
