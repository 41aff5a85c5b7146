//! A chat in the terminal: a line you type goes to the room, `/who` lists who is there, end of input leaves.
//!
//! `cargo run --example chat -- NAME [ROOM]`

use hubless::{Delivery, Event, Node};
use tokio::io::{AsyncBufReadExt, BufReader};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().unwrap_or_else(|| "somebody".into());
    let room = arguments.next().unwrap_or_else(|| "lobby".into());
    let node = Node::builder().name(&name).start().await?;
    let mut messages = node.subscribe(room.as_str()).await?;
    let mut events = node.events();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    println!("in {room} as {name}");
    loop {
        tokio::select! {
            line = lines.next_line() => match line?.as_deref() {
                None => break,
                Some("") => {}
                Some("/who") => node.peers().iter().for_each(|peer| println!("  {} ({:?})", peer.name, peer.state)),
                Some(text) => drop(node.publish(room.as_str(), text).await?),
            },
            delivery = messages.next() => match delivery {
                None => break,
                Some(Delivery::Message(message)) => {
                    println!("{}: {}", message.name, message.payload.text().unwrap_or("(not text)"));
                }
                Some(Delivery::Gap(gap)) => println!("  … {} messages are missing here", gap.missing),
            },
            Ok(event) = events.recv() => match event {
                Event::PeerUp(peer) => println!("  {} is here", peer.name),
                Event::PeerDown(peer) => println!("  {} is gone", peer.name),
                _ => {}
            },
        }
    }
    node.shutdown().await;
    Ok(())
}
