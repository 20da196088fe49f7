//! A self-made CA and a certificate for localhost and other names, generated at start.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio_rustls::TlsAcceptor;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A certificate for `localhost`, `127.0.0.1`, `::1` and the names it was generated for, with its key.
#[derive(Clone)]
pub struct Certificate {
    ca_pem: String,
    server: Arc<ServerConfig>,
}

/// The certificate could not be generated or used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A certificate cannot be for this name.
    #[error("{0:?} is not a host name or an IP address, such as emulator or 192.0.2.1")]
    Name(String),
    /// rcgen failed.
    #[error("cannot generate a certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// rustls refused the result.
    #[error("cannot use the generated certificate: {0}")]
    Use(#[from] rustls::Error),
}

impl Certificate {
    /// [`Self::generate_for`] no further names.
    pub fn generate() -> Result<Self, CertificateError> {
        Self::generate_for(&[])
    }

    /// Generates a CA and a certificate, valid for 396 days, for `names` too: host names and IP addresses by which clients on other
    /// machines or in other containers reach the emulator. The private key of the CA is not kept.
    pub fn generate_for(names: &[String]) -> Result<Self, CertificateError> {
        if let Some(name) = names.iter().find(|name| ServerName::try_from(name.as_str()).is_err()) {
            return Err(CertificateError::Name(name.clone()));
        }
        let mut authority = CertificateParams::new([])?;
        authority.distinguished_name.push(DnType::CommonName, "Keyward emulator authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;

        let always = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let mut leaf = CertificateParams::new([&always[..], names].concat())?;
        leaf.distinguished_name.push(DnType::CommonName, "Keyward emulator");
        leaf.use_authority_key_identifier_extension = true; // Required by Python from 3.13 on.
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        // Some platforms reject server certificates with a longer lifetime, and clocks differ between machines.
        leaf.not_before = (SystemTime::now() - DAY).into();
        leaf.not_after = (SystemTime::now() + 396 * DAY).into();
        let key = KeyPair::generate()?;
        let leaf = leaf.signed_by(&key, &authority)?;

        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone(), authority.der().clone()], key)?;
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { ca_pem: authority.pem(), server: Arc::new(server) })
    }

    /// The CA certificate in PEM, for clients to trust.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.server))
    }
}
