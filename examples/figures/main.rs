//! The figures of `docs/validation.md` and `docs/wire.md`, one command each: `cargo run --release --example figures -- NAME`,
//! where NAME is `revocation`, `sharing`, `bad-keys`, `one-bad-key`, `outage` or `usage`; or, after `cargo build --release`, `drains`,
//! `reloads`, `bodies`, `sse` or `floods`. Keyward runs in its own process; this process has the emulator, the upstream and
//! the load. All traffic is on loopback, and every run has an end.
#![allow(clippy::print_stdout)]

mod floods;
mod keyward;
mod load;
mod usage;
mod wire;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::keyward::config::{self, Environment};
use ::keyward::listener::Listen;
use ::keyward::server::Server;
use ::keyward_emulator::echo::Echo;
use ::keyward_emulator::faults::{Answer, Effect, Fault, Target};
use ::keyward_emulator::store::Issue;
use ::keyward_emulator::{Emulator, Settings};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["revocation"] => revocation().await,
        ["sharing"] => sharing().await,
        ["bad-keys"] => bad_keys().await,
        ["one-bad-key"] => one_bad_key().await,
        ["outage"] => outage().await,
        ["usage"] => usage::run().await,
        ["drains"] => wire::drains().await,
        ["reloads"] => wire::reloads().await,
        ["bodies"] => wire::bodies().await,
        ["sse"] => wire::sse().await,
        ["floods"] => floods::floods().await,
        ["keyward", scalekit, upstream, file] => serve(scalekit, upstream, file).await,
        _ => bail!(
            "one of: revocation, sharing, bad-keys, one-bad-key, outage, usage, drains, reloads, bodies, sse, floods"
        ),
    }
}

/// Counts requests that were sent after the revocation was acknowledged, and still forwarded.
async fn revocation() -> Result<()> {
    let stage = Stage::start("").await?;
    stage.fault(Target::Validate, Effect::LatencyAfter(Duration::from_millis(100)));
    for round in 1..=5 {
        let key = stage.key();
        let calls = stage.emulator.counts().validations;
        let revoked = Arc::new(std::sync::OnceLock::new());
        let load = Load { connections: 32, per_second: 200, seconds: 4, key: Key::One(key.clone()) };
        let (emulator, mark) = (stage.emulator.clone(), Arc::clone(&revoked));
        let revoker = tokio::spawn(async move {
            sleep(Duration::from_secs(2)).await;
            emulator.revoke(&key);
            let _ = mark.set(Instant::now());
        });
        let seen = load.run(&stage).await?;
        revoker.await?;
        let revoked = *revoked.get().context("revoked")?;
        let after = seen.iter().filter(|seen| seen.sent > revoked);
        let (served, refused) = after
            .fold((0, 0), |(ok, not), seen| if seen.status == 200 { (ok + 1, not) } else { (ok, not + 1) });
        println!(
            "round {round}: {} requests, {} calls; after the revocation {served} served, {refused} refused",
            seen.len(),
            stage.emulator.counts().validations - calls
        );
    }
    Ok(())
}

/// Calls with and without shared validations, and the added latency.
async fn sharing() -> Result<()> {
    for (name, lines) in [("shared, at most 4", ""), ("no sharing", "max_in_flight_per_key = 1000000")] {
        let stage = Stage::start(lines).await?;
        let key = stage.key();
        stage.fault(Target::Validate, Effect::LatencyAfter(Duration::from_millis(20)));
        let before = stage.emulator.counts().validations;
        let burst = Load { connections: 50, per_second: 0, seconds: 0, key: Key::One(key.clone()) };
        burst.run(&stage).await?;
        println!("{name}: 50 requests at once, {} calls", stage.emulator.counts().validations - before);
        let steady = Load { connections: 128, per_second: 2000, seconds: 10, key: Key::One(key) };
        let before = stage.emulator.counts().validations;
        let seen = steady.run(&stage).await?;
        let calls = stage.emulator.counts().validations - before;
        println!(
            "{name}: {} requests a second, {} calls a second, p50 {:.1} ms, p99 {:.1} ms, not served {}",
            seen.len() / 10,
            calls / 10,
            percentile(&seen, 0.5),
            percentile(&seen, 0.99),
            seen.iter().filter(|seen| seen.status != 200).count()
        );
    }
    Ok(())
}

/// Calls and memory under a flood from one address.
async fn bad_keys() -> Result<()> {
    let stage = Stage::start("[throttle]\nbad_keys_per_minute = 120").await?;
    // Warms up, so that the memory of one request is allocated before the measurement.
    Load { connections: 32, per_second: 0, seconds: 0, key: Key::One(stage.key()) }.run(&stage).await?;
    let (before, rss, began) = (stage.emulator.counts().validations, stage.memory()?, Instant::now());
    let connections = 32;
    let mut callers = JoinSet::new();
    for caller in 0..connections {
        let mut client = stage.connect().await?;
        callers.spawn(async move {
            let mut counts = [0_u64; 3];
            for number in (caller..100_000).step_by(connections) {
                match get(&mut client, &format!("0000000000000000000000{number:08}")).await? {
                    401 => counts[0] += 1,
                    429 => counts[1] += 1,
                    _ => counts[2] += 1,
                }
            }
            anyhow::Ok(counts)
        });
    }
    let mut counts = [0; 3];
    while let Some(caller) = callers.join_next().await {
        counts.iter_mut().zip(caller??).for_each(|(sum, count)| *sum += count);
    }
    println!(
        "100000 distinct bad keys in {:.1} s: {} calls; 401 {}, 429 {}, other {}; memory {} KiB before, {} KiB after",
        began.elapsed().as_secs_f64(),
        stage.emulator.counts().validations - before,
        counts[0],
        counts[1],
        counts[2],
        rss,
        stage.memory()?
    );
    Ok(())
}

/// Calls for one invalid key during twice the lifetime of its cache entry.
async fn one_bad_key() -> Result<()> {
    let stage = Stage::start("").await?;
    let before = stage.emulator.counts().validations;
    let began = Instant::now();
    let load = Load { connections: 4, per_second: 100, seconds: 10, key: Key::One("0".repeat(40)) };
    let seen = load.run(&stage).await?;
    println!(
        "{} tries of one bad key in {:.1} s, remembered for 5 s: {} calls; 401 {}",
        seen.len(),
        began.elapsed().as_secs_f64(),
        stage.emulator.counts().validations - before,
        seen.iter().filter(|seen| seen.status == 401).count()
    );
    Ok(())
}

/// Scalekit down for ten seconds in the middle of twenty.
async fn outage() -> Result<()> {
    for (name, target, effect) in [
        ("answers 503", Target::Validate, Effect::Answer(Answer::status(503))),
        ("refuses connections", Target::Any, Effect::Refuse),
        ("hangs", Target::Any, Effect::Hang),
    ] {
        let stage = Stage::start("").await?;
        let keys: Vec<_> = (0..50).map(|_| stage.key()).collect();
        let emulator = stage.emulator.clone();
        let down = tokio::spawn(async move {
            sleep(Duration::from_secs(5)).await;
            let from = (Instant::now(), emulator.counts().validations);
            emulator.set_fault(Fault::new(target, effect));
            sleep(Duration::from_secs(10)).await;
            let to = (Instant::now(), emulator.counts().validations);
            emulator.clear_faults();
            (from, to)
        });
        let load = Load { connections: 256, per_second: 200, seconds: 20, key: Key::Many(keys) };
        let seen = load.run(&stage).await?;
        let ((from, calls_from), (to, calls_to)) = down.await?;
        let during: Vec<_> = seen.iter().filter(|seen| seen.sent > from && seen.sent < to).collect();
        let count = |status: u16| during.iter().filter(|seen| seen.status == status).count();
        let fast = during.iter().filter(|seen| seen.took < Duration::from_millis(50)).count();
        let recovered =
            seen.iter().filter(|seen| seen.sent > to && seen.status == 200).map(|seen| seen.sent).min();
        let last =
            seen.iter().filter(|seen| seen.sent > to && seen.status == 503).map(|seen| seen.sent).max();
        println!(
            "{name}: {} requests while down: 503 {}, 401 {}, other {}; {fast} answered within 50 ms; \
             {} calls reached it, {} validations attempted; first served {:.2} s after it was back, last 503 {:.2} s",
            during.len(),
            count(503),
            seen.iter().filter(|seen| seen.status == 401).count(),
            during.len() - count(503),
            calls_to - calls_from,
            stage.failed().await?,
            recovered.map_or(f64::NAN, |at| (at - to).as_secs_f64()),
            last.map_or(0.0, |at| (at - to).as_secs_f64()),
        );
    }
    Ok(())
}

/// Sends requests at a steady rate, or one on each connection at once.
struct Load {
    connections: u64,
    per_second: u64,
    seconds: u64,
    key: Key,
}

enum Key {
    One(String),
    Many(Vec<String>),
}

struct Seen {
    sent: Instant,
    took: Duration,
    status: u16,
}

impl Load {
    async fn run(&self, stage: &Stage) -> Result<Vec<Seen>> {
        let total = if self.per_second == 0 { self.connections } else { self.per_second * self.seconds };
        let mut callers = JoinSet::new();
        let mut clients = Vec::new();
        for _ in 0..self.connections {
            clients.push(stage.connect().await?);
        }
        let begin = tokio::time::Instant::now() + Duration::from_millis(20);
        for (caller, mut client) in (0..self.connections).zip(clients) {
            let numbers: Vec<u64> = (caller..total).step_by(usize::try_from(self.connections)?).collect();
            let keys = match &self.key {
                Key::One(key) => vec![key.clone()],
                Key::Many(keys) => keys.clone(),
            };
            let (per_second, address) = (self.per_second, stage.address);
            callers.spawn(async move {
                let mut seen = Vec::with_capacity(numbers.len());
                for number in numbers {
                    let due = if per_second == 0 { 0.0 } else { number as f64 / per_second as f64 };
                    sleep_until(begin + Duration::from_secs_f64(due)).await;
                    let key = &keys[number as usize % keys.len()];
                    let sent = Instant::now();
                    if client.is_closed() {
                        client = connect(address).await?;
                    }
                    let status = get(&mut client, key).await?;
                    seen.push(Seen { sent, took: sent.elapsed(), status });
                }
                anyhow::Ok(seen)
            });
        }
        let mut all = Vec::new();
        while let Some(seen) = callers.join_next().await {
            all.extend(seen??);
        }
        Ok(all)
    }
}

fn percentile(seen: &[Seen], share: f64) -> f64 {
    let mut times: Vec<_> = seen.iter().map(|seen| seen.took).collect();
    times.sort_unstable();
    times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn get(client: &mut SendRequest<Empty<Bytes>>, key: &str) -> Result<u16> {
    client.ready().await?;
    let request =
        Request::get("/v1").header("host", "api.test").header("authorization", format!("Bearer {key}"));
    let response = client.send_request(request.body(Empty::new())?).await?;
    let status = response.status().as_u16();
    response.into_body().collect().await?;
    Ok(status)
}

/// The emulator and the echo upstream in this process, and Keyward in a child process.
struct Stage {
    emulator: Emulator,
    address: SocketAddr,
    admin: SocketAddr,
    keyward: Child,
}

impl Stage {
    /// `lines` are appended to the `[scalekit]` section.
    async fn start(lines: &str) -> Result<Self> {
        let (emulator, echo) = (Emulator::new(Settings::default()), Echo::new());
        let (scalekit, upstream) =
            (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
        let arguments =
            [format!("http://{}", scalekit.local_addr()?), format!("http://{}", upstream.local_addr()?)];
        let own = emulator.clone();
        tokio::spawn(async move { own.serve(scalekit, CancellationToken::new()).await });
        tokio::spawn(async move { echo.serve(upstream, CancellationToken::new()).await });
        let mut keyward = Command::new(std::env::current_exe()?)
            .arg("keyward")
            .args(arguments)
            .arg(lines)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(keyward.stdout.take().context("its output")?).lines();
        // The child becomes ready only if the emulator runs.
        let mut line = || tokio::task::block_in_place(|| lines.next().context("an address"));
        let (address, admin) = (line()??.parse()?, line()??.parse()?);
        Ok(Self { emulator, address, admin, keyward })
    }

    fn key(&self) -> String {
        self.emulator.issue(Issue { organization_id: "org_1".into(), ..Issue::default() }).key
    }

    fn fault(&self, target: Target, effect: Effect) {
        self.emulator.set_fault(Fault::new(target, effect));
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>> {
        connect(self.address).await
    }

    /// The resident memory of the Keyward process, in KiB.
    fn memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.keyward.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
    }

    /// Validations without a verdict, whether or not they reached Scalekit.
    async fn failed(&self) -> Result<u64> {
        let mut admin = connect(self.admin).await?;
        let request = Request::get("/metrics").header("host", "admin").body(Empty::new())?;
        let body = admin.send_request(request).await?.into_body().collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&body);
        let lines = text.lines().filter(|line| line.starts_with("keyward_validations_total{"));
        let failed = lines.filter(|line| !line.contains("valid\"}"));
        failed.filter_map(|line| line.rsplit(' ').next()).map(|value| Ok(value.parse::<u64>()?)).sum()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // The process may already have ended.
        let _ = self.keyward.kill();
        let _ = self.keyward.wait();
    }
}

/// The child process: Keyward alone; it prints its address when it is ready.
async fn serve(scalekit: &str, upstream: &str, lines: &str) -> Result<()> {
    let file = format!(
        "version = 1\n[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[log]\naccess = false\n\
         [upstreams.echo]\nurl = \"{upstream}\"\n[[routes]]\npath = \"/*\"\nupstream = \"echo\"\n[scalekit]\n{lines}"
    );
    let environment = Environment::from_pairs([
        ("SCALEKIT_ENVIRONMENT_URL", scalekit),
        ("SCALEKIT_CLIENT_ID", "dev"),
        ("SCALEKIT_CLIENT_SECRET", "dev"),
    ]);
    let config = config::parse(&file, "figures.toml", &environment)
        .map_err(|problems| anyhow::anyhow!("{problems}"))?;
    let server = Server::bind(config, Arc::default())?;
    let addresses = [server.address(), Some(server.admin_address())];
    let readiness = server.readiness();
    let stop = CancellationToken::new();
    let running = tokio::spawn(server.run(stop.clone(), stop));
    readiness.wait_until_ready().await;
    for address in addresses {
        let Some(Listen::Tcp(address)) = address else { bail!("TCP") };
        println!("{address}");
    }
    Ok(running.await?)
}
