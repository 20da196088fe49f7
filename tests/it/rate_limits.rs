//! Rate limits by organization, user and key, through the proxy and the decision listener.

use keyward::listener::Listen;
use keyward_emulator::store::Issue;

use crate::support::http::{HttpClient, HttpVersion};
use crate::support::raw::{Client, Reply};
use crate::support::{Setup, Stage};

const BEARER: &str = "authorization: Bearer ";

async fn start(sections: &'static str, routes: &'static str) -> Stage {
    Stage::with(Setup { sections, routes, ..Setup::default() }).await
}

/// Three requests at once, and one in twenty minutes.
const THREE: &str = "[rate_limits.three]\nrequests = 3\nper = \"1h\"\nheaders = true\ndefault = true";
const ALL: &str = "[[routes]]\npath = \"/*\"\nupstream = \"echo\"";

#[tokio::test]
async fn request_beyond_limit_is_429_until_refill() {
    let stage = start(THREE, ALL).await;
    let key = stage.issue_key();
    for left in ["2", "1", "0"] {
        let reply = stage.get("/v1/x", &key).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("ratelimit-policy"), Some("\"three\";q=3;w=3600"));
        let limit = reply.header("ratelimit").unwrap();
        assert!(limit.starts_with(&format!("\"three\";r={left};t=")), "{limit}");
    }
    let reply = stage.get("/v1/x", &key).await;
    assert_eq!((reply.status, reply.code()), (429, Some("rate_limited")));
    assert_eq!(reply.header("www-authenticate"), None);
    let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1190..=1200).contains(&wait), "{wait}");
    assert_eq!(stage.forwarded_count(), 3);
}

#[tokio::test]
async fn response_beyond_limit_tells_what_is_left() {
    let sections = "[rate_limits.a]\nrequests = 9\nheaders = true\n[rate_limits.b]\nrequests = 1\nper = \"1h\"\nheaders = true";
    let routes = "[[routes]]\npath = \"/*\"\nupstream = \"echo\"\nrate_limits = [\"a\", \"b\"]";
    let stage = start(sections, routes).await;
    // The second key has not been seen beyond the limit, so that it is validated.
    assert_eq!(stage.get("/", &stage.issue_key()).await.status, 200);
    let reply = stage.get("/", &stage.issue_key()).await;
    assert_eq!(reply.status, 429);
    assert_eq!(reply.header("ratelimit-policy"), Some("\"a\";q=9;w=60, \"b\";q=1;w=3600"));
    let limit = reply.header("ratelimit").unwrap();
    assert!(limit.starts_with("\"a\";r=7;t=") && limit.contains(", \"b\";r=0;t=36"), "{limit}");
}

#[tokio::test]
async fn key_beyond_limit_costs_no_call_to_scalekit() {
    let stage = start(THREE, ALL).await;
    let key = stage.issue_key();
    let before = stage.emulator.counts().validations;
    for _ in 0..30 {
        stage.get("/v1/x", &key).await;
    }
    assert_eq!(stage.emulator.counts().validations - before, 3);
    // Nothing is said of the key itself, which is not validated.
    assert!(stage.emulator.revoke(&key));
    assert_eq!(stage.get("/v1/x", &key).await.status, 429);
    let metrics = stage.get_admin("/metrics").await.text();
    for (outcome, count) in [("allowed", 3), ("exceeded_unvalidated", 28)] {
        let line =
            format!("keyward_rate_limit_requests_total{{limit=\"three\",outcome=\"{outcome}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn other_key_of_exhausted_organization_is_refused() {
    let stage = start(THREE, ALL).await;
    let (first, second) = (stage.issue_key(), stage.issue_key());
    for _ in 0..3 {
        assert_eq!(stage.get("/", &first).await.status, 200);
    }
    assert_eq!(stage.get("/", &second).await.status, 429);
    let other = stage.issue(Issue { organization_id: "org_2".into(), ..Issue::default() }).key;
    assert_eq!(stage.get("/", &other).await.status, 200);
    assert_eq!(stage.get("/", "0123456789abcdefghijABCDEFGHIJ").await.status, 401, "not the limit's concern");
}

#[tokio::test]
async fn users_and_keys_have_allowances_of_their_own() {
    for (by, same_user, other_user) in [("user", 429, 200), ("key", 200, 200), ("organization", 429, 429)] {
        let sections =
            format!("[rate_limits.one]\nby = \"{by}\"\nrequests = 1\nper = \"1h\"\ndefault = true");
        let stage = start(sections.leak(), ALL).await;
        let issue = |user: &str| stage.issue(Issue { user_id: user.into(), ..Issue::default() }).key;
        assert_eq!(stage.get("/", &issue("usr_1")).await.status, 200);
        assert_eq!(stage.get("/", &issue("usr_1")).await.status, same_user, "{by}");
        assert_eq!(stage.get("/", &issue("usr_2")).await.status, other_user, "{by}");
    }
}

#[tokio::test]
async fn claim_sets_number_up_to_maximum() {
    let sections = "[rate_limits.plan]\nby = \"key\"\nrequests = 2\nper = \"1h\"\nclaim = \"rate_limit\"\nmax = 4\ndefault = true";
    let stage = start(sections, ALL).await;
    for (value, allowed) in [("3", 3), ("1000000", 4), ("1", 1), ("0", 2), ("-1", 2), ("many", 2), ("3.5", 2)]
    {
        let claims = [("rate_limit".to_owned(), value.to_owned())].into();
        let key = stage.issue(Issue { custom_claims: claims, ..Issue::default() }).key;
        let mut passed = 0;
        while stage.get("/", &key).await.status == 200 {
            passed += 1;
        }
        assert_eq!(passed, allowed, "{value}");
    }
}

#[tokio::test]
async fn request_refused_by_one_limit_costs_no_other() {
    let sections = "[rate_limits.many]\nrequests = 4\nper = \"1h\"\n[rate_limits.few]\nby = \"key\"\nrequests = 2\nper = \"1h\"";
    let routes = "[[routes]]\npath = \"/*\"\nupstream = \"echo\"\nrate_limits = [\"many\", \"few\"]";
    let stage = start(sections, routes).await;
    let (first, second) = (stage.issue_key(), stage.issue_key());
    let mut statuses = Vec::new();
    for key in [&first, &first, &first, &first, &second, &second, &second] {
        statuses.push(stage.get("/", key).await.status);
    }
    assert_eq!(statuses, [200, 200, 429, 429, 200, 200, 429]);
}

#[tokio::test]
async fn concurrent_requests_do_not_exceed_limit() {
    let stage = start("[rate_limits.ten]\nrequests = 10\nper = \"1h\"\ndefault = true", ALL).await;
    let key = stage.issue_key();
    let replies = futures_util::future::join_all((0..60).map(|_| stage.get("/", &key))).await;
    assert_eq!(replies.iter().filter(|reply| reply.status == 200).count(), 10);
    assert_eq!(stage.forwarded_count(), 10);
}

#[tokio::test]
async fn only_named_routes_are_limited() {
    let sections = "[rate_limits.one]\nrequests = 1\nper = \"1h\"\ndefault = true";
    let routes = "[[routes]]\npath = \"/free/*\"\nupstream = \"echo\"\nrate_limits = []\n\
                  [[routes]]\npath = \"/public/*\"\nupstream = \"echo\"\nauth = \"none\"\n\
                  [[routes]]\npath = \"/*\"\nupstream = \"echo\"\npreflight = true";
    let stage = start(sections, routes).await;
    let key = stage.issue_key();
    assert_eq!(stage.get("/", &key).await.status, 200);
    for path in ["/free/x", "/public/x", "/free/x"] {
        assert_eq!(stage.get(path, &key).await.status, 200, "{path}");
    }
    let preflight = "OPTIONS / HTTP/1.1\r\nhost: api.test\r\norigin: https://a.test\r\naccess-control-request-method: GET\r\n\r\n";
    assert_eq!(stage.send(preflight).await.status, 200);
    assert_eq!(stage.get("/", &key).await.status, 429);
}

#[tokio::test]
async fn decision_beyond_limit_is_429_over_both_protocols() {
    let sections = "[decision]\nlisten = \"127.0.0.1:0\"\n[rate_limits.one]\nrequests = 1\nper = \"1h\"\ndefault = true\nheaders = true";
    let stage = start(sections, ALL).await;
    let key = stage.issue_key();
    let Some(Listen::Tcp(address)) = stage.decision else { panic!("a port") };
    let decide = async || -> Reply {
        let mut client = Client::connect(address).await;
        client.send(format!("GET /decision/v1/x HTTP/1.1\r\nhost: api.test\r\n{BEARER}{key}\r\n\r\n")).await;
        client.read_reply().await
    };
    let permitted = decide().await;
    assert_eq!(
        (permitted.status, permitted.header("ratelimit")),
        (200, None),
        "headers of a permit are the service's"
    );
    let denied = decide().await;
    assert_eq!((denied.status, denied.code()), (429, Some("rate_limited")));
    assert!(denied.header("retry-after").is_some());
    assert_eq!(stage.get("/v1/x", &key).await.status, 429, "the proxy shares the allowance");
}

#[tokio::test]
async fn grpc_call_beyond_limit_is_resource_exhausted() {
    let stage = start("[rate_limits.one]\nrequests = 1\nper = \"1h\"\ndefault = true", ALL).await;
    let key = stage.issue_key();
    assert_eq!(stage.get("/", &key).await.status, 200);
    let mut client: HttpClient = stage.connect_http(HttpVersion::Http2).await;
    let mut request = client.request(hyper::Method::POST, "/a.B/C", &key, keyward::body::empty());
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let response = client.send(request).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["grpc-status"]),
        (200, &"8".parse().unwrap())
    );
}
