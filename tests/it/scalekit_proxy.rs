//! Scalekit behind an HTTP proxy that opens tunnels (CONNECT): for validations, for access tokens and for key management.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use keyward_emulator::certificate::Certificate;
use keyward_emulator::store::Issue;
use keyward_emulator::{self as emulator, Emulator};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::keys;
use crate::process::{Folder, Running, keyward};
use crate::rig::Probing;
use crate::support::raw::Client;
use crate::support::{TEST_TIMEOUT, bind_loopback};

/// An emulator on https://localhost, its roots in a file, and a proxy.
struct Site {
    emulator: Emulator,
    url: String,
    folder: Folder,
    ca_file: String,
    certificate: Certificate,
    _ends: DropGuard,
}

impl Site {
    async fn start(name: &str) -> Self {
        let (certificate, ends) = (Certificate::generate().unwrap(), CancellationToken::new());
        let (emulator, folder) = (Emulator::new(emulator::Settings::default()), Folder::new(name));
        let ca_file = folder.write("ca.pem", certificate.ca_pem());
        let port = serve_tls(&emulator, &certificate, ends.clone()).await;
        let url = format!("https://localhost:{port}");
        Self { emulator, url, folder, ca_file, certificate, _ends: ends.drop_guard() }
    }

    fn issue_key(&self) -> String {
        self.emulator.issue(Issue { organization_id: "org_1".into(), ..Issue::default() }).key
    }

    fn target(&self) -> &str {
        self.url.strip_prefix("https://").unwrap()
    }
}

async fn serve_tls(emulator: &Emulator, certificate: &Certificate, until: CancellationToken) -> u16 {
    let (listener, address) = bind_loopback().await;
    let (own, presented) = (emulator.clone(), certificate.clone());
    tokio::spawn(async move { own.serve_tls(listener, &presented, until).await });
    address.port()
}

/// A proxy that opens tunnels, or gives one response to everything.
struct ConnectProxy {
    address: SocketAddr,
    /// The heads of all requests.
    heads: Arc<Mutex<Vec<String>>>,
}

const STATUS_407: &str = "HTTP/1.1 407 Proxy Authentication Required\r\nproxy-authenticate: Basic\r\n\r\n";
const STATUS_502: &str = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n";

impl ConnectProxy {
    async fn start(refusal: Option<&'static str>) -> Self {
        Self::refusing_after(0, refusal).await
    }

    /// The number of tunnels to open before it refuses.
    async fn refusing_after(opened: usize, refusal: Option<&'static str>) -> Self {
        let (listener, address) = bind_loopback().await;
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(tunnel(stream, Arc::clone(&seen), opened, refusal));
            }
        });
        Self { address, heads }
    }

    fn url(&self) -> String {
        format!("http://user:pa%3Ass@{}", self.address)
    }

    /// Checks that all requests were CONNECT to this target with the URL's credentials.
    #[track_caller]
    fn opened_tunnels_to(&self, target: &str, least: usize) {
        let heads = self.heads.lock().unwrap().clone();
        assert!(heads.len() >= least, "{heads:?}");
        for head in heads {
            assert!(head.starts_with(&format!("CONNECT {target} HTTP/1.1\r\n")), "{head}");
            // user:pa:ss
            assert!(
                head.to_lowercase().contains("\r\nproxy-authorization: basic dxnlcjpwytpzcw==\r\n"),
                "{head}"
            );
            assert!(!head.contains("Bearer"), "{head}");
        }
    }
}

async fn tunnel(
    mut stream: TcpStream,
    heads: Arc<Mutex<Vec<String>>>,
    opened: usize,
    refusal: Option<&'static str>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let number = {
        let mut heads = heads.lock().unwrap();
        heads.push(head);
        heads.len()
    };
    if let Some(refusal) = refusal.filter(|_| number > opened) {
        stream.write_all(refusal.as_bytes()).await?;
        // Open until the client has read it and closes the connection.
        while stream.read(&mut [0; 64]).await? > 0 {}
        return Ok(());
    }
    let mut server = TcpStream::connect(target).await?;
    stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    copy_bidirectional(&mut stream, &mut server).await?;
    Ok(())
}

#[tokio::test]
async fn validations_and_access_tokens_use_proxy() {
    for transport in ["rest", "grpc"] {
        let (site, proxy) = (Site::start("proxied").await, ConnectProxy::start(None).await);
        let lines =
            format!("ca_file = {:?}\nproxy = \"{}\"\ntransport = \"{transport}\"", site.ca_file, proxy.url());
        let keyward = Probing::start(&site.url, "dev", &lines);
        timeout(TEST_TIMEOUT, keyward.wait_until_ready()).await.expect("ready in time");
        // The key is valid; the upstream does not exist.
        assert_eq!(keyward.get(&site.issue_key()).await.code(), Some("upstream_unreachable"));
        assert_eq!(keyward.get(&"0".repeat(30)).await.code(), Some("invalid_key"));
        // One for the access token, one for validations.
        proxy.opened_tunnels_to(site.target(), 2);
    }
}

#[tokio::test]
async fn readyz_distinguishes_refusing_proxy_from_scalekit() {
    let site = Site::start("refused").await;
    let ca_file = format!("ca_file = {:?}", site.ca_file);
    for (refusal, expected) in [(STATUS_407, "(HTTP 407)"), (STATUS_502, "is not a success")] {
        let proxy = ConnectProxy::start(Some(refusal)).await;
        let lines = format!("{ca_file}\nproxy = \"{}\"", proxy.url());
        let keyward = Probing::start(&site.url, "dev", &lines);
        let reason = timeout(TEST_TIMEOUT, keyward.wait_for_reason()).await.expect("a reason in time");
        let refused = format!("the proxy {} refuses a connection to Scalekit", proxy.address);
        assert!(reason.contains(&refused) && reason.contains(expected), "{reason}");
        assert!(!reason.contains("pa:ss") && !reason.contains("pa%3A"), "{reason}");
        assert_eq!(keyward.get(&site.issue_key()).await.code(), Some("validation_unavailable"));
    }
    // The access token arrived, but validations fail: their pool opens its own tunnels.
    let proxy = ConnectProxy::refusing_after(1, Some(STATUS_407)).await;
    let lines = format!("{ca_file}\nproxy = \"{}\"", proxy.url());
    let reason =
        timeout(TEST_TIMEOUT, Probing::start(&site.url, "dev", &lines).wait_for_reason()).await.unwrap();
    let refused = format!("the proxy {} refuses a connection to Scalekit", proxy.address);
    assert!(reason.contains(&refused) && reason.contains("(HTTP 407)"), "{reason}");
    // Nothing listens there.
    let (listener, address) = bind_loopback().await;
    drop(listener);
    let lines = format!("{ca_file}\nproxy = \"http://{address}\"");
    let reason =
        timeout(TEST_TIMEOUT, Probing::start(&site.url, "dev", &lines).wait_for_reason()).await.unwrap();
    assert!(reason.contains(&format!("the proxy {address} cannot be reached")), "{reason}");
}

#[tokio::test]
async fn environment_proxy_is_never_used_for_upstreams() {
    let (site, proxy) = (Site::start("variables").await, ConnectProxy::start(None).await);
    let ends = CancellationToken::new();
    let _ends = ends.clone().drop_guard();
    // Any server with TLS will do.
    let upstream = serve_tls(&Emulator::new(emulator::Settings::default()), &site.certificate, ends).await;
    let file = format!(
        "version = 1\n[server]\nlisten = \"127.0.0.1:0\"\ndrain_delay = \"0s\"\n[admin]\nlisten = \"127.0.0.1:0\"\n\
         [scalekit]\nca_file = {ca:?}\n[upstreams.other]\nurl = \"https://localhost:{upstream}\"\nca_file = {ca:?}\n\
         [[routes]]\npath = \"/*\"\nupstream = \"other\"",
        ca = site.ca_file,
    );
    let file = site.folder.write("keyward.toml", &file);
    let run = || {
        let mut command = keyward(&["run", "--config", &file]);
        command.env("SCALEKIT_ENVIRONMENT_URL", &site.url).env("HTTPS_PROXY", proxy.url());
        command.env("SCALEKIT_CLIENT_ID", "dev").env("SCALEKIT_CLIENT_SECRET", "dev");
        command
    };
    let running = Running::start(run());
    let address = running.address("server.address").await;
    running.until("\"ready\"").await;
    let mut client = Client::connect(address).await;
    client
        .send(format!("GET /x HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n", site.issue_key()))
        .await;
    let reply = client.read_reply().await;
    assert_eq!((reply.status, reply.code()), (404, None), "the upstream's own response");
    proxy.opened_tunnels_to(site.target(), 2);
    assert!(!running.text().contains("pa%3Ass"), "{}", running.text());

    // With a proxy that refuses, success shows that NO_PROXY was used.
    let refusing = ConnectProxy::start(Some(STATUS_407)).await;
    let mut direct = run();
    direct.env("HTTPS_PROXY", refusing.url()).env("NO_PROXY", "example.com,localhost");
    Running::start(direct).until("\"ready\"").await;
    let mut refused = run();
    refused.env("HTTPS_PROXY", refusing.url());
    Running::start(refused).until(&format!("not ready: the proxy {} refuses", refusing.address)).await;
}

#[tokio::test]
async fn key_commands_use_proxy_or_name_it() {
    let (site, proxy) = (Site::start("keys").await, ConnectProxy::start(None).await);
    let command = |proxy: &ConnectProxy, arguments: &[&str]| {
        let mut command = keys::command(&site.url, arguments);
        command.env("SSL_CERT_FILE", &site.ca_file).env("https_proxy", proxy.url());
        command
    };
    let made = keys::done(command(&proxy, &["create", "--org", "org_1", "--quiet"])).await;
    assert_eq!((made.code, &*made.err), (0, ""), "{made:?}");
    proxy.opened_tunnels_to(site.target(), 1);
    for (refusal, expected) in [(STATUS_407, "(HTTP 407)"), (STATUS_502, "is not a success")] {
        let refusing = ConnectProxy::start(Some(refusal)).await;
        let refused = keys::done(command(&refusing, &["list", "--org", "org_1"])).await;
        refused.refused(&format!("the proxy {} refuses a connection to Scalekit", refusing.address));
        assert!(refused.err.contains(expected) && !refused.err.contains("pa%3A"), "{refused:?}");
    }
    let mut wrong = command(&proxy, &["list", "--org", "org_1"]);
    wrong.env("https_proxy", "socks5://user:hunter2@proxy");
    let wrong = keys::done(wrong).await;
    wrong.refused("https_proxy: only http:// and https:// proxies are supported");
    assert!(!wrong.err.contains("hunter2"), "{wrong:?}");
}
