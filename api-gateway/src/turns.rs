//! How many calls of one customer may wait or stream at a time: each costs a connection
//! and a look at the database now and then, for as long as the customer likes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use axum::http::StatusCode;
use nave_domain::CustomerId;

use crate::error::ApiError;

/// Calls of one customer that wait or stream at a time.
const TURNS_MAX: u32 = 256;

/// Calls that wait or stream now, by customer.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    taken: Mutex<HashMap<CustomerId, u32>>,
}

/// One such call; over when dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Arc<Turns>,
    customer: CustomerId,
}

impl Turns {
    /// A turn for `customer`, if there is one left.
    pub(crate) fn take(self: &Arc<Self>, customer: CustomerId) -> Result<Turn, ApiError> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(customer).or_default();
        if *count >= TURNS_MAX {
            let detail = format!("{TURNS_MAX} calls of this customer wait or follow already");
            return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_waits", detail)
                .suggest("end some of them first; one list of jobs tells about all")
                .retry_in(1));
        }
        *count += 1;
        Ok(Turn { turns: self.clone(), customer })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut taken = self.turns.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.customer) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.customer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn one_customer_cannot_take_every_turn_and_gives_them_back() {
        let turns = Arc::new(Turns::default());
        let [a, b] = [1, 2].map(|n| CustomerId(Uuid::from_u128(n)));
        let taken: Vec<Turn> = (0..TURNS_MAX).map(|_| turns.take(a).expect("a turn")).collect();
        assert!(turns.take(a).is_err() && turns.take(b).is_ok());
        drop(taken);
        assert!(turns.take(a).is_ok());
        assert!(turns.taken.lock().expect("no panic").is_empty(), "nothing is left behind");
    }
}
