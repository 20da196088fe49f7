//! The API's documented limits (the `buf.validate` rules of `scalekit/v1/tokens/tokens.proto`), which are checked before a call is
//! sent. Lengths are in characters, not bytes.

use jiff::Timestamp;

use crate::token::{Claims, NewToken, PageRequest, TokenUpdate};

/// Maximum number of claims of a token.
pub const MAX_CLAIMS: usize = 20;
/// Maximum length of a claim's name; the minimum is 1.
pub const MAX_CLAIM_NAME: usize = 30;
/// Maximum length of a claim's value; the minimum is 1.
pub const MAX_CLAIM_VALUE: usize = 256;
/// Maximum length of a description.
pub const MAX_DESCRIPTION: usize = 255;
/// The prefix of organization ids.
pub const ORGANIZATION_PREFIX: &str = "org_";
/// Maximum length of an organization id.
pub const MAX_ORGANIZATION_ID: usize = 32;
/// Maximum number of tokens on a page.
pub const MAX_PAGE_SIZE: u8 = 30;
/// Number of tokens on a page without a requested size.
pub const DEFAULT_PAGE_SIZE: u8 = 10;

/// An argument that the API would refuse.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidArgument {
    /// The field's name in the API.
    pub field: &'static str,
    /// What is wrong, and what is allowed. Values of claims are never repeated.
    pub problem: String,
}

impl NewToken {
    /// Checks the new token against the limits, and `expiry` against `now`. `organization_id` is checked by the rule for listing,
    /// as the token could not be listed otherwise.
    ///
    /// # Errors
    /// The first field that the API would refuse.
    pub fn check(&self, now: Timestamp) -> Result<(), InvalidArgument> {
        check_scope(&self.organization_id, self.user_id.as_deref())?;
        if let Some(expiry) = self.expiry.filter(|expiry| *expiry <= now) {
            return refuse_field("expiry", format!("{expiry} has passed; it should be in the future"));
        }
        check_claims(&self.custom_claims)?;
        check_description(self.description.as_deref())
    }
}

impl TokenUpdate {
    /// Checks the update against the limits.
    ///
    /// # Errors
    /// The first field that the API would refuse, or ignore, as it does an empty map of claims.
    pub fn check(&self) -> Result<(), InvalidArgument> {
        if let Some(claims) = &self.custom_claims {
            if claims.is_empty() {
                let problem = "Scalekit cannot remove the last claim of a key; create a new key without it";
                return refuse_field("custom_claims", problem);
            }
            check_claims(claims)?;
        }
        check_description(self.description.as_deref())
    }
}

impl PageRequest {
    /// Checks the request against the limits.
    ///
    /// # Errors
    /// The first field that the API would refuse.
    pub fn check(&self) -> Result<(), InvalidArgument> {
        check_scope(&self.organization_id, self.user_id.as_deref())?;
        match self.page_size {
            None | Some(1..=MAX_PAGE_SIZE) => Ok(()),
            Some(_) => refuse_field("page_size", format!("should be from 1 to {MAX_PAGE_SIZE}")),
        }
    }
}

fn refuse_field(field: &'static str, problem: impl Into<String>) -> Result<(), InvalidArgument> {
    Err(InvalidArgument { field, problem: problem.into() })
}

fn check_scope(organization: &str, user: Option<&str>) -> Result<(), InvalidArgument> {
    if !organization.starts_with(ORGANIZATION_PREFIX) || organization.chars().count() > MAX_ORGANIZATION_ID {
        let problem = format!(
            "should begin with {ORGANIZATION_PREFIX} and have at most {MAX_ORGANIZATION_ID} characters"
        );
        return refuse_field("organization_id", problem);
    }
    // SECURITY: "" is equivalent to absent on the wire, so a token for a user would become one for the organization.
    if user == Some("") {
        return refuse_field("user_id", "is empty; omit it for a key without a user");
    }
    Ok(())
}

fn check_claims(claims: &Claims) -> Result<(), InvalidArgument> {
    let field = "custom_claims";
    if claims.len() > MAX_CLAIMS {
        return refuse_field(field, format!("{} are too many; a key has at most {MAX_CLAIMS}", claims.len()));
    }
    for (name, value) in claims {
        let (name_length, length) = (name.chars().count(), value.chars().count());
        if !(1..=MAX_CLAIM_NAME).contains(&name_length) {
            let problem =
                format!("a name has {name_length} characters; it should have from 1 to {MAX_CLAIM_NAME}");
            return refuse_field(field, problem);
        }
        if length == 0 {
            let problem =
                format!("{name:?} has no value; it should have from 1 to {MAX_CLAIM_VALUE} characters");
            return refuse_field(field, problem);
        }
        if length > MAX_CLAIM_VALUE {
            let problem = format!(
                "{name:?} has a value of {length} characters; it should have from 1 to {MAX_CLAIM_VALUE}"
            );
            return refuse_field(field, problem);
        }
    }
    Ok(())
}

fn check_description(description: Option<&str>) -> Result<(), InvalidArgument> {
    match description.map_or(0, |text| text.chars().count()) {
        0..=MAX_DESCRIPTION => Ok(()),
        length => {
            let problem = format!("has {length} characters; it should have at most {MAX_DESCRIPTION}");
            refuse_field("description", problem)
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

    fn claim(name: &str, value: &str) -> Claims {
        Claims::from([(name.to_owned(), value.to_owned())])
    }

    #[track_caller]
    fn check(new: NewToken, expected: Result<(), &str>) {
        let new = NewToken { organization_id: "org_1".into(), ..new };
        assert_eq!(new.check(now()).map_err(|error| error.to_string()), expected.map_err(str::to_owned));
    }

    #[test]
    fn claim_limits_count_characters_and_are_named() {
        let with = |custom_claims| NewToken { custom_claims, ..NewToken::default() };
        check(with(claim("team", &"ä".repeat(256))), Ok(()));
        check(
            with(claim("team", &"ä".repeat(257))),
            Err("custom_claims: \"team\" has a value of 257 characters; it should have from 1 to 256"),
        );
        check(
            with(claim("team", "")),
            Err("custom_claims: \"team\" has no value; it should have from 1 to 256 characters"),
        );
        check(with(claim(&"ä".repeat(30), "x")), Ok(()));
        for name in [String::new(), "ä".repeat(31)] {
            let count = name.chars().count();
            let message =
                format!("custom_claims: a name has {count} characters; it should have from 1 to 30");
            check(with(claim(&name, "x")), Err(&message));
        }
        check(with(claims(20)), Ok(()));
        check(with(claims(21)), Err("custom_claims: 21 are too many; a key has at most 20"));
    }

    #[test]
    fn description_and_expiry_limits_are_checked() {
        let described = |text: String| NewToken { description: Some(text), ..NewToken::default() };
        check(described("ä".repeat(255)), Ok(()));
        check(described("ä".repeat(256)), Err("description: has 256 characters; it should have at most 255"));
        let expiring = |text: &str| NewToken { expiry: Some(text.parse().unwrap()), ..NewToken::default() };
        check(expiring("2026-11-24T00:00:01Z"), Ok(()));
        check(
            expiring("2026-11-24T00:00:00Z"),
            Err("expiry: 2026-11-24T00:00:00Z has passed; it should be in the future"),
        );
    }

    #[test]
    fn list_organization_and_user_are_checked() {
        let page = |organization: &str, user: Option<&str>, page_size| PageRequest {
            organization_id: organization.to_owned(),
            user_id: user.map(str::to_owned),
            page_size,
            page_token: None,
        };
        let longest = format!("org_{}", "1".repeat(28));
        for good in
            [page("org_1", None, None), page(&longest, Some("usr_1"), Some(1)), page("org_1", None, Some(30))]
        {
            assert_eq!(good.check(), Ok(()));
        }
        for (bad, field) in [
            (page("", None, None), "organization_id"),
            (page("usr_1", None, None), "organization_id"),
            (page(&format!("{longest}1"), None, None), "organization_id"),
            (page("org_1", Some(""), None), "user_id"),
            (page("org_1", None, Some(0)), "page_size"),
            (page("org_1", None, Some(31)), "page_size"),
        ] {
            assert_eq!(bad.check().unwrap_err().field, field, "{bad:?}");
        }
    }

    #[test]
    fn update_without_claims_is_refused() {
        let update = |custom_claims| TokenUpdate { custom_claims, description: Some(String::new()) };
        assert_eq!(update(None).check(), Ok(()));
        assert_eq!(update(Some(claim("a", "b"))).check(), Ok(()));
        assert_eq!(update(Some(Claims::new())).check().unwrap_err().field, "custom_claims");
        assert_eq!(update(Some(claims(21))).check().unwrap_err().field, "custom_claims");
    }
}
