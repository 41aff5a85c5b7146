//! hubless through its public API: nodes in processes of their own, found by a seed.
//!
//! The publisher hands over chunks and waits for each, as a program that has much to say does; or, to show what a call
//! costs, one message a call with many calls at once.

use std::error::Error;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use futures_util::{StreamExt, stream};
use hubless::handle::Text;
use hubless::{Delivery, DeliveryRef, Draft, Handle, Listen, Node, Payload, Room, Subscription};
use hubless::{KeyRing, MeshKey};

use tempfile::TempDir;

use crate::child::{order, tell};
use crate::cost::Cost;
use crate::workload::{self, BEGIN, Message, Pace, Phase, Plan, SILENCE, Tally, Trips};

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Messages in one call, unless they are large.
const CHUNK_MESSAGES: usize = 512;
const CHUNK_BYTES: usize = 64 * 1024;
/// Texts are made in buffers of so many bytes.
const BUFFER_BYTES: usize = 64 * 1024;
/// Messages that a subscriber takes at once.
const TOGETHER_MAX: usize = 256;
/// Messages, and chunks, under way, so that the next ones are made while the node works. Found by trying, as [`workload::window`] was.
const UNDER_WAY_MAX: usize = 8 * 1024;
const CHUNKS_UNDER_WAY_MAX: usize = 64;

/// What nodes of one run have in common.
struct Mesh {
    name: String,
    /// The invite code of a closed one.
    code: Option<String>,
}

impl Mesh {
    /// One of this run's own.
    fn new(plan: &Plan) -> Result<Mesh> {
        let code = if plan.keyed { Some(MeshKey::random()?.code()) } else { None };
        Ok(Mesh { name: format!("bench-{}", std::process::id()), code })
    }

    /// What stands for an endpoint with a subscriber: mesh, address, and the code of the key.
    fn place(&self, node: &Handle) -> String {
        format!("ready {}|{}|{}", self.name, node.info().listen, self.code.as_deref().unwrap_or_default())
    }

    /// Reads that, and gives the address.
    fn read(place: &str) -> Result<(Mesh, &str)> {
        let mut words = place.split('|');
        let (Some(name), Some(seed), Some(code)) = (words.next(), words.next(), words.next()) else {
            return Err("a mesh, an address and a code".into());
        };
        Ok((Mesh { name: name.into(), code: (!code.is_empty()).then(|| code.into()) }, seed))
    }

    /// With a log, if the plan says so, in the folder that is given back.
    async fn start(&self, name: &str, seeds: &[&str], plan: &Plan) -> Result<(Handle, Option<TempDir>)> {
        let seeds = seeds.iter().map(|seed| seed.parse()).collect::<std::result::Result<Vec<_>, _>>()?;
        let listen = Listen::At(([127, 0, 0, 1], 0).into());
        let mut builder = Node::builder().mesh(&self.name).name(name).listen(listen).seeds(seeds).mdns(false);
        if let Some(code) = &self.code {
            builder = builder.key(KeyRing::of(code.parse()?));
        }
        let folder = if plan.log { Some(tempfile::tempdir()?) } else { None };
        let builder = builder.data_dir(folder.as_ref().map(|folder| folder.path().join("node")));
        Ok((builder.start().await?, folder))
    }
}

fn rooms(plan: &Plan) -> Result<Vec<Room>> {
    if plan.rooms == 1 {
        return Ok(vec![Room::try_from("lobby")?]);
    }
    (0..plan.rooms).map(|number| Ok(Room::try_from(format!("room-{number}").as_str())?)).collect()
}

async fn subscribe(node: &Handle, plan: &Plan) -> Result<Subscription> {
    Ok(if plan.rooms == 1 { node.subscribe("lobby").await? } else { node.subscribe_prefix("room-").await? })
}

fn text(message: &mut Message, phase: Phase, number: u64) -> Payload {
    message.text(phase, number).into()
}

/// Publishes as planned; all but the first are told where that one is.
pub async fn publisher(plan: &Plan, first: &str, number: u8) -> Result {
    let (mesh, seed) =
        if first.is_empty() { (Mesh::new(plan)?, None) } else { Mesh::read(first).map(|(m, s)| (m, Some(s)))? };
    let seeds: Vec<&str> = seed.into_iter().collect();
    let (node, _folder) = mesh.start(&format!("publisher-{number}"), &seeds, plan).await?;
    let rooms = rooms(plan)?;
    let mut message = Message::new(plan.size);
    tell(&mesh.place(&node));
    tokio::task::spawn_blocking(|| order("go")).await?;
    node.wait_for_peers(plan.subscribers + plan.publishers - 1).await?;

    let mut pace = Pace::new(plan, number);
    let mut buffer = BytesMut::new();
    let mut draft = |phase, number| {
        let room = rooms[number as usize % rooms.len()].clone();
        let message = message.write(phase, number);
        if buffer.capacity() < message.len() {
            buffer = BytesMut::with_capacity(message.len().max(BUFFER_BYTES));
        }
        buffer.extend_from_slice(message);
        Draft::new(room, Text::try_from(buffer.split().freeze()).expect("ASCII"))
    };
    if plan.in_flight == 0 {
        let chunk = (CHUNK_BYTES / plan.size).clamp(1, CHUNK_MESSAGES);
        let chunks = std::iter::from_fn(|| {
            let phase = pace.look()?;
            Some((0..chunk).map(|_| draft(phase, pace.take())).collect())
        });
        let at_once = (UNDER_WAY_MAX / chunk).clamp(1, CHUNKS_UNDER_WAY_MAX);
        let mut published = stream::iter(chunks).map(|chunk| node.publish_all(chunk)).buffered(at_once);
        while let Some(some) = published.next().await {
            some?;
        }
    } else {
        let drafts = std::iter::from_fn(|| Some(draft(pace.look()?, pace.take())));
        let mut published = stream::iter(drafts).map(|draft| node.publish_with(draft)).buffered(plan.in_flight);
        while let Some(one) = published.next().await {
            one?;
        }
    }
    node.publish_with(draft(Phase::End, pace.taken)).await?;
    tell(&format!("sent {} {}", pace.taken, Cost::own()));
    tokio::task::spawn_blocking(|| order("end")).await?;
    node.shutdown().await;
    Ok(())
}

/// Receives as planned.
pub async fn subscriber(plan: &Plan, places: &str, number: u8) -> Result {
    let places = places.split(' ').map(Mesh::read).collect::<Result<Vec<_>>>()?;
    let seeds: Vec<&str> = places.iter().map(|(_, seed)| *seed).collect();
    let (node, _folder) = places[0].0.start(&format!("subscriber-{number}"), &seeds, plan).await?;
    let mut messages = subscribe(&node, plan).await?;
    node.wait_for_peers(plan.publishers).await?;
    tell("joined");

    let mut tally = Tally::new(plan);
    let (mut begun, mut all) = (false, false);
    while !all {
        let visit = messages.visit(TOGETHER_MAX, |delivery| match delivery {
            DeliveryRef::Message(message) => {
                begun = true;
                all |= tally.count(message.payload().bytes());
            }
            DeliveryRef::Gap(gap) => eprintln!("subscriber {number}: {gap:?}"),
        });
        match tokio::time::timeout(SILENCE, visit).await {
            Ok(0) => return Err("the node has stopped".into()),
            Ok(_) => {}
            Err(_) if begun => break,
            Err(_) => {}
        }
    }
    tell(&format!("heard {} {}", tally.report(), Cost::own()));
    node.shutdown().await;
    Ok(())
}

/// Sends at a fixed rate and measures when each comes back.
pub async fn pinger(plan: &Plan) -> Result {
    let mesh = Mesh::new(plan)?;
    let (node, _folder) = mesh.start("pinger", &[], plan).await?;
    let mut echoes = node.subscribe("echo").await?;
    let room = Room::try_from("ping")?;
    let mut message = Message::new(plan.size);
    tell(&mesh.place(&node));
    tokio::task::spawn_blocking(|| order("go")).await?;
    node.wait_for_peers(1).await?;

    let trips = Arc::new(Mutex::new(Trips::new(plan)));
    // Paced by a thread of its own, as that of libzmq: timers of the runtime have whole milliseconds.
    let (sent, of, runtime, publisher) = (trips.clone(), *plan, tokio::runtime::Handle::current(), node.clone());
    let pace = tokio::task::spawn_blocking(move || {
        let mut due = Instant::now();
        for first in (0..Trips::all(&of)).step_by(of.trips_per_ms as usize) {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            due += BEGIN;
            let mut draft = |number| {
                sent.lock().expect("no panic").sent(number);
                Draft::new(room.clone(), text(&mut message, Phase::Measured, number))
            };
            if of.trips_per_ms == 1 {
                runtime.block_on(publisher.publish_with(draft(first)))?;
            } else {
                runtime.block_on(publisher.publish_all((first..first + of.trips_per_ms).map(draft).collect()))?;
            }
        }
        std::thread::sleep(Duration::from_millis(500));
        Ok::<_, hubless::PublishError>(())
    });
    let read = async {
        loop {
            let mut at = None;
            let visit = echoes.visit(TOGETHER_MAX, |delivery| {
                let DeliveryRef::Message(echo) = delivery else { return };
                if let Some((Phase::Measured, number)) = workload::read(echo.payload().bytes()) {
                    let at = *at.get_or_insert_with(Instant::now);
                    trips.lock().expect("no panic").back(number, at, plan);
                }
            });
            if visit.await == 0 {
                return;
            }
        }
    };
    tokio::select! {
        paced = pace => paced??,
        () = read => return Err("the node has stopped".into()),
    }
    let trips = std::mem::replace(&mut *trips.lock().expect("no panic"), Trips::new(plan));
    tell(&format!("trips {}", trips.report()));
    node.shutdown().await;
    Ok(())
}

/// Sends back what comes.
pub async fn echoer(plan: &Plan, place: &str) -> Result {
    let (mesh, seed) = Mesh::read(place)?;
    let (node, _folder) = mesh.start("echoer", &[seed], plan).await?;
    let mut pings = node.subscribe("ping").await?;
    let room = Room::try_from("echo")?;
    node.wait_for_peers(1).await?;
    tell("joined");
    let mut heard = Vec::new();
    while pings.next_many(&mut heard, TOGETHER_MAX).await > 0 {
        let echo = |delivery| match delivery {
            Delivery::Message(ping) => Some(Draft::new(room.clone(), ping.payload)),
            Delivery::Gap(_) => None,
        };
        let mut echoes: Vec<Draft> = heard.drain(..).filter_map(echo).collect();
        match echoes.len() {
            0 => {}
            1 => drop(node.publish_with(echoes.remove(0)).await?),
            _ => drop(node.publish_all(echoes).await?),
        }
    }
    Ok(())
}
