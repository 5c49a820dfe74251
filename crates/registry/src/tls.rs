//! TLS settings of one host: system roots and its own authorities, client certificates, or no verification where the
//! configuration asks for that.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// A certificate or key file may not be larger.
const MAX_FILE: u64 = 4 << 20;

/// TLS for the host itself and for those that it sends us to.
#[derive(Clone)]
pub(crate) struct Tls {
    /// The host itself: with its client certificate.
    pub own: Arc<ClientConfig>,
    /// Redirect targets: the same trust, no client certificate (it is a credential).
    pub redirect: Arc<ClientConfig>,
    /// A token service elsewhere: always verified, as it is sent credentials.
    pub realm: Arc<ClientConfig>,
}

/// What `hosts.toml` says of TLS; the file names are resolved.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    pub ca: Vec<std::path::PathBuf>,
    /// Certificate and key; one file may hold both.
    pub client: Vec<(std::path::PathBuf, Option<std::path::PathBuf>)>,
    pub skip_verify: bool,
}

/// A file that cannot be used, and why.
pub(crate) struct BadFile {
    pub path: std::path::PathBuf,
    pub reason: String,
}

impl Tls {
    /// Reads the files. Blocking.
    pub fn load(files: &TlsFiles) -> Result<Self, BadFile> {
        let provider = provider();
        if files.ca.is_empty() && files.client.is_empty() && !files.skip_verify {
            let plain = plain(&provider);
            return Ok(Self {
                own: plain.clone(),
                redirect: plain.clone(),
                realm: plain,
            });
        }
        let mut roots = system_roots().clone();
        for path in &files.ca {
            add_authorities(&mut roots, path)?;
        }
        let keys = files
            .client
            .iter()
            .map(|(cert, key)| client_key(cert, key.as_deref(), &provider))
            .collect::<Result<Vec<_>, _>>()?;
        let roots = Arc::new(roots);
        let realm = Arc::new(config(&provider, &roots, Vec::new(), false));
        let redirect = if files.skip_verify {
            Arc::new(config(&provider, &roots, Vec::new(), true))
        } else {
            realm.clone()
        };
        let own = if keys.is_empty() {
            redirect.clone()
        } else {
            Arc::new(config(&provider, &roots, keys, files.skip_verify))
        };
        Ok(Self { own, redirect, realm })
    }
}

fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER
        .get_or_init(|| Arc::new(rustls::crypto::ring::default_provider()))
        .clone()
}

/// The settings of a host without any of its own, shared so that TLS sessions are resumed.
fn plain(provider: &Arc<CryptoProvider>) -> Arc<ClientConfig> {
    static PLAIN: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    PLAIN
        .get_or_init(|| {
            Arc::new(config(
                provider,
                &Arc::new(system_roots().clone()),
                Vec::new(),
                false,
            ))
        })
        .clone()
}

fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        for error in found.errors.iter().take(3) {
            tracing::warn!(%error, "some system certificates cannot be read");
        }
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            tracing::warn!("the system has no certificate authorities; https needs ca in hosts.toml or the package ca-certificates");
        }
        roots
    })
}

fn config(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    keys: Vec<Arc<CertifiedKey>>,
    skip_verify: bool,
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for TLS 1.2 and 1.3");
    let verifier: Arc<dyn ServerCertVerifier> =
        match WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build() {
            Ok(verifier) if !skip_verify => verifier,
            Err(_) if !skip_verify => Arc::new(Nobody(provider.clone())),
            _ => Arc::new(Anybody(provider.clone())),
        };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = if keys.is_empty() {
        builder.with_no_client_auth()
    } else {
        builder.with_client_cert_resolver(Arc::new(Keys(keys)))
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

fn read(path: &Path) -> Result<Vec<u8>, BadFile> {
    let bad = |reason: String| BadFile {
        path: path.to_owned(),
        reason,
    };
    let meta = std::fs::metadata(path).map_err(|e| bad(format!("cannot be read: {e}")))?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(bad(format!("is not a regular file of at most {MAX_FILE} bytes")));
    }
    std::fs::read(path).map_err(|e| bad(format!("cannot be read: {e}")))
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, BadFile> {
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    list.map_err(|e| BadFile {
        path: path.to_owned(),
        reason: format!("is not PEM: {e}"),
    })
}

fn add_authorities(roots: &mut RootCertStore, path: &Path) -> Result<(), BadFile> {
    let bad = |reason: String| BadFile {
        path: path.to_owned(),
        reason,
    };
    let certs = certificates(path, &read(path)?)?;
    if certs.is_empty() {
        return Err(bad("has no certificate".into()));
    }
    for cert in certs {
        roots
            .add(cert)
            .map_err(|e| bad(format!("has a certificate that cannot be used: {e}")))?;
    }
    Ok(())
}

fn client_key(
    cert: &Path,
    key: Option<&Path>,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, BadFile> {
    let pem = read(cert)?;
    let chain = certificates(cert, &pem)?;
    if chain.is_empty() {
        return Err(BadFile {
            path: cert.to_owned(),
            reason: "has no certificate".into(),
        });
    }
    let (key_path, key_pem) = match key {
        Some(path) => (path, read(path)?),
        None => (cert, pem),
    };
    let bad = |reason: String| BadFile {
        path: key_path.to_owned(),
        reason,
    };
    let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|e| bad(format!("has no private key: {e}")))?;
    CertifiedKey::from_der(chain, key, provider)
        .map(Arc::new)
        .map_err(|e| bad(format!("has a key that cannot be used: {e}")))
}

/// Client certificates in the order of the configuration.
#[derive(Debug)]
struct Keys(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Keys {
    fn resolve(&self, _issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0
            .iter()
            .find(|k| k.key.choose_scheme(schemes).is_some())
            .cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// `skip_verify`: any certificate will do, though its owner must hold the key.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

/// No authority is known at all, so nothing can be verified.
#[derive(Debug)]
struct Nobody(Arc<CryptoProvider>);

macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls12_signature(
                message,
                cert,
                dss,
                &self.0.signature_verification_algorithms,
            )
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            rustls::crypto::verify_tls13_signature(
                message,
                cert,
                dss,
                &self.0.signature_verification_algorithms,
            )
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

impl ServerCertVerifier for Nobody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Err(rustls::Error::General(
            "this machine knows no certificate authority".into(),
        ))
    }

    signatures!();
}
