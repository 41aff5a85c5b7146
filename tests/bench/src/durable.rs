//! The log: how fast `publish` answers `durable`, how fast it is read and opened again, beside what the disk can do.
//!
//! Everything in one process and one run, since a machine's hour moves a disk more than anything else.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hubless::config::{Fsync, Listen};
use hubless::handle::{Draft, Query, State};
use hubless::{Handle, Node, Room};

/// Bytes of a message.
const SIZE: usize = 100;
/// Messages in one call.
const CALL: usize = 500;
/// Calls under way at once.
const CALLERS: usize = 16;
/// Messages in the log that is read and opened.
const LOG: u64 = 1_000_000;
/// Publishes under way at once when each has an fsync of its own.
const EACH_CALLERS: usize = 8;

/// What was asked for, what was measured, and whether that is enough.
struct Line {
    what: &'static str,
    measured: String,
    wanted: &'static str,
    enough: bool,
}

/// Measures, prints a table, and answers whether every line is enough.
pub fn run() -> Result<bool, Box<dyn Error>> {
    let folder = std::env::temp_dir().join(format!("hubless-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let lines = runtime.block_on(measure(&folder));
    std::fs::remove_dir_all(&folder)?;
    let lines = lines?;
    println!("| durable | measured | wanted | |\n|---|---|---|---|");
    for Line { what, measured, wanted, enough } in &lines {
        println!("| {what} | {measured} | {wanted} | {} |", if *enough { "yes" } else { "NO" });
    }
    Ok(lines.iter().all(|line| line.enough))
}

async fn measure(folder: &Path) -> Result<Vec<Line>, Box<dyn Error>> {
    let mut lines = Vec::new();
    let log = folder.join("group");
    let node = start(&log, Fsync::Group).await?;
    let began = Instant::now();
    let (count, slowest) = ingest(&node, LOG).await?;
    let rate = count as f64 / began.elapsed().as_secs_f64();
    lines.push(Line {
        what: "100 B through `publish`, group fsync",
        measured: format!("{:.0}k messages/s (slowest answer {} ms)", rate / 1e3, slowest.as_millis()),
        wanted: "≥ 500k/s",
        enough: rate >= 500e3,
    });
    let mut newest = Vec::new();
    let rounds: usize = std::env::var("ROUNDS").ok().and_then(|r| r.parse().ok()).unwrap_or(2_000);
    for _ in 0..rounds {
        let began = Instant::now();
        let page = node.messages(Query { limit: 100, ..Query::default() }).await?;
        newest.push(began.elapsed());
        if page.messages.len() != 100 {
            return Err("fewer than 100 newest messages".into());
        }
    }
    newest.sort();
    lines.push(Line {
        what: "newest 100 of 1 M, through the handle",
        measured: format!(
            "{} µs median, {} µs p99",
            newest[rounds / 2].as_micros(),
            newest[rounds * 99 / 100].as_micros()
        ),
        wanted: "≤ 100 µs",
        enough: newest[rounds / 2] <= Duration::from_micros(100),
    });
    node.shutdown().await;
    drop(node);
    let began = Instant::now();
    let node = start(&log, Fsync::Group).await?;
    let took = began.elapsed();
    let stored: u64 = node.rooms().await?.iter().map(|room| room.messages).sum();
    lines.push(Line {
        what: "start with 1 M messages",
        measured: format!("{:.2} s, {stored} messages", took.as_secs_f64()),
        wanted: "≤ 2 s",
        enough: took <= Duration::from_secs(2) && stored >= LOG,
    });
    node.shutdown().await;

    let raw = folder.join("raw");
    let (ours, raw_rate) = beside(&folder.join("each"), &raw).await?;
    // What was opened again has a journal that grows with each write, until the next one is begun after 64 MB.
    let (again, raw_again) = beside(&folder.join("each"), &raw).await?;
    lines.push(Line {
        what: "an fsync each, beside a raw append + fdatasync loop",
        measured: format!(
            "{ours:.0}/s, raw {raw_rate:.0}/s: {:.2}× (opened again {:.2}×)",
            ours / raw_rate,
            again / raw_again
        ),
        wanted: "≥ 0.8×",
        enough: ours / raw_rate >= 0.8,
    });
    Ok(lines)
}

/// What a log in `folder` and a raw loop do a second.
async fn beside(folder: &Path, raw: &Path) -> Result<(f64, f64), Box<dyn Error>> {
    const TURNS: u32 = 5;
    let node = start(folder, Fsync::Always).await?;
    let (mut ours, mut theirs) = (0.0, 0.0);
    // They take turns, so that both meet the same disk.
    for _ in 0..TURNS {
        ours += each(&node, Duration::from_secs(1)).await?;
        theirs += append(raw.into(), Duration::from_secs(1)).await?;
    }
    node.shutdown().await;
    Ok((ours / f64::from(TURNS), theirs / f64::from(TURNS)))
}

async fn start(folder: &Path, fsync: Fsync) -> Result<Handle, Box<dyn Error>> {
    let node = Node::builder().name("bench").mdns(false).listen(Listen::At(([127, 0, 0, 1], 0).into()));
    Ok(node.data_dir(Some(folder.into())).fsync(fsync).start().await?)
}

/// Publishes about `count` messages in calls of many, several at once; answers how many, and how long the slowest took.
async fn ingest(node: &Handle, count: u64) -> Result<(u64, Duration), Box<dyn Error>> {
    let left = Arc::new(AtomicU64::new(count / CALL as u64));
    let text = "x".repeat(SIZE);
    let drafts: Vec<Draft> = (0..CALL).map(|_| Draft::new(Room::lobby(), text.as_str())).collect();
    let caller = || {
        let (node, left, drafts) = (node.clone(), left.clone(), drafts.clone());
        tokio::spawn(async move {
            let (mut count, mut slowest) = (0, Duration::ZERO);
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                let began = Instant::now();
                let published = node.publish_all(drafts.clone()).await?;
                slowest = slowest.max(began.elapsed());
                assert!(published.iter().all(|published| published.state == State::Durable));
                count += published.len() as u64;
            }
            Ok::<_, hubless::PublishError>((count, slowest))
        })
    };
    let callers: Vec<_> = (0..CALLERS).map(|_| caller()).collect();
    let (mut total, mut slowest) = (0, Duration::ZERO);
    for caller in callers {
        let (count, longest) = caller.await??;
        total += count;
        slowest = slowest.max(longest);
    }
    Ok((total, slowest))
}

/// Publishes one message after the other, several at once, for `span`; answers how many a second.
async fn each(node: &Handle, span: Duration) -> Result<f64, Box<dyn Error>> {
    let began = Instant::now();
    let text = "x".repeat(SIZE);
    let caller = || {
        let (node, text) = (node.clone(), text.clone());
        tokio::spawn(async move {
            let mut count = 0u64;
            while began.elapsed() < span {
                node.publish("lobby", text.as_str()).await?;
                count += 1;
            }
            Ok::<_, hubless::PublishError>(count)
        })
    };
    let callers: Vec<_> = (0..EACH_CALLERS).map(|_| caller()).collect();
    let mut total = 0;
    for caller in callers {
        total += caller.await??;
    }
    Ok(total as f64 / began.elapsed().as_secs_f64())
}

/// Appends records of the size of such a message and syncs each; answers how many a second.
async fn append(path: PathBuf, span: Duration) -> Result<f64, Box<dyn Error>> {
    let appended = tokio::task::spawn_blocking(move || {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        let record = vec![7; 189 + SIZE + 40];
        let began = Instant::now();
        let mut count = 0u64;
        while began.elapsed() < span {
            file.write_all(&record)?;
            file.sync_data()?;
            count += 1;
        }
        Ok::<_, std::io::Error>(count as f64 / began.elapsed().as_secs_f64())
    });
    Ok(appended.await??)
}
