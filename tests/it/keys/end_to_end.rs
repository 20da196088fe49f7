//! The command line and a running Keyward with one Scalekit.

use super::{Kit, shown};
use crate::support::Stage;

#[tokio::test]
async fn revoked_key_is_refused_on_next_proxied_request() {
    let stage = Stage::start().await;
    let kit = Kit::before(&stage.emulator).await;
    for _ in 0..3 {
        let (key, id) = kit.create(&["--org", "org_7", "--claim", "team=eng"]).await;
        let reply = stage.get("/v1", &key).await;
        assert_eq!(reply.status, 200);
        assert_eq!(stage.last_request().header("x-org-id"), Some("org_7"));
        kit.fine(&["update", &id, "--claim", "team=ops"]).await;
        assert_eq!(stage.get("/v1", &key).await.status, 200);
        assert_eq!(stage.last_request().header("x-claim-team"), Some("ops"));
        kit.fine(&["revoke", &id]).await;
        assert_eq!(stage.get("/v1", &key).await.code(), Some("invalid_key"));
    }
}

#[tokio::test]
async fn rotation_keeps_service_available() {
    let stage = Stage::start().await;
    let kit = Kit::before(&stage.emulator).await;
    let (key, id) = kit.create(&["--org", "org_7"]).await;
    let new = shown(&kit.fine(&["rotate", &id, "--overlap", "1h"]).await);
    for key in [&key, &new, &key, &new] {
        assert_eq!(stage.get("/v1", key).await.status, 200);
    }
    kit.fine(&["revoke", &id]).await;
    assert_eq!(stage.get("/v1", &key).await.status, 401);
    assert_eq!(stage.get("/v1", &new).await.status, 200);
    let id = kit.live("org_7").await.pop().unwrap();
    let newest = kit.fine(&["rotate", &id, "--quiet"]).await;
    assert_eq!(stage.get("/v1", &new).await.status, 401);
    assert_eq!(stage.get("/v1", newest.trim()).await.status, 200);
}
