//! Secret values: no `Display`, no `Serialize`, and a `Debug` that does not reveal them.

use std::fmt;
use std::path::{Path, PathBuf};

use ring::hmac;
use ring::rand::SystemRandom;
use zeroize::Zeroizing;

/// A secret in memory, which is overwritten when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Box<str>>);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<Box<str>>) -> Self {
        Self(Zeroizing::new(value.into()))
    }

    /// The value itself. Every call is a place where it could leak.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Compares in constant time.
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

/// Where a secret comes from. A file is read each time the secret is needed, so that a rotated secret works without a
/// restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// Given directly, by the environment.
    Value(Secret),
    /// The content of a file, without the white space around it.
    File(PathBuf),
}

/// Why a secret could not be read. Never holds any of it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file could not be read.
    #[error("cannot read the secret file {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// Nothing but white space in it.
    #[error("the secret file {} is empty", .0.display())]
    Empty(PathBuf),
    /// A secret is one line of visible characters.
    #[error("the secret file {} holds more than one line of visible ASCII", .0.display())]
    Malformed(PathBuf),
}

/// The longest secret file that is read; a longer one is a mistake in the path.
const MAX_FILE: u64 = 64 * 1024;

impl SecretSource {
    /// The secret as it is now.
    ///
    /// # Errors
    /// When the file is unreadable, empty, or holds something that cannot be a secret.
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
    // A device or a pipe could have no end. What a folder is, the system says.
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
