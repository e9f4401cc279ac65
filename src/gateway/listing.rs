//! A page that lists a directory.

use std::{convert::Infallible, fmt::Write, sync::Arc};

use bytes::Bytes;
use futures::{Stream, stream};

use super::target::{Target, escaped};
use crate::content::{ContentId, Entry};

/// Entries that are written at a time: some 100 KiB of page.
const AT_ONCE: usize = 256;

const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em}\
h1{font-size:1.2em;overflow-wrap:anywhere}table{border-collapse:collapse;width:100%}\
td{border-top:1px solid #8884;padding:.2em .6em;overflow-wrap:anywhere}\
td:nth-child(2){font-family:monospace;font-size:.9em}td:last-child{text-align:right;white-space:nowrap}\
@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}a{color:#8bf}}";

/// The page, piece by piece. Sizes are those of the blocks below a name, as the directory has them: nothing else is
/// looked up, so that a page of many names is as quick as one of few.
pub(super) fn page(
    target: &Target,
    dir: &ContentId,
    entries: Arc<Vec<Entry>>,
) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + use<> {
    let base = target.url(target.names.len());
    let mut head = Some(head(target, dir, &base));
    let mut at = 0;
    let mut ended = false;
    stream::poll_fn(move |_| {
        let mut text = head.take().unwrap_or_default();
        let end = entries.len().min(at + AT_ONCE);
        for entry in entries.get(at..end).unwrap_or_default() {
            row(&mut text, &base, entry);
        }
        at = end;
        if at == entries.len() && !ended {
            ended = true;
            text.push_str("</table>\n</body>\n</html>\n");
        }
        std::task::Poll::Ready((!text.is_empty()).then(|| Ok(text.into())))
    })
}

fn head(target: &Target, dir: &ContentId, base: &str) -> String {
    let mut title = format!("/ipfs/{}", target.root);
    let mut crumbs = format!("/ipfs/<a href=\"{}\">{}</a>", target.url(0), target.root);
    for (at, name) in target.names.iter().enumerate() {
        let name = html(&name.to_string_lossy());
        let _ = write!(title, "/{name}");
        let _ = write!(crumbs, "/<a href=\"{}\">{name}</a>", target.url(at + 1));
    }
    let mut text = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>Index of {crumbs}</h1>\n\
         <p>{dir} · <a href=\"{base}?format=car\">CAR</a> · <a href=\"{base}?format=raw\">block</a></p>\n<table>\n"
    );
    if !target.names.is_empty() {
        let _ = writeln!(text, "<tr><td><a href=\"{base}/..\">..</a></td><td></td><td></td></tr>");
    }
    text
}

fn row(text: &mut String, base: &str, entry: &Entry) {
    let bytes = escaped(entry.name.as_encoded_bytes());
    let name = html(&entry.name.to_string_lossy());
    let (cid, size) = (entry.cid, readable(entry.tsize));
    let _ = writeln!(
        text,
        "<tr><td><a href=\"{base}/{bytes}\">{name}</a></td>\
         <td><a class=\"ipfs-hash\" translate=\"no\" href=\"/ipfs/{cid}?filename={bytes}\">{cid}</a></td>\
         <td title=\"{} bytes of blocks\">{size}</td></tr>",
        entry.tsize
    );
}

/// Text that stands for itself in a page, also between quotes.
fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// Bytes with a unit, to one decimal, which is cut off.
fn readable(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let Some(exponent) =
        bytes.checked_ilog2().map(|bits| bits / 10).filter(|exponent| *exponent > 0)
    else {
        return format!("{bytes} B");
    };
    let unit = 1_u64 << (10 * exponent);
    let tenths = u128::from(bytes % unit) * 10 / u128::from(unit);
    let name = units.get(exponent as usize - 1).copied().unwrap_or_default();
    format!("{}.{tenths} {name}", bytes / unit)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use futures::{FutureExt, StreamExt};

    use super::*;

    const CID: &str = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";

    fn listed(path: &str, names: &[&str]) -> String {
        let target = Target::of(&format!("/ipfs/{CID}{path}")).unwrap();
        let cid: ContentId = CID.parse().unwrap();
        let entry = |name: &&str| Entry { name: name.into(), cid, tsize: 2_500_000 };
        let entries = Arc::new(names.iter().map(entry).collect());
        let pieces: Vec<_> = page(&target, &cid, entries).collect().now_or_never().unwrap();
        let bytes: Vec<u8> = pieces.into_iter().flat_map(Result::unwrap).collect();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn names_are_escaped_in_text_and_in_links() {
        let odd = "<script>alert('\"&')</script>?#%.html";
        let page = listed("/%3Cb%3E/", &[odd]);
        assert!(!page.contains("<script") && !page.contains("<b>"), "{page}");
        assert!(
            page.contains("&lt;script&gt;alert(&#39;&quot;&amp;&#39;)&lt;/script&gt;?#%.html</a>")
        );
        let link = "%3Cscript%3Ealert%28%27%22%26%27%29%3C%2Fscript%3E%3F%23%25.html";
        assert!(page.contains(&format!("href=\"/ipfs/{CID}/%3Cb%3E/{link}\"")), "{page}");
        assert!(page.contains("2.3 MiB"), "{page}");
    }

    #[test]
    fn only_what_lies_below_a_root_has_a_way_up() {
        assert!(!listed("/", &["a"]).contains("\">..</a>"));
        let below = listed("/a/b/", &[]);
        assert!(below.contains(&format!("<a href=\"/ipfs/{CID}/a/b/..\">..</a>")), "{below}");
        assert!(below.contains(&format!("/<a href=\"/ipfs/{CID}/a\">a</a>/")), "{below}");
    }

    #[test]
    fn a_page_of_many_names_has_every_one_and_one_end() {
        let names: Vec<String> = (0..AT_ONCE * 2).map(|n| format!("n{n}")).collect();
        let page = listed("/", &names.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(page.matches("<tr>").count(), AT_ONCE * 2);
        assert_eq!(page.matches("</html>").count(), 1);
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(readable(bytes), shown);
        }
    }
}
