//! Redis pub/sub, as fast as its client goes: what is published together is one pipeline.

use std::time::Duration;

use redis::{Client as Server, Connection, Pipeline, PubSub};

use crate::pubsub::{Client, Result};

pub struct Redis {
    connection: Connection,
    waiting: Pipeline,
    heard: PubSub<'static>,
}

impl Client for Redis {
    fn open(places: &[&str], hears: &[String]) -> Result<(Redis, String)> {
        let place = *places.first().ok_or("where is Redis?")?;
        let server = Server::open(place)?;
        // It is there as long as the process.
        let listening: &'static mut Connection = Box::leak(Box::new(server.get_connection()?));
        let mut heard = listening.as_pubsub();
        hears.iter().try_for_each(|topic| heard.subscribe(topic))?;
        Ok((Redis { connection: server.get_connection()?, waiting: redis::pipe(), heard }, place.into()))
    }

    fn publish(&mut self, topic: &str, bytes: &[u8]) -> Result {
        self.waiting.publish(topic, bytes).ignore();
        Ok(())
    }

    fn flush(&mut self) -> Result {
        self.waiting.query::<()>(&mut self.connection)?;
        self.waiting.clear();
        Ok(())
    }

    fn receive(&mut self, wait: Duration) -> Result<Option<impl AsRef<[u8]>>> {
        self.heard.set_read_timeout(Some(wait))?;
        match self.heard.get_message() {
            Ok(message) => Ok(Some(message.get_payload_bytes().to_vec())),
            Err(error) if error.is_timeout() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
