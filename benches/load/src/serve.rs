//! The stand-ins. A key is good if it begins with `Good`; the delay of a verdict is set while they run, by `/bench/delay/MS`.

use std::fmt::Write as _;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use crate::Options;
use crate::http1::{Framing, Reader};

/// How long a verdict takes, in milliseconds.
static DELAY: AtomicU64 = AtomicU64::new(0);
static VERDICTS: AtomicU64 = AtomicU64::new(0);
static SERVED: AtomicU64 = AtomicU64::new(0);

const TOKEN: &str = r#"{"access_token":"made-up","token_type":"Bearer","expires_in":86399}"#;
const VALID: &str = r#"{"token_info":{"token_id":"apit_123456789012345","organization_id":"org_123456789012345","organization_external_id":"org-ext-001","user_id":"usr_987654321098765","user_external_id":"user-ext-001","custom_claims":{"team":"engineering"},"created_at":"2026-11-24T03:00:00.123Z","description":"CI","token_suffix":"xY9Z","email":"user@example.com","roles":["admin","reader"]}}"#;
const INVALID: &str = r#"{"code":5,"message":"token not found","details":[{"@type":"type.googleapis.com/scalekit.v1.errdetails.ErrorInfo","error_code":"NOT_FOUND"}]}"#;

#[derive(Clone, Copy)]
enum Role {
    /// The service behind the proxy. A path that ends with `/echo` answers with the head that arrived.
    Upstream,
    /// The token API.
    Scalekit,
    /// What a proxy without a Scalekit client asks: the key in `Authorization`, the identity in the answer's headers.
    Adapter,
}

pub async fn serve(options: &Options) -> Result<(), String> {
    let mut roles = Vec::new();
    for (name, role) in
        [("upstream", Role::Upstream), ("scalekit", Role::Scalekit), ("adapter", Role::Adapter)]
    {
        let address: String = options.get(name, String::new())?;
        let listener =
            TcpListener::bind(&address).await.map_err(|error| format!("--{name} {address}: {error}"))?;
        roles.push(tokio::spawn(accept(listener, role)));
    }
    for role in roles {
        role.await.map_err(|error| error.to_string())?;
    }
    Ok(())
}

async fn accept(listener: TcpListener, role: Role) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(serve_connection(stream, role))),
            // Out of file descriptors, most likely.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn serve_connection(mut stream: TcpStream, role: Role) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = Reader::default();
    let mut answer = String::new();
    while reader.read_head(&mut stream).await?.is_some() {
        let body = match reader.framing() {
            Framing::Length(length) => reader.read_body(&mut stream, length).await?,
            Framing::Chunked => {
                reader.skip_chunked(&mut stream).await?;
                Vec::new()
            }
            Framing::Unframed => Vec::new(),
        };
        answer.clear();
        let (status, headers, content) = respond(&reader, &body, role).await;
        let length = content.len();
        let _ = write!(
            answer,
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}Content-Length: {length}\r\n\r\n{content}"
        );
        stream.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}

async fn respond(reader: &Reader, body: &[u8], role: Role) -> (&'static str, &'static str, String) {
    let path = reader.head().split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    if let Some(milliseconds) = path.strip_prefix(b"/bench/delay/") {
        DELAY.store(String::from_utf8_lossy(milliseconds).parse().unwrap_or(0), Relaxed);
    }
    if path.starts_with(b"/bench/") {
        let counts =
            format!("{{\"verdicts\":{},\"served\":{}}}", VERDICTS.load(Relaxed), SERVED.load(Relaxed));
        return ("200 OK", "", counts);
    }
    match role {
        Role::Upstream => {
            SERVED.fetch_add(1, Relaxed);
            let echo = path.ends_with(b"/echo");
            let content = if echo {
                String::from_utf8_lossy(reader.head()).into()
            } else {
                r#"{"ok":true}"#.to_owned()
            };
            ("200 OK", "", content)
        }
        Role::Scalekit if path == b"/oauth/token" => ("200 OK", "", TOKEN.to_owned()),
        Role::Scalekit => {
            match give_verdict(contains(body, br#":"Good"#) || contains(body, br#": "Good"#)).await {
                true => ("200 OK", "", VALID.to_owned()),
                false => ("404 Not Found", "", INVALID.to_owned()),
            }
        }
        Role::Adapter => {
            let key = reader.header("authorization").and_then(|value| value.strip_prefix(b"Bearer "));
            match give_verdict(key.is_some_and(|key| key.starts_with(b"Good"))).await {
                true => ("200 OK", "X-Org-Id: org_123456789012345\r\n", String::new()),
                false => ("401 Unauthorized", "WWW-Authenticate: Bearer\r\n", String::new()),
            }
        }
    }
}

async fn give_verdict(good: bool) -> bool {
    VERDICTS.fetch_add(1, Relaxed);
    let delay = DELAY.load(Relaxed);
    if delay > 0 {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    good
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
