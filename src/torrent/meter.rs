//! How fast a torrent is fetched and given.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// Time over which a rate is the mean.
const OVER: Duration = Duration::from_secs(5);

/// Bytes of one torrent over time. Asked about once a second.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// When, and how many bytes had been received and sent by then.
    samples: VecDeque<(Instant, u64, u64)>,
    /// Sent in earlier sessions: librqbit counts from 0 each time it goes on.
    sent_before: u64,
    sent_now: u64,
}

impl Meter {
    /// Notes the counters; `sent` is that of librqbit.
    pub(super) fn sample(&mut self, now: Instant, received: u64, sent: u64) {
        if sent < self.sent_now {
            self.sent_before += self.sent_now;
        }
        self.sent_now = sent;
        self.samples.push_back((now, received, self.sent()));
        while self.samples.len() > 2
            && self.samples.get(1).is_some_and(|(at, ..)| now.duration_since(*at) >= OVER)
        {
            self.samples.pop_front();
        }
    }

    /// Bytes sent in all.
    pub(super) fn sent(&self) -> u64 {
        self.sent_before + self.sent_now
    }

    /// Bytes per second received and sent.
    pub(super) fn rates(&self) -> (u64, u64) {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else {
            return (0, 0);
        };
        let millis = u64::try_from(last.0.duration_since(first.0).as_millis()).unwrap_or(u64::MAX);
        let rate = |from: u64, to: u64| {
            to.saturating_sub(from).saturating_mul(1000).checked_div(millis).unwrap_or_default()
        };
        (rate(first.1, last.1), rate(first.2, last.2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_last_seconds_and_nothing_sent_is_forgotten() {
        let (mut meter, start) = (Meter::default(), Instant::now());
        assert_eq!(meter.rates(), (0, 0));
        let at = |second: u64| start + Duration::from_secs(second);
        for second in 0..20 {
            meter.sample(at(second), second.min(10) * 1000, second * 10);
        }
        assert_eq!((meter.rates(), meter.sent()), ((0, 10), 190));
        // It was paused and went on.
        meter.sample(at(20), 10_000, 5);
        assert_eq!(meter.sent(), 195);
        meter.sample(at(21), 15_000, 5);
        assert_eq!(meter.rates().0, 1000);
    }
}
