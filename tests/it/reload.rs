//! Reload: a changed configuration takes effect without losing a request, an invalid one not at all.

mod half_written;
mod limits;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use keyward::config::Environment;
use keyward::listener::Listen;
use keyward::metrics::{self, Metrics};
use keyward::server::Server;
use keyward::server::reload::{Pace, Source};
use keyward_emulator::Emulator;
use keyward_emulator::echo::Echo;
use keyward_emulator::store::Issue;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::support::raw::Client;
use crate::support::tls::{Authority, toml};
use crate::support::{TEST_TIMEOUT, bind_loopback, wait_until};

/// For tests that do not check the watcher's delays.
const FAST: Pace = Pace {
    look_every: Duration::from_millis(10),
    settle: Duration::from_millis(10),
    hold: Duration::from_millis(40),
};

struct Reloading {
    folder: PathBuf,
    file: PathBuf,
    emulator: Emulator,
    echo: Echo,
    echo_address: SocketAddr,
    address: SocketAddr,
    management: Option<Listen>,
    hup: Arc<Notify>,
    metrics: Arc<Metrics>,
    /// Cancelled as by SIGTERM.
    stop: CancellationToken,
    running: JoinHandle<()>,
    ends: CancellationToken,
}

impl Drop for Reloading {
    fn drop(&mut self) {
        self.ends.cancel();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn text(echo: SocketAddr, routes: &[&str], more: &str) -> String {
    let route =
        |path: &&str| format!("[[routes]]\npath = \"{path}\"\nupstream = \"echo\"\nauth = \"none\"\n");
    let routes: String = routes.iter().map(route).collect();
    format!(
        "version = 1\n[server]\nlisten = \"127.0.0.1:0\"\ndrain_delay = \"0s\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [log]\naccess = false\n{more}\n[upstreams.echo]\nurl = \"http://{echo}\"\n{routes}"
    )
}

impl Reloading {
    async fn start(name: &str) -> Self {
        Self::start_with(name, "", "").await
    }

    /// With more lines for `[server]`, and more sections.
    async fn start_with(name: &str, server: &str, more: &str) -> Self {
        Self::start_at(name, server, more, FAST).await
    }

    async fn start_at(name: &str, server: &str, more: &str, pace: Pace) -> Self {
        let folder = std::env::temp_dir().join(format!("keyward-reload-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (emulator, echo, ends) =
            (Emulator::new(Default::default()), Echo::new(), CancellationToken::new());
        let (emulator_listener, emulator_address) = bind_loopback().await;
        let (echo_listener, echo_address) = bind_loopback().await;
        let (until, until_too, echo_too) = (ends.clone(), ends.clone(), echo.clone());
        let emulator_too = emulator.clone();
        tokio::spawn(async move { emulator_too.serve(emulator_listener, until).await });
        tokio::spawn(async move { echo_too.serve(echo_listener, until_too).await });
        let file = folder.join("keyward.toml");
        let server = format!("[server]\n{server}");
        std::fs::write(&file, text(echo_address, &["/a"], more).replace("[server]", &server)).unwrap();
        let url = format!("http://{emulator_address}");
        let environment = Environment::from_pairs([
            ("SCALEKIT_ENVIRONMENT_URL", &*url),
            ("SCALEKIT_CLIENT_ID", "dev"),
            ("SCALEKIT_CLIENT_SECRET", "dev"),
        ]);
        let (metrics, hup) = (Arc::new(Metrics::default()), Arc::new(Notify::new()));
        let source = Source::new(file.clone(), environment, Arc::clone(&hup)).at_pace(pace);
        let mut server = Server::bind(source.load().unwrap(), Arc::clone(&metrics)).unwrap();
        server.reload_from(source);
        let Some(Listen::Tcp(address)) = server.address() else { panic!("TCP") };
        let management = server.management_address();
        let stop = ends.child_token();
        let running = tokio::spawn(server.run(stop.clone(), ends.clone()));
        Self {
            folder,
            file,
            emulator,
            echo,
            echo_address,
            address,
            management,
            hup,
            metrics,
            stop,
            running,
            ends,
        }
    }

    fn write(&self, routes: &[&str], more: &str) {
        self.write_text(&text(self.echo_address, routes, more));
    }

    /// Replaces the file atomically, as careful editors do.
    fn write_text(&self, text: &str) {
        let new = self.folder.join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, &self.file).unwrap();
    }

    async fn status(&self, path: &str) -> u16 {
        let mut client = Client::connect(self.address).await;
        client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        client.read_reply().await.status
    }

    /// A good key without roles.
    fn key(&self) -> String {
        self.emulator.issue(Issue { organization_id: "org_1".into(), ..Issue::default() }).key
    }

    async fn status_with(&self, path: &str, key: &str) -> u16 {
        let mut client = Client::connect(self.address).await;
        client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n")).await;
        client.read_reply().await.status
    }

    /// Repeats a request with this key until the path has this status.
    async fn until_with(&self, path: &str, key: &str, status: u16) {
        let wait = async { while self.status_with(path, key).await != status {} };
        timeout(TEST_TIMEOUT, wait).await.unwrap_or_else(|_| panic!("{path} never was {status}"));
    }

    /// Repeats a request until the path has this status.
    async fn until(&self, path: &str, status: u16) {
        let wait = async { while self.status(path).await != status {} };
        timeout(TEST_TIMEOUT, wait).await.unwrap_or_else(|_| panic!("{path} never was {status}"));
    }

    async fn until_reload_fails(&self) {
        let wait = async {
            while self.metrics.reload_successful.get() == 1 {
                tokio::task::yield_now().await;
            }
        };
        timeout(TEST_TIMEOUT, wait).await.expect("the reload is refused");
    }
}

#[tokio::test]
async fn sighup_applies_routes_and_keeps_connections() {
    let keyward = Reloading::start("hup").await;
    assert_eq!((keyward.status("/a").await, keyward.status("/b").await), (200, 404));
    let mut client = Client::connect(keyward.address).await;
    client.send("GET /a HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(client.read_reply().await.status, 200);
    let connections = keyward.echo.counts().connections;
    keyward.write(&["/b"], "");
    keyward.hup.notify_one();
    keyward.until("/b", 200).await;
    assert_eq!(keyward.status("/a").await, 404);
    client.send("GET /b HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(client.read_reply().await.status, 200, "a connection from before the reload goes on");
    assert_eq!(keyward.echo.counts().connections, connections, "the pool of an unchanged upstream is kept");
}

#[tokio::test]
async fn changed_file_and_swapped_symlink_are_noticed() {
    let keyward = Reloading::start("watch").await;
    keyward.write(&["/b"], "");
    keyward.until("/b", 200).await;
    // As in a Kubernetes volume: the file is a symlink into a folder whose own symlink is swapped.
    let link = |generation: &str, path: &str| {
        let folder = keyward.folder.join(generation);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("keyward.toml"), text(keyward.echo_address, &[path], "")).unwrap();
        let new = keyward.folder.join("data-new");
        std::os::unix::fs::symlink(generation, &new).unwrap();
        std::fs::rename(new, keyward.folder.join("data")).unwrap();
    };
    link("one", "/c");
    std::fs::remove_file(&keyward.file).unwrap();
    std::os::unix::fs::symlink(Path::new("data/keyward.toml"), &keyward.file).unwrap();
    keyward.until("/c", 200).await;
    link("two", "/d");
    keyward.until("/d", 200).await;
}

#[tokio::test]
async fn bad_file_changes_nothing_and_shows_in_metrics() {
    let keyward = Reloading::start("bad").await;
    for bad in ["version = 1\n[[routes", "version = 1\n[sever]\n", ""] {
        keyward.write_text(bad);
        keyward.hup.notify_one();
        keyward.until_reload_fails().await;
        assert_eq!(keyward.status("/a").await, 200);
        assert!(keyward.metrics.encode().contains("keyward_config_last_reload_successful 0"));
        keyward.write(&["/a"], "");
        keyward.hup.notify_one();
        timeout(TEST_TIMEOUT, async {
            while keyward.metrics.reload_successful.get() == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("a good file is taken again");
    }
    std::fs::remove_file(&keyward.file).unwrap();
    keyward.until_reload_fails().await;
    assert_eq!(keyward.status("/a").await, 200);
}

#[tokio::test]
async fn change_that_needs_restart_is_refused_whole() {
    let keyward = Reloading::start("fixed").await;
    let good = text(keyward.echo_address, &["/b"], "[limits]\nhead = \"8KiB\"");
    let long = format!("GET /a HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(10_000));
    for (from, to) in [
        ("[server]\nlisten = \"127.0.0.1:0\"", "[server]\nlisten = \"127.0.0.2:0\""),
        ("[admin]\nlisten = \"127.0.0.1:0\"", "[admin]\nlisten = \"127.0.0.2:0\""),
        ("[limits]", "[scalekit]\ntimeout = \"1500ms\"\n[limits]"),
        ("[log]", "[log]\nformat = \"json\""),
        // Valid TOML, but not a valid route file.
        ("[limits]", "[upstreams.broken]\nurl = \"https://a\"\nca_file = \"/dev/null\"\n[limits]"),
    ] {
        assert!(good.contains(from));
        keyward.write_text(&good.replace(from, to));
        keyward.hup.notify_one();
        keyward.until_reload_fails().await;
        assert_eq!(
            (keyward.status("/a").await, keyward.status("/b").await),
            (200, 404),
            "nothing of it is in force: {to}"
        );
        let mut client = Client::connect(keyward.address).await;
        client.send(&long).await;
        assert_eq!(client.read_reply().await.status, 200, "nor of the limits: {to}");
        keyward.metrics.reload_successful.set(1);
    }
    keyward.write_text(&good);
    keyward.until("/b", 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_under_load_lose_no_request() {
    let keyward = Arc::new(Reloading::start("load").await);
    let (done, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (keyward, done, answered) = (Arc::clone(&keyward), Arc::clone(&done), Arc::clone(&answered));
        clients.spawn(async move {
            let mut client = Client::connect(keyward.address).await;
            while !done.load(Ordering::Relaxed) {
                client.send("GET /a HTTP/1.1\r\nhost: a\r\n\r\n").await;
                assert_eq!(client.read_reply().await.status, 200);
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    for round in 0..20_u64 {
        let before = answered.load(Ordering::Relaxed);
        let path = format!("/x{round}");
        keyward.write(&["/a", &path], "");
        keyward.hup.notify_one();
        keyward.until(&path, 200).await;
        timeout(TEST_TIMEOUT, async {
            while answered.load(Ordering::Relaxed) < before + 20 {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("requests go on");
    }
    done.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
}

#[tokio::test]
async fn certificate_written_before_watch_is_used() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("api.test");
    let tls = format!("tls = {{ certificate = {}, key = {} }}", toml(&certificate), toml(&key));
    let keyward = Reloading::start_with("early", &tls, "").await;
    // The first certificate has been read, and no task of the server has run yet.
    authority.issue("api.test");
    let renewed = CertificateDer::from_pem_file(&certificate).unwrap();
    let connector = TlsConnector::from(authority.client(&["http/1.1"]));
    let shown = async || {
        let stream = tokio::net::TcpStream::connect(keyward.address).await.unwrap();
        let stream = connector.connect("api.test".try_into().unwrap(), stream).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0] == renewed
    };
    timeout(TEST_TIMEOUT, async { while !shown().await {} }).await.expect("the renewed certificate");
}

#[tokio::test]
async fn rotated_certificate_is_used_for_new_connections() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue_until("api.test", 2040);
    let tls = format!("tls = {{ certificate = {}, key = {} }}", toml(&certificate), toml(&key));
    let secret = authority.folder.write("secret", "made-up-secret-of-management");
    let management =
        format!("[management]\nlisten = \"127.0.0.1:0\"\nsecret_file = {}\n{tls}", toml(&secret));
    let keyward = Reloading::start_with("tls", &tls, &management).await;
    let Some(Listen::Tcp(management)) = keyward.management else { panic!("TCP") };
    let connector = TlsConnector::from(authority.client(&["http/1.1"]));
    let shown_at = async |address| {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let stream = connector.connect("api.test".try_into().unwrap(), stream).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    };
    let first = [shown_at(keyward.address).await, shown_at(management).await];
    assert_eq!(first[0], first[1]);
    let expiry =
        |listener| keyward.metrics.certificate_expiry.get_or_create(&metrics::Listener { listener }).get();
    assert_eq!(["server", "management"].map(expiry), [2_208_988_800; 2], "the start of 2040");
    std::fs::write(&key, "no key").unwrap();
    keyward.hup.notify_one();
    keyward.until_reload_fails().await;
    assert_eq!([shown_at(keyward.address).await, shown_at(management).await], first);
    // Noticed without a signal: the files are rewritten under the same names.
    authority.issue_until("api.test", 2041);
    for address in [keyward.address, management] {
        let wait = async { while shown_at(address).await == first[0] {} };
        timeout(TEST_TIMEOUT, wait).await.expect("another certificate");
    }
    wait_until(|| ["server", "management"].map(expiry) == [2_240_611_200; 2]).await;
}
