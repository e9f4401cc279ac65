//! Parts of the kernel's requests in terms of the tree.

use std::{
    ffi::OsStr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{INodeNo, Request, TimeOrNow};

use super::upload::{Caller, Place};

pub(super) fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid() }
}

pub(super) fn place(parent: INodeNo, name: &OsStr) -> Place<'_> {
    Place { parent: parent.0, name }
}

pub(super) fn time(time: TimeOrNow) -> SystemTime {
    match time {
        TimeOrNow::SpecificTime(time) => as_sent(time),
        TimeOrNow::Now => SystemTime::now(),
    }
}

/// The time that the kernel sent. Of one before the epoch the FUSE library takes the nanoseconds away from the seconds,
/// to which the kernel adds them.
fn as_sent(time: SystemTime) -> SystemTime {
    match UNIX_EPOCH.duration_since(time) {
        Ok(before) if before.subsec_nanos() > 0 => {
            let nanos = Duration::from_nanos(u64::from(before.subsec_nanos()));
            // Later than `time`, so that it can be told.
            time + nanos + nanos
        }
        _ => time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_the_epoch_are_taken_as_they_were_sent() {
        // As the library makes it of (-315619200, 500000000): half a second before the second instead of after it.
        let made = UNIX_EPOCH - Duration::new(315_619_200, 500_000_000);
        assert_eq!(as_sent(made), UNIX_EPOCH - Duration::new(315_619_199, 500_000_000));
        let made = UNIX_EPOCH - Duration::new(1, 999_999_999);
        assert_eq!(as_sent(made), UNIX_EPOCH - Duration::from_nanos(1));
        for exact in [UNIX_EPOCH - Duration::from_secs(5), UNIX_EPOCH + Duration::new(5, 7)] {
            assert_eq!(as_sent(exact), exact);
        }
    }
}
