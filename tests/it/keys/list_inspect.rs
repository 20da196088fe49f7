//! `list` and `inspect`.

use std::collections::BTreeMap;

use keyward_emulator::store::Issue;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::timeout;

use super::{Kit, command, done, json, text};
use crate::support::raw::{Act, ScriptedUpstream};
use crate::support::{TEST_TIMEOUT, wait_until};

fn fill(kit: &Kit, count: usize) {
    for number in 0..count {
        kit.emulator.issue(Issue {
            organization_id: "org_1".into(),
            user_id: if number % 5 == 0 { "usr_1".into() } else { String::new() },
            description: format!("number {number}"),
            ..Issue::default()
        });
    }
}

#[tokio::test]
async fn list_all_fetches_each_page_once() {
    let kit = Kit::start().await;
    fill(&kit, 65);
    let mut ids = kit.live("org_1").await;
    assert_eq!(ids.len(), 65);
    ids.sort();
    ids.dedup();
    assert_eq!((ids.len(), kit.emulator.counts().lists), (65, 3));
    let table = kit.fine(&["list", "--org", "org_1", "--all"]).await;
    assert_eq!(table.lines().count(), 66, "one head for all pages");
    assert!(table.starts_with("ID "), "{table}");
    let theirs = kit.fine(&["list", "--org", "org_1", "--user", "usr_1", "--all", "--json"]).await;
    assert_eq!(theirs.lines().count(), 13);
    assert!(theirs.lines().all(|line| json(line)["user_id"] == "usr_1"));
}

#[tokio::test]
async fn list_prints_page_before_fetching_next() {
    let kit = Kit::start().await;
    fill(&kit, 35);
    for (second, code, rows) in [("list:hang-after", 0, 35), ("list:status=503", 1, 30)] {
        let before = kit.emulator.counts().lists;
        kit.fault("list:hang-after");
        let mut child = kit.command(&["list", "--org", "org_1", "--all"]).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        wait_until(|| kit.emulator.counts().lists == before + 1).await;
        // The runtime does nothing between these two: the first page is released, and the second meets the fault.
        kit.emulator.clear_faults();
        kit.fault(second);
        for _ in 0..31 {
            timeout(TEST_TIMEOUT, lines.next_line()).await.expect("the first page").unwrap().expect("a line");
        }
        wait_until(|| kit.emulator.counts().lists == before + 2).await;
        kit.emulator.clear_faults();
        let mut more = 0;
        while timeout(TEST_TIMEOUT, lines.next_line()).await.unwrap().unwrap().is_some() {
            more += 1;
        }
        assert_eq!(30 + more, rows);
        let output = timeout(TEST_TIMEOUT, child.wait_with_output()).await.unwrap().unwrap();
        assert_eq!(output.status.code(), Some(code));
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.contains("Scalekit answered 503"), code == 1, "{said}");
    }
}

#[tokio::test]
async fn cli_lists_page_of_largest_keys() {
    let kit = Kit::start().await;
    let custom_claims: BTreeMap<_, _> =
        (0..20).map(|number| (format!("{number:ä<30}"), "\u{1f511}".repeat(256))).collect();
    for _ in 0..31 {
        let (organization_id, custom_claims) = ("org_1".to_owned(), custom_claims.clone());
        let description = "\u{1}".repeat(255);
        kit.emulator.issue(Issue { organization_id, custom_claims, description, ..Issue::default() });
    }
    assert_eq!(kit.live("org_1").await.len(), 31);
}

#[tokio::test]
async fn list_stops_on_repeating_page_token() {
    let page = r#"{"tokens":[],"total_count":9,"next_page_token":"same"}"#;
    let token = r#"{"access_token":"made-up","token_type":"Bearer","expires_in":3600}"#;
    let script = [token, page].map(|body| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
        Act::Say(format!("{head}{}\r\n\r\n{body}", body.len()).into_bytes())
    });
    let url = format!("http://{}", ScriptedUpstream::acting(script).await.address);
    let listed = done(command(&url, &["list", "--org", "org_1", "--all"])).await;
    listed.refused("repeat without end");
}

#[tokio::test]
async fn list_prints_next_page_token() {
    let kit = Kit::start().await;
    fill(&kit, 25);
    let mut ids = Vec::new();
    let mut token: Option<String> = None;
    loop {
        let mut arguments = vec!["list", "--org", "org_1", "--page-size", "10", "--json"];
        arguments.extend(token.iter().flat_map(|token| ["--page-token", token]));
        let page = kit.run(&arguments).await;
        assert_eq!(page.code, 0);
        ids.extend(page.out.lines().map(|line| text(&json(line)["token_id"])));
        match page.err.trim_end().strip_prefix("There are 25 in all; for the next page add --page-token ") {
            Some(next) => token = Some(next.to_owned()),
            None => break assert_eq!(page.err, ""),
        }
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 25);
    kit.run(&["list", "--org", "org_1", "--page-token", "-junk"]).await.refused("page_token");
    kit.run(&["list", "--org", "acme"]).await.refused("should begin with org_");
}

#[tokio::test]
async fn list_row_shows_user_expiry_and_claims() {
    let kit = Kit::start().await;
    let none = kit.run(&["list", "--org", "org_1"]).await;
    assert_eq!((none.code, &*none.out, &*none.err), (0, "", "There are no live keys of org_1.\n"));
    kit.create(&["--org", "org_1", "--description", "row\n\u{1b}[31mforged", "--claim", "team=eng"]).await;
    kit.create(&["--org", "org_1", "--user", "usr_1", "--expires", "90d"]).await;
    let table = kit.fine(&["list", "--org", "org_1"]).await;
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 3, "{table}");
    assert!(rows[1].contains("usr_1") && rows[1].contains("in 90 days"), "{table}");
    assert!(rows[2].contains("row\\u{a}\\u{1b}[31mforged") && rows[2].contains("never"), "{table}");
    assert!(rows[2].ends_with("team=eng"), "{table}");
    let column = rows[0].find("EXPIRES").unwrap();
    assert!(rows[1][column..].starts_with("in 90") && rows[2][column..].starts_with("never"), "{table}");
}

#[tokio::test]
async fn list_accepts_closed_standard_output() {
    let kit = Kit::start().await;
    fill(&kit, 35);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = kit.command(&["list", "--org", "org_1", "--all"]);
    command.stdout(writer);
    let listed = done(command).await;
    assert_eq!((listed.code, &*listed.err), (0, ""));
    assert_eq!(kit.emulator.counts().lists, 1);
}

#[tokio::test]
async fn inspect_takes_key_on_stdin_or_id() {
    let kit = Kit::start().await;
    let (key, id) = kit.create(&["--org", "org_1", "--user", "usr_1", "--claim", "team=eng"]).await;
    for input in [key.clone(), format!("{key}\n"), format!("  {key}\r\n")] {
        let found = kit.run_with(&["inspect"], input).await;
        assert_eq!((found.code, &*found.err), (0, ""));
        assert!(found.out.contains(&id) && found.out.contains("team = eng"), "{found:?}");
        assert!(!found.out.contains(&key));
    }
    assert!(kit.fine(&["inspect", &id]).await.contains("usr_1"));
    kit.run_with(&["inspect"], &id)
        .await
        .refused("this is the id of a key, not a key; give it as an argument");
    kit.run_with(&["inspect"], "").await.refused("there is no key on standard input");
    for junk in ["swordfish", "sword fish sword fish sword fish", &format!("{key}-x"), &"a".repeat(3_000_000)]
    {
        let refused = kit.run_with(&["inspect"], junk).await;
        refused.refused("this cannot be a key: keys are letters and digits alone, from 20 to 512 of them");
        assert!(!refused.err.contains("sword") && !refused.err.contains(&key), "{refused:?}");
    }
    kit.run_with(&["inspect"], [0xff, 0, 0x1b, b'\n']).await.refused("standard input cannot be read");

    kit.fine(&["revoke", &id]).await;
    for dead in [kit.run_with(&["inspect"], &key).await, kit.run(&["inspect", &id]).await] {
        assert_eq!((dead.code, &*dead.err), (1, ""));
        assert_eq!(dead.out, "Not a live key: it is unknown, expired or revoked.\n");
    }
    let dead = kit.run_with(&["inspect", "--json"], &key).await;
    assert_eq!((dead.code, json(&dead.out)), (1, serde_json::json!({"valid": false, "token_info": null})));
}

#[tokio::test]
async fn list_of_expiring_keys_omits_later_and_endless_ones() {
    let kit = Kit::start().await;
    fill(&kit, 31);
    for days in [1, 13, 15] {
        let expiry = std::time::SystemTime::now() + std::time::Duration::from_secs(days * 86_400);
        kit.emulator.issue(Issue {
            organization_id: "org_1".into(),
            description: format!("{days} days"),
            expiry: Some(expiry.try_into().unwrap()),
            ..Issue::default()
        });
    }
    let table = kit.fine(&["list", "--org", "org_1", "--expiring", "14d"]).await;
    assert_eq!(table.lines().count(), 3, "{table}");
    assert!(table.contains("1 days") && table.contains("13 days"), "{table}");
}
