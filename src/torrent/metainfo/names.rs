//! The names by which the files of a torrent are shown: made once, of the whole list, and harmless on every Linux.
//!
//! Nothing is ever written under such a name here. But programs copy the tree that is shown, so a name must not lead
//! elsewhere, and each file must have one. The rules are those of libtorrent, but that a separator leaves a `_`.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

/// Longest name of a file, as everywhere on Linux.
const MAX_NAME: usize = 255;
/// Longest ending that a cut keeps, with its dot.
const MAX_ENDING: usize = 16;
/// Most names above one another; of a longer path the directories in the middle are left out.
const MAX_LEVELS: usize = 64;
/// Bytes that the number of a name may take, with its dot.
const MAX_NUMBER: usize = 12;
/// Characters that turn the direction of a text around and so can hide how a name ends.
const DIRECTIONS: [char; 11] = [
    '\u{200e}', '\u{200f}', '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}', '\u{2066}',
    '\u{2067}', '\u{2068}', '\u{2069}',
];

/// A name; borrowed where it is as the torrent has it.
type Name<'a> = Cow<'a, [u8]>;
/// The names that lead to a file.
type Path<'a> = Vec<Name<'a>>;

/// The path of each file, by what the torrent calls it; none stays none.
///
/// Each path is unique, and none leads through another one's file. A path that is harmless stays as it is, unless an
/// earlier file or a directory has it already. Equal lists give equal paths.
pub(super) fn harmless<'a>(files: &[Option<Vec<&'a [u8]>>]) -> Vec<Option<Path<'a>>> {
    let mut paths: Vec<Option<Path<'a>>> =
        files.iter().map(|path| path.as_ref().map(|path| cleaned(path))).collect();
    let mut taken = Taken::default();
    // Directories keep their names: more than one file would change with each.
    let folders: Vec<Option<u32>> = paths
        .iter()
        .map(|path| path.as_ref().map(|path| taken.folder(&path[..path.len() - 1])))
        .collect();
    // First those that need no other name.
    let mut left = Vec::new();
    for (number, (path, folder)) in paths.iter().zip(&folders).enumerate() {
        let (Some(last), Some(folder)) = (path.as_ref().and_then(|path| path.last()), folder)
        else {
            continue;
        };
        let as_written = matches!(last, Cow::Borrowed(_));
        if !(as_written && taken.claim(*folder, last)) {
            left.push((number, *folder));
        }
    }
    for (number, folder) in left {
        if let Some(last) = paths[number].as_mut().and_then(|path| path.last_mut()) {
            *last = taken.free(folder, std::mem::take(last));
        }
    }
    paths
}

/// One name by itself: that of the whole; none where nothing is left of it.
pub(super) fn harmless_name(name: &[u8]) -> Option<Vec<u8>> {
    component(name).map(|name| cut(name, MAX_NAME).into_owned())
}

/// A path of at least one name, each of which can be one of a file.
fn cleaned<'a>(path: &[&'a [u8]]) -> Path<'a> {
    let mut names: Path<'a> =
        path.iter().filter_map(|name| Some(cut(component(name)?, MAX_NAME))).collect();
    if names.is_empty() {
        names.push(Cow::Owned(b"_".to_vec()));
    }
    if names.len() > MAX_LEVELS {
        names.drain(MAX_LEVELS - 1..names.len() - 1);
    }
    names
}

/// A name without what is none; nothing of `.` and `..`, which name the directory they stand in and the one above.
fn component(name: &[u8]) -> Option<Name<'_>> {
    match name {
        b"." | b".." => return None,
        b"" => return Some(Cow::Owned(b"_".to_vec())),
        _ => {}
    }
    let Ok(text) = std::str::from_utf8(name) else { return bytes(name) };
    let odd = |c: char| c.is_control() || matches!(c, '/' | '\\') || DIRECTIONS.contains(&c);
    if !text.contains(odd) {
        return Some(Cow::Borrowed(name));
    }
    let kept = text.chars().filter(|c| !DIRECTIONS.contains(c));
    let tame: String = kept.map(|c| if odd(c) { '_' } else { c }).collect();
    match tame.as_str() {
        "" => Some(Cow::Owned(b"_".to_vec())),
        // They come from under characters of direction.
        "." | ".." => None,
        _ => Some(Cow::Owned(tame.into_bytes())),
    }
}

/// A name in an unknown encoding: its bytes stay, as they would on a disk.
fn bytes(name: &[u8]) -> Option<Name<'_>> {
    let odd = |byte: &u8| byte.is_ascii_control() || matches!(byte, b'/' | b'\\');
    if !name.iter().any(odd) {
        return Some(Cow::Borrowed(name));
    }
    Some(Cow::Owned(name.iter().map(|byte| if odd(byte) { b'_' } else { *byte }).collect()))
}

/// Splits a name into its stem and its extension.
fn halves(name: &[u8]) -> (&[u8], &[u8]) {
    let dot = name.iter().rposition(|byte| *byte == b'.');
    let dot = dot.filter(|dot| *dot > 0 && name.len() - dot <= MAX_ENDING);
    name.split_at(dot.unwrap_or(name.len()))
}

/// A text cut to so many bytes, not amid a character.
fn shortened(text: &[u8], longest: usize) -> &[u8] {
    let mut end = longest.min(text.len());
    // Bytes that go on with a character.
    while end > 0 && text.get(end).is_some_and(|byte| byte & 0xc0 == 0x80) {
        end -= 1;
    }
    // No encoding has characters that long: it is not UTF-8.
    if longest.min(text.len()) - end > 3 { &text[..longest] } else { &text[..end] }
}

fn cut(name: Name<'_>, longest: usize) -> Name<'_> {
    if name.len() <= longest {
        return name;
    }
    let (stem, ending) = halves(&name);
    Cow::Owned([shortened(stem, longest - ending.len()), ending].concat())
}

/// The names that files and directories have already.
#[derive(Default)]
struct Taken<'a> {
    /// Directories by the number of the one they are in, and their names. The root is 0.
    folders: HashMap<(u32, Name<'a>), u32>,
    files: HashSet<(u32, Name<'a>)>,
    /// The last number that was tried for a name of a directory: so nothing is tried twice, however many there are.
    numbers: HashMap<(u32, Vec<u8>), u32>,
}

impl<'a> Taken<'a> {
    /// The number of a directory, by the names that lead to it.
    fn folder(&mut self, path: &[Name<'a>]) -> u32 {
        path.iter().fold(0, |parent, name| {
            let next = u32::try_from(self.folders.len() + 1).unwrap_or(u32::MAX);
            *self.folders.entry((parent, name.clone())).or_insert(next)
        })
    }

    /// Takes a name for a file; returns whether it was free.
    fn claim(&mut self, folder: u32, name: &Name<'a>) -> bool {
        let key = (folder, name.clone());
        !self.folders.contains_key(&key) && self.files.insert(key)
    }

    /// A free name for a file: its own, else with a number before its ending.
    fn free(&mut self, folder: u32, name: Name<'a>) -> Name<'a> {
        if self.claim(folder, &name) {
            return name;
        }
        let (stem, ending) = halves(&name);
        let stem = shortened(stem, MAX_NAME - MAX_NUMBER - ending.len());
        let key = (folder, [stem, ending].concat());
        let mut number = self.numbers.get(&key).copied().unwrap_or_default();
        loop {
            number += 1;
            let numbered = [stem, format!(".{number}").as_bytes(), ending].concat();
            let numbered = Cow::Owned(numbered);
            if self.claim(folder, &numbered) {
                self.numbers.insert(key, number);
                return numbered;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;

    fn shown(files: &[&[&[u8]]]) -> Vec<String> {
        let files: Vec<_> = files.iter().map(|path| Some(path.to_vec())).collect();
        let joined = |path: Option<Path<'_>>| {
            path.unwrap().join(&b'/').escape_ascii().to_string().replace("\\'", "'")
        };
        harmless(&files).into_iter().map(joined).collect()
    }

    fn one(name: &[u8]) -> String {
        shown(&[&[name]]).remove(0)
    }

    #[test]
    fn harmless_names_stay_as_they_are() {
        for name in
            ["AC-DC.mp3", "a b", "ä", "...", "..a", ".hidden", "CON", "a:b", "x ", "x.", "日本"]
        {
            assert_eq!(one(name.as_bytes()), name.as_bytes().escape_ascii().to_string());
        }
        assert_eq!(shown(&[&[b"A", b"b"], &[b"a", b"B"]]), ["A/b", "a/B"], "case is kept");
        assert_eq!(one(b"\xff\xfe"), "\\xff\\xfe", "so are other encodings");
    }

    #[test]
    fn names_that_lead_elsewhere_are_tamed() {
        for (name, tame) in [
            (&b"AC/DC.mp3"[..], "AC_DC.mp3"),
            (b"a\\b", "a_b"),
            (b"/etc/passwd", "_etc_passwd"),
            (b"../../x", ".._.._x"),
            (b"a\0b\n\x1b[2J\x7f", "a_b__[2J_"),
            ("a\u{9b}m".as_bytes(), "a_m"),
            ("gpj\u{202e}.exe".as_bytes(), "gpj.exe"),
            ("\u{202e}..".as_bytes(), "_"),
            ("\u{200f}".as_bytes(), "_"),
            (b"\xff/\\\n", "\\xff___"),
            (b"", "_"),
            (b".", "_"),
            (b"..", "_"),
        ] {
            assert_eq!(one(name), tame, "{}", name.escape_ascii());
        }
        assert_eq!(
            shown(&[&[b"..", b"..", b"etc", b"passwd"], &[b"a", b".", b"b"]]),
            ["etc/passwd", "a/b"]
        );
        assert_eq!(shown(&[&[], &[b"", b""]]), ["_.1", "_/_"]);
    }

    #[test]
    fn equal_names_get_numbers_and_harmless_ones_come_first() {
        let files: &[&[&[u8]]] =
            &[&[b"a.txt"], &[b"a.txt"], &[b"A.txt"], &[b"a.1.txt"], &[b"a.txt"]];
        assert_eq!(shown(files), ["a.txt", "a.2.txt", "A.txt", "a.1.txt", "a.3.txt"]);
        assert_eq!(shown(&[&[b"a/b"], &[b"a_b"]]), ["a_b.1", "a_b"]);
        // A directory keeps its name, in both orders.
        assert_eq!(shown(&[&[b"a"], &[b"a", b"b"]]), ["a.1", "a/b"]);
        assert_eq!(shown(&[&[b"a", b"b"], &[b"a"]]), ["a/b", "a.1"]);
        assert_eq!(shown(&[&[b".x"], &[b".x"]]), [".x", ".x.1"]);
    }

    #[test]
    fn long_names_keep_their_ending_and_whole_letters() {
        let long = |last: &str| format!("{}{last}.flac", "Л".repeat(140)).into_bytes();
        let (one, two) = (long("1"), long("2"));
        let names = harmless(&[Some(vec![&one[..]]), Some(vec![&two])]);
        let names: Vec<_> = names
            .into_iter()
            .map(|path| String::from_utf8(path.unwrap().concat()).unwrap())
            .collect();
        assert_eq!(names[0], format!("{}.flac", "Л".repeat(125)));
        assert_eq!(names[1], format!("{}.1.flac", "Л".repeat(119)));
        let no_ending = "ä".repeat(200);
        assert_eq!(harmless_name(no_ending.as_bytes()).unwrap().len(), 254);
        assert_eq!(harmless_name(&[0x80; 300]).unwrap().len(), 255);
    }

    #[test]
    fn deep_paths_lose_what_is_in_their_middle() {
        let path: Vec<Vec<u8>> = (0..1000).map(|n| format!("{n}").into_bytes()).collect();
        let path: Vec<&[u8]> = path.iter().map(Vec::as_slice).collect();
        let shown = harmless(&[Some(path)]).remove(0).unwrap();
        assert_eq!((shown.len(), &*shown[62], &*shown[63]), (MAX_LEVELS, &b"62"[..], &b"999"[..]));
    }

    #[test]
    fn many_files_of_one_name_take_no_square_of_time() {
        // With a search from 1 for each, this would take many minutes.
        let long = [b'x'; 300];
        let files: Vec<_> = (0..50_000).map(|n| Some(vec![&long[n % 40..]])).collect();
        let names: HashSet<_> =
            harmless(&files).into_iter().map(|path| path.unwrap().concat()).collect();
        assert_eq!(names.len(), files.len());
    }

    fn names() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            4 => "[ab]{0,2}(\\.[ab1])?".prop_map(String::into_bytes),
            2 => "[a./\\\\\\x00\\n\u{202e}]{0,3}".prop_map(String::into_bytes),
            1 => "[aä]{250,260}(\\.[ab1]{0,4})?".prop_map(String::into_bytes),
            1 => prop::collection::vec(any::<u8>(), 0..4),
        ]
    }

    proptest! {
        #[test]
        fn every_list_has_valid_unique_and_stable_names(
            files in prop::collection::vec(
                prop::option::weighted(0.9, prop::collection::vec(names(), 0..4)), 0..40,
            ),
        ) {
            let list: Vec<Option<Vec<&[u8]>>> = files
                .iter()
                .map(|path| path.as_ref().map(|path| path.iter().map(Vec::as_slice).collect()))
                .collect();
            let paths = harmless(&list);
            prop_assert_eq!(&harmless(&list), &paths);
            let mut folders = HashSet::new();
            let mut unique = HashSet::new();
            for (written, path) in list.iter().zip(&paths) {
                let Some(path) = path else {
                    prop_assert!(written.is_none());
                    continue;
                };
                for name in path {
                    prop_assert!(!name.is_empty() && name.len() <= MAX_NAME);
                    prop_assert!(**name != *b"." && **name != *b"..");
                    prop_assert!(!name.iter().any(|b| matches!(b, b'/' | b'\\' | 0..32 | 127)));
                }
                folders.extend((1..path.len()).map(|end| path[..end].to_vec()));
                prop_assert!(unique.insert(path.clone()));
            }
            prop_assert!(unique.iter().all(|path| !folders.contains(path)));
            // What is harmless, and nobody else's, stays; and so does the list that came of it.
            let again: Vec<Option<Vec<&[u8]>>> = paths
                .iter()
                .map(|path| path.as_ref().map(|path| path.iter().map(|name| &**name).collect()))
                .collect();
            prop_assert_eq!(&harmless(&again), &paths);
        }
    }
}
