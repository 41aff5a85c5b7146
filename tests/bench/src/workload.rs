//! What is measured, alike for every system: the message, the plan of a run, and what a receiver makes of it.
//!
//! A message says which phase it belongs to and its number, so that loss and doubles are counted and not guessed.

use std::fmt::{self, Display};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// libzmq's topic, so that its prefix filter works as in the field; a part of the payload for all.
pub const TOPIC: &[u8] = b"chat";
const PHASE_AT: usize = TOPIC.len();
const NUMBER_AT: usize = PHASE_AT + 1;
const NUMBER_BYTES: usize = 8;
/// A run counts as over when nothing came for so long.
pub const SILENCE: Duration = Duration::from_secs(5);

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Bytes of a message.
    pub size: usize,
    /// How many publish.
    pub publishers: usize,
    /// How many receive it.
    pub subscribers: usize,
    /// Rooms that take turns (hubless).
    pub rooms: usize,
    /// One message a call, this many calls at once, instead of chunks (hubless); 0: chunks.
    pub in_flight: usize,
    /// Round trips that are begun each millisecond.
    pub trips_per_ms: u64,
    /// With a key of the mesh (hubless).
    pub keyed: bool,
    /// With a log at every node (hubless).
    pub log: bool,
    /// How long to publish before it counts.
    pub warm_ms: u64,
    /// How long it counts.
    pub run_ms: u64,
}

/// How many messages a publisher may be ahead of the slowest that gives credit. Found by trying: at 64 B it matters little from 2,048 on; large messages
/// are fastest while all that is under way fits a processor's cache.
pub fn window(plan: &Plan) -> u64 {
    (512 * 1024 / plan.size as u64).clamp(64, 8 * 1024)
}

/// Where in a run a message belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Until everybody hears; its number is the publisher's.
    Hello = b'h' as isize,
    /// Sent and numbered, but not timed.
    Warm = b'w' as isize,
    /// Timed.
    Measured = b'm' as isize,
    /// Nothing follows from this publisher; its number is how many there were.
    End = b'e' as isize,
}

/// A message that is written again and again, and what of it stays the same.
#[derive(Clone, Debug)]
pub struct Message(Vec<u8>, String);

impl Message {
    pub fn new(size: usize) -> Message {
        let mut bytes = vec![b'x'; size.max(NUMBER_AT + NUMBER_BYTES)];
        bytes[..PHASE_AT].copy_from_slice(TOPIC);
        let rest = "x".repeat(bytes.len() - NUMBER_AT - NUMBER_BYTES);
        Message(bytes, rest)
    }

    /// The bytes for this phase and number: ASCII, so that they are text, too.
    pub fn write(&mut self, phase: Phase, number: u64) -> &[u8] {
        self.0[PHASE_AT] = phase as u8;
        for (place, byte) in self.0[NUMBER_AT..NUMBER_AT + NUMBER_BYTES].iter_mut().enumerate() {
            *byte = (number >> (7 * place)) as u8 & 0x7f;
        }
        &self.0
    }

    /// The same as text, made as a program makes it that writes something new before what it has.
    pub fn text(&mut self, phase: Phase, number: u64) -> String {
        self.write(phase, number);
        let mut text = String::with_capacity(self.0.len());
        text.extend(self.0[..NUMBER_AT + NUMBER_BYTES].iter().map(|byte| char::from(*byte)));
        text + &self.1
    }
}

/// Phase and number of a message; none if it is none.
pub fn read(bytes: &[u8]) -> Option<(Phase, u64)> {
    let phase = match bytes.get(PHASE_AT)? {
        b'h' => Phase::Hello,
        b'w' => Phase::Warm,
        b'm' => Phase::Measured,
        b'e' => Phase::End,
        _ => return None,
    };
    let number = bytes.get(NUMBER_AT..NUMBER_AT + NUMBER_BYTES)?;
    Some((phase, number.iter().rev().fold(0, |number, byte| number << 7 | u64::from(*byte))))
}

/// The publisher's side of a plan: which phase is on, and the next number.
#[derive(Debug)]
pub struct Pace {
    started: Instant,
    warm: Duration,
    all: Duration,
    phase: Phase,
    /// How many messages were taken.
    pub taken: u64,
    /// Of several publishers each has numbers of its own.
    publisher: u64,
    publishers: u64,
}

impl Pace {
    /// Of the publisher of this number among those of the plan.
    pub fn new(plan: &Plan, publisher: u8) -> Pace {
        let warm = Duration::from_millis(plan.warm_ms);
        let all = warm + Duration::from_millis(plan.run_ms);
        let (publisher, publishers) = (u64::from(publisher), plan.publishers as u64);
        Pace { started: Instant::now(), warm, all, phase: Phase::Warm, taken: 0, publisher, publishers }
    }

    /// The phase by the clock; none once the run is over. Ask now and then, not for each message.
    pub fn look(&mut self) -> Option<Phase> {
        let elapsed = self.started.elapsed();
        if elapsed >= self.all {
            return None;
        }
        self.phase = if elapsed < self.warm { Phase::Warm } else { Phase::Measured };
        Some(self.phase)
    }

    /// The number of the next message.
    pub fn take(&mut self) -> u64 {
        self.taken += 1;
        (self.taken - 1) * self.publishers + self.publisher
    }
}

/// The receiver's side: each number once, and the time from the first measured message to the last.
#[derive(Debug, Default)]
pub struct Tally {
    seen: Vec<u64>,
    distinct: u64,
    doubled: u64,
    measured: u64,
    /// Publishers that have not said how many there were, and how many the others had.
    open: usize,
    expected: u64,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Tally {
    pub fn new(plan: &Plan) -> Tally {
        Tally { open: plan.publishers, ..Tally::default() }
    }

    /// Counts a message; answers whether all there is has come.
    pub fn count(&mut self, bytes: &[u8]) -> bool {
        match read(bytes) {
            Some((Phase::End, number)) => (self.open, self.expected) = (self.open - 1, self.expected + number),
            Some((phase @ (Phase::Warm | Phase::Measured), number)) => {
                let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
                if word >= self.seen.len() {
                    self.seen.resize((word + 1) * 2, 0);
                }
                if self.seen[word] & bit != 0 {
                    self.doubled += 1;
                    return false;
                }
                self.seen[word] |= bit;
                self.distinct += 1;
                if phase == Phase::Measured {
                    self.measured += 1;
                    // The clock costs as much as a message.
                    if self.first.is_none() || self.measured.is_multiple_of(64) {
                        let now = Instant::now();
                        self.first.get_or_insert(now);
                        self.last = Some(now);
                    }
                }
            }
            _ => return false,
        }
        let all = self.open == 0 && self.expected == self.distinct;
        if all {
            self.last = Some(Instant::now());
        }
        all
    }

    /// What is told to the one who compares.
    pub fn report(&self) -> Heard {
        let seconds = match (self.first, self.last) {
            (Some(first), Some(last)) => (last - first).as_secs_f64(),
            _ => f64::INFINITY,
        };
        Heard { distinct: self.distinct, doubled: self.doubled, rate: self.measured as f64 / seconds }
    }
}

/// What one receiver heard.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    pub distinct: u64,
    pub doubled: u64,
    /// Messages a second.
    pub rate: f64,
}

impl Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.distinct, self.doubled, self.rate)
    }
}

impl FromStr for Heard {
    type Err = String;
    fn from_str(text: &str) -> Result<Heard, String> {
        let mut words = text.split(' ');
        let mut word = || words.next().ok_or_else(|| format!("`{text}` is no report"));
        let number = |word: &str| word.parse::<u64>().map_err(|error| error.to_string());
        Ok(Heard {
            distinct: number(word()?)?,
            doubled: number(word()?)?,
            rate: word()?.parse().map_err(|error| format!("{error}"))?,
        })
    }
}

impl Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Plan { size, publishers, subscribers, rooms, in_flight, trips_per_ms, keyed, log, warm_ms, run_ms } = self;
        let (keyed, log) = (u8::from(*keyed), u8::from(*log));
        write!(
            f,
            "{size},{publishers},{subscribers},{rooms},{in_flight},{trips_per_ms},{keyed},{log},{warm_ms},{run_ms}"
        )
    }
}

impl FromStr for Plan {
    type Err = String;
    fn from_str(text: &str) -> Result<Plan, String> {
        let numbers: Result<Vec<u64>, _> = text.split(',').map(str::parse).collect();
        match numbers.as_deref() {
            Ok(&[size, publishers, subscribers, rooms, in_flight, trips_per_ms, keyed, log, warm_ms, run_ms]) => {
                Ok(Plan {
                    size: size as usize,
                    publishers: publishers as usize,
                    subscribers: subscribers as usize,
                    rooms: rooms as usize,
                    in_flight: in_flight as usize,
                    trips_per_ms,
                    keyed: keyed == 1,
                    log: log == 1,
                    warm_ms,
                    run_ms,
                })
            }
            _ => Err(format!("`{text}` is no plan")),
        }
    }
}

/// Round trips at a fixed rate: when each was sent, and what came back.
#[derive(Debug)]
pub struct Trips {
    sent: Vec<Option<Instant>>,
    back_us: Vec<f64>,
}

/// How far apart round trips are begun, as many at once as the plan says.
pub const BEGIN: Duration = Duration::from_millis(1);

impl Trips {
    /// Room for all of a plan.
    pub fn new(plan: &Plan) -> Trips {
        Trips { sent: vec![None; Trips::all(plan) as usize], back_us: Vec::new() }
    }

    /// How many a plan asks for, those of its warm phase included.
    pub fn all(plan: &Plan) -> u64 {
        (plan.warm_ms + plan.run_ms) * plan.trips_per_ms
    }

    pub fn sent(&mut self, number: u64) {
        self.sent[number as usize] = Some(Instant::now());
    }

    pub fn back(&mut self, number: u64, at: Instant, plan: &Plan) {
        let sent = self.sent.get_mut(number as usize).and_then(Option::take);
        if let Some(sent) = sent.filter(|_| number >= plan.warm_ms * plan.trips_per_ms) {
            self.back_us.push((at - sent).as_secs_f64() * 1e6);
        }
    }

    /// How many came back, and their p50 and p99 in microseconds.
    pub fn report(mut self) -> String {
        self.back_us.sort_by(f64::total_cmp);
        let at = |part: f64| {
            self.back_us.get(((self.back_us.len() as f64 * part) as usize).min(self.back_us.len().saturating_sub(1)))
        };
        format!("{} {} {}", self.back_us.len(), at(0.5).unwrap_or(&f64::NAN), at(0.99).unwrap_or(&f64::NAN))
    }
}
