//! zenoh in peer mode: reliable, and whoever publishes waits for those who are behind.

use std::collections::HashMap;
use std::time::Duration;

use zenoh::handlers::{FifoChannel, FifoChannelHandler};
use zenoh::pubsub::{Publisher, Subscriber};
use zenoh::qos::CongestionControl;
use zenoh::sample::Sample;
use zenoh::{Config, Session, Wait};

use crate::free_port;
use crate::pubsub::{Client, Result};

/// Samples that wait to be received.
const WAITING_MAX: usize = 8 * 1024;

pub struct Zenoh {
    session: Session,
    publishers: HashMap<String, Publisher<'static>>,
    heard: Vec<Subscriber<FifoChannelHandler<Sample>>>,
}

impl Client for Zenoh {
    fn open(places: &[&str], hears: &[String]) -> Result<(Zenoh, String)> {
        let own = format!("tcp/127.0.0.1:{}", free_port());
        let mut config = Config::default();
        let (connect, listen) = (serde_json::to_string(places)?, serde_json::to_string(&[&own])?);
        for (key, value) in [
            ("mode", "\"peer\""),
            ("scouting/multicast/enabled", "false"),
            ("listen/endpoints", &listen),
            ("connect/endpoints", &connect),
        ] {
            config.insert_json5(key, value)?;
        }
        let session = zenoh::open(config).wait()?;
        let subscribe =
            |topic: &String| session.declare_subscriber(topic.clone()).with(FifoChannel::new(WAITING_MAX)).wait();
        let heard = hears.iter().map(subscribe).collect::<std::result::Result<Vec<_>, _>>()?;
        Ok((Zenoh { session, publishers: HashMap::new(), heard }, own))
    }

    fn publish(&mut self, topic: &str, bytes: &[u8]) -> Result {
        if !self.publishers.contains_key(topic) {
            let publisher =
                self.session.declare_publisher(topic.to_string()).congestion_control(CongestionControl::Block);
            self.publishers.insert(topic.into(), publisher.wait()?);
        }
        self.publishers[topic].put(bytes).wait()
    }

    fn flush(&mut self) -> Result {
        Ok(())
    }

    fn receive(&mut self, wait: Duration) -> Result<Option<impl AsRef<[u8]>>> {
        let Some(heard) = self.heard.first() else { return Ok(None) };
        Ok(heard.recv_timeout(wait)?.map(|sample| sample.payload().to_bytes().into_owned()))
    }
}
