//! The process: the memory that bodies take, and its log.

mod floods;
mod uploads;

use keyward_emulator::store::Issue;
use keyward_emulator::{self as emulator, Emulator};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::process::{Folder, Running, echo, keyward, keyward_run, route_file};
use crate::support::raw::Client;
use crate::support::{TEST_TIMEOUT, bind_loopback};

const MIB: usize = 1024 * 1024;
const LENGTH: usize = 96 * MIB;

/// A line of the process's `/proc/PID/status`, in bytes.
fn memory(running: &Running, name: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.child.id().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// The process's peak memory, in bytes.
fn peak(running: &Running) -> usize {
    memory(running, "VmHWM:")
}

#[tokio::test]
async fn long_and_stalled_bodies_use_bounded_memory() {
    let (folder, ends) = (Folder::new("memory"), CancellationToken::new());
    let secret = folder.write("secret", "dev");
    let at_once = "drain_delay = \"0s\"\ndrain_timeout = \"0s\"";
    let routes = route_file(echo(&ends).await, at_once);
    let open = "\n[[routes]]\npath = \"/bytes/*\"\nupstream = \"echo\"\nauth = \"none\"\n";
    let file = folder.write("keyward.toml", &format!("{routes}{open}"));
    let (_scalekit, scalekit) = bind_loopback().await;
    let mut running = Running::start(keyward_run(&file, scalekit, &secret));
    let address = running.address("server.address").await;
    let mut client = Client::connect(address).await;
    client.send("GET /public/x HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert_eq!(client.read_reply().await.status, 200);
    let before = peak(&running);

    client.send(format!("POST /public/x HTTP/1.1\r\nhost: a\r\ncontent-length: {LENGTH}\r\n\r\n")).await;
    for _ in 0..LENGTH / MIB {
        client.send(vec![b'.'; MIB]).await;
    }
    assert_eq!(client.read_reply().await.json()["body_bytes"], LENGTH);
    // Some clients request as much and do not read it.
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET /bytes/{LENGTH} HTTP/1.1\r\nhost: a\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stalled.push(stream);
    }
    let request = format!("POST /public/x HTTP/1.1\r\nhost: a\r\ncontent-length: {LENGTH}\r\n\r\n");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut reading, mut writing) = stream.into_split();
    let sending = tokio::spawn(async move {
        for _ in 0..LENGTH / MIB {
            writing.write_all(&vec![b'.'; MIB]).await.unwrap();
        }
        writing
    });
    let mut answer = [0; 12];
    timeout(TEST_TIMEOUT, reading.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    sending.await.unwrap();
    let grown = peak(&running) - before;
    assert!(grown < 24 * MIB, "{} MiB for bodies", grown / MIB);
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.exit().await, Some(0));
    ends.cancel();
}

#[tokio::test]
async fn uploads_after_refusal_use_bounded_memory() {
    let (folder, ends) = (Folder::new("refused"), CancellationToken::new());
    let secret = folder.write("secret", "dev");
    let at_once = "drain_delay = \"0s\"\ndrain_timeout = \"0s\"";
    let file = folder.write("keyward.toml", &route_file(echo(&ends).await, at_once));
    let (_scalekit, scalekit) = bind_loopback().await;
    let mut running = Running::start(keyward_run(&file, scalekit, &secret));
    let address = running.address("server.address").await;
    let before = peak(&running);
    let mut uploads = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        uploads.spawn(async move {
            let head = "POST /v1 HTTP/1.1\r\nhost: a\r\ncontent-length: 999999999999\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            while stream.write_all(&[b'.'; 64 * 1024]).await.is_ok() {}
        });
    }
    timeout(TEST_TIMEOUT, uploads.join_all()).await.expect("they are let go of");
    let grown = peak(&running) - before;
    assert!(grown < 8 * MIB, "{} MiB for refused uploads", grown / MIB);
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.exit().await, Some(0));
    ends.cancel();
}

#[tokio::test]
async fn clients_cannot_make_libraries_fill_the_log() {
    let (folder, ends) = (Folder::new("flood"), CancellationToken::new());
    let secret = folder.write("secret", "dev");
    let emulator = Emulator::new(emulator::Settings::default());
    let (listener, scalekit) = bind_loopback().await;
    let until = ends.clone();
    tokio::spawn(async move { emulator.serve(listener, until).await });
    let file = folder.write("keyward.toml", &route_file(echo(&ends).await, "drain_delay = \"0s\""));
    let mut running = Running::start(keyward_run(&file, scalekit, &secret));
    let address = running.address("server.address").await;
    running.until("\"ready\"").await;
    let mut client = Client::connect(address).await;
    client.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    // Acknowledgements of a PING that was not sent, and one PING whose response shows that all were read.
    let stray = b"\0\0\x08\x06\x01\0\0\0\0strayack";
    client.send([&stray.repeat(1000)[..], b"\0\0\x08\x06\0\0\0\0\0lastlast"].concat()).await;
    let mut seen = Vec::new();
    while !seen.windows(8).any(|window| window == b"lastlast") {
        seen.extend(client.read_bytes(1).await);
    }
    drop(client);
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.exit().await, Some(0));
    running.until("\"stopped\"").await;
    let lines = running.text().lines().count();
    assert!(lines < 20, "{lines}");
    ends.cancel();
}

#[tokio::test]
async fn access_log_is_json_without_query_and_key() {
    let (folder, ends) = (Folder::new("access"), CancellationToken::new());
    let secret = folder.write("secret", "dev");
    let emulator = Emulator::new(emulator::Settings::default());
    let (listener, scalekit) = bind_loopback().await;
    let (serving, until) = (emulator.clone(), ends.clone());
    tokio::spawn(async move { serving.serve(listener, until).await });
    let file = folder.write("keyward.toml", &route_file(echo(&ends).await, "drain_delay = \"0s\""));
    let mut running = Running::start(keyward_run(&file, scalekit, &secret));
    let address = running.address("server.address").await;
    running.until("\"ready\"").await;
    let issue = Issue { organization_id: "org_1".into(), user_id: "usr_1".into(), ..Issue::default() };
    let issued = emulator.issue(issue);
    let bad = "0123456789ABCDEFGHIJabcdefghij";
    for (line, key) in [
        ("GET /v1/a?canary=1", &*issued.key),
        ("GET /v1/b?canary=2", bad),
        ("POST /public/c?canary=3", &issued.key),
    ] {
        let mut client = Client::connect(address).await;
        let trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        client
            .send(format!(
                "{line} HTTP/1.1\r\nhost: a\r\nuser-agent: it\r\n{trace}\r\nauthorization: Bearer {key}\r\n\
                 content-length: 0\r\n\r\n"
            ))
            .await;
        client.read_reply().await;
    }
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.exit().await, Some(0));
    running.until("\"stopped\"").await;
    let text = running.text();
    for secret in ["canary", &issued.key, bad, "Bearer"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let access: Vec<_> = lines.iter().filter(|line| !line["http.request.method"].is_null()).collect();
    assert_eq!(access.len(), 3, "{text}");
    for (line, expected) in access.iter().zip([
        serde_json::json!({
            "url.path": "/v1/a", "http.response.status_code": 200, "keyward.decision": "allow", "keyward.route": "/*",
            "keyward.org.id": "org_1", "keyward.user.id": "usr_1", "keyward.token.id": issued.token_id,
        }),
        serde_json::json!({
            "url.path": "/v1/b", "http.response.status_code": 401, "keyward.decision": "deny",
            "keyward.reason": "invalid_key", "http.route": "/*",
        }),
        serde_json::json!({
            "url.path": "/public/c", "http.response.status_code": 200, "keyward.decision": "allow",
            "http.request.method": "POST", "user_agent.original": "it", "client.address": "127.0.0.1",
            "network.protocol.version": "1.1", "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        }),
    ]) {
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(&line[name], value, "{name} in {line}");
        }
        assert!(line["keyward.request.duration"].as_f64().is_some(), "{line}");
        assert!(line["keyward.request.id"].as_str().is_some(), "{line}");
    }
    assert!(access[0]["keyward.validation.duration"].as_f64().is_some(), "{}", access[0]);
    assert!(access[0]["keyward.upstream.duration"].as_f64().is_some(), "{}", access[0]);
    assert!(access[1]["keyward.upstream.duration"].is_null(), "{}", access[1]);
    assert!(access[2]["keyward.validation.duration"].is_null(), "{}", access[2]);
    ends.cancel();
}

#[tokio::test]
async fn core_files_are_disabled_by_default() {
    let (folder, ends) = (Folder::new("core"), CancellationToken::new());
    let secret = folder.write("secret", "dev");
    let file = folder.write("keyward.toml", &route_file(echo(&ends).await, "drain_delay = \"0s\""));
    let (_scalekit, scalekit) = bind_loopback().await;
    let limit = |running: &Running| {
        let limits =
            std::fs::read_to_string(format!("/proc/{}/limits", running.child.id().unwrap())).unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
        line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    let mut running = Running::start(keyward_run(&file, scalekit, &secret));
    running.until("\"listening\"").await;
    assert_eq!(limit(&running), ["0", "0"]);
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.exit().await, Some(0));
    let mut command = keyward_run(&file, scalekit, &secret);
    command.env("KEYWARD_CORE_DUMPS", "allow");
    let running = Running::start(command);
    running.until("\"listening\"").await;
    let own = rustix::process::getrlimit(rustix::process::Resource::Core);
    let own = own.current.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    assert_eq!(limit(&running)[0], own, "as it was started");
    ends.cancel();
}

#[tokio::test]
async fn refused_connections_are_logged_with_sampling() {
    let (folder, ends) = (Folder::new("refused-line"), CancellationToken::new());
    let secret = folder.write("secret", "dev");
    let file = folder.write("keyward.toml", &route_file(echo(&ends).await, "drain_delay = \"0s\""));
    let (_scalekit, scalekit) = bind_loopback().await;
    let mut running = Running::start(keyward_run(&file, scalekit, &secret));
    let address = running.address("server.address").await;
    // An aborted head, which is not logged.
    let mut client = Client::connect(address).await;
    client.send("GET /public/x HTTP/1.1\r\nhost:").await;
    drop(client);
    let probes: [&[u8]; 4] = [
        b"GET /canary HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /canary HTTP/1.1\r\nhost: a\r\nbad name: 1\r\n\r\n",
        // HTTP/2: a SETTINGS frame of an invalid length.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x05\x04\0\0\0\0\0canar",
        b"\x1b]0;canary\x07\r\n\r\n",
    ];
    for number in 0..40 {
        let mut client = Client::connect(address).await;
        client.send(probes[number % probes.len()]).await;
        client.read_to_end().await;
        drop(client);
        if number == 0 {
            // It is logged once the connection has ended, and the others must not come before.
            running.until("refused a connection").await;
        }
    }
    // The next line has the number of suppressed ones.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let mut client = Client::connect(address).await;
    client.send(probes[0]).await;
    client.read_to_end().await;
    running.until("\"suppressed\":39").await;
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.exit().await, Some(0));
    running.until("\"stopped\"").await;
    let text = running.text();
    let lines: Vec<serde_json::Value> = text
        .lines()
        .filter(|line| line.contains("refused a connection"))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2, "{text}");
    for line in &lines {
        assert_eq!(
            (&line["client.address"], &line["level"]),
            (&"127.0.0.1".into(), &"WARN".into()),
            "{line}"
        );
        assert_eq!(line["keyward.connection.outcome"], "malformed");
    }
    assert!(!text.contains("canar"), "{text}");
    ends.cancel();
}

#[tokio::test]
async fn control_characters_are_escaped_in_log() {
    const HOSTILE: &str = "a\u{9b}2J\u{85}b\u{202e}c\u{2066}d\u{200f}e\u{2028}f";
    for format in ["json", "text"] {
        let (folder, ends) = (Folder::new(&format!("escapes-{format}")), CancellationToken::new());
        let secret = folder.write("secret", "dev");
        let routes = route_file(echo(&ends).await, "drain_delay = \"0s\"");
        let file = folder.write("keyward.toml", &format!("{routes}[log]\nformat = \"{format}\"\n"));
        let (_scalekit, scalekit) = bind_loopback().await;
        // The address is only logged as JSON, so a free port is chosen beforehand.
        let (listener, address) = bind_loopback().await;
        drop(listener);
        let text = std::fs::read_to_string(&file).unwrap();
        folder.write("keyward.toml", &text.replacen("127.0.0.1:0", &address.to_string(), 1));
        let mut running = Running::start(keyward_run(&file, scalekit, &secret));
        running.until("listening").await;
        let mut client = Client::connect(address).await;
        client
            .send(format!("GET /public/{HOSTILE} HTTP/1.1\r\nhost: a\r\nuser-agent: {HOSTILE}\r\n\r\n"))
            .await;
        client.read_reply().await;
        running.signal(rustix::process::Signal::TERM);
        assert_eq!(running.exit().await, Some(0));
        running.until("stopped").await;
        let text = running.text();
        assert!(
            !text.contains(|char| char != '\n' && keyward::terminal::is_terminal_control(char)),
            "{text:?}"
        );
        if format == "json" {
            assert!(text.contains("\\u009b2J\\u0085b\\u202ec\\u2066d\\u200fe\\u2028f"), "{text}");
            let line = text.lines().find(|line| line.contains("user_agent")).unwrap();
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["user_agent.original"], HOSTILE, "whoever parses the line gets the text back");
        }
        ends.cancel();
    }
}

#[tokio::test]
async fn emulator_runs_alone_and_hides_its_secret() {
    let mut command = keyward(&["emulator", "--listen", "127.0.0.1:0", "--client-id", "me"]);
    command.env("KEYWARD_EMULATOR_CLIENT_SECRET", "a-secret-of-mine");
    let mut running = Running::start(command);
    running.until("client id me").await;
    let text = running.text();
    let address = text.lines().find_map(|line| line.trim().strip_prefix("http://")).expect("an address");
    let form = "grant_type=client_credentials&client_id=me&client_secret=a-secret-of-mine";
    let mut client = Client::connect(address.parse().unwrap()).await;
    client
        .send(format!(
            "POST /oauth/token HTTP/1.1\r\nhost: a\r\ncontent-type: application/x-www-form-urlencoded\r\n\
             content-length: {}\r\n\r\n{form}",
            form.len()
        ))
        .await;
    let reply = client.read_reply().await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let token = reply.json()["access_token"].as_str().unwrap().to_owned();
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.exit().await, Some(0));
    let text = running.text();
    assert!(!text.contains("a-secret-of-mine") && !text.contains(&token), "{text}");
}
