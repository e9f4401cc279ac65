//! How long callers wait for something that others have to provide: one timeout for all of them together.
//!
//! Pure: the caller passes the time, counted from a moment of its choice.

use std::{collections::HashMap, hash::Hash, time::Duration};

/// A first wait in vain makes further calls fail at once for this long. The search goes on meanwhile, so that a caller
/// that comes back finds what was found; each further wait in vain doubles the time.
const FIRST_HOLD: Duration = Duration::from_secs(30);
/// Longest such time: after it a caller that does not come back gets a real wait again.
const LAST_HOLD: Duration = Duration::from_secs(240);

/// Action of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It waits; the timeout runs since this time.
    Since(Duration),
    /// It fails at once: others have just waited in vain.
    Refused,
}

/// One wait: running until `until`, refused for `hold` from then on.
#[derive(Clone, Copy, Debug)]
struct Wait {
    since: Duration,
    until: Duration,
    hold: Duration,
}

/// The waits for things that are named by `K`.
#[derive(Debug)]
pub struct Waits<K> {
    waits: HashMap<K, Wait>,
}

impl<K> Default for Waits<K> {
    fn default() -> Self {
        Self { waits: HashMap::new() }
    }
}

impl<K: Eq + Hash> Waits<K> {
    /// A call for `key`. The first one begins the wait, the others join it.
    pub fn ask(&mut self, key: K, now: Duration, timeout: Duration) -> Verdict {
        self.ask_since(key, now, now, timeout)
    }

    /// A call whose caller has begun to wait at `since`, for something else of the same kind.
    pub fn ask_since(
        &mut self,
        key: K,
        since: Duration,
        now: Duration,
        timeout: Duration,
    ) -> Verdict {
        let until = since.saturating_add(timeout);
        let wait = self.waits.entry(key).or_insert(Wait { since, until, hold: FIRST_HOLD });
        if now < wait.until {
            return Verdict::Since(wait.since);
        }
        if now < wait.until.saturating_add(wait.hold) {
            return Verdict::Refused;
        }
        let hold = (wait.hold * 2).min(LAST_HOLD);
        *wait = Wait { since: now, until: now.saturating_add(timeout), hold };
        Verdict::Since(now)
    }

    /// The wait for `key` lasts until `limit` at least, because it comes nearer.
    pub fn extend(&mut self, key: &K, limit: Duration) {
        if let Some(wait) = self.waits.get_mut(key) {
            wait.until = wait.until.max(limit);
        }
    }

    /// The wait for `key` ended in vain.
    pub fn failed(&mut self, key: &K, now: Duration) {
        if let Some(wait) = self.waits.get_mut(key) {
            wait.until = now;
        }
    }

    /// `key` was found: a later call for it waits anew.
    pub fn found(&mut self, key: &K) {
        self.waits.remove(key);
    }

    /// Forgets what no caller came back for.
    pub fn prune(&mut self, now: Duration) {
        self.waits.retain(|_, wait| now < wait.until.saturating_add(2 * LAST_HOLD));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn callers_of_one_thing_share_one_timeout() {
        let mut waits = Waits::default();
        for now in [100, 101, 129] {
            assert_eq!(waits.ask("a", at(now), TIMEOUT), Verdict::Since(at(100)));
        }
        assert_eq!(waits.ask("b", at(129), TIMEOUT), Verdict::Since(at(129)));
        for now in [130, 131, 159] {
            assert_eq!(waits.ask("a", at(now), TIMEOUT), Verdict::Refused);
        }
    }

    #[test]
    fn each_wait_in_vain_holds_twice_as_long() {
        let mut waits = Waits::default();
        let mut now = at(0);
        for hold in [30, 60, 120, 240, 240] {
            assert_eq!(waits.ask("a", now, TIMEOUT), Verdict::Since(now));
            let end = now + TIMEOUT;
            waits.failed(&"a", end);
            assert_eq!(waits.ask("a", end + at(hold - 1), TIMEOUT), Verdict::Refused);
            now = end + at(hold);
        }
    }

    #[test]
    fn a_thing_that_is_found_or_forgotten_starts_anew() {
        let mut waits = Waits::default();
        waits.ask("a", at(0), TIMEOUT);
        waits.failed(&"a", at(30));
        waits.found(&"a");
        assert_eq!(waits.ask("a", at(31), TIMEOUT), Verdict::Since(at(31)));
        waits.prune(at(61 + 480));
        assert!(waits.waits.is_empty());
    }

    #[test]
    fn a_wait_that_comes_nearer_is_joined_past_its_timeout() {
        let mut waits = Waits::default();
        waits.ask("a", at(0), TIMEOUT);
        waits.extend(&"a", at(50));
        waits.extend(&"a", at(40));
        assert_eq!(waits.ask("a", at(49), TIMEOUT), Verdict::Since(at(0)));
        assert_eq!(waits.ask("a", at(50), TIMEOUT), Verdict::Refused);
    }

    #[test]
    fn a_call_on_behalf_of_an_older_wait_ends_with_it() {
        let mut waits = Waits::default();
        assert_eq!(waits.ask_since("b", at(10), at(11), TIMEOUT), Verdict::Since(at(10)));
        assert_eq!(waits.ask("b", at(39), TIMEOUT), Verdict::Since(at(10)));
        assert_eq!(waits.ask("b", at(40), TIMEOUT), Verdict::Refused);
        // It is known already: its own timeout stays.
        assert_eq!(waits.ask_since("b", at(39), at(41), TIMEOUT), Verdict::Refused);
    }

    #[test]
    fn a_timeout_without_end_overflows_nothing() {
        let mut waits = Waits::default();
        assert_eq!(waits.ask("a", at(5), Duration::MAX), Verdict::Since(at(5)));
        assert_eq!(waits.ask("a", at(u64::MAX), Duration::MAX), Verdict::Since(at(5)));
        waits.prune(at(u64::MAX));
    }
}
