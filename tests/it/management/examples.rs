//! The examples for users, run unchanged: a backend in Python, a shell script with curl, and the commands of
//! docs/management.md.

use std::path::Path;
use std::process::Output;

use keyward::config::{self, Environment};
use serde_json::json;
use tokio::process::Command;
use tokio::time::timeout;

use super::{ApiRequest, KEYS, ManagementStage, SECRET};
use crate::support::tls::{Folder, toml};
use crate::support::{Setup, TEST_TIMEOUT};

const STEPS: &str = "created\nnot created twice\ngood for the service\nlisted\nshown\nchanged\nrotated\nthe old key is refused\n\
                     the new key is good\nrevoked\nrefused on the very next request\n";

/// Whether this program is installed; if not, the test prints that it is skipped.
fn is_here(program: &str) -> bool {
    let here = std::process::Command::new(program).arg("--version").output().is_ok();
    if !here {
        eprintln!("skipped: there is no {program} here");
    }
    here
}

async fn run(
    interpreter: &str,
    example: &str,
    socket: &Path,
    management: &ManagementStage,
    secret: &str,
) -> Output {
    let mut command = Command::new(interpreter);
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(example))
        .arg(socket)
        .arg(format!("http://{}/v1/orders", management.stage.address))
        .arg("org_1")
        .env("MANAGEMENT_SECRET", secret)
        .env("no_proxy", "*")
        .kill_on_drop(true);
    timeout(TEST_TIMEOUT, command.output()).await.expect("an end in time").unwrap()
}

async fn whole_life(interpreter: &str, example: &str) {
    for secret in [None, Some(SECRET)] {
        let folder = Folder::new();
        let socket = folder.file("management.sock");
        let mut lines = format!("listen = \"unix:{}\"\n", socket.display());
        if let Some(secret) = secret {
            lines.push_str(&format!("secret_file = {}", toml(&folder.write("secret", secret))));
        }
        let management = ManagementStage::of(&lines, Setup::default()).await;
        let output = run(interpreter, example, &socket, &management, secret.unwrap_or_default()).await;
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!((output.status.code(), &*out), (Some(0), STEPS), "{err}");
        assert_eq!(err, "");
        let counts = management.stage.emulator.counts();
        assert_eq!((counts.creations, counts.updates, counts.invalidations), (2, 1, 2));
        if let Some(secret) = secret {
            let list = ApiRequest::new("GET", KEYS).header("authorization", &format!("Bearer {secret}"));
            assert_eq!(management.send(&list).await.json()["total_count"], 0, "nothing is left");
            let output = run(interpreter, example, &socket, &management, "wrong").await;
            let err = String::from_utf8(output.stderr).unwrap();
            assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b""[..]), "{err}");
            assert!(err.contains("unauthorized"), "{err}");
        } else {
            assert_eq!(management.count_keys().await, 0, "nothing is left");
        }
    }
}

#[tokio::test]
async fn python_example_runs_whole_key_lifecycle() {
    if is_here("python3") {
        whole_life("python3", "lifecycle.py").await;
    }
}

#[tokio::test]
async fn shell_example_runs_whole_key_lifecycle() {
    if is_here("curl") {
        whole_life("sh", "lifecycle.sh").await;
    }
}

/// The first block of `docs/management.md` in this language.
fn of_the_page(language: &str) -> &'static str {
    let page = include_str!("../../../docs/management.md");
    let (_, block) = page.split_once(&format!("```{language}\n")).unwrap();
    block.split_once("```").unwrap().0
}

#[test]
fn documented_toml_section_is_valid() {
    let environment = Environment::from_pairs([
        ("SCALEKIT_ENVIRONMENT_URL", "http://127.0.0.1:9"),
        ("SCALEKIT_CLIENT_ID", "dev"),
        ("SCALEKIT_CLIENT_SECRET", "dev"),
    ]);
    let file = format!(
        "version = 1\n{}[upstreams.a]\nurl = \"http://127.0.0.1:9\"\n[[routes]]\npath = \"/*\"\nupstream = \"a\"\n",
        of_the_page("toml")
    );
    let config = config::parse(&file, "f", &environment).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(config.management.is_some());
}

#[tokio::test]
async fn documented_commands_do_what_they_say() {
    if !is_here("curl") {
        return;
    }
    let folder = Folder::new();
    let socket = folder.file("management.sock");
    let management =
        ManagementStage::of(&format!("listen = \"unix:{}\"", socket.display()), Setup::default()).await;
    let (key, id) = management.issue("org_1001");
    let lines = of_the_page("sh")
        .replace("/run/keyward/management.sock", socket.to_str().unwrap())
        .replace("apit_123456789012345", &id)
        // The date on the page may be in the past.
        .replace("2027-", "2099-");
    let lines = format!("uuidgen() {{ date +%s%N; }}\nset -e\n{lines}");
    let output =
        timeout(TEST_TIMEOUT, Command::new("sh").args(["-c", &lines]).output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    let answers = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<serde_json::Value>();
    let answers: Vec<_> = answers.map(Result::unwrap).collect();
    let [made, list, shown, changed, rotated] = &*answers else { panic!("{answers:?}") };
    assert_eq!(made["token_info"]["user_id"], "usr_2001", "{made}");
    assert_eq!(list["total_count"], 1, "{list}");
    assert_eq!(shown["token_id"], *id, "{shown}");
    assert_eq!(
        (&changed["custom_claims"], &changed["description"]),
        (&json!({"team": "support"}), &json!("CI, nightly"))
    );
    assert_eq!(
        (&rotated["replaced_token_id"], &rotated["replaced_token_revoked"]),
        (&json!(id), &json!(true))
    );
    assert_eq!(management.proxied_status(&key).await, 401);
}
