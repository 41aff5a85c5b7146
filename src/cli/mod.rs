//! The command line: what was asked for, who does it, and with which exit code it ends.
//!
//! Sees only the crate's public API. Words for people go to stderr, data to stdout; an error is one line `error: …`, with a
//! line `hint: …` where there is something to do. A reader of stdout or stderr that has gone is no error.

mod api;
mod bridges;
mod control;
mod history;
mod history_service;
mod join;
mod key;
mod lines;
mod options;
mod peers;
mod publish;
mod run;
mod settings;
mod subscribe;
mod terminal;

use std::io;
use std::process::ExitCode;

use hubless::error::StartError;
use hubless::mesh_key::KeyError;
use hubless::web::TokenError;
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use options::{Cli, Command, LogFormat, LogOptions};

/// How a command ends. Its text is what a person reads.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    message: String,
    hint: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// Whoever read our output has what he wanted.
    Done = 0,
    /// It was meant well and failed.
    Failed = 1,
    /// Other options or another configuration would help.
    Usage = 2,
    /// Nothing arrived in the time given.
    Nothing = 3,
}

type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into(), hint: None }
    }

    fn failed(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Failed, message)
    }

    fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, message)
    }

    fn nothing(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Nothing, message)
    }

    fn hint(self, hint: impl Into<String>) -> Failure {
        Failure { hint: Some(hint.into()), ..self }
    }

    /// What writing to stdout said.
    fn output(error: io::Error) -> Failure {
        let exit = if error.kind() == io::ErrorKind::BrokenPipe { Exit::Done } else { Exit::Failed };
        Failure::new(exit, format!("cannot write the output: {}", plain(&error)))
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Failure {
        match error {
            StartError::Bind { address, source } => {
                let hint = match source.kind() {
                    io::ErrorKind::AddrInUse => "another program has this port: give another one, or port 0 for any",
                    io::ErrorKind::AddrNotAvailable => {
                        "this machine does not have this address: give one of its own, or 0.0.0.0 for all of them"
                    }
                    io::ErrorKind::PermissionDenied => "ports below 1024 need privileges: give a higher one",
                    _ => "give another address with `--listen ADDR:PORT`",
                };
                Failure::usage(format!("cannot listen on {address}: {}", plain(&source))).hint(hint)
            }
            StartError::Config(message) => Failure::usage(message),
            StartError::Locked { path, pid } => {
                let by = if pid == 0 { "a running node".into() } else { format!("process {pid}") };
                Failure::usage(format!("the data folder {} is in use by {by}", path.display()))
                    .hint("give another `--data-dir` or `--name`, or neither")
            }
            StartError::DataDir { path, source } => {
                Failure::failed(format!("the data folder {}: {}", path.display(), plain(&source)))
                    .hint("give another one with `--data-dir DIR`")
            }
            StartError::NewerHistory { .. } => {
                Failure::failed(error.to_string()).hint("use the newer hubless, or give another `--data-dir DIR`")
            }
            StartError::System { what, source } => Failure::failed(format!("{what}: {}", plain(&source))),
        }
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Failure {
        let failure = match &error {
            KeyError::File { path, source } => Failure::usage(format!("{}: {}", path.display(), plain(source))),
            _ => Failure::usage(error.to_string()),
        };
        match &error {
            KeyError::Exposed(path) => failure.hint(format!("chmod 600 {}", path.display())),
            KeyError::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                failure.hint("make one with `hubless key new`, or take another node's with `hubless key add CODE`")
            }
            KeyError::Exists(_) => {
                failure.hint("`hubless key show` prints its code; `hubless key add` adds another node's to it")
            }
            _ => failure,
        }
    }
}

impl From<TokenError> for Failure {
    fn from(error: TokenError) -> Failure {
        let failure = match &error {
            TokenError::File { path, source } => Failure::usage(format!("{}: {}", path.display(), plain(source))),
            _ => Failure::usage(error.to_string()),
        };
        match &error {
            TokenError::Exposed(path) => failure.hint(format!("chmod 600 {}", path.display())),
            TokenError::NoToken(_) => failure.hint("remove the file, and a new token is made"),
            _ => failure.hint("give another file with `--http-token-file`"),
        }
    }
}

/// What the system said, without its number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_string()
}

/// Reads the command line, does what it asks for, and says how that ended.
pub fn main() -> ExitCode {
    let exit = match settings::load(std::env::args_os()) {
        Ok(cli) => finish(command(cli)),
        Err(settings::Stop::Shown) => Exit::Done,
        Err(settings::Stop::Failure(failure)) => finish(Err(failure)),
    };
    ExitCode::from(exit as u8)
}

fn finish(outcome: Outcome) -> Exit {
    let Err(Failure { exit, message, hint }) = outcome else { return Exit::Done };
    if exit != Exit::Done {
        terminal::say(format_args!("error: {message}"));
        if let Some(hint) = hint {
            terminal::say(format_args!("hint: {hint}"));
        }
    }
    exit
}

fn command(cli: Cli) -> Outcome {
    let command = cli.command.unwrap_or(Command::Run(Box::new(cli.run)));
    log(command.log_options());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("no threads to work with: {}", plain(&error))))?;
    let outcome = runtime.block_on(async {
        match command {
            Command::Run(options) => run::run(*options).await,
            Command::Pub(options) => publish::publish(options).await,
            Command::Sub(options) => subscribe::subscribe(options).await,
            Command::History(options) => history::history(options).await,
            Command::HistoryService(options) => history_service::serve(options).await,
            Command::Check(options) => bridges::check(options).await,
            Command::Peers(options) => peers::peers(options).await,
            Command::Key(command) => key::key(&command),
        }
    });
    // A thread that still waits for stdin must not hold the exit up.
    runtime.shutdown_background();
    outcome
}

/// Sends log events to stderr. `RUST_LOG` wins over `-v` and `-q`.
fn log(options: &LogOptions) {
    let level = match (options.quiet, options.verbose) {
        (true, _) => "error",
        // What the terminal shows as lines of its own is, as JSON, events of this module.
        (_, 0) if options.log_format == Some(LogFormat::Json) => "error,hubless=warn,hubless::cli=info",
        (_, 0) => "error,hubless=warn",
        (_, 1) => "warn,hubless=info",
        (_, 2) => "info,hubless=debug",
        _ => "debug,hubless=trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    // At TRACE these show whole frames, the one with the password among them.
    let no_frames = filter_fn(|event| {
        let shows_frames = event.target().starts_with("lapin") || event.target().starts_with("amq_protocol");
        !shows_frames || *event.level() <= Level::DEBUG
    });
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // Else a stderr that nobody reads any more would be a panic.
        .log_internal_errors(false);
    match options.log_format.unwrap_or_default() {
        LogFormat::Text => log.with_ansi(terminal::colours()).finish().with(no_frames).init(),
        LogFormat::Json => log.json().flatten_event(true).finish().with(no_frames).init(),
    }
}
