//! Logs: every byte once, in order, up to the bound.

use nave_domain::lease::Outcome;
use nave_store::Appended;

use crate::market::{EXITED, open, request};

#[tokio::test]
async fn overlaps_are_dropped_gaps_are_sent_back_and_the_order_is_kept() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, lease) = market.run(customer, host, &request()).await;
        let append = async |stream, offset, bytes: &[u8]| {
            market.store.log_append(host, lease, stream, offset, bytes, 100).await.expect("append")
        };
        let stored = |next_offset| Appended { next_offset, full: false };
        assert_eq!(append("stdout", 0, b"one ").await, stored(4));
        assert_eq!(append("stderr", 0, b"err ").await, stored(4), "streams count by themselves");
        assert_eq!(append("stdout", 0, b"one ").await, stored(4), "a repetition");
        assert_eq!(append("stdout", 2, b"e two ").await, stored(8), "an overlap");
        assert_eq!(append("stdout", 20, b"lost").await, stored(8), "a gap");
        assert_eq!(append("stdout", 8, b"").await, stored(8), "nothing");
        assert_eq!(append("stdout", 8, b"\xff\0").await, stored(10), "any bytes");
        let rows = market.store.log_read(job, 0, 100).await.expect("read");
        let pieces: Vec<_> = rows.iter().map(|row| (row.stream.as_str(), row.bytes.as_slice())).collect();
        let expected: [(&str, &[u8]); 4] =
            [("stdout", b"one "), ("stderr", b"err "), ("stdout", b"two "), ("stdout", b"\xff\0")];
        assert_eq!(pieces, expected);
        assert!(rows.iter().all(|row| row.attempt == 1));
    })
    .await;
}

#[tokio::test]
async fn a_stream_is_full_at_its_bound_and_says_so() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, lease) = market.run(customer, host, &request()).await;
        let append = async |offset, bytes: &[u8]| {
            market.store.log_append(host, lease, "stdout", offset, bytes, 6).await.expect("append")
        };
        assert_eq!(append(0, b"1234").await, Appended { next_offset: 4, full: false });
        assert_eq!(append(4, b"5678").await, Appended { next_offset: 6, full: true });
        assert_eq!(append(6, b"9").await, Appended { next_offset: 6, full: true });
        let rows = market.store.log_read(job, 0, 100).await.expect("read");
        assert_eq!(rows.iter().flat_map(|row| row.bytes.clone()).collect::<Vec<_>>(), b"123456");
    })
    .await;
}

#[tokio::test]
async fn a_reader_continues_after_its_cursor_and_sees_every_attempt() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let mut stubborn = request();
        stubborn.retries = 1;
        let (job, first) = market.run(customer, host, &stubborn).await;
        let append = async |lease, bytes: &[u8]| {
            market.store.log_append(host, lease, "stdout", 0, bytes, 100).await.expect("append");
        };
        append(first, b"first").await;
        market.finish(host, first, Outcome::Exited { code: 1 }).await;
        let seen = market.store.log_read(job, 0, 100).await.expect("read");
        assert_eq!(seen.len(), 1);
        let second = market.place(job, host).await;
        append(second, b"second").await;
        market.finish(host, second, EXITED).await;
        let rest = market.store.log_read(job, seen[0].chunk, 100).await.expect("read");
        let rest: Vec<_> = rest.iter().map(|row| (row.attempt, row.bytes.as_slice())).collect();
        assert_eq!(rest, [(2, b"second".as_slice())]);
    })
    .await;
}
