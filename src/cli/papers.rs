//! What goes with a program: shell completions and man pages, from the same description as `--help`.

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;

use super::Cli;

pub(super) fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "keyward", &mut text);
    super::print(&String::from_utf8_lossy(&text))?;
    Ok(())
}

pub(super) fn man(folder: &Path) -> Result<()> {
    let place = || format!("cannot write into {}", folder.display());
    std::fs::create_dir_all(folder).with_context(place)?;
    clap_mangen::generate_to(Cli::command(), folder).with_context(place)?;
    Ok(())
}
