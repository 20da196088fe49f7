//! Nothing that concerns one hop goes on, all else does as it is, and naming a header of ours in `Connection` has no
//! effect.
//!
//! Input: header lines.

use hyper::header::{HeaderName, HeaderValue};
use keyward::hop_by_hop;
use keyward::identity::{Identity, IdentityHeaders, Settings};

use super::lines::{head_and_rest, headers};

const FIXED: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

pub fn hop_by_hop(data: &[u8]) -> &'static str {
    let sent = headers(head_and_rest(data).0);
    let items = |name: &str| -> Vec<String> {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase();
        let lists: Vec<String> = sent.get_all(name).iter().map(text).collect();
        lists
            .iter()
            .flat_map(|list| list.split(','))
            .map(|item| item.trim_matches([' ', '\t']).to_owned())
            .collect()
    };
    let named = items("connection");
    let goes = |name: &HeaderName| {
        let kept = matches!(name.as_str(), "content-length" | "host");
        !FIXED.contains(&name.as_str()) && (kept || !named.iter().any(|one| one == name.as_str()))
    };
    let mut left = sent.clone();
    hop_by_hop::strip_headers(&mut left);

    let trailers = items("te").iter().any(|item| item == "trailers");
    let mut expected: hyper::HeaderMap = sent
        .iter()
        .filter(|(name, _)| goes(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if trailers {
        expected.insert("te", HeaderValue::from_static("trailers"));
    }
    assert_eq!(left, expected, "of {sent:?}");

    let mut again = left.clone();
    hop_by_hop::strip_headers(&mut again);
    assert_eq!(again, left, "a second time changes nothing");

    let ours = IdentityHeaders::new(Settings::default());
    ours.strip(&mut left);
    ours.set(&identity(), &mut left).unwrap();
    assert_eq!(left.get_all("x-org-id").iter().collect::<Vec<_>>(), ["org_1"]);
    assert_eq!(left.get_all("x-claim-team").iter().collect::<Vec<_>>(), ["a"]);
    if named.iter().any(|name| name.starts_with("x-")) { "named" } else { "plain" }
}

fn identity() -> Identity {
    Identity {
        org_id: HeaderValue::from_static("org_1"),
        org_external_id: None,
        user_id: None,
        user_external_id: None,
        roles: Vec::new(),
        token_id: None,
        claims: [("team".to_owned(), "a".to_owned())].into(),
        expiry: None,
    }
}
