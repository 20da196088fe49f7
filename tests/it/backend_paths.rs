//! Node and Python services behind Keyward: no spelling of a path is served without the required key, and ordinary paths
//! pass.

mod spellings;

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::support::raw::{Client, Reply};
use crate::support::{Setup, Stage, TEST_TIMEOUT};

const ROUTES: &str = r#"
    [[routes]]
    path = "/*"
    upstream = "echo"
    auth = "none"

    [[routes]]
    path = "/api/*"
    upstream = "echo"

    [[routes]]
    path = "/v1/admin/*"
    upstream = "echo"
    require = { roles = ["admin"] }

    [[routes]]
    path = "/v1/rotate"
    upstream = "echo"
    require = { roles = ["admin"] }
"#;

/// The number of generated paths.
const PATHS: u64 = 2_000;

/// A service in its own process, on the port that it printed. `None`, with a message, if its runtime is not installed.
async fn start(runtime: &str, option: &str, program: &str) -> Option<(Child, std::net::SocketAddr)> {
    let mut command = Command::new(runtime);
    command.args([option, program]).stdout(Stdio::piped()).kill_on_drop(true);
    let Ok(mut child) = command.spawn() else {
        eprintln!("skipped: there is no {runtime} here");
        return None;
    };
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    timeout(TEST_TIMEOUT, out.read_line(&mut line)).await.expect("a port in time").unwrap();
    Some((child, ([127, 0, 0, 1], line.trim().parse().unwrap()).into()))
}

/// One request on a connection that is reused while it is open.
async fn ask(client: &mut Client, address: std::net::SocketAddr, target: &str, key: Option<&str>) -> Reply {
    let key = key.map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
    let request = format!("GET {target} HTTP/1.1\r\nhost: api.test\r\n{key}\r\n");
    client.send(&request).await;
    let mut reply = client.read_reply().await;
    if reply.status == 0 {
        *client = Client::connect(address).await;
        client.send(&request).await;
        reply = client.read_reply().await;
    }
    reply
}

async fn serve_nothing_without_right(runtime: &str, option: &str, program: &str) {
    let Some((_child, service)) = start(runtime, option, program).await else { return };
    let setup = Setup { routes: ROUTES, upstream_url: Some(format!("http://{service}")), ..Setup::default() };
    let stage = Stage::with(setup).await;
    let key = stage.issue_key();
    let mut direct = Client::connect(service).await;
    let mut client = stage.connect().await;
    let (mut passed, mut refused, mut would_be_served, mut without_right) = (0, 0, 0, Vec::new());
    for path in spellings::spellings(PATHS) {
        let reaches = ask(&mut direct, service, &path, None).await.text();
        would_be_served += usize::from(reaches.contains("secret") || reaches.contains("admin"));
        for (credential, forbidden) in [(None, &["secret", "admin"][..]), (Some(&*key), &["admin"])] {
            let reply = ask(&mut client, stage.address, &path, credential).await;
            match reply.status {
                200 => passed += 1,
                400 => refused += 1,
                401 | 403 => {}
                other => panic!("{other} for {path}"),
            }
            if reply.status == 200 && forbidden.iter().any(|area| reply.text().contains(area)) {
                without_right.push(format!("{path} (key: {}): {}", credential.is_some(), reply.text()));
            }
        }
    }
    eprintln!(
        "{runtime}: {PATHS} paths, {would_be_served} reach what is closed, {passed} requests passed, {refused} were ambiguous, \
         {} served without right",
        without_right.len()
    );
    assert_eq!(without_right, [""; 0]);
    assert!(would_be_served > 500 && passed > 100 && refused > 500, "{would_be_served} {passed} {refused}");
}

#[tokio::test]
async fn node_serves_no_unauthorized_path_spelling() {
    serve_nothing_without_right("node", "-e", include_str!("backend_paths/service.js")).await;
}

#[tokio::test]
async fn python_serves_no_unauthorized_path_spelling() {
    serve_nothing_without_right("python3", "-c", include_str!("backend_paths/service.py")).await;
}

/// Requests of clients of well-known APIs.
const SOUND: &str = include_str!("backend_paths/sound_paths.txt");

/// Routes for such APIs.
const SOUND_ROUTES: &str = r#"
    [[routes]]
    path = "/healthz"
    upstream = "echo"
    auth = "none"

    [[routes]]
    path = "/v1/admin/*"
    upstream = "echo"
    require = { roles = ["admin"] }

    [[routes]]
    path = "/v1/api_keys"
    methods = ["POST"]
    upstream = "echo"
    require = { scope = "user" }

    [[routes]]
    path = "/public/*"
    upstream = "echo"
    auth = "none"

    [[routes]]
    path = "/*"
    upstream = "echo"
"#;

#[tokio::test]
async fn paths_of_well_known_apis_pass() {
    let stage = Stage::with(Setup { routes: SOUND_ROUTES, ..Setup::default() }).await;
    let key = stage.issue_key();
    let mut client = stage.connect().await;
    let paths: Vec<&str> = SOUND.lines().filter(|line| line.starts_with('/')).collect();
    let mut refused = Vec::new();
    for path in &paths {
        let reply = ask(&mut client, stage.address, path, Some(&key)).await;
        if reply.status != 200 {
            refused.push(format!("{path}: {}", reply.status));
        }
    }
    assert_eq!(refused, [""; 0], "of {} paths", paths.len());
    assert!(paths.len() > 100);
}
