//! One connection of a bridge to its broker, from the first greeting to the last word.
//!
//! While the node stands it only holds the connection. While it leads, entries that the log's progress does not cover go out
//! in order, confirmed ones are put together and told in the log, and what the broker gives is kept, then acknowledged. At
//! most [`OUT_MAX`] messages are out beyond what another node knows to be confirmed: so many are said twice, at most, when
//! this node dies.

use std::collections::HashMap;
use std::fmt;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE32_NOPAD;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use futures_util::{Stream, StreamExt};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::election::Election;
use super::supervise::{Options, Trouble, keep};
use crate::error::{HistoryError, PublishError};
use crate::handle::{
    BridgeState, BridgeStatus, Cursor, Delivery, Draft, Event, Filter, Gap, GapReason, Handle, Hlc, Message, PeerState,
    Via,
};
use crate::id::{Run, RunHash};
use crate::replica::control::{Control, Role};

/// Messages out beyond the last progress that another node has on disk.
pub const OUT_MAX: usize = 256;
/// What is confirmed is told this often at the latest.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// And once it is so much.
const TELL_FROM: usize = OUT_MAX / 4;
/// Entries that do not go out are told when they are so many.
const TELL_PASSED_FROM: usize = 4_096;
/// A node stands at the earliest so long after its start.
const STANDS_AFTER: Duration = Duration::from_secs(2);
/// And so long after a peer came up: by then it has told what it holds.
const QUIET: Duration = Duration::from_secs(1);
/// Who stands hears by then who leads.
const HEARS_WITHIN: Duration = Duration::from_millis(500);
/// How often a node that stands makes sure of the one that leads.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// So long, nothing goes out while it is open what others have sent: while peers come up, or this node catches up.
const UNSURE_MAX: Duration = Duration::from_secs(30);
/// Whoever did nothing for so long may have been replaced.
const FROZEN: Duration = Duration::from_secs(2);
/// How often it is looked after what is due.
const TICK: Duration = Duration::from_millis(100);
/// How long a node waits for another one to have progress on disk; one without a disk never has.
const REPLICATED_WITHIN: Duration = Duration::from_secs(2);
/// All of the progress is told anew after so long, so that it never expires; the first time soon after a node leads.
const WHOLE_EVERY: Duration = Duration::from_secs(24 * 3600);
const WHOLE_FIRST: Duration = Duration::from_secs(60);
/// How often it is told how far behind a bridge is, and from when on that is worth a word.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const BEHIND_S_MIN: u64 = 5;
/// How long the last messages may take to be confirmed at the end.
const LAST_WITHIN: Duration = Duration::from_secs(1);

/// A broker that can be reached.
pub trait Broker: Send + Sync + 'static {
    /// A connection to it.
    type Line: Line;

    /// The bridge's name: kind, place, and what is spoken of there.
    fn name(&self) -> String;

    /// What carries nothing but a text, so that nobody can tell where a message has been.
    const BARE: bool;

    /// Connects.
    fn connect(&self, handle: &Handle) -> impl Future<Output = Result<Self::Line, Trouble>> + Send;
}

/// A mesh as other meshes see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its name.
    pub mesh: Arc<str>,
    /// The word that tells it from others of that name.
    pub site: Arc<str>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.mesh, self.site)
    }
}

impl Place {
    /// Whether a message that came along `path`, places separated by commas, has been here.
    pub fn is_in(&self, path: &str) -> bool {
        let here = self.to_string();
        path.split(',').any(|place| place == here)
    }
}

/// A connection to a broker.
pub trait Line: Send {
    /// Begins to take what others say there. `place` is this mesh as others see it: what has passed it comes no further.
    fn listen(&mut self, place: Place) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Gives a message to the broker; done once it is confirmed. Messages go out in the order of these calls. Trouble that
    /// is [of this message](Trouble::of_message) ends nothing.
    fn send(&mut self, message: &Message) -> BoxFuture<'static, Result<(), Trouble>>;

    /// The next messages of others; before [`Line::listen`] it only ends when the connection does. Cancellation safe.
    fn receive(&mut self) -> impl Future<Output = Result<Vec<Draft>, Trouble>> + Send;

    /// What was received last is on disk.
    fn kept(&mut self) -> impl Future<Output = Result<(), Trouble>> + Send;

    /// Says goodbye.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// What is the same over all connections of a bridge.
pub struct Session {
    handle: Handle,
    name: Arc<str>,
    relay: bool,
    site: Option<String>,
    from_start: bool,
    /// When this node may stand at the earliest.
    stands_at: Instant,
}

/// What is going on over one connection.
struct Work<'a, L> {
    session: &'a Session,
    bare: bool,
    line: L,
    status: &'a mut BridgeStatus,
    election: Election,
    /// Set once the node stands.
    stood_at: Option<Instant>,
    /// Peers have to be told what this node does.
    untold: bool,
    peer_up_at: Instant,
    catching_up: bool,
    /// Since when others may have led whose progress is not known here.
    unsure_since: Option<Instant>,
    asked_at: Instant,
    out: Option<Out>,
    /// When that was said which was confirmed last, and when it was.
    said_at: Option<(Hlc, Instant)>,
    looked_at: Instant,
    intake: Option<BoxFuture<'static, Result<u64, PublishError>>>,
}

/// What goes out while this node leads.
struct Out {
    said: Pin<Box<dyn Stream<Item = Delivery> + Send>>,
    flights: FuturesOrdered<BoxFuture<'static, (Sent, Result<(), Trouble>)>>,
    /// What others have sent meanwhile.
    elsewhere: Cursor,
    /// Whether that may be more by now.
    waits: bool,
    /// Confirmed or passed over, and not told yet.
    covered: Cursor,
    confirmed: usize,
    passed: usize,
    confirmed_at: Instant,
    /// The last telling, and how many of the confirmed it speaks of.
    telling: Option<(usize, BoxFuture<'static, Result<(), PublishError>>)>,
    hashes: HashMap<Run, RunHash>,
    whole_at: Instant,
}

/// Why a connection ended though the broker did nothing wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// This node stops.
    Stopped,
    /// Another node leads.
    Replaced,
    /// This node stood still, so another one may lead by now.
    Frozen,
}

/// An entry that the broker was given.
type Sent = (RunHash, crate::id::Seq, Hlc);

/// What has happened.
enum Happened {
    Tick,
    Stop,
    Control(Option<Delivery>),
    Event(Result<Event, RecvError>),
    Came(Result<Vec<Draft>, Trouble>),
    Kept(Result<u64, PublishError>),
    Said(Option<Delivery>),
    Sent(Sent, Result<(), Trouble>),
    Told(Result<(), PublishError>),
}

impl Session {
    pub fn new(handle: Handle, name: Arc<str>, options: &Options) -> Session {
        let Options { relay, site, from_start, .. } = options.clone();
        Session { handle, name, relay, site, from_start, stands_at: Instant::now() + STANDS_AFTER }
    }

    /// Connects, and works until the connection has to end.
    pub async fn run<B: Broker>(
        &mut self,
        broker: &B,
        status: &mut BridgeStatus,
        stopped: &mut oneshot::Receiver<()>,
    ) -> Result<End, Trouble> {
        let line = tokio::select! {
            line = broker.connect(&self.handle) => line?,
            _ = &mut *stopped => return Ok(End::Stopped),
        };
        let mut controls = self.handle.controls().await.map_err(|_| node_stopped())?;
        let mut events = self.handle.events();
        (status.state, status.trouble) = (BridgeState::Standing, None);
        self.handle.tell_bridge(status.clone());
        let mut work = Work {
            session: self,
            bare: B::BARE,
            line,
            status,
            election: Election::new(self.handle.info().run),
            stood_at: None,
            untold: false,
            peer_up_at: Instant::now(),
            catching_up: false,
            unsure_since: None,
            asked_at: Instant::now(),
            out: None,
            said_at: None,
            looked_at: Instant::now(),
            intake: None,
        };
        let ended = work.go_on(&mut controls, &mut events, stopped).await;
        work.end(matches!(ended, Ok(End::Stopped | End::Replaced))).await;
        ended
    }

    /// This mesh as others see it; its word is made where there is none.
    async fn place(&self) -> Result<Place, Trouble> {
        let mesh = self.handle.info().mesh.clone();
        if let Some(site) = &self.site {
            return Ok(Place { mesh, site: site.as_str().into() });
        }
        if self.handle.site().await.map_err(|error| unread(&error))?.is_none() {
            let random = getrandom::u64().map_err(|error| Trouble::new(format!("no random numbers: {error}")))?;
            let word = BASE32_NOPAD.encode(&random.to_be_bytes()[..5]).to_ascii_lowercase();
            self.tell(&Control::Site(word.into())).await?;
        }
        let site = self.handle.site().await.map_err(|error| unread(&error))?;
        site.map(|site| Place { mesh, site }).ok_or_else(|| Trouble::new("the log does not remember the site"))
    }

    async fn say(&self, role: Role) -> Result<(), Trouble> {
        self.tell(&Control::Role { bridge: self.name.clone(), role }).await
    }

    async fn tell(&self, control: &Control) -> Result<(), Trouble> {
        self.handle.tell(control).await.map(drop).map_err(|error| unkept(&error))
    }
}

fn node_stopped() -> Trouble {
    Trouble::new("the node has stopped")
}

fn unread(error: &HistoryError) -> Trouble {
    Trouble::new(format!("nothing is read: {error}"))
}

fn unkept(error: &PublishError) -> Trouble {
    Trouble::new(format!("nothing is kept: {error}"))
}

impl<L: Line> Work<'_, L> {
    async fn go_on(
        &mut self,
        controls: &mut crate::handle::Subscription,
        events: &mut broadcast::Receiver<Event>,
        stopped: &mut oneshot::Receiver<()>,
    ) -> Result<End, Trouble> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ran_at = Instant::now();
        loop {
            let happened = tokio::select! {
                biased;
                _ = &mut *stopped => Happened::Stop,
                _ = tick.tick() => Happened::Tick,
                heard = controls.next() => Happened::Control(heard),
                event = events.recv() => Happened::Event(event),
                kept = kept(&mut self.intake) => Happened::Kept(kept),
                came = self.line.receive(), if self.intake.is_none() => Happened::Came(came),
                happened = out(&mut self.out) => happened,
            };
            if ran_at.elapsed() > FROZEN {
                return Ok(End::Frozen);
            }
            ran_at = Instant::now();
            match happened {
                Happened::Stop => return Ok(End::Stopped),
                Happened::Tick => {}
                Happened::Control(Some(Delivery::Message(message))) => self.hear(&message),
                Happened::Control(Some(Delivery::Gap(_))) => self.untold = true,
                Happened::Event(Ok(Event::PeerUp(_))) => {
                    self.peer_up_at = Instant::now();
                    self.untold = true;
                    self.be_unsure();
                }
                Happened::Event(Ok(Event::CatchUp { missing, .. })) => {
                    self.catching_up = missing > 0;
                    self.be_unsure();
                }
                Happened::Event(Ok(_)) => {}
                // Who is still catching up says so again.
                Happened::Event(Err(RecvError::Lagged(_))) => (self.untold, self.catching_up) = (true, false),
                Happened::Came(drafts) => {
                    let (handle, drafts) = (self.session.handle.clone(), drafts?);
                    self.intake = Some(Box::pin(async move { keep(&handle, drafts).await }));
                }
                Happened::Kept(new) => {
                    self.intake = None;
                    let new = new.map_err(|error| unkept(&error))?;
                    self.status.received += new;
                    self.session.handle.metrics().bridge_received.inc_by(new);
                    self.line.kept().await?;
                }
                Happened::Said(Some(delivery)) => self.pass_on(delivery)?,
                Happened::Sent((run, seq, hlc), answer) => {
                    match answer {
                        Ok(()) => {
                            self.status.sent += 1;
                            self.session.handle.metrics().bridge_sent.inc();
                        }
                        // The others are not held back by one that will never be taken.
                        Err(trouble) if trouble.is_of_this_message() => {
                            tracing::warn!("bridge {}: a message is not taken: {trouble}", self.session.name);
                            self.session.handle.metrics().bridge_refused.inc();
                        }
                        Err(trouble) => return Err(trouble),
                    }
                    self.said_at = Some((hlc, Instant::now()));
                    if let Some(out) = &mut self.out {
                        out.confirm(run, seq, hlc);
                    }
                }
                Happened::Told(told) => {
                    if let Some(out) = &mut self.out {
                        out.telling = None;
                    }
                    told.map_err(|error| unkept(&error))?;
                }
                Happened::Control(None) | Happened::Event(Err(RecvError::Closed)) | Happened::Said(None) => {
                    return Err(node_stopped());
                }
            }
            let led = self.out.is_some();
            if self.look_after().await?.is_some() {
                return Ok(End::Replaced);
            }
            if self.out.is_some() != led {
                // A broker may take its time until it gives; nothing has been sent before.
                ran_at = Instant::now();
            }
        }
    }

    /// Another node says what it does, or how far it has come.
    fn hear(&mut self, message: &Message) {
        let id = message.id;
        if id.run == self.session.handle.info().run {
            return;
        }
        match Control::parse(&message.payload) {
            Some(Control::Role { bridge, role }) if bridge == self.session.name => {
                self.untold |= self.election.hear(id.run, id.seq, role);
            }
            Some(Control::Confirmed { bridge, .. } | Control::Begin { bridge, .. }) if bridge == self.session.name => {
                self.be_unsure();
            }
            _ => {}
        }
    }

    /// Nothing more goes out until it is known what others have sent.
    fn be_unsure(&mut self) {
        self.unsure_since.get_or_insert_with(Instant::now);
        if let Some(out) = &mut self.out {
            out.waits = true;
        }
    }

    /// Does what is due: stands, leads, and tells what is confirmed. Answers if another node is to lead in its place.
    async fn look_after(&mut self) -> Result<Option<End>, Trouble> {
        let now = Instant::now();
        let quiet = now >= self.session.stands_at && now >= self.peer_up_at + QUIET && !self.catching_up;
        if self.stood_at.is_none() && quiet {
            self.election.be(Role::Standing);
            self.stood_at = Some(now);
            self.untold = true;
        }
        let sure = quiet || self.unsure_since.is_some_and(|since| now >= since + UNSURE_MAX);
        if quiet {
            self.unsure_since = None;
        }
        if let Some(out) = self.out.as_mut().filter(|out| out.waits && sure) {
            let progress = self.session.handle.progress(&self.session.name).await;
            out.elsewhere = progress.map_err(|error| unread(&error))?.unwrap_or_default();
            out.waits = false;
            self.unsure_since = None;
        }
        let Some(stood_at) = self.stood_at else { return Ok(None) };
        let peers = self.session.handle.peers();
        self.election.keep(|run| peers.iter().any(|peer| peer.run == *run && peer.state != PeerState::Down));
        match (self.out.is_some(), self.election.leads()) {
            (false, true) if now >= stood_at + HEARS_WITHIN && sure => self.lead().await?,
            (true, false) => return Ok(Some(End::Replaced)),
            (false, false) if now >= self.asked_at + ASK_EVERY => {
                self.asked_at = now;
                self.election.ask();
                self.untold = true;
            }
            _ => {}
        }
        if std::mem::take(&mut self.untold) {
            self.session.say(self.election.role()).await?;
        }
        if let Some(out) = &mut self.out {
            out.tell_if_due(self.session, now);
        }
        if now >= self.looked_at + LOOK_EVERY {
            self.looked_at = now;
            self.status.behind_s = self.said_at.and_then(|(said, at)| behind_s(said, now - at));
        }
        self.session.handle.tell_bridge(self.status.clone());
        Ok(None)
    }

    async fn lead(&mut self) -> Result<(), Trouble> {
        let Session { handle, name, from_start, .. } = self.session;
        self.election.be(Role::Leading);
        self.session.say(Role::Leading).await?;
        let unread = |error: HistoryError| unread(&error);
        let mut progress = handle.progress(name).await.map_err(unread)?;
        if progress.is_none() {
            let covered = if *from_start { Cursor::new() } else { handle.everything().await.map_err(unread)? };
            self.session.tell(&Control::Begin { bridge: name.clone(), covered }).await?;
            progress = handle.progress(name).await.map_err(unread)?;
        }
        let covered = progress.ok_or_else(|| Trouble::new("the log remembers no further bridge"))?;
        let said = handle.resume(Filter::Everything, covered).await;
        let said = said.map_err(|_| node_stopped())?;
        self.line.listen(self.session.place().await?).await?;
        let now = Instant::now();
        self.out = Some(Out {
            said: Box::pin(said),
            flights: FuturesOrdered::new(),
            elsewhere: Cursor::new(),
            waits: false,
            covered: Cursor::new(),
            confirmed: 0,
            passed: 0,
            confirmed_at: now,
            telling: None,
            hashes: HashMap::new(),
            whole_at: now + WHOLE_FIRST,
        });
        self.unsure_since = None;
        self.status.state = BridgeState::Active;
        tracing::info!("bridge {name}: this node leads");
        Ok(())
    }

    /// Gives an entry to the broker, if it is meant for it.
    fn pass_on(&mut self, delivery: Delivery) -> Result<(), Trouble> {
        let Some(out) = &mut self.out else { return Ok(()) };
        let message = match delivery {
            Delivery::Message(message) => message,
            // They are in the log, which is read again from where the bridge is.
            Delivery::Gap(Gap { missing, reason: GapReason::Slow }) => {
                return Err(Trouble::new(format!("{missing} messages could not be read")));
            }
            Delivery::Gap(Gap { missing, reason }) => {
                tracing::warn!("bridge {}: {missing} messages are missing ({reason:?})", self.session.name);
                return Ok(());
            }
        };
        let run = *out.hashes.entry(message.id.run).or_insert_with(|| message.id.run.hash());
        let sent = (run, message.id.seq, message.hlc);
        if !goes_out(&message, self.bare, self.session.relay) {
            out.covered.add(run, message.id.seq, message.id.seq, message.hlc);
            out.passed += usize::from(!message.room.is_control());
            return Ok(());
        }
        if out.elsewhere.covers(run, message.id.seq, message.hlc) {
            return Ok(());
        }
        let confirmed = self.line.send(&message);
        out.flights.push_back(Box::pin(async move { (sent, confirmed.await) }));
        Ok(())
    }

    /// Lets go of the connection. If all is well what is on its way is waited for; else nothing more may happen over it.
    async fn end(self, well: bool) {
        let Work { session, line, mut out, intake, .. } = self;
        let mut line = Some(line).filter(|_| well);
        if let Some(line) = &mut line {
            let last = async {
                while let Some(out) = &mut out
                    && let Some(((run, seq, hlc), Ok(()))) = out.flights.next().await
                {
                    out.confirm(run, seq, hlc);
                }
                if let Some(intake) = intake
                    && intake.await.is_ok()
                {
                    let _ = line.kept().await;
                }
            };
            let _ = timeout(LAST_WITHIN, last).await;
        }
        // What was confirmed is told, whatever has become of the connection.
        if let Some(out) = out.filter(|out| out.confirmed > 0) {
            let covered = Control::Confirmed { bridge: session.name.clone(), covered: out.covered };
            let _ = session.tell(&covered).await;
        }
        let _ = session.say(Role::Gone).await;
        if let Some(line) = line {
            line.close().await;
        }
    }
}

impl Out {
    fn confirm(&mut self, run: RunHash, seq: crate::id::Seq, hlc: Hlc) {
        if self.confirmed == 0 {
            self.confirmed_at = Instant::now();
        }
        self.covered.add(run, seq, seq, hlc);
        self.confirmed += 1;
    }

    /// Messages out beyond what is known elsewhere.
    fn beyond(&self) -> usize {
        self.flights.len() + self.confirmed + self.telling.as_ref().map_or(0, |(confirmed, _)| *confirmed)
    }

    fn tell_if_due(&mut self, session: &Session, now: Instant) {
        let much = self.confirmed >= TELL_FROM || self.passed >= TELL_PASSED_FROM;
        let late = self.confirmed > 0 && now >= self.confirmed_at + TELL_EVERY;
        let whole = now >= self.whole_at;
        if self.telling.is_some() || !(much || late || whole) {
            return;
        }
        let (covered, confirmed) = (std::mem::take(&mut self.covered), std::mem::take(&mut self.confirmed));
        self.passed = 0;
        if whole {
            self.whole_at = now + WHOLE_EVERY;
        }
        let (handle, bridge) = (session.handle.clone(), session.name.clone());
        let telling = async move {
            let told = handle.tell(&Control::Confirmed { bridge: bridge.clone(), covered }).await?;
            if handle.peers().iter().any(|peer| peer.state == PeerState::Up) {
                let _ = timeout(REPLICATED_WITHIN, handle.replicated(told.id, 1)).await;
            }
            if let Some(covered) = handle.progress(&bridge).await.ok().flatten().filter(|_| whole) {
                handle.tell(&Control::Confirmed { bridge: bridge.clone(), covered }).await?;
                handle.tell(&Control::Begin { bridge, covered: Cursor::new() }).await?;
            }
            Ok(())
        };
        self.telling = Some((confirmed, Box::pin(telling)));
    }
}

/// How long ago it was said, in seconds, if that is long and it was confirmed just now.
fn behind_s(said: Hlc, since_confirmed: Duration) -> Option<u64> {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let behind = Duration::from_millis(now_ms.saturating_sub(said.wall_ms())).as_secs();
    (since_confirmed < LOOK_EVERY && behind >= BEHIND_S_MIN).then_some(behind)
}

/// Whether an entry is meant for a broker. What came in over a bridge has been outside: it goes no further, but for bare
/// texts where the operator says so, and never from one bare target to another.
fn goes_out(message: &Message, bare: bool, relay: bool) -> bool {
    let text = message.payload.text().is_some() && !message.room.is_control();
    text && match message.via {
        Via::Mesh | Via::Import => true,
        Via::Plain | Via::Redis => relay && !bare,
        Via::Amqp | Via::Stream => false,
    }
}

async fn kept(intake: &mut Option<BoxFuture<'static, Result<u64, PublishError>>>) -> Result<u64, PublishError> {
    match intake {
        Some(intake) => intake.await,
        None => pending().await,
    }
}

/// What happens next on the way out.
async fn out(out: &mut Option<Out>) -> Happened {
    let Some(out) = out else { return pending().await };
    let room = out.beyond() < OUT_MAX && !out.waits;
    let Out { said, flights, telling, .. } = out;
    let told = async {
        match telling {
            Some((_, telling)) => telling.await,
            None => pending().await,
        }
    };
    tokio::select! {
        biased;
        told = told => Happened::Told(told),
        Some((sent, answer)) = flights.next(), if !flights.is_empty() => Happened::Sent(sent, answer),
        said = said.next(), if room => Happened::Said(said),
    }
}
