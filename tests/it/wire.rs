//! Malformed and hostile bytes of clients, upstreams and Scalekit over raw sockets: what the upstream and the client
//! receive.

mod bodies;
mod http2_floods;
mod forwarded;
mod framing;
pub(crate) mod http2;
mod heads;
mod identity;
mod limits;
mod upstreams;

use std::fmt::Write as _;

use crate::support::raw::{Client, ScriptedUpstream};
use crate::support::{Setup, Stage};

/// An ordinary response of an upstream.
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
/// A request that is hidden in another one and must never reach the upstream.
const SMUGGLED: &str = "GET /public/smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

/// Keyward in front of a scripted upstream.
struct Wire {
    stage: Stage,
    upstream: ScriptedUpstream,
    key: String,
}

impl Wire {
    /// In front of an upstream that responds with `OK`.
    async fn start() -> Self {
        Self::with(ScriptedUpstream::answering(OK).await, Setup::default()).await
    }

    async fn with(upstream: ScriptedUpstream, setup: Setup) -> Self {
        let stage = Stage::with(Setup { upstream_url: upstream.url(), ..setup }).await;
        let key = stage.issue_key();
        Self { stage, upstream, key }
    }

    /// A head with `lines` and a good key.
    fn head(&self, line: &str, lines: &str) -> String {
        format!("{line} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n{lines}\r\n", self.key)
    }

    /// All bytes until Keyward closes.
    async fn all(&self, request: impl AsRef<[u8]>) -> String {
        let mut client = self.stage.connect().await;
        client.send(request).await;
        rest(&mut client).await
    }

    /// What the upstream received since the last time, in lower case.
    fn fresh(&self, seen: &mut usize) -> String {
        let text = self.upstream.text();
        let fresh = text[*seen..].to_ascii_lowercase();
        *seen = text.len();
        fresh
    }
}

async fn rest(client: &mut Client) -> String {
    String::from_utf8_lossy(&client.read_to_end().await).into_owned()
}

/// The status of each response in these bytes.
fn statuses(text: &str) -> Vec<u16> {
    let after = |version| text.split(version).skip(1);
    after("HTTP/1.1 ").chain(after("HTTP/1.0 ")).map(|rest| rest[..3].parse().unwrap()).collect()
}

/// All values of a header, in any spelling that an upstream could take for it.
fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let fold =
        |name: &str| name.to_ascii_lowercase().replace(|char: char| !char.is_ascii_alphanumeric(), "-");
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(own, _)| fold(own) == name)
        .map(|(_, value)| value.trim())
        .collect()
}

fn chunked(data: &str) -> String {
    let mut body = String::new();
    write!(body, "{:x}\r\n{data}\r\n0\r\n\r\n", data.len()).unwrap();
    body
}
