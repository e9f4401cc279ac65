//! Completions and the manual page.

use std::io::{self, Write};

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;

pub(crate) fn completions(shell: Shell) -> anyhow::Result<()> {
    // Into memory first: the generator panics when its writer fails, and `| head` closes stdout.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "chiral", &mut text);
    Ok(io::stdout().write_all(&text)?)
}

pub(crate) fn man(command: Option<&str>) -> anyhow::Result<()> {
    let mut root = Cli::command();
    root.build();
    let page = match command {
        None => root,
        Some(name) => {
            let found = root.find_subcommand(name).cloned();
            found.with_context(|| format!("no such command: {name}"))?
        }
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text)?;
    Ok(io::stdout().write_all(&text)?)
}
