//! `hubless peers`: who is in the mesh.

use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

use super::join::{Joined, Keeps, Own, with_node};
use super::options::Peers;
use super::terminal::{Terminal, clean, milliseconds};
use super::{Failure, Outcome};

/// How long a node of the moment looks for others at most.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// Once it has found one: it is enough when nobody came for so long.
const QUIET: Duration = Duration::from_millis(300);
/// How often `--watch` looks.
const TICK: Duration = Duration::from_secs(1);

const HEADINGS: [&str; 6] = ["NAME", "STATE", "ADDRESS", "FOUND BY", "RTT", "NODE"];

pub async fn peers(options: Peers) -> Outcome {
    let Peers { watch, json, through } = options;
    let terminal = Terminal::new(&through.log);
    with_node(&through, Keeps::Nothing, Ok(()), async |joined| {
        let Joined { api, own } = joined;
        if let Some(own) = own
            && !watch
        {
            look_around(own).await;
        }
        let redraw = watch && !json && std::io::stdout().is_terminal();
        let mut shown = None;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let peers: Vec<Value> = api.get("/api/v1/peers", Duration::ZERO).await?;
            // Times change always; where lines are appended they are no news.
            let news = Vec::from_iter(peers.iter().map(|peer| {
                ["node", "epoch", "name", "state", "address", "found_by"].map(|field| peer[field].clone())
            }));
            if redraw || shown.as_ref() != Some(&news) {
                let text = if json { json!(peers).to_string() } else { table(&peers) };
                let clear = if redraw { "\x1b[H\x1b[2J" } else { "" };
                writeln!(std::io::stdout().lock(), "{clear}{text}").map_err(Failure::output)?;
                if let Some(remedy) = remedy(&peers).filter(|_| !json) {
                    terminal.hint(remedy);
                }
            }
            if !watch {
                if news.is_empty() {
                    terminal.note("no other node was found");
                }
                return Ok(());
            }
            shown = Some(news);
        }
    })
    .await
}

/// Waits until the picture is likely to be whole.
async fn look_around(own: &Own) {
    let end = Instant::now() + LOOK_MAX;
    let mut changed = own.handle.peers_changed();
    let settled = async {
        if own.handle.wait_for_peers(1).await.is_ok() {
            while let Ok(Ok(())) = timeout(QUIET, changed.changed()).await {}
        }
    };
    // Nobody there is an answer, too.
    let _ = timeout_at(end, settled).await;
}

/// Columns as wide as what stands in them.
fn table(peers: &[Value]) -> String {
    let mut rows = vec![HEADINGS.map(String::from)];
    rows.extend(peers.iter().map(row));
    let widths: [usize; HEADINGS.len()] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let line = |row: &[String; HEADINGS.len()]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn row(peer: &Value) -> [String; HEADINGS.len()] {
    let word = |field: &str| peer[field].as_str().filter(|word| !word.is_empty()).map_or("-".into(), clean);
    let rtt = peer["rtt_ms"].as_f64().and_then(|ms| Duration::try_from_secs_f64(ms / 1_000.0).ok());
    let node = word("node").chars().take(8).collect();
    [word("name"), word("state"), word("address"), word("found_by"), rtt.map_or("-".into(), milliseconds), node]
}

/// What helps where somebody is heard one way only.
fn remedy(peers: &[Value]) -> Option<String> {
    let peer = peers.iter().find(|peer| peer["state"] == "one_way")?;
    let address = peer["address"].as_str().and_then(|address| address.parse::<SocketAddr>().ok());
    let port = address.map_or("its TCP port".into(), |address| format!("TCP {}", address.port()));
    Some(format!("one_way: that node does not hear this one or the other way round; open {port} there"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let peers = [
            json!({ "name": "ada", "state": "up", "address": "10.0.0.2:47474", "found_by": "mdns", "rtt_ms": 0.31,
                    "node": "abcdefghijklmnop" }),
            json!({ "name": "", "state": "incompatible", "address": null, "found_by": "seed", "rtt_ms": null,
                    "node": "qrstuvwxyz234567" }),
        ];
        let shown = table(&peers);
        let lines = Vec::from_iter(shown.lines());
        assert_eq!(lines[0], "NAME  STATE         ADDRESS         FOUND BY  RTT     NODE");
        assert_eq!(lines[1], "ada   up            10.0.0.2:47474  mdns      0.3 ms  abcdefgh");
        assert_eq!(lines[2], "-     incompatible  -               seed      -       qrstuvwx");
    }

    #[test]
    fn who_is_heard_one_way_is_told_which_port_to_open() {
        let peer = |state: &str, address: Option<&str>| json!({ "state": state, "address": address });
        assert_eq!(remedy(&[peer("up", Some("10.0.0.2:1"))]), None);
        let said = remedy(&[peer("up", None), peer("one_way", Some("10.0.0.2:47474"))]).unwrap();
        assert!(said.ends_with("open TCP 47474 there"), "{said}");
        assert!(remedy(&[peer("one_way", None)]).unwrap().ends_with("open its TCP port there"));
    }
}
