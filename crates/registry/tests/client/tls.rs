//! TLS: authorities, client certificates, unverified hosts, downgrades.

use std::path::Path;
use std::sync::Arc;

use holdfast_registry::{Error, Reference, Resolved};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;

use crate::server::{Image, Reply, Server, client, platform, put, put_hosts};

struct Authority(CertifiedIssuer<'static, KeyPair>);

struct Leaf {
    cert: rcgen::Certificate,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn leaf(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> Leaf {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        Leaf {
            cert: params.signed_by(&key, &self.0).unwrap(),
            key,
        }
    }

    fn server(&self, clients: Option<&Authority>) -> Arc<rustls::ServerConfig> {
        let leaf = self.leaf("127.0.0.1", ExtendedKeyUsagePurpose::ServerAuth);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                roots.add(authority.0.der().clone()).unwrap();
                builder.with_client_cert_verifier(
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .unwrap(),
                )
            }
        };
        let chain: Vec<CertificateDer<'static>> = vec![leaf.cert.der().clone()];
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf.key.serialize_der()));
        Arc::new(builder.with_single_cert(chain, key).unwrap())
    }
}

async fn start(config: Arc<rustls::ServerConfig>) -> Server {
    let image = Image::new(10);
    Server::start_with(Some(config), move |seen| image.serve(seen)).await
}

async fn resolve(dir: &Path, server: &Server) -> Result<Resolved, Error> {
    let reference = Reference::parse(&format!("{}/team/app:1", server.address)).unwrap();
    client(Some(dir))
        .pull(&reference, None)
        .await?
        .resolve(&platform())
        .await
}

fn hosts(dir: &Path, server: &Server, settings: &str) {
    put_hosts(
        dir,
        &server.address.to_string(),
        &format!("server = \"https://{}\"\n{settings}", server.address),
    );
}

#[tokio::test]
async fn an_authority_of_our_own() {
    let authority = Authority::new();
    let server = start(authority.server(None)).await;
    let dir = tempfile::tempdir().unwrap();
    hosts(dir.path(), &server, "");
    let error = resolve(dir.path(), &server).await.unwrap_err().to_string();
    assert!(
        error.contains("UnknownIssuer") || error.contains("no certificate authority"),
        "{error}"
    );
    put(&dir.path().join("ca.pem"), &authority.0.pem());
    hosts(dir.path(), &server, "ca = \"../ca.pem\"");
    resolve(dir.path(), &server).await.unwrap();
    put(&dir.path().join("ca.pem"), &Authority::new().0.pem());
    hosts(dir.path(), &server, "ca = [\"../ca.pem\"]");
    let error = resolve(dir.path(), &server).await.unwrap_err().to_string();
    assert!(
        error.contains("TLS with 127.0.0.1:") && error.contains("see ca in hosts.toml"),
        "{error}"
    );
    hosts(dir.path(), &server, "skip_verify = true");
    resolve(dir.path(), &server).await.unwrap();
}

#[tokio::test]
async fn docker_s_layout_of_the_directory() {
    let authority = Authority::new();
    let server = start(authority.server(None)).await;
    let dir = tempfile::tempdir().unwrap();
    let host = dir.path().join(server.address.to_string());
    std::fs::create_dir(&host).unwrap();
    put(&host.join("ca.crt"), &authority.0.pem());
    resolve(dir.path(), &server).await.unwrap();
}

#[tokio::test]
async fn client_certificates() {
    let (authority, clients) = (Authority::new(), Authority::new());
    let server = start(authority.server(Some(&clients))).await;
    let dir = tempfile::tempdir().unwrap();
    put(&dir.path().join("ca.pem"), &authority.0.pem());
    let leaf = clients.leaf("node", ExtendedKeyUsagePurpose::ClientAuth);
    put(&dir.path().join("c.pem"), &leaf.cert.pem());
    put(&dir.path().join("k.pem"), &leaf.key.serialize_pem());
    put(
        &dir.path().join("both.pem"),
        &format!("{}{}", leaf.cert.pem(), leaf.key.serialize_pem()),
    );
    hosts(dir.path(), &server, "ca = \"../ca.pem\"");
    resolve(dir.path(), &server).await.unwrap_err();
    for client in [
        "[[\"../c.pem\", \"../k.pem\"]]",
        "\"../both.pem\"",
        "[\"../both.pem\"]",
    ] {
        hosts(
            dir.path(),
            &server,
            &format!("ca = \"../ca.pem\"\nclient = {client}"),
        );
        resolve(dir.path(), &server).await.unwrap();
    }
    hosts(dir.path(), &server, "client = \"../c.pem\"");
    let error = resolve(dir.path(), &server).await.unwrap_err().to_string();
    assert!(error.contains("c.pem has no private key"), "{error}");
}

#[tokio::test]
async fn no_step_down_to_http() {
    let authority = Authority::new();
    let plain = Server::start(|_| Reply::new(200, "{}")).await;
    let target = plain.url();
    let server = Server::start_with(Some(authority.server(None)), move |_| Reply::redirect(&target)).await;
    let dir = tempfile::tempdir().unwrap();
    hosts(dir.path(), &server, "skip_verify = true");
    let error = resolve(dir.path(), &server).await.unwrap_err().to_string();
    assert!(error.contains("is a step from https to http"), "{error}");
    assert!(plain.seen().is_empty());
}

#[tokio::test]
async fn a_client_certificate_is_not_shown_to_redirect_targets() {
    let (authority, clients) = (Authority::new(), Authority::new());
    // The target demands a certificate: were it sent, the redirect would succeed.
    let target = start(authority.server(Some(&clients))).await;
    let location = format!("https://{}/v2/team/app/manifests/1", target.address);
    let server = Server::start_with(Some(authority.server(Some(&clients))), move |_| {
        Reply::redirect(&location)
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    put(&dir.path().join("ca.pem"), &authority.0.pem());
    let leaf = clients.leaf("node", ExtendedKeyUsagePurpose::ClientAuth);
    put(
        &dir.path().join("both.pem"),
        &format!("{}{}", leaf.cert.pem(), leaf.key.serialize_pem()),
    );
    hosts(
        dir.path(),
        &server,
        "ca = \"../ca.pem\"\nclient = \"../both.pem\"",
    );
    let error = resolve(dir.path(), &server).await.unwrap_err().to_string();
    assert_eq!(server.seen().len(), 1, "{error}");
    assert!(target.seen().is_empty());
}

#[tokio::test]
async fn plain_http_where_https_was_expected_is_explained() {
    let plain = Server::start(|_| Reply::new(200, "{}")).await;
    let dir = tempfile::tempdir().unwrap();
    hosts(dir.path(), &plain, "");
    let error = resolve(dir.path(), &plain).await.unwrap_err().to_string();
    assert!(error.contains("does it speak plain http?"), "{error}");
}
