//! `rotate` and `revoke`.

use std::process::Stdio;

use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

use super::{Kit, done, json, shown, text};
use crate::process::Running;
use crate::support::{TEST_TIMEOUT, wait_until};

const SCOPE: [&str; 10] = [
    "--org",
    "org_1",
    "--user",
    "usr_1",
    "--claim",
    "team=eng",
    "--description",
    "CI",
    "--expires",
    "2099-01-01",
];

#[tokio::test]
async fn rotate_copies_properties_and_revokes_old_key() {
    let kit = Kit::start().await;
    let (_, old) = kit.create(&SCOPE).await;
    let before = kit.known(&old).await;
    let rotated = kit.run(&["rotate", &old]).await;
    assert_eq!((rotated.code, &*rotated.err), (0, ""));
    assert!(rotated.out.contains(&format!("in place of {old}")));
    assert!(rotated.out.ends_with(&format!("{old} is revoked.\n")), "{}", rotated.out);
    let key = shown(&rotated.out);
    assert_eq!(rotated.out.matches(&key).count(), 1);
    assert!(!kit.is_live(&old).await);
    let after = json(&kit.run_with(&["inspect", "--json"], &key).await.out)["token_info"].clone();
    for field in ["organization_id", "user_id", "custom_claims", "description", "expiry"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    kit.run(&["rotate", &old]).await.refused("there is no live key with this id");
    assert_eq!(kit.live("org_1").await, [text(&after["token_id"])]);
}

#[tokio::test]
async fn rotate_overlap_keeps_old_key_valid() {
    let kit = Kit::start().await;
    let (key, old) = kit.create(&SCOPE).await;
    let rotated = kit.fine(&["rotate", &old, "--overlap", "24h"]).await;
    assert!(rotated.contains(&format!("{old} still works")), "{rotated}");
    assert_eq!(kit.run_with(&["inspect"], &key).await.code, 0);
    let line = rotated.lines().last().unwrap().trim().strip_prefix("keyward ").expect("a command").to_owned();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec \"$0\" {line}"), env!("CARGO_BIN_EXE_keyward")]);
    command.env("SCALEKIT_ENVIRONMENT_URL", &kit.url).env("SCALEKIT_CLIENT_ID", "dev");
    command.env("SCALEKIT_CLIENT_SECRET", "dev").stdout(Stdio::piped()).stderr(Stdio::piped());
    let revoked = done(command).await;
    assert_eq!((revoked.code, &*revoked.out), (0, &*format!("{old} is revoked.\n")));
    assert_eq!(kit.run_with(&["inspect"], &key).await.code, 1);
    assert_eq!(kit.run_with(&["inspect"], shown(&rotated)).await.code, 0);

    let (_, old) = kit.create(&["--org", "org_1"]).await;
    let quiet = kit.fine(&["rotate", &old, "--quiet"]).await;
    assert_eq!(quiet.lines().count(), 1);
    assert_eq!(kit.run_with(&["inspect"], quiet).await.code, 0);
    assert!(!kit.is_live(&old).await);
    let (_, old) = kit.create(&["--org", "org_1", "--expires", "2h"]).await;
    let expiry = text(&kit.known(&old).await["expiry"]);
    let rotated = kit.fine(&["rotate", &old, "--overlap", "24h"]).await;
    assert!(rotated.contains(&format!("by {expiry}:")), "it ends before the overlap: {rotated}");
}

#[tokio::test]
async fn rotate_prints_new_key_when_revocation_fails() {
    let kit = Kit::start().await;
    let (_, old) = kit.create(&SCOPE).await;
    kit.fault("invalidate:status=503");
    let rotated = kit.run(&["rotate", &old, "--json"]).await;
    assert_eq!(rotated.code, 1);
    assert!(rotated.err.contains(&format!("keyward keys revoke {old}")), "{rotated:?}");
    let made = json(&rotated.out);
    assert_eq!(made["replaced_token_id"], old.as_str());
    assert_eq!(kit.run_with(&["inspect"], text(&made["token"])).await.code, 0);
    assert!(kit.is_live(&old).await);
}

#[tokio::test]
async fn revoke_exit_code_counts_failures_not_repeats() {
    let kit = Kit::start().await;
    let (_, one) = kit.create(&["--org", "org_1"]).await;
    let (_, two) = kit.create(&["--org", "org_1"]).await;
    let both = kit.fine(&["revoke", &one, &two]).await;
    assert_eq!(both, format!("{one} is revoked.\n{two} is revoked.\n"));
    assert_eq!(kit.fine(&["revoke", &one, &two]).await, both);
    assert!(kit.live("org_1").await.is_empty());
    let some = kit.run(&["revoke", "apit_1", &one, "apit_2", "apit_3"]).await;
    assert_eq!((some.code, &*some.out), (3, &*format!("{one} is revoked.\n")));
    assert!(some.err.contains("keyward: apit_2: there is no key with this id\n"), "{some:?}");
    let some = kit.run(&["revoke", "--json", "apit_1", &one]).await;
    let lines: Vec<_> = some.out.lines().map(json).collect();
    assert_eq!((some.code, &lines[0]["revoked"], &lines[1]["revoked"]), (1, &false.into(), &true.into()));
}

#[tokio::test]
async fn one_bad_id_revokes_nothing() {
    let kit = Kit::start().await;
    let (key, one) = kit.create(&["--org", "org_1"]).await;
    let (_, two) = kit.create(&["--org", "org_1"]).await;
    kit.run(&["revoke", &one, "apit"]).await.refused("number 2 of the list; nothing was revoked");
    let list = format!("{one}\n{two}\n{key}\n");
    let refused = kit.run_with(&["revoke", "-"], &list).await;
    refused.refused("number 3 of the list");
    assert!(!refused.err.contains(&key));
    kit.run_with(&["revoke", "-"], "\n \n").await.refused("there are no ids on standard input");
    // Input without end.
    kit.run_with(&["revoke", "-"], "y\n".repeat(2_000_000)).await.refused("number 1 of the list");
    kit.run_with(&["revoke", "-"], vec![0xfe; 1_000_000]).await.refused("standard input cannot be read");
    assert_eq!((kit.live("org_1").await.len(), kit.emulator.counts().invalidations), (2, 0));
    kit.fine(&["revoke", &one]).await;
    let rest = kit.run_with(&["revoke", "-", &one], format!("\r\n{two}\r\n")).await;
    assert_eq!((rest.code, &*rest.out), (0, &*format!("{one} is revoked.\n{two} is revoked.\n")));
}

#[tokio::test]
async fn endless_input_stops_at_first_bad_line() {
    let kit = Kit::start().await;
    for (arguments, chunk) in [(&["revoke", "-"][..], "y\n"), (&["revoke", "-"], "a"), (&["inspect"], "a")] {
        let mut child = kit.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let (mut stdin, chunk) = (child.stdin.take().unwrap(), chunk.repeat(10_000));
        let write = async { while stdin.write_all(chunk.as_bytes()).await.is_ok() {} };
        timeout(TEST_TIMEOUT, write).await.expect("somebody stops to read");
        assert_eq!(
            timeout(TEST_TIMEOUT, child.wait()).await.unwrap().unwrap().code(),
            Some(1),
            "{arguments:?}"
        );
    }
}

#[tokio::test]
async fn ten_thousand_ids_are_revoked() {
    let kit = Kit::start().await;
    let (_, id) = kit.create(&["--org", "org_1"]).await;
    let ids: String = (0..10_000).map(|number| format!("apit_{number}\n")).chain([id.clone()]).collect();
    let done = kit.run_with(&["revoke", "-"], ids).await;
    assert_eq!((done.code, &*done.out), (125, &*format!("{id} is revoked.\n")));
    assert_eq!(done.err.lines().count(), 10_000);
}

#[tokio::test]
async fn revoke_stops_when_all_would_fail() {
    let kit = Kit::start().await;
    for (fault, tried, said) in [
        ("invalidate:status=403", 1, "grant it api_credentials:rotate"),
        ("invalidate:status=502", 3, "Scalekit answered 502"),
    ] {
        kit.emulator.clear_faults();
        kit.fault(fault);
        let before = kit.emulator.counts().invalidations;
        let done = kit.run(&["revoke", "apit_1", "apit_2", "apit_3", "apit_4", "apit_5"]).await;
        assert_eq!((done.code, kit.emulator.counts().invalidations - before), (5, tried), "{done:?}");
        assert!(done.err.contains(said), "{done:?}");
        assert!(done.err.ends_with(&format!("the {} after it were not tried\n", 5 - tried)), "{done:?}");
    }
}

#[tokio::test]
async fn ctrl_c_during_revoke_names_unknown_outcome() {
    let kit = Kit::start().await;
    kit.fault("invalidate:hang");
    let mut running = Running::start(kit.command(&["revoke", "apit_1", "apit_2", "apit_3"]));
    wait_until(|| kit.emulator.counts().invalidations == 1).await;
    running.signal(Signal::INT);
    assert_eq!(running.exit().await, Some(130));
    running.until("it is unknown whether apit_1 is revoked; the 2 after it were not tried").await;
}
