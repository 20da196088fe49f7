//! Reads over hyper's shoulder how an HTTP/1 connection's bytes are framed, and stops where two parsers could differ. hyper takes a
//! bare LF for the end of a line, a Content-Length beside Transfer-Encoding, and anything for the end of a chunked body's trailers
//! (RFC 9112 sections 2.2, 6.1, 6.3, 7.1); who stands before or behind it may not.

/// Where the bytes stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing has come, or as much of HTTP/2's preface.
    First(usize),
    /// Within a head, or between requests.
    Head,
    /// So many bytes of a body are to come.
    Body(u64),
    /// A line with the size of a chunk.
    Size,
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The line end behind a chunk.
    ChunkEnd,
    Trailers,
    /// Another protocol, or nothing that will be read.
    Else,
}

/// What is wrong. Within a head hyper can still answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// A head, at its byte of this number.
    Head(usize),
    /// A body, at that one.
    Body(usize),
}

/// The framing of one connection, byte by byte.
pub(super) struct Framing {
    state: State,
    /// As much of the line as matters, without its end.
    line: Vec<u8>,
    /// The length of the line.
    length: usize,
    /// The last byte was a CR.
    cr: bool,
    /// Whether a head has begun.
    begun: bool,
    head: Head,
}

/// What a head says of what follows.
#[derive(Default)]
struct Head {
    lengths: usize,
    length: u64,
    encodings: usize,
    chunked: bool,
    websocket: bool,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
/// A line that matters and is longer is none that is understood.
const LONGEST: usize = 256;
/// Digits of a chunk's size with the zeros before it, and all of its line.
const MOST_DIGITS: usize = 64;
const LONGEST_SIZE: usize = 4096;

impl Framing {
    pub(super) fn new() -> Self {
        Self {
            state: State::First(0),
            line: Vec::new(),
            length: 0,
            cr: false,
            begun: false,
            head: Head::default(),
        }
    }

    /// Follows some more bytes.
    pub(super) fn follow(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let mut at = 0;
        while at < bytes.len() {
            match self.state {
                State::Else => return Ok(()),
                State::First(seen) if bytes[at] == PREFACE[seen] => {
                    self.state = if seen + 1 == PREFACE.len() { State::Else } else { State::First(seen + 1) };
                    at += 1;
                }
                State::First(seen) => {
                    self.state = State::Head;
                    PREFACE[..seen]
                        .iter()
                        .try_for_each(|byte| self.byte(*byte))
                        .map_err(|()| Broken::Head(at))?;
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
                // Most of a connection's bytes are of such lines, and most of those up to their end mean nothing here.
                State::Head | State::Trailers if !self.cr => {
                    let rest = &bytes[at..];
                    let end =
                        rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')).unwrap_or(rest.len());
                    self.text(&rest[..end]);
                    at += end;
                    if let Some(byte) = bytes.get(at) {
                        self.byte(*byte).map_err(|()| self.broken(at))?;
                        at += 1;
                    }
                }
                State::Head => {
                    self.byte(bytes[at]).map_err(|()| Broken::Head(at))?;
                    at += 1;
                }
                State::Size | State::ChunkEnd | State::Trailers => {
                    self.byte(bytes[at]).map_err(|()| Broken::Body(at))?;
                    at += 1;
                }
            }
        }
        Ok(())
    }

    fn broken(&self, at: usize) -> Broken {
        if self.state == State::Head { Broken::Head(at) } else { Broken::Body(at) }
    }

    /// Some of a line, without its end.
    fn text(&mut self, text: &[u8]) {
        let first = if self.length == 0 { text.first() } else { self.line.first() };
        // No other names matter.
        if matches!(first, Some(b'c' | b'C' | b't' | b'T' | b'u' | b'U')) {
            let room = LONGEST.saturating_sub(self.line.len());
            self.line.extend_from_slice(&text[..text.len().min(room)]);
        }
        self.length += text.len();
    }

    /// One byte of a line. A line ends with CR and LF, and neither is anywhere else.
    fn byte(&mut self, byte: u8) -> Result<(), ()> {
        match (self.cr, byte) {
            (false, b'\r') => {
                self.cr = true;
                Ok(())
            }
            (true, b'\n') => {
                self.cr = false;
                let done = self.end_of_line();
                self.line.clear();
                self.length = 0;
                done
            }
            (true, _) | (false, b'\n') => Err(()),
            (false, byte) => {
                self.length += 1;
                if self.length <= LONGEST {
                    self.line.push(byte);
                }
                self.check_in_size(byte)
            }
        }
    }

    /// The line of a chunk's size is read as it comes, as nothing else bounds it.
    fn check_in_size(&self, byte: u8) -> Result<(), ()> {
        let fine = match self.state {
            State::ChunkEnd => false,
            State::Size => self.length <= LONGEST_SIZE && (byte == b'\t' || !byte.is_ascii_control()),
            _ => true,
        };
        fine.then_some(()).ok_or(())
    }

    fn end_of_line(&mut self) -> Result<(), ()> {
        match self.state {
            State::Head if self.length > 0 && !self.begun => self.begun = true,
            State::Head if self.length > 0 => self.field(),
            // Empty lines before a request are ignored (RFC 9112 section 2.2).
            State::Head if !self.begun => {}
            State::Head => {
                self.begun = false;
                self.state = std::mem::take(&mut self.head).what_follows()?;
            }
            State::Size => self.state = size(&self.line)?,
            State::ChunkEnd => self.state = State::Size,
            State::Trailers if self.length == 0 => self.state = State::Head,
            _ => {}
        }
        Ok(())
    }

    fn field(&mut self) {
        let Some(colon) = self.line.iter().position(|&byte| byte == b':') else { return };
        let (name, value) = (&self.line[..colon], self.line[colon + 1..].trim_ascii());
        let head = &mut self.head;
        // White space before the colon and folded lines are for hyper to refuse.
        if name.eq_ignore_ascii_case(b"content-length") {
            head.lengths += 1;
            let digits =
                std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            match digits.and_then(|text| text.parse().ok()) {
                Some(length) if self.length <= LONGEST => head.length = length,
                // No number: hyper refuses it.
                _ => head.lengths += 1,
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            // Of a longer line it is not known what it says.
            head.encodings += if self.length <= LONGEST { 1 } else { 2 };
            head.chunked = value.eq_ignore_ascii_case(b"chunked");
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            head.websocket |= value.eq_ignore_ascii_case(b"websocket");
            head.encodings += if self.length <= LONGEST { 0 } else { 2 };
        }
    }
}

impl Head {
    fn what_follows(self) -> Result<State, ()> {
        match (self.lengths, self.encodings) {
            (0, 1) if self.chunked => Ok(State::Size),
            // An encoding that is refused with an answer of Keyward's own, and nothing behind it is read.
            (0, 1) => Ok(State::Else),
            (0 | 1, 0) if self.websocket => Ok(State::Else),
            (0, 0) | (1, 0) if self.length == 0 => Ok(State::Head),
            (1, 0) => Ok(State::Body(self.length)),
            _ => Err(()),
        }
    }
}

/// Digits, and perhaps extensions, which mean nothing here.
fn size(line: &[u8]) -> Result<State, ()> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let behind = line[digits..].trim_ascii_start();
    if !(1..=MOST_DIGITS).contains(&digits) || !(behind.is_empty() || behind.starts_with(b";")) {
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

    /// The same whether it comes at once or byte by byte.
    #[track_caller]
    fn check(bytes: &str, expected: Result<State, Broken>) {
        let mut whole = Framing::new();
        let outcome = whole.follow(bytes.as_bytes()).map(|()| whole.state);
        assert_eq!(outcome, expected, "{bytes:?}");
        let mut single = Framing::new();
        let fed = bytes.bytes().enumerate().try_for_each(|(at, byte)| single.follow(&[byte]).map_err(|_| at));
        let at = expected.err().map(|(Broken::Head(at) | Broken::Body(at))| at);
        assert_eq!(fed.err(), at, "{bytes:?}");
    }

    const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

    #[test]
    fn what_follows_a_head_is_what_it_says() {
        check("", Ok(State::First(0)));
        check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\n\n", Ok(State::Else));
        check("PRI / HTTP/1.1\r\n\r\n", Ok(State::Head));
        check("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Ok(State::Head));
        check("POST / HTTP/1.1\r\ncontent-LENGTH:  3 \r\n\r\na", Ok(State::Body(2)));
        check("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\na\n\rGET / HTTP/1.1\r\n\r\n", Ok(State::Head));
        check("GET / HTTP/1.1\r\nUpgrade: WebSocket\r\n\r\n\n\n", Ok(State::Else));
        check("GET / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n", Ok(State::Head));
        check("GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n\n", Ok(State::Else));
        check(&format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(10_000)), Ok(State::Head));
    }

    #[test]
    fn a_line_ends_with_both_and_neither_stands_alone() {
        for (head, at) in [
            ("\nGET / HTTP/1.1\r\n\r\n", 0),
            ("GET / HTTP/1.1\n\r\n", 14),
            ("GET / HTTP/1.1\r\nHost: a\n\r\n", 23),
            ("GET / HTTP/1.1\r\nHost: a\r\n\n", 25),
            ("GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", 24),
            ("GET / HTTP/1.1\r\r\n\r\n", 15),
            ("PRI * HTTP/2.0\n", 14),
        ] {
            check(head, Err(Broken::Head(at)));
        }
    }

    #[test]
    fn two_lengths_or_a_length_and_an_encoding_are_refused_at_the_end_of_the_head() {
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
            check(&head, Err(Broken::Head(head.len() - 1)));
        }
    }

    #[test]
    fn chunks_have_one_form() {
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
            check(&format!("{CHUNKED}{body}"), Err(Broken::Body(CHUNKED.len() + at)));
        }
        check(&format!("{CHUNKED}3;{}", "x".repeat(5000)), Err(Broken::Body(CHUNKED.len() + 4096)));
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
    fn what_is_sound_passes_however_it_is_cut_and_nothing_makes_it_panic() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..500 {
            let mut bytes: Vec<u8> = (0..random.usize(1..4)).flat_map(|_| request(&mut random)).collect();
            let mut framing = Framing::new();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(random.usize(1..=rest.len().min(300)));
                assert_eq!(framing.follow(now), Ok(()));
                rest = later;
            }
            assert_eq!((framing.state, framing.begun), (State::Head, false));
            // The same with some bytes that are wrong: it stops within, or goes on.
            for _ in 0..3 {
                let at = random.usize(..bytes.len());
                bytes[at] = [b'\r', b'\n', b' ', b':', b'0', 0][random.usize(..6)];
            }
            if let Err(Broken::Head(at) | Broken::Body(at)) = Framing::new().follow(&bytes) {
                assert!(at < bytes.len());
            }
        }
    }
}
