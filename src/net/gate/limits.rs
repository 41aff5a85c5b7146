//! Every limit of the gate, in one place. What happens at each is said beside it and counted in `hubless_cut`.

use std::time::Duration;

/// A TCP connection that is not there by then counts as unreachable.
pub(crate) const DIAL: Duration = Duration::from_secs(1);
/// A handshake that is not through by then is given up.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(3);
/// Callers that named themselves; one more is refused.
pub(crate) const CALLERS_MAX: usize = 512;
/// Callers that wait for their turn, and as many in handshake; one more ends the oldest.
pub(crate) const HANDSHAKES_MAX: usize = 128;
/// Of these, from one address; one more ends the oldest of these.
pub(crate) const HANDSHAKES_PER_ADDRESS_MAX: usize = 32;
/// Handshakes with callers begin so far apart on average; whoever comes sooner waits.
pub(crate) const TURN: Duration = Duration::from_millis(20);
/// But so many may begin at once after a rest.
pub(crate) const TURNS_AT_ONCE: u32 = 64;
/// The largest READY; a larger one ends the handshake. Ours has about 200 bytes.
pub(crate) const READY_BYTES_MAX: usize = 1024;
/// The largest other command; a larger one cuts the connection.
pub(crate) const COMMAND_BYTES_MAX: usize = 4096;
/// The largest frame; a larger one cuts the connection.
pub(crate) const FRAME_BYTES_MAX: usize = crate::wire::FRAME_BYTES_MAX;
/// Memory that a dialled peer's messages hold which its link has not claimed; from there on nothing more is taken of it.
pub(crate) const CLAIMS_BYTES_MAX: usize = 1 << 20;
/// Tasks for callers, those included that only have news left which the node does not take; at that, nobody is accepted.
pub(crate) const TASKS_MAX: usize = 2 * (CALLERS_MAX + HANDSHAKES_MAX);
/// Subscriptions of one caller; one more cuts it.
pub(crate) const SUBSCRIPTIONS_MAX: usize = 64;
/// The longest subscription; a longer one cuts the caller.
pub(crate) const SUBSCRIPTION_BYTES_MAX: usize = 128;
/// A dialled peer that sends nothing (each sends a heartbeat a second), or a caller that takes nothing of what is queued
/// for it, for so long is cut.
pub(crate) const IDLE: Duration = Duration::from_secs(60);
/// Bytes queued for one caller; beyond, it is cut and told so by [`NetEvent::Cut`](crate::net::NetEvent::Cut).
pub(crate) const QUEUE_BYTES_MAX: usize = 32 << 20;
/// Bytes queued for all callers; beyond, a caller with more than its share is cut.
pub(crate) const QUEUES_BYTES_MAX: usize = 256 << 20;
/// Bytes whose tickets are inside the publisher. Publishing waits while there are any, so what comes meanwhile goes into one
/// batch; where nobody waits for that, the oldest are lost beyond so many.
pub(crate) const INSIDE_BYTES_MAX: usize = 64 << 20;
/// Publishing waits for so long at most while nothing comes out; or while there is always something inside, unless that is
/// more than so many bytes.
pub(crate) const INSIDE_STALL: Duration = Duration::from_millis(100);
pub(crate) const INSIDE_BYTES_MUCH: usize = 1 << 20;
/// A caller with more queued than this is behind; while all that take messages are, publishing waits.
pub(crate) const BEHIND_BYTES: usize = 4 << 20;
/// For a caller that takes messages and has more queued than this, publishing waits although others keep up, so that one
/// that has stumbled is not cut: but never longer than this in one go, and for a fifth of the time on the whole.
pub(crate) const LAGS_BYTES: usize = 16 << 20;
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// A caller takes messages if it took bytes within this time.
pub(crate) const TAKES: Duration = Duration::from_secs(1);
/// A caller counts as keeping up once it has been subscribed for so long: who comes and goes must not hide that the
/// others are behind.
pub(crate) const SETTLED: Duration = Duration::from_secs(1);
/// Least and most bytes of one read.
pub(crate) const READ_BYTES: (usize, usize) = (4 << 10, 128 << 10);
/// Least and most pause after `accept` has failed (no descriptors left), doubling.
pub(crate) const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// How long closing waits for queues to empty.
pub(crate) const CLOSE: Duration = Duration::from_secs(1);
/// And then for callers to hang up, which is their answer to a goodbye: a peer that learns first that we no longer hear it
/// would think us ill.
pub(crate) const PARTING: Duration = Duration::from_millis(100);
/// Runs whose dropped bytes are remembered; further ones are only counted in the metrics.
pub(crate) const DROPPED_RUNS_MAX: usize = 1024;
