//! As much of HTTP/1.1 as the stand-ins and the load need: heads, and where a body ends. Not strict: both ends are trusted.

use std::io;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// Reads messages of one direction, one after the other.
#[derive(Default)]
pub struct Reader {
    buffer: Vec<u8>,
    /// How much of the buffer belongs to the current message's head.
    head: usize,
}

pub enum Framing {
    Length(u64),
    Chunked,
    /// Neither is given: nothing for a request, all that comes for a response.
    Unframed,
}

impl Reader {
    /// Reads a head, and drops the one before. `None`: the connection was closed before its first byte.
    pub async fn read_head(&mut self, stream: &mut TcpStream) -> io::Result<Option<()>> {
        self.buffer.drain(..self.head);
        self.head = 0;
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffer[searched..].windows(4).position(|end| end == b"\r\n\r\n") {
                self.head = searched + at + 4;
                return Ok(Some(()));
            }
            searched = self.buffer.len().saturating_sub(3);
            self.buffer.reserve(4096);
            if stream.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
        }
    }

    pub fn head(&self) -> &[u8] {
        &self.buffer[..self.head]
    }

    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.head().split(|byte| *byte == b'\n').skip(1).find_map(|line| {
            let (found, value) = line.split_at_checked(name.len())?;
            found
                .eq_ignore_ascii_case(name.as_bytes())
                .then(|| value.strip_prefix(b":"))?
                .map(<[u8]>::trim_ascii)
        })
    }

    pub fn framing(&self) -> Framing {
        if let Some(length) = self.header("content-length") {
            return Framing::Length(
                std::str::from_utf8(length).ok().and_then(|text| text.parse().ok()).unwrap_or(0),
            );
        }
        if self.header("transfer-encoding").is_some() { Framing::Chunked } else { Framing::Unframed }
    }

    /// Reads a body of this length, and returns it if it is small.
    pub async fn read_body(&mut self, stream: &mut TcpStream, length: u64) -> io::Result<Vec<u8>> {
        let mut left = usize::try_from(length).unwrap_or(usize::MAX);
        let mut body = Vec::new();
        let at_hand = left.min(self.buffer.len() - self.head);
        if left <= 64 << 10 {
            body.extend_from_slice(&self.buffer[self.head..self.head + at_hand]);
        }
        self.buffer.drain(self.head..self.head + at_hand);
        left -= at_hand;
        let mut piece = Vec::with_capacity(left.min(1 << 20));
        while left > 0 {
            piece.clear();
            let read = (&mut *stream).take(left as u64).read_buf(&mut piece).await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            left -= read;
            if length <= 64 << 10 {
                body.extend_from_slice(&piece);
            }
        }
        Ok(body)
    }

    /// Reads to the end of a chunked body without trailers, of which nothing follows.
    pub async fn skip_chunked(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        while !(self.buffer[self.head..] == *b"0\r\n\r\n"
            || self.buffer[self.head..].ends_with(b"\r\n0\r\n\r\n"))
        {
            let keep = self.buffer.len().saturating_sub(8).max(self.head);
            self.buffer.drain(self.head..keep);
            self.buffer.reserve(4096);
            if stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        self.buffer.truncate(self.head);
        Ok(())
    }
}
