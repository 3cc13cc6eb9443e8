//! Fractions of a device: how it can be divided, what a job gets of it, and what that is worth.
//!
//! There are two kinds. A *slice* is cut by the hardware, which separates it from the others: they
//! may be different customers'. A *share* is time and memory of a device beside other shares, kept apart by
//! software alone: all shares of a device are one customer's, and they are of one size, since one
//! pair of limits counts for all of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::{
    CustomerId, HostId,
    units::{Bytes, MilliGpu},
    wish::{GpuRequest, Isolation},
};

/// All of a device's computing.
pub const WHOLE: MilliGpu = MilliGpu(1_000);
/// Most slices of one device.
pub const SLICES_MAX: usize = 16;

/// How a device is leased.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Division {
    /// Whole, to one job at a time.
    #[default]
    Whole,
    /// Whole, or in shares to jobs of one customer.
    Shares,
    /// In slices that the hardware separates, and never whole: the device is in MIG mode.
    Slices(Vec<Slice>),
}

impl Division {
    /// Whether it is leased whole and no other way.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        *self == Self::Whole
    }

    /// The slices, where it is cut.
    #[must_use]
    pub fn slices(&self) -> &[Slice] {
        match self {
            Self::Whole | Self::Shares => &[],
            Self::Slices(slices) => slices,
        }
    }

    /// How it is leased, for people, where that is not whole.
    #[must_use]
    pub fn words(&self) -> Option<String> {
        match self {
            Self::Whole => None,
            Self::Shares => Some("whole or in shares".to_owned()),
            Self::Slices(slices) => {
                let mut counts = BTreeMap::<&str, u32>::new();
                slices.iter().for_each(|slice| *counts.entry(&slice.profile).or_default() += 1);
                let profiles: Vec<String> =
                    counts.iter().map(|(name, count)| format!("{count} x {name}")).collect();
                let cut = if profiles.is_empty() { "none".to_owned() } else { profiles.join(", ") };
                Some(format!("in slices: {cut}"))
            }
        }
    }

    /// Refuses what no device of this much memory could be cut into.
    ///
    /// # Errors
    /// A sentence.
    pub fn check(&self, total: Bytes) -> Result<(), String> {
        let slices = self.slices();
        let fits =
            |slice: &Slice| (1..=WHOLE.0).contains(&slice.milli.0) && (1..=total.0).contains(&slice.vram.0);
        if slices.len() > SLICES_MAX || !slices.iter().all(fits) {
            return Err(format!("at most {SLICES_MAX} slices, each a part of its device"));
        }
        let milli: i64 = slices.iter().map(|slice| slice.milli.0).sum();
        let vram: i128 = slices.iter().map(|slice| i128::from(slice.vram.0)).sum();
        if milli > WHOLE.0 || vram > i128::from(total.0) {
            return Err("slices are more than their device together".into());
        }
        Ok(())
    }
}

/// A fraction of a device that its hardware separates from the others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// The vendor's identifier, such as `MIG-6a0f…`; a container gets the slice by it.
    pub uuid: String,
    /// How the vendor calls its size, such as `1g.10gb`.
    pub profile: String,
    /// Thousandths of the device's computing.
    pub milli: MilliGpu,
    /// Memory in bytes.
    pub vram: Bytes,
}

impl Slice {
    /// Its size.
    #[must_use]
    pub fn fraction(&self) -> Fraction {
        Fraction { milli: self.milli, vram: self.vram }
    }
}

/// Computing and memory of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Fraction {
    /// Thousandths of the device's computing.
    pub milli: MilliGpu,
    /// Memory in bytes.
    pub vram: Bytes,
}

impl Fraction {
    /// The fraction that suffices for a request; none where it wants whole devices, several of them, or them for itself.
    ///
    /// Without a wish for memory the fraction has no memory yet; see [`Fraction::on`].
    #[must_use]
    pub fn wanted(gpu: &GpuRequest, isolation: Isolation) -> Option<Self> {
        let shares = match isolation {
            Isolation::Any => true,
            Isolation::Device | Isolation::Host => false,
        };
        let milli = gpu.share.map(i64::from).filter(|share| *share < WHOLE.0)?;
        (shares && gpu.count == 1).then_some(Self { milli: MilliGpu(milli), vram: gpu.vram })
    }

    /// What it is on a device with this much memory: who asks for no memory gets as much of it as of the computing,
    /// rounded down to whole MiB, in which the memory of shares is limited.
    #[must_use]
    pub fn on(self, total: Bytes) -> Self {
        if self.vram > Bytes::ZERO {
            return self;
        }
        let part = i128::from(shareable(total).0) * i128::from(self.milli.0) / i128::from(WHOLE.0);
        let mib = i128::from(Bytes::MIB);
        Self { vram: bytes(part / mib * mib), ..self }
    }

    /// What of the device is paid for: the larger of its computing and its memory, in thousandths, rounded up.
    #[must_use]
    pub fn priced(self, total: Bytes) -> MilliGpu {
        let (vram, total) = (i128::from(self.vram.0.max(0)), i128::from(total.0.max(1)));
        let of_vram = (vram * i128::from(WHOLE.0) + total - 1) / total;
        MilliGpu(i64::try_from(of_vram).unwrap_or(WHOLE.0).max(self.milli.0).min(WHOLE.0))
    }

    /// Whether a slice has at least this much computing and memory, and at most `vram_max`.
    #[must_use]
    pub fn is_met_by(self, slice: &Slice, vram_max: Option<Bytes>) -> bool {
        slice.milli >= self.milli && slice.vram >= self.vram && vram_max.is_none_or(|most| slice.vram <= most)
    }

    /// The smallest of the slices that it is met by.
    #[must_use]
    pub fn slice<'a>(
        self,
        slices: impl IntoIterator<Item = &'a Slice>,
        vram_max: Option<Bytes>,
    ) -> Option<&'a Slice> {
        slices
            .into_iter()
            .filter(|slice| self.is_met_by(slice, vram_max))
            .min_by(|a, b| (a.fraction(), &a.uuid).cmp(&(b.fraction(), &b.uuid)))
    }
}

/// Memory of a device that shares may have together: a thirty-second is for who shares it out.
#[must_use]
pub fn shareable(total: Bytes) -> Bytes {
    Bytes(total.0 - total.0 / 32)
}

fn bytes(value: i128) -> Bytes {
    Bytes(i64::try_from(value).unwrap_or(i64::MAX))
}

/// The shares of a device that are taken; `T` says whose they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared<T> {
    /// Whose all of them are.
    pub tenant: T,
    /// The size of each.
    pub fraction: Fraction,
    /// How many there are; at least one.
    pub count: u16,
}

impl<T> Shared<T> {
    /// Counts one more, which fits.
    pub fn add(taken: &mut Option<Self>, tenant: T, fraction: Fraction) {
        taken.get_or_insert(Self { tenant, fraction, count: 0 }).count += 1;
    }
}

impl<T: PartialEq> Shared<T> {
    /// The shares of a device once it has one more; none where that does not fit: it is somebody else's, of
    /// another size, or more than is left.
    #[must_use]
    pub fn with(taken: Option<Self>, total: Bytes, tenant: T, fraction: Fraction) -> Option<Self> {
        let count = match taken {
            None => 1,
            Some(taken) if taken.tenant == tenant && taken.fraction == fraction => {
                taken.count.checked_add(1)?
            }
            Some(_) => return None,
        };
        let many = i128::from(count);
        let milli = i128::from(fraction.milli.0) * many;
        let vram = i128::from(fraction.vram.0) * many;
        let fits = fraction.milli.0 > 0
            && fraction.vram.0 > 0
            && milli <= i128::from(WHOLE.0)
            && vram <= i128::from(shareable(total).0);
        fits.then_some(Self { tenant, fraction, count })
    }

    /// How many more shares of this size a tenant can have of a device.
    #[must_use]
    pub fn room(taken: Option<&Self>, total: Bytes, tenant: &T, fraction: Fraction) -> u16 {
        let has = match taken {
            None => 0,
            Some(taken) if taken.tenant == *tenant && taken.fraction == fraction => i64::from(taken.count),
            Some(_) => return 0,
        };
        let of = |all: i64, each: i64| if each > 0 { all / each } else { 0 };
        let most = of(WHOLE.0, fraction.milli.0).min(of(shareable(total).0, fraction.vram.0));
        u16::try_from((most - has).max(0)).unwrap_or(u16::MAX)
    }
}

/// Whose a share is, as its host is told: the same for all jobs of a customer on one host, and another on each host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tenant(pub Uuid);

impl Tenant {
    /// The first 16 bytes of SHA-256 over `nave tenant`, the host's id and the customer's.
    #[must_use]
    pub fn of(host: HostId, customer: CustomerId) -> Self {
        let digest = Sha256::new().chain_update(b"nave tenant").chain_update(host.0).chain_update(customer.0);
        let mut first = [0; 16];
        first.copy_from_slice(&digest.finalize()[..16]);
        Self(Uuid::from_bytes(first))
    }
}

/// A share of a device, as it is ordered of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Its size.
    pub fraction: Fraction,
    /// Whose it is; nobody else's is on the device.
    pub tenant: Tenant,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: i64 = Bytes::GIB;

    fn fraction(milli: i64, gib: i64) -> Fraction {
        Fraction { milli: MilliGpu(milli), vram: Bytes(gib * GIB) }
    }

    fn slice(uuid: &str, milli: i64, gib: i64) -> Slice {
        let Fraction { milli, vram } = fraction(milli, gib);
        Slice { uuid: uuid.into(), profile: format!("{gib}gb"), milli, vram }
    }

    #[test]
    fn a_part_is_wanted_by_who_names_a_share_of_one_device_and_does_not_want_it_alone() {
        let gpu = |count, share| GpuRequest { count, share, vram: Bytes(8 * GIB), ..GpuRequest::default() };
        assert_eq!(Fraction::wanted(&gpu(1, Some(250)), Isolation::Any), Some(fraction(250, 8)));
        assert_eq!(Fraction::wanted(&gpu(1, None), Isolation::Any), None);
        assert_eq!(Fraction::wanted(&gpu(1, Some(1_000)), Isolation::Any), None);
        assert_eq!(Fraction::wanted(&gpu(2, Some(250)), Isolation::Any), None);
        assert_eq!(Fraction::wanted(&gpu(1, Some(250)), Isolation::Device), None);
        assert_eq!(Fraction::wanted(&gpu(1, Some(250)), Isolation::Host), None);
    }

    #[test]
    fn the_larger_of_computing_and_memory_is_paid_for() {
        assert_eq!(fraction(250, 8).priced(Bytes(80 * GIB)), MilliGpu(250));
        assert_eq!(fraction(50, 8).priced(Bytes(80 * GIB)), MilliGpu(100));
        assert_eq!(fraction(1, 1).priced(Bytes(3 * GIB)), MilliGpu(334), "rounded up");
        assert_eq!(fraction(1, 9).priced(Bytes(3 * GIB)), WHOLE, "never more than the device");
    }

    #[test]
    fn who_asks_for_no_memory_gets_as_much_as_of_the_computing() {
        assert_eq!(fraction(500, 0).on(Bytes(64 * GIB)), fraction(500, 31));
        assert_eq!(fraction(500, 8).on(Bytes(64 * GIB)), fraction(500, 8));
        assert_eq!(fraction(333, 0).on(Bytes(80 * GIB + 1)).vram.0 % Bytes::MIB, 0, "whole MiB");
    }

    #[test]
    fn strangers_never_share_a_device_and_neither_do_shares_of_two_sizes() {
        let total = Bytes(80 * GIB);
        let one = Shared::with(None, total, "a", fraction(250, 8)).expect("an untouched device");
        assert_eq!(Shared::with(Some(one), total, "b", fraction(250, 8)), None);
        assert_eq!(Shared::with(Some(one), total, "a", fraction(250, 9)), None);
        assert_eq!(Shared::with(Some(one), total, "a", fraction(250, 8)).map(|both| both.count), Some(2));
    }

    #[test]
    fn a_slice_is_the_smallest_that_suffices() {
        let slices = [slice("MIG-c", 428, 40), slice("MIG-b", 142, 10), slice("MIG-a", 142, 10)];
        let chosen =
            |fraction: Fraction, most| fraction.slice(&slices, most).map(|slice| slice.uuid.as_str());
        assert_eq!(chosen(fraction(100, 8), None), Some("MIG-a"));
        assert_eq!(chosen(fraction(100, 11), None), Some("MIG-c"));
        assert_eq!(chosen(fraction(300, 1), Some(Bytes(20 * GIB))), None, "it is larger than is wanted");
        assert_eq!(chosen(fraction(500, 1), None), None);
    }

    #[test]
    fn slices_are_no_more_than_their_device() {
        let cut = |slices: &[Slice]| Division::Slices(slices.to_vec()).check(Bytes(80 * GIB));
        assert_eq!(cut(&[slice("MIG-a", 428, 40), slice("MIG-b", 428, 40)]), Ok(()));
        assert!(cut(&[slice("MIG-a", 428, 41), slice("MIG-b", 428, 40)]).is_err());
        assert!(cut(&[slice("MIG-a", 600, 1), slice("MIG-b", 600, 1)]).is_err());
        assert!(cut(&[slice("MIG-a", 0, 1)]).is_err() && cut(&[slice("MIG-a", 1, 0)]).is_err());
        assert!(cut(&vec![slice("MIG-a", 1, 1); SLICES_MAX + 1]).is_err());
    }

    #[test]
    fn people_see_how_a_device_is_leased() {
        let cut =
            Division::Slices(vec![slice("MIG-a", 142, 10), slice("MIG-b", 428, 40), slice("MIG-c", 142, 10)]);
        assert_eq!(cut.words().as_deref(), Some("in slices: 2 x 10gb, 1 x 40gb"));
        assert_eq!(Division::Slices(vec![]).words().as_deref(), Some("in slices: none"));
        assert_eq!(
            (Division::Shares.words().as_deref(), Division::Whole.words()),
            (Some("whole or in shares"), None)
        );
    }

    #[test]
    fn a_tenant_is_the_same_on_one_host_and_another_elsewhere() {
        let (host, customer) = (|n| HostId(Uuid::from_u128(n)), |n| CustomerId(Uuid::from_u128(n)));
        assert_eq!(Tenant::of(host(1), customer(1)), Tenant::of(host(1), customer(1)));
        assert_ne!(Tenant::of(host(1), customer(1)), Tenant::of(host(2), customer(1)));
        assert_ne!(Tenant::of(host(1), customer(1)), Tenant::of(host(1), customer(2)));
    }

    proptest! {
        #[test]
        fn shares_are_never_oversold(milli in 1..1_200_i64, mib in 1..100_000_i64, total in 1..100_000_i64) {
            let (total, fraction) = (Bytes(total * Bytes::MIB), Fraction { milli: MilliGpu(milli), vram: Bytes(mib * Bytes::MIB) });
            let mut taken = None;
            while let Some(more) = Shared::with(taken, total, 1, fraction) {
                prop_assert!(i64::from(more.count) * milli <= WHOLE.0);
                prop_assert!(i64::from(more.count) * fraction.vram.0 <= total.0);
                taken = Some(more);
            }
            let count = taken.map_or(0, |taken| i64::from(taken.count)) + 1;
            let room = |taken: Option<&_>, tenant: &i32| i64::from(Shared::room(taken, total, tenant, fraction));
            prop_assert_eq!((room(None, &1), room(taken.as_ref(), &1)), (count - 1, 0));
            let one = Shared { tenant: 1, fraction, count: 1 };
            prop_assert_eq!((room(Some(&one), &1), room(Some(&one), &2)), ((count - 2).max(0), 0));
            prop_assert!(count * milli > WHOLE.0 || count * fraction.vram.0 > shareable(total).0, "the last did not fit");
        }

        #[test]
        fn all_shares_of_a_device_pay_for_no_less_than_they_take(milli in 1..1_000_i64, mib in 1..90_000_i64, total in 1..90_000_i64) {
            let (total, vram) = (Bytes(total * Bytes::MIB), Bytes(mib.min(total) * Bytes::MIB));
            let priced = Fraction { milli: MilliGpu(milli), vram }.priced(total);
            prop_assert!((milli..=WHOLE.0).contains(&priced.0));
            prop_assert!(i128::from(priced.0) * i128::from(total.0) >= i128::from(vram.0) * 1_000);
        }

        #[test]
        fn a_share_of_no_memory_gets_what_as_many_as_fit_by_computing_can_have(milli in 1..1_000_i64, total in 1..100_000_i64) {
            let total = Bytes(total * Bytes::MIB);
            let fraction = Fraction { milli: MilliGpu(milli), vram: Bytes::ZERO }.on(total);
            let mut taken = None;
            for _ in 0..WHOLE.0 / milli {
                taken = Shared::with(taken, total, 1, fraction);
                prop_assert!(taken.is_some() || fraction.vram == Bytes::ZERO);
            }
        }
    }
}
