//! Printing for people and for programs.

use std::io::{self, Write};

use serde::Serialize;

use crate::printable::{printable, printable_json};

/// Prints one line to stdout, foreign text in it escaped.
pub(crate) fn line(text: impl std::fmt::Display) -> io::Result<()> {
    print(&printable(&text.to_string()), "\n")
}

/// Prints what may have several lines, each of them escaped.
pub(crate) fn lines(text: &str) -> io::Result<()> {
    text.lines().try_for_each(line)
}

/// Prints a value as one line of JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(print(&printable_json(&serde_json::to_string(value)?), "\n")?)
}

/// Clears the terminal.
pub(crate) fn clear() -> io::Result<()> {
    print("\x1b[H\x1b[2J", "")
}

fn print(text: &str, end: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{text}{end}")?;
    // A program that reads our lines through a pipe waits for each.
    out.flush()
}

/// Prints columns, each as wide as its widest cell; the last is not padded.
pub(crate) fn table<const N: usize>(heads: [&str; N], rows: &[[String; N]]) -> io::Result<()> {
    let rows: Vec<[_; N]> =
        rows.iter().map(|row| row.each_ref().map(|cell| printable(cell))).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([heads[column].len()]).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let print = |cells: [&str; N]| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        line(padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    print(heads)?;
    rows.iter().try_for_each(|row| print(row.each_ref().map(AsRef::as_ref)))
}

/// Bytes with a unit, to one decimal.
pub(crate) fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}
