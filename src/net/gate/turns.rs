//! Those who called and have not had their turn: handshakes begin at a bounded pace.
//!
//! A handshake costs a node some hundred times what a connection costs its caller. Where fewer call than the pace allows,
//! as nodes do, nobody waits. Who has hung up meanwhile takes nobody's turn.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::{limits, too_many};

#[derive(Debug)]
pub(super) struct Turns {
    /// In the order in which they came.
    waiting: VecDeque<(TcpStream, SocketAddr)>,
    /// To when turns are taken, if each takes [`limits::TURN`] (the virtual scheduling algorithm of ITU-T I.371).
    taken_to: Instant,
}

impl Turns {
    pub fn new() -> Turns {
        Turns { waiting: VecDeque::new(), taken_to: Instant::now() }
    }

    /// Somebody has called; whether another had to go for that.
    pub fn call(&mut self, tcp: TcpStream, address: SocketAddr) -> bool {
        let ip = address.ip();
        let surplus = |turns: &Turns| too_many(turns.waiting.iter().map(|(_, address)| address.ip()), ip);
        if surplus(self).is_some() {
            self.waiting.retain(|(tcp, _)| !has_hung_up(tcp));
        }
        let gone = surplus(self).and_then(|index| self.waiting.remove(index));
        self.waiting.push_back((tcp, address));
        gone.is_some()
    }

    /// Whose turn it is, once there is somebody and it is time. Nobody is lost if this is dropped.
    pub async fn next(&mut self) -> (TcpStream, SocketAddr) {
        sleep_until(self.taken_to.checked_sub(limits::TURN * limits::TURNS_AT_ONCE).unwrap_or(self.taken_to)).await;
        while let Some((tcp, address)) = self.waiting.pop_front() {
            if !has_hung_up(&tcp) {
                self.taken_to = self.taken_to.max(Instant::now()) + limits::TURN;
                return (tcp, address);
            }
        }
        std::future::pending().await
    }
}

/// Whether the other end has closed the connection, as far as it is known by now.
fn has_hung_up(tcp: &TcpStream) -> bool {
    match pin!(tcp.ready(Interest::READABLE)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(Ok(ready)) => ready.is_read_closed(),
        Poll::Ready(Err(_)) => true,
        Poll::Pending => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::net::TcpListener;

    async fn caller(listener: &TcpListener) -> (TcpStream, (TcpStream, SocketAddr)) {
        let calls = TcpStream::connect(listener.local_addr().unwrap());
        let (calls, called) = tokio::join!(calls, listener.accept());
        (calls.unwrap(), called.unwrap())
    }

    #[tokio::test]
    async fn turns_come_in_order_at_a_pace_and_none_is_wasted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut turns = Turns::new();
        let began = Instant::now();
        for _ in 0..limits::TURNS_AT_ONCE {
            let (_here, (tcp, address)) = caller(&listener).await;
            assert!(!turns.call(tcp, address));
            assert_eq!(turns.next().await.1, address);
        }
        let mut kept = Vec::new();
        for number in 0..12 {
            let (here, (tcp, address)) = caller(&listener).await;
            turns.call(tcp, address);
            // Every other one hangs up.
            if number % 2 == 0 {
                kept.push((here, address));
            }
        }
        for (_, address) in &kept {
            assert_eq!(turns.next().await.1, *address);
        }
        assert!(began.elapsed() >= limits::TURN * (kept.len() as u32 - 1), "{:?}", began.elapsed());
        // It takes a moment until it is known of the last one.
        while turns.waiting.iter().any(|(tcp, _)| !has_hung_up(tcp)) {
            assert!(began.elapsed() < Duration::from_secs(20), "it has hung up");
            tokio::task::yield_now().await;
        }
        let none = tokio::time::timeout(Duration::from_millis(20), turns.next()).await;
        assert!(none.is_err(), "nobody is left");
    }

    #[tokio::test]
    async fn those_who_wait_are_bounded_and_the_dead_leave_first() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut turns = Turns::new();
        let mut kept = Vec::new();
        for _ in 0..limits::HANDSHAKES_PER_ADDRESS_MAX {
            let (here, (tcp, address)) = caller(&listener).await;
            assert!(!turns.call(tcp, address));
            kept.push(here);
        }
        drop(kept.pop());
        // It takes a moment until that is known.
        let mut called = 0;
        while turns.waiting.iter().all(|(tcp, _)| !has_hung_up(tcp)) {
            tokio::task::yield_now().await;
            called += 1;
            assert!(called < 1_000_000);
        }
        let oldest = turns.waiting[0].1;
        let (_first, (tcp, address)) = caller(&listener).await;
        assert!(!turns.call(tcp, address));
        assert_eq!(turns.waiting[0].1, oldest);
        let (_second, (tcp, address)) = caller(&listener).await;
        assert!(turns.call(tcp, address));
        assert!(turns.waiting.iter().all(|(_, address)| *address != oldest));
        assert_eq!(turns.waiting.len(), limits::HANDSHAKES_PER_ADDRESS_MAX);
    }
}
