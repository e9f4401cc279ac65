//! Headers that several answers share.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use super::target::escaped;
use crate::content::ContentId;

/// What is below an id never changes.
pub(super) const IMMUTABLE: &str = "public, max-age=29030400, immutable";

/// The looks of a listing change with releases.
pub(super) const LISTING: &str = "public, max-age=604800, stale-while-revalidate=2678400";

/// Which requests of other origins are allowed, and what their scripts may see: everything that is served is public.
const CORS: [(HeaderName, &str); 4] = [
    (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
    (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, OPTIONS"),
    (header::ACCESS_CONTROL_ALLOW_HEADERS, "Content-Type, Range, User-Agent, X-Requested-With"),
    (
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
        "Content-Length, Content-Range, X-Chunked-Output, X-Ipfs-Path, X-Ipfs-Roots, X-Stream-Output",
    ),
];

const PATH: HeaderName = HeaderName::from_static("x-ipfs-path");
const ROOTS: HeaderName = HeaderName::from_static("x-ipfs-roots");

pub(super) fn allow_all_origins(headers: &mut HeaderMap) {
    for (name, value) in CORS {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// A header whose value comes out of a request or a content. What no header can hold is left out: it is a hint.
pub(super) fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Headers of everything below an id: `path` as it was asked for, the ids that its names led to, and how it is cached.
pub(super) fn put_content(
    headers: &mut HeaderMap,
    path: &str,
    roots: &[ContentId],
    etag: &str,
    cache: &'static str,
) {
    put(headers, PATH, path);
    let roots: Vec<_> = roots.iter().map(ToString::to_string).collect();
    put(headers, ROOTS, &roots.join(","));
    put(headers, header::ETAG, etag);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(cache));
}

/// Headers of bytes that no browser is to show or run.
pub(super) fn put_opaque(headers: &mut HeaderMap, name: &str) {
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    put(headers, header::CONTENT_DISPOSITION, &disposition(true, Some(name)));
}

/// The value of `Content-Disposition`: with the name in ASCII, and in UTF-8 where that is not the same.
pub(super) fn disposition(is_attachment: bool, name: Option<&str>) -> String {
    let kind = if is_attachment { "attachment" } else { "inline" };
    let Some(name) = name else { return kind.to_owned() };
    let plain = |c: char| if c.is_ascii() && !c.is_control() { c } else { '_' };
    let ascii: String = name.chars().map(plain).collect();
    let quoted = ascii.replace('\\', "\\\\").replace('"', "\\\"");
    if ascii == name {
        return format!("{kind}; filename=\"{quoted}\"");
    }
    format!("{kind}; filename=\"{quoted}\"; filename*=UTF-8''{}", escaped(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_told_in_ascii_and_where_it_needs_to_in_utf_8() {
        for (name, told) in [
            (None, "attachment"),
            (Some("a b.car"), "attachment; filename=\"a b.car\""),
            (Some("a\"\\b"), "attachment; filename=\"a\\\"\\\\b\""),
            (
                Some("testтест.pdf"),
                "attachment; filename=\"test____.pdf\"; filename*=UTF-8''test%D1%82%D0%B5%D1%81%D1%82.pdf",
            ),
            (Some("a\r\nb"), "attachment; filename=\"a__b\"; filename*=UTF-8''a%0D%0Ab"),
        ] {
            assert_eq!(disposition(true, name), told);
        }
        assert_eq!(disposition(false, Some("x")), "inline; filename=\"x\"");
    }
}
