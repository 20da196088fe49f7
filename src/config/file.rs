//! The whole route file: every section, every key, with its default beside it. Only this shape is known to `serde`, and the
//! JSON Schema is made from it; what values mean together is checked where they become the settings of each part.

use std::net::Ipv4Addr;

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
use super::upstreams::{ServerNameText, UpstreamUrl};
use super::values::special::{BadKeys, Lifetime, SocketMode, Version};
use super::values::tables::{Claims, Named, Table};
use super::values::{Choice, Choices, Number, Size, Text, Time};
use crate::access_log::Format;
use crate::credential::{self, Alphabet};
use crate::listener::Listen;
use crate::policy::Scope;
use crate::pool::Protocol;
use crate::route::Pattern;
use crate::upstream::forwarded::Trusted;
use crate::{identity, validator};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const PIB: u64 = 1 << 50;

/// Where requests arrive, where they go, and what they need.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(title = "Keyward's route file", extend("required" = ["version", "upstreams", "routes"]))]
pub(super) struct File {
    /// The version of this format. There is one.
    pub(super) version: Option<Version>,
    pub(super) server: Table<Server>,
    pub(super) admin: Table<Admin>,
    pub(super) management: Option<Table<Management>>,
    pub(super) scalekit: Table<Scalekit>,
    pub(super) credential: Table<Credential>,
    pub(super) negative_cache: Table<NegativeCache>,
    pub(super) throttle: Table<Throttle>,
    pub(super) limits: Table<Limits>,
    pub(super) streams: Table<Streams>,
    pub(super) identity: Table<Identity>,
    pub(super) log: Table<Log>,
    /// The services behind Keyward, by a name of letters, digits, "-" and "_".
    pub(super) upstreams: Named<Table<Upstream>>,
    /// Which requests go where, and what they need. The most specific route wins, whatever the order.
    #[schemars(with = "Vec<Route>")]
    pub(super) routes: Vec<Spanned<Table<Route>>>,
}

/// Where requests arrive.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Server {
    /// HTTP/1.1 and HTTP/2 on one port: an IP address and a port, or "unix:/path".
    pub(super) listen: Text<Listen>,
    /// To receive the head of a request; for the first one of a connection, TLS included. From "1ms".
    pub(super) header_timeout: Time<1>,
    /// How long an open connection may wait for its next request. From "1ms".
    pub(super) idle_timeout: Time<1>,
    /// After SIGTERM, for load balancers to notice: not ready any more, and still accepting.
    pub(super) drain_delay: Time<0>,
    /// Then, to finish what is open. What takes longer is closed.
    pub(super) drain_timeout: Time<0>,
    /// Proxies in front, as networks or addresses, whose X-Forwarded-* is kept. "unix:" trusts who connects over a unix socket.
    pub(super) trusted_proxies: Vec<Text<Trusted>>,
    /// Other headers about forwarding that are kept from trusted proxies; name only what your proxy sets or removes itself.
    #[schemars(with = "Vec<String>")]
    pub(super) pass_headers: Vec<Spanned<Text<PlainHeader>>>,
    /// Load balancers that begin each connection with a PROXY header, version 1 or 2, as networks or addresses.
    pub(super) proxy_protocol_from: Vec<Text<Trusted>>,
    /// The realm in the WWW-Authenticate of a 401.
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
    /// The certificate, with those between it and the root.
    pub(super) certificate: Option<Text<PemPath>>,
    /// Its private key.
    pub(super) key: Option<Text<PemPath>>,
}

/// Health, metrics and the routes.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Admin {
    /// Keep it to those who ask: on loopback, or within a pod. Never the same as server.listen.
    pub(super) listen: Text<Listen>,
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: Text(Listen::Tcp((Ipv4Addr::LOCALHOST, 4481).into())) }
    }
}

/// Key management over HTTP. Whoever reaches it makes keys of every organization; it is off unless this section is there.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["listen"]))]
pub(super) struct Management {
    /// A unix socket, or a loopback address. Elsewhere only with tls and secret_file.
    pub(super) listen: Option<Text<Listen>>,
    /// Who may connect to the unix socket, besides the user that Keyward runs as: "0660" its group, "0600" nobody.
    pub(super) socket_mode: SocketMode,
    /// PEM files, read again when they change.
    pub(super) tls: Option<Table<TlsFiles>>,
    /// A file with what callers present as a Bearer token, of at least 16 characters; read anew for each request.
    pub(super) secret_file: Option<Text<SecretPath>>,
    /// The longest life of a new key, from "1h" to "3660d". One for which no end is asked ends then.
    pub(super) max_expiry: Option<Lifetime>,
    /// Whether every creation must name an end.
    pub(super) require_expiry: bool,
    /// The claims that may be set, changed and removed. Without this, all.
    pub(super) allowed_claims: Option<Vec<String>>,
}

impl Default for Management {
    fn default() -> Self {
        Self {
            listen: None,
            socket_mode: SocketMode(0o660),
            tls: None,
            secret_file: None,
            max_expiry: None,
            require_expiry: false,
            allowed_claims: None,
        }
    }
}

/// Where your Scalekit environment is, and who Keyward is to it. Environment variables come before this file.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Scalekit {
    /// As in `https://acme.scalekit.com`; `http://` only for loopback hosts.
    pub(super) environment_url: Option<Text<VisibleText>>,
    /// The client, as in "skc_1234567890".
    pub(super) client_id: Option<Text<VisibleText>>,
    /// A file that holds the client, instead of client_id.
    pub(super) client_id_file: Option<Text<SecretPath>>,
    /// A file that holds the client's secret. A secret itself is refused in this file.
    pub(super) client_secret_file: Option<Text<SecretPath>>,
    /// The roots that Scalekit's certificate is verified with, in PEM, instead of the system's.
    pub(super) ca_file: Option<Text<PemPath>>,
    /// The HTTP proxy on the way to Scalekit, with "user:password@" before the host if it asks for that; or "none". Without this
    /// key HTTPS_PROXY and NO_PROXY decide. A Scalekit on `http://` is never reached through a proxy, nor is any upstream.
    pub(super) proxy: Option<Text<Proxy>>,
    /// "rest", or "grpc", which is what Scalekit's own SDKs speak.
    pub(super) transport: Choice<Transport>,
    /// From a request's arrival to the verdict on its key, retries included; after it the answer is 503. From "10ms".
    pub(super) timeout: Time<10>,
    /// Validations of one key at once. Further requests with that key share the next one, which begins after they arrived.
    pub(super) max_in_flight_per_key: Number<1, 1_000_000>,
    /// Calls to Scalekit at once, over all keys.
    pub(super) max_in_flight: Number<1, 1_000_000>,
    /// Requests that wait for a verdict beyond that. Over it the answer is 503 at once. 0: none waits.
    pub(super) max_waiting: Number<0, 1_000_000>,
    /// Calls to Scalekit in a minute. Over it the answer is 503. 0: as many as needed.
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

/// What can be a key at all. Anything else is 401 without asking Scalekit.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Credential {
    /// "base62": digits and letters; or "token68", which adds -._~+/ and = at the end.
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

/// Keys that are definitely bad. Good keys are never remembered.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct NegativeCache {
    /// How long one is remembered, from Scalekit's answer on; hits do not prolong it. "0s": not at all.
    pub(super) ttl: Time<0>,
    /// How many are remembered.
    pub(super) max_entries: Number<1, 10_000_000>,
}

impl Default for NegativeCache {
    fn default() -> Self {
        let limits = validator::Settings::default();
        Self { ttl: Time(limits.negative_ttl), max_entries: Number(limits.negative_entries) }
    }
}

/// A limit on guessing.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Throttle {
    /// Bad keys in a minute from one client address (IPv6: one /64), before it gets 429. 0: off. "auto": 300 where
    /// server.trusted_proxies or server.proxy_protocol_from says where client addresses come from, else off.
    pub(super) bad_keys_per_minute: BadKeys,
}

impl Throttle {
    /// What "auto" is where client addresses are known: more than a misconfigured client tries, and too few to use up a rate
    /// limit.
    pub(super) const AUTO: u32 = 300;
}

impl Default for Throttle {
    fn default() -> Self {
        Self { bad_keys_per_minute: BadKeys::Auto }
    }
}

/// Limits on requests and connections.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Limits {
    /// The head of a request, all of it; over it 431. From "8KiB" to "16MiB".
    pub(super) head: Size<{ 8 * KIB }, { 16 * MIB }>,
    /// The header fields in it; over it 431.
    pub(super) headers: Number<1, 10_000>,
    /// The target in it, path and query; over it 414. From "256B" to "64KiB".
    pub(super) uri: Size<256, { 64 * KIB }>,
    /// The body of a request, counted as it comes; over it 413. Without it, no limit.
    pub(super) body: Option<Size<0, PIB>>,
    /// How long a caller may send nothing of a body that the service waits for; after it 408. "0s": no limit.
    pub(super) body_timeout: Time<0>,
    /// How long a caller may take nothing of an answer that is there for it. "0s": no limit.
    pub(super) answer_timeout: Time<0>,
    /// Requests at once on one HTTP/2 connection; clients keep further ones back.
    pub(super) streams: Number<1, 10_000>,
    /// Open connections. Further ones wait, and silent ones without a good key make room.
    pub(super) connections: Number<1, 1_000_000>,
    /// And from one client address (IPv6: one /64); further ones are closed. 0: no limit. Without it, a quarter of
    /// connections where server.proxy_protocol_from tells addresses, else no limit.
    pub(super) connections_per_address: Option<Number<0, 1_000_000>>,
    /// The memory that Keyward may use, where its cgroup sets no lower limit; without either, all of the machine's. From "32MiB".
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

/// Requests that last: WebSockets, event streams, gRPC streams, downloads, uploads.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Streams {
    /// How often, at the least, the key of such a request is asked about again. From "1s".
    pub(super) revalidate_every: Time<1000>,
    /// How long such a request may go on when nobody can say whether its key is still good. Not less than revalidate_every;
    /// without this, twice that.
    pub(super) unconfirmed_for: Option<Time<1000>>,
}

impl Default for Streams {
    fn default() -> Self {
        Self { revalidate_every: Time::from_seconds(30), unconfirmed_for: None }
    }
}

/// The headers that tell the upstream who calls. A caller's own are removed on every route.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Identity {
    /// Always there, on a route that takes keys.
    pub(super) org_id: Text<IdentityHeader>,
    /// Where Scalekit has one.
    pub(super) org_external_id: Text<IdentityHeader>,
    /// For a user's key.
    pub(super) user_id: Text<IdentityHeader>,
    /// Where Scalekit has one.
    pub(super) user_external_id: Text<IdentityHeader>,
    /// Joined with ",".
    pub(super) roles: Text<IdentityHeader>,
    /// The id of the key.
    pub(super) token_id: Text<IdentityHeader>,
    /// A claim's header: this, and the claim's name with "-" for everything but letters and digits.
    pub(super) claim_prefix: Text<ClaimPrefix>,
    /// Which claims pass: "all", or a list of names. []: none.
    pub(super) claims: Claims,
    /// Headers for single claims, each beginning with the prefix.
    pub(super) claim_headers: Named<Text<IdentityHeader>>,
    /// The most that names and values may take together. Over it the answer is 502. From "64B" to "1MiB".
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
            max_bytes: Size(defaults.max_bytes),
        }
    }
}

/// What is logged.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Log {
    /// "json": a JSON object a line. "text": short lines for people. "auto": text on a terminal.
    pub(super) format: Choice<Format>,
    /// A line for each request. Events are logged anyway.
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

/// A service behind Keyward.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["url"]))]
pub(super) struct Upstream {
    /// "http://host:port", "https://host", "h2c://host:port" (HTTP/2 in clear text), or "unix:/path". Without a path.
    pub(super) url: Option<Text<UpstreamUrl>>,
    /// "auto": HTTP/1.1, and by ALPN with https://. "1": HTTP/1.1 alone. "2": HTTP/2 alone.
    pub(super) http: Choice<Protocol>,
    /// To connect, TLS included. From "1ms".
    pub(super) connect_timeout: Time<1>,
    /// How long an unused connection is kept: less than the service keeps it. From "1ms".
    pub(super) idle_timeout: Time<1>,
    /// From the last of the request that was sent to the head of the answer; after it the answer is 504. From "1ms".
    pub(super) response_timeout: Time<1>,
    /// Whether the service tells paths apart by letter case.
    pub(super) case_sensitive_paths: bool,
    /// Requests at once, to the ends of their answers; over it 503.
    pub(super) max_requests: Number<1, 1_000_000>,
    /// With https:// alone: roots in PEM, instead of the system's.
    pub(super) ca_file: Option<Text<PemPath>>,
    /// With https:// alone: the name to verify, instead of the host.
    pub(super) server_name: Option<Text<ServerNameText>>,
    /// With https:// alone: a certificate to present, in PEM.
    pub(super) client_certificate: Option<Text<PemPath>>,
    /// Its private key.
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

/// Which requests go where, and what they need.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["path", "upstream"]))]
pub(super) struct Route {
    /// "/healthz" is this path alone; "/v1/*" is /v1 and all below it, not /v12.
    pub(super) path: Option<Text<Pattern>>,
    /// One of the upstreams.
    pub(super) upstream: Option<String>,
    /// "key": takes a good key. "none": open to everybody.
    pub(super) auth: Choice<Authentication>,
    /// Let a CORS preflight, which has no key, pass without one.
    pub(super) preflight: bool,
    /// Only requests for this host: one name, without a port.
    pub(super) host: Option<Text<Host>>,
    /// Only these methods. Without this, all but TRACE and CONNECT, which are never forwarded.
    pub(super) methods: Option<Vec<Text<hyper::Method>>>,
    /// The label in logs and metrics, instead of host and path. No two routes have the same.
    pub(super) name: Option<Text<RouteName>>,
    /// What the key must have besides being good.
    pub(super) require: Option<Table<Require>>,
}

impl Default for Route {
    fn default() -> Self {
        Self {
            path: None,
            upstream: None,
            auth: Choice(Authentication::Key),
            preflight: false,
            host: None,
            methods: None,
            name: None,
            require: None,
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Authentication {
    Key,
    None,
}

impl Choices for Authentication {
    const WORDS: &'static [(&'static str, Self)] = &[("key", Self::Key), ("none", Self::None)];
}

/// What a key must have; each may be left out.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Require {
    /// Whose key: "user" or "organization".
    pub(super) scope: Option<Choice<Scope>>,
    /// Every one of these roles.
    pub(super) roles: Option<Vec<Text<RoleName>>>,
    /// Every one of these claims, with this value.
    pub(super) claims: Option<Named<String>>,
}

impl Choices for Scope {
    const WORDS: &'static [(&'static str, Self)] =
        &[("user", Self::User), ("organization", Self::Organization)];
}
