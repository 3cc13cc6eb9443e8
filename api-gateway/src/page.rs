//! Pages: bounded pieces of lists, continued by a cursor.

use nave_sdk::wire::rest::Page;
use serde::Deserialize;

/// Number of items a page has at most, 1 to [`Limit::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u32")]
pub(crate) struct Limit(u32);

impl Limit {
    pub(crate) const MAX: u32 = 200;

    pub(crate) fn rows(self) -> i64 {
        i64::from(self.0)
    }

    /// This one, or `most` where it is more.
    pub(crate) fn at_most(self, most: u32) -> Self {
        Self(self.0.min(most))
    }

    /// One row more than the page holds, which tells whether another page follows.
    pub(crate) fn rows_and_one(self) -> i64 {
        self.rows() + 1
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self(50)
    }
}

impl TryFrom<u32> for Limit {
    type Error = String;

    fn try_from(limit: u32) -> Result<Self, String> {
        if (1..=Self::MAX).contains(&limit) {
            return Ok(Self(limit));
        }
        Err(format!("limit: {limit} is not between 1 and {}", Self::MAX))
    }
}

/// Cuts rows to a page; `cursor` names its last item.
pub(crate) fn cut<R>(rows: &mut Vec<R>, limit: Limit, cursor: impl Fn(&R) -> String) -> Option<String> {
    let room = usize::try_from(limit.0).unwrap_or(usize::MAX);
    let more = rows.len() > room;
    rows.truncate(room);
    rows.last().filter(|_| more).map(cursor)
}

pub(crate) fn page<T>(items: Vec<T>, next: Option<String>) -> Page<T> {
    Page { items, next }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_names_a_successor_only_when_there_is_one() {
        let limit = Limit::try_from(2).expect("in range");
        let mut rows = vec![3, 2, 1];
        assert_eq!(cut(&mut rows, limit, ToString::to_string), Some("2".to_owned()));
        assert_eq!(rows, [3, 2]);
        assert_eq!(cut(&mut rows, limit, ToString::to_string), None);
    }

    #[test]
    fn a_limit_out_of_range_is_refused() {
        assert!(Limit::try_from(0).is_err() && Limit::try_from(201).is_err());
    }
}
