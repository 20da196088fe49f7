//! `keyward keys` at a pseudo-terminal, with typed input, Ctrl-C, Ctrl-D and Ctrl-Z.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process, setsid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::Kit;
use crate::support::{TEST_TIMEOUT, wait_until};

const TERMINAL: &str = "KEYWARD_TEST_TERMINAL";
const ARGUMENTS: &str = "KEYWARD_TEST_ARGUMENTS";
const HERE: &str = "keys::terminal::exec_keyward_at_terminal";

/// Starts the program in a new session at a terminal. Between fork and exec that needs unsafe code, so the test process
/// itself executes the program.
#[test]
#[ignore = "the others start it, in a process of its own"]
fn exec_keyward_at_terminal() {
    let Ok(terminal) = std::env::var(TERMINAL) else { return };
    setsid().unwrap();
    let open = || OpenOptions::new().read(true).write(true).open(&terminal).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_keyward"));
    command.args(std::env::var(ARGUMENTS).unwrap().split('\n')).stdin(open()).stdout(open()).stderr(open());
    panic!("{}", command.exec());
}

/// The program, and the text on its terminal.
struct Terminal {
    child: Child,
    typing: File,
    shown: Arc<Mutex<String>>,
    /// The program's end of the terminal.
    end: File,
}

impl Terminal {
    fn start(kit: &Kit, arguments: &[&str]) -> Self {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        let path = ptsname(&controller, Vec::new()).unwrap().into_string().unwrap();
        let no_session = OpenptFlags::NOCTTY.bits() as i32;
        let end = OpenOptions::new().read(true).write(true).custom_flags(no_session).open(&path).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([HERE, "--exact", "--ignored"]).env_clear().env(TERMINAL, path);
        command.env(ARGUMENTS, [&["keys"], arguments].concat().join("\n"));
        command.env("SCALEKIT_ENVIRONMENT_URL", &kit.url).env("SCALEKIT_CLIENT_ID", "dev");
        command.env("SCALEKIT_CLIENT_SECRET", "dev").kill_on_drop(true);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let typing = File::from(controller);
        let shown = Arc::<Mutex<String>>::default();
        let (mut reading, text) = (typing.try_clone().unwrap(), Arc::clone(&shown));
        // Ends when the last process closes the other end.
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(count @ 1..) = reading.read(&mut chunk) {
                text.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..count]));
            }
        });
        Self { child, typing, shown, end }
    }

    fn text(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    async fn until(&self, text: &str) {
        let there = timeout(TEST_TIMEOUT, wait_until(|| self.text().contains(text))).await;
        there.unwrap_or_else(|_| panic!("no {text:?} in {:?}", self.text()));
    }

    fn enter(&mut self, text: &str) {
        self.typing.write_all(text.as_bytes()).unwrap();
    }

    /// Whether the terminal echoes input.
    fn echoes(&self) -> bool {
        tcgetattr(&self.end).unwrap().local_modes.contains(LocalModes::ECHO)
    }

    fn id(&self) -> u32 {
        self.child.id().unwrap()
    }

    fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap();
        stat.split(") ").last().unwrap().starts_with('T')
    }

    /// The exit code, and all output.
    async fn exit(mut self) -> (i32, String) {
        let status = timeout(TEST_TIMEOUT, self.child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("it goes on: {:?}", self.text())).unwrap();
        assert!(self.echoes(), "the terminal is left as it was");
        // When this is echoed, earlier output has arrived.
        self.end.write_all(b"#").unwrap();
        self.until("#").await;
        (status.code().unwrap(), self.text().replace("\r\n", "\n"))
    }
}

#[tokio::test]
async fn typed_key_is_not_echoed() {
    let kit = Kit::start().await;
    let (key, id) = kit.create(&["--org", "org_1"]).await;
    let mut terminal = Terminal::start(&kit, &["inspect"]);
    terminal.until("API key (not shown): ").await;
    assert!(!terminal.echoes());
    terminal.enter(&format!("{key}\n"));
    let (code, shown) = terminal.exit().await;
    assert_eq!(code, 0, "{shown}");
    assert!(shown.starts_with(&format!("API key (not shown): \nid            {id}\n")), "{shown}");
    assert!(!shown.contains(&key));
}

#[tokio::test]
async fn ctrl_c_or_ctrl_d_restores_terminal() {
    let kit = Kit::start().await;
    for (typed, code, end) in [
        ("\u{3}", 130, "\n#"),
        ("\u{1c}", 130, "\n#"),
        ("\u{4}", 1, "\nkeyward: there is no key on standard input\n#"),
    ] {
        let mut terminal = Terminal::start(&kit, &["inspect"]);
        terminal.until("API key (not shown): ").await;
        if code == 130 {
            terminal.enter("halfakey");
        }
        terminal.enter(typed);
        assert_eq!(terminal.exit().await, (code, format!("API key (not shown): {end}")));
    }
}

#[tokio::test]
async fn ctrl_z_restores_echo_and_prompts_again() {
    let kit = Kit::start().await;
    let (key, id) = kit.create(&["--org", "org_1"]).await;
    let mut terminal = Terminal::start(&kit, &["inspect"]);
    terminal.until("API key (not shown): ").await;
    terminal.enter("\u{1a}");
    wait_until(|| terminal.is_stopped()).await;
    assert!(terminal.echoes());
    kill_process(Pid::from_raw(terminal.id() as i32).unwrap(), Signal::CONT).unwrap();
    terminal.until("API key (not shown): API key (not shown): ").await;
    assert!(!terminal.echoes());
    terminal.enter(&format!("{key}\n"));
    let (code, shown) = terminal.exit().await;
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains(&id) && !shown.contains(&key), "{shown}");
}

#[tokio::test]
async fn revoke_asks_and_only_yes_confirms() {
    let kit = Kit::start().await;
    let (_, id) = kit.create(&["--org", "org_1"]).await;
    let question = format!("Revoke {id}? It stops working at once, for good. [y/N] ");
    for (typed, code, end) in [
        ("n\n", 1, "n\nNothing was revoked.\n#"),
        ("\n", 1, "\nNothing was revoked.\n#"),
        ("yikes\n", 1, "yikes\nNothing was revoked.\n#"),
        ("\u{4}", 1, "\nNothing was revoked.\n#"),
        ("\u{3}", 130, "^C\n#"),
    ] {
        let mut terminal = Terminal::start(&kit, &["revoke", &id]);
        terminal.until(&question).await;
        terminal.enter(typed);
        assert_eq!(terminal.exit().await, (code, format!("{question}{end}")));
        assert_eq!(kit.emulator.counts().invalidations, 0);
    }
    let mut terminal = Terminal::start(&kit, &["revoke", &id]);
    terminal.until(&question).await;
    terminal.enter("y\n");
    assert_eq!(terminal.exit().await, (0, format!("{question}y\n{id} is revoked.\n#")));
    assert!(!kit.is_live(&id).await);
    let terminal = Terminal::start(&kit, &["revoke", "--yes", &id]);
    assert_eq!(terminal.exit().await, (0, format!("{id} is revoked.\n#")));
}

#[tokio::test]
async fn revoke_reads_typed_ids_before_asking() {
    let kit = Kit::start().await;
    let (_, id) = kit.create(&["--org", "org_1"]).await;
    let mut terminal = Terminal::start(&kit, &["revoke", "-"]);
    terminal.until("Ctrl-D ends the list").await;
    terminal.enter(&format!("{id}\napit_1\n"));
    terminal.until("apit_1\r\n").await;
    terminal.enter("\u{4}");
    terminal.until("Revoke 2 keys? ").await;
    terminal.enter("y\n");
    let (code, shown) = terminal.exit().await;
    assert_eq!(code, 1, "{shown}");
    assert!(shown.contains(&format!("{id} is revoked.\n")), "{shown}");
    assert!(!kit.is_live(&id).await);
}

#[tokio::test]
async fn update_shows_difference_and_asks() {
    let kit = Kit::start().await;
    let (_, id) = kit.create(&["--org", "org_1", "--claim", "team=eng"]).await;
    let arguments = ["update", &id, "--merge", "--claim", "team=ops"];
    let question = format!("{id} of org_1:\n  ~ claim team = eng -> ops\nChange it? [y/N] ");
    let mut terminal = Terminal::start(&kit, &arguments);
    terminal.until("Change it? [y/N] ").await;
    terminal.enter("n\n");
    assert_eq!(terminal.exit().await, (1, format!("{question}n\nNothing was changed.\n#")));
    assert_eq!(kit.known(&id).await["custom_claims"]["team"], "eng");
    let mut terminal = Terminal::start(&kit, &arguments);
    terminal.until("Change it? [y/N] ").await;
    terminal.enter("y\n");
    assert_eq!(terminal.exit().await, (0, format!("{question}y\nChanged {id}.\n#")));
    assert_eq!(kit.known(&id).await["custom_claims"]["team"], "ops");
}
