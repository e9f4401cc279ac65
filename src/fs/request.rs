//! Parts of the kernel's requests in terms of the tree.

use std::{ffi::OsStr, time::SystemTime};

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
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}
