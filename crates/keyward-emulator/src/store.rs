//! The keys, and what each call does to them. A revoked key stays known, so that revoking it again succeeds.

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

/// A key to be made without any check, so that tests can have what the API refuses. `""` is none.
#[derive(Clone, Debug, Default)]
pub struct Issue {
    /// The organization it belongs to.
    pub organization_id: String,
    /// The caller's own id of that organization.
    pub organization_external_id: String,
    /// The user it belongs to.
    pub user_id: String,
    /// The caller's own id of that user.
    pub user_external_id: String,
    /// The user's address.
    pub email: String,
    /// Free text by name.
    pub custom_claims: BTreeMap<String, String>,
    /// The user's roles.
    pub roles: Vec<String>,
    /// The first moment at which it is no longer valid.
    pub expiry: Option<Timestamp>,
    /// What it is for.
    pub description: String,
}

/// A new key.
#[derive(Clone)]
pub struct Issued {
    /// The key itself.
    pub key: String,
    /// Its id.
    pub token_id: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").field("token_id", &self.token_id).finish_non_exhaustive()
    }
}

/// What Scalekit tells about a key.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) token_id: String,
    pub(crate) token_suffix: String,
    pub(crate) created_at: Timestamp,
    pub(crate) issue: Issue,
}

/// All keys.
pub(crate) struct Store {
    directory: Directory,
    keys: Mutex<Keys>,
}

/// Records in the order of their making; a record's place in it is its number.
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

    /// Does what is asked for by a client that may ask it.
    pub(crate) fn perform(&self, call: Call, now: Timestamp) -> Result<Reply, Status> {
        match call {
            Call::Create(create) => self.create(create, now),
            Call::Validate { token } => {
                well_formed(&token)?;
                self.keys().validate(&token, now).map(Reply::Token)
            }
            Call::Invalidate { token } => {
                well_formed(&token)?;
                if self.revoke(&token) { Ok(Reply::Nothing) } else { Err(unknown()) }
            }
            Call::List(list) => self.list(&list, now).map(Reply::Page),
            Call::Update(update) => self.update(update, now).map(Reply::Token),
        }
    }

    /// Makes a key.
    pub(crate) fn issue(&self, issue: Issue, now: Timestamp) -> (String, Arc<Token>) {
        self.keys().add(issue, now)
    }

    /// Revokes a key by itself or by its id. False: there is no such key.
    pub(crate) fn revoke(&self, token: &str) -> bool {
        self.keys().find(token).map(|record| record.revoked = true).is_some()
    }

    /// How many validations found this key.
    pub(crate) fn validations_of(&self, token: &str) -> u64 {
        self.keys().find(token).map_or(0, |record| record.validations)
    }

    fn create(&self, create: Create, now: Timestamp) -> Result<Reply, Status> {
        if create.organization_id.is_empty() {
            return Err(Status::invalid("organization_id", "required", "value is required"));
        }
        check_claims(&create.custom_claims)?;
        check_description(&create.description)?;
        // That an expiry in the past is refused is a guess.
        if create.expiry.is_some_and(|expiry| expiry <= now) {
            return Err(Status::invalid("expiry", "timestamp.gt_now", "value must be in the future"));
        }
        let roles = self.directory.roles(&create.organization_id, &create.user_id)?;
        let issue = Issue {
            organization_id: create.organization_id,
            user_id: create.user_id,
            custom_claims: create.custom_claims,
            expiry: create.expiry,
            description: create.description,
            roles,
            ..Issue::default()
        };
        let (key, token) = self.issue(issue, now);
        Ok(Reply::Created { key, token })
    }

    fn list(&self, list: &List, now: Timestamp) -> Result<Page, Status> {
        let organization = list.organization_id.as_str();
        if !organization.starts_with("org_") {
            return Err(Status::invalid(
                "organization_id",
                "string.prefix",
                "value does not have prefix `org_`",
            ));
        }
        if organization.chars().count() > 32 {
            let rule = "value length must be at most 32 characters";
            return Err(Status::invalid("organization_id", "string.max_len", rule));
        }
        let size = match usize::try_from(list.page_size) {
            Ok(0) => 10,
            Ok(size) if size <= 30 => size,
            _ => {
                return Err(Status::invalid("page_size", "int32.gte_lte", "value must be from 0 to 30"));
            }
        };
        let cursor = Cursor::read(&list.page_token)?;
        self.directory.roles(organization, &list.user_id)?;
        Ok(self.keys().page(organization, &list.user_id, size, cursor, now))
    }

    fn update(&self, update: Update, now: Timestamp) -> Result<Arc<Token>, Status> {
        well_formed(&update.token)?;
        check_claims(&update.custom_claims)?;
        check_description(update.description.as_deref().unwrap_or_default())?;
        let mut keys = self.keys();
        let token = &mut keys.live(&update.token, now)?.token;
        let issue = &mut Arc::make_mut(token).issue;
        if !update.custom_claims.is_empty() {
            issue.custom_claims = update.custom_claims;
        }
        if let Some(description) = update.description {
            issue.description = description;
        }
        Ok(Arc::clone(token))
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keys {
    fn add(&mut self, issue: Issue, now: Timestamp) -> (String, Arc<Token>) {
        let number = self.records.len();
        let key = key::key(now);
        let created_at = Timestamp::from_millisecond(now.as_millisecond()).unwrap_or(now);
        let (token_id, token_suffix) = (key::token_id(now, number), key::suffix(&key).to_owned());
        let token = Arc::new(Token { token_id, token_suffix, created_at, issue });
        self.numbers.insert(key.clone().into(), number);
        self.numbers.insert(token.token_id.clone().into(), number);
        self.records.push(Record { token: Arc::clone(&token), revoked: false, validations: 0 });
        (key, token)
    }

    /// A key by itself or by its id, whatever its state.
    fn find(&mut self, token: &str) -> Option<&mut Record> {
        self.numbers.get(token).and_then(|number| self.records.get_mut(*number))
    }

    /// A key that is neither revoked nor expired.
    fn live(&mut self, token: &str, now: Timestamp) -> Result<&mut Record, Status> {
        self.find(token).filter(|record| record.is_live(now)).ok_or_else(unknown)
    }

    fn validate(&mut self, token: &str, now: Timestamp) -> Result<Arc<Token>, Status> {
        let record = self.find(token).ok_or_else(unknown)?;
        record.validations += 1;
        if record.is_live(now) { Ok(Arc::clone(&record.token)) } else { Err(unknown()) }
    }

    fn page(&self, organization: &str, user: &str, size: usize, cursor: Cursor, now: Timestamp) -> Page {
        let matching: Vec<_> = (self.records.iter().enumerate().rev())
            .filter(|(_, record)| record.is_live(now) && record.token.belongs_to(organization, user))
            .collect();
        // Everything before `start` is newer than the page, everything from `end` on is older.
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
            next_page_token: older.map(Cursor::write).unwrap_or_default(),
            prev_page_token: newer.map(Cursor::write).unwrap_or_default(),
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

/// One answer for unknown, revoked and expired.
fn unknown() -> Status {
    Status::new(Code::NotFound, "Invalid or expired token")
}

fn well_formed(token: &str) -> Result<(), Status> {
    match token {
        "" => Err(Status::invalid("token", "required", "value is required")),
        token if key::is_well_formed(token) => Ok(()),
        _ => Err(Status::invalid("token", "token", "value is not a token")),
    }
}

fn check_claims(claims: &BTreeMap<String, String>) -> Result<(), Status> {
    let refuse = |constraint, description| Err(Status::invalid("custom_claims", constraint, description));
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
        return Err(Status::invalid("description", "string.max_len", rule));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
