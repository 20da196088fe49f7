//! Follows the boundaries of WebSocket frames (RFC 6455 section 5.2), so that a Close frame of Keyward's own is sent between
//! two frames and never inside one. Reads heads alone, not payloads.

/// Why Keyward closes a WebSocket (RFC 6455 section 7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCode {
    /// Keyward shuts down.
    GoingAway = 1001,
    /// The key is no longer valid or permitted.
    PolicyViolation = 1008,
    /// The key cannot be validated (the code is from IANA's registry).
    TryAgainLater = 1013,
}

impl CloseCode {
    /// A whole Close frame, as a server sends it: unmasked.
    pub(super) fn to_frame(self) -> [u8; 4] {
        let [high, low] = (self as u16).to_be_bytes();
        [0x80 | CLOSE, 2, high, low]
    }
}

const CLOSE: u8 = 0x8;
/// Flags and opcode, mask bit and short length, and up to eight bytes of extended length.
const LONGEST_HEAD: usize = 10;

/// Follows the frames of one direction.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: [u8; LONGEST_HEAD],
    /// Bytes of the head that have been read.
    read: usize,
    /// Bytes of the mask and the payload that are still to come.
    payload: u64,
    closed: bool,
}

impl Frames {
    /// Takes the next bytes of the stream.
    pub(super) fn follow(&mut self, mut bytes: &[u8]) {
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
            if let Some(payload) = self.payload_length() {
                self.closed |= self.head[0] & 0x0f == CLOSE;
                self.payload = payload;
                self.read = 0;
            }
        }
    }

    /// Whether a Close frame may be sent now: between two frames, also of a fragmented message, and after no other Close.
    pub(super) fn may_close(&self) -> bool {
        self.read == 0 && self.payload == 0 && !self.closed
    }

    /// The bytes of mask and payload that follow the head; `None` until the head is complete.
    fn payload_length(&self) -> Option<u64> {
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
                frames.follow(piece);
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
        frames.follow(&bytes);
        assert!(frames.may_close());
        bytes.pop();
        bytes.extend(frame(0x82, 300, false));
        frames.follow(&bytes[..bytes.len() - 1]);
        assert!(!frames.may_close());
    }

    #[test]
    fn nothing_follows_close_frame() {
        let mut frames = Frames::default();
        frames.follow(&CloseCode::PolicyViolation.to_frame());
        assert!(!frames.may_close());
        assert_eq!(CloseCode::PolicyViolation.to_frame(), [0x88, 2, 0x03, 0xF0]);
        assert_eq!(CloseCode::TryAgainLater.to_frame(), [0x88, 2, 0x03, 0xF5]);
        assert_eq!(CloseCode::GoingAway.to_frame(), [0x88, 2, 0x03, 0xE9]);
    }

    #[test]
    fn huge_frame_length_never_overflows() {
        let mut frames = Frames::default();
        frames.follow(&[0x82, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]);
        assert!(!frames.may_close());
    }
}
