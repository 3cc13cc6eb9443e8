//! Blobs: bytes by their hash.

use crate::market::{hash, open};

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
