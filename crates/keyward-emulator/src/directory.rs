//! Which organizations and users exist. Without a list every id that a request names does. A user may be a member of several
//! organizations, as in Scalekit.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;

use scalekit::status::{Code, Status};

/// An organization, or a user of it with roles, as written on the command line: `ORG[/USER[:role,…]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Only {
    /// The organization's id.
    pub organization: String,
    /// The user's id.
    pub user: Option<String>,
    /// The user's roles.
    pub roles: Vec<String>,
}

/// The text is no [`Only`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not of the form ORG, ORG/USER or ORG/USER:role,role")]
pub struct OnlyError(String);

impl FromStr for Only {
    type Err = OnlyError;

    fn from_str(text: &str) -> Result<Self, OnlyError> {
        let error = || OnlyError(text.to_owned());
        let word = |word: &str| match word.contains(['/', ':', ',']) || word.contains(char::is_whitespace) {
            false if !word.is_empty() => Ok(word.to_owned()),
            _ => Err(error()),
        };
        let (organization, user) = match text.split_once('/') {
            Some((organization, user)) => (organization, Some(user)),
            None => (text, None),
        };
        let (user, roles) = match user.map(|user| user.split_once(':').unwrap_or((user, ""))) {
            Some((user, "")) if !text.ends_with(':') => (Some(word(user)?), Vec::new()),
            Some((user, roles)) => (Some(word(user)?), roles.split(',').map(word).collect::<Result<_, _>>()?),
            None => (None, Vec::new()),
        };
        Ok(Self { organization: word(organization)?, user, roles })
    }
}

pub(crate) struct Directory {
    /// `None`: every organization and user exists.
    listed: Option<Listed>,
}

#[derive(Default)]
struct Listed {
    organizations: HashSet<String>,
    roles: HashMap<(String, String), Vec<String>>,
}

impl Directory {
    pub(crate) fn new(only: Vec<Only>) -> Self {
        if only.is_empty() {
            return Self { listed: None };
        }
        let mut listed = Listed::default();
        for Only { organization, user, roles } in only {
            if let Some(user) = user {
                listed.roles.entry((organization.clone(), user)).or_default().extend(roles);
            }
            listed.organizations.insert(organization);
        }
        Self { listed: Some(listed) }
    }

    /// The roles of a user in an organization; no roles without a user. It is assumed that Scalekit answers NOT_FOUND for
    /// unknown ones.
    pub(crate) fn find_roles(&self, organization: &str, user: Option<&str>) -> Result<Vec<String>, Status> {
        let Some(listed) = &self.listed else {
            return Ok(Vec::new());
        };
        if !listed.organizations.contains(organization) {
            return Err(Status::new(Code::NotFound, "organization not found"));
        }
        let Some(user) = user else { return Ok(Vec::new()) };
        listed
            .roles
            .get(&(organization.to_owned(), user.to_owned()))
            .cloned()
            .ok_or_else(|| Status::new(Code::NotFound, "user not found in the organization"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(&str, Option<&str>, &[&str])>) {
        let expected = expected.map(|(organization, user, roles)| Only {
            organization: organization.to_owned(),
            user: user.map(str::to_owned),
            roles: roles.iter().map(ToString::to_string).collect(),
        });
        assert_eq!(text.parse::<Only>().ok(), expected, "{text:?}");
    }

    #[test]
    fn organization_user_and_roles_are_parsed() {
        check("org_1", Some(("org_1", None, &[])));
        check("org_1/usr_1", Some(("org_1", Some("usr_1"), &[])));
        check("org_1/usr_1:admin", Some(("org_1", Some("usr_1"), &["admin"])));
        check("org_1/usr_1:admin,reader", Some(("org_1", Some("usr_1"), &["admin", "reader"])));
    }

    #[test]
    fn malformed_entries_are_refused() {
        for text in [
            "",
            "/",
            "org_1/",
            "/usr",
            "org:admin",
            "org/usr:",
            "org/usr:a,",
            "org/usr:,a",
            "o/u/x",
            "o /u",
            "o/u:a:b",
        ] {
            check(text, None);
        }
    }

    #[test]
    fn list_limits_organizations_and_users() {
        let only = ["org_1/usr_1:admin", "org_2"].map(|text| text.parse().unwrap());
        let directory = Directory::new(only.into());
        assert_eq!(directory.find_roles("org_1", Some("usr_1")), Ok(vec!["admin".to_owned()]));
        assert_eq!(directory.find_roles("org_1", None), Ok(vec![]));
        assert_eq!(directory.find_roles("org_2", None), Ok(vec![]));
        for (organization, user) in [("org_3", ""), ("org_2", "usr_1"), ("org_1", "usr_2")] {
            assert_eq!(directory.find_roles(organization, Some(user)).unwrap_err().code, Code::NotFound);
        }
        assert_eq!(Directory::new(vec![]).find_roles("any", Some("any")), Ok(vec![]));
    }
}
