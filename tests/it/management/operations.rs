//! What the operations do, and that it holds on the next request through Keyward.

use std::time::Duration;

use jiff::Timestamp;
use keyward_emulator::faults::{Effect, Fault, Target};
use keyward_emulator::store::Issue;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{Ask, Desk, KEYS, id, key, ordinary};
use crate::support::Setup;
use crate::support::http::{HttpClient, HttpVersion};
use crate::support::tls::{Authority, Folder, toml};

#[tokio::test]
async fn key_lifecycle_works_over_unix_socket() {
    let folder = Folder::new();
    let listen = format!("listen = \"unix:{}\"", folder.file("m.sock").display());
    let desk = Desk::of(&listen, Setup::default()).await;
    let body = json!({"user_id": "usr_1", "custom_claims": {"team": "a"}, "expiry": "2099-01-01T00:00:00Z", "description": "CI"});
    let reply = desk.ask(&Ask::create(&body)).await;
    assert_eq!(reply.status, 201);
    let made = reply.json();
    assert_eq!(reply.header("location"), Some(&*format!("{KEYS}/{}", id(&made))));
    assert_eq!(desk.calls(key(&made)).await, 200, "usable at once");
    assert_eq!(desk.stage.last_request().header("x-claim-team"), Some("a"));

    let shown = desk.show(id(&made)).await;
    assert_eq!(shown, made["token_info"]);
    for (name, value) in body.as_object().unwrap() {
        assert_eq!(&shown[name], value);
    }
    assert!(key(&made).ends_with(shown["token_suffix"].as_str().unwrap()));
    let list = desk.ask(&Ask::new("GET", KEYS)).await.json();
    assert_eq!((&list["tokens"], &list["total_count"]), (&json!([shown]), &json!(1)));

    let changed = desk.patch(id(&made), &json!({"custom_claims": {"team": "b"}})).await.json();
    assert_eq!(changed["custom_claims"], json!({"team": "b"}));
    assert_eq!(desk.calls(key(&made)).await, 200);
    assert_eq!(desk.stage.last_request().header("x-claim-team"), Some("b"));

    let reply = desk.ask(&Ask::new("POST", format!("{KEYS}/{}/rotate", id(&made)))).await;
    let next = reply.json();
    assert_eq!(reply.status, 201);
    assert_eq!(
        (&next["replaced_token_id"], &next["replaced_token_revoked"]),
        (&made["token_id"], &json!(true))
    );
    for name in ["organization_id", "user_id", "custom_claims", "expiry", "description"] {
        assert_eq!(next["token_info"][name], changed[name], "{name}");
    }
    assert_eq!(desk.calls(key(&made)).await, 401, "the old one on the very next request");
    assert_eq!(desk.calls(key(&next)).await, 200);

    let revoke = Ask::new("DELETE", format!("{KEYS}/{}", id(&next)));
    for _ in 0..2 {
        let reply = desk.ask(&revoke).await;
        assert_eq!((reply.status, reply.body.len()), (204, 0), "again as well");
        assert_eq!(desk.calls(key(&next)).await, 401);
    }
    assert_eq!(desk.count().await, 0);
}

#[tokio::test]
async fn rotation_with_keep_old_leaves_old_key_valid() {
    let desk = Desk::open().await;
    let made = desk.create(&ordinary()).await;
    let rotate = Ask::new("POST", format!("{KEYS}/{}/rotate", id(&made)));
    let next = desk.ask(&rotate.clone().json(&json!({"keep_old": true}))).await.json();
    assert_eq!(next["replaced_token_revoked"], false);
    assert_eq!((desk.calls(key(&made)).await, desk.calls(key(&next)).await), (200, 200));
    let last = desk.ask(&rotate.json(&json!({}))).await.json();
    assert_eq!(last["replaced_token_revoked"], true);
    assert_eq!((desk.calls(key(&made)).await, desk.calls(key(&last)).await), (401, 200));
}

#[tokio::test]
async fn rotation_without_revocation_returns_key_and_warning() {
    let desk = Desk::open().await;
    let made = desk.create(&ordinary()).await;
    desk.stage.emulator.set_fault(Fault::new(Target::Invalidate, Effect::Reset).times(1));
    let reply = desk.ask(&Ask::new("POST", format!("{KEYS}/{}/rotate", id(&made)))).await;
    assert_eq!(reply.status, 201);
    let next = reply.json();
    assert_eq!(next["replaced_token_revoked"], false);
    assert!(next["warning"].as_str().unwrap().starts_with("the old key is not revoked and may still work"));
    assert_eq!((desk.calls(key(&made)).await, desk.calls(key(&next)).await), (200, 200));
}

#[tokio::test]
async fn list_pages_both_ways_and_by_user() {
    let desk = Desk::open().await;
    for number in 0..5 {
        desk.create(&json!({"user_id": format!("usr_{}", number % 2)})).await;
    }
    desk.issue("org_2");
    let list = async |query: &str| {
        let reply = desk.ask(&Ask::new("GET", format!("{KEYS}?{query}"))).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()
    };
    let first = list("page_size=2").await;
    assert_eq!((first["tokens"].as_array().unwrap().len(), &first["total_count"]), (2, &json!(5)));
    assert_eq!(first["prev_page_token"], Value::Null);
    let second =
        list(&format!("page_size=2&page_token={}", first["next_page_token"].as_str().unwrap())).await;
    let back = list(&format!("page_size=2&page_token={}", second["prev_page_token"].as_str().unwrap())).await;
    assert_eq!(back["tokens"], first["tokens"]);
    assert_ne!(second["tokens"], first["tokens"]);
    assert_eq!(list("user_id=usr_0").await["total_count"], 3);
    // An empty variable must not make it a matter of the whole organization.
    assert_eq!(desk.ask(&Ask::new("GET", format!("{KEYS}?user_id="))).await.status, 400);
    assert_eq!(list("").await["total_count"], 5);
}

#[tokio::test]
async fn management_lists_page_of_longest_keys() {
    let desk = Desk::open().await;
    for _ in 0..30 {
        desk.stage.issue(Issue {
            custom_claims: (0..20).map(|number| (format!("claim{number:025}"), "😀".repeat(256))).collect(),
            description: "😀".repeat(255),
            ..Issue::default()
        });
    }
    let reply = desk.ask(&Ask::new("GET", format!("{KEYS}?page_size=30"))).await;
    assert_eq!((reply.status, reply.json()["tokens"].as_array().unwrap().len()), (200, 30));
}

#[tokio::test]
async fn patch_sets_removes_and_keeps_claims() {
    let desk = Desk::open().await;
    let made =
        desk.create(&json!({"custom_claims": {"a": "1", "b": "2", "c": "3"}, "description": "CI"})).await;
    let (id, updates) = (id(&made), || desk.stage.emulator.counts().updates);
    let changed =
        desk.patch(id, &json!({"custom_claims": {"a": "x", "b": null, "d": "4", "none": null}})).await;
    assert_eq!(changed.json()["custom_claims"], json!({"a": "x", "c": "3", "d": "4"}));
    assert_eq!(changed.json()["description"], "CI");
    let changed = desk.patch(id, &json!({"description": "new"})).await.json();
    assert_eq!((&changed["description"], &changed["custom_claims"]["c"]), (&json!("new"), &json!("3")));
    for none in [json!(null), json!("")] {
        desk.patch(id, &json!({"description": "again"})).await;
        assert_eq!(desk.patch(id, &json!({"description": none})).await.json()["description"], Value::Null);
    }
    let before = updates();
    for nothing in [json!({"custom_claims": {}}), json!({"custom_claims": {"a": "x"}})] {
        assert_eq!(desk.patch(id, &nothing).await.status, 200);
    }
    assert_eq!(updates(), before, "what changes nothing is not sent");
    let merge = Ask::new("PATCH", format!("{KEYS}/{id}"))
        .header("content-type", "application/merge-patch+json; charset=utf-8");
    assert_eq!(desk.ask(&merge.body(r#"{"custom_claims":{"a":"y"}}"#)).await.status, 200);
    // The last claims together, and one after the other.
    let all = json!({"custom_claims": {"a": null, "c": null, "d": null}});
    for refused in [all, json!({"custom_claims": null}), json!({})] {
        assert_eq!(desk.patch(id, &refused).await.code(), Some("invalid_request"), "{refused}");
    }
    desk.patch(id, &json!({"custom_claims": {"c": null, "d": null}})).await;
    let reply = desk.patch(id, &json!({"custom_claims": {"a": null}})).await;
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("last claim"), "{}", reply.text());
    assert_eq!(desk.show(id).await["custom_claims"], json!({"a": "y"}));
}

#[tokio::test]
async fn concurrent_patches_of_one_key_lose_nothing() {
    let desk = Desk::open().await;
    let made = desk.create(&json!({"custom_claims": {"a": "1"}})).await;
    // Each reads before either writes, unless they wait for each other.
    desk.stage
        .emulator
        .set_fault(Fault::new(Target::Validate, Effect::LatencyAfter(Duration::from_millis(60))));
    let bodies: Vec<Value> =
        (0..6).map(|number| json!({"custom_claims": {format!("claim{number}"): "x"}})).collect();
    let patches = bodies.iter().map(|body| desk.patch(id(&made), body));
    for reply in futures_util::future::join_all(patches).await {
        assert_eq!(reply.status, 200);
    }
    assert_eq!(desk.show(id(&made)).await["custom_claims"].as_object().unwrap().len(), 7);
}

#[tokio::test]
async fn hanging_change_blocks_no_other_key() {
    let desk = Desk::open().await;
    let (slow, quick) = (desk.create(&ordinary()).await, desk.create(&ordinary()).await);
    desk.stage.emulator.set_fault(Fault::new(Target::Update, Effect::Hang).times(1));
    let body = json!({"description": "new"});
    let mut client = desk.connect().await;
    client.send(Ask::new("PATCH", format!("{KEYS}/{}", id(&slow))).json(&body).bytes()).await;
    crate::support::wait_until(|| desk.stage.emulator.counts().updates == 1).await;
    // Of 64 places one is taken: one of these may wait, not all.
    let others = (0..3).map(async |_| {
        let made = desk.create(&ordinary()).await;
        desk.patch(id(&made), &body).await.status
    });
    let (others, own) = tokio::join!(futures_util::future::join_all(others), desk.patch(id(&slow), &body));
    assert!(others.contains(&200));
    assert_eq!(own.code(), Some("overloaded"), "its own change waits in vain");
    desk.stage.emulator.clear_faults();
    assert_eq!(client.read_reply().await.status, 200);
    assert_eq!(desk.patch(id(&quick), &body).await.status, 200);
}

#[tokio::test]
async fn key_of_other_organization_is_not_found() {
    let desk = Desk::open().await;
    let (theirs, token_id) = desk.issue("org_2");
    let before = desk.stage.emulator.counts();
    let path = format!("{KEYS}/{token_id}");
    let mut answers = Vec::new();
    for ask in [
        Ask::new("GET", &*path),
        Ask::new("PATCH", &*path).json(&json!({"custom_claims": {"team": "mine"}, "description": "mine"})),
        Ask::new("DELETE", &*path),
        Ask::new("POST", format!("{path}/rotate")),
        Ask::new("POST", format!("{path}/rotate")).named("n").json(&json!({"keep_old": true})),
    ] {
        let reply = desk.ask(&ask).await;
        assert_eq!((reply.status, reply.code()), (404, Some("not_found")));
        answers.push(reply.text());
    }
    let unknown = desk.ask(&Ask::new("GET", format!("{KEYS}/apit_999"))).await.text();
    assert!(answers.iter().all(|answer| *answer == unknown), "it cannot be told from none");
    let after = desk.stage.emulator.counts();
    assert_eq!(
        (after.creations, after.updates, after.invalidations),
        (before.creations, before.updates, before.invalidations)
    );
    assert_eq!(desk.calls(&theirs).await, 200);
    let own = Ask::new("GET", format!("/v1/organizations/org_2/keys/{token_id}"));
    assert_eq!(desk.ask(&own).await.json()["custom_claims"], json!({"team": "a"}));
    // Revoked by its own organization, it is still not this one's.
    desk.ask(&Ask::new("DELETE", format!("/v1/organizations/org_2/keys/{token_id}"))).await;
    assert_eq!(desk.code(&Ask::new("DELETE", &*path)).await.0, 404);
}

#[tokio::test]
async fn rules_apply_to_creation_update_and_rotation() {
    let desk = Desk::with("max_expiry = \"90d\"\nallowed_claims = [\"team\"]").await;
    let in_days = |days: i64| (Timestamp::now() + jiff::SignedDuration::from_hours(24 * days)).to_string();
    let ends_within_90_days = |token: &Value| {
        let ends: Timestamp = token["expiry"].as_str().unwrap().parse().unwrap();
        let life = ends.duration_since(Timestamp::now());
        assert!(
            life > jiff::SignedDuration::from_hours(89 * 24)
                && life <= jiff::SignedDuration::from_hours(90 * 24 + 1),
            "{life}"
        );
    };
    for refused in [json!({"expiry": in_days(91)}), json!({"custom_claims": {"plan": "paid"}})] {
        let reply = desk.ask(&Ask::create(&refused)).await;
        assert_eq!((reply.status, reply.code()), (403, Some("not_permitted")), "{refused}");
    }
    assert_eq!(desk.stage.emulator.counts().creations, 0);
    desk.create(&json!({"expiry": in_days(89), "custom_claims": {"team": "a"}})).await;
    ends_within_90_days(&desk.create(&json!({})).await["token_info"]);

    // Made elsewhere: it never ends, and has a claim that may not be touched.
    let issued = desk.stage.issue(Issue {
        custom_claims: [("team", "a"), ("plan", "free")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        ..Issue::default()
    });
    for refused in [json!({"plan": "paid"}), json!({"plan": null}), json!({"other": "x"})] {
        let reply = desk.patch(&issued.token_id, &json!({"custom_claims": refused})).await;
        assert_eq!(reply.code(), Some("not_permitted"), "{refused}");
    }
    assert_eq!(desk.patch(&issued.token_id, &json!({"custom_claims": {"team": "b"}})).await.status, 200);
    let next = desk.ask(&Ask::new("POST", format!("{KEYS}/{}/rotate", issued.token_id))).await.json();
    assert_eq!(next["token_info"]["custom_claims"], json!({"team": "b", "plan": "free"}));
    ends_within_90_days(&next["token_info"]);

    let desk = Desk::with("require_expiry = true").await;
    assert_eq!(desk.code(&Ask::create(&json!({}))).await, (403, "not_permitted".to_owned()));
    desk.create(&json!({"expiry": in_days(1000)})).await;
    let (_, endless) = desk.issue("org_1");
    let reply = desk.ask(&Ask::new("POST", format!("{KEYS}/{endless}/rotate"))).await;
    assert_eq!(reply.code(), Some("not_permitted"));
    assert!(reply.text().contains("the old key has none"), "{}", reply.text());
}

#[tokio::test]
async fn management_serves_http2_with_tls_and_secret() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost");
    let secret = authority.folder.write("secret", super::SECRET);
    let lines = format!(
        "listen = \"127.0.0.1:0\"\nsecret_file = {}\ntls = {{ certificate = {}, key = {} }}",
        toml(&secret),
        toml(&certificate),
        toml(&key)
    );
    let desk = Desk::of(&lines, Setup::default()).await;
    let Some(keyward::listener::Listen::Tcp(address)) = desk.stage.management else { panic!("a port") };
    for (alpn, speaks) in [("h2", HttpVersion::Http2), ("http/1.1", HttpVersion::Http1)] {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let client = tokio_rustls::TlsConnector::from(authority.client(&[alpn]));
        let mut caller = HttpClient::over(client.connect(name, stream).await.unwrap(), speaks).await;
        for (secret, status) in [(super::SECRET, 200), ("wrong", 401), ("", 401)] {
            let mut request = caller.request(hyper::Method::GET, KEYS, secret, keyward::body::empty());
            if speaks == HttpVersion::Http1 {
                request.headers_mut().insert("host", "localhost".parse().unwrap());
            } else {
                *request.uri_mut() = format!("https://localhost{KEYS}").parse().unwrap();
            }
            assert_eq!(caller.send(request).await.unwrap().status(), status, "{alpn} {secret}");
        }
    }
}
