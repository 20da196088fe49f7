//! `create`: a key is printed once, and a request that Scalekit would refuse is not sent.

use keyward_emulator as emulator;

use super::{Kit, json, shown};

#[tokio::test]
async fn new_key_is_printed_once_on_stdout() {
    let kit = Kit::start().await;
    let made = kit
        .run(&["create", "--org", "org_1", "--user", "usr_1", "--claim", "team=eng", "--claim", "a=b=c"])
        .await;
    assert_eq!((made.code, &*made.err), (0, ""));
    let key = shown(&made.out);
    assert_eq!(made.out.matches(&key).count(), 1);
    assert!(made.out.contains("the only time that the key is shown"), "{}", made.out);
    let id = kit.live("org_1").await.pop().unwrap();
    assert!(made.out.starts_with(&format!("Created {id} for org_1, user usr_1.\nIt never expires.")));

    let known = json(&kit.run_with(&["inspect", "--json"], format!("{key}\n")).await.out);
    assert_eq!(known["valid"], true);
    let known = &known["token_info"];
    assert_eq!((&known["token_id"], &known["user_id"]), (&id.into(), &"usr_1".into()));
    assert_eq!(known["custom_claims"], serde_json::json!({"team": "eng", "a": "b=c"}));
}

#[tokio::test]
async fn quiet_and_json_output_formats_are_exact() {
    let kit = Kit::start().await;
    let quiet = kit.run(&["create", "--org", "org_1", "--quiet"]).await;
    assert_eq!((quiet.code, &*quiet.err), (0, ""));
    let key = quiet.out.strip_suffix('\n').unwrap();
    assert!(key.len() > 60 && key.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{quiet:?}");
    assert_eq!(kit.run_with(&["inspect"], key).await.code, 0);

    let made = kit
        .fine(&["create", "--org", "org_1", "--expires", "2099-01-01", "--description", "ü", "--json"])
        .await;
    assert_eq!(made.lines().count(), 1);
    let made = json(&made);
    assert_eq!(made["token_id"], made["token_info"]["token_id"]);
    assert_eq!(made["token_info"]["expiry"], "2099-01-01T00:00:00Z");
    assert_eq!(made["token_info"]["description"], "ü");
    assert_eq!(kit.run_with(&["inspect"], made["token"].as_str().unwrap()).await.code, 0);
    assert_eq!(kit.run(&["create", "--org", "org_1", "--quiet", "--json"]).await.code, 2);
}

#[tokio::test]
async fn expires_accepts_timestamp_date_or_duration() {
    let kit = Kit::start().await;
    for (given, expected) in
        [("90d", "in 90 days"), ("36h", "in 36 hours"), ("2099-01-01T12:00:00+02:00", "2099-01-01T10:00:00Z")]
    {
        let made = kit.fine(&["create", "--org", "org_1", "--expires", given]).await;
        assert!(made.contains("It expires ") && made.contains(expected), "{given}: {made}");
    }
}

#[tokio::test]
async fn arguments_beyond_limits_are_not_sent() {
    let kit = Kit::start().await;
    let org = ["create", "--org", "org_1"];
    let claims: Vec<String> = (0..21).map(|number| format!("--claim=c{number}=v")).collect();
    let claims: Vec<&str> = claims.iter().map(String::as_str).collect();
    let (fits, long) = (format!("team={}", "ä".repeat(256)), format!("team={}", "ä".repeat(257)));
    let (name, text) = (format!("{}=x", "n".repeat(31)), "ü".repeat(256));
    let cases: [(&[&str], &str); 8] = [
        (&claims, "21 are too many; a key has at most 20"),
        (&["--claim", "team="], "\"team\" has no value; it should have from 1 to 256 characters"),
        (&["--claim", &long], "has a value of 257 characters; it should have from 1 to 256"),
        (&["--claim", &name], "a name has 31 characters; it should have from 1 to 30"),
        (&["--claim", "a=1", "--claim", "a=2"], "the claim \"a\" is given twice"),
        (&["--description", &text], "has 256 characters; it should have at most 255"),
        (&["--expires", "2020-01-01"], "2020-01-01T00:00:00Z has passed; it should be in the future"),
        (&["--expires", "0s"], "has passed; it should be in the future"),
    ];
    for (arguments, expected) in &cases {
        kit.run(&[&org, *arguments].concat()).await.refused(expected);
    }
    for org in ["", "acme", "ThisKeyIsMadeUpAndOpensNothing000000000000000aB3d"] {
        kit.run(&["create", "--org", org]).await.refused("organization_id: should begin with org_");
    }
    // An empty variable must not widen the command to the whole organization.
    for command in ["create", "list"] {
        kit.run(&[command, "--org", "org_1", "--user", ""]).await.refused("user_id: is empty");
    }
    kit.run(&["create", "--org", "org_1", "--expires", "9999999999d"]).await.refused("too far in the future");
    assert_eq!(kit.emulator.counts().creations, 0);
    kit.fine(&[&org[..], &["--claim", &fits]].concat()).await;
}

#[tokio::test]
async fn unknown_organization_or_user_gets_no_key() {
    let only = ["org_1/usr_1:admin", "org_2"].map(|text| text.parse().unwrap()).to_vec();
    let kit = Kit::with(emulator::Settings { only, ..emulator::Settings::default() }).await;
    kit.run(&["create", "--org", "org_9"]).await.refused("organization not found");
    kit.run(&["create", "--org", "org_2", "--user", "usr_1"])
        .await
        .refused("user not found in the organization");
    assert!(kit.live("org_2").await.is_empty());
    let (_, id) = kit.create(&["--org", "org_1", "--user", "usr_1"]).await;
    let described = kit.fine(&["inspect", &id]).await;
    assert!(described.contains("roles") && described.contains("admin"), "{described}");
}

#[tokio::test]
async fn usage_errors_exit_2_and_repeat_no_key() {
    let kit = Kit::start().await;
    let (key, id) = kit.create(&["--org", "org_1"]).await;
    for arguments in [
        &["create"][..],
        &["create", "--org", "org_1", "--claim", "novalue"],
        &["create", "--org", "org_1", "--expires", "soon"],
        &["list", "--org", "org_1", "--page-size", "31"],
        &["list", "--org", "org_1", "--all", "--page-size", "3"],
        &["update", &id, "--remove-claim", "team"],
        &["rotate", &id, "--overlap", "0s"],
        &["revoke"],
        &["inspect", &id, &key],
        &["create", &key],
        &[&key],
    ] {
        let done = kit.run(arguments).await;
        assert_eq!((done.code, &*done.out), (2, ""), "{arguments:?}: {done:?}");
        assert!(!done.err.contains(&key), "{done:?}");
    }
    for arguments in [&["inspect", &key][..], &["update", &key], &["rotate", &key], &["revoke", &key]] {
        let done = kit.run(arguments).await;
        assert!(!done.err.contains(&key), "{done:?}");
        if arguments[0] != "update" {
            done.refused("give a key itself on standard input only");
        }
    }
    assert!(kit.is_live(&id).await);
}
