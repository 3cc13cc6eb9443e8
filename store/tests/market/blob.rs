//! Blobs: bytes by their hash.

use nave_store::BlobClaim;

use crate::market::{EXITED, hash, open, request};

#[tokio::test]
async fn bytes_come_back_by_their_hash_and_storing_them_again_is_a_no_op() {
    open(async |market| {
        let name = hash("bytes");
        assert_eq!(market.store.blob_get(&name).await.expect("get"), None);
        market.store.blob_put(name, b"bytes").await.expect("put");
        market.store.blob_put(name, b"bytes").await.expect("put again");
        assert_eq!(market.store.blob_get(&name).await.expect("get").as_deref(), Some(b"bytes".as_slice()));
        assert_eq!(market.store.blob_get(b"short").await.expect("get"), None);
    })
    .await;
}

#[tokio::test]
async fn the_largest_archive_fits() {
    open(async |market| {
        let bytes = vec![7_u8; 32 << 20];
        market.store.blob_put(hash("large"), &bytes).await.expect("put");
        assert!(market.store.blob_get(&hash("large")).await.expect("get") == Some(bytes));
    })
    .await;
}

#[tokio::test]
async fn a_host_stores_two_blobs_for_each_lease_of_a_day() {
    open(async |market| {
        let (customer, host) = (market.customer("alice").await, market.host("a").await);
        let claim = async |text: &str| market.store.blob_claim(host, hash(text), 5).await.expect("claim");
        assert_eq!(claim("a").await, BlobClaim::NothingOpen);
        let (_, first) = market.run(customer, host, &request()).await;
        assert_eq!([claim("a").await, claim("b").await, claim("a").await], [BlobClaim::Granted; 3]);
        assert_eq!(claim("c").await, BlobClaim::Full);
        let (_, second) = market.run(customer, host, &request()).await;
        market.finish(host, first, EXITED).await;
        assert_eq!(
            claim("c").await,
            BlobClaim::Granted,
            "what one lease has stored leaves room for the next"
        );
        market.finish(host, second, EXITED).await;
        assert_eq!(claim("d").await, BlobClaim::NothingOpen);
    })
    .await;
}

#[tokio::test]
async fn a_blob_that_is_nobodys_result_is_forgotten_after_a_day() {
    open(async |market| {
        let (customer, host) = (market.customer("alice").await, market.host("a").await);
        let (_, lease) = market.run(customer, host, &request()).await;
        for text in ["kept", "unused"] {
            market.store.blob_put(hash(text), text.as_bytes()).await.expect("put");
        }
        let result = nave_store::ResultRow { sha256: hash("kept"), truncated: false };
        market.store.lease_finished(host, lease, Some(EXITED), Some(result)).await.expect("finished");
        assert_eq!(market.store.blobs_forget().await.expect("forget"), 0);
        let age = "update blobs set stored_at_ms = stored_at_ms - 100000000";
        sqlx::query(age).execute(&market.sql).await.expect("age");
        let (_, lease) = market.run(customer, host, &request()).await;
        market.store.blob_claim(host, hash("unused"), 6).await.expect("claim");
        assert_eq!(market.store.blobs_forget().await.expect("forget"), 0, "it is about to be used again");
        market.finish(host, lease, EXITED).await;
        let age = "update blob_claims set claimed_at_ms = claimed_at_ms - 100000000";
        sqlx::query(age).execute(&market.sql).await.expect("age");
        assert_eq!(market.store.blobs_forget().await.expect("forget"), 1);
        assert_eq!(market.store.blob_size(&hash("kept")).await.expect("size"), Some(4));
        assert_eq!(market.store.blob_size(&hash("unused")).await.expect("size"), None);
    })
    .await;
}
