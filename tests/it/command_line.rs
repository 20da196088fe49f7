//! The commands other than `keys`: their arguments and error messages.

use std::process::Stdio;

use keyward_emulator::echo::Echo;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::process::{Folder, Running, echo, keyward, keyward_run, route_file};
use crate::support::raw::Client;
use crate::support::{TEST_TIMEOUT, bind_loopback};

const FREE: [&str; 6] = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--emulator", "127.0.0.1:0"];

/// Exit code, standard output, standard error.
async fn run(mut command: tokio::process::Command) -> (i32, String, String) {
    let output = timeout(TEST_TIMEOUT, command.output()).await.expect("an end in time").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn healthcheck_reads_admin_address_from_route_file() {
    let (folder, ends) = (Folder::new("health"), CancellationToken::new());
    let secret = folder.write("secret", "dev");
    let echo = echo(&ends).await;
    let socket = folder.write("admin.sock", "");
    std::fs::remove_file(&socket).unwrap();
    let free = bind_loopback().await.1;
    for admin in [format!("unix:{socket}"), free.to_string()] {
        let text = route_file(echo, "drain_delay = \"0s\"")
            .replace("[admin]\nlisten = \"127.0.0.1:0\"", &format!("[admin]\nlisten = \"{admin}\""));
        let file = folder.write("keyward.toml", &text);
        let mut running = Running::start(keyward_run(&file, "127.0.0.1:1".parse().unwrap(), &secret));
        running.until("\"listening\"").await;
        let mut by_environment = keyward(&["healthcheck", "--live"]);
        by_environment.env("KEYWARD_CONFIG", &file);
        for command in [keyward(&["healthcheck", "--live", "--config", &file]), by_environment] {
            assert_eq!(run(command).await, (0, "live\n".to_owned(), String::new()), "{admin}");
        }
        running.signal(rustix::process::Signal::TERM);
        running.exit().await;
    }
    ends.cancel();
}

#[tokio::test]
async fn healthcheck_error_is_printed_once_with_address() {
    let folder = Folder::new("no-health");
    let (listener, address) = bind_loopback().await;
    drop(listener);
    let (code, _, error) = run(keyward(&["healthcheck", "--admin", &address.to_string()])).await;
    assert_eq!(code, 1);
    assert!(error.contains(&format!("the admin port at {address}: ")), "{error}");
    assert_eq!(error.matches("Connection refused").count(), 1, "{error}");
    // A running Keyward keeps the configuration that it read before the file became invalid.
    let broken = folder.write("keyward.toml", "[admin");
    let (_, _, error) = run(keyward(&["healthcheck", "--config", &broken])).await;
    assert!(error.contains("127.0.0.1:4481") && error.contains("is not TOML"), "{error}");
}

#[tokio::test]
async fn check_accepts_positional_file() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/keyward.toml");
    assert_eq!(run(keyward(&["check", file])).await.0, 0);
    let mut command = keyward(&["check", file]);
    command.env("KEYWARD_CONFIG", "/none.toml");
    assert_eq!(run(command).await.0, 0, "before the environment");
    let (code, _, error) = run(keyward(&["check", file, "--config", "/none.toml"])).await;
    assert_eq!(code, 2);
    assert!(error.contains("given twice"), "{error}");
    let (code, _, error) = run(keyward(&["check"])).await;
    assert_eq!(code, 2);
    assert!(error.contains("--config"), "{error}");
}

/// As `run`, with this standard input.
async fn run_with_stdin(arguments: &[&str], text: &str) -> (i32, String, String) {
    let mut command = keyward(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
    let output = timeout(TEST_TIMEOUT, child.wait_with_output()).await.expect("an end in time").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

const GOOD_FILE: &str = include_str!("../../config/keyward.toml");

#[tokio::test]
async fn check_reads_standard_input() {
    let (code, out, _) = run_with_stdin(&["check", "-"], GOOD_FILE).await;
    assert_eq!(code, 0);
    assert!(out.contains("the configuration is fine"), "{out}");
    let (code, out, error) = run_with_stdin(&["check", "-"], "version = 2\n").await;
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(error.contains("<stdin>:1:11: version: is not a version that this Keyward supports"), "{error}");
    let (code, _, error) = run_with_stdin(&["check", "-"], &"#".repeat((1 << 20) + 1)).await;
    assert_eq!(code, 1);
    assert!(error.contains("<stdin>: is longer than 1 MiB"), "{error}");
}

#[tokio::test]
async fn check_reports_problems_and_routes_as_json() {
    let (code, out, error) = run_with_stdin(&["check", "--format", "json", "-"], GOOD_FILE).await;
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, error.as_str(), &report["ok"]), (0, "", &true.into()));
    assert_eq!((&report["problems"], &report["routes"][0]["path"]), (&serde_json::json!([]), &"/*".into()));
    let warning = report["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("SCALEKIT_ENVIRONMENT_URL is not set"), "{warning}");

    let wrong =
        GOOD_FILE.replace("version = 1", "version = 1\n[scalekit]\nclient_secret = \"hunter2\"\nnone = 1");
    let (code, out, error) = run_with_stdin(&["check", "--format", "json", "-"], &wrong).await;
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, error.as_str(), &report["ok"]), (1, "", &false.into()));
    assert_eq!(report["problems"].as_array().map(Vec::len), Some(2), "{report}");
    let line = wrong.lines().position(|line| line.starts_with("client_secret")).unwrap() + 1;
    let message = "a secret does not belong in this file; set SCALEKIT_CLIENT_SECRET, or client_secret_file";
    let expected = serde_json::json!({
        "file": "<stdin>", "line": line, "column": 1, "key": "scalekit.client_secret", "message": message
    });
    assert_eq!(report["problems"][0], expected);
    assert!(!out.contains("hunter2"), "{out}");
}

#[tokio::test]
async fn schema_prints_published_schema_file() {
    let (code, out, _) = run(keyward(&["schema"])).await;
    assert_eq!((code, out.as_str()), (0, include_str!("../../config/keyward.schema.json")));
}

#[tokio::test]
async fn check_warns_of_management_open_to_local_users() {
    let (folder, ends) = (Folder::new("open-desk"), CancellationToken::new());
    let secret = folder.write("secret", &"s".repeat(40));
    let good = route_file(echo(&ends).await, "");
    for (management, warns) in [
        ("listen = \"127.0.0.1:4482\"".to_owned(), true),
        (format!("listen = \"127.0.0.1:4482\"\nsecret_file = \"{secret}\""), false),
        ("listen = \"unix:/run/keyward.sock\"".to_owned(), false),
    ] {
        let file = folder.write("keyward.toml", &format!("{good}[management]\n{management}\n"));
        let (code, _, warnings) = run(keyward(&["check", &file])).await;
        assert_eq!((code, warnings.contains("without secret_file")), (0, warns), "{management}: {warnings}");
    }
    ends.cancel();
}

#[cfg(feature = "dev")]
#[tokio::test]
async fn dev_accepts_host_and_port_as_upstream() {
    let ends = CancellationToken::new();
    let upstream = echo(&ends).await.to_string();
    let mut running = Running::start(keyward(&[&["dev", "--upstream", &upstream], &FREE[..]].concat()));
    running.until("5  The revoked key").await;
    running.until(&format!("and go on to    http://{upstream}")).await;
    assert!(!running.text().contains("Nothing answers"), "{}", running.text());
    running.signal(rustix::process::Signal::INT);
    running.exit().await;
    ends.cancel();
}

#[cfg(feature = "dev")]
#[tokio::test]
async fn dev_reports_that_upstream_is_not_listening() {
    let (listener, address) = bind_loopback().await;
    drop(listener);
    let upstream = address.to_string();
    let mut running = Running::start(keyward(&[&["dev", "--upstream", &upstream], &FREE[..]].concat()));
    running.until(&format!("Nothing answers at http://{upstream} (Connection refused")).await;
    running.signal(rustix::process::Signal::INT);
    running.exit().await;
    let (code, _, error) = run(keyward(&["dev", "--upstream", "ftp://a"])).await;
    assert_eq!(code, 1);
    assert!(error.starts_with("keyward: --upstream should be \"http://host:port\""), "{error}");
}

#[tokio::test]
async fn man_pages_need_an_existing_directory() {
    let folder = Folder::new("man");
    let below = folder.write("x", "");
    std::fs::remove_file(&below).unwrap();
    let (code, _, error) = run(keyward(&["man", &format!("{below}/man1")])).await;
    assert_eq!(code, 1);
    assert!(error.contains(&below) && error.contains("No such file or directory"), "{error}");
    assert!(!std::path::Path::new(&below).exists());
    assert_eq!(run(keyward(&["man", &below])).await.0, 0);
}

/// Runs Keyward in front of one upstream; with access log lines if `access`.
async fn before(folder: &Folder, upstream: &str, access: bool) -> Running {
    let secret = folder.write("secret", "dev");
    let text = route_file("127.0.0.1:9".parse().unwrap(), "drain_delay = \"0s\"")
        .replace("http://127.0.0.1:9", upstream)
        + &format!("[log]\naccess = {access}\n");
    let file = folder.write("keyward.toml", &text);
    Running::start(keyward_run(&file, "127.0.0.1:1".parse().unwrap(), &secret))
}

/// A server that speaks only HTTP/2, as gRPC servers do: it sends SETTINGS first.
async fn http2_alone() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &settings).await;
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
    });
    address
}

async fn status(running: &Running, path: &str, lines: &str) -> (u16, Option<String>) {
    let mut client = Client::connect(running.address("server.address").await).await;
    client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\n{lines}\r\n")).await;
    let reply = client.read_reply().await;
    assert!(reply.text().is_empty() || reply.text().ends_with("}\n"), "{}", reply.text());
    (reply.status, reply.code().map(str::to_owned))
}

#[tokio::test]
async fn failing_upstream_is_logged_without_access_log() {
    let folder = Folder::new("failing");
    let (listener, address) = bind_loopback().await;
    drop(listener);
    let mut running = before(&folder, &format!("http://{address}"), false).await;
    for _ in 0..5 {
        assert_eq!(status(&running, "/public/x", "").await.0, 502);
    }
    running.until("Connection refused").await;
    let (listener, ends) = (TcpListener::bind(address).await.unwrap(), CancellationToken::new());
    let until = ends.clone();
    tokio::spawn(async move { Echo::new().serve(listener, until).await });
    let answered_again = async {
        while !running.text().contains("\"the upstream \\\"echo\\\" answers again after ") {
            status(&running, "/public/x", "").await;
        }
    };
    timeout(TEST_TIMEOUT, answered_again).await.expect("a line in time");
    ends.cancel();
    running.signal(rustix::process::Signal::TERM);
    running.exit().await;
    let text = running.text();
    let warnings: Vec<&str> = text.lines().filter(|line| line.contains("fails: ")).collect();
    assert_eq!(warnings.len(), 1, "{text}");
    assert_eq!(text.matches("answers again").count(), 1, "{text}");
    assert!(warnings[0].contains("\"WARN\"") && warnings[0].contains("the upstream \\\"echo\\\""), "{text}");
}

#[tokio::test]
async fn http2_service_behind_http_url_suggests_h2c() {
    let folder = Folder::new("h2c");
    let mut running = before(&folder, &format!("http://{}", http2_alone().await), true).await;
    assert_eq!(status(&running, "/public/x", "").await.0, 502);
    running.until("needs h2c:// in its url").await;
    running.signal(rustix::process::Signal::TERM);
    running.exit().await;
}

#[tokio::test]
async fn token_id_presented_as_key_is_only_logged() {
    let folder = Folder::new("key-id");
    let mut running = before(&folder, "http://127.0.0.1:9", true).await;
    let id = "apit_123456789012345678";
    let refused = status(&running, "/x", &format!("authorization: Bearer {id}\r\n")).await;
    assert_eq!(refused, (401, Some("invalid_key".to_owned())));
    running.until("the credential is the id of a key").await;
    running.signal(rustix::process::Signal::TERM);
    running.exit().await;
    assert!(!running.text().contains(id), "{}", running.text());
}

#[tokio::test]
async fn reload_that_drops_or_opens_route_warns() {
    let (folder, ends) = (Folder::new("loosened"), CancellationToken::new());
    let secret = folder.write("secret", "dev");
    let text = route_file(echo(&ends).await, "drain_delay = \"0s\"");
    let file = folder.write("keyward.toml", &text);
    let mut running = Running::start(keyward_run(&file, "127.0.0.1:1".parse().unwrap(), &secret));
    running.until("\"listening\"").await;
    let opened = text
        .replace("path = \"/*\"\nupstream = \"echo\"", "path = \"/*\"\nupstream = \"echo\"\nauth = \"none\"");
    let opened = opened.replacen("path = \"/public/*\"", "path = \"/open/*\"", 1);
    folder.write("keyward.toml", &opened);
    running.signal(rustix::process::Signal::HUP);
    running.until("\"reloaded\"").await;
    for expected in [
        "the reload drops the route \\\"/public/*\\\": from no key to no key",
        "the reload opens the route \\\"/*\\\": from a key to no key",
    ] {
        let log = running.text();
        let line = log.lines().find(|line| line.contains(expected)).unwrap_or_else(|| panic!("{log}"));
        assert!(line.contains("\"WARN\""), "{line}");
    }
    running.signal(rustix::process::Signal::TERM);
    running.exit().await;
    ends.cancel();
}
