//! Bars on stderr; nothing when it is not a terminal.

use std::{
    io::{IsTerminal, stderr},
    time::{Duration, Instant},
};

use chiral::{
    control::{Client, Stage},
    node::Transfer,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::printable::printable;

/// How often the number of sources is asked for.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// How often something that moves is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(100);

const TEMPLATE: &str =
    "{prefix} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} ETA {eta} {msg}";

/// A bar over bytes with rate, time left and number of sources.
#[derive(Debug)]
pub(crate) struct Bar {
    bar: ProgressBar,
    asked: Instant,
    stage: &'static str,
}

impl Bar {
    /// A bar for `total` bytes.
    pub(crate) fn new(name: &str, total: u64) -> Self {
        let bar = if stderr().is_terminal() {
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr())
        } else {
            ProgressBar::hidden()
        };
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        bar.set_prefix(printable(name).into_owned());
        Self { bar, asked: Instant::now(), stage: "" }
    }

    /// Bytes are done.
    pub(crate) fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Makes room for lines of text.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }

    /// So many bytes of so many are done.
    pub(crate) fn set(&self, done: u64, total: u64) {
        self.bar.set_length(total);
        self.bar.set_position(done);
    }

    /// The same of work in stages, each of which is measured anew.
    pub(crate) fn stage(&mut self, stage: Stage) {
        let (stage, done, total) = match stage {
            Stage::Copying { done, total } => ("copying", done, total),
            Stage::Hashing { done, total } => ("hashing", done, total),
            Stage::Pieces { done, total } => ("hashing pieces", done, total),
        };
        if self.stage != stage {
            self.stage = stage;
            self.bar.reset();
            self.bar.set_message(stage);
            // A large file counts only when all of it is hashed: that work goes on is seen from what moves, which a
            // thread of the bar's own draws.
            if let Ok(style) = ProgressStyle::with_template(&format!("{{spinner}} {TEMPLATE}")) {
                self.bar.set_style(style);
            }
            self.bar.enable_steady_tick(DRAW_EVERY);
        }
        self.set(done, total);
    }

    /// Shows how many sources the running downloads use, once in a while.
    pub(crate) async fn show_sources(&mut self, client: &Client) {
        if self.bar.is_hidden() || self.asked.elapsed() < ASK_EVERY {
            return;
        }
        self.asked = Instant::now();
        if let Ok(transfers) = client.get::<Vec<Transfer>>("/v1/transfers").await {
            let sources: usize = transfers.iter().map(|transfer| transfer.sources).sum();
            self.bar.set_message(format!("{sources} sources"));
        }
    }
}

/// Shows the sum of all downloads while something that needs them is waited for.
pub(crate) async fn over_downloads<T>(
    client: &Client,
    name: &str,
    work: impl Future<Output = T>,
) -> T {
    let bar = Bar::new(name, 0);
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = tokio::time::sleep(ASK_EVERY) => {}
        }
        if bar.bar.is_hidden() {
            continue;
        }
        if let Ok(transfers) = client.get::<Vec<Transfer>>("/v1/transfers").await {
            let sum = |part: fn(&Transfer) -> u64| transfers.iter().map(part).sum();
            bar.set(sum(|transfer| transfer.bytes), sum(|transfer| transfer.total));
            let sources: usize = transfers.iter().map(|transfer| transfer.sources).sum();
            bar.bar.set_message(format!("{sources} sources"));
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
