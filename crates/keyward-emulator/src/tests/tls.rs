//! TLS with a certificate that clients can verify.

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::*;

fn connector(roots: RootCertStore, alpn: &[u8]) -> TlsConnector {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![alpn.to_vec()];
    TlsConnector::from(Arc::new(config))
}

#[tokio::test]
async fn trusting_client_is_served_over_http1_and_http2() {
    let emulator = Emulator::new(Settings::default());
    let certificate = Certificate::generate().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let served = tokio::spawn({
        let (emulator, certificate, stop) = (emulator.clone(), certificate.clone(), stop.clone());
        async move { emulator.serve_tls(listener, &certificate, stop).await }
    });
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate.ca_pem().as_bytes()).unwrap()).unwrap();
    for (name, alpn) in [("localhost", "h2"), ("127.0.0.1", "http/1.1"), ("::1", "http/1.1")] {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from(name).unwrap();
        let stream = connector(roots.clone(), alpn.as_bytes()).connect(name, stream).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(alpn.as_bytes()));
        let request = Request::get(format!("https://{address}/api/v1/tokens")).header("host", "localhost");
        let request = request.body(Full::new(Bytes::new())).unwrap();
        let response = if alpn == "h2" {
            let (mut client, connection) =
                http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            client.send_request(request).await
        } else {
            let (mut client, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            tokio::spawn(connection);
            client.send_request(request).await
        };
        assert_eq!(response.unwrap().status(), 401);
    }
    let stream = TcpStream::connect(address).await.unwrap();
    let stranger = connector(RootCertStore::empty(), b"h2");
    assert!(stranger.connect(ServerName::try_from("localhost").unwrap(), stream).await.is_err());
    let _silent = TcpStream::connect(address).await.unwrap();
    stop.cancel();
    timeout(SOON, served).await.unwrap().unwrap();
}

#[tokio::test]
async fn certificate_is_for_given_names_alone() {
    let emulator = Emulator::new(Settings::default());
    let certificate = Certificate::generate_for(&["emulator".to_owned(), "192.0.2.1".to_owned()]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let _end = stop.clone().drop_guard();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate.ca_pem().as_bytes()).unwrap()).unwrap();
    tokio::spawn(async move { emulator.serve_tls(listener, &certificate, stop).await });
    for (name, served) in [("emulator", true), ("192.0.2.1", true), ("localhost", true), ("other", false)] {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from(name).unwrap();
        let connection = connector(roots.clone(), b"h2").connect(name.clone(), stream).await;
        assert_eq!(connection.is_ok(), served, "{name:?}");
    }
}

#[test]
fn invalid_certificate_name_is_refused_with_example() {
    for name in ["", "a b", "emulator:4491", "https://emulator", "*.example.com"] {
        let error = Certificate::generate_for(&[name.to_owned()]).err().map(|error| error.to_string());
        assert_eq!(
            error,
            Some(format!("{name:?} is not a host name or an IP address, such as emulator or 192.0.2.1"))
        );
    }
}
