//! Nobody waits for ever, whoever holds what for however long.

use std::time::{Duration, Instant};

use nave_store::StoreError;

use crate::market::{open, request};

#[tokio::test]
async fn a_row_that_somebody_holds_on_to_makes_a_call_fail_and_not_hang() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let job = market.submit(customer, &request()).await;
        let mut holder = market.sql.begin().await.expect("begin");
        sqlx::query("select 1 from jobs for update").execute(&mut *holder).await.expect("hold");
        let (began, store) = (Instant::now(), market.store.clone());
        let call = async move { store.job_cancel(customer, job).await };
        let answer = tokio::time::timeout(Duration::from_secs(30), call).await.expect("an answer in time");
        assert!(matches!(answer, Err(StoreError::Database(_))), "{answer:?}");
        assert!(began.elapsed() > Duration::from_secs(2), "ordinary waits are waited out");
        drop(holder);
        market.store.job_cancel(customer, job).await.expect("cancel");
    })
    .await;
}
