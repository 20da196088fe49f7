//! Creates, finds, updates, rotates and revokes keys. Scalekit's limits are checked before anything is sent. If the response to a
//! creation is lost, the key is searched for, so that none is left behind that nobody knows of.

pub mod rules;

use std::fmt;
use std::str::FromStr;

use ::scalekit::client::Client;
use ::scalekit::error::Error;
use ::scalekit::limits::{InvalidArgument, MAX_PAGE_SIZE};
use ::scalekit::token::{Claims, Created, NewToken, Page, PageRequest, Token, TokenUpdate};
use ::scalekit::validate::Validation;
use jiff::{SignedDuration, Timestamp};
use tokio::time::{Duration, timeout};

use crate::credential::ApiKey;
use crate::scalekit::Explained;

/// The keys of a Scalekit environment.
pub struct Keys {
    client: Client,
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
    #[error(transparent)]
    Invalid(#[from] InvalidArgument),
    /// Unknown, revoked or expired.
    #[error("there is no live key with this id")]
    NotFound,
    /// The call to Scalekit failed, and nothing was done.
    #[error("{}", Explained(.0))]
    Call(Error),
    /// No usable response was received, so the change may have been made.
    #[error("{}", Explained(.0))]
    OutcomeUnknown(Error),
    /// A key may have been created that nobody has received.
    #[error("{}; {}", Explained(.error), describe_suspects(.suspects.as_deref()))]
    Lost {
        /// Why the outcome is unknown.
        error: Error,
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

/// Time limit of the search for a key after its creation got no response.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(5);
/// How far Scalekit's clock may be behind.
const MAX_CLOCK_SKEW: SignedDuration = SignedDuration::from_secs(60);

impl Keys {
    /// Manages keys with the credentials of this client of Scalekit's API.
    pub fn new(client: Client) -> Self {
        Self { client }
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
        match self.client.create_token(new).await {
            Err(error) if error.is_outcome_unknown() => {
                let search = timeout(SEARCH_TIMEOUT, self.find_created_since(began, new)).await;
                // After a timeout Scalekit may still create the key, so an empty list proves nothing.
                let is_late = matches!(error, Error::Timeout | Error::Unavailable(504));
                let found = search.ok().and_then(Result::ok);
                let suspects = found.map(|mut ids| {
                    // The replaced key looks the same, but is not lost.
                    ids.retain(|id| Some(id.as_str()) != old);
                    ids
                });
                let suspects = suspects.filter(|ids| !(is_late && ids.is_empty()));
                Err(KeyError::Lost { error, suspects })
            }
            created => Ok(created?),
        }
    }

    /// Ids of keys that have the properties of `new` and were created after `began`.
    async fn find_created_since(&self, began: Timestamp, new: &NewToken) -> Result<Vec<String>, Error> {
        let is_candidate = |token: &Token| {
            (&token.user_id, &token.custom_claims, &token.description)
                == (&new.user_id, &new.custom_claims, &new.description)
                // Scalekit may store timestamps with less precision.
                && token.expiry.map(Timestamp::as_second) == new.expiry.map(Timestamp::as_second)
                && token.created_at.is_none_or(|at| at.duration_since(began) > -MAX_CLOCK_SKEW)
        };
        let mut ids = Vec::new();
        let mut page_request = PageRequest {
            organization_id: new.organization_id.clone(),
            user_id: new.user_id.clone(),
            page_size: Some(MAX_PAGE_SIZE),
            page_token: None,
        };
        loop {
            let page = self.client.list_tokens(&page_request).await?;
            ids.extend(page.tokens.into_iter().filter(is_candidate).map(|token| token.token_id));
            match page.next_page_token {
                Some(next) => page_request.page_token = Some(next),
                None => return Ok(ids),
            }
        }
    }

    /// Fetches one page of an organization's live keys.
    ///
    /// # Errors
    /// When the page_request is outside Scalekit's limits, or the call fails.
    pub async fn list(&self, page_request: &PageRequest) -> Result<Page, KeyError> {
        Ok(self.client.list_tokens(page_request).await?)
    }

    /// Fetches a live key by its id.
    ///
    /// # Errors
    /// `NotFound` for one that is unknown, revoked or expired.
    pub async fn find(&self, id: &TokenId) -> Result<Token, KeyError> {
        self.client.find_token(&id.0).await?.ok_or(KeyError::NotFound)
    }

    /// Fetches a live key by the key itself.
    ///
    /// # Errors
    /// `NotFound` for one that is unknown, revoked or expired.
    pub async fn inspect(&self, key: &ApiKey) -> Result<Token, KeyError> {
        match self.client.validate_token(key.expose()).await? {
            Validation::Valid(token) => Ok(token),
            Validation::Invalid => Err(KeyError::NotFound),
        }
    }

    /// Changes claims or description of a live key.
    ///
    /// # Errors
    /// `NotFound`, or when the call fails; its outcome may then be unknown.
    pub async fn update(&self, id: &TokenId, change: &TokenUpdate) -> Result<Token, KeyError> {
        self.client.update_token(&id.0, change).await.map_err(KeyError::of_change)
    }

    /// Revokes a key. One that was revoked before is no error.
    ///
    /// # Errors
    /// `NotFound` for a key that never existed, or when the call fails; its outcome may then be unknown.
    pub async fn revoke(&self, id: &TokenId) -> Result<(), KeyError> {
        self.client.invalidate_token(&id.0).await.map_err(KeyError::of_change)
    }
}

impl From<Error> for KeyError {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid(argument) => Self::Invalid(argument),
            error => Self::Call(error),
        }
    }
}

impl KeyError {
    /// Why a live key was not changed, or may have been.
    fn of_change(error: Error) -> Self {
        if error.is_not_found() {
            Self::NotFound
        } else if error.is_outcome_unknown() {
            Self::OutcomeUnknown(error)
        } else {
            error.into()
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

#[cfg(test)]
mod tests {
    use super::*;

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
