//! Balance and ledger.

use nave_domain::{MicroUsd, ledger::PostingKind};
use nave_sdk::wire::rest::{Balance, LedgerLine, Page};

use crate::setup::Market;

#[tokio::test]
async fn a_customer_sees_their_own_money_only() {
    let market = Market::start().await;
    let (bob, token) = market.customer("bob").await;
    market.submit().await;
    let hers: Balance = market.fetch("/v1/balance").await;
    assert_eq!((hers.available, hers.held), (MicroUsd(9_000_000), MicroUsd(1_000_000)));
    let market = market.with_token(token);
    let his: Balance = market.fetch("/v1/balance").await;
    assert_eq!((his.customer, his.available, his.held), (bob, MicroUsd(10_000_000), MicroUsd(0)));
}

#[tokio::test]
async fn the_ledger_tells_every_movement_once_newest_first() {
    let market = Market::start().await;
    let job = market.submit().await.job;
    market.store.job_cancel(market.customer, job).await.expect("cancel");
    let whole: Page<LedgerLine> = market.fetch("/v1/ledger").await;
    let kinds: Vec<PostingKind> = whole.items.iter().map(|line| line.kind).collect();
    assert_eq!(kinds, [PostingKind::Release, PostingKind::Hold, PostingKind::Credit]);
    assert_eq!((whole.items[0].job, whole.next), (Some(job), None));
    let first: Page<LedgerLine> = market.fetch("/v1/ledger?limit=2").await;
    let cursor = first.next.expect("another page");
    let second: Page<LedgerLine> = market.fetch(&format!("/v1/ledger?limit=2&before={cursor}")).await;
    assert_eq!([first.items, second.items].concat(), whole.items);
    assert_eq!(second.next, None);
}
