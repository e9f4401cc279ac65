//! Completions and the manual page.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{cli::Cli, exit::Usage};

pub(crate) fn completions(shell: Shell) -> anyhow::Result<()> {
    // Into memory first: the generator panics when its writer fails, and `| head` closes stdout.
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "chiral", &mut text);
    Ok(io::stdout().write_all(&text)?)
}

pub(crate) fn man(command: &[String]) -> anyhow::Result<()> {
    let mut page = Cli::command();
    page.build();
    for name in command {
        let found = page.find_subcommand(name).cloned();
        page = found.ok_or_else(|| Usage(format!("no such command: {}", command.join(" "))))?;
    }
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text)?;
    Ok(io::stdout().write_all(&text)?)
}
