//! Disks that lie, go back in time, get lost or are copied: a node comes back unattended, and no id has two texts.
//!
//! What may be lost is only what nobody else had, so each test lets the mesh become equal before it does harm, unless it
//! says otherwise.
#![cfg(feature = "cli")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::dice::Dice;
use common::load::{self, Load, Outcome, Poster, Said};
use common::log::{Ids, same_logs};
use common::mesh::{Member, Mesh};
use common::shim::{copy_tree, empty};
use common::soak::{self, Claim};
use common::{Home, Hubless, eventually, one_at_a_time};

const NAMES: [&str; 3] = ["a", "b", "c"];
const MESSAGES: usize = 1_000;
const PAGE_BYTES: u64 = 4_096;
const PATIENCE: Duration = Duration::from_secs(30);

/// What befalls a file of a history.
#[derive(Clone, Copy, Debug)]
enum Harm {
    FlippedByte,
    ZeroedPage,
    Truncated,
    Missing,
}

#[test]
fn damage_by_a_flipped_byte_is_repaired_unattended() {
    damage("damage: flipped byte", Harm::FlippedByte);
}

#[test]
fn damage_by_a_zeroed_page_is_repaired_unattended() {
    damage("damage: zeroed page", Harm::ZeroedPage);
}

#[test]
fn damage_by_a_truncated_file_is_repaired_unattended() {
    damage("damage: truncated file", Harm::Truncated);
}

#[test]
fn damage_by_a_missing_file_is_repaired_unattended() {
    damage("damage: missing file", Harm::Missing);
}

fn damage(what: &'static str, harm: Harm) {
    let _alone = one_at_a_time();
    let trials = soak::count(4, 100);
    let mut dice = Dice::new();
    let mut claim = Claim::new(what, trials);
    claim.seeded(dice.seed);
    let mut mesh = Mesh::of(&NAMES);
    let mut promised = BTreeSet::new();
    for (index, member) in mesh.0.iter().enumerate() {
        let (said, _) = load::publish(member, MESSAGES / NAMES.len() + 1, |number| format!("{index}.{number}"));
        promised.extend(said.into_iter().map(|said| said.text));
    }
    same_logs(&mesh.running(), PATIENCE, &promised);
    let mut ids = Ids::default();
    let mut back_ms = Vec::new();
    for trial in 0..trials {
        let victim = dice.below(NAMES.len() as u64) as usize;
        mesh.0[victim].stop();
        let done = hurt(&mut dice, &mesh.0[victim].data_dir().join("history"), harm);
        println!("{what}: trial {trial}: node {}: {done}", NAMES[victim]);
        let began = Instant::now();
        mesh.start_again(&[victim]);
        let left = Duration::from_secs(10).saturating_sub(began.elapsed());
        let (log, _) = same_logs(&mesh.running(), left, &promised);
        back_ms.push(began.elapsed().as_secs_f64() * 1e3);
        ids.note_log(&log);
        // It speaks again, as a run that nothing of before can be taken for.
        let said = Poster::new(&mesh.0[victim]).say(&format!("after trial {trial}"));
        let Outcome::Accepted { id, .. } = &said.outcome else { panic!("{said:?}") };
        ids.note(id, &said.text);
        promised.insert(said.text);
    }
    let (log, _) = same_logs(&mesh.running(), PATIENCE, &promised);
    ids.note_log(&log);
    assert_eq!(log.0.len(), promised.len(), "each once, and nothing else");
    claim.times_ms("back_and_equal_ms", back_ms);
}

/// Harms a random file below `folder`; says what was done.
fn hurt(dice: &mut Dice, folder: &Path, harm: Harm) -> String {
    let mut files = Vec::new();
    list(folder, &mut files);
    files.retain(|path| fs::metadata(path).unwrap().len() > 0);
    files.sort();
    assert!(!files.is_empty(), "no file in {}", folder.display());
    for _ in 0..10_000 {
        let path = dice.pick(&files);
        let name = path.strip_prefix(folder).unwrap().display();
        let file = File::options().read(true).write(true).open(path).unwrap();
        let len = file.metadata().unwrap().len();
        match harm {
            Harm::Missing => {
                fs::remove_file(path).unwrap();
                return format!("{name} removed");
            }
            Harm::Truncated => {
                let keep = dice.below(len);
                file.set_len(keep).unwrap();
                return format!("{name} cut from {len} to {keep}");
            }
            Harm::FlippedByte => {
                // Files are allocated ahead: a byte among those that were written tells more.
                let Some(at) = written(dice, &file, len, 1) else { continue };
                let (mut byte, bit) = ([0], dice.below(8));
                file.read_exact_at(&mut byte, at).unwrap();
                byte[0] ^= 1 << bit;
                file.write_all_at(&byte, at).unwrap();
                return format!("{name}: bit {bit} of byte {at} of {len} flipped");
            }
            Harm::ZeroedPage => {
                let Some(at) = written(dice, &file, len, PAGE_BYTES) else { continue };
                let page = vec![0; (len - at).min(PAGE_BYTES) as usize];
                file.write_all_at(&page, at).unwrap();
                return format!("{name}: page at {at} of {len} zeroed");
            }
        }
    }
    panic!("nothing to harm in {}", folder.display());
}

/// A random place, a multiple of `step`, where not all is zero for `step` bytes.
fn written(dice: &mut Dice, file: &File, len: u64, step: u64) -> Option<u64> {
    for _ in 0..64 {
        let at = dice.below(len.div_ceil(step)) * step;
        let mut bytes = vec![0; (len - at).min(step) as usize];
        file.read_exact_at(&mut bytes, at).unwrap();
        if bytes.iter().any(|byte| *byte != 0) {
            return Some(at);
        }
    }
    // Written mostly at its beginning.
    (len > 0 && step == 1).then(|| dice.below(len.min(PAGE_BYTES)))
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            list(&entry.path(), files);
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
}

/// How a node's folder is not what it was when it starts again.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// Only the identity is left.
    LostHistory,
    /// Nothing is left.
    LostAll,
    /// As it was when it was copied, in order.
    OlderCopy,
    /// As it was when it was copied under load.
    OlderCopyOfRunning,
}

#[test]
fn identity_lost_disk_with_identity_kept_uses_no_id_twice() {
    identity("identity: lost disk, identity kept", Fate::LostHistory);
}

#[test]
fn identity_lost_disk_uses_no_id_twice() {
    identity("identity: lost disk", Fate::LostAll);
}

#[test]
fn identity_restored_older_copy_uses_no_id_twice() {
    identity("identity: restored older copy", Fate::OlderCopy);
}

#[test]
fn identity_restored_copy_of_a_running_folder_uses_no_id_twice() {
    identity("identity: restored copy of a running folder", Fate::OlderCopyOfRunning);
}

fn identity(what: &'static str, fate: Fate) {
    let _alone = one_at_a_time();
    let trials = soak::count(2, 20);
    let mut dice = Dice::new();
    let mut claim = Claim::new(what, trials);
    claim.seeded(dice.seed);
    let mut mesh = Mesh::of(&NAMES);
    let mut ids = Ids::default();
    let mut promised = BTreeSet::new();
    for trial in 0..trials {
        let victim = dice.below(NAMES.len() as u64) as usize;
        let (node, folder) = (mesh.0[victim].node(), mesh.0[victim].data_dir());
        let home = Home::new();
        let copy = home.path().join("copy");
        talk(&mesh.0[victim], &format!("{trial}: before"), &mut ids, &mut promised);
        if matches!(fate, Fate::OlderCopy) {
            mesh.0[victim].stop();
            copy_tree(&folder, &copy, true);
            mesh.start_again(&[victim]);
        }
        let load = Load::begin(&mesh.0[victim], &format!("{trial}: load"), 2);
        eventually(PATIENCE, "it is busy", || load.accepted() > 50);
        if matches!(fate, Fate::OlderCopyOfRunning) {
            copy_tree(&folder, &copy, true);
        }
        let enough = load.accepted() + 50;
        eventually(PATIENCE, "it is busy after", || load.accepted() > enough);
        note(load.end(), &mut ids, &mut promised);
        // What only this disk had may be lost with it.
        let (log, _) = same_logs(&mesh.running(), PATIENCE, &promised);
        ids.note_log(&log);

        mesh.kill(&[victim]);
        let identity = fs::read(folder.join("identity")).unwrap();
        empty(&folder);
        match fate {
            Fate::LostAll => {}
            Fate::LostHistory => restore_identity(&folder, &identity),
            Fate::OlderCopy | Fate::OlderCopyOfRunning => copy_tree(&copy, &folder, true),
        }
        mesh.start_again(&[victim]);
        assert_eq!(mesh.0[victim].node() == node, !matches!(fate, Fate::LostAll), "{fate:?}: the identity");
        talk(&mesh.0[victim], &format!("{trial}: after"), &mut ids, &mut promised);
        let (log, _) = same_logs(&mesh.running(), PATIENCE, &promised);
        ids.note_log(&log);
    }
    claim.measured("messages", promised.len());
}

#[test]
fn identity_cloned_running_folder_uses_no_id_twice_and_is_told() {
    let _alone = one_at_a_time();
    let trials = soak::count(2, 20);
    let mut dice = Dice::new();
    let mut claim = Claim::new("identity: cloned running folder", trials);
    claim.seeded(dice.seed);
    let mut mesh = Mesh::of(&NAMES);
    let mut ids = Ids::default();
    let mut promised = BTreeSet::new();
    for trial in 0..trials {
        let original = dice.below(NAMES.len() as u64) as usize;
        let before = Load::begin(&mesh.0[original], &format!("{trial}: before"), 2);
        eventually(PATIENCE, "it is busy", || before.accepted() > 50);
        let mut clone = Member::with_home("clone", Home::new());
        copy_tree(&mesh.0[original].data_dir(), &clone.data_dir(), true);
        note(before.end(), &mut ids, &mut promised);
        let seeds = mesh.seeds();
        clone.spawn(&seeds);
        assert_eq!(clone.node(), mesh.0[original].node(), "it is a clone");
        mesh.0.push(clone);
        let told = |node: &Hubless| {
            let said = node.stderr().to_lowercase();
            ["copied", "copy", "clone", "same identity", "same key"].iter().any(|word| said.contains(word))
        };
        let both = [&mesh.0[original], &mesh.0[NAMES.len()]];
        eventually(PATIENCE, "both are told that a folder was copied", || both.iter().all(|node| told(node)));
        let loads = both.map(|node| Load::begin(node, &format!("{trial}: {}", node.name()), 2));
        eventually(PATIENCE, "both speak", || loads.iter().all(|load| load.accepted() > 100));
        loads.into_iter().for_each(|load| note(load.end(), &mut ids, &mut promised));
        let (log, _) = same_logs(&mesh.running(), PATIENCE, &promised);
        ids.note_log(&log);
        mesh.0.pop().expect("the clone").stop();
        // The next trial asks whether this very clone is told.
        mesh.restart();
    }
    same_logs(&mesh.running(), PATIENCE, &promised);
    claim.measured("messages", promised.len());
}

/// Some messages, each answered.
fn talk(node: &Hubless, label: &str, ids: &mut Ids, promised: &mut BTreeSet<String>) {
    let (said, _) = load::publish(node, 100, |number| format!("{label} {number}"));
    note(said, ids, promised);
}

/// Takes note of what was answered; nothing may have been refused.
fn note(said: Vec<Said>, ids: &mut Ids, promised: &mut BTreeSet<String>) {
    for said in said {
        let Outcome::Accepted { id, .. } = &said.outcome else { panic!("{said:?}") };
        ids.note(id, &said.text);
        assert!(said.is_promised(), "{said:?}");
        promised.insert(said.text);
    }
}

fn restore_identity(folder: &Path, identity: &[u8]) {
    let path = folder.join("identity");
    fs::write(&path, identity).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
}
