//! NATS (core: no stream keeps anything), through its own client.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use async_nats::Client as Connection;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::runtime::Runtime;

use crate::pubsub::{Client, Result};

pub struct Nats {
    runtime: Runtime,
    connection: Connection,
    waiting: Vec<(String, Bytes)>,
    heard: Receiver<Bytes>,
}

impl Client for Nats {
    fn open(places: &[&str], hears: &[String]) -> Result<(Nats, String)> {
        let place = *places.first().ok_or("where is NATS?")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (came, heard) = channel();
        let connection = runtime.block_on(async {
            let options = async_nats::ConnectOptions::new().subscription_capacity(1 << 20);
            let connection = options.connect(place).await?;
            for topic in hears {
                let mut messages = connection.subscribe(topic.clone()).await?;
                let came = came.clone();
                tokio::spawn(async move {
                    while let Some(message) = messages.next().await {
                        // Whoever has ended does not hear.
                        let _ = came.send(message.payload);
                    }
                });
            }
            connection.flush().await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(connection)
        })?;
        Ok((Nats { runtime, connection, waiting: Vec::new(), heard }, place.into()))
    }

    fn publish(&mut self, topic: &str, bytes: &[u8]) -> Result {
        self.waiting.push((topic.into(), Bytes::copy_from_slice(bytes)));
        Ok(())
    }

    fn flush(&mut self) -> Result {
        let (connection, waiting) = (&self.connection, &mut self.waiting);
        self.runtime.block_on(async {
            for (topic, bytes) in waiting.drain(..) {
                connection.publish(topic, bytes).await?;
            }
            connection.flush().await?;
            Ok(())
        })
    }

    fn receive(&mut self, wait: Duration) -> Result<Option<impl AsRef<[u8]>>> {
        match self.heard.recv_timeout(wait) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err("the connection has ended".into()),
        }
    }
}
