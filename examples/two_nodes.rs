//! Two nodes in one process: one asks, the other answers. Needs no network but loopback.
//!
//! `cargo run --example two_nodes`

use std::time::Duration;

use hubless::{Listen, Node, Seed};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let loopback = Listen::At("127.0.0.1:0".parse()?);
    let asker = Node::builder().mesh("two").name("asker").listen(loopback).mdns(false).start().await?;
    let seed: Seed = asker.info().listen.to_string().parse()?;
    let answerer =
        Node::builder().mesh("two").name("answerer").listen(loopback).mdns(false).seeds(vec![seed]).start().await?;

    let mut questions = answerer.subscribe("questions").await?;
    let mut answers = asker.subscribe("answers").await?;
    let replies = answerer.clone();
    tokio::spawn(async move {
        while let Some(question) = questions.message().await {
            let length = question.payload.len();
            // The asker has gone: so may we.
            let _ = replies.publish("answers", format!("{length} bytes, I think")).await;
        }
    });

    asker.wait_for_peers(1).await?;
    asker.publish("questions", "how long is a piece of string?").await?;
    let answer = tokio::time::timeout(Duration::from_secs(5), answers.message()).await?.ok_or("the node stopped")?;
    println!("{} says: {}", answer.name, answer.payload.text().unwrap_or_default());

    answerer.shutdown().await;
    asker.shutdown().await;
    Ok(())
}
