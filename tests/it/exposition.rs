//! `/metrics` in Prometheus's text format 0.0.4, or in OpenMetrics if the client accepts it.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::Stdio;

use crate::support::Stage;
use crate::support::raw::Client;

const BAD_KEY: &str = "0123456789ABCDEFGHIJabcdefghij";

/// A stage in which most metrics have been counted.
async fn stage() -> Stage {
    let stage = Stage::start().await;
    stage.get("/v1", &stage.issue_key()).await;
    stage.get("/v1", BAD_KEY).await;
    stage.send("GET /public/x HTTP/1.1\r\nhost: a\r\nx-org-id: forged\r\n\r\n").await;
    stage
}

async fn metrics(stage: &Stage, accept: &str) -> (String, String) {
    let mut client = Client::connect(stage.admin).await;
    client.send(format!("GET /metrics HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\n\r\n")).await;
    let reply = client.read_reply().await;
    assert_eq!(reply.status, 200);
    (reply.header("content-type").unwrap().to_owned(), reply.text())
}

/// Checks an exposition strictly: every family has HELP and TYPE once, followed by its samples, with the names that their
/// type requires. `suffix` is appended to the family's name in a counter's samples.
#[track_caller]
fn check(text: &str, counter_suffix: &str) {
    let mut families = BTreeSet::new();
    let mut samples = BTreeSet::new();
    let (mut helped, mut family) = ("", ("", ""));
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").map(|rest| rest.split_once(' ').unwrap()) {
            assert!(!help.is_empty() && families.insert(name), "{line}");
            helped = name;
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").map(|rest| rest.split_once(' ').unwrap())
        {
            assert_eq!(name, helped, "{line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(!counter_suffix.is_empty() || kind != "counter" || name.ends_with("_total"), "{line}");
            family = (name, kind);
        } else if line.starts_with('#') {
            assert!(line.starts_with("# UNIT ") || line == "# EOF", "{line}");
            assert_ne!(counter_suffix, "", "the text format has no {line}");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(samples.insert(series), "{line} twice");
            let name = series.split('{').next().unwrap();
            let rest = name.strip_prefix(family.0).unwrap_or_else(|| panic!("{line} is not of {family:?}"));
            let expected: &[&str] = match family.1 {
                "counter" => &[counter_suffix],
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            let is_named = name.starts_with("keyward_") || name.starts_with("process_");
            assert!(expected.contains(&rest) && is_named, "{line}");
        }
    }
    assert!(families.len() > 15 && text.ends_with('\n'), "{text}");
}

#[tokio::test]
async fn metrics_are_text_unless_open_metrics_is_accepted() {
    let stage = stage().await;
    for accept in ["*/*", "text/plain;version=0.0.4", "application/openmetrics-text;q=0"] {
        let (kind, text) = metrics(&stage, accept).await;
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
        check(&text, "");
        assert!(text.contains("\n# TYPE keyward_http_requests_total counter\n"), "{text}");
        assert!(text.contains("\n# TYPE keyward_build_info gauge\n"), "{text}");
        assert!(!text.contains("headroom"), "there is no budget: {text}");
    }
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    let (kind, text) = metrics(&stage, accept).await;
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    check(&text, "_total");
    assert!(text.ends_with("\n# EOF\n"));
}

#[tokio::test]
async fn promtool_accepts_metrics() {
    let stage = stage().await;
    let (_, text) = metrics(&stage, "*/*").await;
    let command = std::process::Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = command else {
        eprintln!("skipped: there is no promtool here; the format is checked by another test");
        return;
    };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert_eq!((output.status.code(), &*String::from_utf8_lossy(&said)), (Some(0), ""), "{text}");
}
