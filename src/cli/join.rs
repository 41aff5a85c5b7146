//! How `pub`, `sub` and `peers` come to a node: the one that runs on this machine, or one of their own for the moment.
//!
//! Either way the command talks to a control socket, so there is one way of doing things. A node of the moment has a
//! throw-away identity and no disk, and says goodbye when its command ends, also when it is interrupted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use etcetera::BaseStrategy;
use hubless::config::{Listen, host_name};
use hubless::{Handle, Node};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};

use super::api::Api;
use super::control::{self, Control};
use super::options::{NodeOptions, Through};
use super::{Failure, Outcome, plain};

/// A node that runs answers in microseconds; one that hangs is passed over.
const KNOCK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a command that ends waits for its node's goodbye.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(4);

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

/// Finds or starts a node, does `work` with it, and leaves it. Interrupted, it ends with `interrupted`.
pub async fn with_node(
    through: &Through,
    interrupted: Outcome,
    work: impl AsyncFnOnce(&mut Joined) -> Outcome,
) -> Outcome {
    let mut stop = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut joined = join(through).await?;
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

async fn join(through: &Through) -> Outcome<Joined> {
    if !through.alone {
        for folder in folders(&through.node) {
            if let Some(api) = knock(&folder, &through.node).await {
                return Ok(Joined { api, own: None });
            }
        }
    }
    let mut config = through.node.config();
    if config.listen == Listen::Default {
        // The usual port is for nodes that stay.
        config.listen = Listen::At(([0, 0, 0, 0], 0).into());
    }
    let handle = Node::builder().config(config).start().await?;
    let control = Control::open(handle.clone(), None).await;
    let control = control.map_err(|error| Failure::failed(format!("no place for a socket: {}", plain(&error))))?;
    Ok(Joined { api: Api::new(control.socket()), own: Some(Own { handle, control }) })
}

/// Folders in which a node of this mesh may be running, the likeliest first.
fn folders(options: &NodeOptions) -> Vec<PathBuf> {
    if let Some(folder) = &options.data_dir {
        return vec![folder.clone()];
    }
    let Some(mesh) = mesh_folder(options.mesh()) else { return Vec::new() };
    let entries = std::fs::read_dir(&mesh).into_iter().flatten().flatten();
    let mut folders = Vec::from_iter(entries.map(|entry| entry.path()));
    let host = mesh.join(folder_name(&host_name()));
    folders.sort_by_key(|folder| (*folder != host, folder.clone()));
    folders
}

/// The API of the node that runs in `folder`, if one does and it is of the mesh asked for.
async fn knock(folder: &Path, options: &NodeOptions) -> Option<Api> {
    let mut api = Api::new(&control::find(folder)?);
    let answer = tokio::time::timeout(KNOCK_TIMEOUT, api.get::<NodeInfo>("/api/v1/node", Duration::ZERO)).await;
    let NodeInfo { mesh } = answer.ok()?.ok()?;
    // Who names a folder and no mesh means the folder's.
    let any = options.data_dir.is_some() && options.mesh.is_none();
    (any || mesh == options.mesh()).then_some(api)
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
