//! What epochs come to: the calls of [`crate::wire::settlement`].

use super::{Client, Download, call::Call, error::Error};
use crate::wire::settlement::Parameters;

impl Client {
    /// The market's parameters, with their history and what is announced. Nobody needs a key for this.
    ///
    /// # Errors
    /// [`Error`], here as below.
    pub async fn params(&self) -> Result<Parameters, Error> {
        self.fetch(Call::get(&[&"params"])).await
    }

    /// The bundle of an epoch whose weights are revealed, packed with gzip.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn evidence(&self, epoch: i64) -> Result<Download, Error> {
        let response = self.open(Call::get(&[&"epochs", &epoch, &"evidence"]).streamed()).await?;
        Ok(Download { response })
    }
}
