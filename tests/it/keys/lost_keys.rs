//! A key that was created but not shown is named, so that it can be revoked.

use std::process::Stdio;

use rustix::process::Signal;
use tokio::process::Command;

use super::{Kit, command, done, json, shown};
use crate::process::Running;
use crate::support::raw::{Act, ScriptedUpstream};
use crate::support::{TEST_TIMEOUT, wait_until};

/// Checks that the only key of `org_1` is named in this text, and that the printed command revokes it.
async fn assert_key_is_named_and_revocable(kit: &Kit, said: &str) {
    kit.emulator.clear_faults();
    let [id] = &kit.live("org_1").await[..] else { panic!("one key: {said}") };
    assert!(said.contains(id.as_str()), "{id} in {said}");
    kit.fine(&["revoke", id]).await;
    assert!(kit.live("org_1").await.is_empty());
}

#[tokio::test]
async fn lost_creation_response_names_key() {
    for fault in ["create:truncated", "create:garbage"] {
        let kit = Kit::start().await;
        kit.fault(fault);
        let made = kit.run(&["create", "--org", "org_1", "--claim", "team=eng", "--expires", "90d"]).await;
        made.refused(
            "a key may have been created that nobody has received; revoke this one unless someone uses it: apit_",
        );
        assert_key_is_named_and_revocable(&kit, &made.err).await;
    }
}

#[tokio::test]
async fn lost_rotation_response_names_new_key_only() {
    let kit = Kit::start().await;
    let (_, old) = kit.create(&["--org", "org_1", "--claim", "team=eng"]).await;
    kit.fault("create:truncated");
    let made = kit.run(&["rotate", &old]).await;
    made.refused("revoke this one unless someone uses it: apit_");
    // SECURITY: the old key looks the same and is in use; whoever revokes it cuts the service off.
    assert!(!made.err.contains(&old), "{made:?}");
    kit.fine(&["revoke", &old]).await;
    assert_key_is_named_and_revocable(&kit, &made.err).await;
}

#[tokio::test]
async fn lost_connection_during_creation_names_key() {
    let kit = Kit::start().await;
    kit.fault("create:hang-after");
    let going = tokio::spawn(done(kit.command(&["create", "--org", "org_1"])));
    wait_until(|| kit.emulator.counts().creations == 1).await;
    kit.emulator.close_connections();
    let made = going.await.unwrap();
    made.refused("the connection to Scalekit broke");
    assert_key_is_named_and_revocable(&kit, &made.err).await;
}

#[tokio::test]
async fn failed_creation_names_no_key() {
    for fault in ["create:reset", "create:status=502"] {
        let kit = Kit::start().await;
        // Another key, which differs.
        kit.create(&["--org", "org_1", "--claim", "team=other"]).await;
        kit.fault(fault);
        let made = kit.run(&["create", "--org", "org_1", "--claim", "team=eng"]).await;
        made.refused("no such key is in the organization's list");
        assert!(!made.err.contains("apit_"), "{made:?}");
        assert_eq!(kit.live("org_1").await.len(), 1);
    }
}

#[tokio::test]
async fn lost_creation_without_search_says_to_list() {
    let kit = Kit::start().await;
    kit.fault("create:truncated");
    kit.fault("list:status=503");
    let made = kit.run(&["create", "--org", "org_1"]).await;
    made.refused(
        "a key may have been created that nobody has received; list the organization's keys and revoke it",
    );
}

#[tokio::test]
async fn unprintable_new_key_is_named() {
    let kit = Kit::start().await;
    for form in [&[][..], &["--quiet"], &["--json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = kit.command(&[&["create", "--org", "org_1"], form].concat());
        command.stdout(writer);
        let made = done(command).await;
        made.refused("could not be printed");
        assert_key_is_named_and_revocable(&kit, &made.err).await;
    }
    let (_, old) = kit.create(&["--org", "org_1"]).await;
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = kit.command(&["rotate", &old, "--json"]);
    command.stdout(writer);
    done(command).await.refused("could not be printed");
    assert!(kit.is_live(&old).await, "the old key works on, as nobody has the new one");
}

#[tokio::test]
async fn no_key_is_created_for_dev_null() {
    let kit = Kit::start().await;
    let mut closed = Command::new("sh");
    closed.args(["-c", "exec \"$0\" keys create --org org_1 >&-", env!("CARGO_BIN_EXE_keyward")]);
    closed.env("SCALEKIT_ENVIRONMENT_URL", &kit.url).env("SCALEKIT_CLIENT_ID", "dev");
    closed.env("SCALEKIT_CLIENT_SECRET", "dev").stdout(Stdio::piped()).stderr(Stdio::piped());
    done(closed).await.refused("no key was created");
    let mut null = kit.command(&["create", "--org", "org_1", "--quiet"]);
    null.stdout(Stdio::null());
    done(null).await.refused("no key was created");
    assert_eq!(kit.emulator.counts().creations, 0);
}

#[tokio::test]
async fn closed_standard_error_changes_nothing() {
    let kit = Kit::start().await;
    let (_, id) = kit.create(&["--org", "org_1", "--claim", "a=1"]).await;
    for (arguments, code) in [
        (&["update", &id, "--claim", "a=2"][..], 0),
        (&["revoke", &id, "apit_0"], 1),
        (&["list", "--org", "nobody"], 1),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = kit.command(arguments);
        command.stderr(writer);
        assert_eq!(done(command).await.code, code, "{arguments:?}");
    }
    assert!(!kit.is_live(&id).await);
}

#[tokio::test]
async fn ctrl_c_waits_for_running_creation() {
    let kit = Kit::start().await;
    kit.fault("create:hang-after");
    let mut running = Running::start(kit.command(&["create", "--org", "org_1"]));
    wait_until(|| kit.emulator.counts().creations == 1).await;
    running.signal(Signal::INT);
    running.until("waiting for Scalekit's response").await;
    kit.emulator.clear_faults();
    assert_eq!(running.exit().await, Some(0));
    running.until("Store it now").await;
    let key = shown(&running.text());
    assert_eq!(kit.run_with(&["inspect"], key).await.code, 0);
}

#[tokio::test]
async fn second_ctrl_c_names_possibly_created_key() {
    let kit = Kit::start().await;
    kit.fault("create:hang-after");
    let mut running = Running::start(kit.command(&["create", "--org", "org_1"]));
    wait_until(|| kit.emulator.counts().creations == 1).await;
    running.signal(Signal::INT);
    running.until("waiting for Scalekit's response").await;
    running.signal(Signal::TERM);
    assert_eq!(running.exit().await, Some(130));
    running.until("a key may have been created that nobody has received").await;
    running.until("keyward keys list --org org_1").await;
}

#[tokio::test]
async fn foreign_server_response_never_reaches_terminal() {
    const TOKEN: &str = "{\"access_token\":\"made-up\",\"token_type\":\"Bearer\",\"expires_in\":3600}";
    let answer = |status: &str, kind: &str, body: &str| {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nlocation: http://127.0.0.1:1/\r\n\r\n{body}")
            .into_bytes()
    };
    let token = || answer("200 OK", "application/json", TOKEN);
    let evil = r#"{"token":"abc\u001b[31m","token_id":"apit_1","token_info":{"token_id":"apit_1","organization_id":"org_1"}}"#;
    let refusal = r#"{"code":3,"message":"no\u001b]0;title\u0007\r\nkeyward: all is well","details":[]}"#;
    for (answers, create) in [
        (vec![answer("302 Found", "text/html", "<a>\u{1b}[31m</a>")], "no Scalekit token API at this URL"),
        (vec![answer("200 OK", "text/html", "<html>\u{1b}[31m</html>")], "Scalekit"),
        (vec![b"SSH-2.0-OpenSSH\x1b[31m\r\n\r\n".to_vec()], "Scalekit"),
        (vec![token(), answer("302 Found", "text/html", "\u{1b}[31m")], "no Scalekit token API at this URL"),
        (vec![token(), answer("200 OK", "text/html", "<html>\u{1b}</html>")], "not the JSON expected"),
        (
            vec![token(), answer("201 Created", "application/json", evil)],
            "the new token is missing, or is not visible ASCII",
        ),
        (
            vec![token(), answer("400 Bad", "application/json", refusal)],
            "no\\u{1b}]0;title\\u{7}\\r\\nkeyward",
        ),
        (vec![token(), b"\xff\xfe\x00\x1b[31m\r\n\r\n".to_vec()], "the connection to Scalekit broke"),
    ] {
        let script: Vec<Act> = answers.into_iter().map(Act::Say).collect();
        let scripted = ScriptedUpstream::acting(script).await;
        let url = format!("http://{}", scripted.address);
        let making = done(command(&url, &["create", "--org", "org_1"]));
        let made = tokio::time::timeout(TEST_TIMEOUT, making).await.expect("an end in time");
        made.refused(create);
        assert!(!made.err.trim_end().contains(|char: char| char.is_control()), "{made:?}");
    }
}

#[tokio::test]
async fn json_output_escapes_terminal_control_characters() {
    let kit = Kit::start().await;
    let (text, claim) = ("a\u{1b}[31m\r\n\u{9b}31m\u{202e}", "x=\u{9b}2J\u{7f}");
    let made =
        kit.fine(&["create", "--org", "org_1", "--description", text, "--claim", claim, "--json"]).await;
    let id = json(&made)["token_id"].as_str().unwrap().to_owned();
    for out in [
        made,
        kit.fine(&["list", "--org", "org_1", "--json"]).await,
        kit.fine(&["list", "--org", "org_1"]).await,
        kit.fine(&["inspect", &id]).await,
        kit.run(&["update", &id, "--description", "\u{1b}c"]).await.err,
    ] {
        let obeyed = |char: char| (char.is_control() && char != '\n') || char == '\u{202e}';
        assert!(!out.contains(obeyed), "{out:?}");
    }
    kit.fine(&["update", &id, "--description", text]).await;
    assert_eq!(kit.known(&id).await["description"], text, "and yet it is what was given");
}
