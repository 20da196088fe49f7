//! Limits that an operator sets for key management over HTTP: how long a key may live, and which claims clients may set.

use std::time::Duration;

use ::scalekit::token::{Claims, NewToken};
use jiff::{SignedDuration, Timestamp};

/// The limits of `[management]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IssuanceRules {
    /// The longest lifetime of a new key, which is also its lifetime if the request has no expiry.
    pub max_expiry: Option<Duration>,
    /// Whether a creation must have an expiry.
    pub require_expiry: bool,
    /// The claims that may be set, changed and removed; `None` allows all.
    pub claims: Option<Vec<String>>,
}

/// How a new key comes about, as rotation has rules of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuance {
    /// A client chooses all properties.
    Creation,
    /// The properties are those of the replaced key.
    Rotation,
}

/// What the rules do not allow, as text for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// The lifetime is too long or has no end.
    #[error("expiry: {0}")]
    Expiry(String),
    /// The name of a claim that is not allowed.
    #[error("custom_claims: {} may not be set, changed or removed here", quote_claim_name(.0))]
    Claim(String),
}

/// SECURITY: text longer than any claim name may be a key, and is not repeated.
fn quote_claim_name(name: &str) -> String {
    if name.chars().count() <= 30 { format!("{name:?}") } else { "a claim of this name".to_owned() }
}

/// `90d` for whole days.
fn format_lifetime(lifetime: Duration) -> String {
    const DAY: u64 = 86_400;
    match lifetime.as_secs() {
        seconds if seconds % DAY == 0 => format!("{}d", seconds / DAY),
        _ => humantime::format_duration(lifetime).to_string(),
    }
}

impl IssuanceRules {
    /// Applies the rules to a new key. A creation that breaks one is refused. A rotated key keeps the claims of the old one, which an
    /// operator may have set, and expires at the limit where the old one expires later or never.
    ///
    /// # Errors
    /// `Forbidden`, naming the field and what this server allows.
    pub fn enforce(&self, new: &mut NewToken, issuance: Issuance, now: Timestamp) -> Result<(), Forbidden> {
        let latest = self.latest_expiry(now);
        match issuance {
            Issuance::Creation => {
                self.check_claims(&Claims::new(), &new.custom_claims)?;
                if new.expiry.is_none() && self.require_expiry {
                    return Err(Forbidden::Expiry("is missing; this server requires one".to_owned()));
                }
                if latest.is_some_and(|latest| new.expiry > Some(latest)) {
                    let limit = format_lifetime(self.max_expiry.unwrap_or_default());
                    let problem = format!("is too late; this server allows at most {limit}");
                    return Err(Forbidden::Expiry(problem));
                }
            }
            Issuance::Rotation if new.expiry.is_none() && latest.is_none() && self.require_expiry => {
                let problem = "the old key has none, and this server requires one; create a key instead";
                return Err(Forbidden::Expiry(problem.to_owned()));
            }
            Issuance::Rotation => {}
        }
        new.expiry = match (new.expiry, latest) {
            (Some(expiry), Some(latest)) => Some(expiry.min(latest)),
            (expiry, latest) => expiry.or(latest),
        };
        Ok(())
    }

    fn latest_expiry(&self, now: Timestamp) -> Option<Timestamp> {
        let lifetime = SignedDuration::try_from(self.max_expiry?).ok()?;
        // Rounded up to the next second, so that a client which computed `now + max_expiry` a moment ago is not refused.
        let now = Timestamp::from_second(now.as_second() + 1).ok()?;
        now.checked_add(lifetime).ok()
    }

    /// Checks every claim that differs between `before` and `after`.
    ///
    /// # Errors
    /// The first claim that is not allowed.
    pub fn check_claims(&self, before: &Claims, after: &Claims) -> Result<(), Forbidden> {
        let Some(allowed) = &self.claims else { return Ok(()) };
        let is_changed = |name: &&String| before.get(*name) != after.get(*name);
        match before.keys().chain(after.keys()).filter(is_changed).find(|name| !allowed.contains(name)) {
            Some(name) => Err(Forbidden::Claim(name.clone())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    fn now() -> Timestamp {
        "2026-11-24T00:00:00Z".parse().unwrap()
    }

    fn in_days(days: i64) -> Option<Timestamp> {
        Some(now() + SignedDuration::from_hours(24 * days))
    }

    fn rules(max_days: Option<u64>, require_expiry: bool) -> IssuanceRules {
        let max_expiry = max_days.map(|days| Duration::from_secs(days * DAY));
        IssuanceRules { max_expiry, require_expiry, claims: None }
    }

    fn enforce_expiry(
        rules: &IssuanceRules,
        issuance: Issuance,
        expiry: Option<Timestamp>,
    ) -> Result<Option<Timestamp>, Forbidden> {
        let mut new = NewToken { expiry, ..NewToken::default() };
        rules.enforce(&mut new, issuance, now()).map(|()| new.expiry)
    }

    #[test]
    fn expiry_after_max_expiry_is_refused() {
        let ends = |rules: &IssuanceRules, expiry| enforce_expiry(rules, Issuance::Creation, expiry);
        let rules = rules(Some(90), false);
        assert_eq!(ends(&rules, in_days(90)), Ok(in_days(90)));
        assert!(
            matches!(ends(&rules, in_days(91)), Err(Forbidden::Expiry(text)) if text.contains("at most 90d"))
        );
        let default = ends(&rules, None).unwrap().unwrap();
        assert!(default >= in_days(90).unwrap() && default < in_days(91).unwrap());
    }

    #[test]
    fn creation_without_required_expiry_is_refused() {
        let ends = |rules: &IssuanceRules, expiry| enforce_expiry(rules, Issuance::Creation, expiry);
        for max in [None, Some(90)] {
            assert!(ends(&rules(max, true), None).is_err());
            assert_eq!(ends(&rules(max, true), in_days(1)), Ok(in_days(1)));
        }
        assert_eq!(ends(&IssuanceRules::default(), None), Ok(None));
    }

    #[test]
    fn rotated_key_expires_with_old_or_at_limit() {
        let ends = |rules: &IssuanceRules, expiry| enforce_expiry(rules, Issuance::Rotation, expiry);
        let limit = rules(Some(90), true);
        assert_eq!(ends(&limit, in_days(30)), Ok(in_days(30)));
        for old in [in_days(300), None] {
            let new = ends(&limit, old).unwrap().unwrap();
            assert!(new >= in_days(90).unwrap() && new < in_days(91).unwrap());
        }
        assert!(ends(&rules(None, true), None).is_err());
        assert_eq!(ends(&IssuanceRules::default(), None), Ok(None));
    }

    #[test]
    fn claim_not_in_allowed_claims_cannot_be_touched() {
        let rules = IssuanceRules { claims: Some(vec!["team".to_owned()]), ..IssuanceRules::default() };
        let claims = |pairs: &[(&str, &str)]| -> Claims {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let before = claims(&[("team", "a"), ("plan", "free")]);
        assert_eq!(rules.check_claims(&before, &claims(&[("team", "b"), ("plan", "free")])), Ok(()));
        assert_eq!(rules.check_claims(&before, &claims(&[("plan", "free")])), Ok(()));
        for after in [
            claims(&[("team", "a"), ("plan", "paid")]),
            claims(&[("team", "a")]),
            claims(&[("team", "a"), ("plan", "free"), ("admin", "yes")]),
        ] {
            assert!(rules.check_claims(&before, &after).is_err(), "{after:?}");
        }
        assert_eq!(IssuanceRules::default().check_claims(&before, &Claims::new()), Ok(()));
    }
}
