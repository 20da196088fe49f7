//! The use of keys and by organizations, as key management shows it.

use keyward_emulator::store::Issue;
use serde_json::{Value, json};

use super::{ended, lines};
use crate::management::{ApiRequest, KEYS, ManagementStage, SECRET};
use crate::support::tls::{Folder, toml};

async fn rows(management: &ManagementStage, query: &str) -> Vec<Value> {
    let reply = management.send(&ApiRequest::new("GET", format!("/v1/usage{query}"))).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/jsonl")));
    lines(&reply.text())
}

#[tokio::test]
async fn key_objects_carry_their_usage() {
    let management = ManagementStage::start().await;
    let issued = management.stage.issue(Issue::default());
    let before = management.get_key(&issued.token_id).await["usage"].clone();
    assert_eq!((&before["requests"], &before["last_used"]), (&0.into(), &Value::Null));
    assert!(before["complete_since"].is_string(), "since when it was not used: {before}");
    management.stage.get("/v1", &issued.key).await;
    let seen = ended(&management.stage, &issued.token_id, 1).await;
    let list = management.send(&ApiRequest::new("GET", KEYS)).await.json();
    for usage in [&management.get_key(&issued.token_id).await["usage"], &list["tokens"][0]["usage"]] {
        for name in ["first_used", "last_used", "requests", "last_status", "last_route", "last_network"] {
            assert_eq!(usage[name], seen[name], "{name}");
        }
    }
    let off = ManagementStage::with("[usage]\nenabled = false").await;
    let (_, id) = off.issue("org_1");
    assert_eq!(off.get_key(&id).await["usage"], Value::Null);
}

#[tokio::test]
async fn usage_is_listed_by_organization_and_day() {
    let management = ManagementStage::start().await;
    assert_eq!(rows(&management, "").await, Vec::<Value>::new());
    let stage = &management.stage;
    let first = stage.issue(Issue::default());
    let second = stage.issue(Issue { organization_id: "org_2".into(), ..Issue::default() });
    for path in ["/v1", "/v1/admin/x", "/v1"] {
        stage.get(path, &first.key).await;
    }
    stage.get("/v1", &second.key).await;
    ended(stage, &first.token_id, 3).await;
    ended(stage, &second.token_id, 1).await;
    let all = rows(&management, "").await;
    let day = all[0]["day"].as_str().unwrap();
    assert_eq!(all.len(), 2);
    let shown = |row: &Value| {
        json!([row["organization_id"], row["requests"], row["by_status"]["2xx"], row["by_outcome"]["deny"]])
    };
    assert_eq!(
        all.iter().map(shown).collect::<Vec<_>>(),
        [json!(["org_1", 3, 2, 1]), json!(["org_2", 1, 1, 0])]
    );
    assert_eq!(all[0]["instance"], all[1]["instance"]);
    assert_eq!(rows(&management, &format!("?from={day}&to={day}")).await, all);
    assert_eq!(rows(&management, "?to=2020-01-01").await, Vec::<Value>::new());
    for query in ["?from=yesterday", "?from=2026-02-30", "?day=2026-11-25", "?to=2026-11-25&to=2026-11-25"] {
        let bad = management.send(&ApiRequest::new("GET", format!("/v1/usage{query}"))).await;
        assert_eq!(bad.status, 400, "{query}");
    }
    assert_eq!(management.send(&ApiRequest::new("POST", "/v1/usage")).await.status, 405);
}

#[tokio::test]
async fn usage_requires_secret_of_management() {
    let folder = Folder::new();
    let file = folder.write("secret", SECRET);
    let management = ManagementStage::with(&format!("secret_file = {}", toml(&file))).await;
    let ask = ApiRequest::new("GET", "/v1/usage");
    assert_eq!(management.code(&ask).await, (401, "unauthorized".to_owned()));
    let with = |secret: &str| ask.clone().header("authorization", &format!("Bearer {secret}"));
    assert_eq!(management.send(&with("made-up-wrong-secret")).await.status, 401);
    assert_eq!(management.send(&with(SECRET)).await.status, 200);
    assert_eq!(management.send(&with(SECRET).header("origin", "null")).await.status, 403);
}
