//! What people are asked: a key without an echo, and yes or no. Whatever ends it, the terminal is left as it was.

use std::io::{self, BufRead, IsTerminal, Read, Write as _};
use std::pin::pin;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Signal as Number, getpid, kill_process};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::credential::{ApiKey, Settings};

/// The longest line that can be a key or an id, in bytes.
const LONGEST: u64 = 4096;

/// A key from standard input, or from whoever sits there.
pub(super) async fn key() -> Result<ApiKey> {
    let line =
        if io::stdin().is_terminal() { ask("API key (not shown): ", true).await? } else { read_line()? };
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
    if !io::stdin().is_terminal() {
        return Ok(true);
    }
    let line = ask(&format!("{question} [y/N] "), false).await?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

/// Hands on each line of standard input that says something, until one is refused.
pub(super) fn each_line(mut take: impl FnMut(&str) -> Result<()>) -> Result<()> {
    if io::stdin().is_terminal() {
        say("Ids, one a line; Ctrl-D ends the list:\n");
    }
    loop {
        let line = read_line()?;
        match line.trim() {
            "" if line.is_empty() => return Ok(()),
            "" => {}
            text => take(text)?,
        }
    }
}

/// A line of standard input, or as much of it as can matter; empty at the end.
fn read_line() -> Result<String> {
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
pub(super) struct Interrupt([Signal; 3]);

impl Interrupt {
    /// From now on they end nothing by themselves.
    pub(super) fn watch() -> Result<Self> {
        Ok(Self([
            watch(SignalKind::interrupt())?,
            watch(SignalKind::terminate())?,
            watch(SignalKind::quit())?,
        ]))
    }

    /// Completes with the first.
    pub(super) async fn comes(&mut self) {
        let [interrupt, terminate, quit] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = quit.recv() => {}
        }
    }
}

fn watch(kind: SignalKind) -> Result<Signal> {
    signal(kind).context("cannot wait for signals")
}

/// What is done, unless somebody wants out before. A signal that was watched for once ends nothing by itself any more.
pub(super) async fn unless_interrupted<T>(work: impl Future<Output = T>) -> Result<T> {
    let mut interrupt = Interrupt::watch()?;
    tokio::select! {
        done = work => Ok(done),
        () = interrupt.comes() => Err(Interrupted.into()),
    }
}

/// Asks whoever sits at the terminal for a line.
async fn ask(question: &str, silently: bool) -> Result<String> {
    let mut interrupt = Interrupt::watch()?;
    let mut suspended = watch(SignalKind::from_raw(Number::TSTP.as_raw()))?;
    let mut continued = watch(SignalKind::from_raw(Number::CONT.as_raw()))?;
    let silence = || -> Result<Option<Silence>> {
        let silence = silently.then(Silence::begin).transpose();
        silence.context("the terminal cannot be told not to show the key")
    };
    // In this order: what is typed as soon as the question is there is not shown.
    let mut quiet = silence()?;
    say(question);
    let (sender, line) = oneshot::channel();
    // A thread of its own, which nothing waits for: reading from a terminal cannot be given up.
    std::thread::spawn(move || sender.send(read_line()));
    let mut line = pin!(line);
    let line = loop {
        tokio::select! {
            line = &mut line => break line.context("standard input cannot be read")?,
            () = interrupt.comes() => break Err(Interrupted.into()),
            // Ctrl-Z: the shell gets the terminal as it was, and who comes back is asked again.
            _ = suspended.recv() => {
                drop(quiet.take());
                kill_process(getpid(), Number::STOP).context("cannot be suspended")?;
            }
            _ = continued.recv() => {
                drop(quiet.take());
                quiet = silence()?;
                say(question);
            }
        }
    };
    drop(quiet);
    if !line.as_ref().is_ok_and(|line| line.ends_with('\n')) {
        // What is said next does not belong behind the question.
        say("\n");
    }
    line
}

/// To the terminal, wherever standard error goes.
fn say(text: &str) {
    let terminal = || std::fs::OpenOptions::new().write(true).open("/dev/tty");
    let written = (!io::stderr().is_terminal()).then(terminal);
    if let Some(Ok(mut terminal)) = written {
        let _ = terminal.write_all(text.as_bytes());
    } else {
        super::tell(text);
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
