//! The certificate, read again when its files have changed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate or key file may not be larger.
const MAX_FILE: u64 = 1 << 20;

/// Where certificate and key are: PEM files, the certificate's with its chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Why TLS cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is larger than {MAX_FILE} bytes")]
    Large { path: PathBuf },
    #[error("{path} holds no certificate in PEM")]
    NoCertificate { path: PathBuf },
    #[error("{path} holds no private key in PEM")]
    NoKey { path: PathBuf },
    #[error("the certificate {cert} and the key {key} cannot be used together")]
    Unusable {
        cert: PathBuf,
        key: PathBuf,
        #[source]
        source: rustls::Error,
    },
}

/// When the files were changed, and how large they are: what tells one version from the next.
type Stamp = [Option<(SystemTime, u64)>; 2];

#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    current: Mutex<(Stamp, Arc<ServerConfig>)>,
}

impl Tls {
    /// Blocking, and so is [`config`](Self::config).
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let stamp = stamp(&files);
        let config = read(&files)?;
        Ok(Self {
            files,
            current: Mutex::new((stamp, config)),
        })
    }

    /// For one connection. Files that cannot be used (half written, say) leave what was there before.
    pub fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = stamp(&self.files);
        if stamp != current.0 {
            match read(&self.files) {
                Ok(config) => {
                    tracing::info!(cert = %self.files.cert.display(), "the streaming server's certificate was read again");
                    current.1 = config;
                }
                Err(error) => {
                    tracing::warn!(
                        why = crate::status::chain(&error),
                        "the streaming server keeps its old certificate"
                    );
                }
            }
            current.0 = stamp;
        }
        current.1.clone()
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    [&files.cert, &files.key].map(|path| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    })
}

fn read(files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = CertificateDer::pem_slice_iter(&file(&files.cert)?)
        .collect::<Result<Vec<_>, _>>()
        .ok()
        .filter(|chain| !chain.is_empty())
        .ok_or_else(|| TlsError::NoCertificate {
            path: files.cert.clone(),
        })?;
    let key = PrivateKeyDer::from_pem_slice(&file(&files.key)?).map_err(|_| TlsError::NoKey {
        path: files.key.clone(),
    })?;
    let unusable = |source| TlsError::Unusable {
        cert: files.cert.clone(),
        key: files.key.clone(),
        source,
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    // Both transports are upgrades of HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn file(path: &Path) -> Result<Vec<u8>, TlsError> {
    let cannot = |source| TlsError::Read {
        path: path.to_owned(),
        source,
    };
    let meta = std::fs::metadata(path).map_err(cannot)?;
    if meta.len() > MAX_FILE {
        return Err(TlsError::Large {
            path: path.to_owned(),
        });
    }
    std::fs::read(path).map_err(cannot)
}
