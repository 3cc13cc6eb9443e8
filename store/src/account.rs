//! Customers and their API keys.

use nave_domain::{CustomerId, KeyId, Timestamp};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{Result, Store, StoreError};

/// Who makes a request, and what they may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The customer.
    pub customer: CustomerId,
    /// The key used.
    pub key: KeyId,
    /// Its scopes.
    pub scopes: Vec<String>,
}

/// An API key without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRow {
    /// Its id.
    pub key: KeyId,
    /// What its owner calls it.
    pub label: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
}

const TOKEN_PREFIX: &str = "nave_";

impl Store {
    /// The customer of this name, made if there is none.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn customer_ensure(&self, name: &str) -> Result<CustomerId> {
        let fresh = Uuid::now_v7();
        let row = sqlx::query_scalar!(
            "insert into customers (customer_id, name) values ($1, $2)
             on conflict on constraint customers_name do update set name = excluded.name
             returning customer_id",
            fresh,
            name
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(row.into())
    }

    /// A new key and its token, which is not stored and cannot be shown again.
    ///
    /// # Errors
    /// When there is no such customer or no randomness.
    pub async fn key_create(
        &self,
        customer: CustomerId,
        label: &str,
        scopes: &[String],
    ) -> Result<(KeyRow, String)> {
        let mut secret = [0_u8; 32];
        getrandom::fill(&mut secret)
            .map_err(|error| StoreError::Corrupt(format!("no randomness: {error}")))?;
        let token = format!("{TOKEN_PREFIX}{}", hex::encode(secret));
        let key = KeyId(Uuid::now_v7());
        let hash = hash(&token);
        let created_at = sqlx::query_scalar!(
            "insert into api_keys (key_id, customer_id, secret_sha256, label, scopes) values ($1, $2, $3, $4, $5)
             returning created_at_ms",
            key.0,
            customer.0,
            hash.as_slice(),
            label,
            scopes
        )
        .fetch_one(&self.pool)
        .await?;
        let row = KeyRow {
            key,
            label: label.to_owned(),
            scopes: scopes.to_vec(),
            created_at: Timestamp(created_at),
        };
        Ok((row, token))
    }

    /// Who a token belongs to; `None` when it is unknown or revoked.
    ///
    /// Only a hash is compared, of a token with 256 bits of randomness, so the time
    /// that the look-up takes tells nothing.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn key_check(&self, token: &str) -> Result<Option<Caller>> {
        let hash = hash(token);
        let row = sqlx::query!(
            "select key_id, customer_id, scopes from api_keys where secret_sha256 = $1 and revoked_at_ms is null",
            hash.as_slice()
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.map(|row| Caller {
            customer: row.customer_id.into(),
            key: row.key_id.into(),
            scopes: row.scopes,
        }))
    }

    /// A customer's working keys, oldest first.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn key_list(&self, customer: CustomerId) -> Result<Vec<KeyRow>> {
        let rows = sqlx::query!(
            "select key_id, label, scopes, created_at_ms from api_keys
             where customer_id = $1 and revoked_at_ms is null order by key_id",
            customer.0
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows.into_iter().map(|row| KeyRow {
            key: row.key_id.into(),
            label: row.label,
            scopes: row.scopes,
            created_at: Timestamp(row.created_at_ms),
        });
        Ok(rows.collect())
    }

    /// Ends a key; ending it again changes nothing.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the customer has no such key.
    pub async fn key_revoke(&self, customer: CustomerId, key: KeyId) -> Result<()> {
        let done = sqlx::query!(
            "update api_keys set revoked_at_ms = coalesce(revoked_at_ms, now_ms())
             where key_id = $1 and customer_id = $2",
            key.0,
            customer.0
        )
        .execute(&self.pool)
        .await?;
        if done.rows_affected() == 0 { Err(StoreError::NotFound("key")) } else { Ok(()) }
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}
