//! Messages that wait in memory while their *tickets* go through a private socket.
//!
//! The `zeromq` sockets keep order, subscriptions and connections; to carry bodies as well, they would copy each of them three
//! times through the system and their own buffers. So whoever gives such a socket a message leaves it here and passes on its
//! ticket of 8 bytes; who gets the ticket claims the message. (The pattern is known as *claim check*.)

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::zmtp::Parts;

/// What a message counts beyond its own weight: its place here.
const PLACE_BYTES: usize = 128;
/// What is empty keeps places for so many.
const PLACES_KEPT: usize = 64;

/// Messages in the order in which they were left. Both ends are on one thread.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    waiting: Mutex<Waiting>,
    claimed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// The number of the first one.
    first: u64,
    /// With the weight of each.
    messages: VecDeque<(Parts, usize)>,
    bytes: usize,
}

impl Claims {
    /// Leaves a message that holds `weight` bytes of memory; gives its ticket. The oldest are lost while more than `bytes_max`
    /// wait.
    pub(crate) fn leave(&self, message: Parts, weight: usize, bytes_max: usize) -> Bytes {
        let mut waiting = self.waiting();
        let number = waiting.first + waiting.messages.len() as u64;
        let weight = weight + PLACE_BYTES;
        waiting.bytes += weight;
        waiting.messages.push_back((message, weight));
        while waiting.bytes > bytes_max && waiting.messages.len() > 1 {
            waiting.pop();
        }
        Bytes::copy_from_slice(&number.to_be_bytes())
    }

    /// The message of this ticket, once; none: there is none, or it is lost. Those before it, whose tickets never came, are
    /// lost, too.
    pub(crate) fn claim(&self, ticket: &[u8]) -> Option<Parts> {
        let number = u64::from_be_bytes(ticket.try_into().ok()?);
        let mut waiting = self.waiting();
        let before = number.checked_sub(waiting.first)?;
        if before >= waiting.messages.len() as u64 {
            return None;
        }
        (0..before).for_each(|_| drop(waiting.pop()));
        let message = waiting.pop();
        drop(waiting);
        self.claimed.notify_one();
        message
    }

    /// Resolves when something was claimed since the last call. Cancel safe.
    pub(crate) async fn claimed(&self) {
        self.claimed.notified().await;
    }

    /// Bytes that wait, with a share for the place of each message.
    pub(crate) fn bytes(&self) -> usize {
        self.waiting().bytes
    }

    /// All that waits is lost.
    pub(crate) fn clear(&self) {
        let mut waiting = self.waiting();
        while waiting.pop().is_some() {}
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn pop(&mut self) -> Option<Parts> {
        let (message, weight) = self.messages.pop_front()?;
        self.first += 1;
        self.bytes -= weight;
        if self.messages.is_empty() && self.messages.capacity() > PLACES_KEPT {
            self.messages = VecDeque::new();
        }
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: u8) -> Parts {
        Parts { first: vec![number; 100].into(), second: None }
    }

    #[test]
    fn each_ticket_is_good_for_its_message_once() {
        let claims = Claims::default();
        let tickets: Vec<Bytes> = (0..3).map(|number| claims.leave(message(number), 100, usize::MAX)).collect();
        assert_eq!(claims.bytes(), 3 * (100 + PLACE_BYTES));
        for (number, ticket) in (0..).zip(&tickets) {
            assert_eq!(claims.claim(ticket), Some(message(number)));
            assert_eq!(claims.claim(ticket), None);
        }
        for bad in [&b""[..], b"1234567", &3_u64.to_be_bytes(), &[0xff; 8]] {
            assert_eq!(claims.claim(bad), None);
        }
        assert_eq!(claims.bytes(), 0);
    }

    #[test]
    fn what_was_lost_on_the_way_is_let_go() {
        let claims = Claims::default();
        let tickets: Vec<Bytes> = (0..4).map(|number| claims.leave(message(number), 100, usize::MAX)).collect();
        assert_eq!(claims.claim(&tickets[2]), Some(message(2)));
        assert_eq!(claims.claim(&tickets[1]), None);
        claims.clear();
        assert_eq!(claims.claim(&tickets[3]), None);
        let next = claims.leave(message(9), 100, usize::MAX);
        assert_eq!(claims.claim(&next), Some(message(9)));
    }

    #[test]
    fn beyond_the_bound_the_oldest_goes() {
        let claims = Claims::default();
        let bytes_max = 2 * (100 + PLACE_BYTES);
        let tickets: Vec<Bytes> = (0..3).map(|number| claims.leave(message(number), 100, bytes_max)).collect();
        assert_eq!(claims.bytes(), bytes_max);
        assert_eq!(claims.claim(&tickets[0]), None);
        assert_eq!(claims.claim(&tickets[1]), Some(message(1)));
        assert_eq!(claims.claim(&claims.leave(message(4), 100, 1)), Some(message(4)), "one alone may be any size");
    }
}
