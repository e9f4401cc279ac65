//! What a status means for the block that was asked for.

use std::time::{Duration, SystemTime};

use super::client::{Answer, HttpError};
use crate::sources::{Permanent, SourceError, Transient};

/// Longest wait that a server can ask for: the scheduler has its own limit, this one keeps the arithmetic sane.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);

/// What the scheduler makes of an answer that is no success.
pub(super) fn refusal(answer: &Answer) -> SourceError {
    refused(answer.status(), answer.header("retry-after"), SystemTime::now())
}

fn refused(status: u16, retry_after: Option<&str>, now: SystemTime) -> SourceError {
    let rejected = |why: &str| Permanent::Rejected(format!("status {status}{why}")).into();
    match (status, retry_after.and_then(|text| wait(text, now))) {
        // 451: for this content, by law.
        (404 | 410 | 451, _) => Permanent::NotFound.into(),
        (429 | 503, Some(wait)) => Transient::RateLimited(wait).into(),
        (429 | 503, None) => Transient::Busy.into(),
        (408 | 504 | 524, _) => Transient::Timeout.into(),
        (401..=403 | 407, _) => rejected(": it wants somebody else"),
        (500.., _) => Transient::Reset.into(),
        _ => rejected(""),
    }
}

/// What the scheduler makes of no answer.
pub(super) fn failure(error: HttpError) -> SourceError {
    match error {
        HttpError::Timeout => Transient::Timeout.into(),
        HttpError::Broken(_) => Transient::Reset.into(),
        HttpError::Refused(why) => Permanent::Rejected(why).into(),
    }
}

/// `Retry-After`: seconds, or a date.
fn wait(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        // A date that has passed: now.
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(MAX_WAIT))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_status_says_whether_to_try_again_here() {
        let now = SystemTime::now();
        let of = |status| refused(status, None, now);
        for gone in [404, 410, 451] {
            assert_eq!(of(gone), Permanent::NotFound.into(), "{gone}");
        }
        for no in [400, 401, 402, 403, 405, 406, 415] {
            assert!(matches!(of(no), SourceError::Permanent(Permanent::Rejected(_))), "{no}");
        }
        assert_eq!(of(500), Transient::Reset.into());
        assert_eq!(of(502), Transient::Reset.into());
        assert_eq!(of(504), Transient::Timeout.into());
        assert_eq!(of(429), Transient::Busy.into());
        assert_eq!(of(503), Transient::Busy.into());
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Fri, 15 May 2026 15:34:00 GMT").unwrap();
        let of = |text| refused(429, Some(text), now);
        let limited = |seconds| Transient::RateLimited(Duration::from_secs(seconds)).into();
        assert_eq!(of("7"), limited(7));
        assert_eq!(of("Fri, 15 May 2026 15:34:56 GMT"), limited(56));
        assert_eq!(of("Fri, 15 May 2026 15:33:00 GMT"), limited(0));
        assert_eq!(of("99999999999999"), limited(24 * 3600));
        assert_eq!(of("soon"), Transient::Busy.into());
        assert_eq!(of("-1"), Transient::Busy.into());
    }
}
