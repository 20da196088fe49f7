//! HTTP proxies: calls of the client and of a caller's own connection through them, and proxies that refuse.

use std::sync::Arc;
use std::time::Duration;

use scalekit::client::{Client, Settings};
use scalekit::environment::Environment;
use scalekit::error::{Class, Error};
use scalekit::proxy::{Proxy, ProxyServer};
use scalekit::transport::Transport;
use scalekit::tunnel::{MAX_HEAD_BYTES, open_tunnel};
use scalekit::validate::Validation;
use tokio::net::{TcpListener, TcpStream};

use crate::support::server::{Connect, ConnectProxy, Scalekit, credentials};
use crate::support::{TOKEN, token};

const REFUSED_407: &str =
    "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\n\r\n";
const REFUSED_502: &str = "HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n";

impl ConnectProxy {
    fn server(&self) -> ProxyServer {
        format!("http://us%40er:pa%3Ass@{}", self.address).parse().unwrap()
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

fn client(scalekit: &Scalekit, proxy: ProxyServer, transport: Transport) -> Client {
    let mut settings = scalekit.settings(transport);
    settings.proxy = Proxy::Server(proxy);
    Client::new(settings).unwrap()
}

#[tokio::test]
async fn client_uses_proxy_with_credentials() {
    for transport in [Transport::Rest, Transport::Grpc] {
        let (scalekit, proxy) = (Scalekit::start_tls().await, ConnectProxy::start(Connect::Open).await);
        // The certificate of a private authority is verified inside the tunnel.
        let client = client(&scalekit, proxy.server(), transport);
        assert_eq!(client.validate_token(TOKEN).await, Ok(Validation::Valid(token())));
        assert_eq!(client.probe().await, Ok(()));
        let heads = proxy.heads();
        assert!(!heads.is_empty());
        for head in heads {
            let target = format!("localhost:{}", scalekit.address.port());
            assert!(head.starts_with(&format!("CONNECT {target} HTTP/1.1\r\n")), "{head}");
            // us@er:pa:ss
            assert!(
                head.to_lowercase().contains("\r\nproxy-authorization: basic dxnazxi6cge6c3m=\r\n"),
                "{head}"
            );
            assert!(!head.contains("Bearer"), "the proxy sees no token: {head}");
        }
        for request in scalekit.requests.lock().unwrap().iter() {
            assert!(!request.headers.contains_key("proxy-authorization"));
            assert_eq!(request.version, http::Version::HTTP_2);
        }
    }
}

#[tokio::test]
async fn proxy_connection_can_use_tls() {
    let scalekit = Scalekit::start_tls().await;
    let proxy = ConnectProxy::start_tls(&scalekit).await;
    let url = format!("https://localhost:{}", proxy.address.port());
    for transport in [Transport::Rest, Transport::Grpc] {
        let client = client(&scalekit, url.parse().unwrap(), transport);
        assert_eq!(client.probe().await, Ok(()));
    }
    assert!(proxy.heads().len() >= 2);
    // An untrusted certificate of the proxy is an error of the proxy.
    let mut settings = Scalekit::start_tls().await.settings(Transport::Rest);
    settings.environment = scalekit.url().parse().unwrap();
    settings.proxy = Proxy::Server(url.parse().unwrap());
    let error = Client::new(settings).unwrap().authenticate().await.unwrap_err();
    assert_eq!(error.kind(), "proxy", "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
}

const CHILD_URL: &str = "SCALEKIT_TEST_CHILD_URL";

/// The child process of the next test; without its environment it does nothing.
#[tokio::test]
async fn print_proxy_choice_of_child_process() {
    let Ok(url) = std::env::var(CHILD_URL) else { return };
    let mut settings = Settings::new(url.parse().unwrap(), || Ok(credentials("secret")));
    // Another certificate than the parent's, so that a direct connection ends with TLS.
    settings.tls = Scalekit::start_tls().await.settings(Transport::Rest).tls;
    settings.timeout = Duration::from_secs(5);
    let error = match Client::new(settings) {
        Ok(client) => client.authenticate().await.unwrap_err().kind().to_owned(),
        Err(error) => error.to_string(),
    };
    println!("child: {error}.");
}

#[tokio::test]
async fn process_environment_chooses_proxy() {
    let (scalekit, proxy) =
        (Scalekit::start_tls().await, ConnectProxy::start(Connect::Say(REFUSED_407.into())).await);
    let url = proxy.server().url();
    let invalid = "HTTPS_PROXY: only http:// and https:// proxies are supported";
    for (variables, outcome) in [
        (vec![("HTTPS_PROXY", url.as_str())], "proxy"),
        (vec![("https_proxy", &url)], "proxy"),
        (vec![("HTTPS_PROXY", &url), ("NO_PROXY", "example.com,localhost")], "tls"),
        (vec![("https_proxy", &url), ("no_proxy", "*")], "tls"),
        (vec![("HTTP_PROXY", &url), ("ALL_PROXY", &url)], "tls"),
        (vec![("HTTPS_PROXY", "socks5://x")], invalid),
    ] {
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
        for name in ["HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy", "HTTP_PROXY", "ALL_PROXY"] {
            child.env_remove(name);
        }
        child.args(["--exact", "proxies::print_proxy_choice_of_child_process", "--nocapture"]);
        child.envs(variables.clone()).env(CHILD_URL, scalekit.url());
        let output = child.output().await.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(&format!("child: {outcome}.")), "{variables:?}: {text}");
    }
}

#[tokio::test]
async fn tunnel_certificate_error_is_not_blamed_on_proxy() {
    let (scalekit, proxy) = (Scalekit::start_tls().await, ConnectProxy::start(Connect::Open).await);
    let other = Scalekit::start_tls().await;
    let mut settings = other.settings(Transport::Rest);
    settings.environment = scalekit.url().parse().unwrap();
    settings.proxy = Proxy::Server(proxy.server());
    let error = Client::new(settings).unwrap().authenticate().await.unwrap_err();
    assert_eq!((error.kind(), proxy.heads().is_empty()), ("tls", false), "{error}");
}

#[tokio::test]
async fn refusing_proxy_is_distinguished_from_scalekit() {
    let scalekit = Scalekit::start_tls().await;
    for (says, class, words) in [
        (REFUSED_407, Class::Misconfigured, "it requires other credentials (HTTP 407)"),
        (REFUSED_502, Class::Outage, "its response to CONNECT is not a success"),
        ("SSH-2.0-x\r\n\r\n", Class::Outage, "its response to CONNECT is not a success"),
        ("", Class::Outage, "it closed the connection"),
    ] {
        let proxy = ConnectProxy::start(Connect::Say(says.into())).await;
        let client = client(&scalekit, proxy.server(), Transport::Rest);
        let error = client.authenticate().await.unwrap_err();
        assert_eq!((error.kind(), error.class()), ("proxy", class), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("the proxy {}", proxy.address)) && text.contains(words), "{text}");
        assert!(!text.contains("pa:ss") && !text.contains("pa%3Ass") && !text.contains("user"), "{text}");
        // The proxy recovers, and so does the client.
        *proxy.connect.lock().unwrap() = Connect::Open;
        assert!(client.validate_token(TOKEN).await.is_ok());
    }
    assert!(scalekit.requests.lock().unwrap().iter().all(|request| request.version == http::Version::HTTP_2));
}

#[tokio::test]
async fn absent_proxy_is_distinguished_from_scalekit() {
    let scalekit = Scalekit::start_tls().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let proxy: ProxyServer = address.to_string().parse().unwrap();
    drop(listener);
    let error = client(&scalekit, proxy.clone(), Transport::Rest).authenticate().await.unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind(), "proxy", "{text}");
    assert!(
        text.contains(&format!("the proxy {address} cannot be reached")) && text.contains("refused"),
        "{text}"
    );

    // A proxy that accepts the connection and sends nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut settings = scalekit.settings(Transport::Rest);
    settings.proxy = Proxy::Server(silent.local_addr().unwrap().to_string().parse().unwrap());
    settings.connect_timeout = Duration::from_millis(300);
    let error = Client::new(settings).unwrap().authenticate().await.unwrap_err().to_string();
    assert!(error.contains("no connection through the proxy 127.0.0.1:"), "{error}");
}

#[tokio::test]
async fn cleartext_loopback_never_uses_proxy() {
    let (scalekit, proxy) = (Scalekit::start().await, ConnectProxy::start(Connect::Open).await);
    let client = client(&scalekit, proxy.server(), Transport::Rest);
    assert!(client.validate_token(TOKEN).await.is_ok());
    assert!(proxy.heads().is_empty());
}

/// A tunnel on a connection of the caller.
async fn tunnel(proxy: &ConnectProxy, environment: &Environment) -> Result<TcpStream, Error> {
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    open_tunnel(&mut stream, &proxy.server(), environment, "keeper/1").await.map(|()| stream)
}

#[tokio::test]
async fn caller_opened_tunnel_reaches_environment() {
    let (scalekit, proxy) = (Scalekit::start_tls().await, ConnectProxy::start(Connect::Open).await);
    let environment: Environment = scalekit.url().parse().unwrap();
    let stream = tunnel(&proxy, &environment).await.unwrap();
    let head = proxy.heads().remove(0);
    let target = format!("localhost:{}", scalekit.address.port());
    let expected = format!(
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: keeper/1\r\n\
         Proxy-Authorization: Basic dXNAZXI6cGE6c3M=\r\n\r\n"
    );
    assert_eq!(head, expected);
    let mut config = scalekit.settings(Transport::Rest).tls.unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
}

#[tokio::test]
async fn refused_caller_opened_tunnel_has_status() {
    let environment: Environment = "https://acme.scalekit.com".parse().unwrap();
    let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(2 * MAX_HEAD_BYTES));
    for (says, status) in [
        (REFUSED_407, Some(407)),
        (REFUSED_502, Some(502)),
        ("HTTP/1.1 302 Found\r\n\r\n", Some(302)),
        ("SSH-2.0-x\r\n\r\n", None),
        (&endless, None),
        // Bytes before TLS has begun come from the proxy.
        ("HTTP/1.1 200 OK\r\n\r\nearly", None),
    ] {
        let proxy = ConnectProxy::start(Connect::Say(says.into())).await;
        let error = tunnel(&proxy, &environment).await.unwrap_err();
        assert_eq!(error, Error::ProxyRefused { proxy: proxy.address.to_string(), status }, "{error}");
    }
    let proxy = ConnectProxy::start(Connect::Say(String::new())).await;
    let error = tunnel(&proxy, &environment).await.unwrap_err();
    assert!(matches!(error, Error::ProxyUnreachable { .. }), "{error}");
    for says in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 204 No Content\r\n\r\n"] {
        let proxy = ConnectProxy::start(Connect::Say(says.into())).await;
        tunnel(&proxy, &environment).await.expect("any 2xx opens it");
    }
}
