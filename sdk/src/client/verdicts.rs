//! What came of the tests of hosts: the calls of [`crate::wire::verdict`].

use nave_domain::{ChallengeId, HostId};

use super::{Client, call::Call, error::Error};
use crate::wire::{
    rest::Page,
    verdict::{HostVerdict, VerdictRecord},
};

impl Client {
    /// What came of the tests of a host, newest first. Nobody needs a key for this.
    ///
    /// # Errors
    /// [`Error`], here as below.
    pub async fn verdicts(
        &self,
        host: HostId,
        limit: Option<u32>,
        before: Option<&str>,
    ) -> Result<Page<HostVerdict>, Error> {
        let call = Call::get(&[&"hosts", &host, &"verdicts"]);
        self.fetch(call.query("limit", limit).query("before", before)).await
    }

    /// One verdict with its evidence, without the bytes of its opening.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn verdict(&self, host: HostId, challenge: ChallengeId) -> Result<VerdictRecord, Error> {
        self.fetch(Call::get(&[&"hosts", &host, &"verdicts", &challenge])).await
    }

    /// The bytes of an opening, while they are kept.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn opening(&self, host: HostId, challenge: ChallengeId) -> Result<Vec<u8>, Error> {
        self.fetch_bytes(Call::get(&[&"hosts", &host, &"verdicts", &challenge, &"opening"])).await
    }
}
