//! The log, and what is told of a panic.

use std::{backtrace::Backtrace, env, fmt, io::IsTerminal, panic::PanicHookInfo};

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    EnvFilter,
    field::RecordFields,
    fmt::{FormatFields, format::Writer},
};

use crate::{
    exit::Usage,
    printable::printable,
    stderr::{self, Stderr},
};

/// Filter of the log unless the user asks for more. The libraries named here warn of what peers did wrong, of routers that
/// forward nothing, of interfaces without multicast, of names that do not resolve and, every minute, of networks that are
/// not there. No user of this machine can change any of it.
const LOG: &str = "warn,librqbit=error,libp2p_autonat=error,libp2p_relay=error,libp2p_dcutr=error,libp2p_upnp=error,libp2p_mdns=off,quinn_udp=error";

/// Starts logging to stderr, and telling of panics.
pub(crate) fn start(flag: Option<&str>) -> anyhow::Result<()> {
    std::panic::set_hook(Box::new(tell));
    let environment = env::var("RUST_LOG").ok();
    let text = flag.or(environment.as_deref()).filter(|text| !text.is_empty()).unwrap_or(LOG);
    let filter = EnvFilter::try_new(text)
        .map_err(|error| Usage(format!("`{text}` is not a log filter: {error}")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(|| Stderr)
        // The library would tell of a failed write with `eprintln!`, which panics where stderr is what failed.
        .log_internal_errors(false)
        .fmt_fields(Escaped)
        .init();
    Ok(())
}

/// Tells of a panic on one line, whatever the log is set to: it is a fault of the program.
fn tell(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let said = panic.payload_as_str().unwrap_or_default();
    let name = thread.name().unwrap_or_default();
    stderr::line(format_args!(
        "chiral: a fault of the program: {name} panicked at {place}: {said}"
    ));
    let trace = Backtrace::capture();
    if trace.status() == std::backtrace::BacktraceStatus::Captured {
        stderr::lines(&trace.to_string());
    }
}

/// Writes the fields of events and spans, foreign text in them escaped.
struct Escaped;

impl<'w> FormatFields<'w> for Escaped {
    fn format_fields<R: RecordFields>(&self, to: Writer<'w>, fields: R) -> fmt::Result {
        let mut fields_to = Fields { to, is_first: true, done: Ok(()) };
        fields.record(&mut fields_to);
        fields_to.done
    }
}

struct Fields<'w> {
    to: Writer<'w>,
    is_first: bool,
    done: fmt::Result,
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let name = field.name();
        // Where a record of the `log` crate comes from, which the line has already.
        if self.done.is_err() || name.starts_with("log.") {
            return;
        }
        let space = if std::mem::take(&mut self.is_first) { "" } else { " " };
        let text = format!("{value:?}");
        let text = printable(&text);
        self.done = match name {
            "message" => write!(self.to, "{space}{text}"),
            name => write!(self.to, "{space}{}={text}", name.trim_start_matches("r#")),
        };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::{
        io::{self, Write},
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Held(Arc<Mutex<Vec<u8>>>);

    impl Write for Held {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(text);
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_line_stays_one_line_without_controls() {
        let held = Held::default();
        let writer = held.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .without_time()
            .fmt_fields(Escaped)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let name = "x\n2026 ERROR forged\x1b[2J\u{202e}";
            let _span = tracing::info_span!("fetch", %name).entered();
            tracing::warn!(%name, agent = name, size = 3, "{name} is odd");
        });
        let text = String::from_utf8(held.0.lock().unwrap().clone()).unwrap();
        let escaped = r"x\n2026 ERROR forged\u{1b}[2J\u{202e}";
        let expected = format!(
            " WARN fetch{{name={escaped}}}: chiral::log::tests: {escaped} is odd name={escaped} agent=\"{escaped}\" size=3\n"
        );
        assert_eq!(text, expected);
    }
}
