//! When to try again: backoff of one block at one source, and the budget of a whole download.

use std::time::Duration;

use super::DownloadOptions;

/// Retries that a download may make before it has got anything.
const FIRST_RETRIES: f64 = 32.0;
/// Most retries that can be saved up.
const MOST_RETRIES: f64 = 64.0;
/// Retries that each block that arrives earns: one in five.
const EARNED: f64 = 0.2;

/// Wait before try `attempt` + 1, where `attempt` tries failed: the first backoff, doubled each time, bounded.
pub(super) fn backoff(options: &DownloadOptions, attempt: u32) -> Duration {
    let factor = options.backoff_multiplier.max(1.0).powi(attempt.saturating_sub(1).min(63) as i32);
    let wait = options.initial_backoff.as_secs_f64() * factor;
    Duration::from_secs_f64(wait.min(options.max_backoff.as_secs_f64()))
}

/// Tokens that bound how much a failing download asks in vain. Empty, every retry waits the longest backoff.
#[derive(Clone, Debug)]
pub(super) struct Budget(f64);

impl Budget {
    pub(super) fn new() -> Self {
        Self(FIRST_RETRIES)
    }

    /// A block arrived.
    pub(super) fn earn(&mut self) {
        self.0 = (self.0 + EARNED).min(MOST_RETRIES);
    }

    /// Takes one retry; whether there was one.
    pub(super) fn take(&mut self) -> bool {
        let there = self.0 >= 1.0;
        if there {
            self.0 -= 1.0;
        }
        there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_250_ms_to_8_s() {
        let options = DownloadOptions::default();
        let waits: Vec<u128> = (1..=8).map(|n| backoff(&options, n).as_millis()).collect();
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 8000, 8000]);
    }

    #[test]
    fn a_budget_runs_out_and_is_earned_back_by_blocks() {
        let mut budget = Budget::new();
        while budget.take() {}
        (0..5).for_each(|_| budget.earn());
        assert!(budget.take());
        assert!(!budget.take());
    }
}
