//! The monitor's state as one message, for the program that replaces this one in place. Descriptors are numbers: the
//! process stays, so they stay open. Tags follow the protocol's rule: never reused, unknown ones skipped.

use holdfast_launcher::{CgroupDriver, CgroupRef};
use holdfast_monitor_api::message::{Cgroup, Exit, Init, OciRuntime, SandboxCreated};

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Snapshot {
    #[prost(message, optional, tag = "1")]
    pub init: Option<Init>,
    #[prost(message, optional, tag = "2")]
    pub sandbox: Option<SandboxState>,
    #[prost(message, repeated, tag = "3")]
    pub containers: Vec<ContainerState>,
    #[prost(message, repeated, tag = "4")]
    pub execs: Vec<ExecState>,
    #[prost(int32, optional, tag = "5")]
    pub link: Option<i32>,
    #[prost(int32, optional, tag = "6")]
    pub listener: Option<i32>,
    #[prost(uint32, tag = "7")]
    pub generation: u32,
    #[prost(uint32, tag = "8")]
    pub last_key: u32,
    /// Who asked for the new program, on the connection `generation`.
    #[prost(uint64, tag = "9")]
    pub asker: u64,
    /// Set, so that no snapshot is empty.
    #[prost(bool, tag = "10")]
    pub valid: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SandboxState {
    #[prost(int32, tag = "1")]
    pub pause_pid: i32,
    #[prost(bool, tag = "2")]
    pub ours: bool,
    /// What `descriptors` are, in the protocol's order; none once it is stopped.
    #[prost(message, optional, tag = "3")]
    pub created: Option<SandboxCreated>,
    #[prost(int32, repeated, tag = "4")]
    pub descriptors: Vec<i32>,
    #[prost(int32, optional, tag = "5")]
    pub mnt: Option<i32>,
    #[prost(message, optional, tag = "6")]
    pub cgroup: Option<Cgroup>,
    #[prost(string, tag = "7")]
    pub netns_path: String,
    #[prost(message, optional, tag = "8")]
    pub exit: Option<Exit>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ContainerState {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, optional, tag = "3")]
    pub cgroup: Option<Cgroup>,
    #[prost(string, tag = "4")]
    pub log_path: String,
    #[prost(bool, tag = "5")]
    pub manages_cgroup: bool,
    #[prost(int32, tag = "6")]
    pub phase: i32,
    #[prost(int32, tag = "7")]
    pub pid: i32,
    #[prost(bool, tag = "8")]
    pub ours: bool,
    #[prost(bool, tag = "9")]
    pub own_pid_namespace: bool,
    #[prost(int32, repeated, tag = "10")]
    pub descriptors: Vec<i32>,
    #[prost(bool, tag = "11")]
    pub tty: bool,
    #[prost(bool, tag = "12")]
    pub has_stdin: bool,
    #[prost(bool, tag = "13")]
    pub has_log_state: bool,
    #[prost(int32, optional, tag = "14")]
    pub barrier: Option<i32>,
    #[prost(int64, tag = "15")]
    pub started_at: i64,
    #[prost(int32, tag = "16")]
    pub pump_pid: i32,
    #[prost(int32, optional, tag = "17")]
    pub pump_control: Option<i32>,
    #[prost(bool, tag = "18")]
    pub pump_finishing: bool,
    #[prost(bool, tag = "19")]
    pub pump_drained: bool,
    #[prost(bool, tag = "20")]
    pub stdout_ended: bool,
    #[prost(bool, tag = "21")]
    pub stderr_ended: bool,
    #[prost(message, optional, tag = "22")]
    pub exit: Option<Exit>,
    /// The exit is recorded but its event has not been sent.
    #[prost(bool, tag = "23")]
    pub event_due: bool,
    #[prost(message, repeated, tag = "24")]
    pub taps: Vec<TapState>,
    #[prost(message, optional, tag = "40")]
    pub runtime: Option<OciRuntime>,
    #[prost(bool, tag = "41")]
    pub has_mounts: bool,
    #[prost(bool, tag = "43")]
    pub killed_by_us: bool,
    #[prost(string, tag = "42")]
    pub bundle: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TapState {
    /// As a running pump knows it.
    #[prost(uint32, tag = "1")]
    pub key: u32,
    #[prost(bool, tag = "2")]
    pub stderr: bool,
    #[prost(int32, tag = "3")]
    pub fd: i32,
    #[prost(uint64, tag = "4")]
    pub missed: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ExecState {
    #[prost(uint32, tag = "1")]
    pub generation: u32,
    #[prost(uint64, tag = "2")]
    pub asker: u64,
    #[prost(string, tag = "3")]
    pub container_id: String,
    #[prost(message, optional, tag = "4")]
    pub cgroup: Option<Cgroup>,
    #[prost(string, tag = "5")]
    pub leaf: String,
    #[prost(int32, tag = "6")]
    pub pid: i32,
    #[prost(int32, optional, tag = "7")]
    pub pidfd: Option<i32>,
    #[prost(int32, optional, tag = "8")]
    pub barrier: Option<i32>,
    #[prost(int32, optional, tag = "9")]
    pub stdout: Option<i32>,
    #[prost(int32, optional, tag = "10")]
    pub stderr: Option<i32>,
    #[prost(message, optional, tag = "11")]
    pub out: Option<OutputState>,
    #[prost(message, optional, tag = "12")]
    pub err: Option<OutputState>,
    #[prost(uint64, tag = "13")]
    pub limit: u64,
    /// Milliseconds left; none: no limit.
    #[prost(uint64, optional, tag = "14")]
    pub times_out_in: Option<u64>,
    #[prost(bool, tag = "15")]
    pub timed_out: bool,
    #[prost(uint64, optional, tag = "16")]
    pub dies_in: Option<u64>,
    /// Its streams are the daemon's.
    #[prost(bool, tag = "17")]
    pub streaming: bool,
    #[prost(int32, optional, tag = "18")]
    pub terminal: Option<i32>,
    #[prost(bool, tag = "19")]
    pub told: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct OutputState {
    #[prost(bytes = "vec", tag = "1")]
    pub small: Vec<u8>,
    #[prost(int32, optional, tag = "2")]
    pub large: Option<i32>,
    #[prost(uint64, tag = "3")]
    pub size: u64,
    #[prost(uint64, tag = "4")]
    pub discarded: u64,
}

pub(crate) fn cgroup(reference: &CgroupRef) -> Cgroup {
    Cgroup {
        path: reference.path.clone(),
        driver: match reference.driver {
            CgroupDriver::Cgroupfs => "cgroupfs",
            CgroupDriver::Systemd => "systemd",
        }
        .to_owned(),
    }
}
