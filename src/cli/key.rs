//! `hubless key`: the key of a mesh, for people to carry from one machine to the next.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;
use hubless::mesh_key::{KeyError, KeyRing, MeshKey};

use super::options::{KeyAdd, KeyCommand, KeyPlace};
use super::{Failure, Outcome, plain, terminal};

/// A code has 76 characters.
const CODE_BYTES_MAX: usize = 1024;

pub fn key(command: &KeyCommand) -> Outcome {
    let file = file(command.place())?;
    let said = match command {
        KeyCommand::New(_) => {
            let key =
                MeshKey::random().map_err(|error| Failure::failed(format!("no random numbers: {}", plain(&error))))?;
            make(&KeyRing::of(key.clone()), &file)?;
            terminal::say(format_args!("a new key is in {}", file.display()));
            key
        }
        KeyCommand::Show(_) => KeyRing::read(&file)?.first().clone(),
        KeyCommand::Add(add) => {
            let key = code(add)?;
            if file.exists() {
                let ring = KeyRing::add(&file, key.clone(), add.first)?;
                let role = if *ring.first() == key { "this node dials with it" } else { "whoever has it is let in" };
                terminal::say(format_args!("the key is in {}: {role}", file.display()));
            } else {
                make(&KeyRing::of(key.clone()), &file)?;
                terminal::say(format_args!("the key is in {}", file.display()));
            }
            terminal::say(format_args!("start nodes with --key-file {}", file.display()));
            return Ok(());
        }
    };
    show(&said, &file, command.place().json).map_err(Failure::output)
}

/// The code goes to stdout, what it is for to stderr.
fn show(key: &MeshKey, file: &Path, json: bool) -> io::Result<()> {
    let (code, mut out) = (key.code(), io::stdout().lock());
    if json {
        let object = serde_json::json!({ "file": file, "code": code });
        return writeln!(out, "{object}");
    }
    if let Some(image) = terminal::qr(&code).filter(|_| out.is_terminal()) {
        writeln!(out, "{image}")?;
    }
    writeln!(out, "{code}")?;
    terminal::say(format_args!(
        "whoever has this code can read and write: on another machine, `hubless key add -` takes it,\n\
         then start nodes with --key-file {}",
        file.display()
    ));
    Ok(())
}

fn make(ring: &KeyRing, file: &Path) -> Outcome {
    if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(|source| KeyError::File { path: folder.into(), source })?;
    }
    Ok(ring.write_new(file)?)
}

fn code(add: &KeyAdd) -> Outcome<MeshKey> {
    if add.code != "-" {
        return Ok(add.code.parse()?);
    }
    let mut line = String::new();
    let read = io::Read::take(io::stdin().lock(), CODE_BYTES_MAX as u64);
    io::BufRead::read_line(&mut io::BufReader::new(read), &mut line)
        .map_err(|error| Failure::failed(format!("cannot read the code: {}", plain(&error))))?;
    Ok(line.parse()?)
}

fn file(place: &KeyPlace) -> Outcome<PathBuf> {
    let user = || Some(etcetera::choose_base_strategy().ok()?.config_dir().join("hubless/mesh.key"));
    place.key_file.clone().or_else(user).ok_or_else(|| {
        Failure::usage("there is no folder for this user's configuration").hint("give a file with `--key-file`")
    })
}
