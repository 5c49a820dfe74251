//! Against a manager of our own at the other end of a socket, which answers as systemd does when all is well, and as it
//! does when it is not. systemd itself is asked in the virtual machine: `hack/vm/service`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use holdfast_cgroups::systemd::{Property, Value};
use zbus::object_server::SignalEmitter;
use zbus::zvariant::{ObjectPath, OwnedObjectPath, OwnedValue};

use super::*;
use crate::Kind;

const SHORT: Duration = Duration::from_millis(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    /// Takes the call and says nothing.
    Hung,
    /// Answers, but the job never ends.
    Stuck,
    /// The job ends, otherwise.
    Failing,
}

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop.systemd1")]
enum Failure {
    #[zbus(error)]
    ZBus(zbus::Error),
    UnitExists(String),
    NoSuchUnit(String),
    BadProperty(String),
}

#[derive(Clone)]
pub(crate) struct Manager {
    mood: Mood,
    pub units: Arc<Mutex<BTreeMap<String, BTreeMap<String, String>>>>,
    version: Arc<Mutex<&'static str>>,
    /// What it does to the unit's cgroup when a property is set.
    pub rewrites: Arc<Mutex<Option<Rewrite>>>,
}

type Rewrite = Box<dyn Fn() + Send>;
type Properties = Vec<(String, OwnedValue)>;

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    async fn start_transient_unit(
        &self,
        name: String,
        mode: String,
        properties: Properties,
        auxiliary: Vec<(String, Properties)>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Failure> {
        assert_eq!((mode.as_str(), auxiliary.len()), ("fail", 0));
        if self.units.lock().unwrap().contains_key(&name) {
            return Err(Failure::UnitExists(format!("Unit {name} was already loaded")));
        }
        let mut known = BTreeMap::new();
        for (key, value) in properties {
            if key == "Nonsense" {
                return Err(Failure::BadProperty("Cannot set property Nonsense".into()));
            }
            known.insert(key, format!("{:?}", zbus::zvariant::Value::from(value)));
        }
        self.units.lock().unwrap().insert(name.clone(), known);
        self.job(&name, &emitter).await
    }

    async fn set_unit_properties(
        &self,
        name: String,
        runtime: bool,
        properties: Properties,
    ) -> Result<(), Failure> {
        assert!(runtime);
        let mut units = self.units.lock().unwrap();
        let unit = units
            .get_mut(&name)
            .ok_or_else(|| Failure::NoSuchUnit(name.clone()))?;
        for (key, value) in properties {
            unit.insert(key, format!("{:?}", zbus::zvariant::Value::from(value)));
        }
        if let Some(rewrite) = &*self.rewrites.lock().unwrap() {
            rewrite();
        }
        Ok(())
    }

    async fn stop_unit(
        &self,
        name: String,
        _mode: String,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Failure> {
        if self.units.lock().unwrap().remove(&name).is_none() {
            return Err(Failure::NoSuchUnit(format!("Unit {name} not loaded.")));
        }
        self.job(&name, &emitter).await
    }

    #[zbus(property)]
    async fn version(&self) -> String {
        if self.mood == Mood::Hung {
            std::future::pending::<()>().await;
        }
        (*self.version.lock().unwrap()).into()
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: ObjectPath<'_>,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

impl Manager {
    /// The end of a job is told before the call is answered, as can happen.
    async fn job(&self, unit: &str, emitter: &SignalEmitter<'_>) -> Result<OwnedObjectPath, Failure> {
        let job = ObjectPath::try_from("/org/freedesktop/systemd1/job/1").unwrap();
        match self.mood {
            Mood::Hung => std::future::pending().await,
            Mood::Stuck => {}
            Mood::Well => Self::job_removed(emitter, 1, job.clone(), unit, "done").await?,
            Mood::Failing => Self::job_removed(emitter, 1, job.clone(), unit, "failed").await?,
        }
        Ok(job.into())
    }
}

pub(crate) struct Lab {
    pub systemd: Systemd,
    pub manager: Manager,
    /// Dropped, the manager hangs up.
    connections: Arc<Mutex<Vec<zbus::Connection>>>,
    _dir: tempfile::TempDir,
}

pub(crate) fn lab(mood: Mood) -> Lab {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bus");
    let manager = Manager {
        mood,
        units: Arc::default(),
        version: Arc::new(Mutex::new("257.9")),
        rewrites: Arc::default(),
    };
    let connections = Arc::new(Mutex::new(Vec::new()));
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let (served, kept) = (manager.clone(), connections.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let built = zbus::connection::Builder::unix_stream(stream)
                .server(zbus::Guid::generate())
                .unwrap()
                .p2p()
                .serve_at("/org/freedesktop/systemd1", served.clone())
                .unwrap()
                .build()
                .await;
            kept.lock().unwrap().push(built.unwrap());
        }
    });
    let mut systemd = Systemd::new(Address::Peer(path));
    systemd.limits = Limits {
        call: SHORT,
        job: SHORT,
    };
    Lab {
        systemd,
        manager,
        connections,
        _dir: dir,
    }
}

fn scope(unit: &str) -> Scope<'_> {
    let mut properties = vec![
        Property {
            name: "AllowedCPUs",
            value: Value::Bytes(vec![3]),
        },
        Property {
            name: "IOReadBandwidthMax",
            value: Value::Rates(vec![("/dev/x".into(), 5)]),
        },
        unlimited_tasks(),
    ];
    common(&mut properties);
    Scope {
        unit,
        slice: "a-b.slice",
        description: "holdfast /x: pod".into(),
        properties,
        oom_group: true,
    }
}

#[tokio::test]
async fn an_old_systemd_is_not_told_what_it_would_refuse() {
    for (version, told) in [("252.38-1~deb12u1", false), ("253", true)] {
        let lab = lab(Mood::Well);
        *lab.manager.version.lock().unwrap() = version;
        let zswap = Property {
            name: "MemoryZSwapMax",
            value: Value::Number(7),
        };
        let mut scope = scope("holdfast-1.scope");
        scope.properties.push(zswap.clone());
        lab.systemd.start_scope(scope, 42).await.unwrap();
        let known = |name| lab.manager.units.lock().unwrap()["holdfast-1.scope"].contains_key(name);
        assert_eq!(known("MemoryZSwapMax"), told, "{version}");
        assert_eq!(known("OOMPolicy"), told, "{version}");
        lab.manager
            .units
            .lock()
            .unwrap()
            .get_mut("holdfast-1.scope")
            .unwrap()
            .clear();
        lab.systemd
            .set_properties("holdfast-1.scope", &[zswap])
            .await
            .unwrap();
        assert_eq!(known("MemoryZSwapMax"), told, "{version}");
    }
}

#[test]
fn versions_have_a_first_number() {
    for (text, number) in [("252.38-1~deb12u1", 252), ("v257", 257), ("systemd", 0), ("", 0)] {
        assert_eq!(major(text), number, "{text}");
    }
}

#[test]
fn what_the_bus_says_of_a_systemd_that_is_gone_is_no_answer_of_systemd() {
    for name in [
        "NoReply",
        "ServiceUnknown",
        "NameHasNoOwner",
        "TimedOut",
        "Spawn.ServiceNotFound",
    ] {
        assert!(
            bus::of_the_bus(&format!("org.freedesktop.DBus.Error.{name}")),
            "{name}"
        );
    }
    for name in [
        "org.freedesktop.DBus.Error.InvalidArgs",
        "org.freedesktop.DBus.Error.AccessDenied",
        "org.freedesktop.systemd1.NoSuchUnit",
    ] {
        assert!(!bus::of_the_bus(name), "{name}");
    }
}

#[tokio::test]
async fn a_scope_is_made_changed_and_stopped() {
    let lab = lab(Mood::Well);
    lab.systemd
        .start_scope(scope("holdfast-1.scope"), 42)
        .await
        .unwrap();
    let known = lab.manager.units.lock().unwrap()["holdfast-1.scope"].clone();
    for (name, value) in [
        ("Slice", "\"a-b.slice\""),
        ("PIDs", "42"),
        ("Delegate", "true"),
        ("TasksMax", "18446744073709551615"),
        ("AllowedCPUs", "3"),
        ("IOReadBandwidthMax", "/dev/x"),
        ("CollectMode", "inactive-or-failed"),
        ("OOMPolicy", "kill"),
    ] {
        assert!(known[name].contains(value), "{name}: {}", known[name]);
    }
    let limit = Property {
        name: "MemoryMax",
        value: Value::Number(7),
    };
    lab.systemd
        .set_properties("holdfast-1.scope", &[limit])
        .await
        .unwrap();
    assert!(lab.manager.units.lock().unwrap()["holdfast-1.scope"]["MemoryMax"].contains('7'));
    lab.systemd.stop_unit("holdfast-1.scope").await.unwrap();
    // Repeatable.
    lab.systemd.stop_unit("holdfast-1.scope").await.unwrap();
    assert_eq!(lab.systemd.version().await.unwrap(), "257.9");
    assert_eq!(lab.systemd.trouble(), None);
}

#[tokio::test]
async fn many_at_once_are_told_apart() {
    let mut lab = lab(Mood::Well);
    // It is not about time: the last of them waits for all the others.
    lab.systemd.limits.call = Duration::from_secs(60);
    let lab = Arc::new(lab);
    let mut all = tokio::task::JoinSet::new();
    for n in 0..100u32 {
        let lab = lab.clone();
        all.spawn(async move {
            let unit = format!("holdfast-{n}.scope");
            lab.systemd.start_scope(scope(&unit), n).await.unwrap();
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    assert_eq!(lab.manager.units.lock().unwrap().len(), 100);
    assert_eq!(lab.connections.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_unit_that_is_there_already_is_left_alone_and_named() {
    let lab = lab(Mood::Well);
    lab.systemd
        .start_scope(scope("holdfast-1.scope"), 1)
        .await
        .unwrap();
    let before = lab.manager.units.lock().unwrap().clone();
    let error = lab
        .systemd
        .start_scope(scope("holdfast-1.scope"), 2)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Precondition);
    let text = error.to_string();
    assert!(
        text.contains("holdfast-1.scope already") && text.contains("systemctl stop"),
        "{text}"
    );
    assert_eq!(*lab.manager.units.lock().unwrap(), before);
    // It is an answer, not silence.
    assert_eq!(lab.systemd.trouble(), None);
}

#[tokio::test]
async fn a_refusal_is_passed_on() {
    let lab = lab(Mood::Well);
    let mut wrong = scope("holdfast-1.scope");
    wrong.properties.push(Property {
        name: "Nonsense",
        value: Value::Bool(true),
    });
    let text = lab.systemd.start_scope(wrong, 1).await.unwrap_err().to_string();
    for part in [
        "StartTransientUnit",
        "D-Bus",
        "BadProperty",
        "Cannot set property",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let error = lab
        .systemd
        .set_properties("no.scope", &[unlimited_tasks()])
        .await
        .unwrap_err();
    assert!(error.to_string().contains("NoSuchUnit"), "{error}");
}

#[tokio::test]
async fn a_hung_systemd_is_given_up() {
    let lab = lab(Mood::Hung);
    let begun = Instant::now();
    let error = lab
        .systemd
        .start_scope(scope("holdfast-1.scope"), 1)
        .await
        .unwrap_err();
    assert!(begun.elapsed() < SHORT * 10, "{:?}", begun.elapsed());
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert!(error.to_string().contains("D-Bus"), "{error}");
    assert!(lab.systemd.trouble().unwrap().contains("did not answer"));
}

#[tokio::test]
async fn nobody_waits_for_others_longer_than_for_systemd() {
    let lab = lab(Mood::Well);
    lab.systemd.version().await.unwrap();
    let late = async |what: &str| {
        let begun = Instant::now();
        let asked = tokio::time::timeout(SHORT * 20, lab.systemd.version()).await;
        let error = asked.expect(what).expect_err(what);
        assert!(begun.elapsed() < SHORT * 10, "{what}: {:?}", begun.elapsed());
        assert_eq!(error.kind(), Kind::DeadlineExceeded, "{what}");
        assert!(error.to_string().contains("came before"), "{error}");
    };
    let all = lab.systemd.calls.acquire_many(CALLS as u32).await.unwrap();
    late("calls that hang").await;
    drop(all);
    lab.systemd.version().await.unwrap();
    let connecting = lab.systemd.bus.lock().await;
    late("a connection that hangs").await;
    drop(connecting);
    lab.systemd.version().await.unwrap();
    assert_eq!(lab.systemd.trouble(), None);
}

#[tokio::test]
async fn a_job_that_does_not_end_or_ends_badly_is_told() {
    let stuck = lab(Mood::Stuck);
    let error = stuck
        .systemd
        .start_scope(scope("holdfast-1.scope"), 1)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    assert!(
        error.to_string().contains("holdfast-1.scope was not done"),
        "{error}"
    );

    let failing = lab(Mood::Failing);
    let error = failing
        .systemd
        .start_scope(scope("holdfast-1.scope"), 1)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Internal);
    assert!(
        error.to_string().contains("\"failed\"") && error.to_string().contains("D-Bus"),
        "{error}"
    );
}

#[tokio::test]
async fn a_bus_that_is_not_there_is_named_and_one_that_comes_back_is_used() {
    let gone = Systemd::new(Address::Peer("/nonexistent/bus".into()));
    let error = gone.version().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(
        error.chain().contains("/nonexistent/bus") && error.chain().contains("D-Bus"),
        "{}",
        error.chain()
    );
    assert!(gone.trouble().is_some());

    let lab = lab(Mood::Well);
    lab.systemd.version().await.unwrap();
    let first = lab.connections.lock().unwrap().pop().unwrap();
    first.close().await.unwrap();
    // Until our end has seen it, a call may fail; no later one does.
    let begun = Instant::now();
    while lab.systemd.version().await.is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(lab.systemd.trouble(), None);
}
