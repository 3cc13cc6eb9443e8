//! Logs: every byte once, in order, up to the bound.

use nave_domain::{Timestamp, lease::Outcome};
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

#[tokio::test]
async fn one_read_is_bounded_in_pieces_and_in_bytes() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, lease) = market.run(customer, host, &request()).await;
        let piece = vec![b'x'; 400 << 10];
        for number in 0..5 {
            let offset = number * (400 << 10);
            market.store.log_append(host, lease, "stdout", offset, &piece, 16 << 20).await.expect("append");
        }
        let read = async |after, limit| market.store.log_read(job, after, limit).await.expect("read");
        assert_eq!(read(0, 2).await.len(), 2);
        let first = read(0, 100).await;
        assert_eq!(first.len(), 3, "the third reaches one MiB");
        let rest = read(first[2].chunk, 100).await;
        assert_eq!(rest.len(), 2, "and the next read goes on from there");
        assert!(read(rest[1].chunk, 100).await.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_reader_can_begin_near_the_end_or_at_a_time() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, lease) = market.run(customer, host, &request()).await;
        for (offset, bytes) in [(0, b"a"), (1, b"b"), (2, b"c")] {
            market.store.log_append(host, lease, "stdout", offset, bytes, 100).await.expect("append");
        }
        sqlx::query("update log_chunks set at_ms = byte_offset * 1000")
            .execute(&market.sql)
            .await
            .expect("age");
        let from = async |cursor| {
            let rows = market.store.log_read(job, cursor, 100).await.expect("read");
            rows.iter().map(|row| char::from(row.bytes[0])).collect::<String>()
        };
        let tail = async |pieces| market.store.log_tail(job, pieces).await.expect("tail");
        assert_eq!(from(tail(2).await).await, "bc");
        assert_eq!(from(tail(0).await).await, "");
        assert_eq!(from(tail(9).await).await, "abc");
        let since = async |at| market.store.log_since(job, Timestamp(at)).await.expect("since");
        assert_eq!(from(since(0).await).await, "abc");
        assert_eq!(from(since(1_000).await).await, "bc", "from that moment on");
        assert_eq!(from(since(1_001).await).await, "c");
        assert_eq!(from(since(9_000).await).await, "");
    })
    .await;
}

#[tokio::test]
async fn what_a_cut_character_needs_is_found_behind_a_cursor() {
    open(async |market| {
        let customer = market.customer("ada").await;
        let host = market.host("alpha").await;
        let (job, lease) = market.run(customer, host, &request()).await;
        let append = async |stream, offset, bytes: &[u8]| {
            market.store.log_append(host, lease, stream, offset, bytes, 100).await.expect("append");
        };
        append("stdout", 0, b"text \xf0").await;
        append("stderr", 0, b"e").await;
        append("stdout", 6, b"\x9f").await;
        append("stdout", 7, b"\x98").await;
        let cursor = market.store.log_read(job, 0, 100).await.expect("read").last().expect("a piece").chunk;
        append("stdout", 8, b"\x80").await;
        let tails = market.store.log_tails(job, cursor).await.expect("tails");
        let of = |stream| {
            let pieces = tails.iter().filter(|row| row.stream == stream);
            pieces.flat_map(|row| row.bytes.clone()).collect::<Vec<u8>>()
        };
        assert_eq!(of("stdout"), b"t \xf0\x9f\x98", "three bytes of three pieces, oldest first");
        assert_eq!(of("stderr"), b"e");
    })
    .await;
}
