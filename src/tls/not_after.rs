//! The end of a certificate's validity, read from its DER encoding (RFC 5280 section 4.1).

use jiff::Timestamp;

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The tag of the field `version`, which may be absent.
const VERSION: u8 = 0xa0;

/// The time `notAfter`. `None` if this is no certificate.
pub(super) fn parse(certificate: &[u8]) -> Option<Timestamp> {
    let (certificate, _) = take_contents(certificate, SEQUENCE)?;
    let (mut fields, _) = take_contents(certificate, SEQUENCE)?;
    if fields.first() == Some(&VERSION) {
        fields = skip(fields)?;
    }
    // serialNumber, signature and issuer.
    fields = skip(skip(skip(fields)?)?)?;
    let (validity, _) = take_contents(fields, SEQUENCE)?;
    let not_after = skip(validity)?;
    match not_after.first()? {
        &UTC_TIME => {
            let (time, _) = take_contents(not_after, UTC_TIME)?;
            let time = std::str::from_utf8(time).ok()?;
            // RFC 5280 section 4.1.2.5.1.
            let century = if time.get(..2)?.parse::<u8>().ok()? < 50 { "20" } else { "19" };
            parse_time(&format!("{century}{time}"))
        }
        _ => {
            let (time, _) = take_contents(not_after, GENERALIZED_TIME)?;
            parse_time(std::str::from_utf8(time).ok()?)
        }
    }
}

/// `YYYYMMDDhhmmssZ`.
fn parse_time(text: &str) -> Option<Timestamp> {
    let time = jiff::civil::DateTime::strptime("%Y%m%d%H%M%SZ", text).ok()?;
    jiff::tz::Offset::UTC.to_timestamp(time).ok()
}

fn skip(input: &[u8]) -> Option<&[u8]> {
    Some(take_contents(input, *input.first()?)?.1)
}

/// The contents of the value that the input begins with, and the rest.
fn take_contents(input: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[first, length], rest) = input.split_first_chunk()?;
    if first != tag {
        return None;
    }
    if length < 0x80 {
        return rest.split_at_checked(length.into());
    }
    let (length, rest) = rest.split_at_checked((length & 0x7f).into())?;
    let length =
        length.iter().try_fold(0_usize, |sum, byte| sum.checked_mul(256)?.checked_add((*byte).into()));
    rest.split_at_checked(length?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(year: i32) -> Vec<u8> {
        let mut params = rcgen::CertificateParams::new(["a.test".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(year, 3, 4);
        params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn end_of_validity_is_read_from_both_kinds_of_time() {
        for (year, expected) in [(2027, "2027-03-04T00:00:00Z"), (2060, "2060-03-04T00:00:00Z")] {
            assert_eq!(parse(&certificate(year)).unwrap().to_string(), expected);
        }
    }

    #[test]
    fn cut_certificates_are_none() {
        let certificate = certificate(2027);
        for length in 0..certificate.len() {
            assert_eq!(parse(&certificate[..length]), None, "{length}");
        }
        assert_eq!(parse(&[SEQUENCE, 0xff]), None);
        assert_eq!(parse(&[&[SEQUENCE, 0x88][..], &[0xff; 8]].concat()), None);
    }
}
