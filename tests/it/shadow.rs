//! Shadow mode: what would have been refused is told, and nothing is refused.

use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use keyward_emulator::store::Issue;

use crate::support::{Setup, Stage};

const ROUTES: &str = r#"
    [[routes]]
    path = "/admin/*"
    upstream = "echo"
    mode = "shadow"
    require = { roles = ["admin"] }

    [[routes]]
    path = "/strict/*"
    upstream = "echo"

    [[routes]]
    path = "/*"
    upstream = "echo"
    mode = "shadow"
    rate_limits = ["two"]
"#;

async fn start() -> Stage {
    let sections = "[rate_limits.two]\nby = \"key\"\nrequests = 2\nper = \"1h\"\nheaders = true\n[decision]\nlisten = \"127.0.0.1:0\"";
    Stage::with(Setup { routes: ROUTES, sections, ..Setup::default() }).await
}

async fn count(stage: &Stage, route: &str, outcome: &str) -> u64 {
    let metrics = stage.get_admin("/metrics").await.text();
    let name = format!("keyward_shadow_requests_total{{route=\"{route}\",outcome=\"{outcome}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().unwrap())
}

#[tokio::test]
async fn request_in_shadow_mode_passes_with_its_own_authorization() {
    let stage = start().await;
    let key = stage.issue_key();
    for (authorization, outcome, org) in [
        (Some(format!("Bearer {key}")), "allowed", Some("org_1")),
        (Some("Bearer 0123456789abcdefghijABCDEFGHIJ".to_owned()), "invalid_key", None),
        (Some("Basic dTpw".to_owned()), "missing_credential", None),
        (None, "missing_credential", None),
        (Some("Bearer apit_100000000000000001".to_owned()), "invalid_key", None),
    ] {
        let line =
            authorization.as_ref().map_or_else(String::new, |value| format!("authorization: {value}\r\n"));
        let before = count(&stage, "/*", outcome).await;
        let forged = "x-org-id: org_evil\r\nX_User-Id: usr_evil\r\nconnection: authorization\r\n";
        let reply = stage.send(format!("GET /x HTTP/1.1\r\nhost: a.test\r\n{line}{forged}\r\n")).await;
        assert_eq!((reply.status, reply.code()), (200, None), "{authorization:?}");
        let received = stage.last_request();
        assert_eq!(received.header("authorization"), authorization.as_deref());
        assert_eq!(received.header("x-org-id"), org);
        assert!(received.headers.iter().all(|(_, value)| !value.contains("evil")), "{received:?}");
        assert_eq!(count(&stage, "/*", outcome).await, before + 1, "{authorization:?}");
    }
}

#[tokio::test]
async fn shadow_mode_refuses_neither_role_nor_limit_nor_outage() {
    let stage = start().await;
    let key = stage.issue(Issue { user_id: "usr_1".into(), ..Issue::default() }).key;
    assert_eq!(stage.get("/admin/x", &key).await.status, 200);
    assert_eq!(count(&stage, "/admin/*", "not_permitted").await, 1);
    for _ in 0..4 {
        let reply = stage.get("/x", &key).await;
        assert_eq!((reply.status, reply.header("ratelimit")), (200, None));
    }
    assert_eq!((count(&stage, "/*", "allowed").await, count(&stage, "/*", "rate_limited").await), (2, 2));
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(Answer::status(503))));
    assert_eq!(stage.get("/y", &stage.issue_key()).await.status, 200);
    assert_eq!(count(&stage, "/*", "validation_unavailable").await, 1);
    assert_eq!(stage.get("/strict/x", &key).await.status, 503, "only routes in shadow mode are open");
}

#[tokio::test]
async fn path_between_shadow_and_strict_route_is_refused() {
    let stage = start().await;
    let key = stage.issue_key();
    for path in ["//strict/x", "/Strict/x", "/x/..%2fstrict/x", "/strict%2fx"] {
        let reply = stage.get(path, &key).await;
        assert_eq!((reply.status, reply.code()), (400, Some("ambiguous_path")), "{path}");
    }
}

#[tokio::test]
async fn decision_in_shadow_mode_permits_and_keeps_authorization() {
    let stage = start().await;
    let Some(keyward::listener::Listen::Tcp(address)) = stage.decision else { panic!("a port") };
    let mut client = crate::support::raw::Client::connect(address).await;
    client.send("GET /decision/x HTTP/1.1\r\nhost: a.test\r\nauthorization: Bearer nonsense\r\n\r\n").await;
    let reply = client.read_reply().await;
    assert_eq!((reply.status, reply.header("x-org-id")), (200, None));
    let removed: Vec<&str> = reply.header("x-envoy-auth-headers-to-remove").unwrap().split(',').collect();
    assert!(removed.contains(&"x-org-id") && !removed.contains(&"authorization"), "{removed:?}");
}
