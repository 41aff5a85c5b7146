//! `hubless history-service`: a durable AMQP queue into a log, and the log over HTTP, until a signal.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use hubless::bridge::amqp::Target;
use hubless::bridge::history_service::{HistoryService, Options};
use hubless::config::Config;
use hubless::web::{self, Web};
use hubless::{Handle, Node};
use serde_json::json;

use super::options;
use super::run::{STOP_TIMEOUT, Signals, clear_ready, token, write_ready};
use super::terminal::{Terminal, at_home};
use super::{Failure, Outcome, join, plain};

/// What the log's node is called, and its mesh, in which nobody else is.
const NAME: &str = "history-service";
const BROKER_DEFAULT: &str = "amqp://localhost";
const HTTP_DEFAULT: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 8090);

pub async fn serve(options: options::HistoryService) -> Outcome {
    let options::HistoryService { amqp, queue, exchange, http, data_dir, ready_file, log } = options;
    let target: Target = amqp.as_deref().unwrap_or(BROKER_DEFAULT).parse().map_err(|error: String| {
        Failure::usage(format!("--amqp: {error}")).hint("such as amqp://guest:guest@localhost:5672")
    })?;
    let mut signals = Signals::new()?;
    let terminal = Terminal::new(&log);
    if let Some(path) = &ready_file {
        clear_ready(path)?;
    }
    let address = http.unwrap_or(HTTP_DEFAULT.into());
    let listener = web::bind(address).await.map_err(|error| taken(address, &error))?;
    let handle = open(data_dir.or_else(|| join::data_dir(NAME, NAME)).ok_or_else(join::no_data)?).await?;
    let token = (!address.ip().is_loopback()).then(|| token(None, &handle)).transpose()?;
    let web = Web::serve_history(handle.clone(), listener, token.clone()).map_err(|error| taken(address, &error))?;
    let address = web.address().unwrap_or(address);
    terminal.note(format_args!("the log is served at http://{address}/ and http://{address}/messages"));
    if let Some(folder) = &handle.info().data_dir {
        terminal.note(format_args!("it is in {}", at_home(&folder.join("history"))));
        if token.is_some() {
            let file = at_home(&folder.join("web.token"));
            terminal.note(format_args!("other machines need the token in {file}: `Authorization: Bearer TOKEN`"));
        }
    }
    terminal.note(format_args!("what the exchange {exchange} at {target} gives comes through the queue {queue}"));
    let service = HistoryService::start(handle.clone(), Options { target, queue, exchange });
    if let Some(path) = &ready_file {
        let data_dir = handle.info().data_dir.clone();
        write_ready(path, &json!({ "http": address, "data_dir": data_dir, "pid": std::process::id() }))?;
    }
    let (mut connected, mut alive) = (service.connected(), handle.peers_changed());
    let stopped = || Failure::failed("the service has stopped by itself").hint("run it with `-v` to see why");
    let ended = loop {
        tokio::select! {
            () = signals.next() => break Ok(()),
            changed = connected.changed() => match changed {
                Ok(()) if *connected.borrow_and_update() => terminal.note("the broker gives messages"),
                Ok(()) => {}
                Err(_) => break Err(stopped()),
            },
            // The log's node holds the other end of this for as long as it lives.
            gone = alive.changed() => if gone.is_err() { break Err(stopped()) },
        }
    };
    let stop = async {
        // What was delivered is kept and acknowledged before the log closes.
        service.close().await;
        tokio::join!(web.close(), handle.shutdown());
    };
    let _ = tokio::time::timeout(STOP_TIMEOUT, stop).await;
    ended
}

/// A node that talks to nobody and lets nothing go.
async fn open(folder: std::path::PathBuf) -> Outcome<Handle> {
    let config = Config {
        name: NAME.into(),
        mesh: NAME.into(),
        data_dir: Some(folder),
        offline: true,
        retain_days: u32::MAX,
        retain_bytes: u64::MAX,
        ..Config::default()
    };
    Ok(Node::builder().config(config).start().await?)
}

fn taken(address: SocketAddr, error: &io::Error) -> Failure {
    Failure::usage(format!("cannot serve the log on {address}: {}", plain(error)))
        .hint("give another address with `--http ADDR:PORT`")
}
