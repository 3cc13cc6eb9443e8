//! The ledger: it balances, it only grows, and an audit finds what does not.

use std::time::{Duration, Instant};

use nave_domain::MicroUsd;

use crate::market::{EXITED, open, request};

#[tokio::test]
async fn credit_is_given_once_for_each_reason() {
    open(async |market| {
        let customer = market.store.customer_ensure("ada").await.expect("a customer");
        let credit = async |key| market.store.credit(customer, key, MicroUsd(100)).await.expect("credit");
        assert!(credit("deposit 1").await);
        assert!(!credit("deposit 1").await);
        assert!(credit("deposit 2").await);
        assert_eq!(market.money(customer).await, (200, 0));
    })
    .await;
}

#[tokio::test]
async fn the_ledger_only_grows() {
    open(async |market| {
        market.customer("ada").await;
        for attempt in [
            "update ledger_entries set amount = amount * 2",
            "delete from ledger_entries",
            "update ledger_postings set kind = 'refund'",
            "delete from ledger_postings",
        ] {
            let refused = sqlx::query(attempt).execute(&market.sql).await.expect_err(attempt);
            assert!(refused.to_string().contains("append-only"), "{attempt}: {refused}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_posting_that_does_not_sum_to_zero_is_refused_at_its_commit() {
    open(async |market| {
        market.customer("ada").await;
        let mut tx = market.sql.begin().await.expect("begin");
        sqlx::query(
            "with p as (insert into ledger_postings (idempotency_key, kind) values ('planted', 'credit')
                        returning posting_id)
             insert into ledger_entries select posting_id, 'funding', 5 from p",
        )
        .execute(&mut *tx)
        .await
        .expect("it is checked later");
        let refused = tx.commit().await.expect_err("one side only");
        assert!(refused.to_string().contains("does not sum to zero"), "{refused}");
    })
    .await;
}

#[tokio::test]
async fn a_customers_balance_never_goes_below_zero() {
    open(async |market| {
        market.customer("ada").await;
        let refused = sqlx::query("update ledger_accounts set balance = -1 where customer_id is not null")
            .execute(&market.sql)
            .await
            .expect_err("a debt");
        assert!(refused.to_string().contains("ledger_accounts_funds"), "{refused}");
    })
    .await;
}

/// Faults that no call of the store can make, planted by hand, and the word the audit says.
#[tokio::test]
async fn an_audit_finds_every_planted_imbalance() {
    let cases = [
        ("update ledger_accounts set balance = balance + 1 where account = 'treasury'", "account treasury"),
        ("update jobs set charged = charged + 1", "job"),
        (
            "insert into ledger_entries (posting_id, account, amount)
             select max(posting_id), 'treasury', 7 from ledger_postings",
            "sums to",
        ),
    ];
    for (plant, word) in cases {
        let (url, _) = nave_store::testing::database().await;
        let store = nave_store::Store::connect(&url).await.expect("connect");
        store.migrate().await.expect("migrate");
        let sql = sqlx::PgPool::connect(&url).await.expect("connect");
        let market = crate::market::Market::new(store, sql);
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (_, lease) = market.run(customer, host, &request()).await;
        market.use_up(host, lease, 2_000).await;
        market.finish(host, lease, EXITED).await;
        market.audit().await;
        let mut tx = market.sql.begin().await.expect("begin");
        // Triggers guard against mistakes, the audit against everything else.
        sqlx::query("set local session_replication_role = replica")
            .execute(&mut *tx)
            .await
            .expect("no guard");
        sqlx::query(plant).execute(&mut *tx).await.expect(plant);
        tx.commit().await.expect("commit");
        let found = market.store.ledger_audit().await.expect("audit");
        assert!(found.iter().any(|problem| problem.contains(word)), "{plant}: {found:?}");
    }
}

/// Lets others go on for a while that is too short for a timer.
async fn moment(span: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < span {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_caller_who_gives_up_while_a_transaction_begins_leaves_none_open_behind_it() {
    open(async |market| {
        let customer = market.store.customer_ensure("ada").await.expect("a customer");
        for at in 0..400_u64 {
            let key = format!("deposit {at}");
            let credit = market.store.credit(customer, &key, MicroUsd(1));
            tokio::select! {
                biased;
                done = credit => drop(done.expect("credit")),
                () = moment(Duration::from_micros(at * 3)) => {}
            }
            // What has answered is there for everybody, whichever connection wrote it.
            let name = format!("customer {at}");
            market.store.customer_ensure(&name).await.expect("a customer");
            let seen: i64 = sqlx::query_scalar("select count(*) from customers where name = $1")
                .bind(&name)
                .fetch_one(&market.sql)
                .await
                .expect("a count");
            assert_eq!(seen, 1, "at {at}");
        }
    })
    .await;
}
