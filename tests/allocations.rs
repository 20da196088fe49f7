//! Allocations of Keyward's thread for one request of each kind, compared with those recorded in `tests/allocations.txt`: a change
//! that raises them fails here, and one that lowers them has to record the gain.
//! `UPDATE_FIXTURES=1 cargo test --test allocations` records them.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout
)]

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use allocation_counter::{AllocationInfo, measure};
use it::support::http::{HttpClient, HttpVersion, read_body};
use it::support::{ROUTES, TEST_TIMEOUT, bind_loopback};
use keyward::config::{self, Environment};
use keyward::listener::Listen;
use keyward::server::Server;
use keyward_emulator::Emulator;
use keyward_emulator::echo::Echo;
use keyward_emulator::store::Issue;
use tokio::runtime;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

mod it {
    pub mod support;
}

/// In percent, above and below the recorded figure.
const TOLERANCE: f64 = 5.0;
/// Before anything is counted: buffers of 8 KiB have to be used up once, by heads of 52 bytes and more.
const WARM_UP: usize = 200;
/// Of one round.
const REQUESTS: usize = 50;
/// The least of these is taken: a read that returns a part of what was sent, and work that is due from time to time, only add.
const ROUNDS: usize = 5;

/// Requests of one kind, sent one after another over one connection.
struct Kind {
    name: &'static str,
    http_version: HttpVersion,
    path: &'static str,
    key: Key,
}

#[derive(Clone, Copy)]
enum Key {
    Valid,
    Unknown,
    Absent,
}

const AUTHENTICATED: Kind =
    Kind { name: "authenticated", http_version: HttpVersion::Http1, path: "/v1/orders", key: Key::Valid };
const KINDS: [Kind; 4] = [
    AUTHENTICATED,
    Kind { name: "known-bad", key: Key::Unknown, ..AUTHENTICATED },
    Kind { name: "open-route", path: "/public/orders", key: Key::Absent, ..AUTHENTICATED },
    Kind { name: "http2", http_version: HttpVersion::Http2, ..AUTHENTICATED },
];

const HEADER: &str = "# What one request of each kind allocates: calls of the allocator, bytes. Written by
# UPDATE_FIXTURES=1 cargo test --test allocations
";

/// Keyward on a thread of its own, so that nothing else is counted.
struct Keyward {
    address: SocketAddr,
    /// Ends the count that runs, and begins another.
    boundary: UnboundedSender<()>,
    counts: Receiver<AllocationInfo>,
}

impl Keyward {
    /// With the access log's lines, which are discarded when they are complete.
    fn start(scalekit: SocketAddr, upstream: SocketAddr) -> Self {
        let file = format!(
            "version = 1\n[server]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n[log]\nformat = \"json\"\n\
             [upstreams.echo]\nurl = \"http://{upstream}\"\n{ROUTES}"
        );
        let url = format!("http://{scalekit}");
        let environment = Environment::from_pairs([
            ("SCALEKIT_ENVIRONMENT_URL", &*url),
            ("SCALEKIT_CLIENT_ID", "dev"),
            ("SCALEKIT_CLIENT_SECRET", "dev"),
        ]);
        let mut config = config::parse(&file, "allocations.toml", &environment).unwrap();
        config.fit(config::Resources::default());
        let (boundary, mut boundaries) = unbounded_channel();
        let (count_sender, counts) = channel();
        let (address_sender, addresses) = channel();
        thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let server = Server::bind(config, Default::default()).unwrap();
                let (address, readiness) = (server.address().unwrap(), server.readiness());
                tokio::spawn(server.run(CancellationToken::new(), CancellationToken::new()));
                timeout(TEST_TIMEOUT, readiness.wait_until_ready()).await.expect("Keyward gets ready");
                address_sender.send(address).unwrap();
            });
            let mut is_wanted = true;
            while is_wanted {
                let count = measure(|| is_wanted = runtime.block_on(boundaries.recv()).is_some());
                // The test may have ended.
                let _ = count_sender.send(count);
            }
        });
        let Ok(Listen::Tcp(address)) = addresses.recv() else { panic!("TCP") };
        Self { address, boundary, counts }
    }

    /// What was allocated since the last call.
    fn take_count(&self) -> AllocationInfo {
        self.boundary.send(()).unwrap();
        self.counts.recv_timeout(TEST_TIMEOUT).unwrap()
    }

    /// Calls of the allocator for a request, and the bytes that they asked for.
    async fn measure_kind(&self, kind: &Kind, valid_key: &str) -> [f64; 2] {
        let mut client = HttpClient::connect(self.address, kind.http_version).await;
        send_requests(&mut client, kind, valid_key, WARM_UP).await;
        let mut least = [f64::INFINITY; 2];
        for _ in 0..ROUNDS {
            self.take_count();
            send_requests(&mut client, kind, valid_key, REQUESTS).await;
            let count = self.take_count();
            for (least, total) in least.iter_mut().zip([count.count_total, count.bytes_total]) {
                *least = least.min(total as f64 / REQUESTS as f64);
            }
        }
        least
    }
}

async fn send_requests(client: &mut HttpClient, kind: &Kind, valid_key: &str, count: usize) {
    let (key, status) = match kind.key {
        Key::Valid => (valid_key, 200),
        Key::Unknown => ("000000000000000000000000000001", 401),
        Key::Absent => ("", 200),
    };
    for _ in 0..count {
        let response = client.get(kind.path, key).await.unwrap();
        assert_eq!(response.status(), status, "{}", kind.name);
        read_body(response).await.unwrap();
    }
}

/// `name calls bytes` on each line, after comments.
fn parse_figures(text: &str, name: &str) -> Option<[f64; 2]> {
    let mut words = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .unwrap_or_default()
        .split_whitespace();
    Some([words.next()?.parse().ok()?, words.next()?.parse().ok()?])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn requests_allocate_what_is_recorded() {
    let (emulator, echo) = (Emulator::new(keyward_emulator::Settings::default()), Echo::new());
    let (emulator_listener, emulator_address) = bind_loopback().await;
    let (echo_listener, echo_address) = bind_loopback().await;
    let issued = emulator.issue(Issue {
        organization_id: "org_1".into(),
        user_id: "usr_1".into(),
        email: "user@example.com".into(),
        custom_claims: [("team".into(), "engineering".into())].into(),
        roles: vec!["reader".into()],
        ..Issue::default()
    });
    tokio::spawn(async move { emulator.serve(emulator_listener, CancellationToken::new()).await });
    tokio::spawn(async move { echo.serve(echo_listener, CancellationToken::new()).await });
    let keyward = Keyward::start(emulator_address, echo_address);

    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/allocations.txt");
    let recorded = fs::read_to_string(file).unwrap_or_default();
    let (mut new, mut report, mut is_as_recorded) = (HEADER.to_owned(), String::new(), true);
    for kind in &KINDS {
        let measured = keyward.measure_kind(kind, &issued.key).await;
        let _ = writeln!(new, "{} {:.0} {:.0}", kind.name, measured[0], measured[1]);
        let old = parse_figures(&recorded, kind.name).unwrap_or_default();
        for (unit, old, measured) in [("allocations", old[0], measured[0]), ("bytes", old[1], measured[1])] {
            let change = (measured / old - 1.0) * 100.0;
            let _ = writeln!(report, "{}: {old:.0} {unit}, now {measured:.1} ({change:+.1} %)", kind.name);
            is_as_recorded &= change.abs() <= TOLERANCE;
        }
    }
    println!("{report}");
    if std::env::var_os("UPDATE_FIXTURES").is_some() {
        return fs::write(file, new).unwrap();
    }
    assert!(
        is_as_recorded,
        "a request allocates {TOLERANCE} % more or less than tests/allocations.txt says:\n{report}\
         If this is intended, or if a dependency or Rust was updated, record it:\n\
         UPDATE_FIXTURES=1 cargo test --test allocations"
    );
}
