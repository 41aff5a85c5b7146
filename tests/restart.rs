//! Nodes that are stopped, killed and cut off from power under load: what was promised is there once, on every node.
//!
//! Promised is a publish that was answered `durable` or `replicated`. One that got no answer is said again under its client
//! id on another node, as a careful client does; then it must be there once, too.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, SystemTime};

use common::dice::Dice;
use common::load::{self, Load, Outcome, Poster, Said};
use common::log::same_logs;
use common::mesh::{Member, Mesh};
use common::shim::{self, Entries};
use common::soak::{self, Claim};
use common::{Home, Hubless, Place, eventually, one_at_a_time};

const NAMES: [&str; 3] = ["a", "b", "c"];
const ALL: [usize; 3] = [0, 1, 2];
const POSTERS: usize = 4;
/// Accepted before something happens, at most: a random moment of a busy node.
const ACCEPTED_MAX: u64 = 400;

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// What ends nodes.
#[derive(Clone, Copy, Debug)]
enum End {
    Kill,
    PowerCut(Entries),
}

#[test]
fn kill9_of_one_node_loses_nothing_promised() {
    rounds("restart: kill -9 of one node", End::Kill, 1, soak::count(6, 200));
}

#[test]
fn kill9_of_all_nodes_at_once_loses_nothing_promised() {
    rounds("restart: kill -9 of all nodes", End::Kill, 3, soak::count(6, 200));
}

#[test]
fn power_cut_of_one_node_loses_nothing_promised() {
    rounds("restart: power cut of one node", End::PowerCut(Entries::Kept), 1, soak::count(3, 50));
}

#[test]
fn power_cut_of_all_nodes_at_once_loses_nothing_promised() {
    rounds("restart: power cut of all nodes", End::PowerCut(Entries::Kept), 3, soak::count(3, 50));
}

#[test]
fn power_cut_that_forgets_entries_of_folders_loses_nothing_promised() {
    rounds("restart: power cut, folders as synced", End::PowerCut(Entries::Synced), 3, soak::count(2, 50));
}

/// Ends so many of three nodes at a random moment under load and starts them again, so many times.
fn rounds(what: &'static str, end: End, victims: usize, rounds: usize) {
    let _alone = one_at_a_time();
    let mut dice = Dice::new();
    let mut claim = Claim::new(what, rounds);
    claim.seeded(dice.seed);
    let member = |name: &&str| match end {
        End::Kill => Member::new(name),
        End::PowerCut(_) => Member::new(name).on_shim(),
    };
    let mut mesh = Mesh::start(NAMES.iter().map(member).collect());
    let (mut promised, mut unanswered, mut worst) = (BTreeSet::new(), 0, Duration::ZERO);
    for round in 0..rounds {
        let label = |member: &Member| format!("{round}.{}", member.name());
        let loads: Vec<Load> = mesh.0.iter().map(|member| Load::begin(member, &label(member), POSTERS)).collect();
        let moment = dice.within(1..ACCEPTED_MAX) as usize;
        let accepted = || loads.iter().map(Load::accepted).sum::<usize>() >= moment;
        eventually(secs(30), "the nodes are busy", accepted);
        let first = dice.below(ALL.len() as u64) as usize;
        let ended: Vec<usize> = (first..first + victims).map(|index| index % ALL.len()).collect();
        match end {
            End::Kill => mesh.kill(&ended),
            End::PowerCut(entries) => mesh.cut_power(&ended, entries),
        }
        let said: Vec<Said> = loads.into_iter().flat_map(Load::end).collect();
        let back = std::time::Instant::now();
        mesh.start_again(&ended);

        let mut poster = Poster::new(&mesh.0[(first + 1) % ALL.len()]);
        for said in said {
            let again = match said.outcome {
                Outcome::Accepted { .. } => said,
                Outcome::Unknown => poster.say(&said.text),
                Outcome::Refused(why) => panic!("{} was refused: {why}", said.text),
            };
            assert!(again.is_promised(), "{again:?}");
            unanswered += usize::from(!promised.insert(again.text));
        }
        same_logs(&mesh.running(), secs(60), &promised);
        worst = worst.max(back.elapsed());
    }
    assert_eq!(unanswered, 0, "texts are used once");
    claim.measured("promised", promised.len());
    claim.measured("back_and_equal_ms_worst", worst.as_millis() as u64);
}

#[test]
fn author_stopped_and_the_third_node_has_all_from_the_second() {
    let _alone = one_at_a_time();
    let count = 2_000;
    let mut claim = Claim::new("restart: author stopped, third node returns", count);
    let mut mesh = Mesh::of(&NAMES);
    mesh.0[2].stop();
    let (said, _) = load::publish(&mesh.0[0], count, |number| format!("missed {number}"));
    let promised: BTreeSet<String> = said.into_iter().map(|said| said.text).collect();
    same_logs(&mesh.running(), secs(20), &promised);
    mesh.0[0].stop();

    let seed = mesh.0[1].listen();
    mesh.0[2].spawn(&[seed]);
    mesh.0[2].ready();
    let (log, _) = same_logs(&mesh.running(), secs(30), &promised);
    let seconds = mesh.0[2].started.elapsed().as_secs_f64();
    assert_eq!(log.0.len(), count, "each once, and nothing else");
    claim.measured("seconds_from_start", (seconds * 100.0).round() / 100.0);
}

#[test]
fn clocks_in_1970_and_40_days_ahead_lose_nothing() {
    let _alone = one_at_a_time();
    let count = 100;
    let mut claim = Claim::new("restart: clocks in 1970 and 40 days ahead", count);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let (past_ms, ahead_ms) = (-(now.as_millis() as i64) + 60_000, 40 * 86_400_000);
    let mut mesh = Mesh::start(vec![
        Member::new("a"),
        Member::new("pi").env(shim::clock_env(past_ms)),
        Member::new("ahead").env(shim::clock_env(ahead_ms)),
    ]);
    let mut promised = BTreeSet::new();
    let mut say = |mesh: &Mesh, when: &str| {
        for number in 0..count {
            for member in &mesh.0 {
                let said = Poster::new(member).say(&format!("{} {number} {when}", member.name()));
                assert!(said.is_promised(), "{said:?}");
                promised.insert(said.text);
            }
        }
        promised.clone()
    };
    let before = say(&mesh, "before");
    same_logs(&mesh.running(), secs(20), &before);
    claim.measured("restart_ms", mesh.restart().as_millis() as u64);
    same_logs(&mesh.running(), secs(20), &before);
    let after = say(&mesh, "after");
    same_logs(&mesh.running(), secs(20), &after);

    // Alone, with only its own idea of time, it keeps what it has, and what is from ahead of it, too.
    (0..3).for_each(|index| mesh.0[index].stop());
    mesh.start_again(&[1]);
    same_logs(&mesh.running(), secs(20), &after);
    let said = Poster::new(&mesh.0[1]).say("from a Pi alone");
    assert!(said.is_promised(), "{said:?}");
    let last: BTreeSet<String> = after.into_iter().chain([said.text]).collect();
    mesh.start_again(&[0, 2]);
    same_logs(&mesh.running(), secs(20), &last);
}

#[test]
fn a_restarted_node_answers_a_retry_with_the_first_id() {
    let _alone = one_at_a_time();
    let mut mesh = Mesh::of(&NAMES[..2]);
    let first = Poster::new(&mesh.0[0]).say("once");
    assert!(first.is_promised(), "{first:?}");
    let promised = BTreeSet::from(["once".to_string()]);
    same_logs(&mesh.running(), secs(10), &promised);
    mesh.kill(&[0, 1]);
    mesh.start_again(&[0, 1]);
    let id = |said: &Said| match &said.outcome {
        Outcome::Accepted { id, .. } => id.clone(),
        other => panic!("{other:?}"),
    };
    for member in &mesh.0 {
        assert_eq!(id(&Poster::new(member).say("once")), id(&first), "at {}", member.name());
    }
    let (log, _) = same_logs(&mesh.running(), secs(10), &promised);
    assert_eq!(log.0.len(), 1);
}

#[test]
fn a_folder_in_use_is_refused_and_its_process_named() {
    let mesh = Mesh::of(&["a"]);
    let owner = &mesh.0[0];
    let folder = owner.data_dir();
    let (status, stderr) = refused(owner, &folder);
    assert_eq!(status, Some(1), "{stderr}");
    assert!(stderr.contains("error: ") && stderr.contains(&owner.pid().to_string()), "{stderr}");
    assert!(Poster::new(owner).say("unharmed").is_promised());
}

#[test]
fn a_folder_that_cannot_be_is_refused_and_named() {
    let mesh = Mesh::of(&["a"]);
    // Below a file nobody has rights, not even root.
    let file = mesh.0[0].home().path().join("file");
    std::fs::write(&file, "in the way").unwrap();
    let (status, stderr) = refused(&mesh.0[0], &file.join("node"));
    assert_eq!(status, Some(1), "{stderr}");
    assert!(stderr.contains("error: ") && stderr.contains(file.to_str().unwrap()), "{stderr}");
    assert_eq!(std::fs::read(&file).unwrap(), b"in the way");
}

#[test]
fn an_unknown_cursor_is_malformed() {
    let mesh = Mesh::of(&["a"]);
    for cursor in ["%21%21", "bm90IGEgY3Vyc29y", "AAAA"] {
        let (status, answer) = mesh.0[0].request("GET", &format!("/api/v1/messages?after={cursor}"), "");
        assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("cursor")), "{cursor}: {answer}");
    }
}

/// What `hubless run` in that folder says before it ends.
fn refused(beside: &Hubless, folder: &Path) -> (Option<i32>, String) {
    let args = ["run", "--no-mdns", "--no-http", "--listen", "127.0.0.1:0", "--name", "late", "--data-dir"];
    let home = Home::new();
    let mut command = home.hubless(&Place::Here, &args);
    let mut child = command.arg(folder).stderr(std::process::Stdio::piped()).spawn().expect("hubless starts");
    let status = common::eventually_some(secs(10), "it refuses", || {
        assert!(beside.is_running());
        child.try_wait().unwrap()
    });
    let mut stderr = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().expect("piped"), &mut stderr).unwrap();
    (status.code(), stderr)
}
