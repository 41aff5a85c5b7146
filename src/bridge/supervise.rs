//! A bridge as its node sees it: what it is told, how it is kept going, and why it is not.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::session::{Broker, End, Session};
use crate::error::PublishError;
use crate::handle::{BridgeState, BridgeStatus, Draft, Handle};
use crate::metrics::count;
use crate::replica::control::is_site;

/// Pauses between tries to reach a broker, doubling.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));

/// What a bridge is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The broker.
    pub target: Target,
    /// Whether what came in as bare text, where nobody can tell where it has been, goes out over other bridges.
    pub relay: bool,
    /// Tells this mesh from others of its name at one broker; none: a random word that the log keeps.
    pub site: Option<String>,
    /// Whether a bridge that is new to its mesh begins with the oldest message there is, not with the next one.
    pub from_start: bool,
}

impl Options {
    /// What is wrong with the names in it, if anything. A bridge that is started all the same does nothing but say so.
    ///
    /// # Errors
    /// It in words.
    pub fn check(&self) -> Result<(), String> {
        if self.site.as_ref().is_some_and(|site| !is_site(site)) {
            return Err("the word of a site is made of 1 to 64 of A-Z a-z 0-9 . _ -".into());
        }
        match &self.target {
            #[cfg(feature = "amqp")]
            Target::Amqp(exchange) => exchange.check_names(),
            #[cfg(feature = "redis")]
            Target::Redis(_) | Target::Streams(_) => Ok(()),
        }
    }
}

/// A broker, and how it is spoken to.
#[derive(Clone, Debug)]
pub enum Target {
    /// Redis, pub/sub.
    #[cfg(feature = "redis")]
    Redis(super::redis::Channels),
    /// Redis, streams.
    #[cfg(feature = "redis")]
    Streams(super::streams::Streams),
    /// An AMQP 0-9-1 exchange.
    #[cfg(feature = "amqp")]
    Amqp(super::amqp::Exchange),
}

impl Target {
    /// Connects, and answers in words what is there.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn check(&self) -> Result<String, Trouble> {
        match self {
            #[cfg(feature = "redis")]
            Target::Redis(channels) => channels.check().await,
            #[cfg(feature = "redis")]
            Target::Streams(streams) => streams.check().await,
            #[cfg(feature = "amqp")]
            Target::Amqp(exchange) => exchange.check().await,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "redis")]
            Target::Redis(channels) => write!(f, "redis {}", channels.target),
            #[cfg(feature = "redis")]
            Target::Streams(streams) => write!(f, "redis {}", streams.target),
            #[cfg(feature = "amqp")]
            Target::Amqp(exchange) => write!(f, "amqp {}", exchange.target),
        }
    }
}

/// Why a broker does not do what is asked of it, and what to do. Holds no password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}{}", hint.map_or(String::new(), |hint| format!(" ({hint})")))]
pub struct Trouble {
    message: String,
    hint: Option<&'static str>,
    of_message: bool,
}

impl Trouble {
    pub(super) fn new(message: impl Into<String>) -> Trouble {
        Trouble { message: message.into(), hint: None, of_message: false }
    }

    /// It will be the same whenever this message comes again, and is no matter of the others.
    pub(super) fn of_message(self) -> Trouble {
        Trouble { of_message: true, ..self }
    }

    pub(super) fn is_of_this_message(&self) -> bool {
        self.of_message
    }

    pub(super) fn hint(self, hint: Option<&'static str>) -> Trouble {
        Trouble { hint, ..self }
    }
}

/// A bridge that runs. It keeps its node running as any handle does.
///
/// Dropping this ends it without a hand-over; [`Bridge::close`] hands over and waits for that.
#[derive(Debug)]
pub struct Bridge {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Bridge {
    /// Begins to reach for the broker, on the runtime this is called from, and does not end because of what the broker does.
    /// [`Handle::bridges`] says how it is.
    pub fn start(handle: Handle, options: Options) -> Bridge {
        let (stop, stopped) = oneshot::channel();
        let task = match options.target.clone() {
            #[cfg(feature = "redis")]
            Target::Redis(channels) => tokio::spawn(supervise(handle, channels, options, stopped)),
            #[cfg(feature = "redis")]
            Target::Streams(streams) => tokio::spawn(supervise(handle, streams, options, stopped)),
            #[cfg(feature = "amqp")]
            Target::Amqp(exchange) => tokio::spawn(supervise(handle, exchange, options, stopped)),
        };
        Bridge { stop, task }
    }

    /// Waits for what is on its way to the broker, hands over to another node, and ends.
    pub async fn close(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }
}

/// Reaches for the broker again and again.
async fn supervise<B: Broker>(handle: Handle, broker: B, options: Options, mut stopped: oneshot::Receiver<()>) {
    let name: Arc<str> = broker.name().into();
    let mut status = BridgeStatus {
        name: name.clone(),
        state: BridgeState::Connecting,
        sent: 0,
        received: 0,
        behind_s: None,
        trouble: None,
    };
    let mut session = Session::new(handle.clone(), name.clone(), &options);
    let mut told = None;
    let mut pause = BACK_OFF.0;
    loop {
        status.behind_s = None;
        (status.state, status.trouble) =
            (BridgeState::Connecting, told.as_ref().map(|told: &Trouble| told.to_string().into()));
        handle.tell_bridge(status.clone());
        let began = Instant::now();
        let ended = match options.check() {
            Ok(()) => session.run(&broker, &mut status, &mut stopped).await,
            Err(wrong) => Err(Trouble::new(wrong)),
        };
        let trouble = match ended {
            Ok(End::Stopped) => break,
            Ok(end @ (End::Replaced | End::Frozen)) => {
                tracing::info!("bridge {name}: {end:?}: this node stands again");
                (told, pause) = (None, BACK_OFF.0);
                continue;
            }
            Err(trouble) => trouble,
        };
        // The node holds the other end of this for as long as it lives.
        if handle.peers_changed().has_changed().is_err() {
            break;
        }
        // One that breaks off again and again is not to be tried ever faster.
        if began.elapsed() >= BACK_OFF.1 {
            (told, pause) = (None, BACK_OFF.0);
        }
        // What is said once does not become truer.
        if told.as_ref() != Some(&trouble) {
            tracing::info!("bridge {name}: {trouble}; it is tried again and again");
            told = Some(trouble);
        }
        (status.state, status.trouble) = (BridgeState::Connecting, told.as_ref().map(|told| told.to_string().into()));
        handle.tell_bridge(status.clone());
        tokio::select! {
            () = sleep(jittered(pause)) => {}
            _ = &mut stopped => break,
        }
        pause = (pause * 2).min(BACK_OFF.1);
    }
    handle.forget_bridge(&name);
}

/// Between half of `pause` and all of it.
pub(super) fn jittered(pause: Duration) -> Duration {
    let chance = getrandom::u32().map_or(1.0, |random| f64::from(random) / f64::from(u32::MAX));
    pause.mul_f64(0.5 + chance / 2.0)
}

/// Keeps what came from a broker, and answers once it is on disk how many messages were new.
///
/// # Errors
/// [`PublishError`], but never because of what a message is: such are counted and left out.
pub(super) async fn keep(handle: &Handle, drafts: Vec<Draft>) -> Result<u64, PublishError> {
    match handle.publish_all(drafts.clone()).await {
        Err(PublishError::KeyReused) => {}
        done => return done.map(|done| done.iter().filter(|published| !published.known).count() as u64),
    }
    // Somebody gave one id to two texts: the first of them stays.
    let mut new = 0;
    for draft in drafts {
        match handle.publish_with(draft).await {
            Err(PublishError::KeyReused) => {
                tracing::warn!("a message is not kept: its id was that of another text");
                count(&handle.metrics().malformed, "message-id");
            }
            done => new += u64::from(!done?.known),
        }
    }
    Ok(new)
}
