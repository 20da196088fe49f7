//! The PROXY protocol, versions 1 and 2: a load balancer that forwards TCP tells the client's address before anything else. No
//! byte beyond the header is read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::io::{AsyncRead, AsyncReadExt};

/// The first bytes of version 2, which begin no other protocol.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The first bytes of version 1.
const V1_PREFIX: &[u8] = b"PROXY ";
/// The longest header of version 1, CRLF included.
const MAX_V1: usize = 107;
/// The fixed part of version 2, which tells the length of the rest.
const V2_FIXED: usize = 16;
/// The longest rest that is accepted: addresses, and records (TLVs), which are skipped.
const MAX_V2: usize = 4096;

/// The header is malformed. There is no message, since the sender is a load balancer of the operator's.
#[derive(Debug)]
pub(super) struct Malformed;

/// What has been read of a header so far.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// At least so many more bytes belong to it.
    More(usize),
    /// The whole header: the client's address, or `None` where it tells none.
    Whole(Option<IpAddr>),
    Malformed,
}

/// Reads a header. `None` where the connection is the load balancer's own, or its client has no IP address.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<IpAddr>, Malformed> {
    let mut header = Vec::with_capacity(MAX_V1);
    loop {
        match parse(&header) {
            Step::More(count) => {
                let read = header.len();
                header.resize(read + count, 0);
                stream.read_exact(&mut header[read..]).await.map_err(|_| Malformed)?;
            }
            Step::Whole(client) => return Ok(client),
            Step::Malformed => return Err(Malformed),
        }
    }
}

fn parse(header: &[u8]) -> Step {
    let agrees_with = |prefix: &[u8]| header.iter().zip(prefix).all(|(one, other)| one == other);
    if !header.is_empty() && agrees_with(V1_PREFIX) {
        return parse_v1(header);
    }
    if !agrees_with(SIGNATURE) {
        return Step::Malformed;
    }
    match header.len() {
        // One byte tells the versions apart, so that Keyward does not wait for the rest of something else.
        0 => Step::More(1),
        length if length < V2_FIXED => Step::More(V2_FIXED - length),
        _ => parse_v2(header),
    }
}

fn parse_v1(header: &[u8]) -> Step {
    let Some(line) = header.strip_suffix(b"\r\n") else {
        // The next byte may be the last one, and nothing beyond it may be read.
        let more = if header.ends_with(b"\r") { 1 } else { 2 };
        let fits = header.len() + more <= MAX_V1 && !header.contains(&b'\n');
        return if fits { Step::More(more) } else { Step::Malformed };
    };
    let client = std::str::from_utf8(line).ok().and_then(parse_v1_line);
    client.map_or(Step::Malformed, Step::Whole)
}

fn parse_v1_line(line: &str) -> Option<Option<IpAddr>> {
    let mut words = line.strip_prefix("PROXY ")?.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        // What follows is to be ignored.
        return Some(None);
    }
    let (source, destination) = (words.next()?, words.next()?);
    let ports = [words.next()?, words.next()?];
    if words.next().is_some() || !ports.into_iter().all(is_port) {
        return None;
    }
    let (source, _): (IpAddr, IpAddr) = match family {
        "TCP4" => (source.parse::<Ipv4Addr>().ok()?.into(), destination.parse::<Ipv4Addr>().ok()?.into()),
        "TCP6" => (source.parse::<Ipv6Addr>().ok()?.into(), destination.parse::<Ipv6Addr>().ok()?.into()),
        _ => return None,
    };
    Some(Some(source))
}

fn is_port(text: &str) -> bool {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits && (text == "0" || !text.starts_with('0')) && text.parse::<u16>().is_ok()
}

fn parse_v2(header: &[u8]) -> Step {
    let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
    let rest = &header[V2_FIXED..];
    // The length of the family's addresses; any bytes beyond are records.
    let (local, addresses) = match (header[12], header[13]) {
        // LOCAL, the load balancer's own connection, for example a health check; or a client whose address it cannot tell.
        (0x20, _) | (0x21, 0x00) => (true, 0),
        // A client on a unix socket of the load balancer.
        (0x21, 0x31) => (true, 216),
        (0x21, 0x11) => (false, 12),
        (0x21, 0x21) => (false, 36),
        // Datagram protocols cannot be at the origin of a connection.
        _ => return Step::Malformed,
    };
    if !(addresses..=MAX_V2).contains(&length) {
        return Step::Malformed;
    }
    if rest.len() < length {
        return Step::More(length - rest.len());
    }
    let four = || Some(Ipv4Addr::from(*rest.first_chunk::<4>()?).into());
    let six = || Some(Ipv6Addr::from(*rest.first_chunk::<16>()?).into());
    Step::Whole(match addresses {
        _ if local => None,
        12 => four(),
        _ => six(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads as `read` does, and checks that nothing beyond the header is asked for.
    #[track_caller]
    fn check(header: &[u8], expected: Step) {
        let mut read = 0;
        let found = loop {
            match parse(&header[..read]) {
                Step::More(count) if read + count <= header.len() => read += count,
                other => break other,
            }
        };
        let text = String::from_utf8_lossy(header);
        assert_eq!(found, expected, "{text:?}");
        if let Step::Whole(_) = found {
            assert_eq!(read, header.len(), "{text:?}");
        }
    }

    fn from(address: &str) -> Step {
        Step::Whole(Some(address.parse().unwrap()))
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [SIGNATURE, &[command, family][..], &length, rest].concat()
    }

    #[test]
    fn version_1_header_is_read_exactly() {
        check(b"PROXY TCP4 192.0.2.1 10.0.0.1 56324 443\r\n", from("192.0.2.1"));
        check(b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", from("255.255.255.255"));
        check(b"PROXY TCP4 1.2.3.4 1.2.3.4 0 1\r\n", from("1.2.3.4"));
        check(b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n", from("2001:db8::1"));
        check(b"PROXY UNKNOWN\r\n", Step::Whole(None));
        check(b"PROXY UNKNOWN ffff::1 ffff::1 65535 65535\r\n", Step::Whole(None));
        for line in [
            "TCP4 192.0.2.1 10.0.0.1 1 2 ",
            "TCP4  192.0.2.1 10.0.0.1 1 2",
            "TCP4 192.0.2.1 10.0.0.1 1",
            "TCP4 192.0.2.1 10.0.0.1 1 2 3",
            "TCP4 192.0.2.1 10.0.0.1 01 2",
            "TCP4 192.0.2.1 10.0.0.1 +1 2",
            "TCP4 192.0.2.1 10.0.0.1 1 65536",
            "TCP4 192.0.2.1 10.0.0.1 1 ",
            "TCP4 192.0.2.01 10.0.0.1 1 2",
            "TCP4 192.0.2 10.0.0.1 1 2",
            "TCP4 192.0.2.1\t10.0.0.1 1 2",
            "TCP4 2001:db8::1 ::1 1 2",
            "TCP6 192.0.2.1 10.0.0.1 1 2",
            "TCP6 fe80::1%eth0 ::1 1 2",
            "TCP6 [::1] ::1 1 2",
            "tcp4 192.0.2.1 10.0.0.1 1 2",
            "UDP4 192.0.2.1 10.0.0.1 1 2",
            "UNKNOWNS",
            "",
            " TCP4 192.0.2.1 10.0.0.1 1 2",
            "TCP4 192.0.2.1\n10.0.0.1 1 2",
            "TCP4 192.0.2.1 10.0.0.1 1 \u{661}",
        ] {
            check(format!("PROXY {line}\r\n").as_bytes(), Step::Malformed);
        }
        check(b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n..", Step::Malformed);
        check(b"PROXY UNKNOWN\rx..", Step::More(2));
    }

    #[test]
    fn version_1_header_is_limited_to_107_bytes() {
        let line = |length: usize| {
            let mut line = b"PROXY UNKNOWN ".to_vec();
            line.resize(length - 2, b'x');
            [line, b"\r\n".to_vec()].concat()
        };
        check(&line(107), Step::Whole(None));
        check(&line(108), Step::Malformed);
        check(&[b"PROXY ".as_slice(), &[b'x'; 5000]].concat(), Step::Malformed);
    }

    #[test]
    fn version_2_gives_addresses_and_skips_tlvs() {
        let four = [192, 0, 2, 1, 10, 0, 0, 1, 1, 2, 3, 4];
        let mut six = [0; 36];
        six[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        six[15] = 1;
        let records = |addresses: &[u8], length: usize| [addresses, &vec![0xee; length]].concat();
        check(&v2(0x21, 0x11, &four), from("192.0.2.1"));
        check(&v2(0x21, 0x21, &six), from("2001:db8::1"));
        check(&v2(0x21, 0x11, &records(&four, 40)), from("192.0.2.1"));
        check(&v2(0x21, 0x21, &records(&six, 4096 - 36)), from("2001:db8::1"));
        check(&v2(0x20, 0x00, &[]), Step::Whole(None));
        check(&v2(0x20, 0x11, &four), Step::Whole(None));
        check(&v2(0x20, 0xff, &[1, 2, 3]), Step::Whole(None));
        check(&v2(0x21, 0x00, &[1, 2, 3]), Step::Whole(None));
        check(&v2(0x21, 0x31, &[0x2f; 216]), Step::Whole(None));
        check(&v2(0x21, 0x11, &records(&four, 4096)), Step::Malformed);
        for (command, family, length) in [
            (0x21, 0x11, 11),
            (0x21, 0x21, 35),
            (0x21, 0x31, 215),
            (0x21, 0x12, 12),
            (0x21, 0x22, 36),
            (0x21, 0x32, 216),
            (0x21, 0x41, 12),
            (0x21, 0x10, 12),
            (0x22, 0x11, 12),
            (0x11, 0x11, 12),
            (0x31, 0x11, 12),
            (0x00, 0x11, 12),
        ] {
            check(&v2(command, family, &vec![1; length]), Step::Malformed);
        }
    }

    #[test]
    fn non_header_is_refused_at_first_differing_byte() {
        for garbage in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02",
            b"PROXX",
            b"\0",
        ] {
            check(garbage, Step::Malformed);
        }
        let mut signature = SIGNATURE.to_vec();
        signature[11] = b'\r';
        check(&[&signature[..], &[0x20, 0, 0, 0]].concat(), Step::Malformed);
    }
}
