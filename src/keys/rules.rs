//! What an operator allows those who manage keys through Keyward: how long a key may live, and which claims they may set.

use std::time::Duration;

use ::scalekit::token::{Claims, NewToken};
use jiff::{SignedDuration, Timestamp};

/// The guard rails of `[management]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The longest life of a new key; one for which no end is asked ends then.
    pub max_expiry: Option<Duration>,
    /// Whether an end must be asked for.
    pub require_expiry: bool,
    /// The claims that may be set, changed and removed; none: all.
    pub claims: Option<Vec<String>>,
}

/// What a rule forbids, in words for who asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// Too long a life, or an endless one.
    #[error("expiry: {0}")]
    Expiry(String),
    /// A claim that may not be touched.
    #[error("custom_claims: {} may not be set, changed or removed here", shown(.0))]
    Claim(String),
}

/// SECURITY: what is longer than any claim's name may be a key.
fn shown(name: &str) -> String {
    if name.chars().count() <= 30 { format!("{name:?}") } else { "a claim of this name".to_owned() }
}

/// As people write it: whole days as days.
fn written(life: Duration) -> String {
    const DAY: u64 = 86_400;
    match life.as_secs() {
        seconds if seconds % DAY == 0 => format!("{}d", seconds / DAY),
        _ => humantime::format_duration(life).to_string(),
    }
}

impl Rules {
    /// Holds a new key to the rules.
    ///
    /// # Errors
    /// What it breaks.
    pub fn hold(&self, new: &mut NewToken, now: Timestamp) -> Result<(), Forbidden> {
        self.allow(&Claims::new(), &new.custom_claims)?;
        self.limit(new, now)
    }

    /// Holds a key that takes another's place to them: its claims are the other's, and its life is cut where it is too long.
    ///
    /// # Errors
    /// What it breaks.
    pub fn hold_successor(&self, new: &mut NewToken, now: Timestamp) -> Result<(), Forbidden> {
        if let (Some(asked), Some(latest)) = (new.expiry, self.latest(now)) {
            new.expiry = Some(asked.min(latest));
        }
        // Where the old one never ends and a limit is set, the new one ends at the limit.
        if new.expiry.is_none() {
            new.expiry = self.latest(now);
        }
        if new.expiry.is_none() && self.require_expiry {
            let problem = "the old key has none, and this server asks for one; create a key instead";
            return Err(Forbidden::Expiry(problem.to_owned()));
        }
        self.limit(new, now)
    }

    fn limit(&self, new: &mut NewToken, now: Timestamp) -> Result<(), Forbidden> {
        let latest = self.latest(now);
        match (new.expiry, latest) {
            (None, _) if self.require_expiry => {
                Err(Forbidden::Expiry("is missing, and this server asks for one".to_owned()))
            }
            (Some(asked), Some(latest)) if asked > latest => Err(Forbidden::Expiry(format!(
                "is too late; this server takes at most {}",
                written(self.max_expiry.unwrap_or_default())
            ))),
            (None, latest) => {
                new.expiry = latest;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn latest(&self, now: Timestamp) -> Option<Timestamp> {
        let life = SignedDuration::try_from(self.max_expiry?).ok()?;
        // Whole seconds, and the one that has begun: who asks for exactly the most gets it.
        let now = Timestamp::from_second(now.as_second() + 1).ok()?;
        now.checked_add(life).ok()
    }

    /// Whether claims may become these.
    ///
    /// # Errors
    /// The first that may not.
    pub fn allow(&self, before: &Claims, after: &Claims) -> Result<(), Forbidden> {
        let Some(allowed) = &self.claims else { return Ok(()) };
        let touched = |name: &&String| before.get(*name) != after.get(*name);
        match before.keys().chain(after.keys()).filter(touched).find(|name| !allowed.contains(name)) {
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

    fn rules(max_days: Option<u64>, require_expiry: bool) -> Rules {
        let max_expiry = max_days.map(|days| Duration::from_secs(days * DAY));
        Rules { max_expiry, require_expiry, claims: None }
    }

    fn ends(rules: &Rules, expiry: Option<Timestamp>) -> Result<Option<Timestamp>, Forbidden> {
        let mut new = NewToken { expiry, ..NewToken::default() };
        rules.hold(&mut new, now()).map(|()| new.expiry)
    }

    #[test]
    fn a_key_lives_no_longer_than_the_limit() {
        let rules = rules(Some(90), false);
        assert_eq!(ends(&rules, in_days(90)), Ok(in_days(90)));
        assert!(
            matches!(ends(&rules, in_days(91)), Err(Forbidden::Expiry(text)) if text.contains("at most 90d"))
        );
        let default = ends(&rules, None).unwrap().unwrap();
        assert!(default >= in_days(90).unwrap() && default < in_days(91).unwrap());
    }

    #[test]
    fn an_end_must_be_asked_for_where_it_is_required() {
        for max in [None, Some(90)] {
            assert!(ends(&rules(max, true), None).is_err());
            assert_eq!(ends(&rules(max, true), in_days(1)), Ok(in_days(1)));
        }
        assert_eq!(ends(&Rules::default(), None), Ok(None));
    }

    #[test]
    fn a_successor_ends_with_the_old_key_or_at_the_limit() {
        let ends = |rules: &Rules, expiry| {
            let mut new = NewToken { expiry, ..NewToken::default() };
            rules.hold_successor(&mut new, now()).map(|()| new.expiry)
        };
        let limit = rules(Some(90), true);
        assert_eq!(ends(&limit, in_days(30)), Ok(in_days(30)));
        for old in [in_days(300), None] {
            let new = ends(&limit, old).unwrap().unwrap();
            assert!(new >= in_days(90).unwrap() && new < in_days(91).unwrap());
        }
        assert!(ends(&rules(None, true), None).is_err());
        assert_eq!(ends(&Rules::default(), None), Ok(None));
    }

    #[test]
    fn a_claim_that_is_not_listed_can_be_neither_set_nor_changed_nor_removed() {
        let rules = Rules { claims: Some(vec!["team".to_owned()]), ..Rules::default() };
        let claims = |pairs: &[(&str, &str)]| -> Claims {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let before = claims(&[("team", "a"), ("plan", "free")]);
        assert_eq!(rules.allow(&before, &claims(&[("team", "b"), ("plan", "free")])), Ok(()));
        assert_eq!(rules.allow(&before, &claims(&[("plan", "free")])), Ok(()));
        for after in [
            claims(&[("team", "a"), ("plan", "paid")]),
            claims(&[("team", "a")]),
            claims(&[("team", "a"), ("plan", "free"), ("admin", "yes")]),
        ] {
            assert!(rules.allow(&before, &after).is_err(), "{after:?}");
        }
        assert_eq!(Rules::default().allow(&before, &Claims::new()), Ok(()));
    }
}
