//! Foreign text as a terminal or a log may be given it. Names of files, agents of peers, errors of servers and lines of
//! the log come from the network; as they are they could move the cursor, recolour, retitle or type into a terminal,
//! forge a line of the log, or turn the order of what follows.
//!
//! The sinks apply it: [`crate::output`], [`crate::stderr`], [`crate::log`] and [`crate::progress`]. Text that went
//! through once comes out the same the next time.

use std::{borrow::Cow, ffi::OsStr, fmt::Write, os::unix::ffi::OsStrExt};

/// The text with `\n`, `\u{1b}` and the like in place of what a terminal obeys or hides.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_harmless) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_harmless(c) {
            true => shown.push(c),
            false => shown.extend(c.escape_default()),
        }
    }
    Cow::Owned(shown)
}

/// The same of a name; bytes that are no text become `\xff` and the like.
pub(crate) fn printable_name(name: &OsStr) -> String {
    let mut shown = String::with_capacity(name.len());
    for chunk in name.as_bytes().utf8_chunks() {
        shown.push_str(&printable(chunk.valid()));
        for byte in chunk.invalid() {
            // Writing to a String does not fail.
            let _ = write!(shown, "\\x{byte:02x}");
        }
    }
    shown
}

/// The same of JSON on one line, whose value stays the same: such characters stand only in its strings there.
pub(crate) fn printable_json(json: &str) -> Cow<'_, str> {
    if json.chars().all(is_harmless) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        match is_harmless(c) {
            true => shown.push(c),
            false => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(shown, "\\u{unit:04x}");
                }
            }
        }
    }
    Cow::Owned(shown)
}

/// Returns whether a terminal shows a character as itself and nothing else happens. The joiners U+200C and U+200D count as such:
/// scripts and emoji need them.
fn is_harmless(c: char) -> bool {
    match c {
        ' '..='~' => true,
        // C0 and C1, of which U+009B begins a control sequence as ESC [ does.
        c if c.is_control() => false,
        // Invisible, or a mark, an embedding, an override or an isolate of the direction of text.
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' => false,
        // Separators of lines and paragraphs, and directions again.
        '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => false,
        // A mark of byte order, anchors of annotations, and tags, which hide a text within a text.
        '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}' => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// Every character that a terminal obeys or hides, and some beside them.
    const HOSTILE: [&str; 12] = [
        "\x1b[31m",
        "\x1b]0;title\x07",
        "a\nb",
        "a\r",
        "\t",
        "\x7f",
        "\u{9b}2J",
        "\u{202e}gpj.exe",
        "\u{2066}x\u{2069}",
        "\u{200b}",
        "\u{e0041}",
        "\u{feff}",
    ];

    #[test]
    fn hostile_text_is_escaped_and_stays_so() {
        for text in HOSTILE {
            let shown = printable(text);
            assert!(shown.chars().all(is_harmless) && shown.contains('\\'), "{shown}");
            assert_eq!(printable(&shown), shown);
        }
        assert_eq!(printable("a\n\x1b[0m\u{9b}\u{202e}"), r"a\n\u{1b}[0m\u{9b}\u{202e}");
    }

    #[test]
    fn harmless_text_is_borrowed_as_it_is() {
        for text in
            ["", "a b", "ä ö", "日本語", "👨\u{200d}👩\u{200d}👧", "می\u{200c}خواهم", r"C:\x", "…"]
        {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_told_apart() {
        let name = |bytes| printable_name(OsStr::from_bytes(bytes));
        assert_eq!(name(b"a\xffb\xfe"), r"a\xffb\xfe");
        assert_eq!(name(b"\xc3\xa4\x1b\xc3"), r"ä\u{1b}\xc3");
    }

    #[test]
    fn json_keeps_its_value() {
        for text in HOSTILE {
            let json = serde_json::to_string(&[text]).unwrap();
            let shown = printable_json(&json);
            assert!(shown.chars().all(is_harmless), "{shown}");
            assert_eq!(serde_json::from_str::<[String; 1]>(&shown).unwrap(), [text]);
        }
    }
}
