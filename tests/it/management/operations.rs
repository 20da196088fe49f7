//! The operations, and their effect on the next request through Keyward.

use std::time::Duration;

use jiff::Timestamp;
use keyward_emulator::faults::{Effect, Fault, Target};
use keyward_emulator::store::Issue;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{ApiRequest, KEYS, ManagementStage, id, key, ordinary_body};
use crate::support::Setup;
use crate::support::http::{HttpClient, HttpVersion};
use crate::support::tls::{Authority, Folder, toml};

#[tokio::test]
async fn key_lifecycle_works_over_unix_socket() {
    let folder = Folder::new();
    let listen = format!("listen = \"unix:{}\"", folder.file("m.sock").display());
    let management = ManagementStage::of(&listen, Setup::default()).await;
    let body = json!({"user_id": "usr_1", "custom_claims": {"team": "a"}, "expiry": "2099-01-01T00:00:00Z", "description": "CI"});
    let reply = management.send(&ApiRequest::create(&body)).await;
    assert_eq!(reply.status, 201);
    let made = reply.json();
    assert_eq!(reply.header("location"), Some(&*format!("{KEYS}/{}", id(&made))));
    assert_eq!(management.proxied_status(key(&made)).await, 200, "usable at once");
    assert_eq!(management.stage.last_request().header("x-claim-team"), Some("a"));

    let without_usage = |mut token: serde_json::Value| {
        assert!(token.as_object_mut().unwrap().remove("usage").unwrap().is_object());
        token
    };
    let shown = without_usage(management.get_key(id(&made)).await);
    assert_eq!(shown, made["token_info"]);
    for (name, value) in body.as_object().unwrap() {
        assert_eq!(&shown[name], value);
    }
    assert!(key(&made).ends_with(shown["token_suffix"].as_str().unwrap()));
    let list = management.send(&ApiRequest::new("GET", KEYS)).await.json();
    assert_eq!((without_usage(list["tokens"][0].clone()), &list["total_count"]), (shown, &json!(1)));

    let changed = management.patch(id(&made), &json!({"custom_claims": {"team": "b"}})).await.json();
    assert_eq!(changed["custom_claims"], json!({"team": "b"}));
    assert_eq!(management.proxied_status(key(&made)).await, 200);
    assert_eq!(management.stage.last_request().header("x-claim-team"), Some("b"));

    let reply = management.send(&ApiRequest::new("POST", format!("{KEYS}/{}/rotate", id(&made)))).await;
    let next = reply.json();
    assert_eq!(reply.status, 201);
    assert_eq!(
        (&next["replaced_token_id"], &next["replaced_token_revoked"]),
        (&made["token_id"], &json!(true))
    );
    for name in ["organization_id", "user_id", "custom_claims", "expiry", "description"] {
        assert_eq!(next["token_info"][name], changed[name], "{name}");
    }
    assert_eq!(management.proxied_status(key(&made)).await, 401, "the old one on the very next request");
    assert_eq!(management.proxied_status(key(&next)).await, 200);

    let revoke = ApiRequest::new("DELETE", format!("{KEYS}/{}", id(&next)));
    for _ in 0..2 {
        let reply = management.send(&revoke).await;
        assert_eq!((reply.status, reply.body.len()), (204, 0), "again as well");
        assert_eq!(management.proxied_status(key(&next)).await, 401);
    }
    assert_eq!(management.count_keys().await, 0);
}

#[tokio::test]
async fn rotation_with_keep_old_leaves_old_key_valid() {
    let management = ManagementStage::start().await;
    let made = management.create(&ordinary_body()).await;
    let rotate = ApiRequest::new("POST", format!("{KEYS}/{}/rotate", id(&made)));
    let next = management.send(&rotate.clone().json(&json!({"keep_old": true}))).await.json();
    assert_eq!(next["replaced_token_revoked"], false);
    assert_eq!(
        (management.proxied_status(key(&made)).await, management.proxied_status(key(&next)).await),
        (200, 200)
    );
    let last = management.send(&rotate.json(&json!({}))).await.json();
    assert_eq!(last["replaced_token_revoked"], true);
    assert_eq!(
        (management.proxied_status(key(&made)).await, management.proxied_status(key(&last)).await),
        (401, 200)
    );
}

#[tokio::test]
async fn rotation_without_revocation_returns_key_and_warning() {
    let management = ManagementStage::start().await;
    let made = management.create(&ordinary_body()).await;
    management.stage.emulator.set_fault(Fault::new(Target::Invalidate, Effect::Reset).times(1));
    let reply = management.send(&ApiRequest::new("POST", format!("{KEYS}/{}/rotate", id(&made)))).await;
    assert_eq!(reply.status, 201);
    let next = reply.json();
    assert_eq!(next["replaced_token_revoked"], false);
    assert!(next["warning"].as_str().unwrap().starts_with("the old key is not revoked and may still work"));
    assert_eq!(
        (management.proxied_status(key(&made)).await, management.proxied_status(key(&next)).await),
        (200, 200)
    );
}

#[tokio::test]
async fn list_pages_both_ways_and_by_user() {
    let management = ManagementStage::start().await;
    for number in 0..5 {
        management.create(&json!({"user_id": format!("usr_{}", number % 2)})).await;
    }
    management.issue("org_2");
    let list = async |query: &str| {
        let reply = management.send(&ApiRequest::new("GET", format!("{KEYS}?{query}"))).await;
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
    // An empty variable must not widen the command to the whole organization.
    assert_eq!(management.send(&ApiRequest::new("GET", format!("{KEYS}?user_id="))).await.status, 400);
    assert_eq!(list("").await["total_count"], 5);
}

#[tokio::test]
async fn management_lists_page_of_longest_keys() {
    let management = ManagementStage::start().await;
    for _ in 0..30 {
        management.stage.issue(Issue {
            custom_claims: (0..20).map(|number| (format!("claim{number:025}"), "😀".repeat(256))).collect(),
            description: "😀".repeat(255),
            ..Issue::default()
        });
    }
    let reply = management.send(&ApiRequest::new("GET", format!("{KEYS}?page_size=30"))).await;
    assert_eq!((reply.status, reply.json()["tokens"].as_array().unwrap().len()), (200, 30));
}

#[tokio::test]
async fn patch_sets_removes_and_keeps_claims() {
    let management = ManagementStage::start().await;
    let made = management
        .create(&json!({"custom_claims": {"a": "1", "b": "2", "c": "3"}, "description": "CI"}))
        .await;
    let (id, updates) = (id(&made), || management.stage.emulator.counts().updates);
    let changed =
        management.patch(id, &json!({"custom_claims": {"a": "x", "b": null, "d": "4", "none": null}})).await;
    assert_eq!(changed.json()["custom_claims"], json!({"a": "x", "c": "3", "d": "4"}));
    assert_eq!(changed.json()["description"], "CI");
    let changed = management.patch(id, &json!({"description": "new"})).await.json();
    assert_eq!((&changed["description"], &changed["custom_claims"]["c"]), (&json!("new"), &json!("3")));
    for none in [json!(null), json!("")] {
        management.patch(id, &json!({"description": "again"})).await;
        assert_eq!(
            management.patch(id, &json!({"description": none})).await.json()["description"],
            Value::Null
        );
    }
    let before = updates();
    for nothing in [json!({"custom_claims": {}}), json!({"custom_claims": {"a": "x"}})] {
        assert_eq!(management.patch(id, &nothing).await.status, 200);
    }
    assert_eq!(updates(), before, "what changes nothing is not sent");
    let merge = ApiRequest::new("PATCH", format!("{KEYS}/{id}"))
        .header("content-type", "application/merge-patch+json; charset=utf-8");
    assert_eq!(management.send(&merge.body(r#"{"custom_claims":{"a":"y"}}"#)).await.status, 200);
    // The last claims, removed together and one after the other.
    let all = json!({"custom_claims": {"a": null, "c": null, "d": null}});
    for refused in [all, json!({"custom_claims": null}), json!({})] {
        assert_eq!(management.patch(id, &refused).await.code(), Some("invalid_request"), "{refused}");
    }
    management.patch(id, &json!({"custom_claims": {"c": null, "d": null}})).await;
    let reply = management.patch(id, &json!({"custom_claims": {"a": null}})).await;
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("last claim"), "{}", reply.text());
    assert_eq!(management.get_key(id).await["custom_claims"], json!({"a": "y"}));
}

#[tokio::test]
async fn concurrent_patches_of_one_key_lose_nothing() {
    let management = ManagementStage::start().await;
    let made = management.create(&json!({"custom_claims": {"a": "1"}})).await;
    // Without a lock, each would read before either writes.
    management
        .stage
        .emulator
        .set_fault(Fault::new(Target::Validate, Effect::LatencyAfter(Duration::from_millis(60))));
    let bodies: Vec<Value> =
        (0..6).map(|number| json!({"custom_claims": {format!("claim{number}"): "x"}})).collect();
    let patches = bodies.iter().map(|body| management.patch(id(&made), body));
    for reply in futures_util::future::join_all(patches).await {
        assert_eq!(reply.status, 200);
    }
    assert_eq!(management.get_key(id(&made)).await["custom_claims"].as_object().unwrap().len(), 7);
}

#[tokio::test]
async fn hanging_change_blocks_no_other_key() {
    let management = ManagementStage::start().await;
    let (slow, quick) =
        (management.create(&ordinary_body()).await, management.create(&ordinary_body()).await);
    management.stage.emulator.set_fault(Fault::new(Target::Update, Effect::Hang).times(1));
    let body = json!({"description": "new"});
    let mut client = management.connect().await;
    client.send(ApiRequest::new("PATCH", format!("{KEYS}/{}", id(&slow))).json(&body).to_bytes()).await;
    crate::support::wait_until(|| management.stage.emulator.counts().updates == 1).await;
    // One of 64 locks is taken: at most one of these may wait.
    let others = (0..3).map(async |_| {
        let made = management.create(&ordinary_body()).await;
        management.patch(id(&made), &body).await.status
    });
    let (others, own) =
        tokio::join!(futures_util::future::join_all(others), management.patch(id(&slow), &body));
    assert!(others.contains(&200));
    assert_eq!(own.code(), Some("overloaded"), "its own change waits in vain");
    management.stage.emulator.clear_faults();
    assert_eq!(client.read_reply().await.status, 200);
    assert_eq!(management.patch(id(&quick), &body).await.status, 200);
}

#[tokio::test]
async fn key_of_other_organization_is_not_found() {
    let management = ManagementStage::start().await;
    let (theirs, token_id) = management.issue("org_2");
    let before = management.stage.emulator.counts();
    let path = format!("{KEYS}/{token_id}");
    let mut answers = Vec::new();
    for ask in [
        ApiRequest::new("GET", &*path),
        ApiRequest::new("PATCH", &*path)
            .json(&json!({"custom_claims": {"team": "mine"}, "description": "mine"})),
        ApiRequest::new("DELETE", &*path),
        ApiRequest::new("POST", format!("{path}/rotate")),
        ApiRequest::new("POST", format!("{path}/rotate"))
            .with_idempotency_key("n")
            .json(&json!({"keep_old": true})),
    ] {
        let reply = management.send(&ask).await;
        assert_eq!((reply.status, reply.code()), (404, Some("not_found")));
        answers.push(reply.text());
    }
    let unknown = management.send(&ApiRequest::new("GET", format!("{KEYS}/apit_999"))).await.text();
    assert!(answers.iter().all(|answer| *answer == unknown), "it cannot be told from none");
    let after = management.stage.emulator.counts();
    assert_eq!(
        (after.creations, after.updates, after.invalidations),
        (before.creations, before.updates, before.invalidations)
    );
    assert_eq!(management.proxied_status(&theirs).await, 200);
    let own = ApiRequest::new("GET", format!("/v1/organizations/org_2/keys/{token_id}"));
    assert_eq!(management.send(&own).await.json()["custom_claims"], json!({"team": "a"}));
    // Revoked by its own organization, it is still not found in this one.
    management.send(&ApiRequest::new("DELETE", format!("/v1/organizations/org_2/keys/{token_id}"))).await;
    assert_eq!(management.code(&ApiRequest::new("DELETE", &*path)).await.0, 404);
}

#[tokio::test]
async fn rules_apply_to_creation_update_and_rotation() {
    let management = ManagementStage::with("max_expiry = \"90d\"\nallowed_claims = [\"team\"]").await;
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
        let reply = management.send(&ApiRequest::create(&refused)).await;
        assert_eq!((reply.status, reply.code()), (403, Some("not_permitted")), "{refused}");
    }
    assert_eq!(management.stage.emulator.counts().creations, 0);
    management.create(&json!({"expiry": in_days(89), "custom_claims": {"team": "a"}})).await;
    ends_within_90_days(&management.create(&json!({})).await["token_info"]);

    // Created without Keyward: it never expires, and has a claim that is not allowed.
    let issued = management.stage.issue(Issue {
        custom_claims: [("team", "a"), ("plan", "free")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        ..Issue::default()
    });
    for refused in [json!({"plan": "paid"}), json!({"plan": null}), json!({"other": "x"})] {
        let reply = management.patch(&issued.token_id, &json!({"custom_claims": refused})).await;
        assert_eq!(reply.code(), Some("not_permitted"), "{refused}");
    }
    assert_eq!(
        management.patch(&issued.token_id, &json!({"custom_claims": {"team": "b"}})).await.status,
        200
    );
    let next =
        management.send(&ApiRequest::new("POST", format!("{KEYS}/{}/rotate", issued.token_id))).await.json();
    assert_eq!(next["token_info"]["custom_claims"], json!({"team": "b", "plan": "free"}));
    ends_within_90_days(&next["token_info"]);

    let management = ManagementStage::with("require_expiry = true").await;
    assert_eq!(management.code(&ApiRequest::create(&json!({}))).await, (403, "not_permitted".to_owned()));
    management.create(&json!({"expiry": in_days(1000)})).await;
    let (_, endless) = management.issue("org_1");
    let reply = management.send(&ApiRequest::new("POST", format!("{KEYS}/{endless}/rotate"))).await;
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
    let management = ManagementStage::of(&lines, Setup::default()).await;
    let Some(keyward::listener::Listen::Tcp(address)) = management.stage.management else { panic!("a port") };
    for (alpn, http_version) in [("h2", HttpVersion::Http2), ("http/1.1", HttpVersion::Http1)] {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let client = tokio_rustls::TlsConnector::from(authority.client(&[alpn]));
        let mut http_client =
            HttpClient::over(client.connect(name, stream).await.unwrap(), http_version).await;
        for (secret, status) in [(super::SECRET, 200), ("wrong", 401), ("", 401)] {
            let mut request = http_client.request(hyper::Method::GET, KEYS, secret, keyward::body::empty());
            if http_version == HttpVersion::Http1 {
                request.headers_mut().insert("host", "localhost".parse().unwrap());
            } else {
                *request.uri_mut() = format!("https://localhost{KEYS}").parse().unwrap();
            }
            assert_eq!(http_client.send(request).await.unwrap().status(), status, "{alpn} {secret}");
        }
    }
}
