//! Floods from many connections against a process with 128 MiB: it stays within the limit, and a client with a good key is
//! served meanwhile. `cargo test --release --test it memory::floods -- --nocapture` prints the figures.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use keyward_emulator::faults::{Effect, Fault, Target};
use keyward_emulator::store::Issue;
use keyward_emulator::{self as emulator, Emulator};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::{MIB, memory};
use crate::process::{Folder, Running, echo, keyward_run};
use crate::support::raw::Client;
use crate::support::{TEST_TIMEOUT, bind_loopback};
use crate::wire::http2::{
    DATA, END_HEADERS, END_STREAM, GET, HEADERS, SETTINGS, WINDOW_UPDATE, block, frame, preface,
};

/// The limit in the file, no more than that of `deploy/kustomize/component/sidecar.yaml`.
const MEMORY: usize = 128 * MIB;

/// One flood at a time: each keeps the cores busy, and the client with a good key has time limits.
static TURN: Mutex<()> = Mutex::const_new(());

/// The process with a slow emulator and an echo upstream.
struct Flooded {
    _turn: MutexGuard<'static, ()>,
    running: Running,
    address: SocketAddr,
    key: String,
    ends: CancellationToken,
    _folder: Folder,
}

/// The results of a client with a good key, and the process's memory.
struct Seen {
    times: Vec<Duration>,
    failed: Vec<(u16, String)>,
    peak: usize,
}

impl Flooded {
    async fn start(name: &str, scheme: &str, latency: Duration) -> Self {
        let turn = TURN.lock().await;
        let (folder, ends) = (Folder::new(name), CancellationToken::new());
        let secret = folder.write("secret", "dev");
        let emulator = Emulator::new(emulator::Settings::default());
        let key = emulator.issue(Issue { organization_id: "org_1".into(), ..Issue::default() }).key;
        let (listener, scalekit) = bind_loopback().await;
        let (serving, until) = (emulator.clone(), ends.clone());
        tokio::spawn(async move { serving.serve(listener, until).await });
        let file = format!(
            "version = 1\n[server]\nlisten = \"127.0.0.1:0\"\ndrain_delay = \"0s\"\ndrain_timeout = \"0s\"\n[admin]\n\
             listen = \"127.0.0.1:0\"\n[log]\naccess = false\n[limits]\nmemory = \"128MiB\"\n[scalekit]\n\
             timeout = \"8s\"\n[upstreams.echo]\n\
             url = \"{scheme}://{}\"\n[[routes]]\npath = \"/bytes/*\"\nupstream = \"echo\"\nauth = \"none\"\n[[routes]]\n\
             path = \"/*\"\nupstream = \"echo\"\n",
            echo(&ends).await
        );
        let file = folder.write("keyward.toml", &file);
        let running = Running::start(keyward_run(&file, scalekit, &secret));
        let address = running.address("server.address").await;
        running.until("\"ready\"").await;
        if !latency.is_zero() {
            emulator.set_fault(Fault::new(Target::Validate, Effect::Latency(latency)));
        }
        Self { _turn: turn, running, address, key, ends, _folder: folder }
    }

    /// Runs an attack while a client with a good key sends one request after the other.
    async fn beside(&self, attack: impl Future<Output = ()>) -> Seen {
        let mut seen = Seen { times: Vec::new(), failed: Vec::new(), peak: 0 };
        let is_over = std::cell::Cell::new(false);
        let good = async {
            let mut client = Client::connect(self.address).await;
            let request =
                format!("GET /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n", self.key);
            while !is_over.get() || seen.times.is_empty() {
                let began = Instant::now();
                client.send(&request).await;
                let reply = client.read_reply_within(TEST_TIMEOUT * 2).await;
                seen.times.push(began.elapsed());
                if reply.status != 200 {
                    seen.failed.push((reply.status, reply.code().unwrap_or_default().to_owned()));
                    client = Client::connect(self.address).await;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        let attack = async {
            attack.await;
            is_over.set(true);
        };
        tokio::join!(good, attack);
        seen.times.sort_unstable();
        // Without the program's code, which the kernel may drop.
        seen.peak = memory(&self.running, "VmHWM:") - memory(&self.running, "RssFile:");
        seen
    }

    /// Checks the results, and stops the process.
    async fn end(mut self, name: &str, seen: Seen) {
        let p99 = seen.times[seen.times.len() * 99 / 100];
        let held = memory(&self.running, "RssAnon:");
        eprintln!(
            "{name}: at most {} MiB, {} MiB after it; {} good requests, p99 {p99:?}, failed {:?}",
            seen.peak / MIB,
            held / MIB,
            seen.times.len(),
            seen.failed
        );
        assert!(seen.peak < MEMORY, "{name}: {} MiB", seen.peak / MIB);
        assert!(seen.failed.is_empty(), "{name}: {:?}", seen.failed);
        self.running.signal(rustix::process::Signal::TERM);
        assert_eq!(self.running.exit().await, Some(0), "{name}");
        self.ends.cancel();
    }
}

fn random_key() -> String {
    (0..40).map(|_| fastrand::alphanumeric()).collect()
}

/// Connections that send this and read nothing for a while; a closed one is replaced.
async fn hold(
    address: SocketAddr,
    connections: usize,
    time: Duration,
    sends: impl Fn() -> Vec<u8> + Send + Sync + 'static,
) {
    let (end, sends) = (Instant::now() + time, Arc::new(sends));
    let mut held = JoinSet::new();
    for _ in 0..connections {
        let sends = Arc::clone(&sends);
        held.spawn(async move {
            let keep = async {
                loop {
                    let Ok(mut stream) = TcpStream::connect(address).await else { continue };
                    // A connection that is closed is opened again.
                    let _ = stream.write_all(&sends()).await;
                    // Nothing is read, so that only a reset is noticed.
                    while stream.peek(&mut [0; 1]).await.is_ok_and(|count| count > 0) {
                        sleep(Duration::from_millis(50)).await;
                    }
                    sleep(Duration::from_millis(50)).await;
                }
            };
            let _ = tokio::time::timeout_at(end, keep).await;
        });
    }
    held.join_all().await;
}

fn post(path: &str) -> [(&str, &str); 4] {
    [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", path)]
}

/// POSTs with unknown keys, each with as much of a body as the windows allow.
fn uploads(piece: usize) -> Vec<u8> {
    let mut all = preface();
    for stream in (1..200).step_by(2) {
        let key = format!("Bearer {}", random_key());
        let fields = [&post("/v1")[..], &[("authorization", &*key)]].concat();
        all.extend(frame(HEADERS, END_HEADERS, stream, &block(&fields)));
    }
    // Within the small windows, so that the connection stays open: 64 KiB less the frame headers.
    for at in 0..65_000 / piece {
        let stream = 1 + 2 * (at * 100 / (65_000 / piece)) as u32;
        all.extend(frame(DATA, 0, stream, &vec![b'.'; piece]));
    }
    all
}

#[tokio::test]
async fn bad_key_uploads_stay_within_memory_limit() {
    for latency in [1500, 100] {
        let flooded = Flooded::start("uploads", "http", Duration::from_millis(latency)).await;
        let attack = hold(flooded.address, 400, Duration::from_secs(4), || uploads(8 * 1024));
        let seen = flooded.beside(attack).await;
        flooded.end(&format!("uploads with junk keys, Scalekit {latency} ms away"), seen).await;
    }
}

#[tokio::test]
async fn single_byte_frames_stay_within_memory_limit() {
    let flooded = Flooded::start("bytes", "http", Duration::from_millis(300)).await;
    let attack = hold(flooded.address, 40, Duration::from_secs(3), || uploads(1));
    let seen = flooded.beside(attack).await;
    flooded.end("bodies in frames of one byte", seen).await;
}

#[tokio::test]
async fn unread_responses_stay_within_memory_limit() {
    for scheme in ["http", "h2c"] {
        let flooded = Flooded::start("unread", scheme, Duration::ZERO).await;
        let asks = || {
            let mut all = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            all.extend(frame(SETTINGS, 0, 0, &[0, 4, 0, 16, 0, 0]));
            all.extend(frame(WINDOW_UPDATE, 0, 0, &[0x10, 0, 0, 0]));
            for stream in (1..200).step_by(2) {
                let fields = [GET[0], GET[1], GET[2], (":path", "/bytes/4000000")];
                all.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&fields)));
            }
            all
        };
        let attack = hold(flooded.address, 120, Duration::from_secs(5), asks);
        let seen = flooded.beside(attack).await;
        flooded.end(&format!("answers unread, {scheme} upstream"), seen).await;
    }
}

#[tokio::test]
async fn hpack_bombs_stay_within_memory_limit() {
    let flooded = Flooded::start("heads", "http", Duration::from_millis(500)).await;
    let asks = || {
        let key = format!("Bearer {}", random_key());
        let mut all = preface();
        for stream in (1..200).step_by(2) {
            let mut head = block(&[&GET[..], &[("authorization", &*key)]].concat());
            if stream == 1 {
                // Adds `a: ` to the HPACK table, at index 62.
                head.extend([0x40, 1, b'a', 0]);
            }
            head.extend([0xbe; 1800]);
            all.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &head));
        }
        all
    };
    let attack = hold(flooded.address, 60, Duration::from_secs(3), asks);
    let seen = flooded.beside(attack).await;
    flooded.end("heads of 1,800 fields", seen).await;
}

#[tokio::test]
async fn long_heads_stay_within_memory_limit() {
    let flooded = Flooded::start("long", "http", Duration::from_millis(500)).await;
    let asks = || {
        let mut all = preface();
        for stream in (1..200).step_by(2) {
            let key = format!("Bearer {}", random_key());
            let mut head = block(&[&GET[..3], &[(":path", "/v1"), ("authorization", &*key)]].concat());
            if stream == 1 {
                head.extend([&[0x40, 1, b'a', 127, 0xc1, 0x16][..], &[b'x'; 3008]].concat());
            }
            head.extend([0xbe; 18]);
            all.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &head));
        }
        all
    };
    let attack = hold(flooded.address, 400, Duration::from_secs(3), asks);
    let seen = flooded.beside(attack).await;
    flooded.end("heads of 54 KiB over HTTP/2", seen).await;
    let flooded = Flooded::start("slow", "http", Duration::from_millis(500)).await;
    let attack = hold(flooded.address, 400, Duration::from_secs(3), || {
        format!("GET /v1 HTTP/1.1\r\nhost: a\r\nx: {}", "x".repeat(63_000)).into_bytes()
    });
    let seen = flooded.beside(attack).await;
    flooded.end("heads of 63 KiB that do not end", seen).await;
}

#[tokio::test]
async fn thousands_of_bad_keys_stay_within_memory_limit() {
    let flooded = Flooded::start("keys", "http", Duration::from_millis(60)).await;
    let (address, count) = (flooded.address, 1200);
    let attack = async {
        let mut clients = JoinSet::new();
        for _ in 0..15 {
            clients.spawn(async move {
                let stream = TcpStream::connect(address).await.unwrap();
                let (mut send, connection) = h2::client::handshake(stream).await.unwrap();
                let driver = tokio::spawn(connection);
                let mut answers = Vec::new();
                for _ in 0..count {
                    send = send.ready().await.unwrap();
                    let key = format!("Bearer {}", random_key());
                    let request = hyper::Request::get("http://a/v1").header("authorization", key).body(());
                    answers.push(send.send_request(request.unwrap(), true).unwrap().0);
                    if answers.len() == 32 {
                        for answer in answers.drain(..) {
                            let _ = timeout(TEST_TIMEOUT, answer).await.unwrap();
                        }
                    }
                }
                driver.abort();
            });
        }
        clients.join_all().await;
    };
    let seen = flooded.beside(attack).await;
    flooded.end("18,000 random keys", seen).await;
}

#[tokio::test]
async fn memory_is_returned_after_flood() {
    let flooded = Flooded::start("back", "http", Duration::ZERO).await;
    let before = memory(&flooded.running, "RssAnon:");
    hold(flooded.address, 100, Duration::from_secs(2), || uploads(8 * 1024)).await;
    // The allocator returns memory only while it is used, as by an orchestrator's probes.
    let wait = async {
        while memory(&flooded.running, "RssAnon:") > before + 24 * MIB {
            // Several at once, so that each thread of the process serves some.
            let asks = (0..16).map(|_| async {
                let mut client = Client::connect(flooded.address).await;
                client.send("GET /bytes/20000 HTTP/1.1\r\nhost: a\r\n\r\n").await;
                assert_eq!(client.read_reply().await.status, 200);
            });
            futures_util::future::join_all(asks).await;
        }
    };
    let given_back = timeout(TEST_TIMEOUT * 3, wait).await.is_ok();
    let held = memory(&flooded.running, "RssAnon:");
    assert!(given_back, "{} MiB before, {} MiB after", before / MIB, held / MIB);
    eprintln!("given back: {} MiB before, {} MiB after", before / MIB, held / MIB);
    let seen = Seen { times: vec![Duration::ZERO], failed: Vec::new(), peak: 0 };
    flooded.end("given back", seen).await;
}
