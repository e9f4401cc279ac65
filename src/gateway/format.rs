//! What form of a content is asked for: by `format` in the URL, else by `Accept`.

use super::{refusal::Refusal, target::Query};
use crate::{content::EntityBytes, node::CarScope};

/// Forms that have a name of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Raw,
    Car,
    Tar,
    Record,
    Coded(Coding),
}

/// Codecs whose blocks are given as they are, with the type that belongs to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Json,
    Cbor,
    DagJson,
    DagCbor,
}

impl Coding {
    const ALL: [Self; 4] = [Self::Json, Self::Cbor, Self::DagJson, Self::DagCbor];

    /// The one of a multicodec.
    pub(super) fn of(codec: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|coding| coding.codec() == codec)
    }

    fn codec(self) -> u64 {
        match self {
            Self::Json => 0x0200,
            Self::Cbor => 0x51,
            Self::DagJson => 0x0129,
            Self::DagCbor => 0x71,
        }
    }

    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Cbor => "application/cbor",
            Self::DagJson => "application/vnd.ipld.dag-json",
            Self::DagCbor => "application/vnd.ipld.dag-cbor",
        }
    }

    /// How `format` calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Cbor => "cbor",
            Self::DagJson => "dag-json",
            Self::DagCbor => "dag-cbor",
        }
    }
}

impl Known {
    const ALL: [Self; 8] = [
        Self::Raw,
        Self::Car,
        Self::Tar,
        Self::Record,
        Self::Coded(Coding::Json),
        Self::Coded(Coding::Cbor),
        Self::Coded(Coding::DagJson),
        Self::Coded(Coding::DagCbor),
    ];

    /// How `format` calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Car => "car",
            Self::Tar => "tar",
            Self::Record => "ipns-record",
            Self::Coded(coding) => coding.name(),
        }
    }

    fn media_type(self) -> &'static str {
        match self {
            Self::Raw => "application/vnd.ipld.raw",
            Self::Car => "application/vnd.ipld.car",
            Self::Tar => "application/x-tar",
            Self::Record => "application/vnd.ipfs.ipns-record",
            Self::Coded(coding) => coding.media_type(),
        }
    }

    /// The one that a type in `Accept` stands for. JSON and CBOR are types of files as well, and mean those there.
    fn accepted(media_type: &str) -> Option<Self> {
        let is_plain =
            |known: &Self| matches!(known, Self::Coded(Coding::Json) | Self::Coded(Coding::Cbor));
        Self::ALL.into_iter().find(|known| known.media_type() == media_type && !is_plain(known))
    }
}

/// What an archive is to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CarParams {
    pub(super) scope: CarScope,
    pub(super) duplicates: bool,
}

impl CarParams {
    /// The type of the answer; the order is always depth first.
    pub(super) fn media_type(self) -> &'static str {
        match self.duplicates {
            true => "application/vnd.ipld.car; version=1; order=dfs; dups=y",
            false => "application/vnd.ipld.car; version=1; order=dfs; dups=n",
        }
    }
}

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// A file, or a page about a directory.
    Plain,
    Raw,
    Car(CarParams),
    Coded(Coding),
}

/// A form, and what a URL that asks for the same without `Accept` has to say, where it does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) format: Format,
    pub(super) location: Option<Vec<(&'static str, String)>>,
}

/// One type of an `Accept` header.
#[derive(Debug)]
struct Media {
    name: String,
    parameters: Vec<(String, String)>,
    /// In thousandths, as exact as the header can be.
    weight: u16,
}

impl Media {
    fn of(text: &str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let mut weight = 1000;
        let mut parameters = Vec::new();
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            let (key, value) = (key.trim().to_ascii_lowercase(), value.trim().trim_matches('"'));
            if key == "q" {
                weight = thousandths(value).unwrap_or(weight);
            } else {
                parameters.push((key, value.to_owned()));
            }
        }
        Self { name, parameters, weight }
    }

    fn is_of_ipfs(&self) -> bool {
        self.name.starts_with("application/vnd.ipld.")
            || self.name.starts_with("application/vnd.ipfs.")
    }
}

/// A weight as `Accept` has it: 0 to 1 with at most three digits behind the point.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, ""));
    let rest: u16 = format!("{rest:0<3}").get(..3)?.parse().ok()?;
    Some((whole.parse::<u16>().ok()?.checked_mul(1000)?.checked_add(rest)?).min(1000))
}

/// Chooses the form. `accept` are the values of all `Accept` headers.
pub(super) fn negotiate<'a>(
    query: &Query,
    accept: impl Iterator<Item = &'a str>,
) -> Result<Wanted, Refusal> {
    let mut accepted: Vec<Media> =
        accept.flat_map(|value| value.split(',')).map(Media::of).collect();
    accepted.retain(|media| media.weight > 0);
    // What is named as ours goes before what every browser asks for.
    accepted.sort_by_key(|media| (u16::MAX - media.weight, Known::accepted(&media.name).is_none()));
    let Some(name) = query.get("format") else { return from_accept(query, &accepted) };
    let named = Known::ALL.into_iter().find(|known| known.name() == name);
    let named = named.ok_or_else(|| Refusal::Wrong(format!("there is no format `{name}`")))?;
    let first = accepted.iter().find_map(|media| Known::accepted(&media.name));
    let matching = accepted.iter().find(|media| Known::accepted(&media.name) == Some(named));
    let (format, mut explicit) = as_format(named, query, matching)?;
    explicit.insert(0, ("format", name.to_owned()));
    let is_told = explicit.iter().all(|(name, value)| query.get(name) == Some(value));
    let differs = first.is_some_and(|first| first != named);
    Ok(Wanted { format, location: (differs || !is_told).then_some(explicit) })
}

fn from_accept(query: &Query, accepted: &[Media]) -> Result<Wanted, Refusal> {
    let plain = Ok(Wanted { format: Format::Plain, location: None });
    let mut refused = None;
    let mut anything = false;
    for media in accepted {
        let Some(known) = Known::accepted(&media.name) else {
            if media.is_of_ipfs() {
                let text = format!("`{}` is not served", media.name);
                refused = refused.or(Some(Refusal::NotAcceptable(text)));
            } else if media.name.ends_with("/*") {
                // The least that can be asked for: only where nothing is named.
                anything = true;
            } else {
                return plain;
            }
            continue;
        };
        match as_format(known, query, Some(media)) {
            Ok((format, mut explicit)) => {
                explicit.insert(0, ("format", known.name().to_owned()));
                return Ok(Wanted { format, location: Some(explicit) });
            }
            Err(Refusal::NotAcceptable(text)) => {
                refused = refused.or(Some(Refusal::NotAcceptable(text)));
            }
            Err(other) => return Err(other),
        }
    }
    match refused {
        Some(refused) if !anything => Err(refused),
        _ => plain,
    }
}

type Explicit = Vec<(&'static str, String)>;

fn as_format(
    known: Known,
    query: &Query,
    media: Option<&Media>,
) -> Result<(Format, Explicit), Refusal> {
    match known {
        Known::Raw => Ok((Format::Raw, Vec::new())),
        Known::Car => {
            let (params, explicit) = car(query, media)?;
            Ok((Format::Car(params), explicit))
        }
        Known::Coded(coding) => Ok((Format::Coded(coding), Vec::new())),
        Known::Tar => Err(Refusal::NotAcceptable(
            "TAR is not served; ask for `format=car`, which can be verified".to_owned(),
        )),
        Known::Record => Err(Refusal::Wrong("there are no IPNS records below /ipfs/".to_owned())),
    }
}

/// Parameters of an archive; those of `Accept` besides, as a URL would have them.
fn car(query: &Query, media: Option<&Media>) -> Result<(CarParams, Explicit), Refusal> {
    let mut explicit = Vec::new();
    let mut choose = |in_url: &'static str, name: &str, allowed: [&str; 2]| {
        let in_accept =
            media.and_then(|media| media.parameters.iter().find(|(key, _)| key == name));
        let in_accept =
            in_accept.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty());
        let chosen = query.get(in_url).or(in_accept);
        match chosen.filter(|chosen| !allowed.contains(chosen)) {
            Some(wrong) if query.get(in_url).is_some() => {
                return Err(Refusal::Wrong(format!("`{in_url}={wrong}` is not served")));
            }
            Some(wrong) => {
                return Err(Refusal::NotAcceptable(format!(
                    "CAR with {name}={wrong} is not served"
                )));
            }
            None => {}
        }
        if let Some(value) = chosen.filter(|_| in_accept.is_some()) {
            explicit.push((in_url, value.to_owned()));
        }
        Ok(chosen)
    };
    choose("car-version", "version", ["1", "1"])?;
    choose("car-order", "order", ["dfs", "unk"])?;
    let duplicates = choose("car-dups", "dups", ["y", "n"])? == Some("y");
    Ok((CarParams { scope: scope(query)?, duplicates }, explicit))
}

fn scope(query: &Query) -> Result<CarScope, Refusal> {
    let bytes = query.get("entity-bytes").map(str::parse::<EntityBytes>).transpose();
    let bytes = bytes.map_err(|error| Refusal::Wrong(error.to_string()))?;
    let named = match query.get("dag-scope") {
        None | Some("all") => CarScope::All,
        Some("entity") => CarScope::Entity(None),
        Some("block") => CarScope::Block,
        Some(other) => return Err(Refusal::Wrong(format!("there is no scope `{other}`"))),
    };
    // A range of bytes implies the entity.
    Ok(bytes.map_or(named, |bytes| CarScope::Entity(Some(bytes))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    const BROWSER: &str =
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8";

    fn wanted(query: &str, accept: &[&str]) -> Result<Wanted, Refusal> {
        negotiate(&Query::of(Some(query)), accept.iter().copied())
    }

    fn format(query: &str, accept: &[&str]) -> Format {
        wanted(query, accept).unwrap().format
    }

    fn car(scope: CarScope, duplicates: bool) -> Format {
        Format::Car(CarParams { scope, duplicates })
    }

    #[test]
    fn the_url_goes_before_the_header() {
        assert_eq!(format("format=raw", &["application/vnd.ipld.car"]), Format::Raw);
        assert_eq!(format("format=car", &["application/vnd.ipld.raw"]), car(CarScope::All, false));
        assert_eq!(format("format=raw", &[BROWSER]), Format::Raw);
    }

    #[test]
    fn what_a_browser_accepts_is_a_file() {
        for accept in [&[][..], &[BROWSER], &["*/*"], &["application/json"], &["image/*"]] {
            assert_eq!(
                wanted("", accept).unwrap(),
                Wanted { format: Format::Plain, location: None }
            );
        }
    }

    #[test]
    fn the_header_is_weighed() {
        let raw = "application/vnd.ipld.raw";
        assert_eq!(format("", &[raw]), Format::Raw);
        assert_eq!(format("", &["text/html", raw]), Format::Raw);
        assert_eq!(format("", &["text/html, application/vnd.ipld.raw;q=0.5"]), Format::Plain);
        let both = "application/vnd.ipld.raw;q=0.2, application/vnd.ipld.car;q=0.25, */*";
        assert_eq!(format("", &[both]), car(CarScope::All, false));
        assert_eq!(format("", &["application/vnd.ipld.raw;q=0", "*/*"]), Format::Plain);
        let preferred =
            "application/vnd.ipld.car;order=foo, application/vnd.ipld.car;order=dfs;dups=y;q=0.5";
        assert_eq!(format("", &[preferred]), car(CarScope::All, true));
    }

    #[test]
    fn what_is_not_served_is_refused_unless_something_else_will_do() {
        let odd = "application/vnd.ipld.odd";
        assert!(matches!(wanted("", &[odd]), Err(Refusal::NotAcceptable(_))));
        assert_eq!(format("", &[odd, "*/*"]), Format::Plain);
        assert!(matches!(wanted("format=tar", &[]), Err(Refusal::NotAcceptable(_))));
        assert!(matches!(wanted("", &["application/x-tar"]), Err(Refusal::NotAcceptable(_))));
        for query in [
            "format=odd",
            "format=ipns-record",
            "format=car&car-version=2",
            "format=car&car-order=bfs",
            "format=car&car-dups=maybe",
            "format=car&dag-scope=some",
            "format=car&entity-bytes=1-2",
        ] {
            assert!(matches!(wanted(query, &[]), Err(Refusal::Wrong(_))), "{query}");
        }
        let version = "application/vnd.ipld.car; version=2";
        assert!(matches!(wanted("", &[version]), Err(Refusal::NotAcceptable(_))));
        assert_eq!(format("car-version=1", &[version]), car(CarScope::All, false));
    }

    #[test]
    fn parameters_of_archives_come_from_both_and_the_url_wins() {
        let accept = "application/vnd.ipld.car; version=1; order=unk; dups=y";
        assert_eq!(format("", &[accept]), car(CarScope::All, true));
        assert_eq!(format("format=car", &[accept]), car(CarScope::All, true));
        assert_eq!(format("format=car&car-dups=n", &[accept]), car(CarScope::All, false));
        let range = EntityBytes { from: -5, to: None };
        let ranged = car(CarScope::Entity(Some(range)), false);
        assert_eq!(format("format=car&entity-bytes=-5:*", &[]), ranged);
        assert_eq!(format("format=car&dag-scope=block&entity-bytes=-5:*", &[]), ranged);
        assert_eq!(format("format=car&dag-scope=entity", &[]), car(CarScope::Entity(None), false));
        assert_eq!(format("format=car&dag-scope=block", &[]), car(CarScope::Block, false));
    }

    #[test]
    fn the_location_says_what_only_the_header_said() {
        let location = |query: &str, accept: &str| {
            let told = wanted(query, &[accept]).unwrap().location?;
            Some(told.into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join("&"))
        };
        assert_eq!(location("", "application/vnd.ipld.raw").unwrap(), "format=raw");
        assert_eq!(location("format=raw", "application/vnd.ipld.raw"), None);
        assert_eq!(location("format=raw", BROWSER), None);
        assert_eq!(location("format=raw", "application/vnd.ipld.car").unwrap(), "format=raw");
        let car = "application/vnd.ipld.car; order=dfs; dups=y";
        assert_eq!(location("", car).unwrap(), "format=car&car-order=dfs&car-dups=y");
        assert_eq!(location("format=car", car).unwrap(), "format=car&car-order=dfs&car-dups=y");
        assert_eq!(location("format=car&car-order=dfs&car-dups=y", car), None);
    }
}
