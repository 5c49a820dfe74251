//! One connection to systemd's manager, and the end of jobs.
//!
//! `Subscribe` is not called: systemd would then tell of every change of every unit. The end of a job is told without that,
//! as long as whoever asked for it is on the bus: to everybody who listens for it.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_cgroups::systemd::{Property, Value};
use tokio::sync::{OnceCell, oneshot};
use zbus::export::futures_core::Stream;
use zbus::zvariant::{self, OwnedObjectPath, OwnedValue};
use zbus::{Connection, MatchRule, Message, MessageStream};

use super::{Address, BusError, Limits, Scope, Unit};

const SERVICE: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// Where the system bus listens, for texts.
const SYSTEM_SOCKET: &str = "unix:path=/run/dbus/system_bus_socket";
/// Ends of jobs that wait to be read.
const SIGNALS: usize = 4096;
/// Properties that older versions refuse, and the version from which they are known. The files are written in any case.
const YOUNG: [(&str, u32); 1] = [("MemoryZSwapMax", 253)];
/// Units in one answer of ListUnits that are looked at.
const UNITS: usize = 65_536;

pub(super) struct Bus {
    connection: Connection,
    major: OnceCell<u32>,
    jobs: Arc<Jobs>,
}

/// Who waits for which unit's job.
#[derive(Default)]
struct Jobs {
    waiting: Mutex<HashMap<String, oneshot::Sender<String>>>,
    closed: AtomicBool,
}

impl Jobs {
    fn expect(&self, unit: &str) -> oneshot::Receiver<String> {
        let (tell, told) = oneshot::channel();
        self.lock().insert(unit.to_owned(), tell);
        told
    }

    fn forget(&self, unit: &str) {
        self.lock().remove(unit);
    }

    fn done(&self, unit: &str, result: &str) {
        if let Some(tell) = self.lock().remove(unit) {
            let _nobody_waits = tell.send(result.to_owned());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, oneshot::Sender<String>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bus {
    pub(super) async fn connect(address: &Address, limit: Duration) -> Result<Self, BusError> {
        let (text, connecting) = connecting(address);
        let failed = |source| BusError::Connect {
            address: text.clone(),
            source: Box::new(source),
        };
        let greeted = async {
            let connection = connecting.await?;
            let rule = MatchRule::builder()
                .msg_type(zbus::message::Type::Signal)
                .sender(SERVICE)?
                .interface(MANAGER)?
                .member("JobRemoved")?
                .build();
            let stream = MessageStream::for_match_rule(rule, &connection, Some(SIGNALS)).await?;
            Ok::<_, zbus::Error>((connection, stream))
        };
        let (connection, stream) = tokio::time::timeout(limit, greeted)
            .await
            .map_err(|_| BusError::Timeout {
                call: "the connection's greeting",
                limit,
            })?
            .map_err(failed)?;
        let jobs = Arc::new(Jobs::default());
        tokio::spawn(listen(stream, jobs.clone()));
        Ok(Self {
            connection,
            major: OnceCell::new(),
            jobs,
        })
    }

    /// The bus has hung up.
    pub(super) fn closed(&self) -> bool {
        self.jobs.closed.load(Ordering::Acquire)
    }

    pub(super) async fn start_scope(
        &self,
        scope: &Scope<'_>,
        pid: u32,
        limits: Limits,
    ) -> Result<(), BusError> {
        const CALL: &str = "StartTransientUnit";
        let unit = scope.unit;
        let mut properties: Vec<(&str, zvariant::Value<'_>)> = vec![
            ("Description", scope.description.as_str().into()),
            ("Slice", scope.slice.into()),
            ("PIDs", vec![pid].into()),
        ];
        let known = self.known(&scope.properties, limits).await?;
        properties.extend(known.into_iter().map(variant));
        if self.major(limits).await? >= super::OOM_POLICY {
            let policy = if scope.oom_group { "kill" } else { "continue" };
            properties.push(("OOMPolicy", policy.into()));
        }
        let auxiliary: Vec<(&str, Vec<(&str, zvariant::Value<'_>)>)> = Vec::new();
        let body = (unit, "fail", properties, auxiliary);
        self.job(CALL, unit, limits, self.call(CALL, unit, &body, limits.call))
            .await
    }

    pub(super) async fn set_properties(
        &self,
        unit: &str,
        properties: &[Property],
        limits: Limits,
    ) -> Result<(), BusError> {
        let properties: Vec<_> = self.known(properties, limits).await?;
        if properties.is_empty() {
            return Ok(());
        }
        let properties: Vec<_> = properties.into_iter().map(variant).collect();
        // Runtime: gone with the unit, as everything about it.
        let body = (unit, true, properties);
        self.call("SetUnitProperties", unit, &body, limits.call)
            .await
            .map(drop)
    }

    pub(super) async fn stop_unit(&self, unit: &str, limits: Limits) -> Result<(), BusError> {
        const CALL: &str = "StopUnit";
        let body = (unit, "replace");
        let call = self.call(CALL, unit, &body, limits.call);
        match self.job(CALL, unit, limits, call).await {
            Err(BusError::Refused { name, .. }) if name.ends_with(".NoSuchUnit") => Ok(()),
            outcome => outcome,
        }
    }

    pub(super) async fn units(&self, pattern: &str, limits: Limits) -> Result<Vec<Unit>, BusError> {
        const CALL: &str = "ListUnitsByPatterns";
        type Row = (
            String,
            String,
            String,
            String,
            String,
            String,
            OwnedObjectPath,
            u32,
            String,
            OwnedObjectPath,
        );
        let states: [&str; 0] = [];
        let answer = self
            .call(CALL, pattern, &(&states[..], [pattern].as_slice()), limits.call)
            .await?;
        let rows: Vec<Row> = understood(CALL, &answer)?;
        Ok(rows
            .into_iter()
            .take(UNITS)
            .map(|row| Unit {
                name: row.0,
                description: row.1,
            })
            .collect())
    }

    pub(super) async fn version(&self, limits: Limits) -> Result<String, BusError> {
        const CALL: &str = "Get(Version)";
        let properties = "org.freedesktop.DBus.Properties";
        let call = self.connection.call_method(
            Some(SERVICE),
            PATH,
            Some(properties),
            "Get",
            &(MANAGER, "Version"),
        );
        let answer = answered(CALL, "the manager", limits.call, call).await?;
        let value: OwnedValue = understood(CALL, &answer)?;
        String::try_from(value).map_err(|source| BusError::Answer {
            call: CALL,
            source: Box::new(source.into()),
        })
    }

    /// The first number of the version, asked for once.
    async fn major(&self, limits: Limits) -> Result<u32, BusError> {
        let known = self.major.get_or_try_init(|| async {
            let version = self.version(limits).await?;
            Ok(super::major(&version))
        });
        known.await.copied()
    }

    /// Those that this version of systemd knows.
    async fn known<'a>(
        &self,
        properties: &'a [Property],
        limits: Limits,
    ) -> Result<Vec<&'a Property>, BusError> {
        let since = |property: &Property| YOUNG.iter().find(|(name, _)| *name == property.name);
        if properties.iter().all(|property| since(property).is_none()) {
            return Ok(properties.iter().collect());
        }
        let version = self.major(limits).await?;
        let known = |property: &&Property| since(property).is_none_or(|(_, first)| version >= *first);
        Ok(properties.iter().filter(known).collect())
    }

    async fn call<B>(
        &self,
        method: &'static str,
        unit: &str,
        body: &B,
        limit: Duration,
    ) -> Result<Message, BusError>
    where
        B: serde::Serialize + zvariant::DynamicType,
    {
        let call = self
            .connection
            .call_method(Some(SERVICE), PATH, Some(MANAGER), method, body);
        answered(method, unit, limit, call).await
    }

    /// A call that begins a job, and the job.
    async fn job(
        &self,
        method: &'static str,
        unit: &str,
        limits: Limits,
        call: impl Future<Output = Result<Message, BusError>>,
    ) -> Result<(), BusError> {
        // Before the call: the job's end may come before its answer is looked at.
        let told = self.jobs.expect(unit);
        if let Err(error) = call.await {
            self.jobs.forget(unit);
            return Err(error);
        }
        match tokio::time::timeout(limits.job, told).await {
            Ok(Ok(result)) if result == "done" || result == "skipped" => Ok(()),
            Ok(Ok(result)) => Err(BusError::Job {
                call: method,
                unit: unit.to_owned(),
                result,
            }),
            Ok(Err(_)) => Err(BusError::Lost {
                call: method,
                source: Box::new(zbus::Error::Failure("the bus hung up".into())),
            }),
            Err(_) => {
                self.jobs.forget(unit);
                Err(BusError::JobTimeout {
                    call: method,
                    unit: unit.to_owned(),
                    limit: limits.job,
                })
            }
        }
    }
}

type Connecting = std::pin::Pin<Box<dyn Future<Output = zbus::Result<Connection>> + Send>>;

fn connecting(address: &Address) -> (String, Connecting) {
    match address {
        Address::System => {
            let text = std::env::var("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_else(|_| SYSTEM_SOCKET.into());
            (
                text,
                Box::pin(async { zbus::connection::Builder::system()?.build().await }),
            )
        }
        #[cfg(test)]
        Address::Peer(path) => {
            let path = path.clone();
            let text = format!("unix:path={}", path.display());
            let connecting = async move {
                let stream = tokio::net::UnixStream::connect(path)
                    .await
                    .map_err(|error| zbus::Error::InputOutput(Arc::new(error)))?;
                zbus::connection::Builder::unix_stream(stream).p2p().build().await
            };
            (text, Box::pin(connecting))
        }
    }
}

/// Reads what comes without being asked for, until the bus hangs up.
async fn listen(mut messages: MessageStream, jobs: Arc<Jobs>) {
    while let Some(message) = next(&mut messages).await {
        let Ok(message) = message else { break };
        let header = message.header();
        if header.member().map(zbus::names::MemberName::as_str) != Some("JobRemoved")
            || header.interface().map(zbus::names::InterfaceName::as_str) != Some(MANAGER)
        {
            continue;
        }
        let body = message.body();
        if let Ok((_, _, unit, result)) = body.deserialize::<(u32, zvariant::ObjectPath<'_>, &str, &str)>() {
            jobs.done(unit, result);
        }
    }
    jobs.closed.store(true, Ordering::Release);
    // Those who wait learn it from their channel's end.
    jobs.lock().clear();
}

async fn next(messages: &mut MessageStream) -> Option<zbus::Result<Message>> {
    std::future::poll_fn(|context| std::pin::Pin::new(&mut *messages).poll_next(context)).await
}

async fn answered(
    call: &'static str,
    unit: &str,
    limit: Duration,
    answer: impl Future<Output = zbus::Result<Message>>,
) -> Result<Message, BusError> {
    let answer = tokio::time::timeout(limit, answer)
        .await
        .map_err(|_| BusError::Timeout { call, limit })?;
    answer.map_err(|source| match source {
        zbus::Error::MethodError(name, text, _) if name.as_str().ends_with(".UnitExists") => {
            let _ = text;
            BusError::UnitExists {
                call,
                unit: unit.to_owned(),
            }
        }
        zbus::Error::MethodError(name, text, _) if of_the_bus(name.as_str()) => BusError::Lost {
            call,
            source: Box::new(zbus::Error::Failure(format!(
                "{name}: {}",
                text.unwrap_or_default()
            ))),
        },
        zbus::Error::MethodError(name, text, _) => BusError::Refused {
            call,
            unit: unit.to_owned(),
            name: name.to_string(),
            text: text.unwrap_or_default(),
        },
        source => BusError::Lost {
            call,
            source: Box::new(source),
        },
    })
}

/// Whether the bus speaks for a service that it cannot hand the call to (D-Bus specification, "Error names"): systemd itself has
/// not been heard.
pub(super) fn of_the_bus(error: &str) -> bool {
    const UNREACHED: [&str; 7] = [
        "Disconnected",
        "NameHasNoOwner",
        "NoReply",
        "NoServer",
        "ServiceUnknown",
        "TimedOut",
        "Timeout",
    ];
    let Some(name) = error.strip_prefix("org.freedesktop.DBus.Error.") else {
        return false;
    };
    UNREACHED.contains(&name) || name.starts_with("Spawn.")
}

fn understood<T>(call: &'static str, answer: &Message) -> Result<T, BusError>
where
    T: for<'d> serde::Deserialize<'d> + zvariant::Type,
{
    let body = answer.body();
    body.deserialize().map_err(|source| BusError::Answer {
        call,
        source: Box::new(source),
    })
}

fn variant(property: &Property) -> (&'static str, zvariant::Value<'_>) {
    let value = match &property.value {
        Value::Bool(value) => (*value).into(),
        Value::Number(value) => (*value).into(),
        Value::Text(text) => text.as_str().into(),
        Value::Bytes(bytes) => bytes.as_slice().into(),
        Value::Rates(rates) => rates.clone().into(),
    };
    (property.name, value)
}
