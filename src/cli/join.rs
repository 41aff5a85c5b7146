//! How commands come to a node: the one that runs on this machine, or one of their own for the moment.
//!
//! Either way the command talks to a control socket, so there is one way of doing things. A node of the moment has a
//! throw-away identity and no disk, unless its command needs the log of this machine; it lets nothing of that go, and says
//! goodbye when its command ends, also when it is interrupted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use etcetera::BaseStrategy;
use hubless::config::{Config, Listen, host_name};
use hubless::{Handle, Node};
use serde::Deserialize;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::api::Api;
use super::control::{self, Control};
use super::options::{NodeOptions, Place, Through};
use super::{Failure, Outcome, plain};

/// A node that runs answers in microseconds; one that hangs is passed over.
const KNOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a command that ends waits for its node's goodbye.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(4);
/// The log, in a node's folder.
const HISTORY: &str = "history";

/// A node to work through.
#[derive(Debug)]
pub struct Joined {
    pub api: Api,
    /// There if the node was started for this command only.
    pub own: Option<Own>,
}

/// A node of the moment.
#[derive(Debug)]
pub struct Own {
    pub handle: Handle,
    control: Control,
}

/// What is needed of `GET /api/v1/node`.
#[derive(Deserialize)]
struct NodeInfo {
    mesh: String,
}

/// What a node of the moment keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// Nothing.
    Nothing,
    /// The log of this machine.
    Log,
}

/// Finds or starts a node, does `work` with it, and leaves it. Interrupted, it ends with `interrupted`.
pub async fn with_node(
    through: &Through,
    keeps: Keeps,
    interrupted: Outcome,
    work: impl AsyncFnOnce(&mut Joined) -> Outcome,
) -> Outcome {
    let signals = signals()?;
    do_and_leave(join(through, keeps).await?, signals, interrupted, work).await
}

/// As [`with_node`], with the node that keeps a certain log; where it does not run, its folder is opened by a node that talks
/// to nobody. A log that is not there is made if `make` says so.
pub async fn with_log(
    place: &Place,
    make: bool,
    interrupted: Outcome,
    work: impl AsyncFnOnce(&mut Joined) -> Outcome,
) -> Outcome {
    let signals = signals()?;
    do_and_leave(open(place, make).await?, signals, interrupted, work).await
}

fn signals() -> Outcome<[Signal; 2]> {
    Ok([signal(SignalKind::interrupt()).map_err(no_signals)?, signal(SignalKind::terminate()).map_err(no_signals)?])
}

async fn do_and_leave(
    mut joined: Joined,
    [mut stop, mut terminate]: [Signal; 2],
    interrupted: Outcome,
    work: impl AsyncFnOnce(&mut Joined) -> Outcome,
) -> Outcome {
    let outcome = tokio::select! {
        outcome = work(&mut joined) => outcome,
        _ = stop.recv() => interrupted,
        _ = terminate.recv() => interrupted,
    };
    if let Some(Own { handle, control }) = joined.own {
        let leave = async {
            control.close().await;
            handle.shutdown().await;
        };
        tokio::select! {
            _ = tokio::time::timeout(LEAVE_TIMEOUT, leave) => {}
            _ = stop.recv() => {}
            _ = terminate.recv() => {}
        }
    }
    outcome
}

fn no_signals(error: std::io::Error) -> Failure {
    Failure::failed(format!("signals cannot be caught: {}", plain(&error)))
}

async fn join(through: &Through, keeps: Keeps) -> Outcome<Joined> {
    let Through { node, .. } = through;
    if !through.alone {
        let folders = node.data_dir.clone().map_or_else(|| folders(node.mesh()), |folder| vec![folder]);
        for folder in folders {
            if let Some(api) = knock(&folder, wanted_mesh(node)).await {
                return Ok(Joined { api, own: None });
            }
        }
    }
    let mut config = node.config()?;
    if config.listen == Listen::Default {
        // The usual port is for nodes that stay.
        config.listen = Listen::At(([0, 0, 0, 0], 0).into());
    }
    if keeps == Keeps::Log {
        let folder = node.data_dir.clone().or_else(|| data_dir(node.mesh(), &config.name)).ok_or_else(no_data)?;
        config = Config { data_dir: Some(folder), ..config };
    }
    start(config).await
}

/// A node of the moment. What leaves the log is for nodes that stay to say: they know what they were told to keep.
async fn start(config: Config) -> Outcome<Joined> {
    let config = Config { retain_days: u32::MAX, retain_bytes: u64::MAX, ..config };
    let offline = config.offline;
    let handle = Node::builder().config(config).start().await?;
    // Nobody else is to work through a node that talks to nobody.
    let near = handle.info().data_dir.clone().filter(|_| !offline);
    let control = Control::open(handle.clone(), near.as_deref()).await;
    let control = control.map_err(|error| Failure::failed(format!("no place for a socket: {}", plain(&error))))?;
    Ok(Joined { api: Api::new(control.socket()), own: Some(Own { handle, control }) })
}

async fn open(place: &Place, make: bool) -> Outcome<Joined> {
    let mesh = place.mesh();
    let folders = match (&place.data_dir, &place.name) {
        (Some(folder), _) => vec![folder.clone()],
        (None, Some(name)) => vec![data_dir(mesh, name).ok_or_else(no_data)?],
        (None, None) => folders(mesh),
    };
    let any_mesh = place.data_dir.is_some() && place.mesh.is_none();
    for folder in &folders {
        if let Some(api) = knock(folder, (!any_mesh).then_some(mesh)).await {
            return Ok(Joined { api, own: None });
        }
    }
    let by_hand = place.data_dir.is_some() || place.name.is_some();
    let host = data_dir(mesh, &host_name());
    let mut kept = Vec::from_iter(folders.iter().filter(|folder| folder.join(HISTORY).is_dir()));
    kept.sort_by_key(|folder| Some(*folder) != host.as_ref());
    let folder = match (kept.as_slice(), folders.first().filter(|_| by_hand)) {
        ([folder], _) => (*folder).clone(),
        ([first, ..], _) if Some(*first) == host.as_ref() => (*first).clone(),
        ([_, _, ..], _) => {
            let names = kept.iter().filter_map(|folder| folder.file_name()).map(|name| name.to_string_lossy());
            let names = names.collect::<Vec<_>>().join(", ");
            return Err(Failure::usage(format!("there are several logs of mesh {mesh} here: {names}"))
                .hint("say which one with `--name NAME`"));
        }
        ([], given) if make => given.cloned().or(host).ok_or_else(no_data)?,
        ([], Some(given)) => return Err(Failure::usage(format!("there is no history in {}", given.display()))),
        ([], None) => {
            return Err(Failure::usage(format!("no node of mesh {mesh} has kept a history here"))
                .hint("name its mesh with `--mesh`, or its folder with `--data-dir DIR`"));
        }
    };
    let config = Config { mesh: mesh.into(), data_dir: Some(folder), offline: true, ..Config::default() };
    start(config).await
}

/// Folders in which a node of `mesh` may be running, the likeliest first.
fn folders(mesh: &str) -> Vec<PathBuf> {
    let Some(mesh) = mesh_folder(mesh) else { return Vec::new() };
    let entries = std::fs::read_dir(&mesh).into_iter().flatten().flatten();
    let mut folders = Vec::from_iter(entries.map(|entry| entry.path()));
    let host = mesh.join(folder_name(&host_name()));
    folders.sort_by_key(|folder| (*folder != host, folder.clone()));
    folders
}

/// Who names a folder and no mesh means the folder's.
fn wanted_mesh(options: &NodeOptions) -> Option<&str> {
    let any = options.data_dir.is_some() && options.mesh.is_none();
    (!any).then(|| options.mesh())
}

/// The API of the node that runs in `folder`, if one does and it is of the mesh asked for.
async fn knock(folder: &Path, wanted: Option<&str>) -> Option<Api> {
    let mut api = Api::new(&control::find(folder)?);
    let answer = tokio::time::timeout(KNOCK_TIMEOUT, api.get::<NodeInfo>("/api/v1/node", Duration::ZERO)).await;
    let NodeInfo { mesh } = answer.ok()?.ok()?;
    wanted.is_none_or(|wanted| wanted == mesh).then_some(api)
}

pub fn no_data() -> Failure {
    Failure::usage("there is no folder for this user's data").hint("give one with `--data-dir DIR`")
}

/// The data folder of the node `name` of `mesh`, if the user has a place for data.
pub fn data_dir(mesh: &str, name: &str) -> Option<PathBuf> {
    Some(mesh_folder(mesh)?.join(folder_name(name)))
}

fn mesh_folder(mesh: &str) -> Option<PathBuf> {
    Some(etcetera::choose_base_strategy().ok()?.data_dir().join("hubless").join(mesh))
}

/// `name` as the name of a folder: no two names share one, and none of them leads elsewhere.
fn folder_name(name: &str) -> String {
    let mut folder = String::new();
    for (at, c) in name.char_indices() {
        match c {
            '/' | '%' | '\\' => folder.push_str(&format!("%{:02X}", c as u32)),
            '.' if at == 0 => folder.push_str("%2E"),
            c => folder.push(c),
        }
    }
    folder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leads_out_of_its_folder() {
        for (name, folder) in
            [("ada", "ada"), ("..", "%2E."), ("a/../b", "a%2F..%2Fb"), ("100%", "100%25"), ("a.b", "a.b")]
        {
            assert_eq!(folder_name(name), folder);
        }
    }
}
