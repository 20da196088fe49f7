//! Prompts: a key without echo, ids, and yes or no. The terminal is restored however a prompt ends.

use std::io::{self, BufRead, IsTerminal, Read, Write as _};
use std::pin::pin;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Signal as Number, getpid, kill_process};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::credential::{ApiKey, Settings};

/// Longer lines cannot be a key or an id; in bytes.
const MAX_LINE: u64 = 4096;

/// Reads a key from standard input, or asks for it at a terminal.
pub(super) async fn read_key() -> Result<ApiKey> {
    let line =
        if io::stdin().is_terminal() { ask_line("API key (not shown): ", true).await? } else { read_line()? };
    let text = line.trim();
    if text.is_empty() {
        bail!("there is no key on standard input");
    }
    if text.starts_with("apit_") {
        bail!(
            "this is the id of a key, not a key; give it as an argument: keyward keys inspect {}",
            super::display::escape_text(text)
        );
    }
    // SECURITY: the input is not repeated, as it may be a key with a mistake in it.
    ApiKey::parse(text, &Settings::default())
        .context("this cannot be a key: keys are letters and digits alone, from 20 to 512 of them")
}

/// Asks the user for confirmation. Without a terminal, the answer is yes, so that scripts need no input.
pub(super) async fn ask_confirmation(question: &str) -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Ok(true);
    }
    let line = ask_line(&format!("{question} [y/N] "), false).await?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

/// Calls `take` with each line of standard input that is not blank, until it fails.
pub(super) fn for_each_line(mut take: impl FnMut(&str) -> Result<()>) -> Result<()> {
    if io::stdin().is_terminal() {
        write_to_terminal("Ids, one a line; Ctrl-D ends the list:\n");
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

/// Reads a line of standard input, cut at `MAX_LINE`; empty at the end.
fn read_line() -> Result<String> {
    let mut line = String::new();
    let read = io::stdin().lock().take(MAX_LINE).read_line(&mut line);
    read.context("standard input cannot be read")?;
    Ok(line)
}

/// The user ended the command with a signal.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(super) struct Interrupted;

/// SIGINT, SIGTERM and SIGQUIT, which no longer end the process by themselves once this exists.
pub(super) struct Interrupt([Signal; 3]);

impl Interrupt {
    pub(super) fn register() -> Result<Self> {
        Ok(Self([
            register_signal(SignalKind::interrupt())?,
            register_signal(SignalKind::terminate())?,
            register_signal(SignalKind::quit())?,
        ]))
    }

    pub(super) async fn wait_for_signal(&mut self) {
        let [interrupt, terminate, quit] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = quit.recv() => {}
        }
    }
}

fn register_signal(kind: SignalKind) -> Result<Signal> {
    signal(kind).context("cannot wait for signals")
}

/// Runs `work` until it is done or a signal arrives. Every later call must be wrapped, too: a signal that tokio once listened to no
/// longer ends the process.
pub(super) async fn unless_interrupted<T>(work: impl Future<Output = T>) -> Result<T> {
    let mut interrupt = Interrupt::register()?;
    tokio::select! {
        done = work => Ok(done),
        () = interrupt.wait_for_signal() => Err(Interrupted.into()),
    }
}

/// Asks for a line at the terminal, without echo where `is_secret`.
async fn ask_line(question: &str, is_secret: bool) -> Result<String> {
    let mut interrupt = Interrupt::register()?;
    let mut suspended = register_signal(SignalKind::from_raw(Number::TSTP.as_raw()))?;
    let mut continued = register_signal(SignalKind::from_raw(Number::CONT.as_raw()))?;
    let turn_echo_off = || -> Result<Option<EchoOff>> {
        let echo_off = is_secret.then(EchoOff::begin).transpose();
        echo_off.context("the terminal cannot be told not to show the key")
    };
    // Echo is off before the question appears, so that nothing typed at once is shown.
    let mut echo_off = turn_echo_off()?;
    write_to_terminal(question);
    let (sender, line) = oneshot::channel();
    // On a thread of its own that nothing joins, as a blocking read of a terminal cannot be cancelled.
    std::thread::spawn(move || sender.send(read_line()));
    let mut line = pin!(line);
    let line = loop {
        tokio::select! {
            line = &mut line => break line.context("standard input cannot be read")?,
            () = interrupt.wait_for_signal() => break Err(Interrupted.into()),
            // Ctrl-Z: the shell gets the terminal with echo, and the question is repeated when the command continues.
            _ = suspended.recv() => {
                drop(echo_off.take());
                kill_process(getpid(), Number::STOP).context("cannot be suspended")?;
            }
            _ = continued.recv() => {
                drop(echo_off.take());
                echo_off = turn_echo_off()?;
                write_to_terminal(question);
            }
        }
    };
    drop(echo_off);
    if !line.as_ref().is_ok_and(|line| line.ends_with('\n')) {
        // The next output begins on a line of its own.
        write_to_terminal("\n");
    }
    line
}

/// Writes to the terminal even where standard error is redirected.
fn write_to_terminal(text: &str) {
    let terminal = || std::fs::OpenOptions::new().write(true).open("/dev/tty");
    let written = (!io::stderr().is_terminal()).then(terminal);
    if let Some(Ok(mut terminal)) = written {
        let _ = terminal.write_all(text.as_bytes());
    } else {
        super::write_stderr(text);
    }
}

/// Turns the echo of the terminal off until it is dropped.
struct EchoOff(Termios);

impl EchoOff {
    fn begin() -> rustix::io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut without_echo = before.clone();
        without_echo.local_modes.remove(LocalModes::ECHO);
        without_echo.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(io::stdin(), OptionalActions::Flush, &without_echo)?;
        Ok(Self(before))
    }
}

impl Drop for EchoOff {
    fn drop(&mut self) {
        // A drop cannot report an error.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}
