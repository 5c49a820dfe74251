//! Credentials: that the right host gets them and, above all, that no other does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use holdfast_registry::{Auth, Client, Error, Kind, Resolved};

use crate::server::{Image, Reply, Server, client, platform, put_hosts};

/// The base64 of `user:s3cret`.
const BASIC: &str = "Basic dXNlcjpzM2NyZXQ=";

fn user() -> Auth {
    Auth {
        username: "user".into(),
        password: "s3cret".into(),
        ..Auth::default()
    }
}

async fn resolve(
    client: &Client,
    server: &Server,
    rest: &str,
    auth: Option<&Auth>,
) -> Result<Resolved, Error> {
    client
        .pull(&server.reference(rest), auth)
        .await?
        .resolve(&platform())
        .await
}

/// A token service, and a registry that wants its tokens. The service signs tokens with what it was sent.
async fn pair(
    service: impl Fn(&crate::server::Seen) -> Reply + Send + Sync + 'static,
    good: &'static str,
) -> (Server, Server) {
    let service = Server::start(service).await;
    let realm = format!("{}/token?x=y", service.url());
    let image = Image::new(1000);
    let registry = Server::start(move |seen| {
        if seen.header("authorization") == format!("Bearer {good}") {
            return image.serve(seen);
        }
        Reply::challenge(&format!(
            r#"Bearer realm="{realm}",service="the registry",scope="repository:team/app:pull,push""#
        ))
    })
    .await;
    (service, registry)
}

#[tokio::test]
async fn anonymous_token() {
    let (service, registry) = pair(
        |_| Reply::new(200, r#"{"token":"anon","expires_in":300}"#),
        "anon",
    )
    .await;
    let client = client(None);
    let pull = client
        .pull(&registry.reference("team/app:1"), None)
        .await
        .unwrap();
    let resolved = pull.resolve(&platform()).await.unwrap();
    let layers = (0..4).map(|_| pull.blob(&resolved.manifest.layers[0]));
    futures::future::try_join_all(layers).await.unwrap();
    let seen = service.seen();
    assert_eq!(seen.len(), 1, "one token serves the whole pull");
    assert_eq!(
        seen[0].query,
        "x=y&service=the%20registry&scope=repository%3Ateam%2Fapp%3Apull"
    );
    assert_eq!(seen[0].header("authorization"), "");
    resolve(&client, &registry, "team/app:1", None).await.unwrap();
    assert_eq!(service.seen().len(), 1, "and the next pull");
    resolve(&client, &registry, "team/app:1", Some(&user()))
        .await
        .unwrap();
    assert_eq!(service.seen().len(), 2, "but not one with another credential");
}

#[tokio::test]
async fn password_for_a_token_by_get() {
    let (service, registry) = pair(
        |seen| {
            Reply::new(
                if seen.header("authorization") == BASIC {
                    200
                } else {
                    401
                },
                r#"{"access_token":"t"}"#,
            )
        },
        "t",
    )
    .await;
    resolve(&client(None), &registry, "team/app:1", Some(&user()))
        .await
        .unwrap();
    let seen = service.seen();
    assert!(seen[0].query.ends_with("&account=user"), "{}", seen[0].query);
    assert!(
        registry.seen().iter().all(|s| s.header("authorization") != BASIC),
        "the registry sees tokens only"
    );
}

#[tokio::test]
async fn password_for_a_token_by_post() {
    let (service, registry) = pair(
        |seen| {
            if seen.method == "POST" {
                Reply::new(200, r#"{"token":"t"}"#)
            } else {
                Reply::new(405, "")
            }
        },
        "t",
    )
    .await;
    resolve(&client(None), &registry, "team/app:1", Some(&user()))
        .await
        .unwrap();
    let body = &service.seen()[1].body;
    assert!(
        body.contains("grant_type=password&username=user&password=s3cret&client_id=holdfast"),
        "{body}"
    );
}

#[tokio::test]
async fn identity_token() {
    let (service, registry) = pair(
        |seen| {
            if seen.method == "POST" {
                Reply::new(200, r#"{"access_token":"t"}"#)
            } else {
                Reply::new(500, "")
            }
        },
        "t",
    )
    .await;
    let auth = Auth {
        identity_token: "id+/=".into(),
        ..Auth::default()
    };
    resolve(&client(None), &registry, "team/app:1", Some(&auth))
        .await
        .unwrap();
    let seen = &service.seen()[0];
    assert_eq!(
        seen.body,
        "service=the%20registry&scope=repository%3Ateam%2Fapp%3Apull&grant_type=refresh_token&refresh_token=id%2B%2F%3D&client_id=holdfast"
    );
    assert_eq!(seen.header("content-type"), "application/x-www-form-urlencoded");
}

#[tokio::test]
async fn registry_token_is_sent_as_it_is() {
    let (service, registry) = pair(|_| Reply::new(500, ""), "mine").await;
    let auth = Auth {
        registry_token: "mine".into(),
        ..Auth::default()
    };
    resolve(&client(None), &registry, "team/app:1", Some(&auth))
        .await
        .unwrap();
    assert!(service.seen().is_empty());
}

#[tokio::test]
async fn basic() {
    let image = Image::new(10);
    let registry = Server::start(move |seen| {
        if seen.header("authorization") == BASIC {
            image.serve(seen)
        } else {
            Reply::challenge("Basic realm=\"x\"")
        }
    })
    .await;
    let client = client(None);
    resolve(&client, &registry, "team/app:1", Some(&user()))
        .await
        .unwrap();
    assert_eq!(
        registry.seen()[0].header("authorization"),
        "",
        "nothing before it is asked for"
    );
    let auth = Auth {
        auth: "dXNlcjpzM2NyZXQ=".into(),
        ..Auth::default()
    };
    resolve(&client, &registry, "team/app:1", Some(&auth))
        .await
        .unwrap();
    // Never shared: the right credential was just used for the same path, and another does not profit.
    for other in [
        None,
        Some(Auth {
            password: "wrong".into(),
            ..user()
        }),
    ] {
        let error = resolve(&client, &registry, "team/app:1", other.as_ref())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
        assert_eq!(
            error.to_string(),
            format!(
                "pull {}/team/app:1: 401 unauthorized from {}: UNAUTHORIZED authentication required",
                registry.address,
                registry.url()
            )
        );
    }
}

#[tokio::test]
async fn a_refusing_or_broken_token_service_is_named() {
    for (reply, kind, part) in [
        (
            (
                401,
                r#"{"errors":[{"code":"DENIED","message":"wrong password s3cret"}]}"#,
            ),
            Kind::Denied,
            "401 unauthorized",
        ),
        ((200, "not json s3cret"), Kind::Denied, "not the JSON of a token"),
        ((200, r#"{"token":"a b"}"#), Kind::Denied, "no usable token"),
        ((200, "{}"), Kind::Denied, "no usable token"),
    ] {
        let (service, registry) = pair(move |_| Reply::new(reply.0, reply.1), "t").await;
        let error = resolve(&client(None), &registry, "team/app:1", Some(&user()))
            .await
            .unwrap_err();
        let text = format!("{error} {error:?}");
        assert_eq!(error.kind(), kind, "{text}");
        assert!(text.contains(part) && text.contains(&service.url()), "{text}");
        assert!(!text.contains("s3cret") && !text.contains("dXNl"), "{text}");
    }
}

/// The words that a refusing token service has for `auth`, where the registry names it as its own.
async fn quoted(auth: Option<&Auth>, reply: impl Fn() -> Reply + Send + Sync + 'static) -> bool {
    let (service, registry) = pair(move |_| reply(), "t").await;
    let error = resolve(&client(None), &registry, "team/app:1", auth)
        .await
        .unwrap_err();
    let text = format!("{error} {error:?}");
    assert!(text.contains(&service.url()), "{text}");
    text.contains("inner words")
}

#[tokio::test]
async fn words_of_a_service_that_any_registry_may_name_are_not_quoted() {
    let refuse = || Reply::new(403, "inner words");
    assert!(!quoted(None, refuse).await, "nobody trusts it with anything");
    assert!(quoted(Some(&user()), refuse).await, "it has the user's password");
    let inner = Server::start(move |_| refuse()).await;
    let url = inner.url();
    assert!(
        !quoted(Some(&user()), move || Reply::redirect(&url)).await,
        "it only points at who speaks"
    );
    assert_eq!(inner.seen().len(), 1);
    // The registry's own service says what it likes, as the registry does.
    let address = Arc::new(std::sync::OnceLock::<String>::new());
    let own = address.clone();
    let registry = Server::start(move |seen| match own.get() {
        Some(url) if seen.path == "/v2/team/app/manifests/1" => {
            Reply::challenge(&format!("Bearer realm=\"{url}/token\""))
        }
        _ => Reply::new(403, "inner words"),
    })
    .await;
    address.set(registry.url()).unwrap();
    let error = resolve(&client(None), &registry, "team/app:1", None)
        .await
        .unwrap_err();
    assert!(error.to_string().ends_with(": inner words"), "{error}");
}

#[tokio::test]
async fn an_expired_token_is_renewed() {
    let current = Arc::new(AtomicUsize::new(0));
    let issued = current.clone();
    let service = Server::start(move |_| {
        Reply::new(
            200,
            format!(
                r#"{{"token":"t{}","expires_in":3000}}"#,
                issued.load(Ordering::SeqCst)
            ),
        )
    })
    .await;
    let (realm, now, image) = (service.url(), current.clone(), Image::new(10));
    let registry = Server::start(move |seen| {
        if seen.header("authorization") == format!("Bearer t{}", now.load(Ordering::SeqCst)) {
            image.serve(seen)
        } else {
            Reply::challenge(&format!("Bearer realm=\"{realm}\""))
        }
    })
    .await;
    let client = client(None);
    resolve(&client, &registry, "team/app:1", None).await.unwrap();
    current.fetch_add(1, Ordering::SeqCst);
    resolve(&client, &registry, "team/app:1", None).await.unwrap();
    assert_eq!(service.seen().len(), 2);
    assert_eq!(
        service.seen()[0].query,
        "scope=repository%3Ateam%2Fapp%3Apull",
        "the default scope"
    );
}

#[tokio::test]
async fn a_registry_that_never_accepts_its_token_is_asked_twice() {
    let (service, registry) = pair(|_| Reply::new(200, r#"{"token":"never"}"#), "good").await;
    let error = resolve(&client(None), &registry, "team/app:1", Some(&user()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert_eq!((service.seen().len(), registry.seen().len()), (1, 2));
}

#[tokio::test]
async fn redirects_drop_every_credential() {
    let image = Image::new(1000);
    let cdn_image = image.clone();
    let cdn = Server::start(move |seen| cdn_image.serve(seen)).await;
    let (layer, target) = (image.clone(), cdn.url());
    let registry = Server::start(move |seen| {
        if seen.header("authorization") != BASIC {
            return Reply::challenge("Basic realm=x");
        }
        if seen.path.contains(layer.layer_digest.as_str()) {
            Reply::redirect(&format!("{target}{}?signature=abc", seen.path))
        } else {
            layer.serve(seen)
        }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    put_hosts(
        dir.path(),
        &registry.address.to_string(),
        &format!(
            "server = \"{}\"\n[header]\nx-own = \"secret too\"",
            registry.url()
        ),
    );
    let pull = client(Some(dir.path()))
        .pull(&registry.reference("team/app:1"), Some(&user()))
        .await
        .unwrap();
    let resolved = pull.resolve(&platform()).await.unwrap();
    let mut blob = pull.blob(&resolved.manifest.layers[0]).await.unwrap();
    while blob.chunk().await.unwrap().is_some() {}
    let seen = cdn.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].query, "signature=abc");
    for name in ["authorization", "x-own", "cookie"] {
        assert_eq!(seen[0].header(name), "", "{name}");
    }
    assert!(registry.seen().iter().all(|s| s.header("x-own") == "secret too"));
}

#[tokio::test]
async fn a_redirect_target_that_asks_gets_nothing() {
    let thief = Server::start(|_| Reply::challenge("Basic realm=x")).await;
    let target = format!("{}/?signature=t0psecret", thief.url());
    let registry = Server::start(move |seen| {
        if seen.header("authorization") == BASIC {
            Reply::redirect(&target)
        } else {
            Reply::challenge("Basic realm=x")
        }
    })
    .await;
    let error = resolve(&client(None), &registry, "team/app:1", Some(&user()))
        .await
        .unwrap_err();
    assert!(thief.seen().iter().all(|s| s.header("authorization").is_empty()));
    let text = format!("{error} {error:?}");
    assert!(
        text.contains("401 unauthorized")
            && !text.contains("t0psecret")
            && !text.contains("authentication required"),
        "{text}"
    );
}

#[tokio::test]
async fn redirects_are_bounded() {
    let registry = Server::start(|_| Reply::redirect("/again")).await;
    let error = resolve(&client(None), &registry, "team/app:1", None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("there are more than 5"), "{error}");
    assert_eq!(registry.seen().len(), 6);
    for location in ["file:///etc/passwd", "http://", "http://u:p@127.0.0.1/"] {
        let registry = Server::start(move |_| Reply::redirect(location)).await;
        let error = resolve(&client(None), &registry, "team/app:1", None)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("redirect from"), "{error}");
    }
}

#[tokio::test]
async fn mirrors_see_no_credential() {
    let mirror = Server::start(|_| Reply::challenge("Basic realm=x")).await;
    let image = Image::new(10);
    let registry = Server::start(move |seen| {
        if seen.header("authorization") == BASIC {
            image.serve(seen)
        } else {
            Reply::challenge("Basic realm=x")
        }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    put_hosts(
        dir.path(),
        &registry.address.to_string(),
        &format!("[host.\"{}\"]\n[host.\"{}\"]", mirror.url(), registry.url()),
    );
    let client = client(Some(dir.path()));
    resolve(&client, &registry, "team/app:1", Some(&user()))
        .await
        .unwrap();
    assert_eq!(mirror.seen().len(), 1);
    assert!(mirror.seen().iter().all(|s| s.header("authorization").is_empty()));
    // A credential that names the mirror is the mirror's, and the registry's no more.
    let auth = Auth {
        server_address: mirror.address.to_string(),
        ..user()
    };
    let error = resolve(&client, &registry, "team/app:1", Some(&auth))
        .await
        .unwrap_err();
    assert!(mirror.seen().iter().any(|s| s.header("authorization") == BASIC));
    let text = error.to_string();
    assert!(
        text.contains(&mirror.url()) && text.contains(&registry.url()),
        "{text}"
    );
}

#[tokio::test]
async fn a_credential_for_another_host_or_path_stays_here() {
    let registry = Server::start(|_| Reply::challenge("Basic realm=x")).await;
    for address in ["other.example".to_owned(), format!("{}/other", registry.address)] {
        let auth = Auth {
            server_address: address,
            ..user()
        };
        resolve(&client(None), &registry, "team/app:1", Some(&auth))
            .await
            .unwrap_err();
    }
    assert!(
        registry
            .seen()
            .iter()
            .all(|s| s.header("authorization").is_empty())
    );
}

#[tokio::test]
async fn token_services_on_strange_urls_are_refused() {
    for realm in [
        "ftp://x/",
        "/token",
        "http://u:p@x/",
        "",
        "http://elsewhere.example/token",
    ] {
        let registry =
            Server::start(move |_| Reply::challenge(&format!("Bearer realm=\"{realm}\",service=s"))).await;
        let error = resolve(&client(None), &registry, "team/app:1", Some(&user()))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), Kind::Denied, "{realm}: {error}");
    }
}
