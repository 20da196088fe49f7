//! Scalekit over gRPC: the same verdicts as over REST.

use keyward::keys::{KeyError, Keys};
use keyward::scalekit::{Settings, build_client, origin_settings};
use keyward::secret::{Secret, SecretSource};
use keyward_emulator::access::Permission;
use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use keyward_emulator::store::Issue;
use scalekit::ExposeSecret;
use scalekit::error::{Error, Refusal};
use scalekit::status::Code;
use scalekit::token::{Claims, NewToken, PageRequest, TokenUpdate};
use scalekit::transport::Transport;
use tokio_util::sync::CancellationToken;

use crate::support::{Setup, Stage, TEST_TIMEOUT, bind_loopback};

async fn stage() -> Stage {
    Stage::with(Setup { scalekit: "transport = \"grpc\"\ntimeout = \"500ms\"", ..Setup::default() }).await
}

fn status(status: u16) -> Effect {
    Effect::Answer(Answer::status(status))
}

#[tokio::test]
async fn good_key_is_forwarded_with_full_identity() {
    let stage = stage().await;
    let issued = stage.issue(Issue {
        organization_external_id: "acme".into(),
        user_id: "usr_1".into(),
        user_external_id: "joe".into(),
        roles: vec!["admin".into(), "a,b".into()],
        custom_claims: Claims::from([("environment".to_owned(), "prod\nuction".to_owned())]),
        expiry: Some("2999-01-01T00:00:00.25Z".parse().unwrap()),
        ..Issue::default()
    });
    assert_eq!(stage.get("/v1", &issued.key).await.status, 200);
    let received = stage.last_request();
    for (name, value) in [
        ("x-org-id", "org_1"),
        ("x-org-external-id", "acme"),
        ("x-user-id", "usr_1"),
        ("x-user-external-id", "joe"),
        ("x-roles", "admin,a%2Cb"),
        ("x-token-id", &issued.token_id),
        ("x-claim-environment", "prod%0Auction"),
    ] {
        assert_eq!(received.header(name), Some(value), "{name}");
    }
    assert_eq!(stage.get("/v1", &stage.issue_key()).await.status, 200);
    assert_eq!(stage.last_request().header("x-user-id"), None, "an organization's key");
}

#[tokio::test]
async fn revoked_expired_and_unknown_keys_are_401() {
    let stage = stage().await;
    let revoked = stage.issue_key();
    assert_eq!(stage.get("/v1", &revoked).await.status, 200);
    stage.emulator.revoke(&revoked);
    let expired =
        stage.issue(Issue { expiry: Some("2001-01-01T00:00:00Z".parse().unwrap()), ..Issue::default() });
    for key in [&revoked, &expired.key, "0123456789ABCDEFGHIJabcdefghij"] {
        for _ in 0..2 {
            let before = stage.emulator.counts().validations;
            let reply = stage.get("/v1", key).await;
            assert_eq!((reply.status, reply.code()), (401, Some("invalid_key")));
            assert!(stage.emulator.counts().validations <= before + 1);
        }
    }
    let before = stage.emulator.counts().validations;
    stage.get("/v1", &revoked).await;
    assert_eq!(stage.emulator.counts().validations, before, "remembered");
}

#[tokio::test]
async fn grpc_error_without_verdict_is_503_not_remembered() {
    let stage = stage().await;
    for effect in [
        // UNAUTHENTICATED and PERMISSION_DENIED concern Keyward's own credentials, not the key.
        status(401),
        status(403),
        status(429),
        status(500),
        status(503),
        status(504),
        status(501),
        status(409),
        // OK without a message.
        status(200),
        Effect::Hang,
        Effect::Reset,
        Effect::Garbage,
        Effect::Truncated,
    ] {
        let (row, key) = (format!("{effect:?}"), stage.issue_key());
        let forwarded = stage.forwarded_count();
        stage.emulator.set_fault(Fault::new(Target::Validate, effect));
        let reply = stage.get("/v1", &key).await;
        stage.emulator.clear_faults();
        assert_eq!((reply.status, reply.code()), (503, Some("validation_unavailable")), "{row}");
        assert_eq!(stage.forwarded_count(), forwarded, "{row}");
        // An open breaker probes within a second.
        let again = async {
            loop {
                let reply = stage.get("/v1", &key).await;
                if reply.status != 503 {
                    return reply;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let after = tokio::time::timeout(TEST_TIMEOUT, again).await.expect("a verdict in time");
        assert_eq!(after.status, 200, "{row}");
    }
}

#[tokio::test]
async fn refused_access_token_is_renewed_and_call_repeated() {
    // Forced renewals are at least a second apart.
    let stage = Stage::with(Setup { scalekit: "transport = \"grpc\"", ..Setup::default() }).await;
    let key = stage.issue_key();
    assert_eq!(stage.get("/v1", &key).await.status, 200);
    let before = stage.emulator.counts().token_fetches;
    stage.emulator.expire_access_tokens();
    assert_eq!(stage.get("/v1", &key).await.status, 200);
    assert_eq!(stage.emulator.counts().token_fetches, before + 1);
}

#[tokio::test]
async fn missing_permission_is_shown_on_readyz() {
    let setup = Setup { scalekit: "transport = \"grpc\"", ready: false, ..Setup::default() };
    let mut setup = setup;
    setup.emulator.permissions = vec![Permission::Write];
    let stage = Stage::with(setup).await;
    let told = async {
        loop {
            let reply = stage.get_admin("/readyz").await;
            if reply.text().contains("permission") {
                return reply;
            }
        }
    };
    let reply = tokio::time::timeout(TEST_TIMEOUT, told).await.expect("a reason in time");
    assert!(reply.text().contains("api_credentials:read"), "{}", reply.text());
}

#[tokio::test]
async fn key_lifecycle_works_over_rest_and_grpc() {
    for transport in [Transport::Rest, Transport::Grpc] {
        let ends = CancellationToken::new();
        let emulator = keyward_emulator::Emulator::new(Default::default());
        let (listener, address) = bind_loopback().await;
        let (own, until) = (emulator.clone(), ends.clone());
        tokio::spawn(async move { own.serve(listener, until).await });
        let environment = format!("http://{address}").parse().unwrap();
        let secret = || SecretSource::Value(Secret::new("dev"));
        let settings = Settings {
            origin: origin_settings(&environment, None),
            environment,
            proxy: None,
            client_id: secret(),
            client_secret: secret(),
            timeout: std::time::Duration::from_secs(2),
            transport: Transport::Rest,
        }
        .with_transport(transport);
        let keys = Keys::new(build_client(&settings, Default::default()).unwrap());

        let new = NewToken {
            organization_id: "org_1".into(),
            user_id: Some("usr_1".into()),
            custom_claims: Claims::from([("team".to_owned(), "ü\r\n".to_owned())]),
            expiry: Some("2999-01-01T00:00:00Z".parse().unwrap()),
            description: Some("CI".into()),
        };
        let created = keys.create(&new).await.unwrap();
        assert_eq!(keyward::keys::to_successor(&created.info), new, "{transport:?}");
        assert_eq!(
            created.info.token_suffix.as_deref(),
            created.token.expose_secret().get(created.token.expose_secret().len() - 4..)
        );
        let id = created.info.token_id.parse().unwrap();
        assert_eq!(keys.find(&id).await.unwrap(), created.info);

        let listing =
            PageRequest { organization_id: "org_1".into(), page_size: Some(1), ..PageRequest::default() };
        keys.create(&NewToken { organization_id: "org_1".into(), ..NewToken::default() }).await.unwrap();
        let page = keys.list(&listing).await.unwrap();
        assert_eq!((page.tokens.len(), page.total_count), (1, 2));
        let next =
            keys.list(&PageRequest { page_token: page.next_page_token, ..listing.clone() }).await.unwrap();
        assert_eq!(next.tokens, std::slice::from_ref(&created.info));
        assert_eq!(next.next_page_token, None);

        let change = TokenUpdate {
            custom_claims: Some(Claims::from([("a".into(), "b".into())])),
            description: Some(String::new()),
        };
        let changed = keys.update(&id, &change).await.unwrap();
        assert_eq!((changed.custom_claims.len(), changed.description), (1, None));

        let junk = PageRequest { page_token: Some("junk".into()), ..listing };
        let refused = keys.list(&junk).await.unwrap_err();
        assert!(
            matches!(&refused, KeyError::Call(Error::Refused(Refusal { code: Code::InvalidArgument, .. }))),
            "{refused}"
        );

        keys.revoke(&id).await.unwrap();
        keys.revoke(&id).await.unwrap();
        assert!(matches!(keys.find(&id).await, Err(KeyError::NotFound)));
        assert!(matches!(keys.revoke(&"apit_0".parse().unwrap()).await, Err(KeyError::NotFound)));

        emulator.set_permissions(&[Permission::Read]);
        for error in [keys.create(&new).await.map(|_| ()).unwrap_err(), keys.revoke(&id).await.unwrap_err()] {
            assert!(matches!(error, KeyError::Call(Error::Permission(_))), "{transport:?}: {error}");
        }
        emulator.set_permissions(&[Permission::Read, Permission::Write, Permission::Rotate]);
        emulator.set_fault(Fault::new(Target::Create, Effect::Truncated).times(1));
        let lost = keys.create(&new).await.unwrap_err();
        assert!(matches!(lost, KeyError::Lost { .. }), "{transport:?}: {lost}");
        ends.cancel();
    }
}
