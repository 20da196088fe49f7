//! What is kept and what is lost when a real process is drained, killed, or finds another file.

use std::net::SocketAddr;

use keyward_emulator::store::{Issue, Issued};
use keyward_emulator::{self as emulator, Emulator};
use rustix::process::Signal;
use serde_json::Value;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{lines, time};
use crate::process::{Folder, Running, echo, keyward_run, route_file};
use crate::support::raw::{Client, Reply};
use crate::support::{TEST_TIMEOUT, bind_loopback};

/// What processes are started with.
pub struct Site {
    pub folder: Folder,
    pub ends: CancellationToken,
    pub emulator: Emulator,
    pub scalekit: SocketAddr,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.ends.cancel();
    }
}

impl Site {
    pub async fn new(name: &str) -> Self {
        let (folder, ends) = (Folder::new(name), CancellationToken::new());
        let emulator = Emulator::new(emulator::Settings::default());
        let (listener, scalekit) = bind_loopback().await;
        let (serving, until) = (emulator.clone(), ends.clone());
        tokio::spawn(async move { serving.serve(listener, until).await });
        Self { folder, ends, emulator, scalekit }
    }

    pub fn issue(&self) -> Issued {
        self.emulator.issue(Issue { organization_id: "org_1".into(), ..Issue::default() })
    }

    /// The path of a file that does not exist.
    pub fn path(&self, name: &str) -> String {
        let path = self.folder.write(name, "");
        std::fs::remove_file(&path).unwrap();
        path
    }

    /// A Keyward with these sections, whose admin port is the unix socket `admin`, and the address of its public port.
    pub async fn start(&self, admin: &str, sections: &str) -> (Running, SocketAddr) {
        let secret = self.folder.write("secret", "dev");
        let server = "drain_delay = \"0s\"";
        let text = route_file(echo(&self.ends).await, server).replace(
            "[admin]\nlisten = \"127.0.0.1:0\"",
            &format!("[admin]\nlisten = \"unix:{admin}\"\n{sections}"),
        );
        let file = self.folder.write("keyward.toml", &text);
        let running = Running::start(keyward_run(&file, self.scalekit, &secret));
        let address = running.address("server.address").await;
        running.until("\"ready\"").await;
        (running, address)
    }
}

pub async fn get(address: SocketAddr, key: &str) -> Reply {
    let mut client = Client::connect(address).await;
    client.send(format!("GET /v1 HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n")).await;
    client.read_reply().await
}

/// The coverage, and what is known of the key.
async fn seen(admin: &str, id: &str) -> (Value, Option<Value>) {
    let stream = tokio::net::UnixStream::connect(admin).await.unwrap();
    let mut client = Client::over(stream);
    client.send(format!("GET /usage?id={id} HTTP/1.1\r\nhost: localhost\r\n\r\n")).await;
    let mut lines = lines(&client.read_reply().await.text()).into_iter();
    (lines.next().unwrap(), lines.next())
}

fn sections(file: &str) -> String {
    format!("[usage]\nfile = \"{file}\"\n")
}

#[tokio::test]
async fn drained_process_loses_no_count() {
    let site = Site::new("usage-drain").await;
    let (admin, file, issued) = (site.path("admin.sock"), site.path("usage.jsonl"), site.issue());
    let (mut running, address) = site.start(&admin, &sections(&file)).await;
    for _ in 0..20 {
        assert_eq!(get(address, &issued.key).await.status, 200);
    }
    let (before, _) = seen(&admin, &issued.token_id).await;
    running.signal(Signal::TERM);
    assert_eq!(running.exit().await, Some(0));
    let (mut running, _) = site.start(&admin, &sections(&file)).await;
    let (after, key) = seen(&admin, &issued.token_id).await;
    assert_eq!(key.unwrap()["requests"], 20);
    assert_eq!(after["complete_since"], before["complete_since"], "nothing is missing");
    assert_eq!(after["instance"], before["instance"]);
    assert_ne!(after["started"], before["started"]);
    running.signal(Signal::TERM);
    assert_eq!(running.exit().await, Some(0));
}

#[tokio::test]
async fn killed_process_loses_only_what_was_not_yet_written() {
    let site = Site::new("usage-kill").await;
    let (admin, file, issued) = (site.path("admin.sock"), site.path("usage.jsonl"), site.issue());
    let (mut running, address) = site.start(&admin, &sections(&file)).await;
    for _ in 0..20 {
        assert_eq!(get(address, &issued.key).await.status, 200);
    }
    let written = || {
        let text = std::fs::read_to_string(&file).unwrap();
        let keys = text.lines().filter(|line| line.starts_with("{\"key\""));
        keys.map(|line| serde_json::from_str::<Value>(line).unwrap()["key"]["requests"].as_u64().unwrap())
            .sum::<u64>()
    };
    let wait = async {
        while written() < 20 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    timeout(TEST_TIMEOUT, wait).await.expect("it is written within some seconds");
    for _ in 0..10 {
        assert_eq!(get(address, &issued.key).await.status, 200);
    }
    running.signal(Signal::KILL);
    assert_eq!(running.exit().await, None);
    let kept = written();
    assert!((20..=30).contains(&kept), "{kept}");
    let (_running, address) = site.start(&admin, &sections(&file)).await;
    let (coverage, key) = seen(&admin, &issued.token_id).await;
    assert_eq!(key.unwrap()["requests"], kept);
    assert_eq!(coverage["complete_since"], coverage["started"], "uses may be missing from before");
    assert!(time(&coverage["counted_since"]) < time(&coverage["started"]));
    assert_eq!(get(address, &issued.key).await.status, 200);
}

#[tokio::test]
async fn without_file_restart_forgets_counts() {
    let site = Site::new("usage-none").await;
    let (admin, issued) = (site.path("admin.sock"), site.issue());
    let (mut running, address) = site.start(&admin, "").await;
    assert_eq!(get(address, &issued.key).await.status, 200);
    let (before, key) = seen(&admin, &issued.token_id).await;
    assert!(key.is_some());
    running.signal(Signal::TERM);
    assert_eq!(running.exit().await, Some(0));
    let (_running, _) = site.start(&admin, "").await;
    let (after, key) = seen(&admin, &issued.token_id).await;
    assert_eq!(key, None);
    assert_ne!(after["instance"], before["instance"], "these are other counts");
    assert_eq!(after["counted_since"], after["started"]);
}

#[tokio::test]
async fn file_of_something_else_stops_the_start() {
    let site = Site::new("usage-foreign").await;
    let file = site.folder.write("usage.jsonl", "not of usage\n");
    let secret = site.folder.write("secret", "dev");
    let text = format!("{}{}", route_file(echo(&site.ends).await, ""), sections(&file));
    let config = site.folder.write("keyward.toml", &text);
    let mut running = Running::start(keyward_run(&config, site.scalekit, &secret));
    assert_eq!(running.exit().await, Some(1));
    running.until(&format!("usage.file: {file} is not a file of Keyward's usage")).await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "not of usage\n");
}

#[tokio::test]
async fn damaged_file_is_set_aside_and_start_goes_on() {
    let site = Site::new("usage-damaged").await;
    let (admin, file, issued) = (site.path("admin.sock"), site.path("usage.jsonl"), site.issue());
    let (mut running, address) = site.start(&admin, &sections(&file)).await;
    assert_eq!(get(address, &issued.key).await.status, 200);
    running.signal(Signal::TERM);
    assert_eq!(running.exit().await, Some(0));
    let whole = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let (running, _) = site.start(&admin, &sections(&file)).await;
    running.until("usage.file is damaged").await;
    assert_eq!(seen(&admin, &issued.token_id).await.1, None);
    assert_eq!(std::fs::read_to_string(format!("{file}.damaged")).unwrap(), whole[..whole.len() / 2]);
}
