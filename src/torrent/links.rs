//! Links in a text file: one a line, or one that a desktop made of a link that was dragged there.

use super::{Magnet, MagnetError};

/// Most links of one text.
const MAX_LINKS: usize = 1000;

/// Why a text with links is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinksError {
    /// A line is no link.
    #[error("line {line} is neither a magnet link nor an info hash: {what}")]
    Line {
        /// Line number, counted from 1.
        line: usize,
        /// The fault in it.
        what: MagnetError,
    },
    /// It has too many.
    #[error("it has more than {MAX_LINKS} links")]
    TooMany,
}

/// The links of a text, each torrent once; none where it is no text of links at all.
///
/// Empty lines and comments (`#`, `;`, `//`) are left out. Of a `.url` or `.desktop` file, which has sections, the `URL`
/// counts.
pub fn links_in(bytes: &[u8]) -> Option<Result<Vec<Magnet>, LinksError>> {
    let text = text_of(bytes)?;
    let mut links: Vec<Magnet> = Vec::new();
    let (mut shortcut, mut unlike) = (false, None);
    for (line, text) in (1..).zip(text.lines().map(str::trim)) {
        if text.is_empty() || ["#", ";", "//"].iter().any(|mark| text.starts_with(mark)) {
            continue;
        }
        if text.starts_with('[') && text.ends_with(']') {
            shortcut = true;
            continue;
        }
        let link = match shortcut {
            true => url_of(text),
            false => Some(text),
        };
        match link.map(link_of) {
            None => {}
            Some(Ok(link)) => match links.iter().position(|known| known.hash == link.hash) {
                Some(at) => links[at].merge(&link),
                None if links.len() == MAX_LINKS => return Some(Err(LinksError::TooMany)),
                None => links.push(link),
            },
            Some(Err(what)) => drop(unlike.get_or_insert(LinksError::Line { line, what })),
        }
    }
    // A text in which nothing looks like a link may be meant to be something else.
    let meant = !links.is_empty()
        || shortcut
        || matches!(&unlike, Some(LinksError::Line { what, .. }) if *what != MagnetError::Scheme);
    match unlike {
        Some(error) => meant.then_some(Err(error)),
        None => {
            meant.then_some(Ok(links)).filter(|links| !matches!(links, Ok(all) if all.is_empty()))
        }
    }
}

/// A text in UTF-8, or in UTF-16 with a mark, as some editors of Windows write it.
fn text_of(bytes: &[u8]) -> Option<String> {
    let units = |bytes: &[u8], unit: fn([u8; 2]) -> u16| -> Vec<u16> {
        bytes.chunks_exact(2).map(|two| unit([two[0], two[1]])).collect()
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => String::from_utf16(&units(rest, u16::from_le_bytes)).ok(),
        [0xfe, 0xff, rest @ ..] => String::from_utf16(&units(rest, u16::from_be_bytes)).ok(),
        // A description begins with a dictionary.
        [b'd', b'0'..=b'9', ..] => None,
        [0xef, 0xbb, 0xbf, rest @ ..] | rest if !rest.contains(&0) => {
            // A shortcut may have a line in an encoding of its own; a link is ASCII.
            Some(String::from_utf8_lossy(rest).into_owned())
        }
        _ => None,
    }
}

/// The value of a line of a shortcut that leads somewhere.
fn url_of(line: &str) -> Option<&str> {
    let (key, value) = line.split_once('=')?;
    // `URL[$e]` is a way of KDE to write it.
    let key = key.split('[').next().unwrap_or(key).trim();
    key.eq_ignore_ascii_case("URL").then_some(value.trim())
}

fn link_of(text: &str) -> Result<Magnet, MagnetError> {
    let text = text.trim_matches(['"', '\'', '<', '>']);
    let digits = text.strip_prefix("urn:btih:").unwrap_or(text);
    match digits.parse() {
        Ok(hash) => Ok(Magnet::of(hash)),
        Err(_) => text.parse(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const ONE: &str = "cab507494d02ebb1178b38f2e9d7be299c86b862";
    const TWO: &str = "dab507494d02ebb1178b38f2e9d7be299c86b862";

    fn hashes(text: &[u8]) -> Vec<String> {
        let links = links_in(text).unwrap().unwrap();
        links.into_iter().map(|link| link.hash.to_string()).collect()
    }

    #[test]
    fn links_stand_in_lines_of_any_kind_of_text() {
        let (one, two) =
            (format!("magnet:?xt=urn:btih:{ONE}&dn=a"), format!("magnet:?xt=urn:btih:{TWO}"));
        let list = format!(
            "# films\r\n\r\n  {one}\r\n; more\r\n// and\r\n{two}\r\n\"{one}&tr=http://t/\"\r\n"
        );
        let utf16 = |text: &str, mark: &[u8], unit: fn(u16) -> [u8; 2]| {
            [mark, &text.encode_utf16().flat_map(unit).collect::<Vec<_>>()].concat()
        };
        for text in [
            list.clone().into_bytes(),
            ["\u{feff}", &list].concat().into_bytes(),
            utf16(&list, &[0xff, 0xfe], u16::to_le_bytes),
            utf16(&list, &[0xfe, 0xff], u16::to_be_bytes),
            format!("{ONE}\n{TWO}").into_bytes(),
            format!("urn:btih:{ONE}\n<{two}>").into_bytes(),
        ] {
            assert_eq!(hashes(&text), [ONE, TWO], "{}", text.escape_ascii());
        }
        assert_eq!(hashes(b"ZK2QOSKNALV3CF4LHDZOTV56FGOINODC\n"), [ONE]);
        let merged = links_in(list.as_bytes()).unwrap().unwrap();
        assert_eq!(
            (merged[0].name.as_deref(), &merged[0].trackers[..]),
            (Some("a"), &["http://t/".to_owned()][..])
        );
    }

    #[test]
    fn shortcuts_of_desktops_lead_where_their_url_does() {
        for text in [
            format!(
                "[InternetShortcut]\r\nURL=magnet:?xt=urn:btih:{ONE}\r\nIconIndex=0\r\nIconFile=\\xe4.ico\r\n"
            ),
            format!(
                "[{{000214A0-0000}}]\r\nProp3=19,2\r\n[InternetShortcut]\r\nIDList=\r\nurl = magnet:?xt=urn:btih:{ONE}\r\n"
            ),
            format!(
                "#!/usr/bin/env xdg-open\n[Desktop Entry]\nType=Link\nName=x\nURL[$e]=magnet:?xt=urn:btih:{ONE}\n"
            ),
        ] {
            assert_eq!(hashes(text.as_bytes()), [ONE], "{text}");
        }
        let page =
            links_in(b"[InternetShortcut]\nURL=https://example.org/\n").unwrap().unwrap_err();
        assert_eq!(page, LinksError::Line { line: 2, what: MagnetError::Scheme });
    }

    #[test]
    fn texts_with_a_wrong_line_are_refused_by_its_number() {
        for (text, line) in [
            (format!("{ONE}\nsee here\n"), 2),
            (format!("see here\n\n{ONE}"), 1),
            ("magnet:?xt=urn:btih:12".to_owned(), 1),
            (format!("{ONE}\n\nmagnet:?dn=x\n"), 3),
        ] {
            let error = links_in(text.as_bytes()).unwrap().unwrap_err();
            assert!(
                matches!(error, LinksError::Line { line: at, .. } if at == line),
                "{text}: {error}"
            );
        }
        let many: String = (0..=MAX_LINKS).map(|n| format!("{n:040x}\n")).collect();
        assert_eq!(links_in(many.as_bytes()), Some(Err(LinksError::TooMany)));
    }

    #[test]
    fn other_files_are_no_texts_of_links() {
        for other in [
            &b""[..],
            b"d4:infod4:name1:aee",
            b"hello\n",
            b"# nothing\n",
            b"a\0b",
            b"\xff\xfe\0\xd8",
            b"\xff",
        ] {
            assert!(links_in(other).is_none(), "{}", other.escape_ascii());
        }
    }
}
