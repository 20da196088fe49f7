//! Raw sockets: a client that sends given bytes and reads HTTP/1.1 responses, and an upstream that records every byte and
//! responds by a script.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::{TEST_TIMEOUT, bind_loopback};

/// A client's connection.
pub struct Client<S = TcpStream> {
    pub stream: S,
    buffer: Vec<u8>,
}

/// A response, or the part of it that arrived before the connection closed.
#[derive(Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// Whether the response is complete.
    pub whole: bool,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn code(&self) -> Option<&str> {
        self.header("keyward-error")
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.text()))
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream =
            timeout(TEST_TIMEOUT, TcpStream::connect(address)).await.expect("a connection in time").unwrap();
        Self::over(stream)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// On an open connection.
    pub fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Sends bytes. A closed connection is noticed when reading.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// Reads one response, skipping 1xx except 101.
    pub async fn read_reply(&mut self) -> Reply {
        self.read_reply_within(TEST_TIMEOUT).await
    }

    /// The same, with another time limit.
    pub async fn read_reply_within(&mut self, limit: Duration) -> Reply {
        timeout(limit, self.parse_reply()).await.expect("an answer in time")
    }

    /// Reads until the peer closes; returns all bytes.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        let read = async { while self.read_more().await {} };
        timeout(TEST_TIMEOUT, read).await.expect("the end in time");
        std::mem::take(&mut self.buffer)
    }

    /// Reads this number of bytes of a body or tunnel, or fewer at the end.
    pub async fn read_bytes(&mut self, count: usize) -> Vec<u8> {
        let read = async { while self.buffer.len() < count && self.read_more().await {} };
        timeout(TEST_TIMEOUT, read).await.expect("the bytes in time");
        let count = count.min(self.buffer.len());
        self.buffer.drain(..count).collect()
    }

    /// Reads a response head; what follows is left for `read_bytes` and `read_to_end`.
    pub async fn read_head(&mut self) -> Reply {
        timeout(TEST_TIMEOUT, self.parse_head()).await.expect("a head in time").unwrap_or_default()
    }

    async fn read_more(&mut self) -> bool {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk).await {
            Ok(0) | Err(_) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                true
            }
        }
    }

    async fn read_line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.read_more().await {
                return None;
            }
        }
    }

    async fn read_fields(&mut self) -> Option<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.read_line().await?;
            if line.is_empty() {
                return Some(fields);
            }
            let (name, value) = line.split_once(':')?;
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
    }

    async fn parse_head(&mut self) -> Option<Reply> {
        loop {
            let line = self.read_line().await?;
            let status = line.split(' ').nth(1)?.parse().ok()?;
            let headers = self.read_fields().await?;
            if status >= 200 || status == 101 {
                return Some(Reply { status, headers, ..Reply::default() });
            }
        }
    }

    async fn parse_reply(&mut self) -> Reply {
        let Some(mut reply) = self.parse_head().await else { return Reply::default() };
        if matches!(reply.status, 101 | 204 | 304) {
            reply.whole = true;
        } else if reply.header("transfer-encoding") == Some("chunked") {
            reply.whole = self.parse_chunks(&mut reply).await.is_some();
        } else if let Some(length) =
            reply.header("content-length").and_then(|length| length.parse::<usize>().ok())
        {
            while self.buffer.len() < length && self.read_more().await {}
            reply.whole = self.buffer.len() >= length;
            let length = length.min(self.buffer.len());
            reply.body = self.buffer.drain(..length).collect();
        } else {
            while self.read_more().await {}
            reply.body = std::mem::take(&mut self.buffer);
            reply.whole = true;
        }
        reply
    }

    async fn parse_chunks(&mut self, reply: &mut Reply) -> Option<()> {
        loop {
            let size = usize::from_str_radix(self.read_line().await?.split(';').next()?, 16).ok()?;
            if size == 0 {
                reply.trailers = self.read_fields().await?;
                return Some(());
            }
            while self.buffer.len() < size + 2 {
                if !self.read_more().await {
                    reply.body.append(&mut self.buffer);
                    return None;
                }
            }
            reply.body.extend(self.buffer.drain(..size));
            self.buffer.drain(..2);
        }
    }
}

/// What an upstream does when it has received a request's head.
#[derive(Clone, Debug)]
pub enum Act {
    /// Sends these bytes, and waits for the next head.
    Say(Vec<u8>),
    /// Sends these bytes and closes.
    Last(Vec<u8>),
    /// Resets the connection.
    Reset,
}

/// An upstream that records the bytes of each connection, and acts by a script for each request's head.
#[derive(Clone)]
pub struct ScriptedUpstream {
    pub address: SocketAddr,
    shared: Arc<(Mutex<Vec<Vec<u8>>>, Notify)>,
}

impl ScriptedUpstream {
    /// Responds to each request's head.
    pub async fn answering(answer: impl Into<Vec<u8>>) -> Self {
        Self::acting([Act::Say(answer.into())]).await
    }

    /// Responds to the first head of each connection and closes.
    pub async fn closing_after(answer: impl Into<Vec<u8>>) -> Self {
        Self::acting([Act::Last(answer.into())]).await
    }

    /// Does one step for each head over all connections, and repeats the last step.
    pub async fn acting(script: impl Into<Vec<Act>>) -> Self {
        let (listener, address) = bind_loopback().await;
        let scripted = Self { address, shared: Arc::default() };
        let (own, script) = (scripted.clone(), Arc::new(Mutex::new(script.into())));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let index = {
                    let mut all = own.shared.0.lock().unwrap();
                    all.push(Vec::new());
                    all.len() - 1
                };
                tokio::spawn(own.clone().connection(stream, index, Arc::clone(&script)));
            }
        });
        scripted
    }

    async fn connection(self, mut stream: TcpStream, index: usize, script: Arc<Mutex<Vec<Act>>>) {
        let (mut chunk, mut done) = ([0; 16 * 1024], 0);
        while let Ok(count @ 1..) = stream.read(&mut chunk).await {
            let heads = {
                let mut all = self.shared.0.lock().unwrap();
                all[index].extend_from_slice(&chunk[..count]);
                count_heads(&all[index])
            };
            self.shared.1.notify_waiters();
            while done < heads {
                done += 1;
                let act = {
                    let mut script = script.lock().unwrap();
                    if script.len() > 1 { script.remove(0) } else { script[0].clone() }
                };
                match act {
                    Act::Say(answer) if stream.write_all(&answer).await.is_ok() => {}
                    Act::Say(_) => return,
                    Act::Last(answer) => return drop(stream.write_all(&answer).await),
                    Act::Reset => return stream.set_zero_linger().unwrap(),
                }
            }
        }
    }

    /// The bytes of each connection so far.
    pub fn received(&self) -> Vec<Vec<u8>> {
        self.shared.0.lock().unwrap().clone()
    }

    /// All bytes so far, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.received().concat()).into_owned()
    }

    /// Waits until the bytes so far satisfy a condition.
    pub async fn wait_until(&self, condition: impl Fn(&str) -> bool) {
        let wait = async {
            loop {
                let changed = self.shared.1.notified();
                if condition(&self.text()) {
                    return;
                }
                changed.await;
            }
        };
        timeout(TEST_TIMEOUT, wait).await.unwrap_or_else(|_| panic!("not so in time: {}", self.text()));
    }

    pub fn url(&self) -> Option<String> {
        Some(format!("http://{}", self.address))
    }
}

/// The number of complete heads; the bodies between them are skipped by their framing.
fn count_heads(bytes: &[u8]) -> usize {
    let (mut rest, mut heads) = (bytes, 0);
    while let Some(end) = find(rest, b"\r\n\r\n") {
        heads += 1;
        let head = String::from_utf8_lossy(&rest[..end]).to_ascii_lowercase();
        rest = &rest[end + 4..];
        let field =
            |name: &str| head.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
        let length: usize = field("content-length:").map_or(0, |length| length.parse().unwrap());
        let body = if field("transfer-encoding:").is_some() { chunked_length(rest) } else { Some(length) };
        match body {
            Some(length) if length <= rest.len() => rest = &rest[length..],
            _ => break,
        }
    }
    heads
}

/// The length of a chunked body, once it is complete.
fn chunked_length(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = find(bytes.get(at..)?, b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[at..at + line]).unwrap(), 16).unwrap();
        if size == 0 {
            return Some(at + line + find(&bytes[at + line..], b"\r\n\r\n")? + 4);
        }
        at += line + 2 + size + 2;
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
