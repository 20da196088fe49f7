//! The program: output, exit codes and signals.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use keyward_emulator::echo::Echo;
use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use keyward_emulator::store::Issue;
use keyward_emulator::{self as emulator, Emulator};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::support::raw::{Client, Reply};
use crate::support::{TEST_TIMEOUT, bind_loopback};

pub fn keyward(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keyward"));
    command.args(arguments).env_clear().stdin(Stdio::null()).kill_on_drop(true);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs to the end: exit code, standard output, standard error.
async fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = timeout(TEST_TIMEOUT, keyward(arguments).output()).await.expect("an end in time").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// A running program, and its output so far.
pub struct Running {
    pub child: Child,
    printed: Arc<(Mutex<String>, Notify)>,
    paused: watch::Sender<bool>,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let printed = Arc::new((Mutex::default(), Notify::new()));
        let paused = watch::Sender::new(false);
        Self::keep(child.stdout.take().unwrap(), Arc::clone(&printed), paused.subscribe());
        Self::keep(child.stderr.take().unwrap(), Arc::clone(&printed), paused.subscribe());
        Self { child, printed, paused }
    }

    /// Stops or resumes reading the output.
    pub fn pause(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    fn keep(
        stream: impl AsyncRead + Unpin + Send + 'static,
        printed: Arc<(Mutex<String>, Notify)>,
        mut paused: watch::Receiver<bool>,
    ) {
        tokio::spawn(async move {
            let mut lines = BufReader::new(stream).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                // After the test has dropped the program, the rest is read.
                let _ = paused.wait_for(|paused| !paused).await;
                let mut all = printed.0.lock().unwrap();
                all.push_str(&line);
                all.push('\n');
                printed.1.notify_waiters();
            }
        });
    }

    pub fn text(&self) -> String {
        self.printed.0.lock().unwrap().clone()
    }

    /// Waits until something has been printed.
    pub async fn until(&self, text: &str) {
        let wait = async {
            loop {
                let changed = self.printed.1.notified();
                if self.text().contains(text) {
                    return;
                }
                changed.await;
            }
        };
        timeout(TEST_TIMEOUT, wait).await.unwrap_or_else(|_| panic!("no {text:?} in {}", self.text()));
    }

    /// An address in the line that says where Keyward listens.
    pub async fn address(&self, name: &str) -> SocketAddr {
        self.until("\"listening\"").await;
        let text = self.text();
        let line = text.lines().find(|line| line.contains("\"listening\"")).unwrap();
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let host = line[name].as_str().unwrap();
        match line["server.port"].as_u64().filter(|_| name == "server.address") {
            Some(port) => SocketAddr::new(host.parse().unwrap(), port.try_into().unwrap()),
            None => host.parse().unwrap(),
        }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_raw(self.child.id().unwrap() as i32).unwrap();
        rustix::process::kill_process(id, signal).unwrap();
    }

    pub async fn exit(&mut self) -> Option<i32> {
        timeout(TEST_TIMEOUT, self.child.wait()).await.expect("an end in time").unwrap().code()
    }
}

async fn ask(address: SocketAddr, path: &str, key: &str) -> Reply {
    let mut client = Client::connect(address).await;
    client.send(format!("GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n\r\n")).await;
    client.read_reply().await
}

/// A folder for the files of one test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("keyward-process-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn route_file(echo: SocketAddr, server: &str) -> String {
    format!(
        "version = 1\n[server]\nlisten = \"127.0.0.1:0\"\n{server}\n[admin]\nlisten = \"127.0.0.1:0\"\n[upstreams.echo]\n\
         url = \"http://{echo}\"\n[[routes]]\npath = \"/public/*\"\nupstream = \"echo\"\nauth = \"none\"\n[[routes]]\n\
         path = \"/*\"\nupstream = \"echo\"\n"
    )
}

pub async fn echo(ends: &CancellationToken) -> SocketAddr {
    let (listener, address) = bind_loopback().await;
    let ends = ends.clone();
    tokio::spawn(async move { Echo::new().serve(listener, ends).await });
    address
}

pub fn keyward_run(file: &str, scalekit: SocketAddr, secret: &str) -> Command {
    let mut command = keyward(&["run", "--config", file]);
    command.env("SCALEKIT_ENVIRONMENT_URL", format!("http://{scalekit}"));
    command.env("SCALEKIT_CLIENT_ID", "dev").env("SCALEKIT_CLIENT_SECRET_FILE", secret);
    command
}

#[tokio::test]
async fn scalekit_outage_and_its_end_are_each_logged_once() {
    let (folder, ends) = (Folder::new("outage"), CancellationToken::new());
    let secret = folder.write("secret", "dev\n");
    let (listener, scalekit) = bind_loopback().await;
    let emulator = Emulator::new(emulator::Settings::default());
    let key = emulator.issue(Issue { organization_id: "org_1".into(), ..Issue::default() }).key;
    let (serving, until) = (emulator.clone(), ends.clone());
    tokio::spawn(async move { serving.serve(listener, until).await });
    let file = folder.write("keyward.toml", &route_file(echo(&ends).await, "drain_delay = \"0s\""));
    let mut running = Running::start(keyward_run(&file, scalekit, &secret));
    let address = running.address("server.address").await;
    assert_eq!(ask(address, "/v1", &key).await.status, 200);
    emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(Answer::status(503))));
    for _ in 0..10 {
        assert_eq!(ask(address, "/v1", &key).await.status, 503);
    }
    running.until("no verdict, so requests get 503: Scalekit answered 503").await;
    emulator.clear_faults();
    let answered_again = async {
        while !running.text().contains("Scalekit answers again after ") {
            ask(address, "/v1", &key).await;
        }
    };
    timeout(TEST_TIMEOUT, answered_again).await.expect("a line in time");
    assert_eq!(ask(address, "/v1", &key).await.status, 200);
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.exit().await, Some(0));
    running.until("\"stopped\"").await;
    let text = running.text();
    for (line, level) in [("no verdict, so", "\"ERROR\""), ("Scalekit answers again after ", "\"INFO\"")] {
        let lines: Vec<&str> = text.lines().filter(|text| text.contains(line)).collect();
        assert!(lines.len() == 1 && lines[0].contains(level), "{line}: {lines:?}");
    }
    ends.cancel();
}

#[tokio::test]
async fn process_starts_and_recovers_while_scalekit_is_down() {
    let (folder, ends) = (Folder::new("down"), CancellationToken::new());
    let secret = folder.write("secret", "dev\n");
    let (listener, scalekit) = bind_loopback().await;
    drop(listener);
    let file = folder.write("keyward.toml", &route_file(echo(&ends).await, "drain_delay = \"0s\""));
    let mut running = Running::start(keyward_run(&file, scalekit, &secret));
    let (address, admin) = (running.address("server.address").await, running.address("admin.address").await);
    let emulator = Emulator::new(emulator::Settings::default());
    let key = emulator.issue(Issue { organization_id: "org_1".into(), ..Issue::default() }).key;
    let reply = ask(address, "/v1?secret=query", &key).await;
    assert_eq!((reply.status, reply.code()), (503, Some("validation_unavailable")));
    assert!(reply.header("retry-after").is_some());
    assert_eq!(ask(address, "/public/x", &key).await.status, 200);
    let reply = ask(admin, "/readyz", "").await;
    assert_eq!(reply.status, 503);
    assert!(reply.text().contains("Scalekit cannot be reached"), "{}", reply.text());
    assert_eq!(ask(admin, "/livez", "").await.status, 200);
    let (healthy, _, said) = run(&["healthcheck", "--admin", &admin.to_string()]).await;
    assert_eq!(healthy, 1);
    assert!(said.contains("not ready: Scalekit cannot be reached"), "{said}");

    let listener = tokio::net::TcpListener::bind(scalekit).await.unwrap();
    let (serving, until) = (emulator.clone(), ends.clone());
    tokio::spawn(async move { serving.serve(listener, until).await });
    running.until("\"ready\"").await;
    assert_eq!(ask(address, "/v1?secret=query", &key).await.status, 200);
    assert_eq!(run(&["healthcheck", "--admin", &admin.to_string()]).await.0, 0);

    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.exit().await, Some(0));
    running.until("\"stopped\"").await;
    let text = running.text();
    for secret in [&*key, "secret=query", "Bearer", "eyJ"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    let access =
        text.lines().find(|line| line.contains("\"http.response.status_code\":200")).expect("an access line");
    let access: serde_json::Value = serde_json::from_str(access).unwrap();
    for name in [
        "timestamp",
        "http.request.method",
        "url.path",
        "http.route",
        "network.protocol.version",
        "client.address",
        "keyward.decision",
        "keyward.route",
        "keyward.request.duration",
    ] {
        assert!(!access[name].is_null(), "{name} in {access}");
    }
    ends.cancel();
}

#[tokio::test]
async fn second_signal_ends_requests_that_first_lets_finish() {
    let (folder, ends) = (Folder::new("signals"), CancellationToken::new());
    let secret = folder.write("secret", "dev");
    let (_listener, scalekit) = bind_loopback().await;
    let file = folder.write("keyward.toml", &route_file(echo(&ends).await, "drain_delay = \"1h\""));
    let mut running = Running::start(keyward_run(&file, scalekit, &secret));
    let (address, admin) = (running.address("server.address").await, running.address("admin.address").await);
    running.signal(rustix::process::Signal::TERM);
    running.until("\"draining\"").await;
    assert_eq!(ask(admin, "/readyz", "").await.status, 503);
    let reply = ask(address, "/public/x", "").await;
    assert_eq!((reply.status, reply.header("connection")), (200, Some("close")), "still accepting");
    running.signal(rustix::process::Signal::INT);
    assert_eq!(running.exit().await, Some(0));
    ends.cancel();
}

#[tokio::test]
async fn startup_failure_is_explained_and_binds_nothing() {
    let (folder, ends) = (Folder::new("bad"), CancellationToken::new());
    let secret = folder.write("secret", "dev");
    let (taken, address) = bind_loopback().await;
    let good = route_file(echo(&ends).await, "");
    let in_use = folder.write(
        "in-use.toml",
        &good.replace("listen = \"127.0.0.1:0\"", &format!("listen = \"{address}\"")).replacen(
            &format!("[admin]\nlisten = \"{address}\""),
            "[admin]\nlisten = \"127.0.0.1:0\"",
            1,
        ),
    );
    let bad = folder.write(
        "bad.toml",
        &good.replace("[server]", "[sever]").replace("upstream = \"echo\"\nauth", "upstream = \"eco\"\nauth"),
    );
    for (file, expected) in [
        (in_use, vec![format!("cannot listen on {address}")]),
        (bad, vec!["did you mean \"server\"".to_owned(), "did you mean \"echo\"".to_owned()]),
        (folder.0.join("none.toml").to_str().unwrap().to_owned(), vec!["cannot be read".to_owned()]),
    ] {
        let mut running = Running::start(keyward_run(&file, address, &secret));
        assert_eq!(running.exit().await, Some(1), "{file}");
        for expected in expected {
            running.until(&expected).await;
        }
        assert!(!running.text().contains("listening"), "{}", running.text());
    }
    drop(taken);
    ends.cancel();
}

#[tokio::test]
async fn usage_errors_exit_2_and_help_exits_0() {
    assert_eq!(run(&["run"]).await.0, 2);
    assert_eq!(run(&["fly"]).await.0, 2);
    assert_eq!(run(&[]).await.0, 2);
    let (code, help, _) = run(&["--help"]).await;
    assert_eq!(code, 0);
    let with_feature = if cfg!(feature = "dev") { &["dev", "emulator"][..] } else { &[] };
    for command in
        ["run", "check", "schema", "explain", "healthcheck", "drain"].iter().chain(with_feature).copied()
    {
        assert!(help.contains(&format!("\n  {command} ")), "{help}");
        assert_eq!(run(&[command, "--help"]).await.0, 0);
    }
    assert_eq!(run(&["--version"]).await.1, format!("keyward {}\n", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn check_and_explain_need_no_secrets() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/keyward.toml");
    let (code, out, warnings) = run(&["check", "--config", file]).await;
    assert_eq!(code, 0);
    assert!(out.contains("/*") && out.contains("is fine"), "{out}");
    assert!(warnings.contains("SCALEKIT_CLIENT_SECRET"), "{warnings}");
    let (code, out, _) = run(&["explain", "--config", file, "GET", "/v1/orders"]).await;
    assert_eq!(code, 0);
    assert!(out.contains("requires    a key"), "{out}");
    assert_eq!(run(&["explain", "--config", file, "G T", "/"]).await.0, 1);
}

#[cfg(not(feature = "dev"))]
#[tokio::test]
async fn build_without_dev_explains_how_to_enable_it() {
    for command in ["dev", "emulator"] {
        let (code, _, error) = run(&[command, "--listen", "127.0.0.1:0"]).await;
        assert_eq!(code, 2);
        assert!(error.contains(&format!("`keyward {command}` is not in this build")), "{error}");
        assert!(error.contains("Cargo feature `dev`"), "{error}");
    }
    let (code, help, _) = run(&["--help"]).await;
    assert_eq!(code, 0);
    assert!(help.contains("dev and emulator are not in this build"), "{help}");
    assert!(!help.contains("Begin with: keyward dev"), "{help}");
}

#[cfg(feature = "dev")]
#[tokio::test]
async fn commands_printed_by_dev_work_as_described() {
    if std::process::Command::new("curl").arg("--version").output().is_err() {
        eprintln!("skipped: there is no curl here");
        return;
    }
    let free = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--emulator", "127.0.0.1:0"];
    let mut running = Running::start(keyward(&[&["dev"], &free[..]].concat()));
    running.until("5  The revoked key").await;
    running.until("\n\n").await;
    let wait = async {
        while running.text().lines().filter(|line| line.starts_with("curl ")).count() < 5 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    timeout(TEST_TIMEOUT, wait).await.expect("five lines");
    let text = running.text();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("curl ")).collect();
    assert_eq!(lines.len(), 5, "{text}");
    for (line, (status, body)) in lines.iter().zip([
        ("200", "\"x-org-id\",\"org_1001\""),
        ("401", "\"code\":\"missing_credential\""),
        ("200", "\"x-org-id\",\"org_1001\""),
        ("200", "{}"),
        ("401", "\"code\":\"invalid_key\""),
    ]) {
        let output =
            timeout(TEST_TIMEOUT, Command::new("sh").args(["-c", line]).output()).await.unwrap().unwrap();
        let answer = String::from_utf8(output.stdout).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {answer}");
        assert!(answer.contains(body), "{line}: {answer}");
        assert!(!answer.contains("somebody_else") && !answer.contains("gold"), "{answer}");
    }
    running.signal(rustix::process::Signal::INT);
    assert_eq!(running.exit().await, Some(0));
}

#[cfg(feature = "dev")]
#[tokio::test]
async fn emulator_serves_keyward_under_its_tls_name() {
    let ca = std::env::temp_dir().join(format!("keyward-test-{}-emulator-ca", std::process::id()));
    let arguments = ["emulator", "--listen", "127.0.0.2:0", "--tls-listen", "127.0.0.2:0", "--ca-out"];
    let ca = ca.to_str().unwrap();
    let mut running = Running::start(keyward(&[&arguments[..], &[ca, "--tls-name", "127.0.0.2"]].concat()));
    running.until("all keys are lost").await;
    let text = running.text();
    let url =
        text.lines().find(|line| line.contains("https://127.0.0.2:")).unwrap_or_else(|| panic!("{text}"));
    let mut command = keyward(&["keys", "create", "--org", "org_1", "--quiet"]);
    command.env("SCALEKIT_ENVIRONMENT_URL", url.split_whitespace().next().unwrap());
    command.env("SCALEKIT_CLIENT_ID", "dev").env("SCALEKIT_CLIENT_SECRET", "dev").env("SSL_CERT_FILE", ca);
    let output = timeout(TEST_TIMEOUT, command.output()).await.unwrap().unwrap();
    std::fs::remove_file(ca).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    running.signal(rustix::process::Signal::INT);
    assert_eq!(running.exit().await, Some(0));

    let (code, _, errors) = run(&[&arguments[..], &[ca, "--tls-name", "https://emulator"]].concat()).await;
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains("--tls-name: \"https://emulator\" is not a host name"), "{errors}");
}
