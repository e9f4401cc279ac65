//! What is known of one source: how fast it is, how far away, how reliable, and what it owes us.

use std::time::Duration;

use crate::{content::MAX_BLOCK_LEN, sources::SourceKind};

/// Bytes of a block where its length is not known: the chunk of nearly everything that is published.
pub(super) const TYPICAL_BLOCK: u64 = 256 << 10;
/// Queue that a source is given beyond its round trip, so that it never runs dry between two of our messages.
const QUEUE_TARGET: Duration = Duration::from_millis(400);
/// Blocks in flight that a foreign Bitswap peer makes use of: it sends 1 MiB per round trip whatever is asked.
const BITSWAP_BLOCKS: u64 = 16;
/// Bytes in flight that keep a chiral peer busy at 50 ms and 1 Gbit/s with room to grow.
const CHIRAL_BYTES: u64 = 64 << 20;
/// Bytes in flight that a gateway makes use of: some windows of several MiB at a time, each one request.
const GATEWAY_BYTES: u64 = 32 << 20;
/// Bytes in flight that a swarm makes use of: the window that librqbit fetches ahead of a reader.
const SWARM_BYTES: u64 = 32 << 20;
/// Shortest time that gives a rate: blocks arrive in bursts, and a burst alone says nothing.
const RATE_SAMPLE: f64 = 0.05;
/// Weight of a new rate.
const RATE_WEIGHT: f64 = 0.25;
/// Weight of a new latency.
const LATENCY_WEIGHT: f64 = 0.2;
/// Weight of the last outcome in the share of successes.
const SUCCESS_WEIGHT: f64 = 0.1;
/// Bytes per second and seconds that an unknown source is credited with where none is known.
const UNKNOWN: Typical = Typical { rate: 4e6, latency: 0.1 };

/// Rate (bytes per second) and latency (seconds) that stand in for those of an unknown source.
#[derive(Clone, Copy, Debug)]
pub(super) struct Typical {
    pub(super) rate: f64,
    pub(super) latency: f64,
}

impl Typical {
    /// The medians of the sources that are known.
    pub(super) fn of<'a>(sources: impl Iterator<Item = &'a SourceStats>) -> Self {
        let (mut rates, mut latencies): (Vec<f64>, Vec<f64>) =
            sources.filter_map(|s| Some((s.rate?, s.latency?))).unzip();
        Self {
            rate: median(&mut rates).unwrap_or(UNKNOWN.rate),
            latency: median(&mut latencies).unwrap_or(UNKNOWN.latency),
        }
    }
}

/// The whole part of a figure.
#[allow(
    clippy::cast_possible_truncation,
    reason = "`as` saturates, and no fraction of a byte matters"
)]
pub(super) fn whole(figure: f64) -> u64 {
    figure as u64
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// What is remembered of a source from one run to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Reputation {
    /// Bytes per second.
    pub(super) rate: Option<f64>,
    /// Seconds from a request to its first byte.
    pub(super) latency: Option<f64>,
    /// Share of requests that were answered with the block, 0 to 1.
    pub(super) success: f64,
}

/// The figures of one source.
#[derive(Clone, Debug)]
pub(super) struct SourceStats {
    kind: SourceKind,
    rate: Option<f64>,
    latency: Option<f64>,
    success: f64,
    /// Bytes that may be in flight while the source still grows; doubled per round trip as TCP does.
    window: u64,
    in_flight: u64,
    /// Since when and how many bytes the running rate sample counts.
    sample: Option<(Duration, u64)>,
}

impl SourceStats {
    pub(super) fn new(kind: SourceKind, first_blocks: usize, known: Option<Reputation>) -> Self {
        let known = known.unwrap_or(Reputation { success: 1.0, ..Reputation::default() });
        Self {
            kind,
            // What was measured in another run is a hint, the window still starts small.
            rate: known.rate,
            latency: known.latency,
            success: known.success.clamp(0.0, 1.0),
            window: (first_blocks.max(1) as u64).saturating_mul(TYPICAL_BLOCK),
            in_flight: 0,
            sample: None,
        }
    }

    /// It is known better now what sort of source it is.
    pub(super) fn set_kind(&mut self, kind: SourceKind) {
        self.kind = kind;
    }

    /// Whether it is a chiral node.
    pub(super) fn is_chiral(&self) -> bool {
        self.kind == SourceKind::Chiral
    }

    /// Whether blocks that follow each other cost it one request.
    pub(super) fn gives_runs(&self) -> bool {
        matches!(self.kind, SourceKind::Gateway | SourceKind::Swarm)
    }

    /// What is worth keeping; none of a source that never gave a block.
    pub(super) fn reputation(&self) -> Reputation {
        Reputation { rate: self.rate, latency: self.latency, success: self.success }
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Seconds until a block of `len` bytes that is asked for now is expected to be here.
    /// A source that often fails looks slower by the tries that it will take.
    pub(super) fn completion(&self, len: u64, typical: Typical) -> f64 {
        let rate = self.rate.unwrap_or(typical.rate).max(1.0);
        let latency = self.latency.unwrap_or(typical.latency);
        (latency + (self.in_flight + len) as f64 / rate) / self.success.max(0.1)
    }

    /// Bytes that may be in flight: rate × (latency + queue), between two blocks and what the kind can use.
    pub(super) fn cap(&self) -> u64 {
        let most = match self.kind {
            SourceKind::Chiral => CHIRAL_BYTES,
            SourceKind::Bitswap => BITSWAP_BLOCKS * TYPICAL_BLOCK,
            SourceKind::Gateway => GATEWAY_BYTES,
            SourceKind::Swarm => SWARM_BYTES,
        };
        let product = match (self.rate, self.latency) {
            (Some(rate), Some(latency)) => whole(rate * (latency + QUEUE_TARGET.as_secs_f64())),
            _ => most,
        };
        product.min(self.window).clamp(2 * TYPICAL_BLOCK, most)
    }

    /// Counts a request.
    pub(super) fn sent(&mut self, len: u64) {
        self.in_flight += len;
    }

    /// Takes back a request that was cancelled or answered without the block.
    pub(super) fn lost(&mut self, len: u64) {
        self.in_flight = self.in_flight.saturating_sub(len);
        if self.in_flight == 0 {
            self.sample = None;
        }
    }

    /// Counts a block of `len` bytes that was asked for at `sent`, when `ahead` bytes were in flight before it.
    pub(super) fn delivered(&mut self, now: Duration, sent: Duration, ahead: u64, len: u64) {
        let age = now.saturating_sub(sent).as_secs_f64().max(1e-6);
        self.measure(now, age, len);
        let rate = self.rate.unwrap_or(UNKNOWN.rate).max(1.0);
        let latency = (age - (ahead + len) as f64 / rate).max(0.0);
        self.latency = Some(match self.latency {
            // Only the first block of an idle source shows the latency free of the queue before it.
            Some(old) if ahead == 0 || latency < old => old + LATENCY_WEIGHT * (latency - old),
            Some(old) => old,
            None => age.min(latency.max(1e-4)),
        });
        self.in_flight = self.in_flight.saturating_sub(len);
        self.window = self.window.saturating_add(len).min(2 * CHIRAL_BYTES);
        self.success += SUCCESS_WEIGHT * (1.0 - self.success);
        if self.in_flight == 0 {
            self.sample = None;
        }
    }

    fn measure(&mut self, now: Duration, age: f64, len: u64) {
        let alone = len as f64 / age;
        let Some((since, bytes)) = self.sample else {
            // The first block after a pause carries the latency in its age: a lower bound of the rate, no sample.
            self.rate = Some(self.rate.map_or(alone, |rate| rate.max(alone)));
            self.sample = Some((now, 0));
            return;
        };
        let bytes = bytes + len;
        let time = now.saturating_sub(since).as_secs_f64();
        if time < RATE_SAMPLE {
            self.sample = Some((since, bytes));
            return;
        }
        let rate = bytes as f64 / time;
        self.rate = Some(self.rate.map_or(rate, |old| old + RATE_WEIGHT * (rate - old)));
        self.sample = Some((now, 0));
    }

    /// Counts a failed try.
    pub(super) fn failed(&mut self) {
        self.success -= SUCCESS_WEIGHT * self.success;
    }

    /// The source went silent: it is believed half as fast and starts again with two blocks.
    pub(super) fn stalled(&mut self) {
        self.rate = self.rate.map(|rate| rate / 2.0);
        self.window = 2 * TYPICAL_BLOCK;
        self.sample = None;
    }
}

// A block is never larger than what the smallest window holds, so that each source can be asked for any block.
const _: () = assert!(MAX_BLOCK_LEN as u64 <= BITSWAP_BLOCKS * TYPICAL_BLOCK);
