//! systemd: what a real process sends to `NOTIFY_SOCKET`, and the unit in `deploy/`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use keyward::config::{self, Environment};
use rustix::process::Signal;
use tokio::net::UnixDatagram;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use keyward_emulator::{self as emulator, Emulator};

use crate::process::{Folder, Running, echo, keyward_run, route_file};
use crate::support::{TEST_TIMEOUT, bind_loopback};

/// The messages that a process sends to its service manager.
struct Messages(UnixDatagram);

impl Messages {
    /// Waits for a message with these lines; gives all its lines.
    async fn until(&self, lines: &[&str]) -> Vec<String> {
        let mut others = Vec::new();
        let wait = async {
            loop {
                let mut bytes = [0; 4096];
                let count = self.0.recv(&mut bytes).await.unwrap();
                let text = String::from_utf8(bytes[..count].to_vec()).unwrap();
                let found: Vec<String> = text.lines().map(str::to_owned).collect();
                if lines.iter().all(|line| found.iter().any(|own| own == line)) {
                    return found;
                }
                others.push(text);
            }
        };
        timeout(TEST_TIMEOUT, wait).await.unwrap_or_else(|_| panic!("no {lines:?} in {others:?}"))
    }
}

fn monotonic_microseconds() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

/// Starts and ends a process, and checks its messages.
async fn check_messages(name: &str, socket: UnixDatagram, variable: &str) {
    let (folder, ends) = (Folder::new(name), CancellationToken::new());
    let secret = folder.write("secret", "dev");
    let (listener, scalekit) = bind_loopback().await;
    let emulator = Emulator::new(emulator::Settings::default());
    let until = ends.clone();
    tokio::spawn(async move { emulator.serve(listener, until).await });
    let text = route_file(echo(&ends).await, "drain_delay = \"0s\"");
    let file = folder.write("keyward.toml", &text);
    let mut command = keyward_run(&file, scalekit, &secret);
    command.env("NOTIFY_SOCKET", variable);
    let (messages, mut running) = (Messages(socket), Running::start(command));
    messages.until(&["READY=1", "STATUS=listening"]).await;
    // The first message, so that nothing is served before it is told.
    let address = running.address("server.address").await;
    tokio::net::TcpStream::connect(address).await.expect("it listens");
    messages.until(&["STATUS=ready"]).await;

    let before = monotonic_microseconds();
    running.signal(Signal::HUP);
    let lines = messages.until(&["RELOADING=1"]).await;
    let time = lines.iter().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).expect("a time");
    assert!((before..=monotonic_microseconds()).contains(&time.parse().unwrap()), "{time}");
    messages.until(&["READY=1", "STATUS=reloaded"]).await;
    folder.write("keyward.toml", "version = 2");
    running.signal(Signal::HUP);
    messages.until(&["RELOADING=1"]).await;
    messages.until(&["READY=1", "STATUS=not reloaded; the log says why"]).await;

    running.signal(Signal::TERM);
    messages.until(&["STOPPING=1", "STATUS=draining"]).await;
    assert_eq!(running.exit().await, Some(0));
    ends.cancel();
}

#[tokio::test]
async fn service_manager_is_told_start_reload_and_stop() {
    let folder = Folder::new("notify-socket");
    let path = folder.write("notify", "");
    std::fs::remove_file(&path).unwrap();
    check_messages("notify", UnixDatagram::bind(&path).unwrap(), &path).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn abstract_notify_socket_is_supported() {
    use std::os::linux::net::SocketAddrExt as _;
    let name = format!("keyward-test-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let socket = std::os::unix::net::UnixDatagram::bind_addr(&address).unwrap();
    socket.set_nonblocking(true).unwrap();
    check_messages("notify-abstract", UnixDatagram::from_std(socket).unwrap(), &format!("@{name}")).await;
}

#[tokio::test]
async fn unusable_notify_socket_is_logged_and_keyward_runs() {
    let (folder, ends) = (Folder::new("notify-bad"), CancellationToken::new());
    let secret = folder.write("secret", "dev");
    let file = folder.write("keyward.toml", &route_file(echo(&ends).await, "drain_delay = \"0s\""));
    for (variable, line) in
        [("notify", "should be an absolute path"), ("/none/notify", "cannot tell systemd")]
    {
        let mut command = keyward_run(&file, "127.0.0.1:1".parse().unwrap(), &secret);
        command.env("NOTIFY_SOCKET", variable);
        let mut running = Running::start(command);
        running.until(line).await;
        running.until("\"listening\"").await;
        running.signal(Signal::TERM);
        assert_eq!(running.exit().await, Some(0));
    }
    ends.cancel();
}

fn unit() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/keyward.service");
    std::fs::read_to_string(path).unwrap()
}

/// The value of a setting of the unit, which it has once.
fn setting(unit: &str, name: &str) -> String {
    let values: Vec<&str> =
        unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('=')).collect();
    assert_eq!(values.len(), 1, "{name}: {values:?}");
    values[0].to_owned()
}

#[test]
fn unit_waits_for_drain_and_holds_no_secret() {
    let unit = unit();
    let config = config::parse(
        "version = 1\n[upstreams.a]\nurl = \"http://127.0.0.1:9\"\n[[routes]]\npath = \"/*\"\nupstream = \"a\"",
        "defaults.toml",
        &Environment::default().without_scalekit(),
    )
    .unwrap();
    let stop: u64 = setting(&unit, "TimeoutStopSec").trim_end_matches('s').parse().unwrap();
    assert!(Duration::from_secs(stop) > config.drain_delay + config.drain_timeout, "{stop}");
    assert_eq!(setting(&unit, "Type"), "notify");
    assert_eq!(setting(&unit, "DynamicUser"), "yes");
    let credential = setting(&unit, "LoadCredential");
    let (name, _) = credential.split_once(':').unwrap();
    assert!(unit.contains(&format!("\nEnvironment=SCALEKIT_CLIENT_SECRET_FILE=%d/{name}\n")), "{unit}");
    assert!(!unit.contains("CLIENT_SECRET="), "{unit}");
}

/// Output of `systemd-analyze`, with exit code 0; `None` where it is absent.
fn analyze(arguments: &[&str]) -> Option<String> {
    let output = match Command::new("systemd-analyze").args(arguments).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: there is no systemd-analyze");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert!(output.status.success(), "systemd-analyze {arguments:?}: {text}");
    Some(text)
}

#[test]
fn unit_is_valid_and_hardened() {
    let folder = Folder::new("unit");
    // verify looks for the program, which is not installed here.
    let text = unit().replace("/usr/bin/keyward", env!("CARGO_BIN_EXE_keyward"));
    assert_ne!(text, unit(), "the program's path");
    let path = folder.write("keyward.service", &text);
    let Some(complaints) = analyze(&["verify", "--man=no", "--recursive-errors=no", &path]) else { return };
    assert_eq!(complaints, "");
    // Of 100, in tenths of the exposure that it prints: "OK" is below 50, "SAFE" below 20.
    let Some(security) = analyze(&["security", "--offline=yes", "--threshold=15", "--no-pager", &path])
    else {
        return;
    };
    assert!(security.contains("Overall exposure level"), "{security}");
}
