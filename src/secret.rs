//! Secret values, which have no `Display` and no `Serialize`, and whose `Debug` does not reveal them.

use std::fmt;
use std::path::{Path, PathBuf};

use ring::hmac;
use ring::rand::SystemRandom;
use zeroize::Zeroizing;

/// A secret in memory, which is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Box<str>>);

impl Secret {
    /// Takes over the value; a `String` with spare capacity is copied, and its old memory is not overwritten.
    pub fn new(value: impl Into<Box<str>>) -> Self {
        Self(Zeroizing::new(value.into()))
    }

    /// The value itself, which the caller must not print or log.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Compares in constant time, by the HMAC of both under a random key.
    pub fn equals(&self, given: &[u8]) -> bool {
        let Ok(key) = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()) else { return false };
        hmac::verify(&key, given, hmac::sign(&key, self.0.as_bytes()).as_ref()).is_ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where a secret comes from. A file is read each time the secret is needed, so that a rotated secret is used without a
/// restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// The secret itself, from the environment.
    Value(Secret),
    /// The content of a file, without the white space around it.
    File(PathBuf),
}

/// Why a secret could not be read. The messages never contain the secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file could not be read.
    #[error("cannot read the secret file {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
    /// The file is empty or contains only white space.
    #[error("the secret file {} is empty", .0.display())]
    Empty(PathBuf),
    /// The content is not a single line of visible ASCII characters.
    #[error("the secret file {} holds more than one line of visible ASCII", .0.display())]
    Malformed(PathBuf),
}

/// Maximum length of a secret file, in bytes; a longer file means that the path is wrong.
const MAX_FILE: u64 = 64 * 1024;

impl SecretSource {
    /// Reads the current secret.
    ///
    /// # Errors
    /// When the file cannot be read, is empty, or contains something that cannot be a secret.
    pub fn read(&self) -> Result<Secret, SecretError> {
        match self {
            Self::Value(secret) => Ok(secret.clone()),
            Self::File(path) => read_file(path),
        }
    }
}

fn read_file(path: &Path) -> Result<Secret, SecretError> {
    let unreadable = |error| SecretError::Unreadable { path: path.to_owned(), error };
    let metadata = std::fs::metadata(path).map_err(unreadable)?;
    // Reading a device or a pipe may never end. Reading a directory fails with the system's own message.
    if !(metadata.is_file() || metadata.is_dir()) || metadata.len() > MAX_FILE {
        return Err(SecretError::Malformed(path.to_owned()));
    }
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(unreadable)?);
    let value = text.trim();
    if value.is_empty() {
        return Err(SecretError::Empty(path.to_owned()));
    }
    if !value.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(SecretError::Malformed(path.to_owned()));
    }
    Ok(Secret::new(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing_of_the_secret() {
        let source = SecretSource::Value(Secret::new("hunter2"));
        assert!(!format!("{source:?}").contains("hunter2"));
    }

    #[test]
    fn secret_equals_only_identical_bytes() {
        let secret = Secret::new("hunter2");
        assert!(secret.equals(b"hunter2"));
        for other in ["", "hunter", "hunter22", "Hunter2", "hunter3"] {
            assert!(!secret.equals(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn secret_file_errors_name_file_not_content() {
        let folder = std::env::temp_dir().join(format!("keyward-secret-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("secret");
        for (content, expected) in
            [("", "is empty"), ("a\nb", "more than one line"), ("a\0b", "more than one line")]
        {
            std::fs::write(&file, content).unwrap();
            let error = SecretSource::File(file.clone()).read().unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("secret"), "{error}");
        }
        for special in ["/dev/zero", "/dev"] {
            assert!(SecretSource::File(special.into()).read().is_err(), "{special}");
        }
        std::fs::write(&file, " value\n").unwrap();
        assert_eq!(SecretSource::File(file).read().unwrap().expose(), "value");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
