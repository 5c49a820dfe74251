//! The systemd cgroup driver's half that speaks D-Bus: scopes for pods and containers, made and changed by asking
//! systemd's manager (org.freedesktop.systemd1(5)).
//!
//! Only the daemon does this. A monitor finds the cgroup there and works with its files, which is why the limits are
//! given twice: to systemd as properties, so that it keeps them, and by the launcher as files, at the exec barrier.
//!
//! ```text
//!  helper (holdfast-pause hold) ──▶ StartTransientUnit(PIDs=[helper]) ──▶ JobRemoved "done"
//!        │                                                                    │
//!        │            monitor: clone3(CLONE_INTO_CGROUP) ◀────────────────────┘
//!        └──▶ leaves: from now on the scope lives as long as what is in it, and systemd collects it when that ends
//! ```
//!
//! Every call has a deadline, every failure names D-Bus, and nothing falls back to making cgroups by hand.

mod bus;
mod error;
mod helper;
mod monitors;
#[cfg(test)]
pub(crate) mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_cgroups::systemd::{INFINITY, Property, Value};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

pub use error::BusError;
pub(crate) use helper::Helper;
pub(crate) use monitors::Monitors;

use bus::Bus;

/// Waiting for one's turn, connecting, and the answer to one call, each. systemd's own clients wait 25 s.
pub(crate) const CALL: Duration = Duration::from_secs(15);
/// From the answer to the end of the job.
pub(crate) const JOB: Duration = Duration::from_secs(30);
/// While systemd cannot be reached, this often it is tried.
const PROBE_EVERY: Duration = Duration::from_secs(5);
/// Calls at a time: systemd works on one after the other, and a thousand pods must not sit in its queue.
const CALLS: usize = 16;

/// Where systemd is reached.
#[derive(Debug, Clone)]
pub(crate) enum Address {
    /// The system bus (`DBUS_SYSTEM_BUS_ADDRESS`, else its usual socket).
    System,
    /// A socket without a bus behind it.
    #[cfg(test)]
    Peer(std::path::PathBuf),
}

/// A scope that is wanted.
#[derive(Debug)]
pub(crate) struct Scope<'a> {
    /// `holdfast-<id>.scope`
    pub unit: &'a str,
    /// The slice that it is to be in.
    pub slice: &'a str,
    pub description: String,
    pub properties: Vec<Property>,
    /// All of it dies when one of it is killed for want of memory: systemd writes `memory.oom.group` by itself.
    pub oom_group: bool,
}

/// A unit as `ListUnits` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    pub name: String,
    pub description: String,
}

/// systemd, connected to when first needed and again after the bus was lost.
pub(crate) struct Systemd {
    address: Address,
    bus: tokio::sync::Mutex<Option<Arc<Bus>>>,
    calls: Semaphore,
    limits: Limits,
    trouble: Mutex<Option<String>>,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    call: Duration,
    job: Duration,
}

impl Systemd {
    pub(crate) fn new(address: Address) -> Self {
        Self {
            address,
            bus: tokio::sync::Mutex::new(None),
            calls: Semaphore::new(CALLS),
            limits: Limits { call: CALL, job: JOB },
            trouble: Mutex::default(),
        }
    }

    /// Makes a scope around a process, our [`Helper`], and returns when its cgroup is there.
    pub(crate) async fn start_scope(&self, scope: Scope<'_>, pid: u32) -> Result<(), BusError> {
        let (scope, limits) = (&scope, self.limits);
        self.with_bus(|bus| async move { bus.start_scope(scope, pid, limits).await })
            .await
    }

    /// Changes properties of a running unit, until it ends.
    pub(crate) async fn set_properties(&self, unit: &str, properties: &[Property]) -> Result<(), BusError> {
        if properties.is_empty() {
            return Ok(());
        }
        let limits = self.limits;
        self.with_bus(|bus| async move { bus.set_properties(unit, properties, limits).await })
            .await
    }

    /// Stops a unit, with everything that is in it. One that is not there is stopped.
    pub(crate) async fn stop_unit(&self, unit: &str) -> Result<(), BusError> {
        let limits = self.limits;
        self.with_bus(|bus| async move { bus.stop_unit(unit, limits).await })
            .await
    }

    /// Units whose names match a pattern, whatever state they are in.
    pub(crate) async fn units(&self, pattern: &str) -> Result<Vec<Unit>, BusError> {
        let limits = self.limits;
        self.with_bus(|bus| async move { bus.units(pattern, limits).await })
            .await
    }

    /// systemd's version, by which it shows that it answers.
    pub(crate) async fn version(&self) -> Result<String, BusError> {
        let limits = self.limits;
        self.with_bus(|bus| async move { bus.version(limits).await })
            .await
    }

    /// Why no pod can be made, where the last attempt to reach systemd failed.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Asks now and then for as long as systemd does not answer, so that [`Self::trouble`] ends by itself.
    pub(crate) fn watch(self: &Arc<Self>) {
        let systemd = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(PROBE_EVERY).await;
                let Some(systemd) = systemd.upgrade() else { return };
                if systemd.trouble().is_some() {
                    let _told = systemd.version().await;
                }
            }
        });
    }

    async fn with_bus<T, F>(&self, call: impl FnOnce(Arc<Bus>) -> F) -> Result<T, BusError>
    where
        F: Future<Output = Result<T, BusError>>,
    {
        let outcome = match self.reach().await {
            Ok((bus, turn)) => {
                let outcome = call(bus).await;
                drop(turn);
                outcome
            }
            Err(error) => Err(error),
        };
        self.note(outcome.as_ref().err());
        outcome
    }

    /// Whoever holds the lock may be waiting for a systemd that hangs: those behind do not wait one after the other.
    async fn turn<'a, T>(
        &self,
        lock: &'a tokio::sync::Mutex<T>,
    ) -> Result<tokio::sync::MutexGuard<'a, T>, BusError> {
        let turn = timeout_at(Instant::now() + self.limits.call, lock.lock()).await;
        turn.map_err(|_| self.late())
    }

    fn late(&self) -> BusError {
        BusError::Timeout {
            call: "another's call, which came before,",
            limit: self.limits.call,
        }
    }

    /// The bus and the right to make a call. Those before us may be waiting for a bus that hangs: all the waiting for others has
    /// one deadline, so that those behind do not wait one after the other.
    async fn reach(&self) -> Result<(Arc<Bus>, SemaphorePermit<'_>), BusError> {
        let until = Instant::now() + self.limits.call;
        let mut known = timeout_at(until, self.bus.lock())
            .await
            .map_err(|_| self.late())?;
        let bus = match known.as_ref().filter(|bus| !bus.closed()) {
            Some(bus) => bus.clone(),
            None => {
                let bus = Arc::new(Bus::connect(&self.address, self.limits.call).await?);
                *known = Some(bus.clone());
                bus
            }
        };
        drop(known);
        // It is never closed: no turn is as good as a late one.
        let turn = timeout_at(until, self.calls.acquire()).await.ok();
        let turn = turn.and_then(Result::ok).ok_or_else(|| self.late())?;
        Ok((bus, turn))
    }

    fn note(&self, error: Option<&BusError>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match error.filter(|error| error.is_silence()) {
            Some(error) => {
                let text = error.chain();
                if trouble.is_none() {
                    warn!("{text}; pods of the systemd cgroup driver cannot be made");
                }
                *trouble = Some(text);
            }
            None if trouble.take().is_some() => info!("systemd answers again"),
            None => {}
        }
    }
}

/// What every scope of ours has. It is ours to divide (`Delegate`), outlives the beginning of a shutdown so that
/// kubelet can end pods in order, and is forgotten when it has ended, however it did.
pub(crate) fn common(out: &mut Vec<Property>) {
    let text = |name, text: &str| Property {
        name,
        value: Value::Text(text.into()),
    };
    let flag = |name, value| Property {
        name,
        value: Value::Bool(value),
    };
    out.extend([
        flag("Delegate", true),
        flag("DefaultDependencies", false),
        text("CollectMode", "inactive-or-failed"),
        // The filter is a program of our own: see `holdfast_cgroups::systemd`.
        text("DevicePolicy", "auto"),
    ]);
}

/// Scopes have a limit of their own making otherwise (`DefaultTasksMax=`).
pub(crate) fn unlimited_tasks() -> Property {
    Property {
        name: "TasksMax",
        value: Value::Number(INFINITY),
    }
}

/// What the descriptions of our units begin with: another daemon, of another root, has units of the same kind.
pub(crate) fn owner(config: &crate::Config) -> String {
    format!("holdfast {}", config.root.display())
}

/// The version of systemd from which scopes have `OOMPolicy=`.
pub const OOM_POLICY: u32 = 253;

/// The first number of a version such as `252.38-1~deb12u1`; 0 where there is none.
pub fn major(version: &str) -> u32 {
    let digits = version.trim_start_matches(|c: char| !c.is_ascii_digit());
    let digits = digits.split(|c: char| !c.is_ascii_digit()).next();
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Where systemd is asked for, and what answers: for people who look into a node.
pub async fn probe() -> Result<String, BusError> {
    Systemd::new(Address::System).version().await
}
