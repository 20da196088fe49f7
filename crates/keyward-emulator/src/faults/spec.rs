//! Parses faults as written on the command line. The message of [`super::FaultError`] has the grammar.

use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;

use super::{Answer, Effect, Fault, Quota, Target};
use crate::duration::parse_duration;

/// # Errors
/// What is wrong, without the grammar.
pub(super) fn parse_fault(text: &str) -> Result<Fault, String> {
    let (target, rest) = text.split_once(':').ok_or("there is no `:` in it")?;
    let target = match target {
        "any" | "listener" => Target::Any,
        "token" => Target::Token,
        "create" => Target::Create,
        "validate" => Target::Validate,
        "invalidate" => Target::Invalidate,
        "list" => Target::List,
        "update" => Target::Update,
        _ => return Err(format!("unknown target `{target}`")),
    };
    let (head, body) = match rest.split_once(",body=") {
        Some((head, body)) => (head, Some(Bytes::copy_from_slice(body.as_bytes()))),
        None => (rest, None),
    };
    let mut parts = head.split(',').map(|part| part.split_once('=').unwrap_or((part, "")));
    let (name, value) = parts.next().unwrap_or_default();
    let mut effect = parse_effect(name, value)?;
    let mut times = None;
    for (name, value) in parts {
        match (name, &mut effect) {
            ("times", _) => times = Some(parse_number(name, value)?),
            ("retry-after", Effect::Answer(answer)) => answer.retry_after = Some(parse_number(name, value)?),
            ("retry-after", Effect::Quota(quota)) => quota.retry_after = Some(parse_number(name, value)?),
            ("content-type", Effect::Answer(answer)) => {
                answer.content_type = Some(parse_content_type(value)?)
            }
            _ => return Err(format!("`{name}` does not go with it")),
        }
    }
    match (body, &mut effect) {
        (None, _) => {}
        (body, Effect::Answer(answer)) => answer.body = body,
        _ => return Err("`body` goes with `status` only".to_owned()),
    }
    if times.is_some() && matches!(effect, Effect::Quota(_)) {
        return Err("`times` does not go with `quota`, which stands until the faults are cleared".to_owned());
    }
    if text.starts_with("listener:") != (effect == Effect::Refuse) {
        return Err("`listener` and `refuse` go together only".to_owned());
    }
    Ok(Fault { target, effect, times })
}

fn parse_effect(name: &str, value: &str) -> Result<Effect, String> {
    if value.is_empty() {
        return Ok(match name {
            "hang" => Effect::Hang,
            "hang-after" => Effect::HangAfter,
            "reset" => Effect::Reset,
            "garbage" => Effect::Garbage,
            "truncated" => Effect::Truncated,
            "expire-access-tokens" => Effect::ExpireAccessTokens,
            "refuse" => Effect::Refuse,
            _ => return Err(format!("unknown effect `{name}`, or one that needs a value")),
        });
    }
    Ok(match name {
        "latency" => Effect::Latency(parse_time(name, value)?),
        "latency-after" => Effect::LatencyAfter(parse_time(name, value)?),
        "content-type" => Effect::ContentType(parse_content_type(value)?),
        "quota" => match value.split_once('/').map(|(calls, per)| (calls.parse(), parse_duration(per))) {
            Some((Ok(calls), Some(per))) if !per.is_zero() => Effect::Quota(Quota::new(calls, per, None)),
            _ => return Err(format!("`quota` needs calls and a time, such as 300/1m, not `{value}`")),
        },
        "revoke-after" => Effect::RevokeAfter(parse_number(name, value)?),
        "status" => match parse_number(name, value)? {
            status @ 200..=599 => Effect::Answer(Answer::status(status)),
            _ => return Err("`status` is a number from 200 to 599".to_owned()),
        },
        _ => return Err(format!("unknown effect `{name}`, or one that takes no value")),
    })
}

fn parse_number<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|_| format!("`{name}` needs a number, not `{value}`"))
}

fn parse_time(name: &str, value: &str) -> Result<Duration, String> {
    parse_duration(value).ok_or_else(|| format!("`{name}` needs a duration such as 200ms, not `{value}`"))
}

fn parse_content_type(value: &str) -> Result<String, String> {
    match hyper::header::HeaderValue::from_str(value) {
        Ok(_) if !value.is_empty() => Ok(value.to_owned()),
        _ => Err(format!("`{value}` is not a content type")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Fault) {
        assert_eq!(text.parse(), Ok(expected), "{text}");
    }

    #[test]
    fn every_effect_is_parsed() {
        use Target::*;
        let ms = Duration::from_millis;
        check("validate:latency=200ms", Fault::new(Validate, Effect::Latency(ms(200))));
        check("validate:latency-after=1s", Fault::new(Validate, Effect::LatencyAfter(ms(1000))));
        check("any:hang", Fault::new(Any, Effect::Hang));
        check("list:hang-after", Fault::new(List, Effect::HangAfter));
        check("create:reset,times=2", Fault::new(Create, Effect::Reset).times(2));
        check("update:garbage", Fault::new(Update, Effect::Garbage));
        check("invalidate:truncated", Fault::new(Invalidate, Effect::Truncated));
        check("validate:expire-access-tokens", Fault::new(Validate, Effect::ExpireAccessTokens));
        check("validate:revoke-after=10", Fault::new(Validate, Effect::RevokeAfter(10)));
        check(
            "validate:content-type=text/html",
            Fault::new(Validate, Effect::ContentType("text/html".to_owned())),
        );
        check(
            "validate:quota=300/1m",
            Fault::new(Validate, Effect::Quota(Quota::new(300, ms(60_000), None))),
        );
        check(
            "validate:quota=5/2s,retry-after=30",
            Fault::new(Validate, Effect::Quota(Quota::new(5, ms(2000), Some(30)))),
        );
        check("listener:refuse,times=3", Fault::new(Any, Effect::Refuse).times(3));
        check("token:status=401", Fault::new(Token, Effect::Answer(Answer::status(401))));
        let throttled = Answer { retry_after: Some(3), ..Answer::status(429) };
        check("validate:status=429,retry-after=3", Fault::new(Validate, Effect::Answer(throttled)));
        let page = Answer {
            content_type: Some("text/html".to_owned()),
            body: Some(Bytes::from_static(b"<p>a=b,times=1")),
            ..Answer::status(200)
        };
        let page = Fault::new(Validate, Effect::Answer(page)).times(4);
        check("validate:status=200,content-type=text/html,times=4,body=<p>a=b,times=1", page);
    }

    #[test]
    fn malformed_fault_gets_the_grammar() {
        for text in [
            "",
            "hang",
            "validate",
            "validate:",
            "nobody:hang",
            "validate:latency",
            "validate:latency=fast",
            "validate:hang=1",
            "validate:status=99",
            "validate:status=2000000",
            "validate:status=429,retry-after=soon",
            "validate:hang,retry-after=3",
            "validate:hang,times=-1",
            "validate:hang,body=x",
            "validate:content-type=a\u{7}b",
            "validate:quota",
            "validate:quota=300",
            "validate:quota=300/0s",
            "validate:quota=x/1s",
            "validate:quota=300/1m,times=3",
            "validate:refuse",
            "listener:hang",
        ] {
            let error = text.parse::<Fault>().unwrap_err().to_string();
            assert!(error.contains("revoke-after=N"), "{error}");
        }
    }
}
