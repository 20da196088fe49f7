//! The first question to an environment, before traffic asks any: is this Scalekit, and does it take us?

use super::tokens::Verdict;
use super::{Fault, Scalekit};
use crate::credential::{ApiKey, Settings};

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

impl Scalekit {
    /// Asks about a key that nobody has. A definite "invalid" is the only good answer: it needs the address, the secret, the
    /// permission and the REST token API to be right (contract section 5).
    ///
    /// # Errors
    /// What is wrong, in words for the operator.
    pub async fn probe(&self) -> Result<(), Fault> {
        let key: String = (0..77).map(|_| char::from(BASE62[fastrand::usize(..BASE62.len())])).collect();
        let key = ApiKey::parse(&key, &Settings::default()).ok_or(Fault::Broken("a probe cannot be made"))?;
        match self.validate(&key).await? {
            Verdict::Invalid => Ok(()),
            Verdict::Valid(_) => Err(Fault::WrongEndpoint("it calls a made-up key valid".into())),
        }
    }
}
