//! Counting, forgetting, and the file.

use std::path::PathBuf;

use super::*;

fn settings() -> Settings {
    Settings { max_keys: 100, max_organizations: 100, days: 3, metrics_organizations: None, file: None }
}

fn open(settings: &Settings) -> Arc<Usage> {
    Arc::new(Usage::open(settings, Arc::default()).unwrap())
}

fn identity(organization: &str, token_id: &str) -> Identity {
    Identity {
        org_id: organization.parse().unwrap(),
        org_external_id: None,
        user_id: None,
        user_external_id: None,
        roles: Vec::new(),
        token_id: Some(token_id).filter(|id| !id.is_empty()).map(|id| id.parse().unwrap()),
        claims: Default::default(),
        expiry: None,
    }
}

fn begin(usage: &Arc<Usage>, identity: &Identity) -> OpenRequest {
    let client = Some("192.0.2.7".parse().unwrap());
    usage.begin(identity, &Start { route: &"/v1/*".into(), client })
}

/// One request, from begin to end.
fn request(usage: &Arc<Usage>, organization: &str, token_id: &str, status: u16) {
    let identity = identity(organization, token_id);
    let outcome = if status == 403 { "deny" } else { "allow" };
    begin(usage, &identity).finish(&identity, End { status, outcome });
}

fn rows(usage: &Usage) -> Vec<serde_json::Value> {
    usage.list_rows(0, Day::MAX).collect()
}

/// A path in a folder that is removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("keyward-usage-{:016x}", fastrand::u64(..)));
        std::fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn settings(&self) -> Settings {
        Settings { file: Some(self.0.join("usage.jsonl")), ..settings() }
    }

    fn names(&self) -> Vec<String> {
        let files = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn key_is_in_use_from_begin_to_end() {
    let usage = open(&settings());
    let identity = identity("org_1", "apit_1");
    let open_request = begin(&usage, &identity);
    let found = usage.find_key("apit_1").unwrap();
    assert_eq!((found.open_requests, found.requests, found.last_status), (1, 0, None));
    open_request.finish(&identity, End { status: 404, outcome: "allow" });
    let found = usage.find_key("apit_1").unwrap();
    assert_eq!((found.open_requests, found.requests, found.last_status.as_deref()), (0, 1, Some("4xx")));
    assert_eq!(
        (&*found.last_route, found.last_network.unwrap().to_string().as_str()),
        ("/v1/*", "192.0.2.0/24")
    );
    assert_eq!(found.organization_id, "org_1");
    assert!(found.first_used <= found.last_used && found.first_used >= usage.coverage().started);
    assert_eq!(usage.find_key("apit_2"), None);
}

#[test]
fn organization_is_counted_by_status_and_outcome() {
    let usage = open(&settings());
    for status in [200, 204, 301, 403, 500, 101] {
        request(&usage, "org_1", "apit_1", status);
    }
    request(&usage, "org_2", "", 200);
    let rows = rows(&usage);
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["organization_id"], "org_1");
    assert_eq!(rows[0]["requests"], 6);
    let by_status = serde_json::json!({"1xx": 1, "2xx": 2, "3xx": 1, "4xx": 1, "5xx": 1});
    assert_eq!(rows[0]["by_status"], by_status);
    assert_eq!(rows[0]["by_outcome"], serde_json::json!({"allow": 5, "deny": 1, "error": 0}));
    assert_eq!(rows[1]["requests"], 1, "a key without an id");
    let today = parse_day(rows[0]["day"].as_str().unwrap()).unwrap();
    assert_eq!(today, organizations::day_of(unix_millis()));
    assert_eq!(usage.list_rows(today + 1, Day::MAX).count(), 0);
    assert_eq!(usage.list_rows(today, today).count(), 2);
    assert_eq!(usage.list_rows(today, today - 1).count(), 0);
}

#[test]
fn forgotten_key_moves_complete_since_ahead() {
    let usage = open(&Settings { max_keys: 10, ..settings() });
    assert_eq!(usage.coverage().complete_since, usage.coverage().started);
    request(&usage, "org_1", "apit_old", 200);
    let last = usage.find_key("apit_old").unwrap().last_used;
    std::thread::sleep(Duration::from_millis(2));
    for number in 0..100 {
        request(&usage, "org_1", &format!("apit_{number}"), 200);
    }
    usage.update_gauge();
    assert_eq!(usage.find_key("apit_old"), None);
    assert!(usage.list_keys().count() <= 10);
    assert!(usage.coverage().complete_since >= last);
    assert!(usage.coverage().counted_since <= last);
    assert!(usage.metrics.usage_forgotten_keys.get() >= 91);
    assert_eq!(rows(&usage)[0]["requests"], 101, "organizations are counted all the same");
}

#[test]
fn key_forgotten_in_use_leaves_nothing_complete() {
    let usage = open(&Settings { max_keys: 10, ..settings() });
    let identity = identity("org_1", "apit_stream");
    let stream = begin(&usage, &identity);
    std::thread::sleep(Duration::from_millis(2));
    for number in 0..100 {
        request(&usage, "org_1", &format!("apit_{number}"), 200);
    }
    usage.update_gauge();
    assert_eq!(usage.find_key("apit_stream"), None);
    let coverage = usage.coverage();
    assert_eq!(coverage.complete_since, coverage.now);
    std::thread::sleep(Duration::from_millis(2));
    stream.finish(&identity, End { status: 200, outcome: "allow" });
    let (ended, coverage) = (to_timestamp(unix_millis()), usage.coverage());
    assert!(coverage.complete_since <= ended && ended.duration_since(coverage.complete_since).as_secs() < 1);
    std::thread::sleep(Duration::from_millis(2));
    assert_eq!(usage.coverage().complete_since, coverage.complete_since, "it does not move on");
}

#[test]
fn organizations_beyond_limit_are_counted_together() {
    let usage = open(&Settings { max_organizations: 2, ..settings() });
    for organization in ["org_1", "org_2", "org_3", "org_4", "org_1"] {
        request(&usage, organization, &format!("apit_{organization}"), 200);
    }
    let counts: Vec<_> = rows(&usage)
        .iter()
        .map(|row| (row["organization_id"].as_str().map(str::to_owned), row["requests"].as_u64().unwrap()))
        .collect();
    assert_eq!(counts, [(Some("org_1".to_owned()), 2), (Some("org_2".to_owned()), 1), (None, 2)]);
}

#[test]
fn days_beyond_limit_are_dropped() {
    let usage = open(&settings());
    for day in [10, 11, 12, 13, 14] {
        usage.organizations.row(day, "org_1").count(End { status: 200, outcome: "allow" });
    }
    let days: Vec<_> = rows(&usage).iter().map(|row| row["day"].clone()).collect();
    assert_eq!(days, ["1970-01-13", "1970-01-14", "1970-01-15"]);
}

#[test]
fn metrics_name_only_so_many_organizations() {
    let metrics = Arc::new(Metrics::default());
    let named = Settings { metrics_organizations: Some(2), ..settings() };
    let usage = Arc::new(Usage::open(&named, Arc::clone(&metrics)).unwrap());
    for organization in ["org_1", "org_2", "org_3", "org_4", "org_1"] {
        request(&usage, organization, &format!("apit_{organization}"), 200);
    }
    let text = metrics.encode();
    for (organization, count) in [("org_1", 2), ("org_2", 1), ("other", 2)] {
        let line = format!(
            "keyward_organization_requests_total{{organization=\"{organization}\",class=\"2xx\"}} {count}\n"
        );
        assert!(text.contains(&line), "{line} in {text}");
    }
    assert!(!text.contains("org_3") && !text.contains("org_4"));
    let silent = Arc::new(Metrics::default());
    request(&Arc::new(Usage::open(&settings(), Arc::clone(&silent)).unwrap()), "org_1", "apit_1", 200);
    assert!(!silent.encode().contains("org_1"), "only where it is turned on");
}

#[test]
fn counts_survive_restart_after_complete_write() {
    let folder = Folder::new();
    let before = open(&folder.settings());
    request(&before, "org_1", "apit_1", 200);
    request(&before, "org_1", "apit_1", 403);
    before.save(true).unwrap();
    let (coverage, key) = (before.coverage(), before.find_key("apit_1").unwrap());
    let rows_before = rows(&before);
    // Another write, as by a task that was late, changes nothing.
    request(&before, "org_1", "apit_late", 200);
    before.save(false).unwrap();
    drop(before);
    let after = open(&folder.settings());
    assert_eq!(after.find_key("apit_1").unwrap(), key);
    assert_eq!(rows(&after), rows_before);
    let again = after.coverage();
    assert_eq!(
        (again.counted_since, again.complete_since, again.instance),
        (coverage.counted_since, coverage.complete_since, coverage.instance)
    );
    request(&after, "org_1", "apit_1", 200);
    assert_eq!(rows(&after)[0]["requests"], 3);
    assert_eq!(folder.names(), ["usage.jsonl", "usage.jsonl.lock"]);
}

#[test]
fn incomplete_file_is_complete_only_since_the_restart() {
    let folder = Folder::new();
    let before = open(&folder.settings());
    request(&before, "org_1", "apit_1", 200);
    before.save(false).unwrap();
    request(&before, "org_1", "apit_1", 200);
    let coverage = before.coverage();
    drop(before);
    let after = open(&folder.settings());
    assert_eq!(after.find_key("apit_1").unwrap().requests, 1);
    assert_eq!(after.coverage().complete_since, after.coverage().started);
    assert_eq!(after.coverage().counted_since, coverage.counted_since);
    drop(after);
    // The start itself has written the file, which is not complete any more.
    let third = open(&folder.settings());
    assert_eq!(third.coverage().complete_since, third.coverage().started);
}

#[test]
fn damaged_file_is_set_aside() {
    let folder = Folder::new();
    let file = folder.0.join("usage.jsonl");
    let before = open(&folder.settings());
    request(&before, "org_1", "apit_1", 200);
    before.save(true).unwrap();
    drop(before);
    let whole = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    assert_eq!(lines.len(), 4, "{whole}");
    let without_end = lines[..3].join("\n");
    let without_key = [lines[0], lines[2], lines[3]].join("\n");
    let bad_time = whole.replacen("first_used\":\"2", "first_used\":\"x", 1);
    let long = format!("{}\n{}", lines[0], "x".repeat(1 << 20));
    for damaged in [without_end, without_key, bad_time, long, whole[..whole.len() - 10].to_owned()] {
        std::fs::write(&file, &damaged).unwrap();
        let usage = open(&folder.settings());
        assert_eq!(usage.find_key("apit_1"), None, "{damaged}");
        assert_eq!(std::fs::read_to_string(folder.0.join("usage.jsonl.damaged")).unwrap(), damaged);
    }
}

#[test]
fn foreign_file_is_refused_and_left_as_it_is() {
    let folder = Folder::new();
    let file = folder.0.join("usage.jsonl");
    let refused = |settings: &Settings| Usage::open(settings, Arc::default()).err().unwrap().to_string();
    for (text, expected) in [
        ("root:x:0:0\n", "is not a file of Keyward's usage"),
        ("{\"keyward\":1}\n", "is not a file of Keyward's usage"),
        ("{\"keyward_usage\":2,\"new\":true}\n", "has the format 2"),
    ] {
        std::fs::write(&file, text).unwrap();
        let problem = refused(&folder.settings());
        assert!(problem.contains(expected) && problem.contains("usage.jsonl"), "{problem}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    }
    std::fs::write(&file, "").unwrap();
    drop(open(&folder.settings()));
    let nowhere = Settings { file: Some(folder.0.join("none/usage.jsonl")), ..settings() };
    assert!(refused(&nowhere).contains("cannot be written"), "{}", refused(&nowhere));
    std::fs::create_dir(folder.0.join("folder")).unwrap();
    let a_folder = Settings { file: Some(folder.0.join("folder")), ..settings() };
    assert!(refused(&a_folder).contains("is not a file of Keyward's usage"), "{}", refused(&a_folder));
}

#[test]
fn file_in_use_by_another_process_is_refused() {
    let folder = Folder::new();
    let first = open(&folder.settings());
    let refused = Usage::open(&folder.settings(), Arc::default()).err().unwrap().to_string();
    assert!(refused.contains("is in use by another Keyward"), "{refused}");
    drop(first);
    drop(open(&folder.settings()));
}

#[test]
fn file_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = Folder::new();
    drop(open(&folder.settings()));
    let mode = std::fs::metadata(folder.0.join("usage.jsonl")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn restored_keys_beyond_limit_are_forgotten() {
    let folder = Folder::new();
    let before = open(&folder.settings());
    for number in 0..50 {
        request(&before, "org_1", &format!("apit_{number}"), 200);
        std::thread::sleep(Duration::from_millis(1));
    }
    before.save(true).unwrap();
    let complete_since = before.coverage().complete_since;
    drop(before);
    let after = open(&Settings { max_keys: 10, ..folder.settings() });
    assert!(after.list_keys().count() <= 10);
    assert!(after.find_key("apit_49").is_some() && after.find_key("apit_0").is_none());
    assert!(after.coverage().complete_since > complete_since);
}

#[test]
fn day_is_parsed_strictly() {
    assert_eq!(parse_day("1970-01-02"), Some(1));
    for text in
        ["", "1970-1-2", "1970-01-02T00:00:00", "1970-13-01", "1969-12-31", "+001970-01-02", "-", "today"]
    {
        assert_eq!(parse_day(text), None, "{text}");
    }
}
