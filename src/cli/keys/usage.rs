//! The use of keys, from the admin ports of all replicas of Keyward that are named.

use std::collections::HashMap;

use anyhow::{Context as _, Result, anyhow, bail};
use hyper::{Method, StatusCode};
use jiff::Timestamp;

use super::super::admin_client::{AdminPort, AdminsArgs};
use crate::admin::usage::MAX_IDS;
use crate::usage::{Coverage, KeyLine, KeyUsage};

/// What one replica knows.
pub(super) struct Counted {
    pub(super) coverage: Coverage,
    /// By token id.
    pub(super) keys: HashMap<String, KeyUsage>,
}

/// What is known of keys at all replicas together.
pub(super) struct Seen {
    ports: Vec<AdminPort>,
}

/// The use of one key at all replicas together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeenKey {
    /// `None` if no replica has seen it.
    pub(super) usage: Option<KeyUsage>,
    /// Since when no use can be missing, at any replica.
    pub(super) complete_since: Timestamp,
}

impl Seen {
    pub(super) fn new(admins: AdminsArgs) -> Result<Self> {
        Ok(Self { ports: admins.find_ports()? })
    }

    /// What is known of these keys, in their order.
    ///
    /// # Errors
    /// When a replica does not answer: what the others know could make a key look unused.
    pub(super) async fn find_keys(&self, ids: &[&str]) -> Result<Vec<SeenKey>> {
        let mut replicas = Vec::new();
        for port in &self.ports {
            replicas.push(count_keys(port, ids).await?);
        }
        Ok(ids.iter().map(|id| SeenKey::merge(id, &replicas)).collect())
    }
}

/// Asks one replica.
///
/// # Errors
/// When it does not answer, or does not count usage. The address is in the text.
pub(super) async fn count_keys(port: &AdminPort, ids: &[&str]) -> Result<Counted> {
    let mut counted: Option<Counted> = None;
    // Even without a key, for what the counts cover.
    for ids in ids.chunks(MAX_IDS) {
        let query: form_urlencoded::Serializer<'_, String> = form_urlencoded::Serializer::new(String::new());
        let query = ids.iter().fold(query, |mut query, id| {
            query.append_pair("id", id);
            query
        });
        let next = ask(port, &format!("/usage?{}", { query }.finish())).await?;
        match &mut counted {
            Some(counted) => counted.keys.extend(next.keys),
            None => counted = Some(next),
        }
    }
    counted.context("there are no keys")
}

async fn ask(port: &AdminPort, path: &str) -> Result<Counted> {
    let answer = port.send(Method::GET, path).await.map_err(|error| {
        anyhow!("{error}; name the admin port of a running Keyward with --admin, one for each replica")
    })?;
    if answer.status != StatusCode::OK {
        let text = super::display::escape_text(answer.text.lines().next().unwrap_or_default());
        bail!("the admin port at {} answers {}: {text}", port.shown_address(), answer.status.as_u16());
    }
    let unexpected =
        || format!("the admin port at {} answers with something else than usage", port.shown_address());
    let mut lines = answer.text.lines();
    let coverage = serde_json::from_str(lines.next().unwrap_or_default()).with_context(unexpected)?;
    let keys = lines.map(|line| {
        let KeyLine { token_id, usage } = serde_json::from_str(line)?;
        Ok((token_id, usage))
    });
    let keys = keys.collect::<serde_json::Result<_>>().with_context(unexpected)?;
    Ok(Counted { coverage, keys })
}

impl SeenKey {
    fn merge(id: &str, replicas: &[Counted]) -> Self {
        let usage = replicas.iter().filter_map(|replica| replica.keys.get(id)).cloned().reduce(merge_usage);
        let complete_since = replicas.iter().map(|replica| replica.coverage.complete_since).max();
        Self { usage, complete_since: complete_since.unwrap_or_default() }
    }

    /// As `--json` has it.
    pub(super) fn to_json(&self) -> serde_json::Value {
        let mut json = serde_json::json!({ "complete_since": self.complete_since });
        if let (Some(fields), Some(Ok(serde_json::Value::Object(usage)))) =
            (json.as_object_mut(), self.usage.as_ref().map(serde_json::to_value))
        {
            fields.extend(usage.into_iter().filter(|(name, _)| name != "organization_id"));
        }
        json
    }
}

/// Status, route and network are those of the replica that saw the key last.
fn merge_usage(one: KeyUsage, other: KeyUsage) -> KeyUsage {
    let (earlier, later) = if one.last_used <= other.last_used { (one, other) } else { (other, one) };
    KeyUsage {
        first_used: earlier.first_used.min(later.first_used),
        requests: earlier.requests.saturating_add(later.requests),
        open_requests: earlier.open_requests.saturating_add(later.open_requests),
        ..later
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn replica(complete_since: i64, used: Option<(i64, i64)>) -> Counted {
        let coverage = Coverage {
            now: at(1000),
            instance: "0".into(),
            started: at(0),
            counted_since: at(0),
            complete_since: at(complete_since),
        };
        let usage = |(first, last)| KeyUsage {
            organization_id: "org_1".into(),
            first_used: at(first),
            last_used: at(last),
            requests: 2,
            open_requests: 1,
            last_status: Some("2xx".into()),
            last_route: last.to_string(),
            last_network: None,
        };
        let keys = used.map(|used| ("apit_1".to_owned(), usage(used))).into_iter().collect();
        Counted { coverage, keys }
    }

    #[test]
    fn counts_of_replicas_are_merged() {
        let replicas = [replica(5, Some((10, 90))), replica(70, Some((20, 80))), replica(6, None)];
        let seen = SeenKey::merge("apit_1", &replicas);
        assert_eq!(seen.complete_since, at(70), "the replica that knows least");
        let usage = seen.usage.unwrap();
        assert_eq!((usage.first_used, usage.last_used), (at(10), at(90)));
        assert_eq!((usage.requests, usage.open_requests, &*usage.last_route), (4, 2, "90"));
        assert_eq!(SeenKey::merge("apit_2", &replicas).usage, None);
    }
}
