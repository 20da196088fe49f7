//! ValidateToken, and what its answers mean: the table of contract section 5.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use hyper::Method;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::grpc::Status;
use super::management::{self, Claims};
use super::moment;
use super::object::Object;
use super::{Answer, Content, Fault, Scalekit, Transport, proto};
use crate::credential::ApiKey;
use crate::identity::{self, Identity};
use crate::secret::wiped;

/// What Scalekit says of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is good, and speaks for this identity.
    Valid(Arc<Identity>),
    /// It is definitely not: unknown, expired, revoked, malformed.
    Invalid,
}

/// Retries may be a tenth of validations, and ten at once: an outage must not double the load.
pub(super) struct RetryBudget(AtomicU32);

pub(super) const VALIDATE: &str = "/api/v1/tokens:validate";

const TENTHS_AT_MOST: u32 = 100;
const TRIES: u32 = 3;

impl Default for RetryBudget {
    fn default() -> Self {
        Self(AtomicU32::new(TENTHS_AT_MOST))
    }
}

impl RetryBudget {
    fn deposit(&self) {
        let add = |tenths: u32| (tenths < TENTHS_AT_MOST).then_some(tenths + 1);
        // Full is fine.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    fn withdraw(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |tenths| tenths.checked_sub(10)).is_ok()
    }
}

#[derive(Serialize)]
struct ValidateToken<'a> {
    token: &'a str,
}

#[derive(Deserialize)]
struct Validated {
    token_info: Option<Object<TokenInfo>>,
}

/// Absent, null and "" mean the same (contract section 3).
#[derive(Deserialize)]
struct TokenInfo {
    token_id: Option<String>,
    organization_id: Option<String>,
    organization_external_id: Option<String>,
    user_id: Option<String>,
    user_external_id: Option<String>,
    #[serde(default, deserialize_with = "management::claims")]
    custom_claims: Claims,
    #[serde(default)]
    expiry: Expiry,
    token_suffix: Option<String>,
    roles: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(from = "Option<String>")]
enum Expiry {
    #[default]
    Never,
    At(Timestamp),
    Broken,
}

impl From<Option<String>> for Expiry {
    fn from(text: Option<String>) -> Self {
        match text.filter(|text| !text.is_empty()) {
            None => Self::Never,
            Some(text) => moment::of_text(&text).map_or(Self::Broken, Self::At),
        }
    }
}

impl From<proto::Token> for TokenInfo {
    fn from(token: proto::Token) -> Self {
        Self {
            token_id: Some(token.token_id),
            organization_id: Some(token.organization_id),
            organization_external_id: Some(token.organization_external_id),
            user_id: token.user_id,
            user_external_id: token.user_external_id,
            custom_claims: token.custom_claims,
            expiry: token
                .expiry
                .map_or(Expiry::Never, |expiry| expiry.moment().map_or(Expiry::Broken, Expiry::At)),
            token_suffix: Some(token.token_suffix),
            roles: Some(token.roles),
        }
    }
}

/// What Scalekit says of a call that failed (contract section 3).
#[derive(Deserialize)]
pub(super) struct ErrorBody {
    pub(super) code: Option<i64>,
    pub(super) message: Option<String>,
    details: Option<Vec<serde_json::Value>>,
}

impl Scalekit {
    /// Asks whether the key is good, within the time limit of `scalekit.timeout`, retries included.
    ///
    /// # Errors
    /// When there is no verdict. The fault says whose it is.
    pub async fn validate(&self, key: &ApiKey) -> Result<Verdict, Fault> {
        let deadline = Instant::now() + self.timeout;
        self.retries.deposit();
        for tried in 1..=TRIES {
            match self.validate_once(key, deadline).await {
                Err(fault) if fault.is_passing() && tried < TRIES => {
                    let pause = Duration::from_millis(10 << tried).mul_f64(0.5 + fastrand::f64());
                    if Instant::now() + pause >= deadline || !self.retries.withdraw() {
                        return Err(fault);
                    }
                    self.metrics.validation_retries.inc();
                    sleep(pause).await;
                }
                answered => return answered,
            }
        }
        Err(Fault::Timeout)
    }

    async fn validate_once(&self, key: &ApiKey, deadline: Instant) -> Result<Verdict, Fault> {
        match self.transport {
            Transport::Rest => {
                // With room enough, so that no part of it is left behind in growing.
                let mut body = Vec::with_capacity(16 + key.expose().len());
                serde_json::to_writer(&mut body, &ValidateToken { token: key.expose() })
                    .map_err(|_| Fault::Broken("a key cannot be written as JSON"))?;
                let content = Content::Json(wiped(body));
                let answer = self.call_as_client(Method::POST, VALIDATE, content, deadline).await?;
                read(&answer, key.expose(), SystemTime::now())
            }
            Transport::Grpc => {
                let request = proto::TokenRequest { token: key.expose().to_owned() };
                let answer = self.unary("ValidateToken", &request, deadline).await?;
                read_grpc(answer, key.expose(), SystemTime::now())
            }
        }
    }
}

/// The same table. A gateway's own answer to a path it does not know is UNIMPLEMENTED here, and so a fault.
fn read_grpc(
    answer: Result<proto::TokenResponse, Status>,
    presented: &str,
    now: SystemTime,
) -> Result<Verdict, Fault> {
    match answer {
        Ok(proto::TokenResponse { token_info }) => identify(token_info.map(TokenInfo::from), presented, now),
        Err(Status { code: 5 | 3, .. }) => Ok(Verdict::Invalid),
        Err(status) => Err(status.fault()),
    }
}

/// What an answer to `validate` says of the key presented.
///
/// # Errors
/// When it says nothing of the key. The fault says whose it is.
pub fn read(answer: &Answer, presented: &str, now: SystemTime) -> Result<Verdict, Fault> {
    match answer.status.as_u16() {
        200 => read_valid(&answer.body, presented, now),
        404 | 400 => match serde_json::from_slice::<Object<ErrorBody>>(&answer.body) {
            Ok(Object(error)) if answer.is_json() && error.is_about_the_key(answer.status.as_u16()) => {
                Ok(Verdict::Invalid)
            }
            _ => Err(answer.fault()),
        },
        _ => Err(answer.fault()),
    }
}

impl ErrorBody {
    /// The gateway's own answer to a path it does not know.
    pub(super) fn is_unknown_route(&self) -> bool {
        self.message.as_deref() == Some("Not Found") && self.details.as_ref().is_none_or(Vec::is_empty)
    }

    /// NOT_FOUND for a 404 and INVALID_ARGUMENT for a 400, but not the gateway's own answer to a path it does not know.
    pub(super) fn is_about_the_key(&self, status: u16) -> bool {
        match status {
            404 => self.code == Some(5) && !self.is_unknown_route(),
            _ => self.code == Some(3),
        }
    }
}

fn read_valid(body: &[u8], presented: &str, now: SystemTime) -> Result<Verdict, Fault> {
    let Object(validated) = serde_json::from_slice::<Object<Validated>>(body)
        .map_err(|_| Fault::Broken("a 200 that is not the JSON of a valid key"))?;
    identify(validated.token_info.map(|Object(token)| token), presented, now)
}

/// Whom a valid key speaks for, or what is wrong with an answer that calls it valid.
fn identify(token: Option<TokenInfo>, presented: &str, now: SystemTime) -> Result<Verdict, Fault> {
    let token = token.ok_or(Fault::Broken("a 200 without token_info"))?;
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    let id = |text: Option<String>, what| match some(text) {
        None => Ok(None),
        Some(text) => identity::id(&text).map(Some).ok_or(Fault::Broken(what)),
    };
    // SECURITY: an identifier is not a key, whatever Scalekit says of it.
    if token.token_id.as_deref() == Some(presented) {
        return Err(Fault::Broken("what was presented is a token id"));
    }
    if some(token.token_suffix).is_some_and(|suffix| suffix.len() != 4 || !presented.ends_with(&suffix)) {
        return Err(Fault::Broken("token_suffix is not the end of the key"));
    }
    let expiry = match token.expiry {
        Expiry::Never => None,
        Expiry::At(expiry) => {
            let expiry = SystemTime::try_from(expiry).ok();
            Some(expiry.ok_or(Fault::Broken("expiry is not a timestamp"))?)
        }
        Expiry::Broken => return Err(Fault::Broken("expiry is not a timestamp")),
    };
    if expiry.is_some_and(|expiry| expiry <= now) {
        return Err(Fault::Broken("an expired key called valid; compare the clocks"));
    }
    Ok(Verdict::Valid(Arc::new(Identity {
        org_id: id(token.organization_id, "organization_id is not visible ASCII")?
            .ok_or(Fault::Broken("no organization_id"))?,
        org_external_id: some(token.organization_external_id),
        user_id: id(token.user_id, "user_id is not visible ASCII")?,
        user_external_id: some(token.user_external_id),
        roles: token.roles.unwrap_or_default().into_iter().filter(|role| !role.is_empty()).collect(),
        token_id: id(token.token_id, "token_id is not visible ASCII")?,
        claims: token.custom_claims.into_iter().collect(),
        expiry,
    })))
}

#[cfg(test)]
mod tests {
    use hyper::header::{CONTENT_TYPE, HeaderValue};
    use hyper::{HeaderMap, StatusCode};

    use bytes::Bytes;

    use super::*;

    const KEY: &str = "0123456789ABCDEFGHIJabcdefxY9Z";

    fn ask(status: u16, body: &str) -> Result<Verdict, Fault> {
        ask_as(status, "application/json", body)
    }

    fn ask_as(status: u16, content_type: &'static str, body: &str) -> Result<Verdict, Fault> {
        let answer = Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]),
            body: Bytes::copy_from_slice(body.as_bytes()),
            trailers: HeaderMap::new(),
        };
        read(&answer, KEY, SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000))
    }

    fn valid(info: &str) -> Result<Verdict, Fault> {
        ask(200, &format!("{{\"token_info\":{{{info}}}}}"))
    }

    #[test]
    fn a_valid_answer_is_an_identity_with_absent_null_and_empty_alike() {
        for user in ["", r#","user_id":null"#, r#","user_id":"""#] {
            let Ok(Verdict::Valid(identity)) = valid(&format!(r#""organization_id":"org_1"{user}"#)) else {
                panic!("valid")
            };
            assert_eq!((identity.org_id.as_bytes(), &identity.user_id), (&b"org_1"[..], &None));
        }
        let Ok(Verdict::Valid(identity)) = valid(
            r#""organization_id":"org_1","user_id":"usr_1","token_id":"apit_1","token_suffix":"xY9Z","roles":["a","b"],
               "expiry":"2027-12-01T00:00:00.123456789Z","custom_claims":{"a":"b","n":1,"o":{"x":[true]},"z":null},
               "email":"a@b","unknown":{"x":1}"#,
        ) else {
            panic!("valid")
        };
        assert_eq!(identity.roles, ["a", "b"]);
        let claims: Vec<_> = identity.claims.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(claims, [("a", "b"), ("n", "1"), ("o", r#"{"x":[true]}"#), ("z", "null")]);
    }

    #[test]
    fn the_end_of_protobufs_time_is_no_broken_expiry() {
        let end = r#""organization_id":"org_1","expiry":"9999-12-31T23:59:59Z""#;
        assert!(matches!(valid(end), Ok(Verdict::Valid(identity)) if identity.expiry.is_some()));
    }

    #[test]
    fn a_200_that_is_not_a_whole_identity_breaks_the_contract() {
        for body in [
            "",
            "null",
            "{}",
            "<html>",
            r#"{"token_info":null}"#,
            r#"{"token_info":{}}"#,
            r#"{"token_info":{"organization_id":""}}"#,
            r#"{"token_info":{"organization_id":"org 1"}}"#,
            r#"{"token_info":{"organization_id":"org_1\r\nx: y"}}"#,
            r#"{"token_info":{"organization_id":7}}"#,
            r#"{"token_info":{"organization_id":"org_1","organization_id":"org_2"}}"#,
            r#"{"token_info":{"organization_id":"org_1","user_id":"ü"}}"#,
            r#"{"token_info":{"organization_id":"org_1","token_id":"a b"}}"#,
            r#"{"token_info":{"organization_id":"org_1","token_id":"0123456789ABCDEFGHIJabcdefxY9Z"}}"#,
            r#"{"token_info":{"organization_id":"org_1","token_suffix":"aaaa"}}"#,
            r#"{"token_info":{"organization_id":"org_1","token_suffix":"Z"}}"#,
            r#"{"token_info":{"organization_id":"org_1","expiry":"soon"}}"#,
            r#"{"token_info":{"organization_id":"org_1","expiry":"2027-01-15T08:00:00Z"}}"#,
            r#"{"token_info":{"organization_id":"org_1"}"#,
            r#"{"token_info":["apit_1","org_1",null,null,null,null,null,null,null]}"#,
            r#"[{"organization_id":"org_1"}]"#,
        ] {
            assert!(matches!(ask(200, body), Err(Fault::Broken(_))), "{body}");
        }
    }

    #[test]
    fn only_scalekits_own_words_make_a_key_invalid() {
        let with_info =
            r#"[{"@type":"type.googleapis.com/scalekit.v1.errdetails.ErrorInfo","error_code":"X"}]"#;
        for (status, body) in [
            (404, format!(r#"{{"code":5,"message":"Token not found","details":{with_info}}}"#)),
            (404, format!(r#"{{"code":5,"message":"Not Found","details":{with_info}}}"#)),
            (404, r#"{"code":5,"message":"token not found","details":[]}"#.to_owned()),
            (400, r#"{"code":3,"message":"invalid","details":[]}"#.to_owned()),
        ] {
            assert_eq!(ask(status, &body), Ok(Verdict::Invalid), "{body}");
        }
        for (status, body) in [
            (404, r#"{"code":5,"message":"Not Found","details":[]}"#),
            (404, r#"{"code":5,"message":"Not Found"}"#),
            (404, "<html>not found</html>"),
            (404, "{}"),
            (404, r#"{"code":"5"}"#),
            (404, r#"{"code":16}"#),
            (404, r#"[5,"Token not found",null]"#),
            (400, r#"[3,null,null]"#),
            (400, r#"{"code":9}"#),
            (400, "bad request"),
            (302, ""),
            (204, ""),
            (409, r#"{"code":6}"#),
        ] {
            assert!(matches!(ask(status, body), Err(Fault::WrongEndpoint(_))), "{status} {body}");
        }
        let invalid = format!(r#"{{"code":5,"message":"Token not found","details":{with_info}}}"#);
        assert_eq!(ask_as(404, "Application/JSON; charset=utf-8", &invalid), Ok(Verdict::Invalid));
        for content_type in ["text/html", "application/jsonx", ""] {
            let answer = ask_as(404, content_type, &invalid);
            assert!(matches!(answer, Err(Fault::WrongEndpoint(_))), "{content_type}");
        }
    }

    #[test]
    fn every_other_answer_is_a_fault_with_its_own_name() {
        let invalid = r#"{"code":5,"message":"x","details":[1]}"#;
        for (status, label) in [
            (401, "credentials"),
            (403, "permission"),
            (429, "throttled"),
            (500, "down"),
            (502, "down"),
            (503, "down"),
            (504, "down"),
        ] {
            assert_eq!(ask(status, invalid).unwrap_err().label(), label);
        }
    }

    #[test]
    fn retries_are_a_tenth_of_validations_after_the_first_ten() {
        let budget = RetryBudget::default();
        assert_eq!((0..100).filter(|_| budget.withdraw()).count(), 10);
        for _ in 0..1000 {
            budget.deposit();
        }
        assert_eq!((0..100).filter(|_| budget.withdraw()).count(), 10);
        for _ in 0..25 {
            budget.deposit();
        }
        assert_eq!((0..100).filter(|_| budget.withdraw()).count(), 2);
    }
}
