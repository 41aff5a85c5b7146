//! What idle nodes take of a processor, beside what it costs here to be woken.

use std::fs;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::{Hubless, elapse};

/// How often the yardstick is woken.
const WAKES_PER_SECOND: u32 = 25;
/// System calls for each of the yardstick's wakes.
const CALLS: usize = 20;

/// Of one core, in percent.
#[derive(Debug)]
pub struct Shares {
    /// The node that takes most.
    pub most: f64,
    /// How often in a second the threads of a node are woken, of the one where they are most often: what it asks of a
    /// processor, however dear that is on this host.
    pub wakes: f64,
    /// A thread that is woken 25 times a second and makes some system calls each time: 0.12 to 0.17 on a quiet host. Where it
    /// takes several times that, waking a processor is dear, and a node takes several times its own share.
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
    let (before, started) = (nodes.iter().map(|node| (node.cpu(), node.sleeps())).collect::<Vec<_>>(), Instant::now());
    elapse(span);
    let passed = started.elapsed().as_secs_f64();
    let (mut most, mut wakes) = (0.0_f64, 0.0_f64);
    for (node, (cpu, sleeps)) in nodes.iter().zip(before) {
        most = most.max((node.cpu() - cpu).as_secs_f64() / passed * 100.0);
        let slept = |(thread, count): (_, u64)| count - sleeps.get(&thread).copied().unwrap_or_default();
        wakes = wakes.max(node.sleeps().into_iter().map(slept).sum::<u64>() as f64 / passed);
    }
    drop(stop);
    Shares { most, wakes, yardstick: yardstick.join().unwrap() }
}
