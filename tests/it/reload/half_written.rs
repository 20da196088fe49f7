//! A route file that is written in several steps does not take effect before the last.

use std::time::{Duration, SystemTime};

use keyward::server::reload::Pace;
use tokio::time::sleep;

use super::{FAST, Reloading, text};

const FOREVER: Duration = Duration::from_secs(3600);

/// Long enough for many checks of the watcher.
async fn many_looks() {
    sleep(FAST.look_every * 25).await;
}

/// The route file without and with its last route, which requires a key.
fn halves(keyward: &Reloading) -> (String, String) {
    let half = text(keyward.echo_address, &["/*"], "");
    let whole = format!("{half}[[routes]]\npath = \"/admin/*\"\nupstream = \"echo\"\n");
    (half, whole)
}

impl Reloading {
    /// In place, as `cat >` does it.
    fn write_in_place(&self, text: &str) {
        std::fs::write(&self.file, text).unwrap();
    }

    /// Whether `/admin/x` passes without a key.
    async fn is_open(&self) -> bool {
        self.status("/admin/x").await == 200
    }

    async fn with_an_admin_route(name: &str, pace: Pace) -> Self {
        let keyward = Self::start_at(name, "", "", pace).await;
        keyward.write_text(&halves(&keyward).1);
        keyward.hup.notify_one();
        keyward.until("/admin/x", 401).await;
        keyward
    }
}

#[tokio::test]
async fn half_written_route_file_opens_no_route() {
    let keyward = Reloading::with_an_admin_route("half", Pace { hold: FOREVER, ..FAST }).await;
    let (half, whole) = halves(&keyward);
    for _ in 0..3 {
        keyward.write_in_place(&half);
        many_looks().await;
        assert!(!keyward.is_open().await, "a pause between two writes");
        keyward.write_in_place(&whole);
        many_looks().await;
        assert!(!keyward.is_open().await);
    }
    assert_eq!(keyward.metrics.reload_successful.get(), 1);
    // A file that only tightens requirements is not held.
    let stricter = whole.replacen("auth = \"none\"", "auth = \"key\"", 1);
    keyward.write_in_place(&stricter);
    keyward.until("/x", 401).await;
    // The operator confirms it by SIGHUP.
    keyward.write_in_place(&half);
    many_looks().await;
    assert!(!keyward.is_open().await);
    keyward.hup.notify_one();
    keyward.until("/admin/x", 200).await;
}

#[tokio::test]
async fn truncated_requirement_is_not_loosened() {
    let keyward = Reloading::with_an_admin_route("cut", Pace { hold: FOREVER, ..FAST }).await;
    let (_, whole) = halves(&keyward);
    let required = format!("{whole}require = {{ roles = [\"admin\"] }}\n");
    keyward.write_in_place(&required);
    let key = keyward.key();
    keyward.until_with("/admin/x", &key, 403).await;
    keyward.write_in_place(&whole);
    many_looks().await;
    assert_eq!(keyward.status_with("/admin/x", &key).await, 403);
    keyward.hup.notify_one();
    keyward.until_with("/admin/x", &key, 200).await;
}

#[tokio::test]
async fn dropped_route_is_removed_after_hold() {
    let keyward = Reloading::with_an_admin_route("held", FAST).await;
    keyward.write_in_place(&halves(&keyward).0);
    keyward.until("/admin/x", 200).await;
}

#[tokio::test]
async fn file_is_not_read_until_last_write_settled() {
    let pace = Pace { settle: FOREVER, hold: Duration::ZERO, ..FAST };
    let keyward = Reloading::with_an_admin_route("settle", pace).await;
    keyward.write_in_place(&halves(&keyward).0);
    many_looks().await;
    assert!(!keyward.is_open().await);
    let file = std::fs::File::options().write(true).open(&keyward.file).unwrap();
    file.set_modified(SystemTime::now() - 2 * FOREVER).unwrap();
    keyward.until("/admin/x", 200).await;
}

#[tokio::test]
async fn constantly_changing_file_is_not_read() {
    let slow = Duration::from_millis(100);
    let pace = Pace { look_every: slow, settle: Duration::ZERO, hold: Duration::ZERO };
    let keyward = Reloading::with_an_admin_route("moving", pace).await;
    let (half, _) = halves(&keyward);
    for length in 0..60 {
        keyward.write_in_place(&format!("{half}#{}", "x".repeat(length)));
        sleep(Duration::from_millis(10)).await;
        assert!(!keyward.is_open().await, "after {length} writes");
    }
    keyward.until("/admin/x", 200).await;
}
