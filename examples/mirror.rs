//! A home-made bridge: mirrors one room of a mesh into a room of another, so that both sides read both.
//!
//! What this program said itself it does not mirror back: it knows its own messages by their ids. So only one mirror may run
//! between two meshes: two would mirror each other's copies for ever.
//! `cargo run --example mirror -- MESH-A MESH-B [ROOM]`

use hubless::{Draft, Handle, Node, Room, Subscription};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(one), Some(other)) = (arguments.next(), arguments.next()) else {
        return Err("usage: mirror MESH-A MESH-B [ROOM]".into());
    };
    let room: Room = arguments.next().as_deref().unwrap_or("lobby").parse()?;
    let one = Node::builder().mesh(&one).name("mirror").start().await?;
    let other = Node::builder().mesh(&other).name("mirror").start().await?;
    let (from_one, from_other) = (one.subscribe(room.clone()).await?, other.subscribe(room).await?);
    println!("mirroring {} ↔ {}", one.info().mesh, other.info().mesh);
    tokio::try_join!(mirror(from_one, &one, &other), mirror(from_other, &other, &one))?;
    Ok(())
}

async fn mirror(mut messages: Subscription, from: &Handle, to: &Handle) -> Result<(), hubless::PublishError> {
    while let Some(message) = messages.message().await {
        if message.id.run == from.info().run {
            continue;
        }
        let mut draft = Draft::new(message.room, message.payload);
        draft.name = Some(message.name);
        to.publish_with(draft).await?;
    }
    Ok(())
}
