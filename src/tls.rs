//! TLS configurations: rustls with ring, TLS 1.2 and 1.3. Verification cannot be turned off.

mod not_after;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, ServerConfig};

/// The PEM files of a certificate chain and its key. They are read again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// Why TLS cannot be set up. The messages name files, never their content.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that is missing or not PEM.
    #[error("cannot read {what} from {}: {error}", path.display())]
    Pem {
        /// What was expected in it.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: rustls::pki_types::pem::Error,
    },
    /// A PEM file without a certificate.
    #[error("there is no certificate in {}", .0.display())]
    NoCertificate(PathBuf),
    /// The certificate and the key do not belong together, or one is unusable.
    #[error("the certificate {} cannot be used: {error}", path.display())]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong.
        error: rustls::Error,
    },
    /// A host for which no certificate can be issued.
    #[error("'{0}' is neither a DNS name nor an IP address, so no certificate can be verified for it")]
    Name(String),
    /// There are no root certificates.
    #[error(
        "this system has no root certificates; install ca-certificates, set SSL_CERT_FILE, or set ca_file"
    )]
    NoRoots,
}

/// The configuration for https origins, verified with `roots` or else with the system's roots, which `SSL_CERT_FILE` and
/// `SSL_CERT_DIR` replace.
///
/// # Errors
/// When a file cannot be used.
pub fn client_config(
    roots: Option<&Path>,
    identity: Option<&KeyPair>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, TlsError> {
    let roots = match roots {
        Some(path) => Arc::new(read_roots(path)?),
        None => system_roots()?,
    };
    let builder = client_builder(roots)?;
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let (chain, key) = read_pair(pair)?;
            let unusable = |error| TlsError::Unusable { path: pair.certificate.clone(), error };
            builder.with_client_auth_cert(chain, key).map_err(unusable)?
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// A configuration that trusts no certificate, for clients which require one but only connect in clear text.
///
/// # Errors
/// Never with the versions of TLS that ring supports.
pub fn client_config_without_roots() -> Result<ClientConfig, TlsError> {
    Ok(client_builder(Arc::new(RootCertStore::empty()))?.with_no_client_auth())
}

fn client_builder(
    roots: Arc<RootCertStore>,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Unusable { path: PathBuf::new(), error })?;
    Ok(builder.with_root_certificates(roots))
}

/// A listener's certificate, which can be replaced while connections are accepted.
#[derive(Debug)]
pub struct ServerCertificate {
    pair: KeyPair,
    current: RwLock<Arc<CertifiedKey>>,
}

impl ServerCertificate {
    /// Reads the files.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn read(pair: &KeyPair) -> Result<Arc<Self>, TlsError> {
        let current = RwLock::new(Arc::new(read_certified_key(pair)?));
        Ok(Arc::new(Self { pair: pair.clone(), current }))
    }

    /// Reads the files of all these certificates again. New connections use the new certificates.
    ///
    /// # Errors
    /// When a file cannot be used. Then no certificate is replaced.
    pub fn refresh_all<'a>(certificates: impl Iterator<Item = &'a Self> + Clone) -> Result<(), TlsError> {
        let new: Vec<_> = certificates
            .clone()
            .map(|own| read_certified_key(&own.pair).map(Arc::new))
            .collect::<Result<_, _>>()?;
        for (own, new) in certificates.zip(new) {
            *own.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        }
        Ok(())
    }
}

impl ServerCertificate {
    /// The Unix time at which the certificate expires, in seconds. `None` if its validity cannot be read.
    pub fn expires_at(&self) -> Option<i64> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        not_after::parse(current.cert.first()?).map(|time| time.as_second())
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

/// The configuration of a listener, with ALPN `h2` and `http/1.1`.
///
/// # Errors
/// Never because of the certificate, which was checked when it was read.
pub fn server_config(certificate: Arc<ServerCertificate>) -> Result<ServerConfig, TlsError> {
    let path = certificate.pair.certificate.clone();
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError::Unusable { path, error })?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Reads a certificate chain and checks that the key belongs to it.
fn read_certified_key(pair: &KeyPair) -> Result<CertifiedKey, TlsError> {
    let (chain, key) = read_pair(pair)?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::ring::default_provider())
        .map_err(|error| TlsError::Unusable { path: pair.certificate.clone(), error })
}

fn read_pair(pair: &KeyPair) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = read_certificates(&pair.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&pair.key).map_err(|error| TlsError::Pem {
        what: "a private key",
        path: pair.key.clone(),
        error,
    })?;
    Ok((chain, key))
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |error| TlsError::Pem { what: "certificates", path: path.to_owned(), error };
    let chain: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(pem)?.collect::<Result<_, _>>().map_err(pem)?;
    if chain.is_empty() { Err(TlsError::NoCertificate(path.to_owned())) } else { Ok(chain) }
}

fn read_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(path)? {
        roots.add(certificate).map_err(|error| TlsError::Unusable { path: path.to_owned(), error })?;
    }
    Ok(roots)
}

fn system_roots() -> Result<Arc<RootCertStore>, TlsError> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let roots = ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    });
    if roots.is_empty() { Err(TlsError::NoRoots) } else { Ok(Arc::clone(roots)) }
}
