//! `keyward keys` with an emulator: its output and exit codes.

mod update;
mod end_to_end;
mod rotate_revoke;
mod list_inspect;
mod lost_keys;
mod create;
mod failures;
mod terminal;
mod transcript;

use std::process::Stdio;

use keyward_emulator::{self as emulator, Emulator};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::process::keyward;
use crate::support::{TEST_TIMEOUT, bind_loopback};

/// An emulator and its address.
pub struct Kit {
    pub emulator: Emulator,
    pub url: String,
    _ends: DropGuard,
}

/// The result of a command.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Kit {
    pub async fn start() -> Self {
        Self::with(emulator::Settings::default()).await
    }

    pub async fn with(settings: emulator::Settings) -> Self {
        Self::before(&Emulator::new(settings)).await
    }

    /// Another port of an emulator that may already have one.
    pub async fn before(emulator: &Emulator) -> Self {
        let ends = CancellationToken::new();
        let (listener, address) = bind_loopback().await;
        let (serving, until) = (emulator.clone(), ends.clone());
        tokio::spawn(async move { serving.serve(listener, until).await });
        Self { emulator: emulator.clone(), url: format!("http://{address}"), _ends: ends.drop_guard() }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        command(&self.url, arguments)
    }

    pub async fn run(&self, arguments: &[&str]) -> Done {
        done(self.command(arguments)).await
    }

    /// With this standard input.
    pub async fn run_with(&self, arguments: &[&str], input: impl AsRef<[u8]>) -> Done {
        fed(self.command(arguments), input).await
    }

    /// Runs a command that must succeed; returns its output.
    #[track_caller]
    pub fn fine(&self, arguments: &[&str]) -> impl Future<Output = String> {
        let (running, what) = (done(self.command(arguments)), arguments.join(" "));
        async move {
            let done = running.await;
            assert_eq!(done.code, 0, "{what}: {done:?}");
            done.out
        }
    }

    /// A new key: itself and its id.
    pub async fn create(&self, arguments: &[&str]) -> (String, String) {
        let made = json(&self.fine(&[&["create", "--json"], arguments].concat()).await);
        (text(&made["token"]), text(&made["token_id"]))
    }

    /// The properties of a live key.
    pub async fn known(&self, id: &str) -> Value {
        json(&self.fine(&["inspect", "--json", id]).await)["token_info"].clone()
    }

    pub async fn is_live(&self, id: &str) -> bool {
        self.run(&["inspect", id]).await.code == 0
    }

    /// The ids of an organization's live keys.
    pub async fn live(&self, organization: &str) -> Vec<String> {
        let lines = self.fine(&["list", "--org", organization, "--all", "--json"]).await;
        lines.lines().map(|line| text(&json(line)["token_id"])).collect()
    }

    pub fn fault(&self, fault: &str) {
        self.emulator.set_fault(fault.parse().unwrap());
    }
}

pub fn command(url: &str, arguments: &[&str]) -> Command {
    let mut command = keyward(&[&["keys"], arguments].concat());
    command.env("SCALEKIT_ENVIRONMENT_URL", url);
    command.env("SCALEKIT_CLIENT_ID", "dev").env("SCALEKIT_CLIENT_SECRET", "dev");
    command
}

pub async fn done(command: Command) -> Done {
    fed(command, "").await
}

/// Runs to the end with this standard input, which the command need not read.
pub async fn fed(mut command: Command, input: impl AsRef<[u8]>) -> Done {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.as_ref().to_vec());
    tokio::spawn(async move { drop(stdin.write_all(&input).await) });
    let output = timeout(TEST_TIMEOUT * 2, child.wait_with_output()).await.expect("an end in time").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

impl Done {
    /// Checks for exit code 1, one line with this text on standard error, and nothing on standard output.
    #[track_caller]
    pub fn refused(&self, expected: &str) {
        assert!(self.err.contains(expected), "{expected:?} in {self:?}");
        assert!(self.err.starts_with("keyward: "), "{self:?}");
        assert_eq!((self.code, &*self.out, self.err.lines().count()), (1, "", 1), "{self:?}");
    }
}

#[track_caller]
pub fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

/// The key in the text output: alone on a line, indented by two spaces.
pub fn shown(out: &str) -> String {
    let is_key = |line: &&str| line.len() > 20 && line.bytes().all(|byte| byte.is_ascii_alphanumeric());
    out.lines().filter_map(|line| line.strip_prefix("  ")).find(is_key).expect("a key").to_owned()
}
