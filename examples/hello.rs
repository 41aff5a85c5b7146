//! The least that talks: joins the mesh, says hello, prints what others say.
//!
//! Run it on two machines of a LAN, or twice on one: `cargo run --example hello -- YOUR-NAME`

use hubless::Node;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "hello".into());
    let node = Node::builder().name(&name).start().await?;
    let mut lobby = node.subscribe("lobby").await?;
    println!("looking for others …");
    node.wait_for_peers(1).await?;
    node.publish("lobby", format!("hello from {name}")).await?;
    while let Some(message) = lobby.message().await {
        println!("{}: {}", message.name, message.payload.text().unwrap_or("(not text)"));
    }
    Ok(())
}
