//! API keys: only a hash is kept, and a revoked key opens nothing.

use nave_domain::KeyId;
use nave_store::{Caller, StoreError};

use crate::market::{hash, open};

#[tokio::test]
async fn a_token_opens_what_its_scopes_say_until_it_is_revoked() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let scopes = ["jobs:read".to_owned()];
        let (key, token) = market.store.key_create(customer, "laptop", &scopes).await.expect("create");
        let caller = market.store.key_check(&token).await.expect("check");
        assert_eq!(caller, Some(Caller { customer, key: key.key, scopes: scopes.to_vec() }));
        assert_eq!(market.store.key_list(customer).await.expect("list"), std::slice::from_ref(&key));
        for _ in 0..2 {
            market.store.key_revoke(customer, key.key).await.expect("revoke, and again");
        }
        assert_eq!(market.store.key_check(&token).await.expect("check"), None);
        assert_eq!(market.store.key_list(customer).await.expect("list"), []);
    })
    .await;
}

#[tokio::test]
async fn the_database_holds_only_the_hash_of_a_token() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let (_, token) = market.store.key_create(customer, "laptop", &[]).await.expect("create");
        assert_eq!(token.len(), "nave_".len() + 64);
        let secret = token.strip_prefix("nave_").expect("the prefix");
        let row: String = sqlx::query_scalar("select k::text from api_keys k")
            .fetch_one(&market.sql)
            .await
            .expect("the row");
        assert!(!row.contains(secret));
        let stored: Vec<u8> = sqlx::query_scalar("select secret_sha256 from api_keys")
            .fetch_one(&market.sql)
            .await
            .expect("the hash");
        assert_eq!(stored, hash(&token));
    })
    .await;
}

#[tokio::test]
async fn a_guess_or_a_stolen_hash_opens_nothing() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let (_, token) = market.store.key_create(customer, "laptop", &[]).await.expect("create");
        let stolen = format!("nave_{}", hash(&token).map(|byte| format!("{byte:02x}")).concat());
        for guess in ["", "nave_", stolen.as_str(), &token[..token.len() - 1], &token.to_uppercase()] {
            assert_eq!(market.store.key_check(guess).await.expect("check"), None, "{guess}");
        }
    })
    .await;
}

#[tokio::test]
async fn nobody_revokes_another_customers_key() {
    open(async |market| {
        let [ada, eve] = [market.customer("ada").await, market.customer("eve").await];
        let (key, token) = market.store.key_create(ada, "laptop", &[]).await.expect("create");
        for refused in [
            market.store.key_revoke(eve, key.key).await,
            market.store.key_revoke(ada, KeyId(uuid::Uuid::nil())).await,
        ] {
            assert!(matches!(refused, Err(StoreError::NotFound("key"))), "{refused:?}");
        }
        assert!(market.store.key_check(&token).await.expect("check").is_some());
    })
    .await;
}

#[tokio::test]
async fn a_customer_has_one_id_whoever_asks_first() {
    open(async |market| {
        let first = market.store.customer_ensure("ada").await.expect("a customer");
        assert_eq!(market.store.customer_ensure("ada").await.expect("the same"), first);
        assert_ne!(market.store.customer_ensure("bob").await.expect("another"), first);
    })
    .await;
}
