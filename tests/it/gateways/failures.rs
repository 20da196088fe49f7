//! Gateways fail closed: Keyward is slow, restarts, or shows another's certificate.

use std::time::Duration;

use keyward_emulator::faults::{Effect, Fault, Target};
use tokio::time::timeout;

use super::{GATEWAYS, Plan, Running, SECTIONS};
use crate::support::tls::{Authority, toml};
use crate::support::{Setup, Stage, TEST_TIMEOUT};

/// Statuses for a request that was not decided.
const UNDECIDED: [u16; 4] = [500, 502, 503, 504];

#[tokio::test]
async fn slow_validation_is_unavailable() {
    let scalekit = "timeout = \"200ms\"";
    let stage = Stage::with(Setup { scalekit, sections: SECTIONS, ..Setup::default() }).await;
    let key = stage.issue_key();
    for name in GATEWAYS {
        // The printed limit is longer than scalekit.timeout.
        let mut plan = Plan::for_stage(name, &stage);
        plan.file += "[scalekit]\ntimeout = \"200ms\"\n";
        let Some(gateway) = Running::start_as(plan).await else { continue };
        stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Hang));
        let reply = gateway.get("/v1/x", &key).await;
        assert_eq!(reply.status, 503, "{name}: {reply:?}");
        // Envoy over HTTP sends none of an error's headers.
        let code = (name != "envoy-http").then_some("validation_unavailable");
        assert_eq!(reply.code(), code, "{name}: {reply:?}");
        stage.emulator.clear_faults();
        assert_eq!(gateway.get("/v1/x", &key).await.status, 200, "{name}");
    }
}

#[tokio::test]
async fn gateway_that_waits_no_longer_denies() {
    let scalekit = "timeout = \"30s\"";
    let stage = Stage::with(Setup { scalekit, sections: SECTIONS, ..Setup::default() }).await;
    let key = stage.issue_key();
    for name in GATEWAYS {
        let mut plan = Plan::for_stage(name, &stage);
        plan.file += "[scalekit]\ntimeout = \"10ms\"\n";
        let Some(gateway) = Running::start_as(plan).await else { continue };
        // Traefik has no limit of its own for the decision.
        if name == "traefik" {
            continue;
        }
        let forwarded = gateway.echo.counts().requests;
        stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Hang));
        let reply = gateway.get("/v1/x", &key).await;
        assert!(UNDECIDED.contains(&reply.status), "{name}: {reply:?}");
        assert_eq!(gateway.echo.counts().requests, forwarded, "{name}");
        stage.emulator.clear_faults();
        assert_eq!(gateway.get("/v1/x", &key).await.status, 200, "{name}");
    }
}

#[tokio::test]
async fn restart_of_keyward_never_permits_wrongly() {
    for name in GATEWAYS {
        let mut stage = Stage::with(Setup { sections: SECTIONS, ..Setup::default() }).await;
        let address = stage.decision.as_ref().unwrap().to_string();
        let Some(gateway) = Running::start(name, &stage).await else { continue };
        let revoked = stage.issue_key();
        for _ in 0..4 {
            assert_eq!(gateway.get("/v1/x", &revoked).await.status, 200, "{name}");
        }
        stage.stop.cancel();
        timeout(TEST_TIMEOUT, &mut stage.running).await.expect("an end in time").unwrap();
        // Its emulator does not know the first key.
        let sections = SECTIONS.replace("127.0.0.1:0", &address).leak();
        let stage = Stage::with(Setup { sections, ..Setup::default() }).await;
        let key = stage.issue_key();
        let forwarded = gateway.echo.counts().requests;
        let first = gateway.get("/v1/x", &revoked).await;
        assert!(first.status == 401 || UNDECIDED.contains(&first.status), "{name}: {first:?}");
        assert_eq!(gateway.echo.counts().requests, forwarded, "{name}");
        let recover = async {
            loop {
                let reply = gateway.get("/v1/x", &key).await;
                if reply.status == 200 {
                    break;
                }
                assert!(UNDECIDED.contains(&reply.status), "{name}: {reply:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(2 * TEST_TIMEOUT, recover).await.unwrap_or_else(|_| panic!("{name}: {}", gateway.log()));
        assert_eq!(gateway.get("/v1/x", &revoked).await.status, 401, "{name}");
        assert_eq!(gateway.echo.counts().requests, forwarded + 1, "{name}");
    }
}

#[tokio::test]
async fn decisions_over_tls_need_right_certificate() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost");
    let tls = format!("tls = {{ certificate = {}, key = {} }}", toml(&certificate), toml(&key));
    let sections = SECTIONS.replace("[decision]", &format!("[decision]\n{tls}"));
    let stage = Stage::with(Setup { sections: sections.clone().leak(), ..Setup::default() }).await;
    let address = stage.decision.as_ref().unwrap().to_string();
    let strangers = Authority::new();
    let (good, bad) = (stage.issue_key(), "0".repeat(30));
    for name in GATEWAYS {
        let plan = |ca: &Authority, server_name: &str, ready| Plan {
            arguments: ["--ca-file", ca.file().to_str().unwrap(), "--server-name", server_name]
                .map(str::to_owned)
                .to_vec(),
            ready,
            ..Plan::new(name, &sections.replace("127.0.0.1:0", &address))
        };
        let Some(gateway) = Running::start_as(plan(&authority, "localhost", 200)).await else { continue };
        let reply = gateway.get("/v1/x", &good).await;
        assert_eq!(reply.status, 200, "{name}: {reply:?} {}", gateway.log());
        assert_eq!(gateway.last_request().header("x-org-id"), Some("org_1"), "{name}");
        assert_eq!(gateway.get("/v1/x", &bad).await.status, 401, "{name}");
        drop(gateway);

        // SECURITY: another server that took the address could permit everything.
        for (ca, server_name) in [(&strangers, "localhost"), (&authority, "keyward.test")] {
            let gone = match name {
                "traefik" => 500,
                "caddy" => 502,
                _ => 503,
            };
            let gateway = Running::start_as(plan(ca, server_name, gone)).await.unwrap();
            let reply = gateway.get("/v1/x", &good).await;
            assert_eq!(reply.status, gone, "{name} {server_name}: {reply:?}");
            assert_eq!(gateway.echo.counts().requests, 0, "{name} {server_name}");
        }
    }
}
