//! The life of a key: made, found, changed, followed by another, revoked. Scalekit's limits are checked before anything is
//! sent, and a creation whose answer was lost is looked for, so that no key is left that nobody knows of.

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

/// The keys of an environment.
pub struct Keys {
    client: Client,
}

/// Names a key, and is none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenId(String);

/// Why a text is not the id of a key. The text is not repeated: it may be a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not the id of a key, which begins with apit_")]
pub struct NotAnId;

impl FromStr for TokenId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let of_an_id = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        let rest = text.strip_prefix("apit_").ok_or(NotAnId)?;
        let is_one = (1..=64).contains(&rest.len()) && rest.bytes().all(of_an_id);
        is_one.then(|| Self(text.to_owned())).ok_or(NotAnId)
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Scalekit would not take it; nothing was sent.
    #[error(transparent)]
    Invalid(#[from] InvalidArgument),
    /// Unknown, revoked or expired.
    #[error("there is no live key of this id")]
    NotFound,
    /// Nothing was done.
    #[error("{}", Explained(.0))]
    Call(Error),
    /// It may have been done: no usable response came.
    #[error("{}", Explained(.0))]
    OutcomeUnknown(Error),
    /// A key may have been made that nobody has.
    #[error("{}; {}", Explained(.error), lost(.suspects.as_deref()))]
    Lost {
        /// Why it is not known.
        error: Error,
        /// The ids of keys that may be the one, where Scalekit could still be asked.
        suspects: Option<Vec<String>>,
    },
}

fn lost(suspects: Option<&[String]>) -> String {
    match suspects {
        Some([]) => "no key like it is in the organization's list".to_owned(),
        Some(ids) => format!(
            // Another caller may have made one that looks the same, and have it.
            "a key may have been made that nobody has seen; revoke {}: {}",
            if ids.len() == 1 {
                "this one, unless somebody has it"
            } else {
                "those of these that nobody has"
            },
            // SECURITY: whoever answered wrote them.
            ids.iter().map(|id| id.escape_default().to_string()).collect::<Vec<_>>().join(" ")
        ),
        None => "a key may have been made that nobody has seen; list the organization's keys, and revoke it"
            .to_owned(),
    }
}

/// To look for a key whose creation gave no answer.
const SEARCH: Duration = Duration::from_secs(5);
/// How far Scalekit's clock may be from this one's.
const SKEW: SignedDuration = SignedDuration::from_secs(60);

impl Keys {
    /// The keys of this environment.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Makes a key.
    ///
    /// # Errors
    /// When there is none, or none that anybody saw.
    pub async fn create(&self, new: &NewToken) -> Result<Created, KeyError> {
        self.create_beside(None, new).await
    }

    /// Makes a key that is to take a live one's place. The live one stays.
    ///
    /// # Errors
    /// When there is none, or none that anybody saw.
    pub async fn create_successor(&self, old: &Token, new: &NewToken) -> Result<Created, KeyError> {
        self.create_beside(Some(&old.token_id), new).await
    }

    async fn create_beside(&self, old: Option<&str>, new: &NewToken) -> Result<Created, KeyError> {
        let began = Timestamp::now();
        match self.client.create_token(new).await {
            Err(error) if error.is_outcome_unknown() => {
                let search = timeout(SEARCH, self.made_since(began, new)).await;
                // What was not answered in time may be done yet: that nothing is there proves nothing.
                let is_late = matches!(error, Error::Timeout | Error::Unavailable(504));
                let found = search.ok().and_then(Result::ok);
                let suspects = found.map(|mut ids| {
                    // It looks the same, and is well known.
                    ids.retain(|id| Some(id.as_str()) != old);
                    ids
                });
                let suspects = suspects.filter(|ids| !(is_late && ids.is_empty()));
                Err(KeyError::Lost { error, suspects })
            }
            created => Ok(created?),
        }
    }

    /// The ids of keys that look as if they had just been made from this.
    async fn made_since(&self, began: Timestamp, new: &NewToken) -> Result<Vec<String>, Error> {
        let looks_so = |token: &Token| {
            (&token.user_id, &token.custom_claims, &token.description)
                == (&new.user_id, &new.custom_claims, &new.description)
                // Scalekit may keep fewer digits of a moment.
                && token.expiry.map(Timestamp::as_second) == new.expiry.map(Timestamp::as_second)
                && token.created_at.is_none_or(|at| at.duration_since(began) > -SKEW)
        };
        let mut ids = Vec::new();
        let mut listing = PageRequest {
            organization_id: new.organization_id.clone(),
            user_id: new.user_id.clone(),
            page_size: Some(MAX_PAGE_SIZE),
            page_token: None,
        };
        loop {
            let page = self.client.list_tokens(&listing).await?;
            ids.extend(page.tokens.into_iter().filter(looks_so).map(|token| token.token_id));
            match page.next_page_token {
                Some(next) => listing.page_token = Some(next),
                None => return Ok(ids),
            }
        }
    }

    /// A part of an organization's keys.
    ///
    /// # Errors
    /// When there is none.
    pub async fn list(&self, listing: &PageRequest) -> Result<Page, KeyError> {
        Ok(self.client.list_tokens(listing).await?)
    }

    /// A live key.
    ///
    /// # Errors
    /// `NotFound` for one that is unknown, revoked or expired.
    pub async fn find(&self, id: &TokenId) -> Result<Token, KeyError> {
        self.client.find_token(&id.0).await?.ok_or(KeyError::NotFound)
    }

    /// What is known of a key, if it is live.
    ///
    /// # Errors
    /// `NotFound` for one that is unknown, revoked or expired.
    pub async fn inspect(&self, key: &ApiKey) -> Result<Token, KeyError> {
        match self.client.validate_token(key.expose()).await? {
            Validation::Valid(token) => Ok(token),
            Validation::Invalid => Err(KeyError::NotFound),
        }
    }

    /// Changes a live key.
    ///
    /// # Errors
    /// When it was not done, or may not have been.
    pub async fn update(&self, id: &TokenId, change: &TokenUpdate) -> Result<Token, KeyError> {
        self.client.update_token(&id.0, change).await.map_err(KeyError::of_change)
    }

    /// Revokes a key, which may be revoked already.
    ///
    /// # Errors
    /// `NotFound` for one that never was; otherwise when it was not done, or may not have been.
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

/// A key that can take another's place: the same scope, claims, description and end.
pub fn successor(of: &Token) -> NewToken {
    NewToken {
        organization_id: of.organization_id.clone(),
        user_id: of.user_id.clone(),
        custom_claims: of.custom_claims.clone(),
        expiry: of.expiry,
        description: of.description.clone(),
    }
}

/// Claims with some set and some removed.
pub fn merged(claims: &Claims, changes: impl IntoIterator<Item = (String, Option<String>)>) -> Claims {
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
    fn only_an_id_is_an_id_and_what_is_none_is_not_repeated() {
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
    fn a_merge_sets_removes_and_keeps() {
        let before = Claims::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
        let changes = [("a", None), ("b", Some("3")), ("c", Some("4")), ("d", None)];
        let changes = changes.map(|(name, value)| (name.to_owned(), value.map(str::to_owned)));
        let after = Claims::from([("b".to_owned(), "3".to_owned()), ("c".to_owned(), "4".to_owned())]);
        assert_eq!(merged(&before, changes), after);
    }
}
