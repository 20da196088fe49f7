//! Tests of the calls on the store.

use jiff::ToSpan;

use super::*;

fn store() -> Store {
    Store::new(Directory::new(Vec::new()))
}

fn claims(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn create(store: &Store, new: NewToken) -> Result<(String, Token), Code> {
    match store.perform_call(Call::Create(new), Timestamp::now()) {
        Ok(Reply::Created(created)) => Ok((created.token.expose_secret().to_owned(), created.info)),
        Ok(_) => panic!("another reply"),
        Err(status) => Err(status.code),
    }
}

fn org(organization_id: &str) -> NewToken {
    NewToken { organization_id: organization_id.to_owned(), ..NewToken::default() }
}

fn validate(store: &Store, token: &str) -> Result<Token, Code> {
    validate_at(store, token, Timestamp::now())
}

fn validate_at(store: &Store, token: &str, now: Timestamp) -> Result<Token, Code> {
    match store.perform_call(Call::Validate(token.into()), now) {
        Ok(Reply::Token(token)) => Ok(token),
        Ok(_) => panic!("another reply"),
        Err(status) => Err(status.code),
    }
}

fn invalidate(store: &Store, token: &str) -> Result<(), Code> {
    let call = Call::Invalidate(token.into());
    store.perform_call(call, Timestamp::now()).map(|_| ()).map_err(|status| status.code)
}

fn update(store: &Store, token: &str, update: TokenUpdate) -> Result<Token, Code> {
    match store.perform_call(Call::Update(token.into(), update), Timestamp::now()) {
        Ok(Reply::Token(token)) => Ok(token),
        Ok(_) => panic!("another reply"),
        Err(status) => Err(status.code),
    }
}

fn list(store: &Store, page: PageRequest) -> Result<Page, Code> {
    match store.perform_call(Call::List(page), Timestamp::now()) {
        Ok(Reply::Page(page)) => Ok(page),
        Ok(_) => panic!("another reply"),
        Err(status) => Err(status.code),
    }
}

#[test]
fn key_and_token_id_both_validate() {
    let store = store();
    let (key, token) = create(&store, org("org_1")).unwrap();
    assert_eq!(token.token_suffix.as_deref(), Some(&key[key.len() - 4..]));
    for presented in [&key, &token.token_id] {
        assert_eq!(validate(&store, presented).unwrap().token_id, token.token_id);
    }
    assert_eq!(store.validations_of(&key), 2);
}

#[test]
fn unknown_and_malformed_keys_get_different_codes() {
    let store = store();
    for (token, expected) in [
        ("abc", Code::NotFound),
        ("apit_123", Code::NotFound),
        ("", Code::InvalidArgument),
        ("a.b.c", Code::InvalidArgument),
        ("a\nb", Code::InvalidArgument),
    ] {
        assert_eq!(validate(&store, token).unwrap_err(), expected, "{token:?}");
        assert_eq!(invalidate(&store, token).unwrap_err(), expected, "{token:?}");
        assert_eq!(update(&store, token, TokenUpdate::default()).unwrap_err(), expected, "{token:?}");
    }
}

#[test]
fn revoked_key_can_be_revoked_again() {
    let store = store();
    for by_id in [false, true] {
        let (key, token) = create(&store, org("org_1")).unwrap();
        let name = if by_id { &token.token_id } else { &key };
        assert_eq!(invalidate(&store, name), Ok(()));
        assert_eq!(validate(&store, &key).unwrap_err(), Code::NotFound);
        assert_eq!(invalidate(&store, name), Ok(()));
        assert_eq!(update(&store, &key, TokenUpdate::default()).unwrap_err(), Code::NotFound);
    }
}

#[test]
fn key_is_invalid_from_its_expiry() {
    let store = store();
    let expiry = Timestamp::now() + 1.hour();
    let (key, _) = create(&store, NewToken { expiry: Some(expiry), ..org("org_1") }).unwrap();
    assert!(validate_at(&store, &key, expiry - 1.nanosecond()).is_ok());
    assert_eq!(validate_at(&store, &key, expiry).unwrap_err(), Code::NotFound);
    let past = NewToken { expiry: Some(Timestamp::now() - 1.second()), ..org("org_1") };
    assert_eq!(create(&store, past).unwrap_err(), Code::InvalidArgument);
}

#[test]
fn limits_count_characters_not_bytes() {
    let store = store();
    let umlauts = |n: usize| "ü".repeat(n);
    let many = |n: usize| (0..n).map(|n| (format!("claim{n}"), "x".to_owned())).collect::<BTreeMap<_, _>>();
    for (custom_claims, description, good) in [
        (many(20), String::new(), true),
        (many(21), String::new(), false),
        (claims(&[(&umlauts(30), &umlauts(256))]), umlauts(255), true),
        (claims(&[(&umlauts(31), "x")]), String::new(), false),
        (claims(&[("", "x")]), String::new(), false),
        (claims(&[("x", &umlauts(257))]), String::new(), false),
        (claims(&[("x", "")]), String::new(), false),
        (claims(&[("x", "a\r\nb")]), String::new(), true),
        (claims(&[]), umlauts(256), false),
    ] {
        let made = create(
            &store,
            NewToken {
                custom_claims: custom_claims.clone(),
                description: Some(description.clone()),
                ..org("org_1")
            },
        );
        assert_eq!(made.is_ok(), good, "{custom_claims:?} {description}");
        let (token, _) = create(&store, org("org_1")).unwrap();
        let changed = update(
            &store,
            &token,
            TokenUpdate { custom_claims: Some(custom_claims), description: Some(description) },
        );
        assert_eq!(changed.is_ok(), good);
    }
    assert_eq!(create(&store, org("")).unwrap_err(), Code::InvalidArgument);
}

#[test]
fn update_replaces_claims_and_keeps_absent_fields() {
    let store = store();
    let before = NewToken {
        custom_claims: claims(&[("a", "1"), ("b", "2")]),
        description: Some("d".to_owned()),
        ..org("org_1")
    };
    let (key, _) = create(&store, before).unwrap();
    for (custom_claims, description, expected_claims, expected_description) in [
        (None, None, claims(&[("a", "1"), ("b", "2")]), Some("d")),
        (Some(claims(&[("c", "3")])), None, claims(&[("c", "3")]), Some("d")),
        (None, Some("e"), claims(&[("c", "3")]), Some("e")),
        (None, Some(""), claims(&[("c", "3")]), None),
    ] {
        let description = description.map(str::to_owned);
        let changed = update(&store, &key, TokenUpdate { custom_claims, description }).unwrap();
        assert_eq!(changed.custom_claims, expected_claims);
        assert_eq!(changed.description.as_deref(), expected_description);
        assert_eq!(validate(&store, &key).unwrap().custom_claims, expected_claims);
    }
}

#[test]
fn pages_go_both_ways_newest_first() {
    let store = store();
    let ids: Vec<_> = (0..25).map(|_| create(&store, org("org_1")).unwrap().1.token_id).collect();
    create(&store, org("org_2")).unwrap();
    let newest_first: Vec<_> = ids.into_iter().rev().collect();
    let page = |page_token: Option<String>| {
        let organization_id = "org_1".to_owned();
        let page =
            list(&store, PageRequest { organization_id, page_token, ..PageRequest::default() }).unwrap();
        let ids: Vec<_> = page.tokens.iter().map(|token| token.token_id.clone()).collect();
        assert_eq!(page.total_count, 25);
        (ids, page.next_page_token, page.prev_page_token)
    };
    let (first, next, prev) = page(None);
    assert_eq!((&first[..], prev), (&newest_first[..10], None));
    let (second, next, prev) = page(next);
    assert_eq!(second, newest_first[10..20]);
    assert_eq!(page(prev).0, first);
    let (third, next, prev) = page(next);
    assert_eq!((&third[..], next), (&newest_first[20..], None));
    assert_eq!(page(prev).0, second);
}

#[test]
fn list_has_live_keys_of_organization_and_user() {
    let store = store();
    let user = |user: &str| NewToken { user_id: Some(user.to_owned()), ..org("org_1") };
    let (_, one) = create(&store, user("usr_1")).unwrap();
    let (_, two) = create(&store, user("usr_2")).unwrap();
    let (revoked, _) = create(&store, user("usr_1")).unwrap();
    invalidate(&store, &revoked).unwrap();
    let expired = Issue {
        organization_id: "org_1".to_owned(),
        expiry: Some(Timestamp::now() - 1.hour()),
        ..Issue::default()
    };
    store.issue_key(expired, Timestamp::now());
    for (user_id, expected) in
        [(None, vec![&two, &one]), (Some("usr_1"), vec![&one]), (Some("usr_3"), vec![])]
    {
        let (organization_id, user_id) = ("org_1".to_owned(), user_id.map(str::to_owned));
        let page = list(&store, PageRequest { organization_id, user_id, ..PageRequest::default() }).unwrap();
        let ids = |tokens: &[&Token]| tokens.iter().map(|token| token.token_id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&page.tokens.iter().collect::<Vec<_>>()), ids(&expected));
    }
}

#[test]
fn list_parameters_are_checked() {
    let store = store();
    let org_of = |length: usize| format!("org_{}", "ü".repeat(length - 4));
    for (organization_id, page_size, page_token, good) in [
        ("org_1", 1, "", true),
        ("org_1", 30, "", true),
        ("org_1", 1, "junk", false),
        ("org_1", 1, "😀", false),
        ("", 1, "", false),
        ("acme", 1, "", false),
        (&org_of(32), 1, "", true),
        (&org_of(33), 1, "", false),
    ] {
        let label = format!("{organization_id} {page_size} {page_token}");
        let asked = PageRequest {
            organization_id: organization_id.to_owned(),
            page_size: Some(page_size),
            page_token: some(page_token.to_owned()),
            ..PageRequest::default()
        };
        let expected = if good { None } else { Some(Code::InvalidArgument) };
        assert_eq!(list(&store, asked).err(), expected, "{label}");
    }
}
