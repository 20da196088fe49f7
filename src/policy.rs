//! What a route requires of an identity. Forwarding needs a [`Permit`], which only this module creates.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::identity::Identity;

/// Whose keys a route accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Keys that were created for a user within an organization.
    User,
    /// Keys that were created for an organization as a whole.
    Organization,
}

/// What a route requires of an identity. All of it must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirement {
    /// The required scope of the key.
    pub scope: Option<Scope>,
    /// Roles that the identity must all have.
    pub roles: Vec<String>,
    /// Claims that the identity must all have, with these values.
    pub claims: BTreeMap<String, String>,
}

/// The first requirement that an identity does not meet. Its text names what the route file requires, but no value of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unmet {
    /// The key is of the other scope.
    Scope(Scope),
    /// The role that is missing.
    Role(String),
    /// The name of a claim that is missing or has another value.
    Claim(String),
}

impl Unmet {
    /// `scope`, `role` or `claim`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Scope(_) => "scope",
            Self::Role(_) => "role",
            Self::Claim(_) => "claim",
        }
    }

    /// The required scope or role, or the name of the claim.
    pub fn name(&self) -> &str {
        match self {
            Self::Scope(Scope::User) => "user",
            Self::Scope(Scope::Organization) => "organization",
            Self::Role(name) | Self::Claim(name) => name,
        }
    }
}

/// The right to forward one request. The permit of a public route has no identity.
#[derive(Debug)]
pub struct Permit(Option<Arc<Identity>>);

impl Permit {
    /// For a route that requires no key, and for a CORS preflight.
    pub fn public() -> Self {
        Self(None)
    }

    /// The identity of the request; `None` if it was forwarded without a key.
    pub fn identity(&self) -> Option<&Arc<Identity>> {
        self.0.as_ref()
    }
}

impl Requirement {
    /// Whether both requirements admit the same identities.
    pub fn asks_same(&self, other: &Self) -> bool {
        self.includes(other) && other.includes(self)
    }

    /// Whether this requires everything that the other requires.
    pub fn includes(&self, other: &Self) -> bool {
        (other.scope.is_none() || self.scope == other.scope)
            && other.roles.iter().all(|role| self.roles.contains(role))
            && other.claims.iter().all(|(name, value)| self.claims.get(name) == Some(value))
    }

    /// Admits the identity if it has all that is required.
    ///
    /// # Errors
    /// What it lacks: of several, the scope before roles before claims.
    pub fn admit(&self, identity: Arc<Identity>) -> Result<Permit, Unmet> {
        if let Some(scope) = self.scope
            && identity.user_id.is_some() != (scope == Scope::User)
        {
            return Err(Unmet::Scope(scope));
        }
        if let Some(role) = self.roles.iter().find(|role| !identity.roles.contains(role)) {
            return Err(Unmet::Role(role.clone()));
        }
        if let Some((name, _)) =
            self.claims.iter().find(|(name, value)| identity.claims.get(*name) != Some(*value))
        {
            return Err(Unmet::Claim(name.clone()));
        }
        Ok(Permit(Some(identity)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::parse_id;

    fn identity(user: Option<&str>, roles: &[&str], claims: &[(&str, &str)]) -> Arc<Identity> {
        Arc::new(Identity {
            org_id: parse_id("org_1").unwrap(),
            org_external_id: None,
            user_id: user.and_then(parse_id),
            user_external_id: None,
            roles: roles.iter().map(ToString::to_string).collect(),
            token_id: None,
            claims: claims.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            expiry: None,
        })
    }

    #[track_caller]
    fn check(requirement: &Requirement, identity: Arc<Identity>, admitted: bool) {
        assert_eq!(requirement.admit(identity).is_ok(), admitted);
    }

    #[test]
    fn route_without_requirements_takes_every_identity() {
        check(&Requirement::default(), identity(None, &[], &[]), true);
        check(&Requirement::default(), identity(Some("usr_1"), &["admin"], &[("a", "b")]), true);
    }

    #[test]
    fn scope_distinguishes_user_and_organization_keys() {
        let user = Requirement { scope: Some(Scope::User), ..Requirement::default() };
        let organization = Requirement { scope: Some(Scope::Organization), ..Requirement::default() };
        check(&user, identity(Some("usr_1"), &[], &[]), true);
        check(&user, identity(None, &[], &[]), false);
        check(&organization, identity(None, &[], &[]), true);
        check(&organization, identity(Some("usr_1"), &[], &[]), false);
    }

    #[test]
    fn first_unmet_requirement_is_named_without_values() {
        let requirement = Requirement {
            scope: Some(Scope::User),
            roles: vec!["reader".into(), "admin".into()],
            claims: [("env".into(), "prod".into())].into(),
        };
        for (user, roles, claims, kind, name) in [
            (None, &["reader"][..], &[][..], "scope", "user"),
            (Some("usr_1"), &["reader"], &[("env", "prod")], "role", "admin"),
            (Some("usr_1"), &["admin", "reader"], &[("env", "test")], "claim", "env"),
        ] {
            let unmet = requirement.admit(identity(user, roles, claims)).unwrap_err();
            assert_eq!((unmet.kind(), unmet.name()), (kind, name));
        }
    }

    #[test]
    fn all_roles_and_claims_must_match_exactly() {
        let roles = Requirement { roles: vec!["admin".into(), "reader".into()], ..Requirement::default() };
        check(&roles, identity(None, &["reader", "admin", "x"], &[]), true);
        check(&roles, identity(None, &["admin"], &[]), false);
        check(&roles, identity(None, &["Admin", "reader"], &[]), false);
        let claims = Requirement { claims: [("env".into(), "prod".into())].into(), ..Requirement::default() };
        check(&claims, identity(None, &[], &[("env", "prod"), ("x", "y")]), true);
        for claims_held in [&[("env", "production")][..], &[("Env", "prod")], &[]] {
            check(&claims, identity(None, &[], claims_held), false);
        }
    }
}
