//! gRPC through Keyward with tonic as client and as service.

pub mod service;

use std::time::Duration;

use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use keyward_emulator::store::Issue;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use crate::support::tls::{Authority, toml};
use crate::support::{self, Setup, Stage, TEST_TIMEOUT, bind_loopback, wait_until};
use service::{Client, Desk, next, note};

/// One interval, with a margin for a busy machine.
const SOON: Duration = Duration::from_millis(1400);

const ROUTES: &str = r#"
    [[routes]]
    path = "/desk.v1.Desk/*"
    upstream = "echo"

    [[routes]]
    path = "/desk.v1.Admin/*"
    upstream = "echo"
    require = { roles = ["admin"] }
"#;

/// Keyward in front of the service, in cleartext.
async fn stage(setup: Setup) -> (Stage, Desk, Client) {
    let desk = Desk::default();
    let port = desk.serve(None).await;
    let upstream_url = setup.upstream_url.or_else(|| Some(format!("h2c://127.0.0.1:{port}")));
    let routes = if setup.routes == support::ROUTES { ROUTES } else { setup.routes };
    let stage = Stage::with(Setup { routes, upstream_url, ..setup }).await;
    let client = Client::connect(clear(&stage), &stage.issue_key()).await;
    (stage, desk, client)
}

fn clear(stage: &Stage) -> Endpoint {
    Endpoint::from_shared(format!("http://{}", stage.address)).unwrap()
}

/// TLS on both sides, each with a certificate of this authority.
async fn secure(authority: &Authority) -> (Stage, Desk, Client) {
    let desk = Desk::default();
    let (certificate, key) = authority.issue("localhost");
    let read = |path| std::fs::read(path).unwrap();
    let port = desk.serve(Some(Identity::from_pem(read(certificate), read(key)))).await;
    let (certificate, key) = authority.issue("api.test");
    let server = format!("tls = {{ certificate = {}, key = {} }}", toml(&certificate), toml(&key));
    let stage = Stage::with(Setup {
        server: server.leak(),
        upstream: format!("ca_file = {}", toml(&authority.file())).leak(),
        routes: ROUTES,
        upstream_url: Some(format!("https://localhost:{port}")),
        ..Setup::default()
    })
    .await;
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read(authority.file())))
        .domain_name("api.test");
    let endpoint = Endpoint::from_shared(format!("https://{}", stage.address)).unwrap();
    let client = Client::connect(endpoint.tls_config(tls).unwrap(), &stage.issue_key()).await;
    (stage, desk, client)
}

/// A unary call, a client stream, and a bidirectional stream in which each note follows the response to the previous one.
async fn converse(desk: &Desk, client: &mut Client) {
    let answer = client.get("a").await.unwrap();
    assert_eq!((answer.metadata().get("x-desk").unwrap(), answer.get_ref()), (&7.into(), &note("got a")));
    let (pen, put) = client.put();
    tokio::spawn(async move {
        for text in ["one", "two"] {
            pen.send(note(text)).await.unwrap();
        }
    });
    assert_eq!(put.await.unwrap().into_inner(), note("one two"));
    let (pen, mut notes) = client.chat().await.unwrap();
    for text in ["ping", "pong", "ping again"] {
        pen.send(note(text)).await.unwrap();
        assert_eq!(next(&mut notes).await.unwrap(), Some(note(&format!("re: {text}"))));
    }
    pen.send(note("bye")).await.unwrap();
    assert_eq!(next(&mut notes).await.unwrap(), None);
    assert_eq!(notes.trailers().await.unwrap().unwrap().get("x-sum").unwrap(), "42");
    assert_eq!(desk.calls(), 3);
    let seen = desk.last();
    assert_eq!(seen.get("x-org-id").unwrap(), "org_1");
    assert!(seen.get("authorization").is_none());
    assert!(!format!("{seen:?}").contains(&client.key), "{seen:?}");
}

#[tokio::test]
async fn calls_and_streams_pass_over_h2c() {
    let (_stage, desk, mut client) = stage(Setup::default()).await;
    converse(&desk, &mut client).await;
    assert_eq!(desk.last().get("x-forwarded-proto").unwrap(), "http");
}

#[tokio::test]
async fn calls_and_streams_pass_over_tls() {
    let authority = Authority::new();
    let (_stage, desk, mut client) = secure(&authority).await;
    converse(&desk, &mut client).await;
    assert_eq!(desk.last().get("x-forwarded-proto").unwrap(), "https");
}

#[tokio::test]
async fn status_keeps_message_details_and_metadata() {
    let (_stage, _desk, mut client) = stage(Setup::default()).await;
    let whole = |status: Status| {
        let (metadata, expected) = (status.metadata(), service::failure());
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!((status.message(), status.details()), (expected.message(), expected.details()));
        assert_eq!(metadata.get("x-reason").unwrap(), "closed");
        assert_eq!(metadata.get_bin("x-trace-bin"), expected.metadata().get_bin("x-trace-bin"));
        assert!(metadata.get("keyward-error").is_none());
    };
    // A status in the response head, and one after a note.
    whole(client.get("fail").await.unwrap_err());
    let (pen, mut notes) = client.chat().await.unwrap();
    for text in ["first", "fail"] {
        pen.send(note(text)).await.unwrap();
    }
    assert_eq!(next(&mut notes).await.unwrap(), Some(note("re: first")));
    whole(next(&mut notes).await.unwrap_err());
    let unknown = client.call("/desk.v1.Desk/Else", client.request(note(""))).await.unwrap_err();
    assert_eq!((unknown.code(), unknown.message()), (Code::Unimplemented, "no such method"));
}

#[tokio::test]
async fn deadline_reaches_service_unchanged() {
    let (_stage, desk, mut client) =
        stage(Setup { upstream: "response_timeout = \"300ms\"", ..Setup::default() }).await;
    // A status of the service.
    let mut request = client.request(note("give up"));
    request.metadata_mut().insert("grpc-timeout", MetadataValue::from_static("1234567u"));
    let status = client.call("/desk.v1.Desk/Get", request).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "not in time"));
    assert_eq!(desk.last().get("grpc-timeout").unwrap(), "1234567u");
    // Keyward's own status.
    let status = client.get("wait").await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "Upstream timeout"));
    assert_eq!(status.metadata().get("keyward-error").unwrap(), "upstream_timeout");
    wait_until(|| desk.open() == 0).await;
    // The client's deadline, which the service sees.
    let mut request = client.request(note("wait"));
    request.set_timeout(Duration::from_millis(100));
    let began = Instant::now();
    client.call("/desk.v1.Desk/Get", request).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_millis(300), "{:?}", began.elapsed());
    wait_until(|| desk.open() == 0).await;
    assert_eq!(desk.calls(), 3);
}

#[tokio::test]
async fn refusals_are_statuses_with_message() {
    let sections = "[negative_cache]\nttl = \"0s\"";
    let (stage, desk, mut client) = stage(Setup { sections, ..Setup::default() }).await;
    let check = |status: Status, code, error: &str| {
        assert_eq!(status.code(), code, "{status:?}");
        assert_eq!(status.metadata().get("keyward-error").unwrap(), error);
        assert!(!status.message().is_empty(), "{status:?}");
    };
    // A fictitious key.
    let unknown = "0123456789ABCDEFGHIJabcdefghij";
    for (key, error) in [("", "missing_credential"), (unknown, "invalid_key"), ("short", "invalid_key")] {
        let mut other = client.with_key(key);
        check(other.get("a").await.unwrap_err(), Code::Unauthenticated, error);
        check(other.chat().await.unwrap_err(), Code::Unauthenticated, error);
        check(other.put().1.await.unwrap_err(), Code::Unauthenticated, error);
    }
    for (path, code, error) in [
        ("/desk.v1.Admin/Close", Code::PermissionDenied, "not_permitted"),
        ("/other.v1.Desk/Get", Code::Unimplemented, "no_route"),
    ] {
        check(client.call(path, client.request(note("a"))).await.unwrap_err(), code, error);
    }
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(Answer::status(500))));
    check(client.get("a").await.unwrap_err(), Code::Unavailable, "validation_unavailable");
    check(client.chat().await.unwrap_err(), Code::Unavailable, "validation_unavailable");
    assert_eq!(desk.calls(), 0);
    stage.emulator.clear_faults();
}

#[tokio::test]
async fn unreachable_service_is_unavailable() {
    let (listener, address) = bind_loopback().await;
    drop::<TcpListener>(listener);
    let upstream_url = Some(format!("h2c://{address}"));
    let (_stage, _desk, mut client) = stage(Setup { upstream_url, ..Setup::default() }).await;
    let status = client.get("a").await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "Upstream unreachable"));
    let status = client.chat().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "Upstream unreachable"));
}

#[tokio::test]
async fn cancellation_reaches_service_and_connection_stays() {
    let (_stage, desk, mut client) = stage(Setup::default()).await;
    let mut other = client.clone();
    let waiting = tokio::spawn(async move { other.get("wait").await });
    let (pen, mut notes) = client.chat().await.unwrap();
    for text in ["a", "wait"] {
        pen.send(note(text)).await.unwrap();
    }
    // tonic cancels a bidirectional stream only after it has sent everything.
    drop(pen);
    next(&mut notes).await.unwrap().unwrap();
    let (up, put) = client.put();
    let putting = tokio::spawn(put);
    up.send(note("a")).await.unwrap();
    wait_until(|| desk.open() == 3).await;
    waiting.abort();
    wait_until(|| desk.open() == 2).await;
    drop(notes);
    wait_until(|| desk.open() == 1).await;
    putting.abort();
    wait_until(|| desk.open() == 0).await;
    client.get("a").await.unwrap();
}

#[tokio::test]
async fn revoked_grpc_stream_ends_with_status_within_interval() {
    let sections = "[streams]\nrevalidate_every = \"1s\"";
    let (stage, desk, mut client) = stage(Setup { sections, ..Setup::default() }).await;
    let mut other = client.with_key(&stage.issue_key());
    let (stays, mut answers) = other.chat().await.unwrap();
    let (pen, mut notes) = client.chat().await.unwrap();
    pen.send(note("a")).await.unwrap();
    assert_eq!(next(&mut notes).await.unwrap(), Some(note("re: a")));
    // The response to this one has not begun.
    let (up, put) = client.put();
    let put = tokio::spawn(put);
    up.send(note("a")).await.unwrap();
    wait_until(|| desk.open() == 3).await;
    stage.emulator.revoke(&client.key);
    let began = Instant::now();
    let status = next(&mut notes).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    let status = put.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    wait_until(|| desk.open() == 1).await;
    stays.send(note("b")).await.unwrap();
    assert_eq!(next(&mut answers).await.unwrap(), Some(note("re: b")));
}

#[tokio::test]
async fn unconfirmed_streams_end_with_unavailable() {
    let sections = "[streams]\nrevalidate_every = \"1s\"";
    let (stage, desk, mut client) = stage(Setup { sections, ..Setup::default() }).await;
    let (pen, mut notes) = client.chat().await.unwrap();
    pen.send(note("a")).await.unwrap();
    assert_eq!(next(&mut notes).await.unwrap(), Some(note("re: a")));
    let (up, put) = client.put();
    let put = tokio::spawn(put);
    up.send(note("a")).await.unwrap();
    wait_until(|| desk.open() == 2).await;
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(Answer::status(500))));
    let status = next(&mut notes).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let status = put.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    wait_until(|| desk.open() == 0).await;
}

#[tokio::test]
async fn stream_of_lost_role_ends_with_permission_denied() {
    let sections = "[streams]\nrevalidate_every = \"1s\"";
    let routes =
        ROUTES.replacen("upstream = \"echo\"", "upstream = \"echo\"\nrequire = { roles = [\"admin\"] }", 1);
    let (stage, desk, client) = stage(Setup { sections, routes: routes.leak(), ..Setup::default() }).await;
    let issue = Issue { user_id: "usr_1".into(), roles: vec!["admin".into()], ..Issue::default() };
    let mut client = client.with_key(&stage.issue(issue).key);
    let (_pen, mut notes) = client.chat().await.unwrap();
    let demoted = r#"{"token_info":{"organization_id":"org_1","user_id":"usr_1","roles":["reader"]}}"#;
    let answer = Answer { body: Some(demoted.into()), ..Answer::status(200) };
    stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(answer)));
    let status = next(&mut notes).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "Not permitted"));
    wait_until(|| desk.open() == 0).await;
}

#[tokio::test]
async fn drain_lets_open_stream_finish() {
    let server = "drain_delay = \"100ms\"\ndrain_timeout = \"8s\"";
    let (mut stage, _desk, mut client) = stage(Setup { server, ..Setup::default() }).await;
    let (pen, mut notes) = client.chat().await.unwrap();
    pen.send(note("before")).await.unwrap();
    assert_eq!(next(&mut notes).await.unwrap(), Some(note("re: before")));
    stage.stop.cancel();
    // Nothing new is accepted from here on.
    let refused = async { while tokio::net::TcpStream::connect(stage.address).await.is_ok() {} };
    timeout(TEST_TIMEOUT, refused).await.unwrap();
    for text in ["during", "still"] {
        pen.send(note(text)).await.unwrap();
        assert_eq!(next(&mut notes).await.unwrap(), Some(note(&format!("re: {text}"))));
    }
    assert!(!stage.running.is_finished());
    pen.send(note("bye")).await.unwrap();
    assert_eq!(next(&mut notes).await.unwrap(), None);
    assert_eq!(notes.trailers().await.unwrap().unwrap().get("x-sum").unwrap(), "42");
    drop((pen, notes));
    timeout(TEST_TIMEOUT, &mut stage.running).await.expect("it ends in time").unwrap();
}

#[tokio::test]
async fn stream_beyond_drain_timeout_ends_with_status() {
    let server = "drain_timeout = \"300ms\"";
    let (mut stage, _desk, mut client) = stage(Setup { server, ..Setup::default() }).await;
    let (_pen, mut notes) = client.chat().await.unwrap();
    stage.stop.cancel();
    let status = next(&mut notes).await.unwrap_err();
    assert_ne!(status.code(), Code::Ok);
    timeout(TEST_TIMEOUT, &mut stage.running).await.expect("it ends in time").unwrap();
}

#[tokio::test]
async fn messages_of_4_mib_pass_both_ways() {
    let (_stage, _desk, mut client) = stage(Setup::default()).await;
    let mut large = note("large");
    large.payload = (0..4 * 1024 * 1024_u32).map(|at| (at % 251) as u8).collect();
    let answer = client.call("/desk.v1.Desk/Get", client.request(large.clone())).await.unwrap();
    assert!(answer.into_inner().payload == large.payload);
    let (pen, mut notes) = client.chat().await.unwrap();
    for _ in 0..3 {
        pen.send(large.clone()).await.unwrap();
        assert!(next(&mut notes).await.unwrap().unwrap().payload == large.payload);
    }
}
