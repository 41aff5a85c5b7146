//! The brokers that a node is joined to: options of `hubless run`, and `hubless check`, which tries them.

use std::io::Write;

use clap::Args;
use hubless::bridge::amqp::{Exchange, ExchangeType};
use hubless::bridge::redis::Channels;
use hubless::bridge::streams::Streams;
use hubless::bridge::{self, Target};
use serde_json::json;

use super::options::LogOptions;
use super::terminal::{Terminal, clean};
use super::{Failure, Outcome};

/// Brokers that the mesh is joined to. Several nodes may name the same one: one of them is active, the others take over.
#[derive(Debug, Args)]
#[command(next_help_heading = "Bridges")]
pub struct BridgeOptions {
    /// A Redis server, or servers of a Cluster: redis://[[USER]:PASSWORD@]HOST[:PORT][,HOST…]; one that Sentinel names:
    /// redis+sentinel://[[USER]:PASSWORD@]HOST[,HOST…]/SERVICE; with TLS rediss://
    // As text: an error of the parser would show the password in it.
    #[arg(long, value_name = "URL")]
    pub redis: Option<String>,
    /// How Redis is spoken to: channels, where nothing is kept, or streams, where what is said while no node listens is not lost
    #[arg(long, value_name = "pubsub|streams", default_value = "pubsub", value_parser = ["pubsub", "streams"])]
    pub redis_mode: String,
    /// The stream that stands for the lobby; those of other rooms are called `NAME.ROOM`
    #[arg(long, value_name = "NAME", default_value = "chat_stream")]
    pub redis_stream: String,
    /// The channel that stands for the lobby
    #[arg(long, value_name = "CHANNEL", default_value = "chat_messages")]
    pub redis_channel: String,
    /// What the channels of other rooms begin with
    #[arg(long, value_name = "PREFIX", default_value = "chat.")]
    pub redis_room_prefix: String,
    /// An AMQP 0-9-1 broker such as RabbitMQ: amqp://[USER:PASSWORD@]HOST[:PORT][/VHOST]
    // As text: an error of the parser would show the password in it.
    #[arg(long, value_name = "URL")]
    pub amqp: Option<String>,
    /// The durable exchange, made where it is missing
    #[arg(long, value_name = "NAME", default_value = "chat")]
    pub amqp_exchange: String,
    /// What kind of exchange it is
    #[arg(long, value_name = "fanout|topic|direct", default_value = "fanout")]
    pub amqp_exchange_type: ExchangeType,
    /// The durable queue that the nodes of this mesh share [default: hubless.MESH.SITE]
    #[arg(long, value_name = "NAME")]
    pub amqp_queue: Option<String>,
    /// No durable queue: what others say there while no node listens is lost to this mesh
    #[arg(long)]
    pub amqp_live: bool,
    /// A routing key to bind the queue with, besides those of the rooms; repeatable
    #[arg(long, value_name = "KEY")]
    pub amqp_bind: Vec<String>,
    /// Tells this mesh from others of its name at one broker [default: a random word, made once and kept in the log]
    #[arg(long, value_name = "WORD")]
    pub site: Option<String>,
    /// Let what came in as bare text (Redis pub/sub, stock ZeroMQ) out to AMQP
    #[arg(long)]
    pub relay: bool,
    /// Where a bridge begins that is new to its mesh: with the next message, or with the oldest there is
    #[arg(long, value_name = "now|start", default_value = "now", value_parser = ["now", "start"])]
    pub bridge_from: String,
}

#[derive(Debug, Args)]
pub struct Check {
    /// Print one JSON object for each broker
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub bridges: BridgeOptions,
    #[command(flatten)]
    pub log: LogOptions,
}

impl BridgeOptions {
    /// The bridges asked for.
    ///
    /// # Errors
    /// What is wrong with a URL, without the URL.
    pub fn wanted(&self) -> Result<Vec<bridge::Options>, String> {
        let mut targets = Vec::new();
        if let Some(url) = &self.redis {
            let target = url.parse().map_err(|error| format!("--redis: {error}"))?;
            targets.push(match &*self.redis_mode {
                "streams" => Target::Streams(Streams::new(target, &self.redis_stream)),
                _ => {
                    let (lobby, prefix) = (self.redis_channel.clone(), self.redis_room_prefix.clone());
                    Target::Redis(Channels { target, lobby, prefix })
                }
            });
        }
        if let Some(url) = &self.amqp {
            targets.push(Target::Amqp(Exchange {
                target: url.parse().map_err(|error| format!("--amqp: {error}"))?,
                exchange: self.amqp_exchange.clone(),
                kind: self.amqp_exchange_type,
                queue: self.amqp_queue.clone(),
                live: self.amqp_live,
                bind: self.amqp_bind.clone(),
            }));
        }
        let (relay, from_start) = (self.relay, self.bridge_from == "start");
        let site = &self.site;
        let options = |target| bridge::Options { target, relay, site: site.clone(), from_start };
        let wanted: Vec<bridge::Options> = targets.into_iter().map(options).collect();
        wanted.iter().try_for_each(bridge::Options::check)?;
        Ok(wanted)
    }
}

pub async fn check(options: Check) -> Outcome {
    let bridges = options.bridges.wanted().map_err(Failure::usage)?;
    if bridges.is_empty() {
        return Err(Failure::usage("no broker is configured").hint("give `--redis URL` or `--amqp URL`"));
    }
    let terminal = Terminal::new(&options.log);
    let mut failed = 0;
    for bridge in bridges {
        let found = bridge.target.check().await;
        let place = clean(&bridge.target.to_string());
        failed += u32::from(found.is_err());
        if options.json {
            let (ok, said) = (found.is_ok(), found.unwrap_or_else(|trouble| trouble.to_string()));
            let line = json!({ "target": place, "ok": ok, "said": said });
            writeln!(std::io::stdout().lock(), "{line}").map_err(Failure::output)?;
        } else {
            match found {
                Ok(there) => terminal.note(format_args!("{place}: {}", clean(&there))),
                Err(trouble) => terminal.note(format_args!("{place}: FAILED: {}", clean(&trouble.to_string()))),
            }
        }
    }
    if failed > 0 { Err(Failure::failed(format!("{failed} of the brokers cannot be used"))) } else { Ok(()) }
}
