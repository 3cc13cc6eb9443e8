//! Server-sent events, parsed from the bytes of a response.
//!
//! Follows "Interpreting an event stream" of the WHATWG HTML standard, with a
//! bound on what one event may occupy.

/// Most that one unfinished event may occupy, in bytes. A piece of log is at most
/// 256 KiB, which JSON escapes can make six times as long.
pub const EVENT_BYTES_MAX: usize = 4 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its kind; `message` where the server names none.
    pub event: String,
    /// The newest id the server gave, for `Last-Event-ID`.
    pub id: Option<String>,
    /// Its data lines, joined with line feeds.
    pub data: String,
}

/// An event longer than [`EVENT_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("one event is longer than {EVENT_BYTES_MAX} bytes")]
pub struct TooLong;

/// Turns pieces of a stream into events. Where the pieces are cut does not matter.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    event: String,
    data: String,
    has_data: bool,
    id: Option<String>,
    after_return: bool,
    past_first_line: bool,
}

impl Parser {
    /// Events completed by `bytes`, in order.
    ///
    /// # Errors
    /// [`TooLong`]; the stream cannot be continued after it.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        for &byte in bytes {
            let continues_break = std::mem::take(&mut self.after_return) && byte == b'\n';
            match byte {
                _ if continues_break => {}
                b'\n' | b'\r' => {
                    self.after_return = byte == b'\r';
                    events.extend(self.line_end());
                }
                _ if self.line.len() + self.data.len() >= EVENT_BYTES_MAX => return Err(TooLong),
                _ => self.line.push(byte),
            }
        }
        Ok(events)
    }

    fn line_end(&mut self) -> Option<Event> {
        let bytes = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(&bytes);
        let first = !std::mem::replace(&mut self.past_first_line, true);
        let line = if first { text.strip_prefix('\u{feff}').unwrap_or(&text) } else { &text };
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        self.field(field, value.strip_prefix(' ').unwrap_or(value));
        None
    }

    fn field(&mut self, field: &str, value: &str) {
        match field {
            "event" => value.clone_into(&mut self.event),
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()).filter(|id| !id.is_empty()),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            _ => {}
        }
    }

    fn dispatch(&mut self) -> Option<Event> {
        let event = std::mem::take(&mut self.event);
        let data = std::mem::take(&mut self.data);
        if !std::mem::take(&mut self.has_data) {
            return None;
        }
        let event = if event.is_empty() { "message".to_owned() } else { event };
        Some(Event { event, id: self.id.clone(), data })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Vec<Event> {
        Parser::default().push(text.as_bytes()).expect("short enough")
    }

    fn event(kind: &str, id: Option<&str>, data: &str) -> Event {
        Event { event: kind.to_owned(), id: id.map(str::to_owned), data: data.to_owned() }
    }

    #[test]
    fn an_event_has_a_kind_an_id_and_its_data_lines() {
        let events = parse("event: log\nid: 7\ndata: one\ndata: two\n\n");
        assert_eq!(events, [event("log", Some("7"), "one\ntwo")]);
    }

    #[test]
    fn every_line_break_of_the_standard_ends_a_line() {
        for text in ["data: a\n\ndata: b\n\n", "data: a\r\n\r\ndata: b\r\n\r\n", "data: a\r\rdata: b\r\r"] {
            assert_eq!(parse(text), [event("message", None, "a"), event("message", None, "b")], "{text:?}");
        }
    }

    #[test]
    fn comments_unknown_fields_and_a_byte_order_mark_are_skipped() {
        assert_eq!(parse("\u{feff}: keep-alive\n\nretry: 5\ndata:x\n\n"), [event("message", None, "x")]);
    }

    #[test]
    fn an_event_without_data_is_no_event_but_its_id_counts() {
        assert_eq!(parse("id: 3\n\ndata: x\n\n"), [event("message", Some("3"), "x")]);
    }

    #[test]
    fn an_unfinished_event_is_never_delivered() {
        assert_eq!(parse("event: log\ndata: half"), []);
    }

    #[test]
    fn an_endless_event_is_refused_rather_than_stored() {
        let mut parser = Parser::default();
        let piece = b"data: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n".repeat(1_000);
        let refused = (0..100).any(|_| parser.push(&piece).is_err());
        assert!(refused);
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic_and_cuts_never_matter(
            bytes in proptest::collection::vec(prop_oneof![
                4 => proptest::sample::select(b"data:event:id: \n\r\n\n".to_vec()),
                1 => any::<u8>(),
            ], 0..400),
            cut in 0..400_usize,
        ) {
            let whole = Parser::default().push(&bytes).expect("short enough");
            let (head, tail) = bytes.split_at(cut.min(bytes.len()));
            let mut parser = Parser::default();
            let mut events = parser.push(head).expect("short enough");
            events.extend(parser.push(tail).expect("short enough"));
            prop_assert_eq!(events, whole);
        }

        #[test]
        fn what_a_server_writes_is_what_a_client_reads(
            kind in "[a-z]{1,8}", id in "[0-9a-f]{1,8}", data in "[^\r\n]{0,40}(\n[^\r\n]{0,40}){0,3}",
        ) {
            let lines: String = data.split('\n').map(|line| format!("data: {line}\n")).collect();
            let text = format!("event: {kind}\nid: {id}\n{lines}\n");
            prop_assert_eq!(parse(&text), [event(&kind, Some(&id), &data)]);
        }
    }
}
