//! What a node counts, as Prometheus sees it.
//!
//! One registry for each node, so that two nodes in one process do not mix. The core counts in a plain struct of its own;
//! the node copies that here.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Why something was dropped or a connection was cut.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Reason {
    /// A word for it.
    pub reason: &'static str,
}

macro_rules! metrics {
    ($($(#[doc = $help:literal])* $name:ident: $type:ty;)*) => {
        /// All that a node counts. Cheap to clone; every field may be counted from any thread.
        #[derive(Clone)]
        pub struct Metrics {
            registry: Arc<Registry>,
            $($(#[doc = $help])* pub $name: $type,)*
        }

        impl Metrics {
            /// Zeros.
            pub fn new() -> Metrics {
                let mut registry = Registry::with_prefix("hubless");
                $(
                    let $name = <$type>::default();
                    registry.register(stringify!($name), [$($help),*].concat().trim().trim_end_matches('.').to_string(), $name.clone());
                )*
                Metrics { registry: Arc::new(registry), $($name,)* }
            }
        }
    };
}

metrics! {
    /// Messages that this node published.
    published: Counter;
    /// Messages of peers that this node delivered or kept.
    received: Counter;
    /// Bytes of batches that came from peers.
    received_bytes: Counter;
    /// Bytes handed to the publisher.
    sent_bytes: Counter;
    /// Frames and messages from peers that broke the rules, by reason; each was dropped.
    malformed: Family<Reason, Counter>;
    /// Batches that came again and were dropped.
    duplicates: Counter;
    /// Batches that contradict what was seen, or are no part of the stream that they claim.
    conflicts: Counter;
    /// Batches refused: from the far future, from a forgotten past, of too many runs.
    refused: Counter;
    /// Gaps in peers' streams, by what became of them.
    gaps: Family<Reason, Counter>;
    /// Messages missing for good.
    missing: Counter;
    /// Messages that retention let go.
    expired: Counter;
    /// Repairs asked for.
    repairs_requested: Counter;
    /// Repairs given.
    repairs_served: Counter;
    /// Bytes of batches that repairs brought.
    repaired_bytes: Counter;
    /// Connections that the gate refused or cut, by reason.
    cut: Family<Reason, Counter>;
    /// Bytes dropped with the connections of peers that were too slow.
    dropped_bytes: Counter;
    /// Messages that targets of bridges confirmed.
    bridge_sent: Counter;
    /// Messages that targets of bridges will not take, which were passed over.
    bridge_refused: Counter;
    /// Messages that came over bridges and were kept.
    bridge_received: Counter;
    /// Readers of this node: programs, pages, bridges.
    readers: Gauge;
    /// Peers that are up both ways.
    peers_up: Gauge;
    /// Peers known, in whatever state.
    peers_known: Gauge;
    /// Batches in the window.
    window_batches: Gauge;
    /// Bytes in the window.
    window_bytes: Gauge;
    /// Dials that failed, by reason.
    dials_failed: Family<Reason, Counter>;
    /// Connections open on the page and the API.
    web_sockets: Gauge;
    /// Requests to the page and the API that were refused, by reason.
    web_refused: Family<Reason, Counter>;
    /// 1 while the history takes what is said; 0 while it is full or fails, or if there is none.
    history_working: Gauge;
    /// Named cursors in the log.
    durables: Gauge;
    /// Times the publisher was made anew because the node did not hear itself.
    publisher_restarts: Counter;
}

impl Metrics {
    /// The text that Prometheus scrapes.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    /// Sets a counter that somebody else counts to `total`.
    pub fn mirror(counter: &Counter<u64, AtomicU64>, total: u64) {
        counter.inc_by(total.saturating_sub(counter.get()));
    }
}

/// One more in `family` for `reason`.
pub fn count(family: &Family<Reason, Counter>, reason: &'static str) {
    family.get_or_create(&Reason { reason }).inc();
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}
