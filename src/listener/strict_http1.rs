//! Follows how an HTTP/1 connection's bytes are framed, before hyper reads them, and stops where two parsers could differ. hyper
//! accepts a bare LF as the end of a line, a Content-Length beside Transfer-Encoding, and anything as the end of a chunked body's
//! trailers (RFC 9112 sections 2.2, 6.1, 6.3, 7.1); a proxy before it or the service behind it may read the same bytes otherwise,
//! which is how requests are smuggled.

/// Which part of a message the next byte belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The first bytes of the connection, of which so many agree with HTTP/2's preface.
    First(usize),
    /// Within a head, or between requests.
    Head,
    /// A body with a Content-Length, of which so many bytes are to come.
    Body(u64),
    /// The line with a chunk's size.
    Size,
    /// A chunk's data, of which so many bytes are to come.
    Chunk(u64),
    /// The CRLF behind a chunk's data.
    ChunkEnd,
    Trailers,
    /// Another protocol, or a message that is rejected and behind which nothing is read.
    Opaque,
}

/// Where the framing is ambiguous. hyper can still answer a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FramingError {
    /// In a head, at this offset of the bytes that were followed last.
    Head(usize),
    /// In a body, at this offset.
    Body(usize),
    /// Nothing is ambiguous, but the head is longer than allowed; this offset is the first byte beyond.
    HeadTooLarge(usize),
}

/// The framing of one connection.
pub(super) struct Framing {
    state: State,
    /// The beginning of the present line, if it may be a field that says how the message is framed.
    line: Vec<u8>,
    /// The length of the present line.
    length: usize,
    /// Whether the last byte was CR.
    after_cr: bool,
    /// Whether the request line has been read.
    has_request_line: bool,
    head: Head,
    head_length: usize,
    max_head: usize,
}

/// What a head says of the bytes that follow it.
#[derive(Default)]
struct Head {
    content_lengths: usize,
    content_length: u64,
    transfer_encodings: usize,
    chunked: bool,
    websocket: bool,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
/// Bytes of a line that are kept. A field that says how the message is framed and is longer is ambiguous.
const MAX_KEPT: usize = 256;
/// Digits of a chunk's size, leading zeros included; and bytes of its whole line, extensions included.
const MAX_SIZE_DIGITS: usize = 64;
const MAX_SIZE_LINE: usize = 4096;

impl Framing {
    /// For a connection whose heads may have `max_head` bytes each.
    pub(super) fn new(max_head: usize) -> Self {
        Self {
            state: State::First(0),
            line: Vec::new(),
            length: 0,
            after_cr: false,
            has_request_line: false,
            head: Head::default(),
            head_length: 0,
            max_head,
        }
    }

    /// Follows the next bytes of the connection.
    ///
    /// # Errors
    /// The first byte at which the framing is ambiguous.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Result<(), FramingError> {
        let mut at = 0;
        while at < bytes.len() {
            match self.state {
                State::Opaque => return Ok(()),
                State::First(seen) if bytes[at] == PREFACE[seen] => {
                    self.state =
                        if seen + 1 == PREFACE.len() { State::Opaque } else { State::First(seen + 1) };
                    at += 1;
                }
                State::First(seen) => {
                    self.state = State::Head;
                    self.head_length = seen;
                    PREFACE[..seen]
                        .iter()
                        .try_for_each(|byte| self.follow_byte(*byte))
                        .map_err(|()| FramingError::Head(at))?;
                }
                State::Body(left) | State::Chunk(left) => {
                    let skipped = left.min((bytes.len() - at) as u64);
                    at += skipped as usize;
                    let left = left - skipped;
                    self.state = match (self.state, left) {
                        (State::Body(_), 0) => State::Head,
                        (State::Body(_), left) => State::Body(left),
                        (_, 0) => State::ChunkEnd,
                        (_, left) => State::Chunk(left),
                    };
                }
                // Taken a line at a time: most bytes of a connection are here, and most lines say nothing of the framing.
                State::Head | State::Trailers if !self.after_cr => {
                    let rest = &bytes[at..bytes.len().min(at.saturating_add(self.room()))];
                    let end =
                        rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')).unwrap_or(rest.len());
                    self.append_to_line(&rest[..end]);
                    at += end;
                    self.head_length += end;
                    match rest.get(end) {
                        Some(byte) => {
                            self.head_length += 1;
                            self.follow_byte(*byte).map_err(|()| self.error_at(at))?;
                            at += 1;
                        }
                        None if at < bytes.len() => return Err(FramingError::HeadTooLarge(at)),
                        None => {}
                    }
                }
                State::Head => {
                    if self.room() == 0 {
                        return Err(FramingError::HeadTooLarge(at));
                    }
                    self.head_length += 1;
                    self.follow_byte(bytes[at]).map_err(|()| FramingError::Head(at))?;
                    at += 1;
                }
                State::Size | State::ChunkEnd | State::Trailers => {
                    self.follow_byte(bytes[at]).map_err(|()| FramingError::Body(at))?;
                    at += 1;
                }
            }
        }
        Ok(())
    }

    /// Bytes that the head may still have. Trailers are limited by hyper.
    fn room(&self) -> usize {
        if self.state == State::Head { self.max_head.saturating_sub(self.head_length) } else { usize::MAX }
    }

    fn error_at(&self, at: usize) -> FramingError {
        if self.state == State::Head { FramingError::Head(at) } else { FramingError::Body(at) }
    }

    /// Takes a part of a line, without its end.
    fn append_to_line(&mut self, text: &[u8]) {
        let first = if self.length == 0 { text.first() } else { self.line.first() };
        // The fields that matter begin with these: Content-Length, Transfer-Encoding, Upgrade.
        if matches!(first, Some(b'c' | b'C' | b't' | b'T' | b'u' | b'U')) {
            let room = MAX_KEPT.saturating_sub(self.line.len());
            self.line.extend_from_slice(&text[..text.len().min(room)]);
        }
        self.length += text.len();
    }

    /// Follows one byte of a line. CR and LF occur only together, at its end.
    fn follow_byte(&mut self, byte: u8) -> Result<(), ()> {
        match (self.after_cr, byte) {
            (false, b'\r') => {
                self.after_cr = true;
                Ok(())
            }
            (true, b'\n') => {
                self.after_cr = false;
                let done = self.end_of_line();
                self.line.clear();
                self.length = 0;
                done
            }
            (true, _) | (false, b'\n') => Err(()),
            (false, byte) => {
                self.length += 1;
                if self.length <= MAX_KEPT {
                    self.line.push(byte);
                }
                self.check_size_line(byte)
            }
        }
    }

    /// Checks a chunk's size line as it arrives, since neither hyper nor another limit bounds its length.
    fn check_size_line(&self, byte: u8) -> Result<(), ()> {
        let is_valid = match self.state {
            State::ChunkEnd => false,
            State::Size => self.length <= MAX_SIZE_LINE && (byte == b'\t' || !byte.is_ascii_control()),
            _ => true,
        };
        is_valid.then_some(()).ok_or(())
    }

    fn end_of_line(&mut self) -> Result<(), ()> {
        match self.state {
            State::Head if self.length > 0 && !self.has_request_line => self.has_request_line = true,
            State::Head if self.length > 0 => self.read_field(),
            // Empty lines before a request are ignored (RFC 9112 section 2.2).
            State::Head if !self.has_request_line => {}
            State::Head => {
                self.has_request_line = false;
                self.head_length = 0;
                self.state = std::mem::take(&mut self.head).state_after()?;
            }
            State::Size => self.state = read_chunk_size(&self.line)?,
            State::ChunkEnd => self.state = State::Size,
            State::Trailers if self.length == 0 => {
                self.state = State::Head;
                self.head_length = 0;
            }
            _ => {}
        }
        Ok(())
    }

    fn read_field(&mut self) {
        let Some(colon) = self.line.iter().position(|&byte| byte == b':') else { return };
        let (name, value) = (&self.line[..colon], self.line[colon + 1..].trim_ascii());
        let head = &mut self.head;
        // hyper rejects white space before the colon and folded lines.
        if name.eq_ignore_ascii_case(b"content-length") {
            head.content_lengths += 1;
            let digits =
                std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            match digits.and_then(|text| text.parse().ok()) {
                Some(length) if self.length <= MAX_KEPT => head.content_length = length,
                // Not a number, which hyper rejects.
                _ => head.content_lengths += 1,
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            // A longer line was not kept whole, and may say anything.
            head.transfer_encodings += if self.length <= MAX_KEPT { 1 } else { 2 };
            head.chunked = value.eq_ignore_ascii_case(b"chunked");
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            head.websocket |= value.eq_ignore_ascii_case(b"websocket");
            head.transfer_encodings += if self.length <= MAX_KEPT { 0 } else { 2 };
        }
    }
}

impl Head {
    fn state_after(self) -> Result<State, ()> {
        match (self.content_lengths, self.transfer_encodings) {
            (0, 1) if self.chunked => Ok(State::Size),
            // Keyward rejects such an encoding itself, and nothing behind it is read.
            (0, 1) => Ok(State::Opaque),
            (0 | 1, 0) if self.websocket => Ok(State::Opaque),
            (0, 0) | (1, 0) if self.content_length == 0 => Ok(State::Head),
            (1, 0) => Ok(State::Body(self.content_length)),
            _ => Err(()),
        }
    }
}

/// Reads hexadecimal digits and, perhaps, chunk extensions, which are ignored.
fn read_chunk_size(line: &[u8]) -> Result<State, ()> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let behind = line[digits..].trim_ascii_start();
    if !(1..=MAX_SIZE_DIGITS).contains(&digits) || !(behind.is_empty() || behind.starts_with(b";")) {
        return Err(());
    }
    let text = std::str::from_utf8(&line[..digits]).map_err(|_| ())?;
    match u64::from_str_radix(text, 16).map_err(|_| ())? {
        0 => Ok(State::Trailers),
        size => Ok(State::Chunk(size)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_HEAD: usize = 16 * 1024;

    /// The same whether it comes at once or byte by byte.
    #[track_caller]
    fn check(bytes: &str, expected: Result<State, FramingError>) {
        let mut whole = Framing::new(MAX_HEAD);
        let outcome = whole.follow(bytes.as_bytes()).map(|()| whole.state);
        assert_eq!(outcome, expected, "{bytes:?}");
        let mut single = Framing::new(MAX_HEAD);
        let fed = bytes.bytes().enumerate().try_for_each(|(at, byte)| single.follow(&[byte]).map_err(|_| at));
        let at = expected.err().map(|error| match error {
            FramingError::Head(at) | FramingError::Body(at) | FramingError::HeadTooLarge(at) => at,
        });
        assert_eq!(fed.err(), at, "{bytes:?}");
    }

    const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

    #[test]
    fn message_ends_where_framing_says() {
        check("", Ok(State::First(0)));
        check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\n\n", Ok(State::Opaque));
        check("PRI / HTTP/1.1\r\n\r\n", Ok(State::Head));
        check("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Ok(State::Head));
        check("POST / HTTP/1.1\r\ncontent-LENGTH:  3 \r\n\r\na", Ok(State::Body(2)));
        check("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\na\n\rGET / HTTP/1.1\r\n\r\n", Ok(State::Head));
        check("GET / HTTP/1.1\r\nUpgrade: WebSocket\r\n\r\n\n\n", Ok(State::Opaque));
        check("GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n", Ok(State::Head));
        check("GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n\n", Ok(State::Opaque));
        check(&format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(10_000)), Ok(State::Head));
    }

    #[test]
    fn bare_cr_and_bare_lf_are_refused() {
        for (head, at) in [
            ("\nGET / HTTP/1.1\r\n\r\n", 0),
            ("GET / HTTP/1.1\n\r\n", 14),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", 23),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n", 25),
            ("GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", 24),
            ("GET / HTTP/1.1\r\r\n\r\n", 15),
            ("PRI * HTTP/2.0\n", 14),
        ] {
            check(head, Err(FramingError::Head(at)));
        }
    }

    #[test]
    fn conflicting_framing_is_refused_after_the_head() {
        for fields in [
            "Content-Length: 3\r\nContent-Length: 3",
            "Content-Length: 3\r\ntransfer-encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 0",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Content-Length: +3",
            "Content-Length: ",
            &format!("Transfer-Encoding: {}chunked", " ".repeat(300)),
            &format!("Upgrade: {}websocket", " ".repeat(300)),
            "Content-Length: 99999999999999999999",
        ] {
            let head = format!("POST / HTTP/1.1\r\n{fields}\r\n\r\n");
            check(&head, Err(FramingError::Head(head.len() - 1)));
        }
    }

    #[test]
    fn head_of_exactly_the_limit_is_accepted() {
        let head = |length: usize| {
            let empty = "GET / HTTP/1.1\r\nx: \r\n\r\n".len();
            format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(length - empty))
        };
        let sound = head(MAX_HEAD);
        check(&sound.repeat(3), Ok(State::Head));
        for excess in [1, 2, 3, 4, 5, 1000] {
            let long = head(MAX_HEAD + excess);
            check(&format!("{sound}{long}"), Err(FramingError::HeadTooLarge(2 * MAX_HEAD)));
        }
        check(&"\r\n".repeat(MAX_HEAD), Err(FramingError::HeadTooLarge(MAX_HEAD)));
        check(&"x".repeat(MAX_HEAD + 1), Err(FramingError::HeadTooLarge(MAX_HEAD)));
        check(&format!("PRI{}", "x".repeat(MAX_HEAD)), Err(FramingError::HeadTooLarge(MAX_HEAD)));
        check(&format!("{CHUNKED}0\r\nx: {}", "y".repeat(2 * MAX_HEAD)), Ok(State::Trailers));
    }

    #[test]
    fn chunks_are_parsed_strictly() {
        for (body, expected) in [
            ("3\r\nabc\r\n", State::Size),
            ("3\r\nab", State::Chunk(1)),
            ("0003\r\nabc\r\n0\r\n\r\n", State::Head),
            ("3 ;a=b;c=\"d\"\r\nabc\r\n0;x\r\nT: x\r\n\r\n", State::Head),
            ("3\r\n\r\n\n\r\n0\r\n\r\n", State::Head),
        ] {
            check(&format!("{CHUNKED}{body}"), Ok(expected));
        }
        check(&format!("{CHUNKED}{}1\r\na", "0".repeat(63)), Ok(State::ChunkEnd));
        let zeros = format!("{}1\r\n", "0".repeat(64));
        for (body, at) in [
            ("\r\n", 1),
            ("3\n", 1),
            ("3\r\nabc\n", 6),
            ("3\r\nabcd", 6),
            ("3\r\nabc\r0", 7),
            ("0x3\r\n", 4),
            ("+3\r\n", 3),
            ("-3\r\n", 3),
            (" 3\r\n", 3),
            ("3_0\r\n", 4),
            ("3;a\0", 3),
            ("3;a\x0b", 3),
            ("3;a\nb", 3),
            ("10000000000000000\r\n", 18),
            (&zeros, 66),
            ("0\r\n\n", 3),
            ("0\r\nT: x\n", 7),
            ("0\r\nT: x\r\n\n", 9),
            ("0\n", 1),
        ] {
            check(&format!("{CHUNKED}{body}"), Err(FramingError::Body(CHUNKED.len() + at)));
        }
        check(&format!("{CHUNKED}3;{}", "x".repeat(5000)), Err(FramingError::Body(CHUNKED.len() + 4096)));
    }

    /// A request as somebody sane writes it.
    fn request(random: &mut fastrand::Rng) -> Vec<u8> {
        let mut bytes = b"POST /v1 HTTP/1.1\r\nHost: a\r\n".to_vec();
        for _ in 0..random.usize(..4) {
            bytes
                .extend(format!("X-{}: {}\r\n", random.u8(..), "v".repeat(random.usize(..400))).into_bytes());
        }
        let mut data =
            |most: usize| -> Vec<u8> { (0..random.usize(..most)).map(|_| random.u8(..)).collect() };
        let body = data(2000);
        if body.len() % 3 == 0 {
            bytes.extend(format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes());
            bytes.extend(&body);
        } else if body.len() % 3 == 1 {
            bytes.extend(b"Transfer-Encoding: chunked\r\n\r\n");
            for chunk in body.chunks(97) {
                bytes.extend(format!("{:x};e=1\r\n", chunk.len()).into_bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\nX-Trailer: t\r\n\r\n");
        } else {
            bytes.extend(b"\r\n");
        }
        bytes
    }

    #[test]
    fn parser_accepts_any_segmentation_and_never_panics() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..500 {
            let mut bytes: Vec<u8> = (0..random.usize(1..4)).flat_map(|_| request(&mut random)).collect();
            let mut framing = Framing::new(MAX_HEAD);
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(random.usize(1..=rest.len().min(300)));
                assert_eq!(framing.follow(now), Ok(()));
                rest = later;
            }
            assert_eq!((framing.state, framing.has_request_line), (State::Head, false));
            // The same with some bytes that are wrong: it stops within, or goes on.
            for _ in 0..3 {
                let at = random.usize(..bytes.len());
                bytes[at] = [b'\r', b'\n', b' ', b':', b'0', 0][random.usize(..6)];
            }
            if let Err(FramingError::Head(at) | FramingError::Body(at) | FramingError::HeadTooLarge(at)) =
                Framing::new(MAX_HEAD).follow(&bytes)
            {
                assert!(at < bytes.len());
            }
        }
    }
}
