//! What people are asked: a key without an echo, and yes or no. Whatever ends it, the terminal is left as it was.

use std::io::{self, BufRead, IsTerminal, Read};

use anyhow::{Context as _, Result, bail};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::credential::{ApiKey, Settings};

/// The longest line that can be a key or an id, in bytes.
const LONGEST: u64 = 4096;

/// Whether somebody is there who can be asked.
pub(super) fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// A key from standard input, or from whoever sits there.
pub(super) async fn key() -> Result<ApiKey> {
    let line = if io::stdin().is_terminal() {
        let interrupt = Interrupt::watch()?;
        eprint!("API key (not shown): ");
        let silence = Silence::begin().context("the terminal cannot be told not to show the key")?;
        let line = interrupt.or(line).await;
        drop(silence);
        line?
    } else {
        line()?
    };
    let text = line.trim();
    if text.is_empty() {
        bail!("there is no key on standard input");
    }
    if text.starts_with("apit_") {
        bail!(
            "this is the id of a key, not a key; give it as an argument: keyward keys inspect {}",
            super::words::safe(text)
        );
    }
    // SECURITY: what was given is not repeated, as it may be a key with a mistake in it.
    ApiKey::parse(text, &Settings::default())
        .context("this cannot be a key: keys are letters and digits alone, from 20 to 512 of them")
}

/// Whether the answer is yes. Nobody to ask is a yes: scripts do what they are told.
pub(super) async fn confirmed(question: &str) -> Result<bool> {
    if !is_interactive() {
        return Ok(true);
    }
    let interrupt = Interrupt::watch()?;
    eprint!("{question} [y/N] ");
    let line = interrupt.or(line).await?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

/// The lines of standard input that say something.
pub(super) fn lines() -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for line in io::stdin().lock().lines() {
        let line = line.context("standard input cannot be read")?;
        let line = line.trim();
        if !line.is_empty() {
            lines.push(line.to_owned());
        }
    }
    Ok(lines)
}

fn line() -> Result<String> {
    let mut line = String::new();
    let read = io::stdin().lock().take(LONGEST).read_line(&mut line);
    read.context("standard input cannot be read")?;
    Ok(line)
}

/// Somebody wants out.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(super) struct Interrupted;

/// The signals that end a program, once somebody watches for them.
pub(super) struct Interrupt(Signal, Signal);

impl Interrupt {
    /// From now on they end nothing by themselves.
    pub(super) fn watch() -> Result<Self> {
        let watch = |kind| signal(kind).context("cannot wait for signals");
        Ok(Self(watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?))
    }

    /// Completes with the first.
    pub(super) async fn comes(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }

    /// What is read, unless somebody wants out before.
    async fn or(mut self, read: fn() -> Result<String>) -> Result<String> {
        let (sender, line) = oneshot::channel();
        // A thread of its own, which nothing waits for: reading from a terminal cannot be given up.
        std::thread::spawn(move || sender.send(read()));
        tokio::select! {
            line = line => line.context("standard input cannot be read")?,
            () = self.comes() => Err(Interrupted.into()),
        }
    }
}

/// The terminal does not show what is typed, until this is dropped.
struct Silence(Termios);

impl Silence {
    fn begin() -> rustix::io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        silent.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // There is nothing else to be done about it.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}
