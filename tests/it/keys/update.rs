//! `update`: which claims are replaced, kept and removed, and the confirmation.

use serde_json::json;

use super::Kit;

#[tokio::test]
async fn update_replaces_claims_unless_merged() {
    let kit = Kit::start().await;
    let (_, id) = kit
        .create(&["--org", "org_1", "--claim", "team=eng", "--claim", "plan=free", "--description", "CI"])
        .await;
    let merged = kit.run(&["update", &id, "--merge", "--claim", "team=ops", "--claim", "new=1"]).await;
    assert_eq!((merged.code, &*merged.out), (0, &*format!("Changed {id}.\n")));
    let difference = format!("{id} of org_1:\n  ~ claim team = eng -> ops\n  + claim new = 1\n");
    assert_eq!(merged.err, difference);
    let known = kit.known(&id).await;
    assert_eq!(known["custom_claims"], json!({"team": "ops", "plan": "free", "new": "1"}));
    assert_eq!(known["description"], "CI");

    let removed = kit.run(&["update", &id, "--merge", "--remove-claim", "new"]).await;
    assert!(removed.err.ends_with(":\n  - claim new = 1\n"), "{removed:?}");
    let replaced = kit.run(&["update", &id, "--claim", "team=qa", "--description", ""]).await;
    assert_eq!(replaced.code, 0);
    assert!(replaced.err.contains("whose claims are replaced by those given (--merge keeps the others)"));
    assert!(replaced.err.contains("  - claim plan = free\n"), "{replaced:?}");
    assert!(replaced.err.contains("  ~ description CI -> none\n"), "{replaced:?}");
    let known = kit.known(&id).await;
    assert_eq!((&known["custom_claims"], &known["description"]), (&json!({"team": "qa"}), &json!(null)));
}

#[tokio::test]
async fn impossible_update_is_refused_before_sending() {
    let kit = Kit::start().await;
    let (_, id) = kit.create(&["--org", "org_1", "--claim", "team=eng"]).await;
    let claims: Vec<String> = (0..20).map(|number| format!("--claim=c{number}=v")).collect();
    let mut many = vec!["update", &id, "--merge"];
    many.extend(claims.iter().map(String::as_str));
    kit.run(&many).await.refused("21 are too many; a key has at most 20");
    for (arguments, expected) in [
        (&["--merge", "--remove-claim", "team"][..], "cannot remove the last claim of a key"),
        (&["--merge", "--remove-claim", "plan"], "the key has no claim \"plan\""),
        (&["--claim", "team="], "\"team\" has no value"),
        (&[], "there is nothing to change; give --claim, --remove-claim or --description"),
    ] {
        kit.run(&[&["update", &id], arguments].concat()).await.refused(expected);
    }
    kit.run(&["update", "apit_0", "--claim", "a=b"]).await.refused("there is no live key with this id");
    let same = kit.run(&["update", &id, "--claim", "team=eng"]).await;
    assert_eq!((same.code, &*same.out), (0, ""));
    assert!(same.err.contains("Nothing to change"), "{same:?}");
    assert_eq!(kit.emulator.counts().updates, 0);
    kit.fault("update:truncated");
    let lost = kit.run(&["update", &id, "--claim", "team=ops"]).await;
    assert_eq!(lost.code, 1);
    assert!(lost.err.contains(&format!("it is unknown whether {id} was changed")), "{lost:?}");
}
