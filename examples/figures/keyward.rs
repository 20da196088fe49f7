//! Runs the program `target/release/keyward`, with an emulator and an echo upstream in this process.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::keyward_emulator::echo::Echo;
use ::keyward_emulator::store::Issue;
use ::keyward_emulator::{Emulator, Settings};
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// A Keyward process. It is killed on drop.
pub(super) struct Keyward {
    pub(super) address: SocketAddr,
    pub(super) echo: Echo,
    pub(super) echo_address: SocketAddr,
    pub(super) key: String,
    /// The number of reloads that it has logged.
    pub(super) reloads: Arc<AtomicU64>,
    child: Child,
    file: PathBuf,
    stop: CancellationToken,
}

/// The route file. `server` and `upstream` are appended to their sections, `more` to the end.
pub(super) fn file(echo: SocketAddr, server: &str, upstream: &str, more: &str) -> String {
    format!(
        "version = 1\n[server]\nlisten = \"127.0.0.1:0\"\n{server}\n[admin]\nlisten = \"127.0.0.1:0\"\n[log]\n\
         access = false\nformat = \"json\"\n[upstreams.echo]\nurl = \"http://{echo}\"\n{upstream}\n\
         [[routes]]\npath = \"/*\"\nupstream = \"echo\"\n{more}"
    )
}

impl Keyward {
    /// Starts the process and waits until it is ready.
    pub(super) async fn start(server: &str, upstream: &str) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let (emulator, echo) = (Emulator::new(Settings::default()), Echo::new());
        let stop = CancellationToken::new();
        let (scalekit, listener) =
            (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
        let (url, echo_address) = (format!("http://{}", scalekit.local_addr()?), listener.local_addr()?);
        let key = emulator.issue(Issue { organization_id: "org_1".into(), ..Issue::default() }).key;
        let (own, until, until_too) = (echo.clone(), stop.clone(), stop.clone());
        tokio::spawn(async move { emulator.serve(scalekit, until).await });
        tokio::spawn(async move { own.serve(listener, until_too).await });
        let name =
            format!("keyward-figures-{}-{}.toml", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, file(echo_address, server, upstream, ""))?;
        let own = std::env::current_exe()?;
        let program = own.ancestors().nth(2).context("target/release")?.join("keyward");
        let mut child = Command::new(&program)
            .args(["run", "--config"])
            .arg(&path)
            .envs([("SCALEKIT_ENVIRONMENT_URL", &*url), ("SCALEKIT_CLIENT_ID", "dev")])
            .env("SCALEKIT_CLIENT_SECRET", "dev")
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{}: cargo build --release", program.display()))?;
        let output = BufReader::new(child.stdout.take().context("its output")?);
        let (said, mut lines) = mpsc::unbounded_channel();
        let reloads = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&reloads);
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if line.contains("\"reloaded\"") {
                    count.fetch_add(1, Ordering::Relaxed);
                }
                // The receiver is gone once the process is ready.
                let _ = said.send(line);
            }
        });
        let mut address = None;
        while let Some(line) = lines.recv().await {
            if line.contains("\"listening\"") {
                let line: serde_json::Value = serde_json::from_str(&line)?;
                address = line["server.address"].as_str().map(str::parse).transpose()?;
            } else if line.contains("\"ready\"") {
                break;
            }
        }
        let address = address.context("it gets ready")?;
        Ok(Self { address, echo, echo_address, key, reloads, child, file: path, stop })
    }

    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let id = Pid::from_raw(i32::try_from(self.child.id())?).context("a process")?;
        Ok(kill_process(id, signal)?)
    }

    /// Replaces the route file atomically.
    pub(super) fn rewrite(&self, upstream: &str, more: &str) -> Result<()> {
        let next = self.file.with_extension("next");
        std::fs::write(&next, file(self.echo_address, "", upstream, more))?;
        Ok(std::fs::rename(next, &self.file)?)
    }

    /// Waits until the process has ended.
    pub(super) async fn ended(&mut self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// The value of a line in its `/proc/PID/status`, in MiB.
    pub(super) fn memory(&self, name: &str) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("its memory")?;
        let kib: f64 = line.trim_start_matches(':').trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib / 1024.0)
    }
}

impl Drop for Keyward {
    fn drop(&mut self) {
        self.stop.cancel();
        // The process may already have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}
