//! libzmq's PUB and SUB, tuned so that nothing is lost: no high-water marks, and receivers that give credit.
//!
//! A subscriber tells the publisher after each part of [`window`] that it took it; the publisher stays at most a window
//! ahead of the slowest. PUSH and PULL carry this beside the data.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::child::{order, tell};
use crate::cost::Cost;
use crate::workload::{self, BEGIN, Message, Pace, Phase, Plan, SILENCE, TOPIC, Tally, Trips, window};

const CREDITS_PER_WINDOW: u64 = 8;

fn socket(context: &zmq::Context, kind: zmq::SocketType) -> zmq::Result<zmq::Socket> {
    let socket = context.socket(kind)?;
    socket.set_sndhwm(0)?;
    socket.set_rcvhwm(0)?;
    if kind == zmq::SUB {
        socket.set_subscribe(TOPIC)?;
    }
    Ok(socket)
}

fn bound(context: &zmq::Context, kind: zmq::SocketType) -> zmq::Result<(zmq::Socket, String)> {
    let socket = socket(context, kind)?;
    socket.bind("tcp://127.0.0.1:*")?;
    let endpoint = socket.get_last_endpoint()?.expect("endpoints are text");
    Ok((socket, endpoint))
}

/// Publishes as planned.
pub fn publisher(plan: &Plan, number: u8) -> zmq::Result<()> {
    let context = zmq::Context::new();
    let (data, data_at) = bound(&context, zmq::PUB)?;
    let (credit, credit_at) = bound(&context, zmq::PULL)?;
    let mut message = Message::new(plan.size);
    tell(&format!("ready {data_at}|{credit_at}"));
    let go = std::thread::spawn(|| order("go"));
    while !go.is_finished() {
        data.send(message.write(Phase::Hello, number.into()), 0)?;
        std::thread::sleep(Duration::from_millis(5));
    }

    let part = window(plan) / CREDITS_PER_WINDOW;
    let mut acknowledged = vec![0; plan.subscribers];
    let mut credits = |wait: bool| -> zmq::Result<u64> {
        let mut byte = [0];
        let mut flags = if wait { 0 } else { zmq::DONTWAIT };
        while credit.recv_into(&mut byte, flags).is_ok() {
            acknowledged[usize::from(byte[0])] += part;
            flags = zmq::DONTWAIT;
        }
        Ok(acknowledged.iter().copied().min().unwrap_or(0))
    };
    let mut pace = Pace::new(plan, number);
    let mut acknowledged = 0;
    while let Some(phase) = pace.look() {
        while pace.taken + part > acknowledged + window(plan) {
            acknowledged = credits(true)?;
        }
        for _ in 0..part.min(256) {
            data.send(message.write(phase, pace.take()), 0)?;
        }
        acknowledged = credits(false)?;
    }
    data.send(message.write(Phase::End, pace.taken), 0)?;
    tell(&format!("sent {} {}", pace.taken, Cost::own()));
    order("end");
    Ok(())
}

/// Receives as planned; `number` is its own among the subscribers.
pub fn subscriber(plan: &Plan, endpoints: &str, number: u8) -> zmq::Result<()> {
    let context = zmq::Context::new();
    let data = socket(&context, zmq::SUB)?;
    let mut credits = Vec::new();
    for endpoints in endpoints.split(' ') {
        let (data_at, credit_at) = endpoints.split_once('|').expect("two endpoints");
        data.connect(data_at)?;
        let credit = socket(&context, zmq::PUSH)?;
        credit.connect(credit_at)?;
        credits.push(credit);
    }
    let mut message = zmq::Message::new();
    let mut greeted = HashSet::new();
    while greeted.len() < plan.publishers {
        data.recv(&mut message, 0)?;
        greeted.extend(workload::read(&message).map(|(_, number)| number));
    }
    tell("joined");

    data.set_rcvtimeo(SILENCE.as_millis() as i32)?;
    let part = window(plan) / CREDITS_PER_WINDOW;
    let mut tally = Tally::new(plan);
    let mut taken = vec![0; plan.publishers];
    let mut begun = false;
    loop {
        match data.recv(&mut message, 0) {
            Ok(()) => {}
            Err(zmq::Error::EAGAIN) if begun => break,
            Err(zmq::Error::EAGAIN) => continue,
            Err(error) => return Err(error),
        }
        let Some((phase, of)) = workload::read(&message).filter(|(phase, _)| *phase != Phase::Hello) else { continue };
        begun = true;
        if tally.count(&message) {
            break;
        }
        if phase != Phase::End {
            let publisher = (of % plan.publishers as u64) as usize;
            taken[publisher] += 1;
            if u64::is_multiple_of(taken[publisher], part) {
                credits[publisher].send(&[number][..], 0)?;
            }
        }
    }
    tell(&format!("heard {} {}", tally.report(), Cost::own()));
    Ok(())
}

/// Sends at a fixed rate and measures when each comes back.
pub fn pinger(plan: &Plan) -> zmq::Result<()> {
    let context = zmq::Context::new();
    let (out, out_at) = bound(&context, zmq::PUB)?;
    let (back, back_at) = bound(&context, zmq::SUB)?;
    let mut message = Message::new(plan.size);
    tell(&format!("ready {out_at}|{back_at}"));
    back.set_rcvtimeo(5)?;
    let mut echo = zmq::Message::new();
    while back.recv(&mut echo, 0).is_err() {
        out.send(message.write(Phase::Hello, 0), 0)?;
    }
    order("go");

    back.set_rcvtimeo(200)?;
    let trips = Mutex::new(Trips::new(plan));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (trips, done) = (&trips, &done);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                if back.recv(&mut echo, 0).is_ok() {
                    let at = Instant::now();
                    if let Some((Phase::Measured, number)) = workload::read(&echo) {
                        trips.lock().expect("no panic").back(number, at, plan);
                    }
                }
            }
        });
        let mut due = Instant::now();
        for number in 0..Trips::all(plan) {
            if number % plan.trips_per_ms == 0 {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                due += BEGIN;
            }
            trips.lock().expect("no panic").sent(number);
            out.send(message.write(Phase::Measured, number), 0).expect("PUB never blocks");
        }
        std::thread::sleep(Duration::from_millis(500));
        done.store(true, Ordering::Relaxed);
    });
    tell(&format!("trips {}", trips.into_inner().expect("no panic").report()));
    Ok(())
}

/// Sends back what comes.
pub fn echoer(endpoints: &str) -> zmq::Result<()> {
    let (in_at, back_at) = endpoints.split_once('|').expect("two endpoints");
    let context = zmq::Context::new();
    let back = socket(&context, zmq::PUB)?;
    back.connect(back_at)?;
    let data = socket(&context, zmq::SUB)?;
    data.connect(in_at)?;
    tell("joined");
    let mut message = zmq::Message::new();
    loop {
        data.recv(&mut message, 0)?;
        back.send(&message[..], 0)?;
    }
}
