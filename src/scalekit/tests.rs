//! What Keyward adds to the crate's reading of a response, and its budget of retries.

use ::scalekit::error::Error;

use super::*;

const KEY: &str = "0123456789ABCDEFGHIJabcdefxY9Z";

fn valid(token: Token) -> Result<Verdict, Error> {
    interpret_outcome(KEY, Ok(Reply::Token(token)), Timestamp::UNIX_EPOCH)
}

fn token() -> Token {
    Token { organization_id: "org_1".into(), ..Token::default() }
}

#[test]
fn valid_token_becomes_identity() {
    let Ok(Verdict::Valid(identity)) = valid(token()) else { panic!("valid") };
    assert_eq!((identity.org_id.as_bytes(), &identity.user_id), (&b"org_1"[..], &None));
    assert_eq!((&identity.token_id, identity.expiry), (&None, None));
    let whole = Token {
        token_id: "apit_1".into(),
        user_id: Some("usr_1".into()),
        roles: vec!["a".into(), String::new(), "b".into()],
        custom_claims: [("a".to_owned(), "b".to_owned())].into(),
        // The end of protobuf's time.
        expiry: Some(Timestamp::MAX),
        ..token()
    };
    let Ok(Verdict::Valid(identity)) = valid(whole) else { panic!("valid") };
    assert_eq!(identity.token_id.as_ref().unwrap(), "apit_1");
    assert_eq!(identity.user_id.as_ref().unwrap(), "usr_1");
    assert_eq!((&*identity.roles, &*identity.claims["a"]), (&["a".to_owned(), "b".to_owned()][..], "b"));
    assert!(identity.expiry.is_some());
}

#[test]
fn id_outside_visible_ascii_breaks_contract() {
    for id in ["org 1", "org_1\r\nx: y", "ü", "a\u{7f}"] {
        for token in [
            Token { organization_id: id.into(), ..token() },
            Token { user_id: Some(id.into()), ..token() },
            Token { token_id: id.into(), ..token() },
        ] {
            assert!(matches!(valid(token), Err(Error::BrokenContract(_))), "{id}");
        }
    }
}

#[test]
fn failure_names_the_settings_to_look_at() {
    for (error, expected) in [
        (
            Error::AccessToken(Box::new(Error::Credentials)),
            "check SCALEKIT_CLIENT_ID and SCALEKIT_CLIENT_SECRET",
        ),
        (Error::WrongEndpoint("HTTP 404".into()), "(HTTP 404): check SCALEKIT_ENVIRONMENT_URL"),
        (Error::Tls("x".into()), "scalekit.ca_file"),
        (Error::ProxyRefused { proxy: "p:1".into(), status: Some(502) }, "the proxy p:1 refuses"),
        (Error::ProxyRefused { proxy: "p:1".into(), status: Some(502) }, "scalekit.proxy"),
    ] {
        let text = Explained(&error).to_string();
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn retry_budget_is_a_tenth_of_validations() {
    let budget = RetryBudget::default();
    assert_eq!((0..100).filter(|_| budget.withdraw()).count(), 10);
    for _ in 0..1000 {
        budget.deposit();
    }
    assert_eq!((0..100).filter(|_| budget.withdraw()).count(), 10);
    for _ in 0..25 {
        budget.deposit();
    }
    assert_eq!((0..100).filter(|_| budget.withdraw()).count(), 2);
}
