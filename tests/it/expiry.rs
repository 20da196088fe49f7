//! Warnings before keys expire.

use std::time::{Duration, SystemTime};

use keyward_emulator::store::Issue;

use crate::support::{Setup, Stage};

const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn client_is_told_when_its_key_expires_soon() {
    let sections = "[expiry]\nwarn_before = \"14d\"\n[rate_limits.one]\nrequests = 2\nper = \"1h\"\nby = \"key\"\ndefault = true";
    let stage = Stage::with(Setup { sections, ..Setup::default() }).await;
    let expiring = |days: u32| {
        let expiry = Some((SystemTime::now() + days * DAY).try_into().unwrap());
        stage.issue(Issue { expiry, ..Issue::default() }).key
    };
    let soon = expiring(13);
    for path in ["/v1/x", "/v1/admin/x", "/v1/x"] {
        let reply = stage.get(path, &soon).await;
        let date = reply.header("keyward-key-expires").unwrap_or_else(|| panic!("{path}: {reply:?}"));
        let expires = jiff::fmt::rfc2822::parse(date).unwrap();
        let left = expires.timestamp().duration_since(jiff::Timestamp::now());
        let left = left.unsigned_abs();
        assert!(left <= 13 * DAY && left > 13 * DAY - Duration::from_secs(60), "{date}");
    }
    let expired_before = stage.get("/public/x", &soon).await;
    assert_eq!(expired_before.header("keyward-key-expires"), None, "a public route does not look at the key");
    for key in [expiring(15), stage.issue_key()] {
        assert_eq!(stage.get("/v1/x", &key).await.header("keyward-key-expires"), None);
    }
    stage.get("/v1/x", &expiring(1)).await;
    let metrics = stage.get_admin("/metrics").await.text();
    assert!(metrics.contains("keyward_expiring_keys 2\n"), "{metrics}");
    assert!(metrics.contains("keyward_expiring_key_requests_total 4\n"), "{metrics}");
}
