//! Where a stream of WebSocket frames stands (RFC 6455 section 5.2), so that a Close of Keyward's own can follow the last
//! whole frame, and never lands inside one. Looks at lengths alone; payloads pass unread.

/// Why Keyward closes a WebSocket (RFC 6455 section 7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCode {
    /// Keyward ends.
    GoingAway = 1001,
    /// The key is no longer good.
    PolicyViolation = 1008,
    /// Nobody can say whether the key is good (in the IANA registry of close codes).
    TryAgainLater = 1013,
}

impl CloseCode {
    /// A whole Close frame, as a server sends it: unmasked.
    pub(super) fn frame(self) -> [u8; 4] {
        let [high, low] = (self as u16).to_be_bytes();
        [0x80 | CLOSE, 2, high, low]
    }
}

const CLOSE: u8 = 0x8;
/// Flags and opcode, mask bit and length, and up to eight bytes of longer length.
const LONGEST_HEAD: usize = 10;

/// Follows the frames of one direction.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: [u8; LONGEST_HEAD],
    /// Of the head, how much is there.
    read: usize,
    /// Of the mask and the payload, how much is still to come.
    payload: u64,
    closed: bool,
}

impl Frames {
    /// Bytes that have passed.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let here = usize::try_from(self.payload).unwrap_or(usize::MAX).min(bytes.len());
                bytes = &bytes[here..];
                self.payload -= here as u64;
                continue;
            }
            self.head[self.read] = bytes[0];
            self.read += 1;
            bytes = &bytes[1..];
            if let Some(payload) = self.head_is_whole() {
                self.closed |= self.head[0] & 0x0f == CLOSE;
                self.payload = payload;
                self.read = 0;
            }
        }
    }

    /// Whether a Close may follow: between two frames, and there was none yet. Within a fragmented message it may.
    pub(super) fn may_close(&self) -> bool {
        self.read == 0 && self.payload == 0 && !self.closed
    }

    /// What follows a head once it is whole: the mask, if any, and the payload.
    fn head_is_whole(&self) -> Option<u64> {
        let second = *self.head[..self.read].get(1)?;
        let mask = if second & 0x80 != 0 { 4 } else { 0 };
        let extended = self.head[2..].first_chunk::<8>()?;
        let length = match (second & 0x7f, self.read) {
            (126, 4) => u64::from(u16::from_be_bytes([extended[0], extended[1]])),
            (127, LONGEST_HEAD) => u64::from_be_bytes(*extended),
            (126 | 127, _) => return None,
            (short, _) => u64::from(short),
        };
        Some(length.saturating_add(mask))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(first: u8, length: usize, mask: bool) -> Vec<u8> {
        let bit = if mask { 0x80 } else { 0 };
        let mut frame = vec![first];
        match length {
            0..126 => frame.push(bit | length as u8),
            126..65536 => {
                frame.push(bit | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            _ => {
                frame.push(bit | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(vec![0x88; length + if mask { 4 } else { 0 }]);
        frame
    }

    #[track_caller]
    fn check(first: u8, length: usize, mask: bool) {
        let frame = frame(first, length, mask);
        for piece in [1, 2, 3, 7, 4096, frame.len()] {
            let (mut frames, mut passed) = (Frames::default(), 0);
            for piece in frame.chunks(piece) {
                frames.pass(piece);
                passed += piece.len();
                assert_eq!(frames.may_close(), passed == frame.len(), "{length} {mask}: {passed}");
            }
        }
    }

    #[test]
    fn close_may_follow_only_a_complete_frame() {
        assert!(Frames::default().may_close());
        for length in [0, 1, 125, 126, 127, 255, 256, 65_535, 65_536, 70_000] {
            for mask in [false, true] {
                check(0x82, length, mask);
            }
        }
        check(0x01, 5, false); // the first part of a fragmented message
        check(0x89, 4, false); // a ping
    }

    #[test]
    fn frames_in_one_read_are_separated() {
        let mut frames = Frames::default();
        let mut bytes = [frame(0x81, 3, false), frame(0x82, 300, false), frame(0x80, 0, false)].concat();
        frames.pass(&bytes);
        assert!(frames.may_close());
        bytes.pop();
        bytes.extend(frame(0x82, 300, false));
        frames.pass(&bytes[..bytes.len() - 1]);
        assert!(!frames.may_close());
    }

    #[test]
    fn nothing_follows_close_frame() {
        let mut frames = Frames::default();
        frames.pass(&CloseCode::PolicyViolation.frame());
        assert!(!frames.may_close());
        assert_eq!(CloseCode::PolicyViolation.frame(), [0x88, 2, 0x03, 0xF0]);
        assert_eq!(CloseCode::TryAgainLater.frame(), [0x88, 2, 0x03, 0xF5]);
        assert_eq!(CloseCode::GoingAway.frame(), [0x88, 2, 0x03, 0xE9]);
    }

    #[test]
    fn huge_frame_length_never_overflows() {
        let mut frames = Frames::default();
        frames.pass(&[0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
        assert!(!frames.may_close());
    }
}
