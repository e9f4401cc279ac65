//! The media type of a file: by its name, else by its first bytes.

use serde::de::IgnoredAny;

/// As many first bytes as decide.
pub(super) const SNIFFED: u64 = 512;

const TEXT: &str = "text/plain; charset=utf-8";
const UNKNOWN: &str = "application/octet-stream";

/// What files begin with that people open from a browser and that often have no ending: `offset`, bytes, type.
const MAGIC: &[(usize, &[u8], &str)] = &[
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (8, b"AVI ", "video/avi"),
    (8, b"WAVE", "audio/wave"),
    (4, b"ftyp", "video/mp4"),
    (0, b"\x1a\x45\xdf\xa3", "video/webm"),
    (0, b"OggS\0", "application/ogg"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"fLaC", "audio/flac"),
    (0, b"%PDF-", "application/pdf"),
    (0, b"PK\x03\x04", "application/zip"),
    (0, b"\x1f\x8b\x08", "application/gzip"),
    (0, b"wOFF", "font/woff"),
    (0, b"wOF2", "font/woff2"),
    (0, b"\0asm", "application/wasm"),
];

/// What text begins with, behind white space and in either case.
const MARKUP: &[(&[u8], &str)] = &[
    (b"<!doctype html", "text/html; charset=utf-8"),
    (b"<html", "text/html; charset=utf-8"),
    (b"<head", "text/html; charset=utf-8"),
    (b"<body", "text/html; charset=utf-8"),
    (b"<svg", "image/svg+xml"),
];

/// The type that the ending of a name stands for.
pub(super) fn by_name(name: &str) -> Option<String> {
    let guessed = mime_guess::from_path(name).first_raw()?;
    // All text of our days is in this encoding; without it browsers take an older one.
    let is_text = guessed.starts_with("text/");
    Some(if is_text { format!("{guessed}; charset=utf-8") } else { guessed.to_owned() })
}

/// The type by the first bytes of a file, [`SNIFFED`] of them or all.
pub(super) fn by_bytes(first: &[u8]) -> &'static str {
    let magic = |(at, magic, _): &&(usize, &[u8], _)| {
        first.get(*at..).is_some_and(|from| from.starts_with(magic))
    };
    if let Some((_, _, kind)) = MAGIC.iter().find(magic) {
        return kind;
    }
    if !is_text(first) {
        return UNKNOWN;
    }
    let from = first.trim_ascii_start();
    let markup = |(tag, _): &&(&[u8], _)| {
        from.get(..tag.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(tag))
    };
    if let Some((_, kind)) = MARKUP.iter().find(markup) {
        return kind;
    }
    if is_json(from) {
        return "application/json";
    }
    // The root of a drawing may come behind a declaration and remarks.
    let is_xml = from.starts_with(b"<?xml");
    match is_xml && from.windows(4).any(|four| four == b"<svg") {
        true => "image/svg+xml",
        false if is_xml => "text/xml; charset=utf-8",
        false => TEXT,
    }
}

/// Whether the bytes are an object or an array of JSON, or the beginning of one that is longer.
fn is_json(text: &[u8]) -> bool {
    matches!(text.first(), Some(b'{' | b'['))
        && match serde_json::from_slice::<IgnoredAny>(text) {
            Ok(IgnoredAny) => true,
            Err(error) => error.is_eof(),
        }
}

/// Whether the bytes are UTF-8, cut off anywhere, without control characters that no text has.
fn is_text(bytes: &[u8]) -> bool {
    let is_control = |byte: &u8| matches!(byte, 0..=8 | 11 | 14..=26 | 28..=31);
    let is_cut = |error: std::str::Utf8Error| error.error_len().is_none();
    !bytes.iter().any(is_control) && std::str::from_utf8(bytes).map_or_else(is_cut, |_| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ending_decides_whatever_its_case() {
        assert_eq!(by_name("a.HTML").as_deref(), Some("text/html; charset=utf-8"));
        assert_eq!(by_name("a.tar.png").as_deref(), Some("image/png"));
        assert_eq!(by_name("drawing.svg").as_deref(), Some("image/svg+xml"));
        assert_eq!((by_name("README"), by_name(""), by_name("a.nobody-knows")), (None, None, None));
    }

    #[test]
    fn the_first_bytes_decide_where_no_name_does() {
        for (bytes, kind) in [
            (&b""[..], TEXT),
            (b"hello world\n", TEXT),
            ("z\u{105}".as_bytes(), TEXT),
            (&"z\u{105}".as_bytes()[..2], TEXT),
            (b"a\xffb", UNKNOWN),
            (b"\0\x01\x02", UNKNOWN),
            (b"  \n<!DOCTYPE HTML><p>", "text/html; charset=utf-8"),
            (b"<?xml version=\"1.0\"?><!-- x --><svg xmlns=\"\">", "image/svg+xml"),
            (b"<?xml version=\"1.0\"?><feed>", "text/xml; charset=utf-8"),
            (b" {\"a\": [1, null]}\n", "application/json"),
            (b"[\"cut in the mid", "application/json"),
            (b"{ braces } of a text", TEXT),
            (b"[1] a footnote", TEXT),
            (b"\x89PNG\r\n\x1a\n\0\0", "image/png"),
            (b"\0\0\0\x20ftypisom", "video/mp4"),
            (b"%PDF-1.7", "application/pdf"),
        ] {
            assert_eq!(by_bytes(bytes), kind, "{bytes:?}");
        }
    }
}
