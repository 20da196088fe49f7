//! Raw sockets: a client that sends what it is told and reads HTTP/1.1 answers, and an upstream that keeps every byte it gets
//! and answers by a script.

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

/// An answer, or as much of it as came before the connection closed.
#[derive(Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// Whether the answer came to its end.
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
    /// On a connection that is there.
    pub fn over(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Sends bytes; that the peer has closed meanwhile is for the reading side to see.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// Reads one answer, skipping 1xx but 101.
    pub async fn read_reply(&mut self) -> Reply {
        self.read_reply_within(TEST_TIMEOUT).await
    }

    /// The same, for what takes longer.
    pub async fn read_reply_within(&mut self, limit: Duration) -> Reply {
        timeout(limit, self.parse_reply()).await.expect("an answer in time")
    }

    /// Reads until the peer closes; gives everything that came.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        let read = async { while self.read_more().await {} };
        timeout(TEST_TIMEOUT, read).await.expect("the end in time");
        std::mem::take(&mut self.buffer)
    }

    /// Reads until this many bytes of a body or tunnel are there.
    pub async fn read_bytes(&mut self, count: usize) -> Vec<u8> {
        let read = async { while self.buffer.len() < count && self.read_more().await {} };
        timeout(TEST_TIMEOUT, read).await.expect("the bytes in time");
        let count = count.min(self.buffer.len());
        self.buffer.drain(..count).collect()
    }

    /// Reads a head alone; what follows stays for `bytes` and `rest`.
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

/// What an upstream does once a request's head has come.
#[derive(Clone, Debug)]
pub enum Act {
    /// Sends these bytes, and waits for the next head.
    Say(Vec<u8>),
    /// Sends these bytes and closes.
    Last(Vec<u8>),
    /// Breaks the connection.
    Reset,
}

/// An upstream that keeps the bytes of each connection, and acts by a script each time a whole head has come.
#[derive(Clone)]
pub struct ScriptedUpstream {
    pub address: SocketAddr,
    shared: Arc<(Mutex<Vec<Vec<u8>>>, Notify)>,
}

impl ScriptedUpstream {
    /// Answers each time a whole head has come.
    pub async fn answering(answer: impl Into<Vec<u8>>) -> Self {
        Self::acting([Act::Say(answer.into())]).await
    }

    /// Answers the first head of each connection and closes.
    pub async fn closing_after(answer: impl Into<Vec<u8>>) -> Self {
        Self::acting([Act::Last(answer.into())]).await
    }

    /// Does this, head by head over all connections, and the last of it again and again.
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

/// How many heads have come whole; what follows one is its body as far as its framing says so.
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

/// The length of a chunked body, once it is whole.
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
