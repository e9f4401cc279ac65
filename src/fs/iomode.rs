//! How an open file is served, given how the same inode is held open already.
//!
//! The kernel allows an inode to be either in page-cache mode or in passthrough mode, never both: while a cached
//! handle (or a mapping that outlived it) is there, a passthrough open ends with EIO, and while a passthrough handle
//! is there, a cached one or one with another backing file does. It lowers its own count before it sends RELEASE, so
//! a count that goes up with the decision and down with RELEASE is never too low.

/// How reads and writes of one open travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Through the page cache of this filesystem.
    Cached,
    /// The kernel reads and writes the backing file itself.
    Passthrough,
    /// Reads and writes come to the daemon, mappings go to the backing file.
    PassthroughDirect,
}

/// What holds an inode now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Handles in [`Mode::Cached`].
    pub(super) cached: u32,
    /// Handles in one of the passthrough modes.
    pub(super) backed: u32,
    /// Version of the backing file that those use; none while there are none.
    pub(super) version: Option<u64>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Content is opened for reading.
    Content {
        /// The version of its backing file, when all of it is here.
        complete: Option<u64>,
    },
    /// An upload is opened for writing.
    Writer {
        /// The version of its working file.
        version: u64,
        /// Whether that file is all there is, no overlay over another one.
        whole: bool,
        /// Whether it may be mapped: it is opened for reading as well.
        maps: bool,
    },
    /// An upload is opened for reading. All its reads come to the daemon, so that they follow the newest version.
    Reader,
}

/// Chooses the mode; every answer is one that the kernel accepts. `passthrough`: the kernel and this process can do it.
///
/// None: the open has to be refused. All handles of an inode share one backing file, and what is mapped is that file;
/// a writer of a newer version would store into an older one, which is sealed and read by its id.
pub(super) fn choose(held: &Held, ask: Ask, passthrough: bool) -> Option<Mode> {
    if held.cached > 0 {
        return Some(Mode::Cached);
    }
    if held.backed > 0 {
        let same = match ask {
            Ask::Content { complete } => complete.is_some() && complete == held.version,
            Ask::Writer { version, whole, maps } => {
                let same = whole && held.version == Some(version);
                if maps && !same {
                    return None;
                }
                same
            }
            Ask::Reader => false,
        };
        return Some(if same { Mode::Passthrough } else { Mode::PassthroughDirect });
    }
    Some(match ask {
        Ask::Content { complete: Some(_) } | Ask::Writer { whole: true, .. } if passthrough => {
            Mode::Passthrough
        }
        Ask::Content { .. } | Ask::Writer { .. } | Ask::Reader => Mode::Cached,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's rule, which open succeeds beside which, and ours: nothing that can be written through a mapping
    /// stands on another version than its own.
    fn is_accepted(held: &Held, ask: Ask, mode: Mode) -> bool {
        let writes_elsewhere = match ask {
            Ask::Writer { maps: false, .. } | Ask::Content { .. } | Ask::Reader => false,
            Ask::Writer { version, whole, maps: true } => {
                held.backed > 0 && !(whole && held.version == Some(version))
            }
        };
        match mode {
            Mode::Cached => held.backed == 0,
            Mode::Passthrough | Mode::PassthroughDirect => held.cached == 0 && !writes_elsewhere,
        }
    }

    fn asks() -> Vec<Ask> {
        let mut all = vec![Ask::Reader, Ask::Content { complete: None }];
        for version in [1, 2] {
            all.push(Ask::Content { complete: Some(version) });
            for maps in [true, false] {
                all.extend([true, false].map(|whole| Ask::Writer { version, whole, maps }));
            }
        }
        all
    }

    fn states() -> Vec<Held> {
        let mut all = Vec::new();
        for held in 1..3 {
            all.push(Held { cached: held, ..Held::default() });
            all.extend([1, 2].map(|version| Held {
                cached: 0,
                backed: held,
                version: Some(version),
            }));
        }
        all.push(Held::default());
        all
    }

    #[test]
    fn no_answer_is_one_that_the_kernel_ends_with_eio_or_that_maps_an_older_version_for_writing() {
        for held in states() {
            for ask in asks() {
                for passthrough in [true, false] {
                    if let Some(mode) = choose(&held, ask, passthrough) {
                        assert!(is_accepted(&held, ask, mode), "{held:?} {ask:?} {mode:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn only_writers_that_map_beside_another_version_are_refused() {
        for held in states() {
            for ask in asks() {
                let elsewhere = matches!(ask, Ask::Writer { version, whole, maps: true }
                    if held.backed > 0 && (!whole || held.version != Some(version)));
                assert_eq!(choose(&held, ask, true).is_none(), elsewhere, "{held:?} {ask:?}");
            }
        }
    }

    #[test]
    fn only_a_whole_file_of_the_held_version_is_passed_through() {
        for held in states() {
            for ask in asks() {
                if choose(&held, ask, true) == Some(Mode::Passthrough) {
                    let version = match ask {
                        Ask::Content { complete } => complete,
                        Ask::Writer { version, whole, .. } => whole.then_some(version),
                        Ask::Reader => None,
                    };
                    assert!(version.is_some(), "{ask:?}");
                    assert!(held.version.is_none() || held.version == version, "{held:?} {ask:?}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_passed_through_from_idle_without_the_capability() {
        for ask in asks() {
            assert_eq!(choose(&Held::default(), ask, false), Some(Mode::Cached));
        }
    }

    #[test]
    fn readers_of_uploads_always_read_through_the_daemon() {
        for held in states() {
            assert_ne!(choose(&held, Ask::Reader, true), Some(Mode::Passthrough));
        }
    }

    #[test]
    fn a_complete_file_and_a_new_upload_are_passed_through_from_idle() {
        let idle = Held::default();
        let content = Ask::Content { complete: Some(7) };
        let writer = Ask::Writer { version: 7, whole: true, maps: true };
        for ask in [content, writer] {
            assert_eq!(choose(&idle, ask, true), Some(Mode::Passthrough));
        }
    }
}
