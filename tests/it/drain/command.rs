//! `keyward drain`: the command, and the process that it drains.

use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::process::{Folder, Running, echo, keyward, keyward_run, route_file};
use crate::support::raw::Client;
use crate::support::{TEST_TIMEOUT, bind_loopback};

const UPLOAD: &str = "POST /public/x HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\nabc";

/// Exit code, standard output, standard error.
async fn finish(child: Child) -> (i32, String, String) {
    let output = timeout(TEST_TIMEOUT, child.wait_with_output()).await.expect("an end in time").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

async fn run(mut command: Command) -> (i32, String, String) {
    finish(command.spawn().unwrap()).await
}

/// A Keyward whose admin port is a unix socket, and its route file.
async fn start(folder: &Folder, ends: &CancellationToken, server: &str) -> (Running, String) {
    let secret = folder.write("secret", "dev");
    let socket = folder.write("admin.sock", "");
    std::fs::remove_file(&socket).unwrap();
    let text = route_file(echo(ends).await, server)
        .replace("[admin]\nlisten = \"127.0.0.1:0\"", &format!("[admin]\nlisten = \"unix:{socket}\""));
    let file = folder.write("keyward.toml", &text);
    let running = Running::start(keyward_run(&file, "127.0.0.1:1".parse().unwrap(), &secret));
    running.until("\"listening\"").await;
    (running, file)
}

#[tokio::test]
async fn command_waits_until_drain_has_ended() {
    let (folder, ends) = (Folder::new("drain"), CancellationToken::new());
    let (mut running, file) = start(&folder, &ends, "drain_delay = \"0s\"\ndrain_timeout = \"9s\"").await;
    let address = running.address("server.address").await;
    let mut upload = Client::connect(address).await;
    upload.send(UPLOAD).await;
    let mut by_environment = keyward(&["drain"]);
    by_environment.env("KEYWARD_CONFIG", &file);
    let mut first = by_environment.spawn().unwrap();
    running.until("\"draining\"").await;
    let mut second = keyward(&["drain", "--config", &file]).spawn().unwrap();
    let refused = async { while tokio::net::TcpStream::connect(address).await.is_ok() {} };
    timeout(TEST_TIMEOUT, refused).await.expect("it stops accepting");
    for waiting in [&mut first, &mut second] {
        assert!(waiting.try_wait().unwrap().is_none(), "a request is under way");
    }
    upload.send("def").await;
    assert_eq!(upload.read_reply().await.status, 200);
    for waiting in [first, second] {
        assert_eq!(finish(waiting).await, (0, "drained\n".to_owned(), String::new()));
    }
    assert_eq!(run(keyward(&["drain", "--config", &file])).await.0, 0, "again");
    assert!(running.child.try_wait().unwrap().is_none(), "it stays until SIGTERM");
    running.signal(rustix::process::Signal::TERM);
    assert_eq!(running.exit().await, Some(0));
    running.until("\"stopped\"").await;
    let text = running.text();
    for line in ["\"draining\"", "\"drained\""] {
        assert_eq!(text.matches(line).count(), 1, "{text}");
    }
    assert!(text.contains("admin_port"), "the cause: {text}");
    ends.cancel();
}

#[tokio::test]
async fn timeout_bounds_wait_and_drain_goes_on() {
    let (folder, ends) = (Folder::new("drain-timeout"), CancellationToken::new());
    let (mut running, file) = start(&folder, &ends, "drain_delay = \"1h\"").await;
    let (code, _, error) = run(keyward(&["drain", "--config", &file, "--timeout", "300ms"])).await;
    assert_eq!((code, error.as_str()), (1, "keyward: the drain has not ended within 300ms; it goes on\n"));
    let mut waiting = keyward(&["drain", "--config", &file]).spawn().unwrap();
    running.signal(rustix::process::Signal::TERM);
    assert!(waiting.try_wait().unwrap().is_none());
    running.signal(rustix::process::Signal::INT);
    assert_eq!(running.exit().await, Some(0));
    let (code, out, _) = finish(waiting).await;
    // Without an answer before the end, it never learned of the drain.
    assert!((code, out.as_str()) == (0, "stopped\n") || code == 1, "{code} {out}");
    ends.cancel();
}

#[tokio::test]
async fn drain_error_is_one_line_with_address() {
    let (folder, ends) = (Folder::new("no-drain"), CancellationToken::new());
    let (listener, address) = bind_loopback().await;
    drop(listener);
    // A server that is no Keyward.
    let other = echo(&ends).await;
    let broken = folder.write("keyward.toml", "[admin");
    for (arguments, expected) in [
        (["drain", "--admin", &address.to_string()], format!("the admin port at {address}: cannot connect")),
        (["drain", "--admin", &other.to_string()], format!("the admin port at {other} answers 200")),
        (["drain", "--admin", "4481"], "HOST:PORT or unix:/path".to_owned()),
        // SECURITY: at the default address there may be another Keyward.
        (["drain", "--config", &broken], "is not TOML".to_owned()),
    ] {
        let (code, out, error) = run(keyward(&arguments)).await;
        assert_eq!((code, out.as_str(), error.lines().count()), (1, "", 1), "{error}");
        assert!(error.contains(&expected), "{error}");
    }
    assert_eq!(run(keyward(&["drain", "--timeout", "5"])).await.0, 2);
    ends.cancel();
}
