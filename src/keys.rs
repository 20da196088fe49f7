//! Creates, finds, updates, rotates and revokes keys. Scalekit's limits are checked before anything is sent. If the response to a
//! creation is lost, the key is searched for, so that none is left behind that nobody knows of.

pub mod rules;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{Duration, timeout};

use crate::credential::ApiKey;
use crate::scalekit::management::{CallError, Change, Claims, Created, Listing, NewToken, Page, Token};
use crate::scalekit::{Fault, Scalekit};

/// The keys of a Scalekit environment.
pub struct Keys {
    scalekit: Arc<Scalekit>,
}

/// The id of a key, `apit_…`. It cannot be used as a key.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenId(String);

/// The text is not the id of a key. It is not part of the error, as it may be a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not the id of a key, which begins with apit_")]
pub struct NotAnId;

impl FromStr for TokenId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let is_id_byte = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let rest = text.strip_prefix("apit_").ok_or(NotAnId)?;
        let is_id = (1..=64).contains(&rest.len()) && rest.bytes().all(is_id_byte);
        is_id.then(|| Self(text.to_owned())).ok_or(NotAnId)
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// An argument is outside Scalekit's limits; nothing was sent.
    #[error("{field}: {problem}")]
    Invalid {
        /// Scalekit's name of the field.
        field: &'static str,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// Unknown, revoked or expired.
    #[error("there is no live key with this id")]
    NotFound,
    /// The call to Scalekit failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A key may have been created that nobody has received.
    #[error("{fault}; {}", describe_suspects(.suspects.as_deref()))]
    Lost {
        /// Why the outcome is unknown.
        fault: Fault,
        /// Ids of keys that may be the one. `None` if the search failed, or may have been too early.
        suspects: Option<Vec<String>>,
    },
}

fn describe_suspects(suspects: Option<&[String]>) -> String {
    match suspects {
        Some([]) => "no such key is in the organization's list".to_owned(),
        Some(ids) => format!(
            // Another client may have created a key that looks the same, and use it.
            "a key may have been created that nobody has received; revoke {}: {}",
            if ids.len() == 1 {
                "this one unless someone uses it"
            } else {
                "those of these that nobody uses"
            },
            // SECURITY: the ids come from a response, which a terminal must not obey.
            ids.iter().map(|id| id.escape_default().to_string()).collect::<Vec<_>>().join(" ")
        ),
        None => {
            "a key may have been created that nobody has received; list the organization's keys and revoke it"
                .to_owned()
        }
    }
}

const MAX_CLAIMS: usize = 20;
const MAX_CLAIM_NAME: usize = 30;
const MAX_CLAIM_VALUE: usize = 256;
const MAX_DESCRIPTION: usize = 255;
/// Time limit of the search for a key after its creation got no response.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(5);
/// How far Scalekit's clock may be behind.
const MAX_CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(60);

impl Keys {
    /// Manages keys with the credentials of this client of Scalekit's API.
    pub fn new(scalekit: Arc<Scalekit>) -> Self {
        Self { scalekit }
    }

    /// Creates a key.
    ///
    /// # Errors
    /// `Lost` if a key may have been created all the same.
    pub async fn create(&self, new: &NewToken) -> Result<Created, KeyError> {
        self.create_or_search(None, new).await
    }

    /// Creates a key that looks like `old`, which stays live.
    ///
    /// # Errors
    /// `Lost` if a key may have been created all the same.
    pub async fn create_successor(&self, old: &Token, new: &NewToken) -> Result<Created, KeyError> {
        self.create_or_search(Some(&old.token_id), new).await
    }

    async fn create_or_search(&self, old: Option<&str>, new: &NewToken) -> Result<Created, KeyError> {
        let began = Timestamp::now();
        check(new, began)?;
        match self.scalekit.create_token(new).await {
            Err(CallError::Lost(fault)) => {
                let search = timeout(SEARCH_TIMEOUT, self.find_created_since(began, new)).await;
                // After a timeout Scalekit may still create the key, so an empty list proves nothing.
                let is_late = matches!(fault, Fault::Timeout | Fault::Down(504));
                let found = search.ok().and_then(Result::ok);
                let suspects = found.map(|mut ids| {
                    // The replaced key looks the same, but is not lost.
                    ids.retain(|id| Some(id.as_str()) != old);
                    ids
                });
                let suspects = suspects.filter(|ids| !(is_late && ids.is_empty()));
                Err(KeyError::Lost { fault, suspects })
            }
            created => Ok(created?),
        }
    }

    /// Ids of keys that have the properties of `new` and were created after `began`.
    async fn find_created_since(&self, began: Timestamp, new: &NewToken) -> Result<Vec<String>, CallError> {
        let is_candidate = |token: &Token| {
            (&token.user_id, &token.custom_claims, &token.description)
                == (&new.user_id, &new.custom_claims, &new.description)
                // Scalekit may store timestamps with less precision.
                && token.expiry.map(Timestamp::as_second) == new.expiry.map(Timestamp::as_second)
                && token.created_at.is_none_or(|at| at.duration_since(began) > -MAX_CLOCK_SKEW)
        };
        let mut ids = Vec::new();
        let mut listing = Listing {
            organization_id: new.organization_id.clone(),
            user_id: new.user_id.clone(),
            page_size: Some(30),
            page_token: None,
        };
        loop {
            let page = self.scalekit.list_tokens(&listing).await?;
            ids.extend(page.tokens.into_iter().filter(is_candidate).map(|token| token.token_id));
            match page.next_page_token {
                Some(next) => listing.page_token = Some(next),
                None => return Ok(ids),
            }
        }
    }

    /// Fetches one page of an organization's live keys.
    ///
    /// # Errors
    /// When the listing is outside Scalekit's limits, or the call fails.
    pub async fn list(&self, listing: &Listing) -> Result<Page, KeyError> {
        check_listing(listing)?;
        Ok(self.scalekit.list_tokens(listing).await?)
    }

    /// Fetches a live key by its id.
    ///
    /// # Errors
    /// `NotFound` for one that is unknown, revoked or expired.
    pub async fn find(&self, id: &TokenId) -> Result<Token, KeyError> {
        let token = self.scalekit.describe_token(&id.0).await?;
        // SECURITY: a response about another key must not be taken for this one.
        token.filter(|token| token.token_id == id.0).ok_or(KeyError::NotFound)
    }

    /// Fetches a live key by the key itself.
    ///
    /// # Errors
    /// `NotFound` for one that is unknown, revoked or expired.
    pub async fn inspect(&self, key: &ApiKey) -> Result<Token, KeyError> {
        let token = self.scalekit.describe_token(key.expose()).await?.ok_or(KeyError::NotFound)?;
        if token.token_suffix.as_ref().is_some_and(|suffix| !key.expose().ends_with(suffix)) {
            let fault = Fault::Broken("token_suffix is not the end of the key");
            return Err(CallError::Fault(fault).into());
        }
        Ok(token)
    }

    /// Changes claims or description of a live key.
    ///
    /// # Errors
    /// `NotFound`, or when the call fails; its outcome may then be unknown.
    pub async fn update(&self, id: &TokenId, change: &Change) -> Result<Token, KeyError> {
        check_change(change)?;
        match self.scalekit.update_token(&id.0, change).await {
            Err(CallError::Refused(refusal)) if refusal.code == 5 => Err(KeyError::NotFound),
            done => Ok(done?),
        }
    }

    /// Revokes a key. One that was revoked before is no error.
    ///
    /// # Errors
    /// `NotFound` for a key that never existed, or when the call fails; its outcome may then be unknown.
    pub async fn revoke(&self, id: &TokenId) -> Result<(), KeyError> {
        match self.scalekit.invalidate_token(&id.0).await {
            Err(CallError::Refused(refusal)) if refusal.code == 5 => Err(KeyError::NotFound),
            done => Ok(done?),
        }
    }
}

/// A new key to replace another: with the same scope, claims, description and expiry.
pub fn to_successor(of: &Token) -> NewToken {
    NewToken {
        organization_id: of.organization_id.clone(),
        user_id: of.user_id.clone(),
        custom_claims: of.custom_claims.clone(),
        expiry: of.expiry,
        description: of.description.clone(),
    }
}

/// Sets the claims that have a value and removes those that have none.
pub fn merge_claims(claims: &Claims, changes: impl IntoIterator<Item = (String, Option<String>)>) -> Claims {
    let mut claims = claims.clone();
    for (name, value) in changes {
        match value {
            Some(value) => claims.insert(name, value),
            None => claims.remove(&name),
        };
    }
    claims
}

/// Whether Scalekit takes such a change.
///
/// # Errors
/// `Invalid`.
pub fn check_change(change: &Change) -> Result<(), KeyError> {
    if let Some(claims) = &change.custom_claims {
        if claims.is_empty() {
            let problem = "Scalekit cannot take a key's last claim away; make a new key without it";
            return Err(KeyError::Invalid { field: "custom_claims", problem: problem.to_owned() });
        }
        check_claims(claims)?;
    }
    check_description(change.description.as_deref())
}

/// Whether Scalekit would take a new key, as far as that can be known without asking.
///
/// # Errors
/// `Invalid`, with what would be right.
pub fn check(new: &NewToken, now: Timestamp) -> Result<(), KeyError> {
    check_scope(&new.organization_id, new.user_id.as_deref())?;
    if let Some(expiry) = new.expiry.filter(|expiry| *expiry <= now) {
        let problem = format!("{expiry} has passed; it should be in the future");
        return Err(KeyError::Invalid { field: "expiry", problem });
    }
    check_claims(&new.custom_claims)?;
    check_description(new.description.as_deref())
}

/// Whether Scalekit would take a question for a list.
///
/// # Errors
/// `Invalid`, with what would be right.
pub fn check_listing(listing: &Listing) -> Result<(), KeyError> {
    check_scope(&listing.organization_id, listing.user_id.as_deref())?;
    match listing.page_size {
        None | Some(1..=30) => Ok(()),
        Some(_) => {
            Err(KeyError::Invalid { field: "page_size", problem: "should be from 1 to 30".to_owned() })
        }
    }
}

/// SECURITY: an empty user is somebody's mistake, and would make it a matter of the whole organization.
fn check_scope(organization: &str, user: Option<&str>) -> Result<(), KeyError> {
    if !organization.starts_with("org_") || organization.chars().count() > 32 {
        let problem = "should begin with org_ and have at most 32 characters".to_owned();
        return Err(KeyError::Invalid { field: "organization_id", problem });
    }
    if user == Some("") {
        let problem = "is empty; leave it out where no user is meant".to_owned();
        return Err(KeyError::Invalid { field: "user_id", problem });
    }
    Ok(())
}

fn check_claims(claims: &Claims) -> Result<(), KeyError> {
    let refuse = |problem| Err(KeyError::Invalid { field: "custom_claims", problem });
    if claims.len() > MAX_CLAIMS {
        return refuse(format!("these are {}, and a key takes at most {MAX_CLAIMS}", claims.len()));
    }
    for (name, value) in claims {
        let (name_length, length) = (name.chars().count(), value.chars().count());
        if !(1..=MAX_CLAIM_NAME).contains(&name_length) {
            return refuse(format!(
                "a name has {name_length} characters; it should have from 1 to {MAX_CLAIM_NAME}"
            ));
        }
        if length == 0 {
            return refuse(format!(
                "{name:?} has no value; it should have from 1 to {MAX_CLAIM_VALUE} characters"
            ));
        }
        if length > MAX_CLAIM_VALUE {
            return refuse(format!(
                "{name:?} has a value of {length} characters; it should have from 1 to {MAX_CLAIM_VALUE}"
            ));
        }
    }
    Ok(())
}

fn check_description(description: Option<&str>) -> Result<(), KeyError> {
    match description.map_or(0, |text| text.chars().count()) {
        0..=MAX_DESCRIPTION => Ok(()),
        length => {
            let problem = format!("has {length} characters; it should have at most {MAX_DESCRIPTION}");
            Err(KeyError::Invalid { field: "description", problem })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-24T00:00:00Z".parse().unwrap()
    }

    fn claims(count: usize) -> Claims {
        (0..count).map(|number| (format!("claim{number}"), "value".to_owned())).collect()
    }

    #[track_caller]
    fn check_limit(new: NewToken, expected: Result<(), &str>) {
        let new = NewToken { organization_id: "org_1".into(), ..new };
        let outcome = check(&new, now()).map_err(|error| error.to_string());
        assert_eq!(outcome, expected.map_err(str::to_owned));
    }

    #[test]
    fn limits_are_counted_in_characters_and_named_in_the_message() {
        let claim = |name: &str, value: &str| NewToken {
            custom_claims: Claims::from([(name.to_owned(), value.to_owned())]),
            ..NewToken::default()
        };
        check_limit(claim("team", &"ä".repeat(256)), Ok(()));
        check_limit(
            claim("team", &"ä".repeat(257)),
            Err("custom_claims: \"team\" has a value of 257 characters; it should have from 1 to 256"),
        );
        check_limit(
            claim("team", ""),
            Err("custom_claims: \"team\" has no value; it should have from 1 to 256 characters"),
        );
        check_limit(claim(&"ä".repeat(30), "x"), Ok(()));
        check_limit(
            claim(&"ä".repeat(31), "x"),
            Err("custom_claims: a name has 31 characters; it should have from 1 to 30"),
        );
        check_limit(
            claim("", "x"),
            Err("custom_claims: a name has 0 characters; it should have from 1 to 30"),
        );
        check_limit(NewToken { custom_claims: claims(20), ..NewToken::default() }, Ok(()));
        check_limit(
            NewToken { custom_claims: claims(21), ..NewToken::default() },
            Err("custom_claims: these are 21, and a key takes at most 20"),
        );
        let described = |text: String| NewToken { description: Some(text), ..NewToken::default() };
        check_limit(described("ä".repeat(255)), Ok(()));
        check_limit(
            described("ä".repeat(256)),
            Err("description: has 256 characters; it should have at most 255"),
        );
        check_limit(
            NewToken { expiry: Some(now()), ..NewToken::default() },
            Err("expiry: 2026-11-24T00:00:00Z has passed; it should be in the future"),
        );
        assert!(check(&NewToken::default(), now()).is_err());
        check_limit(
            NewToken { user_id: Some(String::new()), ..NewToken::default() },
            Err("user_id: is empty; leave it out where no user is meant"),
        );
    }

    #[test]
    fn token_id_error_does_not_repeat_the_text() {
        for text in ["apit_1", "apit_123456789012345", "apit_a-b_C"] {
            assert_eq!(text.parse::<TokenId>().unwrap().to_string(), text);
        }
        let long = format!("apit_{}", "1".repeat(65));
        for text in ["", "apit_", "APIT_1", "apit_1/x", "apit_1 ", "apit_ä", "keykeykeykeykeykey", &long] {
            assert_eq!(text.parse::<TokenId>(), Err(NotAnId), "{text}");
        }
        assert!(!NotAnId.to_string().contains("keykey"));
    }

    #[test]
    fn merge_claims_sets_removes_and_keeps() {
        let before = Claims::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
        let changes = [("a", None), ("b", Some("3")), ("c", Some("4")), ("d", None)];
        let changes = changes.map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
        let after = Claims::from([("b".to_owned(), "3".to_owned()), ("c".to_owned(), "4".to_owned())]);
        assert_eq!(merge_claims(&before, changes), after);
    }
}
