//! What idle nodes take of a processor, beside what it costs here to be woken.

use std::fs;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::{Hubless, elapse};

/// An idle node of ten peers is woken about so often in a second.
const WAKES_PER_SECOND: u32 = 25;
/// System calls for each of the yardstick's wakes.
const CALLS: usize = 20;

/// Of one core, in percent.
#[derive(Debug)]
pub struct Shares {
    /// The node that takes most.
    pub most: f64,
    /// A thread that is woken as often as a node of ten peers and makes some system calls each time: 0.12 to 0.17 on a quiet
    /// host. Where it takes several times that, waking a processor is dear, and a node takes several times its own share.
    pub yardstick: f64,
}

/// What these take over `span`.
pub fn shares(nodes: &[&Hubless], span: Duration) -> Shares {
    let (stop, stopped) = channel::<()>();
    let yardstick = std::thread::spawn(move || {
        let started = Instant::now();
        while stopped.recv_timeout(Duration::from_secs(1) / WAKES_PER_SECOND) == Err(RecvTimeoutError::Timeout) {
            for _ in 0..CALLS {
                fs::metadata("/proc/self").unwrap();
            }
        }
        let taken = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        let taken: f64 = taken.split(' ').next().unwrap().parse().unwrap();
        taken / started.elapsed().as_nanos() as f64 * 100.0
    });
    let (before, started) = (nodes.iter().map(|node| node.cpu()).collect::<Vec<_>>(), Instant::now());
    elapse(span);
    let passed = started.elapsed().as_secs_f64();
    let used = nodes.iter().zip(before).map(|(node, before)| (node.cpu() - before).as_secs_f64() / passed * 100.0);
    let most = used.fold(0.0, f64::max);
    drop(stop);
    Shares { most, yardstick: yardstick.join().unwrap() }
}
