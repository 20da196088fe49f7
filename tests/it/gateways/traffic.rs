//! What browsers do through a gateway: WebSockets and CORS preflights.

use super::{GATEWAYS, Running, SECTIONS};
use crate::support::raw::Client;
use crate::support::{Setup, Stage};
use crate::tunnel::{handshake, masked, unmasked};

#[tokio::test]
async fn websocket_opens_only_with_good_key() {
    let stage = Stage::with(Setup { sections: SECTIONS, ..Setup::default() }).await;
    for name in GATEWAYS {
        let Some(gateway) = Running::start(name, &stage).await else { continue };
        let key = stage.issue_key();
        let mut client = Client::connect(gateway.address).await;
        client.send(handshake("/ws", &key)).await;
        let head = client.read_head().await;
        assert_eq!(head.status, 101, "{name}: {head:?}");
        assert_eq!(head.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{name}");
        for text in [&b"hello"[..], &[b'x'; 70_000]] {
            client.send(masked(0x81, text)).await;
            let echoed = unmasked(0x81, text);
            assert!(client.read_bytes(echoed.len()).await == echoed, "{name} passes a message");
        }
        let received = gateway.last_request();
        assert_eq!(received.header("x-org-id"), Some("org_1"), "{name}");
        assert_eq!(received.header("authorization"), None, "{name}");

        let forwarded = gateway.echo.counts().requests;
        assert!(stage.emulator.revoke(&key));
        for key in ["", &"0".repeat(30), &key] {
            let mut client = Client::connect(gateway.address).await;
            client.send(handshake("/ws", key)).await;
            assert_eq!(client.read_head().await.status, 401, "{name}");
        }
        assert_eq!(gateway.echo.counts().requests, forwarded, "{name}");
    }
}

/// SECURITY: after an upgrade to h2c, a service would take requests that neither gateway nor Keyward sees.
#[tokio::test]
async fn other_upgrades_do_not_reach_service() {
    let stage = Stage::with(Setup { sections: SECTIONS, ..Setup::default() }).await;
    let key = stage.issue_key();
    for name in GATEWAYS {
        let Some(gateway) = Running::start(name, &stage).await else { continue };
        for upgrade in
            ["upgrade: h2c", "upgrade: h2c, websocket", "upgrade: websocket\r\nupgrade: h2c", "upgrade: H2C"]
        {
            let forwarded = gateway.echo.counts().requests;
            let lines = format!(
                "connection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n{upgrade}"
            );
            gateway
                .send(&format!(
                    "GET /v1/x HTTP/1.1\r\nhost: api.test\r\nauthorization: Bearer {key}\r\n{lines}\r\n\r\n"
                ))
                .await;
            if gateway.echo.counts().requests > forwarded {
                let received = gateway.last_request();
                let upgrades = received.header_values("upgrade").join(",").to_ascii_lowercase();
                assert!(matches!(&*upgrades, "" | "websocket"), "{name} {upgrade:?}: {received:?}");
            }
        }
    }
}

/// SECURITY: a client that names them in `Connection` could have the service or the gateway drop identity headers.
#[tokio::test]
async fn connection_header_cannot_remove_identity() {
    let stage = Stage::with(Setup { sections: SECTIONS, ..Setup::default() }).await;
    let key = stage.issue_key();
    for name in GATEWAYS {
        let Some(gateway) = Running::start(name, &stage).await else { continue };
        let reply = gateway
            .send(&format!(
                "GET /v1/x HTTP/1.1\r\nhost: api.test\r\nauthorization: Bearer {key}\r\n\
                 connection: keep-alive, X-Org-Id, X-Token-Id\r\n\r\n"
            ))
            .await;
        assert_eq!(reply.status, 200, "{name}: {reply:?}");
        let received = gateway.last_request();
        assert_eq!(received.header("x-org-id"), Some("org_1"), "{name}: {received:?}");
        let connection = received.header("connection").unwrap_or_default().to_ascii_lowercase();
        assert!(!connection.contains("x-org-id"), "{name}: {received:?}");
    }
}

#[tokio::test]
async fn bare_preflight_passes_without_key() {
    let routes =
        "[[routes]]\npath = \"/public/*\"\nauth = \"none\"\n[[routes]]\npath = \"/*\"\npreflight = true";
    let stage = Stage::with(Setup { sections: SECTIONS, routes, ..Setup::default() }).await;
    for name in GATEWAYS {
        let Some(gateway) = Running::start(name, &stage).await else { continue };
        let ask = async |lines: &str| {
            let request = format!("OPTIONS /v1/x HTTP/1.1\r\nhost: api.test\r\n{lines}\r\n");
            gateway.send(&request).await.status
        };
        let preflight = "origin: https://a.test\r\naccess-control-request-method: PUT\r\n\
                         access-control-request-headers: authorization\r\nuser-agent: a\r\naccept: */*\r\n";
        assert_eq!(ask(preflight).await, 200, "{name}");
        let received = gateway.last_request();
        assert_eq!((received.method.as_str(), received.header("x-org-id")), ("OPTIONS", None), "{name}");
        let forwarded = gateway.echo.counts().requests;
        for lines in [
            "",
            "origin: https://a.test\r\n",
            &format!("{preflight}cookie: session=1\r\n"),
            &format!("{preflight}x-http-method-override: DELETE\r\n"),
            &format!("{preflight}X-Method-Override: DELETE\r\n"),
            &format!("{preflight}x-http-method: DELETE\r\n"),
        ] {
            assert_eq!(ask(lines).await, 401, "{name}: {lines}");
        }
        assert_eq!(gateway.echo.counts().requests, forwarded, "{name}");
    }
}
