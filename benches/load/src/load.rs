//! The load: HTTP/1.1 or h2c, closed loop (each connection sends when it has its answer) or open loop (at a rate, whatever the
//! answers do; latency is counted from when a request was due, so that a stall counts for all that it delays).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::Options;
use crate::http1::{Framing, Reader};
use crate::record;

/// Requests begun, over all connections; says which key is next.
static BEGUN: AtomicU64 = AtomicU64::new(0);

struct Plan {
    address: SocketAddr,
    path: String,
    /// What a key begins with; none is sent without it.
    key: String,
    keys: u64,
    paths: u64,
    body: Bytes,
    post: bool,
    /// The request is told to a decision endpoint: in headers over HTTP/1.1, in Envoy's message over HTTP/2.
    decision: bool,
}

impl Plan {
    fn read(options: &Options) -> Result<Self, String> {
        let body = options.get("body", -1_i64)?;
        Ok(Self {
            address: options.get("address", SocketAddr::from(([127, 0, 0, 1], 0)))?,
            path: options.get("path", "/v1/orders".to_owned())?,
            key: options.get("key", String::new())?,
            keys: options.get("keys", 1)?,
            paths: options.get("paths", 0)?,
            body: vec![b'x'; usize::try_from(body).unwrap_or(0)].into(),
            post: body >= 0,
            decision: options.get("decision", 0)? == 1,
        })
    }

    /// The key and the path of the next request.
    fn next(&self) -> (String, String) {
        let number = BEGUN.fetch_add(1, Relaxed);
        let key = match self.key.as_str() {
            "" => String::new(),
            key => format!(
                "Bearer {key}{:08}UpKeyOfNobody0123456789MadeUpKeyOfNobody0123456789xY9Z",
                number % self.keys
            ),
        };
        let path = if self.paths == 0 { self.path.clone() } else { format!("/r{}/x", number % self.paths) };
        (key, path)
    }

    fn render_head(&self) -> Vec<u8> {
        let (key, path) = self.next();
        let method = if self.post { "POST" } else { "GET" };
        let target = if self.decision { "/decision" } else { &path };
        let mut head = format!(
            "{method} {target} HTTP/1.1\r\nHost: bench.test\r\nUser-Agent: keyward-load\r\nAccept: */*\r\n"
        );
        if self.decision {
            head += &format!(
                "X-Forwarded-Method: GET\r\nX-Forwarded-Uri: {path}\r\nX-Forwarded-Host: bench.test\r\n"
            );
        }
        if !key.is_empty() {
            head += &format!("Authorization: {key}\r\n");
        }
        if self.post {
            head +=
                &format!("Content-Type: application/octet-stream\r\nContent-Length: {}\r\n", self.body.len());
        }
        head += "\r\n";
        head.into_bytes()
    }
}

/// When the next request of a connection is due.
enum Pace {
    Closed,
    Open(UnboundedReceiver<Instant>),
}

impl Pace {
    async fn wait(&mut self) -> Option<Instant> {
        match self {
            Self::Closed => Some(Instant::now()),
            Self::Open(due) => due.recv().await,
        }
    }
}

pub async fn run(options: &Options) -> Result<(), String> {
    let plan = Arc::new(Plan::read(options)?);
    let connections: usize = options.get("connections", 64)?;
    let streams: usize = options.get("streams", 1)?;
    let rate: f64 = options.get("rate", 0.0)?;
    let http2 = options.get("http", 1)? == 2;
    let mut due = Vec::new();
    let mut pace = || {
        if rate == 0.0 {
            return Pace::Closed;
        }
        let (sender, receiver) = unbounded_channel();
        due.push(sender);
        Pace::Open(receiver)
    };
    for _ in 0..connections {
        if http2 {
            let stream = connect(&plan).await?;
            let built =
                h2::client::Builder::new().initial_window_size(1 << 20).handshake::<_, Bytes>(stream).await;
            let (sender, connection) = built.map_err(|error| error.to_string())?;
            tokio::spawn(connection);
            for _ in 0..streams {
                tokio::spawn(send_http2(Arc::clone(&plan), sender.clone(), pace()));
            }
        } else {
            let stream = connect(&plan).await?;
            tokio::spawn(send_http1(Arc::clone(&plan), stream, pace()));
        }
    }
    if rate > 0.0 {
        std::thread::spawn(move || keep_pace(&due, rate));
    }
    tokio::time::sleep(Duration::from_secs_f64(options.get("warm", 0.2)?)).await;
    record::measure(options.get("seconds", 1.0)?, &options.get("watch", String::new())?, &BEGUN).await;
    Ok(())
}

async fn connect(plan: &Plan) -> Result<TcpStream, String> {
    let stream =
        TcpStream::connect(plan.address).await.map_err(|error| format!("{}: {error}", plan.address))?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    Ok(stream)
}

/// A thread, since a runtime's timers have steps of a millisecond.
fn keep_pace(due: &[UnboundedSender<Instant>], rate: f64) {
    let start = Instant::now();
    for number in 0_u64.. {
        let at = start + Duration::from_secs_f64(number as f64 / rate);
        if let Some(wait) = at.checked_duration_since(Instant::now()) {
            std::thread::sleep(wait);
        }
        if due[number as usize % due.len()].send(at).is_err() {
            return;
        }
    }
}

async fn send_http1(plan: Arc<Plan>, mut stream: TcpStream, mut pace: Pace) {
    let mut reader = Reader::default();
    while let Some(due) = pace.wait().await {
        let exchanged = exchange(&plan, &mut stream, &mut reader).await;
        record::count(exchanged.as_ref().map_or(0, |(status, _)| *status), due.elapsed());
        if matches!(exchanged, Ok((_, true))) {
            continue;
        }
        reader = Reader::default();
        stream = loop {
            match connect(&plan).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
    }
}

/// Sends a request and reads its answer: its status, and whether the connection lasts.
async fn exchange(plan: &Plan, stream: &mut TcpStream, reader: &mut Reader) -> io::Result<(u16, bool)> {
    stream.write_all(&plan.render_head()).await?;
    if !plan.body.is_empty() {
        stream.write_all(&plan.body).await?;
    }
    reader.read_head(stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let status =
        reader.head().get(9..12).and_then(|text| std::str::from_utf8(text).ok()?.parse().ok()).unwrap_or(0);
    let lasts = reader.header("connection").is_none_or(|value| !value.eq_ignore_ascii_case(b"close"));
    match reader.framing() {
        Framing::Length(length) => drop(reader.read_body(stream, length).await?),
        Framing::Chunked => reader.skip_chunked(stream).await?,
        Framing::Unframed => return Ok((status, false)),
    }
    Ok((status, lasts))
}

async fn send_http2(plan: Arc<Plan>, mut sender: h2::client::SendRequest<Bytes>, mut pace: Pace) {
    while let Some(due) = pace.wait().await {
        let status = match plan.decision {
            true => exchange_check(&plan, &mut sender).await,
            false => exchange_http2(&plan, &mut sender).await,
        };
        record::count(status.unwrap_or(0), due.elapsed());
        if status.is_none() {
            // The connection has ended: what is left of this run is told by the count of failures.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn exchange_http2(plan: &Plan, sender: &mut h2::client::SendRequest<Bytes>) -> Option<u16> {
    let (key, path) = plan.next();
    let mut request =
        http::Request::builder().uri(format!("http://bench.test{path}")).header("user-agent", "keyward-load");
    if !key.is_empty() {
        request = request.header("authorization", key);
    }
    std::future::poll_fn(|context| sender.poll_ready(context)).await.ok()?;
    let (answer, _) = sender.send_request(request.body(()).ok()?, true).ok()?;
    let (head, mut body) = answer.await.ok()?.into_parts();
    while let Some(piece) = body.data().await {
        body.flow_control().release_capacity(piece.ok()?.len()).ok()?;
    }
    Some(head.status.as_u16())
}

/// Makes Envoy's call about a request. 200 if it is permitted, 403 if not.
async fn exchange_check(plan: &Plan, sender: &mut h2::client::SendRequest<Bytes>) -> Option<u16> {
    let (key, path) = plan.next();
    let headers = [("user-agent", "keyward-load"), ("accept", "*/*"), ("authorization", &key)];
    let mut http = [field(2, b"GET"), field(4, path.as_bytes()), field(5, b"bench.test")].concat();
    for (name, value) in headers {
        http.extend(field(3, &[field(1, name.as_bytes()), field(2, value.as_bytes())].concat()));
    }
    // CheckRequest.attributes.request.http
    let message = field(1, &field(4, &field(2, &http)));
    let mut content = vec![0];
    content.extend(u32::try_from(message.len()).ok()?.to_be_bytes());
    content.extend(message);
    let request = http::Request::post("http://bench.test/envoy.service.auth.v3.Authorization/Check")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    std::future::poll_fn(|context| sender.poll_ready(context)).await.ok()?;
    let (answer, mut upload) = sender.send_request(request.body(()).ok()?, false).ok()?;
    upload.send_data(content.into(), true).ok()?;
    let mut body = answer.await.ok()?.into_body();
    let mut read = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = piece.ok()?;
        body.flow_control().release_capacity(piece.len()).ok()?;
        read.extend_from_slice(&piece);
    }
    body.trailers().await.ok()?;
    // Behind the length, CheckResponse.status: empty for the code 0.
    Some(if read.get(5..7) == Some(&[0x0a, 0]) { 200 } else { 403 })
}

/// A length-delimited field of a protobuf message.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut encoded = vec![number << 3 | 2];
    let mut left = content.len();
    while left >= 0x80 {
        encoded.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    encoded.push(left as u8);
    encoded.extend_from_slice(content);
    encoded
}

/// Opens connections, sends one request on each, says `ready`, and keeps them for as long as `--seconds` says. Fails where a
/// connection is refused or not served.
pub async fn hold(options: &Options) -> Result<(), String> {
    let plan = Plan::read(options)?;
    let mut held = Vec::new();
    for _ in 0..options.get("connections", 1)? {
        let mut stream = connect(&plan).await?;
        let mut reader = Reader::default();
        // A proxy that takes no more connections leaves this one waiting.
        match tokio::time::timeout(Duration::from_secs(5), exchange(&plan, &mut stream, &mut reader)).await {
            Ok(Ok((200, _))) => {}
            refused => return Err(format!("{refused:?} after {} connections", held.len())),
        }
        held.push(stream);
    }
    println!("ready");
    tokio::time::sleep(Duration::from_secs_f64(options.get("seconds", 5.0)?)).await;
    Ok(())
}
