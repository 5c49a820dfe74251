//! Runtime handlers: which there are, what their programs can do, and what they leave when nobody else takes it away.
//!
//! A program is looked at when the daemon starts, when its file changes, and when a pod asks for it while it is broken;
//! Status answers from what was learnt then. A handler whose program is missing or is no OCI runtime is not shown, and
//! pods that ask for it are told why.

mod bundles;
mod probe;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::Duration;

use holdfast_model::{ContainerSpec, Invalid, OciRuntime, SandboxSpec};
use oci_spec::runtime::{Hooks, Spec};
use tracing::{info, warn};

pub(crate) use bundles::{Bundles, prepare, release, reserve, sweep, sweep_strays};
pub use probe::Found;

use crate::config::{Handler, OciHandler};
use crate::shared::Shared;
use crate::{Config, Error, hooks};

/// How often it is seen whether a program has changed.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// A runtime handler as Status shows it.
#[derive(Debug, Clone)]
pub struct HandlerStatus {
    pub name: String,
    /// `None`: the built-in launcher.
    pub program: Option<PathBuf>,
    pub found: Result<Found, String>,
}

/// Those that are configured, in order, the default's (which has no name) first.
pub(crate) struct Handlers(Vec<Known>);

struct Known {
    config: Handler,
    found: RwLock<Looked>,
}

#[derive(Clone)]
struct Looked {
    file: Option<probe::Stamp>,
    found: Arc<Result<Found, String>>,
}

impl Handlers {
    pub(crate) async fn open(config: &Config) -> Self {
        let mut all = Vec::with_capacity(config.handlers.len());
        for handler in &config.handlers {
            let looked = match &handler.runtime {
                None => Looked {
                    file: None,
                    found: Arc::new(Ok(Found::built_in())),
                },
                Some(runtime) => look(&handler.name, runtime).await,
            };
            all.push(Known {
                config: handler.clone(),
                found: RwLock::new(looked),
            });
        }
        Self(all)
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|known| known.config.name.clone()).collect()
    }

    pub(crate) fn statuses(&self) -> Vec<HandlerStatus> {
        self.0
            .iter()
            .map(|known| HandlerStatus {
                name: known.config.name.clone(),
                program: known
                    .config
                    .runtime
                    .as_ref()
                    .map(|runtime| runtime.program.clone()),
                found: known.looked().found.as_ref().clone(),
            })
            .collect()
    }

    fn known(&self, name: &str) -> Result<&Known, Error> {
        let found = self.0.iter().find(|known| known.config.name == name);
        found.ok_or_else(|| Error::UnknownHandler {
            handler: name.chars().take(200).collect(),
            known: self.names(),
        })
    }

    /// Whether there is such a handler at all.
    pub(crate) fn check_name(&self, name: &str) -> Result<(), Error> {
        self.known(name).map(drop)
    }

    /// What a pod of this handler runs with, if it can be had and can do what the pod asks for.
    pub(crate) async fn for_pod(&self, name: &str, spec: &SandboxSpec) -> Result<Option<OciRuntime>, Error> {
        let known = self.known(name)?;
        let Some(runtime) = &known.config.runtime else {
            return Ok(None);
        };
        if known.looked().found.is_err() {
            // It may have been installed meanwhile.
            known.set(look(name, runtime).await);
        }
        if let Err(reason) = known.looked().found.as_ref() {
            return Err(Error::BrokenHandler {
                handler: name.to_owned(),
                reason: reason.clone(),
            });
        }
        if spec.security.namespaces.user_maps().is_some() {
            let reason = format!("runtime handler {name} has no user namespaces");
            return Err(
                Invalid::new("linux.security_context.namespace_options.userns_options", reason).into(),
            );
        }
        Ok(Some(OciRuntime {
            program: runtime.program.clone(),
            root: runtime.root.clone(),
            options: runtime.options.clone(),
        }))
    }

    /// What a container may not ask of its pod's handler.
    pub(crate) fn check_container(&self, name: &str, spec: &ContainerSpec) -> Result<(), Error> {
        let asked = &spec.image.runtime_handler;
        if !asked.is_empty() && asked != name {
            let reason = format!("{asked:?} is not the pod's, which is {name:?}");
            return Err(Invalid::new("image.runtime_handler", reason).into());
        }
        // One that was taken out of the configuration goes on with the pods that it has.
        let Ok(known) = self.known(name) else {
            return Ok(());
        };
        if known.config.runtime.is_none() {
            return Ok(());
        }
        let can = known
            .looked()
            .found
            .as_ref()
            .as_ref()
            .is_ok_and(|found| found.recursive_read_only);
        match spec.mounts.iter().position(|mount| mount.recursive_read_only) {
            Some(n) if !can => {
                let reason = format!(
                    "runtime handler {name} does not say that it can make mounts read-only to the bottom"
                );
                Err(Invalid::new(format!("mounts[{n}].recursive_read_only"), reason).into())
            }
            _ => Ok(()),
        }
    }

    /// Adds the hooks that every container of this handler gets.
    pub(crate) fn adjust(&self, name: &str, spec: &mut Spec) {
        let known = self.0.iter().find(|known| known.config.name == name);
        let hooks = known
            .and_then(|known| known.config.runtime.as_ref())
            .and_then(|runtime| runtime.hooks.clone());
        if let Some(hooks) = hooks {
            let all = join(spec.hooks().clone(), &hooks);
            spec.set_hooks(Some(all));
        }
    }

    async fn refresh(&self) {
        for known in &self.0 {
            let Some(runtime) = &known.config.runtime else {
                continue;
            };
            let before = known.looked();
            if probe::stamp(&runtime.program).await == before.file && before.found.is_ok() {
                continue;
            }
            let now = look(&known.config.name, runtime).await;
            if now.found.is_ok() && before.found.is_err() {
                info!(handler = known.config.name, "can be used now");
            }
            known.set(now);
        }
    }
}

impl Known {
    fn looked(&self) -> Looked {
        self.found.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, looked: Looked) {
        *self.found.write().unwrap_or_else(PoisonError::into_inner) = looked;
    }
}

async fn look(name: &str, runtime: &OciHandler) -> Looked {
    let file = probe::stamp(&runtime.program).await;
    let found = probe::probe(&runtime.program).await;
    if let Err(reason) = &found {
        warn!(handler = name, "cannot be used: {reason}");
    }
    Looked {
        file,
        found: Arc::new(found),
    }
}

/// Looks at the programs for as long as the engine lives.
pub(crate) fn watch(shared: &Arc<Shared>) {
    if shared
        .config
        .handlers
        .iter()
        .all(|handler| handler.runtime.is_none())
    {
        return;
    }
    let engine: Weak<Shared> = Arc::downgrade(shared);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(shared) = engine.upgrade() else { return };
            shared.handlers.refresh().await;
        }
    });
}

/// Those that the spec has run first.
fn join(first: Option<Hooks>, then: &Hooks) -> Hooks {
    let (mut all, mut then) = (first.unwrap_or_default(), then.clone());
    for point in hooks::POINTS {
        let more = hooks::at(&mut then, point)
            .and_then(Option::take)
            .unwrap_or_default();
        if let Some(list) = hooks::at(&mut all, point).filter(|_| !more.is_empty()) {
            list.get_or_insert_with(Vec::new).extend(more);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(text: &str) -> Hooks {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn hooks_are_put_one_after_the_other() {
        let of_spec = hooks(r#"{"poststop":[{"path":"/a"}]}"#);
        let of_handler = hooks(r#"{"poststop":[{"path":"/b"}],"createRuntime":[{"path":"/c"}]}"#);
        let all = join(Some(of_spec), &of_handler);
        let paths: Vec<String> = all
            .poststop()
            .iter()
            .flatten()
            .map(|hook| hook.path().display().to_string())
            .collect();
        assert_eq!(paths, ["/a", "/b"]);
        assert_eq!(all.create_runtime().iter().flatten().count(), 1);
        assert!(all.poststart().is_none());
    }

    #[tokio::test]
    async fn a_handler_that_is_not_there_or_cannot_be_used() {
        let mut config = Config::new("/r", "/s", "/h");
        config.handlers.push(Handler {
            name: "gone".into(),
            runtime: Some(OciHandler {
                program: "/nowhere/runc".into(),
                root: "/s/handlers/gone".into(),
                options: Vec::new(),
                hooks: None,
            }),
        });
        let handlers = Handlers::open(&config).await;
        let spec = SandboxSpec::default();
        let unknown = handlers.for_pod("other", &spec).await.unwrap_err();
        assert_eq!(unknown.kind(), crate::Kind::Invalid);
        let text = unknown.to_string();
        assert!(
            text.contains("other") && text.contains("holdfast") && text.contains("gone"),
            "{text}"
        );
        let broken = handlers.for_pod("gone", &spec).await.unwrap_err();
        assert_eq!(broken.kind(), crate::Kind::Precondition);
        assert!(broken.to_string().contains("/nowhere/runc"), "{broken}");
        assert_eq!(handlers.for_pod("", &spec).await.unwrap(), None);
        let statuses = handlers.statuses();
        assert!(statuses[0].name.is_empty() && statuses[0].found.is_ok());
        assert!(statuses[2].found.is_err());
    }

    #[tokio::test]
    async fn an_image_for_another_handler_is_refused() {
        let handlers = Handlers::open(&Config::new("/r", "/s", "/h")).await;
        let mut spec = ContainerSpec::default();
        assert!(handlers.check_container("", &spec).is_ok());
        spec.image.runtime_handler = "runc".into();
        let refused = handlers.check_container("holdfast", &spec).unwrap_err();
        assert!(refused.to_string().contains("image.runtime_handler"), "{refused}");
        assert!(
            handlers.check_container("runc", &spec).is_ok(),
            "of a pod from before"
        );
    }
}
