//! The market key, as far as the validator needs it: to sign evidence.

use std::{fmt, sync::Arc};

type Sign = dyn Fn(&[u8]) -> [u8; 64] + Send + Sync;

/// Signs with the market key, wherever that is.
#[derive(Clone)]
pub struct MarketKey {
    public: String,
    sign: Arc<Sign>,
}

impl MarketKey {
    /// The key with this public half, in hexadecimal.
    pub fn new(public: String, sign: impl Fn(&[u8]) -> [u8; 64] + Send + Sync + 'static) -> Self {
        Self { public, sign: Arc::new(sign) }
    }

    /// Its public half, in hexadecimal.
    #[must_use]
    pub fn public(&self) -> &str {
        &self.public
    }

    /// Signs.
    #[must_use]
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        (self.sign)(bytes)
    }
}

impl fmt::Debug for MarketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MarketKey").field(&self.public).finish()
    }
}
