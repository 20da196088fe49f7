//! The client over real sockets: every call, the renewal of the access token, and failures.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use scalekit::access_token::Fetched;
use scalekit::client::Client;
use scalekit::error::{Class, Error};
use scalekit::response::HttpResponse;
use scalekit::token::{Claims, NewToken, PageRequest, Token, TokenUpdate};
use scalekit::transport::Transport;
use scalekit::validate::Validation;
use scalekit::{ExposeSecret, rest};
use tokio::net::TcpListener;

use crate::support::server::{Effect, Scalekit, credentials, refusal};
use crate::support::{TOKEN, token};

const BOTH: [Transport; 2] = [Transport::Rest, Transport::Grpc];
const UNKNOWN: &str = "0123456789ABCDEFGHIJabcdef0000";

fn page() -> PageRequest {
    PageRequest { organization_id: "org_1".into(), ..PageRequest::default() }
}

fn new_token() -> NewToken {
    NewToken { organization_id: "org_1".into(), ..NewToken::default() }
}

fn update() -> TokenUpdate {
    TokenUpdate { description: Some("new".into()), ..TokenUpdate::default() }
}

async fn make_every_call(client: &Client) {
    assert_eq!(client.validate_token(TOKEN).await, Ok(Validation::Valid(token())));
    assert_eq!(client.validate_token(UNKNOWN).await, Ok(Validation::Invalid));
    assert_eq!(client.find_token("apit_1").await, Ok(Some(token())));
    assert_eq!(client.find_token("apit_2").await, Ok(None));
    let created = client.create_token(&new_token()).await.unwrap();
    assert_eq!((created.token.expose_secret(), created.info), (TOKEN, token()));
    let listed = client.list_tokens(&page()).await.unwrap();
    assert_eq!((listed.tokens.len(), listed.total_count), (30, 31));
    assert_eq!(client.update_token("apit_1", &update()).await, Ok(token()));
    assert_eq!(client.invalidate_token("apit_1").await, Ok(()));
    for outcome in
        [client.update_token("apit_2", &update()).await.map(drop), client.invalidate_token("apit_2").await]
    {
        let error = outcome.unwrap_err();
        assert!(error.is_not_found() && error.class() == Class::Refused, "{error}");
    }
    assert_eq!(client.probe().await, Ok(()));
}

#[tokio::test]
async fn every_call_works_over_rest_and_grpc() {
    let (clear, tls) = (Scalekit::start().await, Scalekit::start_tls().await);
    for (scalekit, transport, version) in [
        (&clear, Transport::Rest, http::Version::HTTP_11),
        (&clear, Transport::Grpc, http::Version::HTTP_2),
        (&tls, Transport::Rest, http::Version::HTTP_2),
        (&tls, Transport::Grpc, http::Version::HTTP_2),
    ] {
        scalekit.requests.lock().unwrap().clear();
        let before = scalekit.fetches();
        make_every_call(&scalekit.client(transport)).await;
        assert_eq!(scalekit.fetches() - before, 1, "one access token for all calls");
        for request in scalekit.requests.lock().unwrap().iter() {
            assert_eq!(request.version, version, "{}", request.uri);
            let agent = concat!("scalekit-rust/", env!("CARGO_PKG_VERSION"));
            assert_eq!(request.headers["user-agent"], agent);
            assert!(request.headers.contains_key("content-length") || request.method == "GET");
        }
    }
}

#[tokio::test]
async fn malformed_token_is_invalid_without_a_call() {
    let scalekit = Scalekit::start().await;
    let client = scalekit.client(Transport::Rest);
    for text in ["apit_1", "APIT_1", "", "a b", &"a".repeat(513)] {
        assert_eq!(client.validate_token(text).await, Ok(Validation::Invalid), "{text}");
    }
    let claims = Some(Claims::new());
    for error in [
        client.create_token(&NewToken::default()).await.map(drop).unwrap_err(),
        client.list_tokens(&PageRequest { page_size: Some(31), ..page() }).await.map(drop).unwrap_err(),
        client.update_token("apit_1", &TokenUpdate { custom_claims: claims, ..update() }).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::Invalid(_)), "{error}");
    }
    assert_eq!(scalekit.requests.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn fifty_refused_calls_cause_one_renewal() {
    for transport in BOTH {
        let scalekit = Scalekit::start().await;
        let client = scalekit.client(transport);
        client.authenticate().await.unwrap();
        scalekit.expire_access_tokens();
        let calls: Vec<_> = (0..50)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.validate_token(TOKEN).await })
            })
            .collect();
        for call in calls {
            assert!(matches!(call.await.unwrap(), Ok(Validation::Valid(_))));
        }
        assert_eq!(scalekit.fetches(), 2);
        assert!(scalekit.calls() <= 100, "each is made once more: {}", scalekit.calls());
    }
}

#[tokio::test]
async fn call_refused_twice_is_credentials_error() {
    for transport in BOTH {
        let scalekit = Scalekit::start().await;
        let client = scalekit.client(transport);
        scalekit.refuse_all_access_tokens();
        assert_eq!(client.validate_token(TOKEN).await, Err(Error::Credentials));
        assert_eq!((scalekit.fetches(), scalekit.calls()), (2, 2));
    }
}

#[tokio::test]
async fn rotated_secret_is_used_by_same_client() {
    let scalekit = Scalekit::start().await;
    let secret = Arc::new(Mutex::new(Ok("secret".to_owned())));
    let mut settings = scalekit.settings(Transport::Rest);
    let provided = Arc::clone(&secret);
    settings.credentials =
        Box::new(move || provided.lock().unwrap().clone().map(|secret| credentials(&secret)));
    let outcomes = Arc::new(Mutex::new(Vec::new()));
    let observed = Arc::clone(&outcomes);
    settings.observer = Some(Box::new(move |fetched| {
        let outcome = match fetched {
            Fetched::Renewed(lifetime) => format!("{lifetime:?}"),
            Fetched::Failed { error, failures } => format!("{} {failures}", error.kind()),
        };
        observed.lock().unwrap().push(outcome);
    }));
    let client = Client::new(settings).unwrap();
    client.validate_token(TOKEN).await.unwrap();
    scalekit.set_secret("second");
    client.validate_token(TOKEN).await.expect("the access token that is there is good");
    *secret.lock().unwrap() = Err("cannot read it".to_owned());
    scalekit.expire_access_tokens();
    let error = client.validate_token(TOKEN).await.unwrap_err();
    assert_eq!((error.kind(), error.class()), ("secret", Class::Misconfigured));
    assert_eq!(error.to_string(), "cannot get an access token: cannot read it");
    *secret.lock().unwrap() = Ok("second".to_owned());
    client.validate_token(TOKEN).await.unwrap();
    let outcomes = outcomes.lock().unwrap();
    assert_eq!((outcomes.first().unwrap().as_str(), outcomes[1].as_str()), ("3600s", "secret 1"));
}

#[tokio::test]
async fn token_endpoint_failures_are_distinguished() {
    let text = |status: u16, body: &str| {
        Effect::Respond(HttpResponse {
            status: status.try_into().unwrap(),
            body: body.to_owned().into(),
            ..HttpResponse::default()
        })
    };
    for (effect, kind, words) in [
        (refusal(401), "credentials", "refuses the client's own credentials"),
        (refusal(403), "permission", "grant it api_credentials:read"),
        (refusal(429), "throttled", "throttles this client"),
        (refusal(500), "down", "answered 500"),
        (text(404, "<html>"), "wrong_endpoint", "no Scalekit token API at this URL (HTTP 404)"),
        (text(200, "<html>"), "wrong_endpoint", "its token endpoint returned no access_token"),
        (text(302, ""), "wrong_endpoint", "HTTP 302"),
        (Effect::Close, "unreachable", "connection to Scalekit broke"),
        (
            Effect::Truncate(HttpResponse { body: "{".into(), ..HttpResponse::default() }),
            "unreachable",
            "broke off",
        ),
    ] {
        let scalekit = Scalekit::start().await;
        scalekit.affect_fetches(effect);
        let client = scalekit.client(Transport::Rest);
        let error = client.authenticate().await.unwrap_err();
        assert!(matches!(error, Error::AccessToken(_)), "{error}");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(words) && !error.to_string().contains("http://"), "{error}");
        assert!(!error.is_outcome_unknown(), "the call was never sent");
        scalekit.affect_fetches(None);
        assert_eq!(client.invalidate_token("apit_1").await, Ok(()), "it heals by itself");
    }
}

#[tokio::test]
async fn rest_call_failures_are_distinguished() {
    let whole = rest::encode_response(Ok(&scalekit::call::Reply::Token(token())));
    let huge = HttpResponse { body: vec![b' '; 300 * 1024].into(), ..whole.clone() };
    for (effect, kind, unknown) in [
        (refusal(403), "permission", false),
        (refusal(429), "throttled", false),
        (refusal(503), "down", true),
        (refusal(302), "wrong_endpoint", false),
        (Effect::Close, "unreachable", true),
        (Effect::Truncate(whole.clone()), "unreachable", true),
        (Effect::Respond(huge), "broken_answer", true),
        (Effect::Respond(HttpResponse { body: "{}".into(), ..whole }), "broken_answer", true),
        (Effect::Hang, "timeout", true),
    ] {
        let scalekit = Scalekit::start().await;
        let mut settings = scalekit.settings(Transport::Rest);
        settings.timeout = Duration::from_millis(500);
        let client = Client::new(settings).unwrap();
        client.authenticate().await.unwrap();
        scalekit.affect_calls(effect);
        let error = client.update_token("apit_1", &update()).await.unwrap_err();
        assert_eq!((error.kind(), error.is_outcome_unknown()), (kind, unknown), "{error}");
        assert!(!error.to_string().contains("http://"), "{error}");
        assert_eq!(scalekit.calls(), 1, "nothing that changes is repeated");
        scalekit.affect_calls(None);
        assert_eq!(client.update_token("apit_1", &update()).await, Ok(token()));
    }
}

#[tokio::test]
async fn redirect_is_not_followed() {
    for status in [301, 302, 307, 308] {
        let (scalekit, other) = (Scalekit::start().await, Scalekit::start().await);
        let mut redirect = HttpResponse { status: status.try_into().unwrap(), ..HttpResponse::default() };
        redirect.headers.insert("location", format!("{}/stolen", other.url()).parse().unwrap());
        scalekit.affect_fetches(Effect::Respond(redirect.clone()));
        let client = scalekit.client(Transport::Rest);
        let error = client.authenticate().await.unwrap_err();
        assert!(error.to_string().contains(&format!("HTTP {status}")), "{error}");
        scalekit.affect_fetches(None);
        scalekit.affect_calls(Effect::Respond(redirect));
        let error = client.validate_token(TOKEN).await.unwrap_err();
        assert_eq!(error, Error::WrongEndpoint(format!("HTTP {status}")));
        assert_eq!(other.requests.lock().unwrap().len(), 0, "no secret and no token goes there");
    }
}

#[tokio::test]
async fn grpc_call_failures_are_distinguished() {
    let no_status = scalekit::grpc::encode_response(Ok(&scalekit::call::Reply::Token(token())));
    let no_status = HttpResponse { trailers: http::HeaderMap::new(), ..no_status };
    for (effect, kind) in [
        (refusal(503), "down"),
        (refusal(404), "wrong_endpoint"),
        (refusal(200), "wrong_endpoint"),
        (Effect::Close, "unreachable"),
        (Effect::Respond(no_status.clone()), "unreachable"),
        (Effect::Truncate(no_status), "unreachable"),
    ] {
        let scalekit = Scalekit::start().await;
        let client = scalekit.client(Transport::Grpc);
        scalekit.affect_calls(effect);
        let error = client.validate_token(TOKEN).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        scalekit.affect_calls(None);
        assert!(client.validate_token(TOKEN).await.is_ok());
    }
}

#[tokio::test]
async fn unreachable_and_untrusted_servers_are_distinguished() {
    // Nothing listens there.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let scalekit = Scalekit::start_tls().await;
    let mut settings = scalekit.settings(Transport::Rest);
    settings.environment = url.parse().unwrap();
    let error = Client::new(settings).unwrap().authenticate().await.unwrap_err();
    assert!(
        matches!(&error, Error::AccessToken(inner) if matches!(**inner, Error::Unreachable(_))),
        "{error}"
    );
    assert!(error.to_string().contains("refused"), "{error}");

    // An untrusted certificate, and a port without TLS.
    let (other, clear) = (Scalekit::start_tls().await, Scalekit::start().await);
    let clear = clear.url().replace("http:", "https:");
    for (transport, url) in [
        (Transport::Rest, scalekit.url()),
        (Transport::Grpc, scalekit.url()),
        (Transport::Rest, clear.clone()),
    ] {
        let mut settings = other.settings(transport);
        settings.environment = url.parse().unwrap();
        let error = Client::new(settings).unwrap().authenticate().await.unwrap_err();
        assert_eq!(error.kind(), "tls", "{error}");
        assert!(error.to_string().contains("no trusted TLS connection to Scalekit"), "{error}");
    }
    // Nor does the platform trust it.
    let mut settings = scalekit.settings(Transport::Rest);
    settings.tls = None;
    if let Ok(client) = Client::new(settings) {
        assert_eq!(client.authenticate().await.unwrap_err().kind(), "tls");
    }
}

#[tokio::test]
async fn connection_closed_by_server_is_replaced() {
    let scalekit = Scalekit::start().await;
    let client = scalekit.client(Transport::Rest);
    client.authenticate().await.unwrap();
    let began = Instant::now();
    for _ in 0..5 {
        scalekit.affect_calls(Effect::Close);
        client.validate_token(TOKEN).await.unwrap_err();
        scalekit.affect_calls(None);
        let found: Option<Token> = client.find_token("apit_1").await.unwrap();
        assert_eq!(found, Some(token()));
    }
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[test]
fn client_outlives_runtime_of_its_keeper() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let server = tokio::runtime::Runtime::new().unwrap();
    let scalekit = server.block_on(Scalekit::start());
    // Built outside of any runtime, as in a synchronous main.
    let client = scalekit.client(Transport::Rest);
    for _ in 0..2 {
        let outcome = runtime().block_on(client.validate_token(TOKEN));
        assert!(matches!(outcome, Ok(Validation::Valid(_))), "{outcome:?}");
        scalekit.expire_access_tokens();
    }
}

#[tokio::test]
async fn keeper_ends_with_last_clone() {
    let scalekit = Scalekit::start().await;
    let client = scalekit.client(Transport::Rest);
    let access_token = Arc::clone(client.clone().access_token());
    client.authenticate().await.unwrap();
    assert!(access_token.is_available());
    assert!(Arc::strong_count(&access_token) > 1);
    drop(client);
    tokio::time::timeout(Duration::from_secs(5), async {
        while Arc::strong_count(&access_token) > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the task lets go of it");
}

#[tokio::test]
async fn debug_of_client_and_settings_shows_no_secret() {
    let scalekit = Scalekit::start().await;
    let mut settings = scalekit.settings(Transport::Rest);
    settings.proxy = scalekit::proxy::Proxy::Server("http://user:pass@127.0.0.1:1".parse().unwrap());
    let text = format!("{settings:?} {:?}", scalekit.client(Transport::Rest));
    assert!(text.contains("localhost") && !text.contains("pass") && !text.contains("secret"), "{text}");
}
