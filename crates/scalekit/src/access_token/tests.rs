//! The access token before a fetch that does what it is told, on a clock that stands still.

use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use tokio::time::{advance, sleep};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone)]
enum Answer {
    Lifetime(Duration),
    /// The same, after a while.
    Slow(Duration),
    Fail(Error),
    Hang,
}

/// A token endpoint that gives the same answer until it is told another one.
struct Endpoint {
    answer: Mutex<Answer>,
    fetches: AtomicU32,
    failures: Mutex<Vec<u32>>,
    access_token: AccessToken,
}

impl Endpoint {
    fn start(answer: Answer) -> Arc<Self> {
        let endpoint = Arc::new(Self {
            answer: Mutex::new(answer),
            fetches: AtomicU32::new(0),
            failures: Mutex::default(),
            access_token: AccessToken::new(),
        });
        let own = Arc::clone(&endpoint);
        tokio::spawn(async move {
            let observe = |fetched: Fetched<'_>| {
                if let Fetched::Failed { failures, .. } = fetched {
                    own.failures.lock().unwrap().push(failures);
                }
            };
            own.access_token.run_renewal(|| own.fetch(), observe).await;
        });
        endpoint
    }

    async fn fetch(&self) -> Result<Grant, Error> {
        let number = self.fetches.fetch_add(1, Ordering::Relaxed) + 1;
        let answer = self.answer.lock().unwrap().clone();
        let grant = |lifetime| Ok(Grant { access_token: format!("token{number}").into(), lifetime });
        match answer {
            Answer::Lifetime(lifetime) => grant(lifetime),
            Answer::Slow(lifetime) => {
                sleep(3 * SECOND).await;
                grant(lifetime)
            }
            Answer::Fail(error) => Err(error),
            Answer::Hang => std::future::pending().await,
        }
    }

    fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn fetches(&self) -> u32 {
        self.fetches.load(Ordering::Relaxed)
    }

    async fn bearer(&self, within: Duration) -> Result<String, Error> {
        self.access_token.wait_for_bearer(Instant::now() + within).await.map(|bearer| text(&bearer))
    }
}

fn text(bearer: &Bearer) -> String {
    bearer.authorization().to_str().unwrap().to_owned()
}

fn no_token(error: Error) -> Error {
    Error::AccessToken(Box::new(error))
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_waiters_cause_one_fetch() {
    let endpoint = Endpoint::start(Answer::Slow(3600 * SECOND));
    let waiters: Vec<_> = (0..10_000)
        .map(|_| {
            let endpoint = Arc::clone(&endpoint);
            tokio::spawn(async move { endpoint.bearer(60 * SECOND).await })
        })
        .collect();
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().unwrap(), "Bearer token1");
    }
    // Their wishes while it was under way are no reason for another fetch.
    sleep(60 * SECOND).await;
    assert_eq!(endpoint.fetches(), 1);
    let bearer = endpoint.access_token.wait_for_bearer(Instant::now()).await.unwrap();
    assert!(bearer.authorization().is_sensitive() && !format!("{bearer:?}").contains("token1"));
}

#[tokio::test(start_paused = true)]
async fn token_is_renewed_at_72_to_80_percent_of_its_life() {
    let endpoint = Endpoint::start(Answer::Lifetime(100 * SECOND));
    endpoint.bearer(SECOND).await.unwrap();
    let fetched = Instant::now();
    endpoint.answer(Answer::Hang);
    while endpoint.fetches() == 1 {
        sleep(SECOND / 10).await;
    }
    let after = fetched.elapsed();
    assert!((72 * SECOND..81 * SECOND).contains(&after), "{after:?}");
    // The renewal hangs; the token that is there is good, and nobody waits.
    assert_eq!(endpoint.bearer(Duration::ZERO).await.unwrap(), "Bearer token1");
    assert!(endpoint.access_token.is_available());
    sleep(100 * SECOND - fetched.elapsed()).await;
    assert!(!endpoint.access_token.is_available(), "it has expired");
    endpoint.answer(Answer::Lifetime(100 * SECOND));
    assert_ne!(endpoint.bearer(60 * SECOND).await.unwrap(), "Bearer token1");
}

#[tokio::test(start_paused = true)]
async fn refused_token_is_renewed_at_most_once_a_second() {
    let endpoint = Endpoint::start(Answer::Lifetime(3600 * SECOND));
    let began = Instant::now();
    let mut refused = endpoint.access_token.wait_for_bearer(began + SECOND).await.unwrap();
    for renewals in 1..=5 {
        let waiters: Vec<_> = (0..50)
            .map(|_| {
                let (endpoint, refused) = (Arc::clone(&endpoint), refused.clone());
                let deadline = Instant::now() + 60 * SECOND;
                tokio::spawn(async move { endpoint.access_token.wait_for_renewed(&refused, deadline).await })
            })
            .collect();
        for waiter in waiters {
            let renewed = waiter.await.unwrap().unwrap();
            assert_ne!(text(&renewed), text(&refused));
            assert_eq!(endpoint.fetches(), 1 + renewals);
        }
        assert!(began.elapsed() >= renewals * SECOND, "{:?}", began.elapsed());
        refused = endpoint.access_token.wait_for_bearer(Instant::now()).await.unwrap();
    }
    assert!(began.elapsed() < 6 * SECOND);
    sleep(60 * SECOND).await;
    assert_eq!(endpoint.fetches(), 6, "nobody refused the last one");
}

#[tokio::test(start_paused = true)]
async fn token_refused_long_ago_is_replaced_without_fetch() {
    let endpoint = Endpoint::start(Answer::Lifetime(3600 * SECOND));
    let old = endpoint.access_token.wait_for_bearer(Instant::now() + SECOND).await.unwrap();
    let deadline = Instant::now() + 60 * SECOND;
    endpoint.access_token.wait_for_renewed(&old, deadline).await.unwrap();
    assert_eq!(text(&endpoint.access_token.wait_for_renewed(&old, deadline).await.unwrap()), "Bearer token2");
    sleep(60 * SECOND).await;
    assert_eq!(endpoint.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn misconfiguration_is_reported_at_once_and_recovers() {
    let endpoint = Endpoint::start(Answer::Fail(Error::Credentials));
    let began = Instant::now();
    while began.elapsed() < 10 * SECOND {
        let asked = Instant::now();
        assert_eq!(endpoint.bearer(60 * SECOND).await.unwrap_err(), no_token(Error::Credentials));
        assert!(asked.elapsed() <= SECOND, "{:?}", asked.elapsed());
    }
    // 0, 0.25, 0.75, 1.5, 2.5, and then one a second.
    assert!((11..=13).contains(&endpoint.fetches()), "{}", endpoint.fetches());
    endpoint.answer(Answer::Lifetime(3600 * SECOND));
    let healed = endpoint.bearer(2 * SECOND).await;
    assert!(healed.is_ok(), "{healed:?}");
    let failures = endpoint.failures.lock().unwrap().clone();
    assert!(failures.iter().copied().eq(1..=failures.len() as u32), "{failures:?}");
}

#[tokio::test(start_paused = true)]
async fn outage_is_waited_out_until_deadline() {
    let endpoint = Endpoint::start(Answer::Fail(Error::Unavailable(503)));
    let began = Instant::now();
    assert_eq!(endpoint.bearer(3 * SECOND).await.unwrap_err(), no_token(Error::Unavailable(503)));
    assert_eq!(began.elapsed().as_secs(), 3);
    let waiter = Arc::clone(&endpoint);
    let waiter = tokio::spawn(async move { waiter.bearer(60 * SECOND).await });
    sleep(5 * SECOND).await;
    endpoint.answer(Answer::Lifetime(3600 * SECOND));
    let healed = Instant::now();
    waiter.await.unwrap().unwrap();
    assert!(healed.elapsed() <= SECOND, "a waiting call is served within a second: {:?}", healed.elapsed());
}

#[tokio::test(start_paused = true)]
async fn failing_fetches_are_rare_while_nobody_waits() {
    let endpoint = Endpoint::start(Answer::Fail(Error::Credentials));
    sleep(60 * SECOND).await;
    let before = endpoint.fetches();
    sleep(60 * SECOND).await;
    let fetches = endpoint.fetches() - before;
    assert!((12..=15).contains(&fetches), "one each 4 to 5 seconds: {fetches}");
}

#[tokio::test(start_paused = true)]
async fn throttled_fetch_is_not_repeated_before_retry_after() {
    let endpoint = Endpoint::start(Answer::Fail(Error::Throttled(Some(20 * SECOND))));
    let throttled = endpoint.bearer(19 * SECOND).await.unwrap_err();
    assert_eq!(throttled, no_token(Error::Throttled(Some(20 * SECOND))));
    assert_eq!(endpoint.fetches(), 1);
    endpoint.bearer(2 * SECOND).await.unwrap_err();
    assert_eq!(endpoint.fetches(), 2);
}

#[tokio::test(start_paused = true)]
async fn hanging_fetch_is_abandoned_after_five_seconds() {
    let endpoint = Endpoint::start(Answer::Hang);
    let began = Instant::now();
    let first = endpoint.access_token.wait_for_first(began + 60 * SECOND).await;
    assert_eq!(first.unwrap_err(), no_token(Error::Timeout));
    assert_eq!(began.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn first_returns_on_first_token_or_failure() {
    let good = Endpoint::start(Answer::Lifetime(SECOND));
    assert_eq!(good.access_token.wait_for_first(Instant::now() + SECOND).await, Ok(()));
    let bad = Endpoint::start(Answer::Fail(Error::Unavailable(500)));
    let began = Instant::now();
    assert_eq!(bad.access_token.wait_for_first(began + SECOND).await, Err(no_token(Error::Unavailable(500))));
    assert_eq!(began.elapsed(), Duration::ZERO);
    let idle = AccessToken::new();
    assert_eq!(idle.wait_for_first(Instant::now() + SECOND).await, Err(no_token(Error::Timeout)));
}

#[tokio::test(start_paused = true)]
async fn failed_renewal_keeps_current_token() {
    let endpoint = Endpoint::start(Answer::Lifetime(100 * SECOND));
    endpoint.bearer(SECOND).await.unwrap();
    endpoint.answer(Answer::Fail(Error::Credentials));
    advance(90 * SECOND).await;
    sleep(SECOND).await;
    assert!(endpoint.fetches() > 1);
    assert_eq!(endpoint.bearer(Duration::ZERO).await.unwrap(), "Bearer token1");
    sleep(10 * SECOND).await;
    assert_eq!(endpoint.bearer(60 * SECOND).await.unwrap_err(), no_token(Error::Credentials));
}

#[tokio::test(start_paused = true)]
async fn access_token_invalid_as_header_is_error() {
    let access_token = AccessToken::new();
    let fetch = || async { Ok(Grant { access_token: "a\nb".into(), lifetime: SECOND }) };
    let first = tokio::select! {
        first = access_token.wait_for_first(Instant::now() + SECOND) => first,
        () = access_token.run_renewal(fetch, |_| {}) => unreachable!(),
    };
    assert_eq!(first, Err(no_token(Error::BrokenContract("the access token is not visible ASCII"))));
}
