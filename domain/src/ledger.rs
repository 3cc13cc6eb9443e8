//! Double-entry bookkeeping in micro-USD.
//!
//! Every posting moves money between accounts and its entries sum to zero; its
//! key makes posting it again a no-op.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    CustomerId, JobId, LeaseId,
    units::{MicroUsd, Overflow},
};

/// A place money can be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Account {
    /// Where credits come from; its balance is minus all credit ever given.
    Funding,
    /// What the market has earned, less what its machines cost.
    Treasury,
    /// What clouds get for machines.
    Clouds,
    /// What a customer can spend.
    Available(CustomerId),
    /// What is set aside for a customer's open jobs.
    Held(CustomerId),
    /// What a miner is to get in cash.
    Payable(String),
    /// What a miner has left as collateral.
    Collateral(String),
}

impl Account {
    /// The customer it belongs to, if to one.
    #[must_use]
    pub fn customer(&self) -> Option<CustomerId> {
        match self {
            Self::Funding | Self::Treasury | Self::Clouds | Self::Payable(_) | Self::Collateral(_) => None,
            Self::Available(customer) | Self::Held(customer) => Some(*customer),
        }
    }

    /// The miner it belongs to, if to one.
    #[must_use]
    pub fn hotkey(&self) -> Option<&str> {
        match self {
            Self::Funding | Self::Treasury | Self::Clouds | Self::Available(_) | Self::Held(_) => None,
            Self::Payable(hotkey) | Self::Collateral(hotkey) => Some(hotkey),
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Funding => f.write_str("funding"),
            Self::Treasury => f.write_str("treasury"),
            Self::Clouds => f.write_str("clouds"),
            Self::Available(customer) => write!(f, "available:{customer}"),
            Self::Held(customer) => write!(f, "held:{customer}"),
            Self::Payable(hotkey) => write!(f, "payable:{hotkey}"),
            Self::Collateral(hotkey) => write!(f, "collateral:{hotkey}"),
        }
    }
}

/// What a posting is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PostingKind {
    /// Credit for a customer.
    Credit,
    /// Money set aside for a job.
    Hold,
    /// Payment for time used.
    Charge,
    /// A charge given back.
    Refund,
    /// What was set aside and not used.
    Release,
    /// What a cloud gets for a machine.
    Rent,
    /// What a customer gets back for what was not kept of a lease.
    CreditForBreach,
    /// What a miner is to get in cash for an epoch.
    Cash,
    /// What breaches of an epoch take from a miner's collateral.
    Penalty,
    /// What a miner leaves as collateral.
    Collateral,
    /// Collateral that a miner gets back.
    CollateralBack,
}

impl PostingKind {
    /// The name in JSON and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Credit => "credit",
            Self::Hold => "hold",
            Self::Charge => "charge",
            Self::Refund => "refund",
            Self::Release => "release",
            Self::Rent => "rent",
            Self::CreditForBreach => "credit_for_breach",
            Self::Cash => "cash",
            Self::Penalty => "penalty",
            Self::Collateral => "collateral",
            Self::CollateralBack => "collateral_back",
        }
    }
}

/// A movement of money: `amount` leaves `from` and arrives at `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posting {
    /// Makes posting it again a no-op.
    pub key: String,
    /// What it is for.
    pub kind: PostingKind,
    /// The job it belongs to, if to one.
    pub job: Option<JobId>,
    /// The machine it is paid for, if for one.
    pub machine: Option<Uuid>,
    /// Where the money leaves.
    pub from: Account,
    /// Where it arrives.
    pub to: Account,
    /// How much; never negative.
    pub amount: MicroUsd,
}

impl Posting {
    /// The two signed entries, which sum to zero.
    ///
    /// # Errors
    /// [`Overflow`] when the amount cannot be negated.
    pub fn entries(&self) -> Result<[(Account, MicroUsd); 2], Overflow> {
        let out = MicroUsd::ZERO.minus(self.amount)?;
        Ok([(self.from.clone(), out), (self.to.clone(), self.amount)])
    }

    /// Gives `customer` credit; `key` names the reason and makes it happen once.
    #[must_use]
    pub fn credit(key: &str, customer: CustomerId, amount: MicroUsd) -> Self {
        Self {
            key: format!("credit:{customer}:{key}"),
            kind: PostingKind::Credit,
            job: None,
            machine: None,
            from: Account::Funding,
            to: Account::Available(customer),
            amount,
        }
    }

    /// Sets `amount` aside for `job`.
    #[must_use]
    pub fn hold(job: JobId, customer: CustomerId, amount: MicroUsd) -> Self {
        Self {
            key: format!("hold:{job}"),
            kind: PostingKind::Hold,
            job: Some(job),
            machine: None,
            from: Account::Available(customer),
            to: Account::Held(customer),
            amount,
        }
    }

    /// Charges `amount` for `lease`, whose charges came to `total` with it.
    #[must_use]
    pub fn charge(
        job: JobId,
        customer: CustomerId,
        lease: LeaseId,
        amount: MicroUsd,
        total: MicroUsd,
    ) -> Self {
        Self {
            key: format!("charge:{lease}:{}", total.0),
            kind: PostingKind::Charge,
            job: Some(job),
            machine: None,
            from: Account::Held(customer),
            to: Account::Treasury,
            amount,
        }
    }

    /// Gives back all that `lease` was charged.
    #[must_use]
    pub fn refund(job: JobId, customer: CustomerId, lease: LeaseId, amount: MicroUsd) -> Self {
        Self {
            key: format!("refund:{lease}"),
            kind: PostingKind::Refund,
            job: Some(job),
            machine: None,
            from: Account::Treasury,
            to: Account::Held(customer),
            amount,
        }
    }

    /// Brings what the market owes for a machine from `before` to `now`, once per `version` of its row. It may be less
    /// than before, where more was taken to have been used than was.
    ///
    /// # Errors
    /// [`Overflow`] when the difference is beyond all money.
    pub fn rent(machine: Uuid, version: u64, before: MicroUsd, now: MicroUsd) -> Result<Self, Overflow> {
        let (from, to) = match now < before {
            false => (Account::Treasury, Account::Clouds),
            true => (Account::Clouds, Account::Treasury),
        };
        Ok(Self {
            key: format!("rent:{machine}:{version}"),
            kind: PostingKind::Rent,
            job: None,
            machine: Some(machine),
            from,
            to,
            amount: now.max(before).minus(now.min(before))?,
        })
    }

    /// Returns what `job` did not use.
    #[must_use]
    pub fn release(job: JobId, customer: CustomerId, amount: MicroUsd) -> Self {
        Self {
            key: format!("release:{job}"),
            kind: PostingKind::Release,
            job: Some(job),
            machine: None,
            from: Account::Held(customer),
            to: Account::Available(customer),
            amount,
        }
    }

    /// Gives a customer back what a lease was charged and did not keep.
    #[must_use]
    pub fn credit_for_breach(job: JobId, customer: CustomerId, lease: LeaseId, amount: MicroUsd) -> Self {
        let (from, to) = (Account::Treasury, Account::Available(customer));
        let (key, kind) = (format!("credit_for_breach:{lease}"), PostingKind::CreditForBreach);
        Self { key, kind, job: Some(job), machine: None, from, to, amount }
    }

    /// What a miner is to get in cash for an epoch.
    #[must_use]
    pub fn cash(epoch: i64, hotkey: &str, amount: MicroUsd) -> Self {
        let (from, to) = (Account::Treasury, Account::Payable(hotkey.to_owned()));
        let (key, kind) = (format!("cash:{epoch}:{hotkey}"), PostingKind::Cash);
        Self { key, kind, job: None, machine: None, from, to, amount }
    }

    /// What breaches of an epoch take from a miner's collateral.
    #[must_use]
    pub fn penalty(epoch: i64, hotkey: &str, amount: MicroUsd) -> Self {
        let (from, to) = (Account::Collateral(hotkey.to_owned()), Account::Treasury);
        let (key, kind) = (format!("penalty:{epoch}:{hotkey}"), PostingKind::Penalty);
        Self { key, kind, job: None, machine: None, from, to, amount }
    }

    /// Collateral that a miner leaves, or that a customer leaves for one; `key` makes it happen once.
    #[must_use]
    pub fn collateral(key: &str, from: Option<CustomerId>, hotkey: &str, amount: MicroUsd) -> Self {
        let from = from.map_or(Account::Funding, Account::Available);
        let (key, kind) = (format!("collateral:{key}"), PostingKind::Collateral);
        Self { key, kind, job: None, machine: None, from, to: Account::Collateral(hotkey.to_owned()), amount }
    }

    /// Collateral that a miner has called back and gets.
    #[must_use]
    pub fn collateral_back(call: Uuid, hotkey: &str, amount: MicroUsd) -> Self {
        let (from, to) = (Account::Collateral(hotkey.to_owned()), Account::Funding);
        let (key, kind) = (format!("collateral_back:{call}"), PostingKind::CollateralBack);
        Self { key, kind, job: None, machine: None, from, to, amount }
    }
}
