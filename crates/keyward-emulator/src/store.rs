//! The keys, and what each call does to them. A revoked key stays stored: revoking it again must succeed.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use scalekit::call::{Call, Reply};
use scalekit::limits;
use scalekit::status::{Code, Status};
use scalekit::token::{Claims, Created, NewToken, Page, PageRequest, Token, TokenUpdate};
use scalekit::{ExposeSecret, SecretString};

use crate::directory::Directory;
use crate::key;
use cursor::Cursor;

mod cursor;

/// A key to create without checks, so that tests can have keys that the API would refuse. An empty string means absent.
#[derive(Clone, Debug, Default)]
pub struct Issue {
    /// Id of the organization.
    pub organization_id: String,
    /// Id of the organization in the customer's system.
    pub organization_external_id: String,
    /// Id of the user; empty for a key of the organization.
    pub user_id: String,
    /// Id of the user in the customer's system.
    pub user_external_id: String,
    /// The user's e-mail address.
    pub email: String,
    /// Claims by name.
    pub custom_claims: BTreeMap<String, String>,
    /// The user's roles.
    pub roles: Vec<String>,
    /// When it ceases to be valid; `None` is never.
    pub expiry: Option<Timestamp>,
    /// A note for people.
    pub description: String,
}

/// A created key.
#[derive(Clone)]
pub struct Issued {
    /// The key itself.
    pub key: String,
    /// The token id.
    pub token_id: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("token_id", &self.token_id).finish_non_exhaustive()
    }
}

pub(crate) struct Store {
    directory: Directory,
    keys: Mutex<Keys>,
}

/// Records in order of creation; `numbers` has the index of each by key and by token id.
#[derive(Default)]
struct Keys {
    records: Vec<Record>,
    numbers: HashMap<Box<str>, usize>,
}

struct Record {
    token: Token,
    revoked: bool,
    validations: u64,
}

impl Store {
    pub(crate) fn new(directory: Directory) -> Self {
        Self { directory, keys: Mutex::default() }
    }

    /// Performs an authorized call.
    pub(crate) fn perform_call(&self, call: Call, now: Timestamp) -> Result<Reply, Status> {
        match call {
            Call::Create(new) => self.create_key(new, now).map(Reply::Created),
            Call::Validate(token) => {
                self.lock_keys().validate_token(check_token(&token)?, now).map(Reply::Token)
            }
            Call::Invalidate(token) => {
                if self.revoke_key(check_token(&token)?) {
                    Ok(Reply::Invalidated)
                } else {
                    Err(not_found())
                }
            }
            Call::List(page) => self.list_keys(&page, now).map(Reply::Page),
            Call::Update(token, update) => self.update_key(&token, update, now).map(Reply::Token),
        }
    }

    pub(crate) fn issue_key(&self, issue: Issue, now: Timestamp) -> (String, Token) {
        self.lock_keys().add_key(issue, now)
    }

    /// Revokes a key, given as itself or by its token id. False if there is none.
    pub(crate) fn revoke_key(&self, token: &str) -> bool {
        self.lock_keys().find_record(token).map(|record| record.revoked = true).is_some()
    }

    pub(crate) fn validations_of(&self, token: &str) -> u64 {
        self.lock_keys().find_record(token).map_or(0, |record| record.validations)
    }

    fn create_key(&self, new: NewToken, now: Timestamp) -> Result<Created, Status> {
        if new.organization_id.is_empty() {
            return Err(Status::invalid_field("organization_id", "required", "value is required"));
        }
        check_claims(&new.custom_claims)?;
        check_description(new.description.as_deref())?;
        // It is assumed that Scalekit refuses an expiry in the past.
        if new.expiry.is_some_and(|expiry| expiry <= now) {
            return Err(Status::invalid_field("expiry", "timestamp.gt_now", "value must be in the future"));
        }
        let roles = self.directory.find_roles(&new.organization_id, new.user_id.as_deref())?;
        let issue = Issue {
            organization_id: new.organization_id,
            user_id: new.user_id.unwrap_or_default(),
            custom_claims: new.custom_claims,
            expiry: new.expiry,
            description: new.description.unwrap_or_default(),
            roles,
            ..Issue::default()
        };
        let (key, info) = self.issue_key(issue, now);
        Ok(Created { token: key.into(), info })
    }

    fn list_keys(&self, page: &PageRequest, now: Timestamp) -> Result<Page, Status> {
        let (organization, user) = (page.organization_id.as_str(), page.user_id.as_deref());
        if !organization.starts_with(limits::ORGANIZATION_PREFIX) {
            return Err(Status::invalid_field(
                "organization_id",
                "string.prefix",
                "value does not have prefix `org_`",
            ));
        }
        if organization.chars().count() > limits::MAX_ORGANIZATION_ID {
            let rule = "value length must be at most 32 characters";
            return Err(Status::invalid_field("organization_id", "string.max_len", rule));
        }
        let size = page.page_size.unwrap_or(limits::DEFAULT_PAGE_SIZE).into();
        let cursor = Cursor::decode(page.page_token.as_deref())?;
        self.directory.find_roles(organization, user)?;
        Ok(self.lock_keys().list_page(organization, user, size, cursor, now))
    }

    fn update_key(&self, token: &SecretString, update: TokenUpdate, now: Timestamp) -> Result<Token, Status> {
        let token = check_token(token)?;
        if let Some(claims) = &update.custom_claims {
            check_claims(claims)?;
        }
        check_description(update.description.as_deref())?;
        let mut keys = self.lock_keys();
        let token = &mut keys.find_live(token, now)?.token;
        if let Some(claims) = update.custom_claims {
            token.custom_claims = claims;
        }
        if let Some(description) = update.description {
            token.description = some(description);
        }
        Ok(token.clone())
    }

    fn lock_keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    fn add_key(&mut self, issue: Issue, now: Timestamp) -> (String, Token) {
        let number = self.records.len();
        let key = key::generate_key(now);
        let created_at = Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now);
        let token = Token {
            token_id: key::new_token_id(now, number),
            organization_id: issue.organization_id,
            organization_external_id: some(issue.organization_external_id),
            user_id: some(issue.user_id),
            user_external_id: some(issue.user_external_id),
            email: some(issue.email),
            roles: issue.roles,
            custom_claims: issue.custom_claims,
            description: some(issue.description),
            token_suffix: Some(key::key_suffix(&key).to_owned()),
            created_at: Some(created_at),
            expiry: issue.expiry,
        };
        self.numbers.insert(key.clone().into(), number);
        self.numbers.insert(token.token_id.clone().into(), number);
        self.records.push(Record { token: token.clone(), revoked: false, validations: 0 });
        (key, token)
    }

    /// Finds a key, given as itself or by its token id, in any state.
    fn find_record(&mut self, token: &str) -> Option<&mut Record> {
        self.numbers.get(token).and_then(|number| self.records.get_mut(*number))
    }

    /// Finds a key that is neither revoked nor expired.
    fn find_live(&mut self, token: &str, now: Timestamp) -> Result<&mut Record, Status> {
        self.find_record(token).filter(|record| record.is_live(now)).ok_or_else(not_found)
    }

    fn validate_token(&mut self, token: &str, now: Timestamp) -> Result<Token, Status> {
        let record = self.find_record(token).ok_or_else(not_found)?;
        record.validations += 1;
        if record.is_live(now) { Ok(record.token.clone()) } else { Err(not_found()) }
    }

    fn list_page(
        &self,
        organization: &str,
        user: Option<&str>,
        size: usize,
        cursor: Cursor,
        now: Timestamp,
    ) -> Page {
        let matching: Vec<_> = (self.records.iter().enumerate().rev())
            .filter(|(_, record)| record.is_live(now) && record.belongs_to(organization, user))
            .collect();
        // Newest first: keys before `start` are newer than the page, those from `end` on older.
        let (start, end) = match cursor {
            Cursor::Older(than) => {
                let start = matching.partition_point(|(number, _)| *number >= than);
                (start, matching.len().min(start + size))
            }
            Cursor::Newer(than) => {
                let end = matching.partition_point(|(number, _)| *number > than);
                (end.saturating_sub(size), end)
            }
        };
        let page = &matching[start..end];
        let older = page.last().filter(|_| end < matching.len()).map(|(number, _)| Cursor::Older(*number));
        let newer = page.first().filter(|_| start > 0).map(|(number, _)| Cursor::Newer(*number));
        Page {
            tokens: page.iter().map(|(_, record)| record.token.clone()).collect(),
            total_count: i64::try_from(matching.len()).unwrap_or(i64::MAX),
            next_page_token: older.map(Cursor::encode),
            prev_page_token: newer.map(Cursor::encode),
        }
    }
}

impl Record {
    fn is_live(&self, now: Timestamp) -> bool {
        !self.revoked && self.token.expiry.is_none_or(|expiry| expiry > now)
    }

    fn belongs_to(&self, organization: &str, user: Option<&str>) -> bool {
        self.token.organization_id == organization
            && (user.is_none() || self.token.user_id.as_deref() == user)
    }
}

/// What is not empty.
fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

/// The same status for unknown, revoked and expired keys.
fn not_found() -> Status {
    Status::new(Code::NotFound, "Invalid or expired token")
}

fn check_token(token: &SecretString) -> Result<&str, Status> {
    match token.expose_secret() {
        "" => Err(Status::invalid_field("token", "required", "value is required")),
        token if key::is_well_formed(token) => Ok(token),
        _ => Err(Status::invalid_field("token", "token", "value is not a token")),
    }
}

fn check_claims(claims: &Claims) -> Result<(), Status> {
    let refuse =
        |constraint, description| Err(Status::invalid_field("custom_claims", constraint, description));
    if claims.len() > limits::MAX_CLAIMS {
        return refuse("map.max_pairs", "map must be at most 20 entries");
    }
    for (name, value) in claims {
        if !(1..=limits::MAX_CLAIM_NAME).contains(&name.chars().count()) {
            return refuse("map.keys", "key length must be from 1 to 30 characters");
        }
        if !(1..=limits::MAX_CLAIM_VALUE).contains(&value.chars().count()) {
            return refuse("map.values", "value length must be from 1 to 256 characters");
        }
    }
    Ok(())
}

fn check_description(description: Option<&str>) -> Result<(), Status> {
    if description.is_some_and(|text| text.chars().count() > limits::MAX_DESCRIPTION) {
        let rule = "value length must be at most 255 characters";
        return Err(Status::invalid_field("description", "string.max_len", rule));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
