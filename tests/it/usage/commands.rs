//! The commands that show the use of keys, against real processes.

use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;
use tokio::process::Command;

use super::restarts::{Site, get};
use crate::keys::{Done, command, done};
use crate::process::{Running, keyward};

impl Site {
    fn keys(&self, arguments: &[&str]) -> Command {
        command(&format!("http://{}", self.scalekit), arguments)
    }

    async fn fine(&self, arguments: &[&str]) -> String {
        let done = done(self.keys(arguments)).await;
        assert_eq!((done.code, &*done.err), (0, ""), "{arguments:?}: {done:?}");
        done.out
    }
}

/// The command of a line that begins with `start`, as a user would run it.
fn printed(site: &Site, text: &str, start: &str) -> Command {
    let line =
        text.lines().map(str::trim).find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{text}"));
    let words: Vec<&str> = line.strip_prefix("keyward keys ").unwrap().split(' ').collect();
    site.keys(&words)
}

/// Watches a key at these admin ports.
fn watch(id: &str, silent_for: &str, admins: &[&str]) -> Command {
    let mut command = keyward(&["keys", "watch", id, "--silent-for", silent_for]);
    command.args(admins.iter().flat_map(|admin| ["--admin".to_owned(), format!("unix:{admin}")]));
    command
}

#[tokio::test]
async fn rotation_is_carried_out_to_its_end() {
    let site = Site::new("usage-rotation").await;
    let admin = site.path("admin.sock");
    let (_running, address) = site.start(&admin, "").await;
    let admin_port = format!("unix:{admin}");
    let created: Value =
        serde_json::from_str(&site.fine(&["create", "--org", "org_1", "--json"]).await).unwrap();
    let (old_key, old) = (created["token"].as_str().unwrap(), created["token_id"].as_str().unwrap());
    let list = ["list", "--org", "org_1", "--seen", "--admin", &admin_port];
    let table = site.fine(&list).await;
    assert!(table.lines().next().unwrap().contains("LAST USED"), "{table}");
    assert!(table.lines().nth(1).unwrap().contains("not in "), "{table}");
    assert_eq!(get(address, old_key).await.status, 200);

    // Hand out a new key. Clients still have the old one.
    let rotated = site.fine(&["rotate", old, "--overlap", "4s"]).await;
    let new_key = crate::keys::shown(&rotated);
    assert_eq!(get(address, old_key).await.status, 200);
    let table = site.fine(&list).await;
    let row = table.lines().find(|line| line.starts_with(old)).unwrap();
    assert!(row.contains(" ago ") || row.contains(" now "), "{row}");

    // Watch the old one, as the rotation says, until clients have the new one.
    let mut watching = printed(&site, &rotated, "keyward keys watch");
    watching.env("KEYWARD_ADMIN", &admin_port);
    let mut watching = Running::start(watching);
    watching.until("was last used at").await;
    assert_eq!(get(address, old_key).await.status, 200);
    watching.until("requests: 3").await;
    assert_eq!(get(address, &new_key).await.status, 200);
    assert_eq!(watching.exit().await, Some(0));
    watching.until("has not been used since").await;
    let text = watching.text();
    assert!(!text.contains(old_key) && !text.contains(&new_key));

    // It tells how to revoke the key.
    let revoke = format!("keyward keys revoke {old}");
    assert!(text.trim_end().ends_with(&revoke), "{text}");
    assert_eq!(done(printed(&site, &rotated, "keyward keys revoke")).await.code, 0);
    assert_eq!(get(address, old_key).await.status, 401);
    assert_eq!(get(address, &new_key).await.status, 200);
}

#[tokio::test]
async fn inspect_shows_last_use() {
    let site = Site::new("usage-inspect").await;
    let admin = site.path("admin.sock");
    let (_running, address) = site.start(&admin, "").await;
    let (issued, admin_port) = (site.issue(), format!("unix:{admin}"));
    let inspect = ["inspect", &issued.token_id, "--seen", "--admin", &admin_port];
    assert!(site.fine(&inspect).await.contains("last used     not in "));
    assert_eq!(get(address, &issued.key).await.status, 200);
    let text = site.fine(&inspect).await;
    for line in ["last used     ", "  from        127.0.0.0/24", "  route       /*", "first used    "] {
        assert!(text.contains(line), "{line:?} in {text}");
    }
    let json: Value = serde_json::from_str(&site.fine(&[&inspect[..], &["--json"]].concat()).await).unwrap();
    assert_eq!(json["usage"]["last_route"], "/*");
    let without: Value =
        serde_json::from_str(&site.fine(&["inspect", &issued.token_id, "--json"]).await).unwrap();
    assert!(without.get("usage").is_none(), "{without}");
}

#[tokio::test]
async fn silence_is_not_concluded_from_a_restart() {
    let site = Site::new("usage-restart").await;
    let (admin, issued) = (site.path("admin.sock"), site.issue());
    let (mut running, address) = site.start(&admin, "").await;
    assert_eq!(get(address, &issued.key).await.status, 200);
    let mut watching = Running::start(watch(&issued.token_id, "3s", &[&admin]));
    watching.until("was last used at").await;
    running.signal(Signal::KILL);
    assert_eq!(running.exit().await, None);
    watching.until("does not count as silent until").await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(watching.child.try_wait().unwrap(), None, "not while it does not answer: {}", watching.text());
    let restarted = jiff::Timestamp::now();
    let (_running, _) = site.start(&admin, "").await;
    watching.until("answers again").await;
    watching.until("was restarted, and may have lost uses of the key").await;
    assert_eq!(watching.exit().await, Some(0));
    let silence = jiff::Timestamp::now().duration_since(restarted);
    assert!(silence.as_millis() >= 3000, "{silence:?}: {}", watching.text());
}

#[tokio::test]
async fn all_replicas_must_be_silent() {
    let site = Site::new("usage-replicas").await;
    let (admins, issued) = (["a.sock", "b.sock"].map(|name| site.path(name)), site.issue());
    let (_first, address) = site.start(&admins[0], "").await;
    let (_second, other) = site.start(&admins[1], "").await;
    for address in [address, other, other] {
        assert_eq!(get(address, &issued.key).await.status, 200);
    }
    let both = admins.each_ref().map(|admin| format!("unix:{admin}")).join(",");
    let mut list = site.keys(&["list", "--org", "org_1", "--seen", "--json"]);
    list.env("KEYWARD_ADMIN", both);
    let merged: Value = serde_json::from_str(&done(list).await.out).unwrap();
    assert_eq!(merged["usage"]["requests"], 3, "{merged}");
    let mut watching = Running::start(watch(&issued.token_id, "2s", &[&admins[0], &admins[1]]));
    watching.until("was last used at unix:").await;
    let used = jiff::Timestamp::now();
    assert_eq!(get(other, &issued.key).await.status, 200);
    watching.until("requests: 3").await;
    assert_eq!(watching.exit().await, Some(0));
    assert!(jiff::Timestamp::now().duration_since(used).as_millis() >= 2000, "{}", watching.text());
}

#[tokio::test]
async fn open_stream_is_no_silence() {
    let site = Site::new("usage-stream").await;
    let (admin, issued) = (site.path("admin.sock"), site.issue());
    let (_running, address) = site.start(&admin, "").await;
    let mut client = crate::support::raw::Client::connect(address).await;
    let request =
        format!("GET /stream/1000 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n", issued.key);
    client.send(request).await;
    client.read_head().await;
    let mut watching = Running::start(watch(&issued.token_id, "1s", &[&admin]));
    watching.until("1 in progress").await;
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(watching.child.try_wait().unwrap(), None, "{}", watching.text());
    drop(client);
    assert_eq!(watching.exit().await, Some(0));
}

#[tokio::test]
async fn missing_keyward_is_one_clear_line() {
    let (_listener, address) = crate::support::bind_loopback().await;
    drop(_listener);
    let refused = |done: Done, expected: &str| {
        assert_eq!((done.code, &*done.out, done.err.lines().count()), (1, "", 1), "{done:?}");
        assert!(done.err.contains(expected), "{done:?}");
    };
    let admin = address.to_string();
    let watch = done(keyward(&["keys", "watch", "apit_1", "--admin", &admin])).await;
    refused(watch, "name the admin port of a running Keyward with --admin");
    let watch = done(keyward(&["keys", "watch", "apit_1", "--admin", "nowhere"])).await;
    refused(watch, "--admin should be HOST:PORT or unix:/path");
    let site = Site::new("usage-missing").await;
    site.issue();
    let list = done(site.keys(&["list", "--org", "org_1", "--seen", "--admin", &admin])).await;
    refused(list, &format!("the admin port at {admin}: "));
    let socket = site.path("admin.sock");
    let (_running, _) = site.start(&socket, "[usage]\nenabled = false\n").await;
    let mut off = keyward(&["keys", "watch", "apit_1", "--admin", &format!("unix:{socket}")]);
    off.stdin(Stdio::null());
    refused(done(off).await, "usage is not counted: usage.enabled is false");
    let mut pasted = keyward(&["keys", "watch", "madeupkeymadeupkeymadeupkey00"]);
    pasted.stdin(Stdio::null());
    let pasted = done(pasted).await;
    assert!(!pasted.err.contains("madeupkey") && pasted.err.contains("not the id of a key"), "{pasted:?}");
}
