//! The keys, and what each call does to them. A revoked key stays stored: revoking it again must succeed.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::call::{Call, Create, List, Page, Reply, Update};
use crate::directory::Directory;
use crate::key;
use crate::status::{Code, Status};
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

/// What Scalekit returns about a key.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) token_id: String,
    pub(crate) token_suffix: String,
    pub(crate) created_at: Timestamp,
    pub(crate) issue: Issue,
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
    token: Arc<Token>,
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
            Call::Create(create) => self.create_key(create, now),
            Call::Validate { token } => {
                check_token(&token)?;
                self.lock_keys().validate_token(&token, now).map(Reply::Token)
            }
            Call::Invalidate { token } => {
                check_token(&token)?;
                if self.revoke_key(&token) { Ok(Reply::Nothing) } else { Err(not_found()) }
            }
            Call::List(list) => self.list_keys(&list, now).map(Reply::Page),
            Call::Update(update) => self.update_key(update, now).map(Reply::Token),
        }
    }

    pub(crate) fn issue_key(&self, issue: Issue, now: Timestamp) -> (String, Arc<Token>) {
        self.lock_keys().add_key(issue, now)
    }

    /// Revokes a key, given as itself or by its token id. False if there is none.
    pub(crate) fn revoke_key(&self, token: &str) -> bool {
        self.lock_keys().find_record(token).map(|record| record.revoked = true).is_some()
    }

    pub(crate) fn validations_of(&self, token: &str) -> u64 {
        self.lock_keys().find_record(token).map_or(0, |record| record.validations)
    }

    fn create_key(&self, create: Create, now: Timestamp) -> Result<Reply, Status> {
        if create.organization_id.is_empty() {
            return Err(Status::invalid_field("organization_id", "required", "value is required"));
        }
        check_claims(&create.custom_claims)?;
        check_description(&create.description)?;
        // It is assumed that Scalekit refuses an expiry in the past.
        if create.expiry.is_some_and(|expiry| expiry <= now) {
            return Err(Status::invalid_field("expiry", "timestamp.gt_now", "value must be in the future"));
        }
        let roles = self.directory.find_roles(&create.organization_id, &create.user_id)?;
        let issue = Issue {
            organization_id: create.organization_id,
            user_id: create.user_id,
            custom_claims: create.custom_claims,
            expiry: create.expiry,
            description: create.description,
            roles,
            ..Issue::default()
        };
        let (key, token) = self.issue_key(issue, now);
        Ok(Reply::Created { key, token })
    }

    fn list_keys(&self, list: &List, now: Timestamp) -> Result<Page, Status> {
        let organization = list.organization_id.as_str();
        if !organization.starts_with("org_") {
            return Err(Status::invalid_field(
                "organization_id",
                "string.prefix",
                "value does not have prefix `org_`",
            ));
        }
        if organization.chars().count() > 32 {
            let rule = "value length must be at most 32 characters";
            return Err(Status::invalid_field("organization_id", "string.max_len", rule));
        }
        let size = match usize::try_from(list.page_size) {
            Ok(0) => 10,
            Ok(size) if size <= 30 => size,
            _ => {
                return Err(Status::invalid_field(
                    "page_size",
                    "int32.gte_lte",
                    "value must be from 0 to 30",
                ));
            }
        };
        let cursor = Cursor::decode(&list.page_token)?;
        self.directory.find_roles(organization, &list.user_id)?;
        Ok(self.lock_keys().list_page(organization, &list.user_id, size, cursor, now))
    }

    fn update_key(&self, update: Update, now: Timestamp) -> Result<Arc<Token>, Status> {
        check_token(&update.token)?;
        check_claims(&update.custom_claims)?;
        check_description(update.description.as_deref().unwrap_or_default())?;
        let mut keys = self.lock_keys();
        let token = &mut keys.find_live(&update.token, now)?.token;
        let issue = &mut Arc::make_mut(token).issue;
        if !update.custom_claims.is_empty() {
            issue.custom_claims = update.custom_claims;
        }
        if let Some(description) = update.description {
            issue.description = description;
        }
        Ok(Arc::clone(token))
    }

    fn lock_keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    fn add_key(&mut self, issue: Issue, now: Timestamp) -> (String, Arc<Token>) {
        let number = self.records.len();
        let key = key::generate_key(now);
        let created_at = Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now);
        let (token_id, token_suffix) = (key::new_token_id(now, number), key::key_suffix(&key).to_owned());
        let token = Arc::new(Token { token_id, token_suffix, created_at, issue });
        self.numbers.insert(key.clone().into(), number);
        self.numbers.insert(token.token_id.clone().into(), number);
        self.records.push(Record { token: Arc::clone(&token), revoked: false, validations: 0 });
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

    fn validate_token(&mut self, token: &str, now: Timestamp) -> Result<Arc<Token>, Status> {
        let record = self.find_record(token).ok_or_else(not_found)?;
        record.validations += 1;
        if record.is_live(now) { Ok(Arc::clone(&record.token)) } else { Err(not_found()) }
    }

    fn list_page(&self, organization: &str, user: &str, size: usize, cursor: Cursor, now: Timestamp) -> Page {
        let matching: Vec<_> = (self.records.iter().enumerate().rev())
            .filter(|(_, record)| record.is_live(now) && record.token.belongs_to(organization, user))
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
            tokens: page.iter().map(|(_, record)| Arc::clone(&record.token)).collect(),
            total_count: i32::try_from(matching.len()).unwrap_or(i32::MAX),
            next_page_token: older.map(Cursor::encode).unwrap_or_default(),
            prev_page_token: newer.map(Cursor::encode).unwrap_or_default(),
        }
    }
}

impl Record {
    fn is_live(&self, now: Timestamp) -> bool {
        !self.revoked && self.token.issue.expiry.is_none_or(|expiry| expiry > now)
    }
}

impl Token {
    fn belongs_to(&self, organization: &str, user: &str) -> bool {
        self.issue.organization_id == organization && (user.is_empty() || self.issue.user_id == user)
    }
}

/// The same status for unknown, revoked and expired keys.
fn not_found() -> Status {
    Status::new(Code::NotFound, "Invalid or expired token")
}

fn check_token(token: &str) -> Result<(), Status> {
    match token {
        "" => Err(Status::invalid_field("token", "required", "value is required")),
        token if key::is_well_formed(token) => Ok(()),
        _ => Err(Status::invalid_field("token", "token", "value is not a token")),
    }
}

fn check_claims(claims: &BTreeMap<String, String>) -> Result<(), Status> {
    let refuse =
        |constraint, description| Err(Status::invalid_field("custom_claims", constraint, description));
    if claims.len() > 20 {
        return refuse("map.max_pairs", "map must be at most 20 entries");
    }
    for (name, value) in claims {
        if !(1..=30).contains(&name.chars().count()) {
            return refuse("map.keys", "key length must be from 1 to 30 characters");
        }
        if !(1..=256).contains(&value.chars().count()) {
            return refuse("map.values", "value length must be from 1 to 256 characters");
        }
    }
    Ok(())
}

fn check_description(description: &str) -> Result<(), Status> {
    if description.chars().count() > 255 {
        let rule = "value length must be at most 255 characters";
        return Err(Status::invalid_field("description", "string.max_len", rule));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
