//! The server that replicas share, Redis or Valkey: one connection, which is made again whenever it fails, and commands with a
//! deadline. Without an answer in time, the caller continues on its own: nothing waits for a server that is known to fail.

pub mod lease;

mod failure;

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, FromRedisValue, IntoConnectionInfo as _, Pipeline,
    RedisConnectionInfo, RedisResult, TlsCertificates,
};
use ring::hmac;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use self::failure::Failure;
use crate::gcra::Quota;
use crate::logging::outage_tracker::OutageTracker;
use crate::metrics::{Metrics, Outcome};
use crate::secret::{SecretError, SecretSource};

/// Where the shared server is, and how it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its address.
    pub address: Address,
    /// The number of its database.
    pub database: u32,
    /// The user to log in as; the server's default user if there is only a password.
    pub username: Option<String>,
    /// Read for each connection.
    pub password: Option<SecretSource>,
    /// Root certificates (PEM) instead of the system's.
    pub roots: Option<PathBuf>,
    /// The longest time to wait for an answer.
    pub timeout: Duration,
    /// The number of replicas, from 1: without the server, each allows its part.
    pub replicas: u32,
    /// What the names of all keys on the server begin with.
    pub prefix: String,
    /// The secret under which ids are hashed. Without it, whoever can read the server can test guesses of ids.
    pub salt: Option<SecretSource>,
}

/// The address of the shared server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `redis://host:port`
    Tcp(String, u16),
    /// `rediss://host:port`
    Tls(String, u16),
    /// `unix:/path`
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port) = match self {
            Self::Tcp(host, port) => ("redis", host, port),
            Self::Tls(host, port) => ("rediss", host, port),
            Self::Unix(path) => return write!(f, "unix:{}", path.display()),
        };
        match host.contains(':') {
            true => write!(f, "{scheme}://[{host}]:{port}"),
            false => write!(f, "{scheme}://{host}:{port}"),
        }
    }
}

/// The server does not answer, or not usefully, which has been logged and counted.
#[derive(Debug)]
pub struct Unavailable;

/// A request for a part of a shared allowance.
#[derive(Clone, Copy, Debug)]
struct Take {
    quota: Quota,
    /// How many requests to take, if so many are left.
    wanted: u32,
    /// What was taken before and not used, as the time in which it would refill.
    returned: Duration,
    /// Until the allowance is full, as far as this replica knows, and the connection from which it knows that.
    known: (Duration, u64),
}

/// What was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Taken {
    count: u32,
    /// Until the allowance is full.
    full: Duration,
    /// The number of the connection.
    connection: u64,
}

/// Takes up to `wanted` requests out of an allowance (see `gcra`), of which the server stores when it is full, in microseconds of its
/// own clock, until then. Rounding is never in favour of the client. The time until it is full is at most `per`, even if the clock
/// is set back.
const TAKE: &str = r"
local interval, burst, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local returned, known, per = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local full = (tonumber(redis.call('GET', KEYS[1])) or 0) - now - returned
full = math.min(math.max(full, known, 0), per)
local taken = math.max(math.min(math.floor((burst * interval - full) / interval), wanted), 0)
full = math.ceil(full + taken * interval)
if taken > 0 or returned > 0 or known > 0 then
  redis.call('SET', KEYS[1], string.format('%.0f', now + full), 'PX', math.max(math.ceil(full / 1000), 1))
end
return {taken, full}
";

/// The longest time to connect, including TLS and the login.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two looks whether the server still answers, and still stores something.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Before the first attempt to connect again, and the longest such pause.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(2)];
/// What the probe takes from; it is never exhausted.
const PROBE: Take = Take {
    quota: Quota { requests: 1000, per: Duration::from_secs(1), burst: 1000 },
    wanted: 1,
    returned: Duration::ZERO,
    known: (Duration::ZERO, 0),
};

/// The shared server.
pub struct SharedServer {
    settings: Settings,
    /// The key under which ids are hashed.
    salt: hmac::Key,
    /// `None` while the server does not answer.
    link: RwLock<Option<Link>>,
    /// Notified when a connection was given up.
    lost: Notify,
    outages: OutageTracker,
    metrics: Arc<Metrics>,
}

/// A connection, over which commands are pipelined.
#[derive(Clone)]
struct Link {
    connection: MultiplexedConnection,
    /// Counts connections, from 1.
    number: u64,
    /// The name of `TAKE` on the server.
    script: Arc<str>,
}

impl SharedServer {
    /// Nothing is sent before [`Self::keep_connected`]. `scalekit` is the URL of the environment: replicas of another one share
    /// nothing with these.
    ///
    /// # Errors
    /// When the salt cannot be read.
    pub fn new(settings: Settings, scalekit: &str, metrics: Arc<Metrics>) -> Result<Arc<Self>, SecretError> {
        let salt = settings.salt.as_ref().map(SecretSource::read).transpose()?;
        let salt = salt.as_ref().map_or("", |salt| salt.expose());
        let salt = hmac::Key::new(hmac::HMAC_SHA256, salt.as_bytes());
        let salt = hmac::Key::new(hmac::HMAC_SHA256, hmac::sign(&salt, scalekit.as_bytes()).as_ref());
        metrics.shared_up.set(0.0);
        Ok(Arc::new(Self {
            settings,
            salt,
            link: RwLock::default(),
            lost: Notify::new(),
            outages: OutageTracker::default(),
            metrics,
        }))
    }

    /// Connects, again whenever the connection fails. Never returns.
    pub async fn keep_connected(&self) {
        let [first, longest] = PAUSES;
        let (mut number, mut pause) = (0, first);
        loop {
            let began = Instant::now();
            match self.connect(number + 1).await {
                Ok(link) => {
                    number += 1;
                    *self.link.write().unwrap_or_else(PoisonError::into_inner) = Some(link.clone());
                    self.metrics.shared_up.set(1.0);
                    if number == 1 {
                        tracing::info!("connected to the shared server {}", self.settings.address);
                    }
                    self.record_success(began);
                    self.probe_until_lost(&link).await;
                    if began.elapsed() >= longest {
                        pause = first;
                    }
                }
                Err(failure) => self.record_failure(&failure, number == 0),
            }
            // Spread, as all replicas lose the server at once.
            sleep(pause.mul_f64(1.0 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(longest);
        }
    }

    /// The name of a key on the server, from which the ids cannot be read. `purpose` tells apart what has equal ids.
    pub fn key(&self, purpose: &str, ids: &[&[u8]]) -> String {
        let mut hash = hmac::Context::with_key(&self.salt);
        for part in [purpose.as_bytes()].iter().chain(ids) {
            hash.update(&(part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        // 128 bits: as unlikely to collide as random UUIDs.
        let tag = hash.sign();
        let (short, _) = tag.as_ref().split_at(16);
        format!("{}{}", self.settings.prefix, URL_SAFE_NO_PAD.encode(short))
    }

    /// Sends these commands in one trip, for example increments of many counters. Not atomic unless the pipeline says so. Names of keys
    /// must be from [`Self::key`].
    ///
    /// # Errors
    /// At once while the server is known to fail, otherwise after the deadline at the latest. The commands may have been carried
    /// out nevertheless.
    pub async fn query<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, Unavailable> {
        let mut link = self.link().ok_or(Unavailable)?;
        let number = link.number;
        self.await_answer(number, commands.query_async(&mut link.connection)).await
    }

    /// The part of a quota that this replica allows on its own.
    fn share_of(&self, quota: Quota) -> Quota {
        quota.divided_by(self.settings.replicas)
    }

    fn is_up(&self) -> bool {
        self.link.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn link(&self) -> Option<Link> {
        self.link.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn take(&self, key: &str, take: Take) -> Result<Taken, Unavailable> {
        self.take_over(self.link().ok_or(Unavailable)?, key, take).await
    }

    async fn take_over(&self, mut link: Link, key: &str, take: Take) -> Result<Taken, Unavailable> {
        let Take { quota, wanted, returned, known: (known, connection) } = take;
        // A server that was away may have restarted without its memory; one that was not knows better than this replica.
        let known = if connection == link.number { Duration::ZERO } else { known };
        let mut command = redis::cmd("EVALSHA");
        let interval = quota.interval().as_nanos();
        command.arg(&*link.script).arg(1).arg(key).arg(format!("{}.{:03}", interval / 1000, interval % 1000));
        command.arg(quota.burst).arg(wanted).arg(micros(returned)).arg(micros(known)).arg(micros(quota.per));
        let answer = async {
            let (count, full): (u32, u64) = command.query_async(&mut link.connection).await?;
            let full = Duration::from_micros(full);
            if count > wanted || full > quota.per.saturating_mul(2) {
                return Err((redis::ErrorKind::UnexpectedReturnType, "the answer is out of range").into());
            }
            Ok(Taken { count, full, connection: link.number })
        };
        self.await_answer(link.number, answer).await
    }

    /// Awaits an answer over the connection of this number, which is given up if there is none.
    async fn await_answer<T>(
        &self,
        number: u64,
        answer: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, Unavailable> {
        let began = Instant::now();
        let answer = timeout(self.settings.timeout, answer).await;
        self.metrics.shared_seconds.observe(began.elapsed().as_secs_f64());
        let failure = match answer {
            Ok(Ok(answer)) => {
                self.record_success(began);
                return Ok(answer);
            }
            Ok(Err(error)) => Failure::Redis(error),
            Err(_) => Failure::Timeout(self.settings.timeout),
        };
        let mut link = self.link.write().unwrap_or_else(PoisonError::into_inner);
        if link.take_if(|link| link.number == number).is_some() {
            self.metrics.shared_up.set(0.0);
            self.lost.notify_one();
        }
        drop(link);
        self.record_failure(&failure, false);
        Err(Unavailable)
    }

    async fn probe_until_lost(&self, link: &Link) {
        let key = self.key("probe", &[]);
        loop {
            tokio::select! {
                () = self.lost.notified() => return,
                () = sleep(PROBE_EVERY) => {
                    // If it fails, `lost` is notified.
                    let _ = self.take_over(link.clone(), &key, PROBE).await;
                }
            }
        }
    }

    async fn connect(&self, number: u64) -> Result<Link, Failure> {
        let connecting = async {
            let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
            let mut connection = self.client()?.get_multiplexed_async_connection_with_config(&config).await?;
            let mut load = redis::cmd("SCRIPT");
            let script: String = load.arg("LOAD").arg(TAKE).query_async(&mut connection).await?;
            Ok(Link { connection, number, script: script.into() })
        };
        let link = timeout(CONNECT_TIMEOUT.max(self.settings.timeout), connecting).await;
        let link = link.unwrap_or(Err(Failure::Connecting(CONNECT_TIMEOUT)))?;
        // A server that is full, read-only or slow can be connected to.
        let probe = self.take_over(link.clone(), &self.key("probe", &[]), PROBE).await;
        probe.map(|_| link).map_err(|Unavailable| Failure::Logged)
    }

    fn client(&self) -> Result<Client, Failure> {
        let Settings { address, database, username, password, roots, .. } = &self.settings;
        let mut login = RedisConnectionInfo::default().set_db((*database).into()).set_skip_set_lib_name();
        if let Some(username) = username {
            login = login.set_username(username);
        }
        if let Some(password) = password {
            login = login.set_password(password.read()?.expose());
        }
        let address = match address.clone() {
            Address::Tcp(host, port) => ConnectionAddr::Tcp(host, port),
            Address::Tls(host, port) => {
                ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None }
            }
            Address::Unix(path) => ConnectionAddr::Unix(path),
        };
        let is_tls = matches!(address, ConnectionAddr::TcpTls { .. });
        let info = address.into_connection_info()?.set_redis_settings(login);
        if !is_tls {
            return Ok(Client::open(info)?);
        }
        let root_cert = roots.as_ref().map(std::fs::read).transpose().map_err(Failure::Roots)?;
        Ok(Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert })?)
    }

    fn record_success(&self, began: Instant) {
        self.count("ok");
        if let Some((outage, suppressed)) = self.outages.record_success(began) {
            let seconds = outage.as_secs_f64().ceil();
            tracing::info!(suppressed, "the shared server answers again after {seconds} s");
        }
    }

    fn record_failure(&self, failure: &Failure, is_start: bool) {
        let kind = match failure {
            Failure::Logged => return,
            failure => failure.kind(),
        };
        self.count(kind);
        let Some(suppressed) = self.outages.record_failure(kind, Some(Duration::ZERO), Instant::now()) else {
            return;
        };
        let Settings { address, replicas, .. } = &self.settings;
        let text = format!(
            "the shared server {address} cannot be used, so this replica allows 1/{replicas} of each shared limit on its own: {failure}"
        );
        if is_start {
            tracing::warn!(error.kind = kind, suppressed, "{text}");
        } else {
            tracing::error!(error.kind = kind, suppressed, "{text}");
        }
    }

    fn count(&self, outcome: &'static str) {
        self.metrics.shared_operations.get_or_create(&Outcome { outcome }).inc();
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(salt: Option<&str>, scalekit: &str) -> Arc<SharedServer> {
        let settings = Settings {
            address: Address::Tcp("::1".into(), 6379),
            database: 0,
            username: None,
            password: None,
            roots: None,
            timeout: Duration::from_millis(50),
            replicas: 2,
            prefix: "keyward:".into(),
            salt: salt.map(|salt| SecretSource::Value(crate::secret::Secret::new(salt))),
        };
        SharedServer::new(settings, scalekit, Arc::default()).unwrap()
    }

    #[test]
    fn names_of_keys_differ_by_all_that_they_name() {
        let one = server(None, "https://a.example");
        let name = one.key("limit", &[b"org_1", b"usr_1"]);
        assert_eq!((&name[..8], name.len()), ("keyward:", 8 + 22));
        assert_eq!(name, server(None, "https://a.example").key("limit", &[b"org_1", b"usr_1"]));
        for other in [
            one.key("limit2", &[b"org_1", b"usr_1"]),
            one.key("limit", &[b"org_1usr_1"]),
            one.key("limit", &[b"org_1", b"usr_", b"1"]),
            one.key("limit", &[b"org_1"]),
            server(Some("made-up salt"), "https://a.example").key("limit", &[b"org_1", b"usr_1"]),
            server(None, "https://b.example").key("limit", &[b"org_1", b"usr_1"]),
        ] {
            assert_ne!(name, other);
        }
    }

    #[test]
    fn address_is_shown_as_url() {
        for (address, shown) in [
            (Address::Tls("::1".into(), 6380), "rediss://[::1]:6380"),
            (Address::Tcp("redis.internal".into(), 6379), "redis://redis.internal:6379"),
            (Address::Unix("/run/redis.sock".into()), "unix:/run/redis.sock"),
        ] {
            assert_eq!(address.to_string(), shown);
        }
    }
}
