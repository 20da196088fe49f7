//! The whole route file: every section and key, with its default. serde reads these types, and the JSON Schema is generated from
//! them and their comments. Values that depend on each other are checked in `settings`.

use std::net::Ipv4Addr;
use std::time::Duration;

use ::scalekit::proxy::Proxy;
use ::scalekit::transport::Transport;
use hyper::header::HeaderName;
use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::headers::{ClaimPrefix, IdentityHeader, PlainHeader};
use super::routes::{Host, RoleName, RouteName};
use super::scalekit::{SecretPath, VisibleText};
use super::settings::{PemPath, Realm};
use super::shared::SharedUrl;
use super::upstreams::{ServerNameText, UpstreamUrl};
use super::usage::UsagePath;
use super::values::special::{BadKeys, Lifetime, SocketMode, Version};
use super::values::tables::{Claims, Named, Table};
use super::values::{Choice, Choices, Number, Size, Text, Time};
use crate::credential::{self, Alphabet};
use crate::decision::TargetHeaders;
use crate::listener::Listen;
use crate::logging::Format;
use crate::peer::TrustedProxies;
use crate::policy::Scope;
use crate::pool::Protocol;
use crate::rate_limit::Subject;
use crate::route::Pattern;
use crate::traces::TrustParent;
use crate::{identity, validator};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const PIB: u64 = 1 << 50;

/// A route file of Keyward.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "Keyward's route file", extend("required" = ["version", "routes"]))]
pub(super) struct File {
    /// The version of this format. The only one is 1.
    pub(super) version: Option<Version>,
    pub(super) server: Table<Server>,
    pub(super) admin: Table<Admin>,
    pub(super) decision: Option<Table<Decision>>,
    pub(super) management: Option<Table<Management>>,
    pub(super) scalekit: Table<Scalekit>,
    pub(super) credential: Table<Credential>,
    pub(super) negative_cache: Table<NegativeCache>,
    pub(super) throttle: Table<Throttle>,
    pub(super) limits: Table<Limits>,
    /// Limits on the requests of organizations, users or keys, by name, for routes to name in rate_limits. Names have letters,
    /// digits, "-" and "_".
    pub(super) rate_limits: Named<Table<RateLimit>>,
    pub(super) shared: Option<Table<Shared>>,
    pub(super) expiry: Table<Expiry>,
    pub(super) usage: Table<Usage>,
    pub(super) streams: Table<Streams>,
    pub(super) identity: Table<Identity>,
    pub(super) log: Table<Log>,
    pub(super) traces: Table<Traces>,
    /// The services behind Keyward, by name. Names have letters, digits, "-" and "_".
    pub(super) upstreams: Named<Table<Upstream>>,
    /// The requests that are forwarded, their upstreams, and what they require. The most specific route wins, in any order.
    #[schemars(with = "Vec<Route>")]
    pub(super) routes: Vec<Spanned<Table<Route>>>,
}

/// The proxy's listener.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Server {
    /// Address of the proxy, for HTTP/1.1 and HTTP/2: an IP address and a port, or "unix:/path". With `[decision]`, if this is not set
    /// and no route has an upstream, the proxy does not listen.
    pub(super) listen: Text<Listen>,
    /// Time to receive the head of a request; for the first request of a connection, this includes the TLS handshake. From "1ms".
    pub(super) header_timeout: Time<1>,
    /// How long an open connection may be idle between requests. From "1ms".
    pub(super) idle_timeout: Time<1>,
    /// The age after which a connection is closed gracefully, give or take a tenth, so that clients connect again and spread over
    /// all replicas. Requests, streams and WebSockets in progress are not cut off. From "1s". Default: no limit.
    pub(super) max_connection_age: Option<Time<1000>>,
    /// How long Keyward continues to accept connections when a drain begins (SIGTERM, or `keyward drain`), with /readyz failing, so that load balancers notice.
    pub(super) drain_delay: Time<0>,
    /// How long open requests may then take to finish. What is still open after that is closed.
    pub(super) drain_timeout: Time<0>,
    /// Proxies in front of Keyward, as networks or addresses, whose X-Forwarded-* is kept. "unix:" stands for every peer on a unix
    /// socket.
    pub(super) trusted_proxies: Vec<Text<TrustedProxies>>,
    /// Further headers to keep from trusted proxies. List only headers that your proxy sets or removes itself.
    #[schemars(with = "Vec<String>")]
    pub(super) pass_headers: Vec<Spanned<Text<PlainHeader>>>,
    /// Load balancers that begin each connection with a PROXY header, version 1 or 2, as networks or addresses.
    pub(super) proxy_protocol_from: Vec<Text<TrustedProxies>>,
    /// The realm in the WWW-Authenticate header of a 401.
    pub(super) realm: Text<Realm>,
    /// Serve TLS with these PEM files. They are read again when they change.
    pub(super) tls: Option<Table<TlsFiles>>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: Text(Listen::Tcp((Ipv4Addr::UNSPECIFIED, 4480).into())),
            header_timeout: Time::from_seconds(10),
            idle_timeout: Time::from_seconds(60),
            max_connection_age: None,
            drain_delay: Time::from_seconds(5),
            drain_timeout: Time::from_seconds(25),
            trusted_proxies: Vec::new(),
            pass_headers: Vec::new(),
            proxy_protocol_from: Vec::new(),
            realm: Text(Realm("api".to_owned())),
            tls: None,
        }
    }
}

/// A certificate and its key, in PEM.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("required" = ["certificate", "key"]))]
pub(super) struct TlsFiles {
    /// The certificate, followed by intermediate certificates.
    pub(super) certificate: Option<Text<PemPath>>,
    /// Its private key.
    pub(super) key: Option<Text<PemPath>>,
}

/// The admin port: health, metrics and the routes.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Admin {
    /// Address of the admin port. There is no authentication, so restrict access to it: use loopback, or an address within a pod. It
    /// must differ from server.listen.
    pub(super) listen: Text<Listen>,
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: Text(Listen::Tcp((Ipv4Addr::LOCALHOST, 4481).into())) }
    }
}

/// Decisions for a gateway that asks whether a request may pass, and as whom: nginx auth_request, Traefik ForwardAuth, Caddy
/// forward_auth, Envoy ext_authz and others. It is off unless this section is present.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Decision {
    /// Address of the decision listener: a loopback address, a unix socket, or any address with tls or allow_from. It must differ
    /// from the other listeners.
    pub(super) listen: Text<Listen>,
    /// Serve TLS with these PEM files. They are read again when they change.
    pub(super) tls: Option<Table<TlsFiles>>,
    /// The gateways, as networks or addresses; other peers get 403. Default: everyone who can connect.
    pub(super) allow_from: Vec<Text<TrustedProxies>>,
    /// The headers that tell the request's target: "x-forwarded" for X-Forwarded-Method, -Uri and -Host, or "x-original" for
    /// X-Original-Method and X-Original-URL. The others are ignored.
    pub(super) headers: Choice<TargetHeaders>,
}

impl Default for Decision {
    fn default() -> Self {
        Self {
            listen: Text(Listen::Tcp((Ipv4Addr::LOCALHOST, 4483).into())),
            tls: None,
            allow_from: Vec::new(),
            headers: Choice(TargetHeaders::XForwarded),
        }
    }
}

impl Choices for TargetHeaders {
    const WORDS: &'static [(&'static str, Self)] =
        &[("x-forwarded", Self::XForwarded), ("x-original", Self::XOriginal)];
}

/// Key management over HTTP. Every client that can connect can create keys of every organization. It is off unless this section is
/// present.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["listen"]))]
pub(super) struct Management {
    /// Address: a unix socket or a loopback address. Any other address requires tls and secret_file.
    pub(super) listen: Option<Text<Listen>>,
    /// File mode of the unix socket: "0660" admits the user that Keyward runs as and its group, "0600" that user alone.
    pub(super) socket_mode: SocketMode,
    /// Serve TLS with these PEM files. They are read again when they change.
    pub(super) tls: Option<Table<TlsFiles>>,
    /// A file with the secret, of at least 16 characters, that clients send as a Bearer token. It is read for each request.
    pub(super) secret_file: Option<Text<SecretPath>>,
    /// The longest lifetime of a new key, from "1h" to "3660d". A key that is created without an expiry gets this one.
    pub(super) max_expiry: Option<Lifetime>,
    /// Whether every creation must state an expiry.
    pub(super) require_expiry: bool,
    /// The claims that may be set, changed and removed. Default: all.
    pub(super) allowed_claims: Option<Vec<String>>,
}

/// The Scalekit environment, and the client that Keyward authenticates as. Environment variables take precedence over this file.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Scalekit {
    /// The environment's URL, such as `https://acme.scalekit.com`; `http://` only for loopback hosts.
    pub(super) environment_url: Option<Text<VisibleText>>,
    /// The client id, such as "skc_1234567890".
    pub(super) client_id: Option<Text<VisibleText>>,
    /// A file that holds the client id, instead of client_id.
    pub(super) client_id_file: Option<Text<SecretPath>>,
    /// A file that holds the client secret. The secret itself is not accepted in the route file.
    pub(super) client_secret_file: Option<Text<SecretPath>>,
    /// Root certificates (PEM) to verify Scalekit's certificate with, instead of the system's.
    pub(super) ca_file: Option<Text<PemPath>>,
    /// The HTTP proxy for connections to Scalekit, with "user:password@" before the host if the proxy requires it; or "none".
    /// Default: HTTPS_PROXY and NO_PROXY. A Scalekit on `http://` and upstreams are never reached through a proxy.
    pub(super) proxy: Option<Text<Proxy>>,
    /// The protocol to Scalekit: "rest", or "grpc", which Scalekit's own SDKs use.
    pub(super) transport: Choice<Transport>,
    /// Time from a request's arrival to the verdict on its key, retries included; after that, the response is 503. From "10ms".
    pub(super) timeout: Time<10>,
    /// Concurrent validations of one key. Further requests with that key share the next validation, which begins after they arrived.
    pub(super) max_in_flight_per_key: Number<1, 1_000_000>,
    /// Concurrent calls to Scalekit, over all keys.
    pub(super) max_in_flight: Number<1, 1_000_000>,
    /// Requests that may wait for a verdict when max_in_flight is reached; beyond that, the response is 503 at once. 0: none.
    pub(super) max_waiting: Number<0, 1_000_000>,
    /// Budget of calls to Scalekit per minute; beyond it, the response is 503. 0: no limit.
    pub(super) validations_per_minute: Number<0, 100_000_000>,
}

impl Default for Scalekit {
    fn default() -> Self {
        let limits = validator::Settings::default();
        Self {
            environment_url: None,
            client_id: None,
            client_id_file: None,
            client_secret_file: None,
            ca_file: None,
            proxy: None,
            transport: Choice(Transport::Rest),
            timeout: Time(limits.timeout),
            max_in_flight_per_key: Number(limits.max_in_flight_per_key as u64),
            max_in_flight: Number(limits.max_in_flight as u64),
            max_waiting: Number(limits.max_waiting as u64),
            validations_per_minute: Number(0),
        }
    }
}

impl Choices for Transport {
    const WORDS: &'static [(&'static str, Self)] = &[("rest", Self::Rest), ("grpc", Self::Grpc)];
}

/// The syntax of a key. Any other value is refused with 401 without asking Scalekit.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Credential {
    /// "base62": digits and letters. "token68": also - . _ ~ + / and, at the end, =.
    pub(super) alphabet: Choice<Alphabet>,
    /// The shortest key, in characters.
    pub(super) min_length: Number<1, 512>,
    /// The longest key, in characters.
    pub(super) max_length: Number<1, 8192>,
}

impl Default for Credential {
    fn default() -> Self {
        let credential::Settings { alphabet, min_length, max_length } = credential::Settings::default();
        Self {
            alphabet: Choice(alphabet),
            min_length: Number(min_length as u64),
            max_length: Number(max_length as u64),
        }
    }
}

impl Choices for Alphabet {
    const WORDS: &'static [(&'static str, Self)] = &[("base62", Self::Base62), ("token68", Self::Token68)];
}

/// Invalid keys are remembered for a short time. Valid keys are never remembered.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct NegativeCache {
    /// How long an invalid key is remembered, counted from Scalekit's response; hits do not extend it. "0s": not at all.
    pub(super) ttl: Time<0>,
    /// How many invalid keys are remembered.
    pub(super) max_entries: Number<1, 10_000_000>,
}

impl Default for NegativeCache {
    fn default() -> Self {
        let limits = validator::Settings::default();
        Self { ttl: Time(limits.negative_ttl), max_entries: Number(limits.negative_entries) }
    }
}

/// A limit on guessing keys.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Throttle {
    /// Invalid keys per minute from one client address (IPv6: one /64) before it gets 429. 0: off. "auto": 300 if
    /// server.trusted_proxies or server.proxy_protocol_from is set, otherwise off.
    pub(super) bad_keys_per_minute: BadKeys,
}

impl Throttle {
    /// The limit for "auto": more than a misconfigured client sends, but too few to use up Scalekit's rate limit.
    pub(super) const AUTO: u32 = 300;
}

/// Limits on requests and connections.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Limits {
    /// Size of a request's head; beyond it, 431. From "8KiB" to "16MiB".
    pub(super) head: Size<{ 8 * KIB }, { 16 * MIB }>,
    /// Number of header fields in a request; beyond it, 431.
    pub(super) headers: Number<1, 10_000>,
    /// Length of a request's target, path and query; beyond it, 414. From "256B" to "64KiB".
    pub(super) uri: Size<256, { 64 * KIB }>,
    /// Size of a request's body, counted as it arrives; beyond it, 413. Default: no limit.
    pub(super) body: Option<Size<0, PIB>>,
    /// How long a client may send nothing of a body that the service waits for; after that, 408. "0s": no limit.
    pub(super) body_timeout: Time<0>,
    /// How long a client may read nothing of a response that is ready for it. "0s": no limit.
    pub(super) answer_timeout: Time<0>,
    /// Concurrent requests on one HTTP/2 connection; clients delay further ones.
    pub(super) streams: Number<1, 10_000>,
    /// Open connections. Further ones wait, and idle ones without a valid key are closed to make room.
    pub(super) connections: Number<1, 1_000_000>,
    /// Open connections from one client address (IPv6: one /64); further ones are closed. 0: no limit. Default: a quarter of
    /// connections if server.proxy_protocol_from is set, otherwise no limit.
    pub(super) connections_per_address: Option<Number<0, 1_000_000>>,
    /// Memory that Keyward may use, if its cgroup has no lower limit. Default: the machine's memory. From "32MiB".
    pub(super) memory: Option<Size<{ 32 * MIB }, PIB>>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Size(64 << 10),
            headers: Number(100),
            uri: Size(16 << 10),
            body: None,
            body_timeout: Time::from_seconds(30),
            answer_timeout: Time::from_seconds(30),
            streams: Number(100),
            connections: Number(10_000),
            connections_per_address: None,
            memory: None,
        }
    }
}

/// A limit on the requests of each organization, user or key. Beyond it, the response is 429.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["requests"]))]
pub(super) struct RateLimit {
    /// What has an allowance of its own: "organization" (with all its users), "user" (organizations' own keys are counted by
    /// organization), or "key".
    pub(super) by: Choice<Subject>,
    /// Requests in `per`.
    pub(super) requests: Option<Number<1, 1_000_000_000>>,
    /// The time in which an exhausted allowance refills, evenly. From "1s" to a day.
    pub(super) per: Time<1000>,
    /// Requests at once, up to `requests`. Default: `requests`.
    pub(super) burst: Option<Number<1, 1_000_000_000>>,
    /// A claim whose value, a whole number, replaces `requests` for its key, for example by plan. The burst changes in proportion.
    pub(super) claim: Option<String>,
    /// The largest number that a claim can set. Default: `requests`.
    pub(super) max: Option<Number<1, 1_000_000_000>>,
    /// Whether responses have the fields RateLimit-Policy and RateLimit, which tell clients what is left.
    pub(super) headers: bool,
    /// Whether it counts the requests of all routes that require a key and have no rate_limits of their own.
    pub(super) default: bool,
    /// How many allowances are remembered. Beyond it, the one that was used least recently is forgotten, and is full again.
    pub(super) max_entries: Number<1, 10_000_000>,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            by: Choice(Subject::Organization),
            requests: None,
            per: Time::from_seconds(60),
            burst: None,
            claim: None,
            max: None,
            headers: false,
            default: false,
            max_entries: Number(100_000),
        }
    }
}

impl Choices for Subject {
    const WORDS: &'static [(&'static str, Self)] =
        &[("organization", Self::Organization), ("user", Self::User), ("key", Self::Key)];
}

/// The server, Redis or Valkey, over which replicas share rate limits and scalekit.validations_per_minute. While it does not answer,
/// each replica allows its own share. Its password can be in KEYWARD_SHARED_PASSWORD, or in the file that
/// KEYWARD_SHARED_PASSWORD_FILE names.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["url", "replicas"]))]
pub(super) struct Shared {
    /// `redis://host:port/database`, `rediss://` for TLS, or `unix:/path`. The port is 6379 and the database 0 by default.
    pub(super) url: Option<Text<SharedUrl>>,
    /// The number of replicas. While the server does not answer, each allows its part of every limit.
    pub(super) replicas: Option<Number<1, 10_000>>,
    /// The user to log in as.
    pub(super) username: Option<Text<VisibleText>>,
    /// A file that holds the password. The password itself is not accepted in the route file.
    pub(super) password_file: Option<Text<SecretPath>>,
    /// Root certificates (PEM) to verify the server's certificate with, instead of the system's.
    pub(super) ca_file: Option<Text<PemPath>>,
    /// The longest time that a request waits for the server. From "1ms" to "10s".
    pub(super) timeout: Time<1>,
    /// What the names of all keys on the server begin with.
    pub(super) prefix: Text<VisibleText>,
    /// A file with a secret, the same for all replicas, under which organization, user and key ids are hashed in the names of keys.
    /// Without it they are hashed, too, but whoever can read the server can test guesses.
    pub(super) salt_file: Option<Text<SecretPath>>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            url: None,
            replicas: None,
            username: None,
            password_file: None,
            ca_file: None,
            timeout: Time(Duration::from_millis(50)),
            prefix: Text(VisibleText("keyward:".to_owned())),
            salt_file: None,
        }
    }
}

/// Warnings before keys expire.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Expiry {
    /// How long before its end a key is warned of: in the response header Keyward-Key-Expires, in metrics, and in the log once a
    /// day for each key. From "1h" to "3660d". Default: no warnings.
    pub(super) warn_before: Option<Lifetime>,
}

/// Counts of the use of keys and by organizations.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Usage {
    /// Whether the use of keys and by organizations is counted.
    pub(super) enabled: bool,
    /// How many keys are remembered. Beyond it, the one that was used least recently is forgotten.
    pub(super) max_keys: Number<1, 10_000_000>,
    /// How many organizations are told apart on one day. Requests of further ones are counted together.
    pub(super) max_organizations: Number<1, 1_000_000>,
    /// For how many days the requests of organizations are kept, today included.
    pub(super) days: Number<1, 400>,
    /// Whether metrics have the requests of organizations, with their ids as labels.
    pub(super) metrics: bool,
    /// How many organizations have metrics of their own, the first that are seen. The others are `other`.
    pub(super) max_metrics_organizations: Number<1, 10_000>,
    /// A file in which the counts are kept over restarts. It is written every five seconds and at the end of a drain. Each instance
    /// needs a file of its own. Default: none.
    pub(super) file: Option<Text<UsagePath>>,
}

impl Default for Usage {
    fn default() -> Self {
        Self {
            enabled: true,
            max_keys: Number(10_000),
            max_organizations: Number(1000),
            days: Number(3),
            metrics: false,
            max_metrics_organizations: Number(100),
            file: None,
        }
    }
}

/// Long requests: WebSockets, event streams, gRPC streams, downloads, uploads.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Streams {
    /// The longest time between two validations of the key of such a request. From "1s".
    pub(super) revalidate_every: Time<1000>,
    /// How long such a request may continue while its key cannot be validated. At least revalidate_every; default: twice that.
    pub(super) unconfirmed_for: Option<Time<1000>>,
}

impl Default for Streams {
    fn default() -> Self {
        Self { revalidate_every: Time::from_seconds(30), unconfirmed_for: None }
    }
}

/// The headers that carry the identity to the upstream. Such headers from clients are removed on every route.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Identity {
    /// The organization's id; always set on a route that requires a key.
    pub(super) org_id: Text<IdentityHeader>,
    /// The organization's external id, if Scalekit has one.
    pub(super) org_external_id: Text<IdentityHeader>,
    /// The user's id, for a key of a user.
    pub(super) user_id: Text<IdentityHeader>,
    /// The user's external id, if Scalekit has one.
    pub(super) user_external_id: Text<IdentityHeader>,
    /// The user's roles, joined with ",".
    pub(super) roles: Text<IdentityHeader>,
    /// The id of the key.
    pub(super) token_id: Text<IdentityHeader>,
    /// The header of a claim is this prefix and the claim's name, with "-" for everything but letters and digits.
    pub(super) claim_prefix: Text<ClaimPrefix>,
    /// The claims to forward: "all", or a list of names. []: none.
    pub(super) claims: Claims,
    /// Header names for single claims; each must begin with the prefix.
    pub(super) claim_headers: Named<Text<IdentityHeader>>,
    /// A header for all forwarded claims together: a JSON object in base64url without padding, for gateways that cannot remove
    /// headers by prefix. It must not begin with the prefix. Default: none.
    pub(super) claims_header: Option<Text<IdentityHeader>>,
    /// Total size of the names and values of the identity headers; beyond it, 502. From "64B" to "1MiB".
    pub(super) max_bytes: Size<64, MIB>,
}

impl Default for Identity {
    fn default() -> Self {
        let defaults = identity::Settings::default();
        let name = |name: HeaderName| Text(IdentityHeader(name));
        Self {
            org_id: name(defaults.org_id),
            org_external_id: name(defaults.org_external_id),
            user_id: name(defaults.user_id),
            user_external_id: name(defaults.user_external_id),
            roles: name(defaults.roles),
            token_id: name(defaults.token_id),
            claim_prefix: Text(ClaimPrefix(defaults.claim_prefix)),
            claims: Claims::All,
            claim_headers: Named::default(),
            claims_header: None,
            max_bytes: Size(defaults.max_bytes),
        }
    }
}

/// The log.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Log {
    /// "json": one JSON object per line. "text": short lines for people. "auto": "text" on a terminal, otherwise "json".
    pub(super) format: Choice<Format>,
    /// Whether to log a line for each request. Events are logged in any case.
    pub(super) access: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: Choice(Format::Auto), access: true }
    }
}

impl Choices for Format {
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("json", Self::Json), ("text", Self::Text)];
}

/// Traces, which are exported where the environment names a collector (OTEL_EXPORTER_OTLP_ENDPOINT).
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Traces {
    /// Whose traceparent is continued, and decides whether a request is traced: "trusted_proxies" for those of
    /// server.trusted_proxies, "always" for every client's, or "never". Other requests begin a trace of their own.
    pub(super) trust_parent: Choice<TrustParent>,
}

impl Default for Traces {
    fn default() -> Self {
        Self { trust_parent: Choice(TrustParent::TrustedProxies) }
    }
}

impl Choices for TrustParent {
    const WORDS: &'static [(&'static str, Self)] =
        &[("trusted_proxies", Self::TrustedProxies), ("always", Self::Always), ("never", Self::Never)];
}

/// A service behind Keyward.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["url"]))]
pub(super) struct Upstream {
    /// "http://host:port", "https://host", "h2c://host:port" (HTTP/2 in clear text), or "unix:/path". Without a path.
    pub(super) url: Option<Text<UpstreamUrl>>,
    /// "auto": HTTP/1.1, or by ALPN with https://. "1": HTTP/1.1 only. "2": HTTP/2 only.
    pub(super) http: Choice<Protocol>,
    /// Time to connect, TLS included. From "1ms".
    pub(super) connect_timeout: Time<1>,
    /// How long an unused connection is kept. Keep it shorter than the upstream's keep-alive timeout. From "1ms".
    pub(super) idle_timeout: Time<1>,
    /// Time from the end of the request to the head of the response; after that, 504. From "1ms".
    pub(super) response_timeout: Time<1>,
    /// Whether the service distinguishes paths by letter case.
    pub(super) case_sensitive_paths: bool,
    /// Concurrent requests, until their responses have ended; beyond it, 503.
    pub(super) max_requests: Number<1, 1_000_000>,
    /// For https:// only: root certificates (PEM) instead of the system's.
    pub(super) ca_file: Option<Text<PemPath>>,
    /// For https:// only: the name to verify and to send in SNI, instead of the host.
    pub(super) server_name: Option<Text<ServerNameText>>,
    /// For https:// only: a client certificate (PEM).
    pub(super) client_certificate: Option<Text<PemPath>>,
    /// The private key of the client certificate (PEM).
    pub(super) client_key: Option<Text<PemPath>>,
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            url: None,
            http: Choice(Protocol::Auto),
            connect_timeout: Time::from_seconds(1),
            idle_timeout: Time::from_seconds(4),
            response_timeout: Time::from_seconds(30),
            case_sensitive_paths: false,
            max_requests: Number(4096),
            ca_file: None,
            server_name: None,
            client_certificate: None,
            client_key: None,
        }
    }
}

impl Choices for Protocol {
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("1", Self::Http1), ("2", Self::Http2)];
}

/// The requests that it matches, their upstream, and what it requires.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["path"]))]
pub(super) struct Route {
    /// "/healthz" matches this path only; "/v1/*" matches /v1 and everything below it, but not /v12.
    pub(super) path: Option<Text<Pattern>>,
    /// The name of an upstream. It may be left out where there is a `[decision]` section: the route then serves decisions alone.
    pub(super) upstream: Option<String>,
    /// "key": requires a valid key. "none": open to everybody.
    pub(super) auth: Choice<Authentication>,
    /// "enforce", or "shadow": keys are validated and the log says what would have been refused, but every request is forwarded, with
    /// the client's own Authorization.
    pub(super) mode: Choice<Mode>,
    /// Whether to accept a CORS preflight, which has no key, without one.
    pub(super) preflight: bool,
    /// Match only this host: one name, without a port. Default: every host.
    pub(super) host: Option<Text<Host>>,
    /// Match only these methods. Default: all except TRACE and CONNECT, which are never forwarded.
    pub(super) methods: Option<Vec<Text<hyper::Method>>>,
    /// The label in logs and metrics, which must be unique. Default: host and path.
    pub(super) name: Option<Text<RouteName>>,
    /// What a valid key must have.
    pub(super) require: Option<Table<Require>>,
    /// The names of the rate limits that count its requests. Default: those with default = true. []: none.
    pub(super) rate_limits: Option<Vec<String>>,
}

#[derive(Clone, Copy, Default, PartialEq)]
pub(super) enum Authentication {
    #[default]
    Key,
    None,
}

#[derive(Clone, Copy, Default, PartialEq)]
pub(super) enum Mode {
    #[default]
    Enforce,
    Shadow,
}

impl Choices for Mode {
    const WORDS: &'static [(&'static str, Self)] = &[("enforce", Self::Enforce), ("shadow", Self::Shadow)];
}

impl Choices for Authentication {
    const WORDS: &'static [(&'static str, Self)] = &[("key", Self::Key), ("none", Self::None)];
}

/// What a key must have. Each key is optional.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Require {
    /// The key's scope: "user" or "organization".
    pub(super) scope: Option<Choice<Scope>>,
    /// All of these roles.
    pub(super) roles: Option<Vec<Text<RoleName>>>,
    /// All of these claims, with these values.
    pub(super) claims: Option<Named<String>>,
}

impl Choices for Scope {
    const WORDS: &'static [(&'static str, Self)] =
        &[("user", Self::User), ("organization", Self::Organization)];
}
