//! TLS, and files that cannot be served.

use std::sync::Arc;

use quern::http::{Node, ServeError, Settings, TlsFiles, serve_public};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use crate::support::{Options, Server, soon, start};

struct Identity {
    dir: tempfile::TempDir,
    pem: String,
}

impl Identity {
    fn new() -> Identity {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(dir.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        Identity { dir, pem: made.cert.pem() }
    }

    fn files(&self) -> TlsFiles {
        TlsFiles { cert: self.dir.path().join("cert.pem"), key: self.dir.path().join("key.pem") }
    }

    fn connector(&self, protocols: &[&[u8]]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(crypto::ring::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }
}

async fn encrypted(settings: Settings, identity: &Identity) -> Server {
    start(Options { settings: Settings { tls: Some(identity.files()), ..settings }, ..Options::default() })
        .await
}

#[tokio::test]
async fn the_public_listener_speaks_tls() {
    let identity = Identity::new();
    let server = encrypted(Settings::default(), &identity).await;
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TcpStream::connect(server.public).await.unwrap();
    let mut stream = identity.connector(&[b"http/1.1"]).connect(name.clone(), stream).await.unwrap();
    stream
        .write_all(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"tiny\""), "{answer}");

    let stream = TcpStream::connect(server.public).await.unwrap();
    let stream = identity.connector(&[b"h2", b"http/1.1"]).connect(name, stream).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(b"h2".as_slice()));

    // Operators' endpoints stay plain.
    server.get(server.admin_url("/ready")).await.ok();
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_cut_off() {
    let identity = Identity::new();
    let settings = Settings { header_timeout: std::time::Duration::from_millis(50), ..Settings::default() };
    let server = encrypted(settings, &identity).await;
    let mut stream = TcpStream::connect(server.public).await.unwrap();
    let mut nothing = Vec::new();
    let _ = soon(stream.read_to_end(&mut nothing)).await;
    assert_eq!(nothing, b"");
}

#[tokio::test]
async fn files_that_cannot_be_served_are_named() {
    let identity = Identity::new();
    let node = Node::new(Vec::new(), Box::new(String::new));
    let serve = |settings: Settings| {
        let node = Arc::clone(&node);
        async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            serve_public(listener, node, settings, std::future::pending()).await.unwrap_err()
        }
    };
    let missing = identity.dir.path().join("missing.pem");
    let tls = |files: TlsFiles| Settings { tls: Some(files), ..Settings::default() };
    let error = serve(tls(TlsFiles { cert: missing.clone(), ..identity.files() })).await;
    assert!(matches!(error, ServeError::Tls(_)) && error.to_string().contains("missing.pem"), "{error}");
    let swapped = TlsFiles { cert: identity.files().key, key: identity.files().key };
    let error = serve(tls(swapped)).await;
    assert!(error.to_string().contains("key.pem"), "{error}");
    let other = Identity::new();
    let error = serve(tls(TlsFiles { cert: identity.files().cert, key: other.files().key })).await;
    assert!(error.to_string().contains("refused"), "{error}");
    let keys = Settings { api_keys_file: Some(missing), ..Settings::default() };
    let error = serve(keys).await;
    assert!(matches!(error, ServeError::Keys(_)) && error.to_string().contains("missing.pem"), "{error}");
}
