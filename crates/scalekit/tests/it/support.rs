//! Helpers that the tests share.

use scalekit::call::{Operation, Reply};
use scalekit::token::{Claims, Created, Page, Token};

#[cfg(feature = "client")]
pub(crate) mod server;

/// A token whose last four characters are those of `token()`.
pub(crate) const TOKEN: &str = "0123456789ABCDEFGHIJabcdefxY9Z";

/// Every field is set.
pub(crate) fn token() -> Token {
    let text = |text: &str| Some(text.to_owned());
    Token {
        token_id: "apit_1".into(),
        organization_id: "org_1".into(),
        organization_external_id: text("ext-org"),
        user_id: text("usr_1"),
        user_external_id: text("ext-usr"),
        email: text("user@example.com"),
        roles: vec!["admin".into(), "reader".into()],
        custom_claims: Claims::from([("team".into(), "ü \"\r\n".into())]),
        description: text("CI"),
        token_suffix: text("xY9Z"),
        created_at: "2026-11-01T00:00:00.123Z".parse().ok(),
        expiry: "2027-12-01T00:00:00.123456789Z".parse().ok(),
    }
}

/// Every reply, with its call.
pub(crate) fn replies() -> Vec<(Operation, Reply)> {
    let bare = Token { token_id: "apit_1".into(), organization_id: "org_1".into(), ..Token::default() };
    let page = Page {
        tokens: vec![token(), bare.clone()],
        total_count: 42,
        next_page_token: Some("next".into()),
        prev_page_token: None,
    };
    vec![
        (Operation::Create, Reply::Created(Created { token: "0123abcXYZ".into(), info: token() })),
        (Operation::Validate, Reply::Token(token())),
        (Operation::Validate, Reply::Token(Token { token_id: String::new(), ..bare.clone() })),
        (Operation::Update, Reply::Token(bare)),
        (Operation::Invalidate, Reply::Invalidated),
        (Operation::List, Reply::Page(Page::default())),
        (Operation::List, Reply::Page(page)),
    ]
}
