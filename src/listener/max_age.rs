//! The maximum age of a connection, so that clients connect again and spread over replicas: the same graceful end as in a drain, one
//! connection at a time. No request that a client sends before it can know of the end is lost.

use std::time::Duration;

use tokio::time::{sleep, sleep_until};

use super::activity::{Activity, Silence};

/// How long an HTTP/1.1 connection must be idle before it is closed at its maximum age. The response to the next request says that the
/// connection ends, but nothing can be said on an idle one: a request may cross the close.
const MIN_SILENCE: Duration = Duration::from_secs(1);

/// The age with a random difference of up to a tenth, so that connections opened together do not all end together.
pub(super) fn with_jitter(age: Duration) -> Duration {
    scale_age(age, fastrand::f64())
}

/// `random` is from 0 to 1.
fn scale_age(age: Duration, random: f64) -> Duration {
    age.mul_f64(0.9 + 0.2 * random)
}

/// Completes once the connection has reached this age and can be told to end. HTTP/2 can be told at any time (GOAWAY); over HTTP/1.1 the
/// next response says it, and this completes only if there is no next request.
pub(super) async fn reached(activity: &Activity, max_age: Option<Duration>) {
    let Some(max_age) = max_age else { return std::future::pending().await };
    sleep_until(activity.accepted_at + max_age).await;
    activity.expire();
    while !activity.is_http2() && !matches!(activity.silence(), Silence::Idle(time) if time >= MIN_SILENCE) {
        sleep(MIN_SILENCE / 4).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_is_at_most_a_tenth() {
        let age = Duration::from_secs(1000);
        for (random, seconds) in [(0.0, 900.0), (0.25, 950.0), (0.5, 1000.0), (1.0, 1100.0)] {
            let difference = scale_age(age, random).as_secs_f64() - seconds;
            assert!(difference.abs() < 1e-6, "{random}: {difference}");
        }
        let ages: std::collections::HashSet<_> = (0..100).map(|_| with_jitter(age)).collect();
        assert!(ages.len() > 90, "connections opened together end apart: {ages:?}");
        let range = Duration::from_secs(900)..=Duration::from_secs(1100);
        assert!(ages.iter().all(|age| range.contains(age)), "{ages:?}");
    }
}
