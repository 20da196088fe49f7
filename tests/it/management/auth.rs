//! Authentication of key management: the secret, where there is one, and no browsers.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use keyward::config::{self, Environment};
use serde_json::json;

use super::{ApiRequest, KEYS, ManagementStage, SECRET, ordinary_body};
use crate::support::Setup;
use crate::support::tls::{Authority, Folder, toml};

fn list() -> ApiRequest {
    ApiRequest::new("GET", KEYS)
}

fn with_secret(secret: &str) -> ApiRequest {
    list().header("authorization", &format!("Bearer {secret}"))
}

#[tokio::test]
async fn secret_is_required_once_and_reread_per_request() {
    let folder = Folder::new();
    let file = folder.write("management", &format!("{SECRET}\n"));
    let management = ManagementStage::with(&format!("secret_file = {}", toml(&file))).await;
    for good in [
        with_secret(SECRET),
        list().header("authorization", &format!("bearer  {SECRET}")),
        list().header("AUTHORIZATION", &format!("BEARER {SECRET}")),
    ] {
        assert_eq!(management.send(&good).await.status, 200, "{}", good.to_bytes());
    }
    for bad in [
        list(),
        with_secret("wrong"),
        with_secret(""),
        with_secret(&SECRET[1..]),
        with_secret(&format!("{SECRET}x")),
        with_secret(&format!("{SECRET}, {SECRET}")),
        list().header("authorization", SECRET),
        list().header("authorization", &format!("Basic {SECRET}")),
        list().header("x-authorization", &format!("Bearer {SECRET}")),
        with_secret(SECRET).header("authorization", &format!("Bearer {SECRET}")),
        with_secret(SECRET).header("authorization", "Bearer wrong"),
        with_secret("wrong").header("authorization", &format!("Bearer {SECRET}")),
    ] {
        let reply = management.send(&bad).await;
        assert_eq!((reply.status, reply.code()), (401, Some("unauthorized")), "{}", bad.to_bytes());
        assert_eq!(reply.header("www-authenticate"), Some("Bearer realm=\"management\""));
        assert!(!reply.text().contains(SECRET));
    }
    // Neither the existence of a path is revealed nor a body read. The document is public.
    for ask in
        [ApiRequest::new("GET", "/x"), ApiRequest::new("PUT", KEYS), ApiRequest::create(&json!("junk"))]
    {
        assert_eq!(management.send(&ask).await.status, 401);
    }
    assert_eq!(management.send(&ApiRequest::new("GET", "/openapi.json")).await.status, 200);

    folder.write("management", "another-made-up-secret");
    assert_eq!(management.send(&with_secret(SECRET)).await.status, 401, "the old one is over at once");
    assert_eq!(management.send(&with_secret("another-made-up-secret")).await.status, 200);
    for spoiled in ["", "short", "two\nlines-of-characters", "   "] {
        folder.write("management", spoiled);
        for secret in [spoiled.lines().next().unwrap_or_default().trim(), SECRET, ""] {
            let reply = management.send(&with_secret(secret)).await;
            assert_eq!((reply.status, reply.code()), (503, Some("secret_unreadable")), "{spoiled:?}");
            assert!(!reply.text().contains("management\""), "no path: {}", reply.text());
        }
    }
    std::fs::remove_file(&file).unwrap();
    assert_eq!(management.send(&with_secret(SECRET)).await.status, 503);
    folder.write("management", SECRET);
    assert_eq!(management.send(&with_secret(SECRET)).await.status, 200, "it heals by itself");
}

#[tokio::test]
async fn browser_requests_are_refused() {
    let management = ManagementStage::start().await;
    let create = ApiRequest::create(&ordinary_body());
    for (name, value) in [
        ("origin", "http://localhost:3000"),
        ("origin", "null"),
        ("origin", ""),
        // As a browser requests an image.
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        // A name of the web page that resolves to 127.0.0.1.
        ("host", "evil.example"),
        ("host", "evil.example:4482"),
        ("host", "localhost.evil.example"),
        ("host", "127.0.0.1.evil.example"),
        ("host", "10.0.0.1"),
        ("host", "[::2]"),
        ("host", "0.0.0.0"),
        ("host", ""),
    ] {
        for ask in [create.clone(), list()] {
            let reply = management.send(&ask.header(name, value)).await;
            assert_eq!((reply.status, reply.code()), (403, Some("not_permitted")), "{name}: {value}");
            assert!(reply.header("access-control-allow-origin").is_none());
        }
    }
    let twice = list().header("host", "localhost").header("host", "evil.example");
    assert_eq!(management.send(&twice).await.status, 403);
    let mut client = management.connect().await;
    client.send(format!("GET http://evil.example{KEYS} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await;
    assert_eq!(client.read_reply().await.status, 403, "the target's authority counts");
    let preflight = ApiRequest::new("OPTIONS", KEYS)
        .header("origin", "http://evil.example")
        .header("access-control-request-method", "POST");
    assert_eq!(management.send(&preflight).await.status, 403);
    assert_eq!(management.stage.emulator.counts().creations, 0);
    for host in ["localhost", "LOCALHOST:4482", "127.0.0.1:1", "127.1.2.3", "[::1]:4482"] {
        assert_eq!(management.send(&list().header("host", host)).await.status, 200, "{host}");
    }
}

#[tokio::test]
async fn unix_socket_has_configured_mode_and_is_removed() {
    for (line, mode) in [("", 0o660), ("socket_mode = \"0600\"", 0o600), ("socket_mode = \"0660\"", 0o660)] {
        let folder = Folder::new();
        let path = folder.file("management.sock");
        let mut management =
            ManagementStage::of(&format!("listen = \"unix:{}\"\n{line}", path.display()), Setup::default())
                .await;
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{line}");
        assert_eq!(metadata.uid(), rustix::process::getuid().as_raw());
        // Any host is accepted there: browsers cannot reach it.
        assert_eq!(management.send(&list().header("host", "keyward")).await.status, 200);
        assert_eq!(management.send(&list().header("origin", "null")).await.status, 403);
        management.stage.stop.cancel();
        (&mut management.stage.running).await.unwrap();
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn other_ports_do_not_manage_keys() {
    let management = ManagementStage::start().await;
    let reply = management.stage.get_admin(KEYS).await;
    assert_eq!(reply.status, 404);
    assert_eq!(management.stage.get_admin("/openapi.json").await.status, 404);
    // On the public port these paths belong to the upstream.
    let (key, _) = management.issue("org_1");
    for path in [KEYS, "/openapi.json"] {
        let before = management.stage.forwarded_count();
        assert_eq!(management.stage.get(path, "").await.status, 401);
        assert_eq!(management.stage.get(path, &key).await.status, 200);
        assert_eq!(
            (management.stage.forwarded_count(), &*management.stage.last_request().path),
            (before + 1, path)
        );
    }
    assert_eq!(management.stage.emulator.counts().lists, 0);
    // Without `[management]` nothing listens.
    assert!(crate::support::Stage::start().await.management.is_none());
}

#[test]
fn public_address_needs_tls_and_secret() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost");
    let secret = format!("secret_file = {}\n", toml(&authority.folder.write("secret", SECRET)));
    let tls = format!("tls = {{ certificate = {}, key = {} }}\n", toml(&certificate), toml(&key));
    let environment = Environment::from_pairs([
        ("SCALEKIT_ENVIRONMENT_URL", "http://127.0.0.1:9"),
        ("SCALEKIT_CLIENT_ID", "dev"),
        ("SCALEKIT_CLIENT_SECRET", "dev"),
    ]);
    for (listen, lines, is_taken) in [
        ("0.0.0.0:4482", format!("{secret}{tls}"), true),
        ("[::]:4482", format!("{secret}{tls}"), true),
        ("192.0.2.1:4482", format!("{secret}{tls}"), true),
        ("0.0.0.0:4482", secret.clone(), false),
        ("0.0.0.0:4482", tls, false),
        ("[::]:4482", String::new(), false),
        ("192.0.2.1:4482", secret, false),
        ("127.0.0.1:4482", String::new(), true),
    ] {
        let file = format!(
            "version = 1\n[management]\nlisten = \"{listen}\"\n{lines}[upstreams.a]\nurl = \"http://127.0.0.1:9\"\n\
             [[routes]]\npath = \"/*\"\nupstream = \"a\"\n"
        );
        let problems = config::parse(&file, "f", &environment).err().map(|problems| problems.to_string());
        assert_eq!(problems.is_none(), is_taken, "{file} {problems:?}");
    }
}
