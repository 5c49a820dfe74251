//! The messages between daemon and monitor, as tagged protobuf.
//!
//! One SEQPACKET datagram carries one [`Envelope`]. Tags are never reused and unknown fields are skipped, so that a
//! daemon can talk to the monitor of an older or newer release. A body too large for a datagram travels in a sealed
//! memfd that is the datagram's first descriptor ([`Envelope::bulk`] says so). All other descriptors follow in the
//! order that each message documents. The messages of exec, attach and port-forward are in `message/streams.rs`.

mod streams;

pub use streams::{Attach, ExecStarted, ExecStream, PodSockets};

/// What one datagram holds. Exactly one of `request`, `reply` and `event` is set.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Envelope {
    /// Chosen by the daemon, echoed in the reply; 0 for events.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The encoded body is in the first descriptor (a sealed memfd), not in this datagram.
    #[prost(bool, tag = "2")]
    pub bulk: bool,
    #[prost(message, optional, tag = "3")]
    pub request: Option<Request>,
    #[prost(message, optional, tag = "4")]
    pub reply: Option<Reply>,
    #[prost(message, optional, tag = "5")]
    pub event: Option<Event>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Request {
    #[prost(
        oneof = "request::Body",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18"
    )]
    pub body: Option<request::Body>,
}

pub mod request {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Body {
        /// First message on every connection.
        #[prost(message, tag = "1")]
        Hello(super::Hello),
        /// Once in a monitor's life, before anything else but `Hello`.
        #[prost(message, tag = "2")]
        Init(super::Init),
        #[prost(message, tag = "3")]
        CreateSandbox(super::CreateSandbox),
        #[prost(message, tag = "4")]
        CreateContainer(super::CreateContainer),
        #[prost(message, tag = "5")]
        StartContainer(super::ContainerRef),
        #[prost(message, tag = "6")]
        Signal(super::Signal),
        #[prost(message, tag = "7")]
        ExecSync(super::ExecSync),
        #[prost(message, tag = "8")]
        ReopenLog(super::ContainerRef),
        /// Kills what is left of the container, removes its cgroup, forgets it.
        #[prost(message, tag = "9")]
        RemoveContainer(super::ContainerRef),
        /// Kills pause, closes namespaces and sockets. Containers must have exited.
        #[prost(message, tag = "10")]
        StopSandbox(super::Empty),
        /// The daemon has stored this exit; the monitor may forget its record.
        #[prost(message, tag = "11")]
        ForgetExit(super::ContainerRef),
        /// Everything the monitor knows: sent after (re)connecting.
        #[prost(message, tag = "12")]
        Inventory(super::Empty),
        /// Replace the monitor's program in place. Descriptor 0: the new executable.
        #[prost(message, tag = "13")]
        Reexec(super::Empty),
        /// A fresh monitor takes over from one that was killed.
        #[prost(message, tag = "14")]
        Adopt(super::Adopt),
        /// Leave: refused while a process of the pod lives.
        #[prost(message, tag = "15")]
        Shutdown(super::Empty),
        /// Two replies: `ExecStarted`, then at the process's end `ExecFinished` (without output).
        #[prost(message, tag = "16")]
        ExecStream(super::ExecStream),
        #[prost(message, tag = "17")]
        Attach(super::Attach),
        /// Sockets that live in the sandbox's network namespace.
        #[prost(message, tag = "18")]
        PodSockets(super::Empty),
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Reply {
    #[prost(oneof = "reply::Body", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub body: Option<reply::Body>,
}

pub mod reply {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Body {
        #[prost(message, tag = "1")]
        Error(super::Failure),
        #[prost(message, tag = "2")]
        Done(super::Empty),
        #[prost(message, tag = "3")]
        Hello(super::Hello),
        /// Descriptors: see [`super::SandboxCreated`].
        #[prost(message, tag = "4")]
        SandboxCreated(super::SandboxCreated),
        /// Descriptors: see [`super::ContainerCreated`].
        #[prost(message, tag = "5")]
        ContainerCreated(super::ContainerCreated),
        #[prost(message, tag = "6")]
        ContainerStarted(super::ContainerStarted),
        #[prost(message, tag = "7")]
        ExecFinished(super::ExecFinished),
        #[prost(message, tag = "8")]
        Inventory(super::Inventory),
        /// Descriptors: see [`super::ExecStarted`].
        #[prost(message, tag = "9")]
        ExecStarted(super::ExecStarted),
        /// Descriptors: see [`super::PodSockets`].
        #[prost(message, tag = "10")]
        PodSockets(super::PodSockets),
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Event {
    #[prost(oneof = "event::Body", tags = "1, 2, 3")]
    pub body: Option<event::Body>,
}

pub mod event {
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Body {
        #[prost(message, tag = "1")]
        Exited(super::Exit),
        #[prost(message, tag = "2")]
        PauseExited(super::Exit),
        /// Lines dropped because the log could not be written, or the log recovered.
        #[prost(message, tag = "3")]
        LogTrouble(super::LogTrouble),
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    /// Protocol revision, for people; behaviour is decided by `features`.
    #[prost(uint32, tag = "1")]
    pub revision: u32,
    #[prost(string, tag = "2")]
    pub version: String,
    /// Names of what the sender understands, such as `reexec`, `adopt`.
    #[prost(string, repeated, tag = "3")]
    pub features: Vec<String>,
    /// Pid of the sender, as its own PID namespace sees it.
    #[prost(int32, tag = "4")]
    pub pid: i32,
    /// Empty until `Init`.
    #[prost(string, tag = "5")]
    pub sandbox_id: String,
}

/// Identity and places of the pod that this monitor serves.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Init {
    #[prost(string, tag = "1")]
    pub sandbox_id: String,
    /// `namespace/name` of the pod, for error texts.
    #[prost(string, tag = "2")]
    pub pod: String,
    /// `<state>/pods/<sandbox id>`: the monitor's socket `monitor.sock`, its exit records and its standard error,
    /// `monitor.log`, live here.
    #[prost(string, tag = "3")]
    pub state_dir: String,
    /// Absolute path of the pause executable.
    #[prost(string, tag = "4")]
    pub pause_path: String,
    /// The monitor's own cgroup, relative to the hierarchy's root; empty: stay in the daemon's.
    #[prost(string, tag = "5")]
    pub monitor_cgroup: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct KeyValue {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Where a set of processes is accounted and limited.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Cgroup {
    /// Relative to the hierarchy's root, such as `/kubepods/pod1/<id>`, or `slice:prefix:name` for systemd.
    #[prost(string, tag = "1")]
    pub path: String,
    /// `cgroupfs` or `systemd`.
    #[prost(string, tag = "2")]
    pub driver: String,
}

/// One line of a user namespace's map.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IdMap {
    #[prost(uint32, tag = "1")]
    pub container_id: u32,
    #[prost(uint32, tag = "2")]
    pub host_id: u32,
    #[prost(uint32, tag = "3")]
    pub size: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateSandbox {
    /// New namespaces wanted; what is not set is the host's.
    #[prost(bool, tag = "1")]
    pub new_net: bool,
    #[prost(bool, tag = "2")]
    pub new_ipc: bool,
    #[prost(bool, tag = "3")]
    pub new_uts: bool,
    #[prost(bool, tag = "4")]
    pub new_pid: bool,
    /// Both empty: no user namespace.
    #[prost(message, repeated, tag = "5")]
    pub uid_maps: Vec<IdMap>,
    #[prost(message, repeated, tag = "6")]
    pub gid_maps: Vec<IdMap>,
    #[prost(string, tag = "7")]
    pub hostname: String,
    /// Names with dots or slashes as sysctl(8) takes them; already checked to be namespaced.
    #[prost(message, repeated, tag = "8")]
    pub sysctls: Vec<KeyValue>,
    #[prost(message, optional, tag = "9")]
    pub cgroup: Option<Cgroup>,
    /// Size of the pod's /dev/shm in bytes.
    #[prost(uint64, tag = "10")]
    pub shm_size: u64,
    /// Host path at which to bind the network namespace (external CNI plugins); empty: none.
    #[prost(string, tag = "11")]
    pub netns_path: String,
    #[prost(int32, tag = "12")]
    pub oom_score_adj: i32,
    /// Resource limits of the pod's cgroup, as OCI `linux.resources` JSON; empty: none.
    #[prost(bytes = "vec", tag = "13")]
    pub resources: Vec<u8>,
    /// Clamp `oom_score_adj` to what the monitor may set, with a warning, instead of failing.
    #[prost(bool, tag = "14")]
    pub clamp_privileges: bool,
    /// SELinux labels of pause and of the pod's /dev/shm; empty: none.
    #[prost(string, tag = "15")]
    pub selinux_label: String,
    #[prost(string, tag = "16")]
    pub mount_label: String,
}

/// Descriptors that follow, in this order, each present where its flag is set:
/// pause's pidfd (always), net, ipc, uts, pid, user namespace, route netlink socket inside the network namespace.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SandboxCreated {
    #[prost(int32, tag = "1")]
    pub pause_pid: i32,
    #[prost(bool, tag = "2")]
    pub has_net: bool,
    #[prost(bool, tag = "3")]
    pub has_ipc: bool,
    #[prost(bool, tag = "4")]
    pub has_uts: bool,
    #[prost(bool, tag = "5")]
    pub has_pid: bool,
    #[prost(bool, tag = "6")]
    pub has_user: bool,
    #[prost(bool, tag = "7")]
    pub has_netlink: bool,
    /// Things done less well than asked, for the log (such as a clamped `oom_score_adj`).
    #[prost(string, repeated, tag = "8")]
    pub warnings: Vec<String>,
}

/// The root file system of one container, before it is mounted.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Rootfs {
    /// `overlay` or `bind`.
    #[prost(string, tag = "1")]
    pub fs_type: String,
    /// Overlay: lower directories, uppermost first. Bind: the one source.
    #[prost(string, repeated, tag = "2")]
    pub lowers: Vec<String>,
    #[prost(string, tag = "3")]
    pub upper: String,
    #[prost(string, tag = "4")]
    pub work: String,
    /// Further mount options, such as `volatile`.
    #[prost(string, repeated, tag = "5")]
    pub options: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CreateContainer {
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// `namespace/pod/container`, for error texts.
    #[prost(string, tag = "2")]
    pub name: String,
    /// OCI runtime spec (JSON). Namespaces with the path `pod:` are the sandbox's own; `pid:N` joins process N's.
    #[prost(bytes = "vec", tag = "3")]
    pub spec: Vec<u8>,
    #[prost(message, optional, tag = "4")]
    pub rootfs: Option<Rootfs>,
    #[prost(message, optional, tag = "5")]
    pub cgroup: Option<Cgroup>,
    /// Absolute path of the CRI log; empty: no log.
    #[prost(string, tag = "6")]
    pub log_path: String,
    #[prost(bool, tag = "7")]
    pub stdin: bool,
    #[prost(bool, tag = "8")]
    pub stdin_once: bool,
    #[prost(bool, tag = "9")]
    pub tty: bool,
    /// The container may manage cgroups below its own, so exec makes no leaf cgroups inside it.
    #[prost(bool, tag = "10")]
    pub manages_cgroup: bool,
    /// Clamp `oom_score_adj` and capabilities to what the monitor holds, with a warning, instead of failing.
    #[prost(bool, tag = "11")]
    pub clamp_privileges: bool,
    /// Sources of bind mounts that get the spec's `mountLabel`, with all that is in them.
    #[prost(string, repeated, tag = "21")]
    pub relabel: Vec<String>,
    /// None: the built-in launcher.
    #[prost(message, optional, tag = "20")]
    pub runtime: Option<OciRuntime>,
    /// Set where the built-in launcher makes a container with OCI hooks: its bundle, made and removed by the monitor. Its
    /// parent is a private mount.
    #[prost(string, tag = "22")]
    pub bundle: String,
}

/// A program that makes and drives a container in place of the built-in launcher, called as runc is.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OciRuntime {
    /// The runtime handler's name, for error texts.
    #[prost(string, tag = "1")]
    pub handler: String,
    /// Absolute path of the program.
    #[prost(string, tag = "2")]
    pub program: String,
    /// Where it keeps its state (`--root`).
    #[prost(string, tag = "3")]
    pub root: String,
    /// The container's bundle, made and removed by the monitor. Its parent is a private mount.
    #[prost(string, tag = "4")]
    pub bundle: String,
    /// Options before the command.
    #[prost(string, repeated, tag = "5")]
    pub options: Vec<String>,
}

/// Descriptors that follow, in this order: init's pidfd (always); then with a TTY its master, else the read end of
/// stdout, the read end of stderr and, where `has_stdin`, the write end of stdin; where `has_log_state`, the memfd
/// in which the log pump keeps half lines and loss counts, so that a replacement monitor goes on where the old one stopped;
/// where `has_mounts`, the mount namespace that an OCI runtime works in.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerCreated {
    #[prost(int32, tag = "1")]
    pub pid: i32,
    #[prost(bool, tag = "2")]
    pub tty: bool,
    #[prost(bool, tag = "3")]
    pub has_stdin: bool,
    #[prost(string, repeated, tag = "4")]
    pub warnings: Vec<String>,
    #[prost(bool, tag = "5")]
    pub has_log_state: bool,
    #[prost(bool, tag = "20")]
    pub has_mounts: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerStarted {
    /// Wall clock at which execve was seen to succeed, nanoseconds since 1970.
    #[prost(int64, tag = "1")]
    pub started_at: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerRef {
    #[prost(string, tag = "1")]
    pub container_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct Signal {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(int32, tag = "2")]
    pub signal: i32,
    /// The whole container (`cgroup.kill`), not its init alone; only with SIGKILL.
    #[prost(bool, tag = "3")]
    pub all: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecSync {
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Unique among the container's execs: names the leaf cgroup.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// OCI `process` (JSON): the container's own with other args.
    #[prost(bytes = "vec", tag = "3")]
    pub process: Vec<u8>,
    /// 0: no limit.
    #[prost(uint64, tag = "4")]
    pub timeout_ms: u64,
    /// stdout and stderr together, at most 16 MiB; what is over is read and thrown away.
    #[prost(uint64, tag = "5")]
    pub output_limit: u64,
    /// OCI `linux.seccomp` (JSON) of the container, which the new process gets too; empty: unconfined.
    #[prost(bytes = "vec", tag = "6")]
    pub seccomp: Vec<u8>,
    /// Clamp what the monitor may not set, with no warning, instead of failing.
    #[prost(bool, tag = "7")]
    pub clamp_privileges: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecFinished {
    /// 128 + signal where a signal ended it.
    #[prost(int32, tag = "1")]
    pub exit_code: i32,
    #[prost(bool, tag = "2")]
    pub timed_out: bool,
    #[prost(bytes = "vec", tag = "3")]
    pub stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub stderr: Vec<u8>,
    /// Bytes thrown away over `output_limit`.
    #[prost(uint64, tag = "5")]
    pub discarded: u64,
    /// The output is too large for the monitor to hold in its heap: `stdout` is empty here and in the next descriptor,
    /// a sealed memfd. The client puts it back into `stdout`.
    #[prost(bool, tag = "6")]
    pub stdout_in_descriptor: bool,
    /// As `stdout_in_descriptor`; its descriptor follows that of stdout.
    #[prost(bool, tag = "7")]
    pub stderr_in_descriptor: bool,
}

/// How a process ended, as its parent saw it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exit {
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// 128 + signal where a signal ended it.
    #[prost(int32, tag = "2")]
    pub exit_code: i32,
    /// 0: it ended by itself.
    #[prost(int32, tag = "3")]
    pub signal: i32,
    #[prost(bool, tag = "4")]
    pub oom_killed: bool,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "5")]
    pub finished_at: i64,
    /// Nobody saw the exit (the monitor was dead): code and signal mean nothing.
    #[prost(bool, tag = "6")]
    pub unknown: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct LogTrouble {
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Empty: the log works again.
    #[prost(string, tag = "2")]
    pub error: String,
    #[prost(uint64, tag = "3")]
    pub dropped_bytes: u64,
}

/// Phase of one container as the monitor sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Phase {
    Unspecified = 0,
    Created = 1,
    Running = 2,
    Exited = 3,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ContainerEntry {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(enumeration = "Phase", tag = "2")]
    pub phase: i32,
    #[prost(int32, tag = "3")]
    pub pid: i32,
    #[prost(message, optional, tag = "4")]
    pub exit: Option<Exit>,
    #[prost(int64, tag = "5")]
    pub started_at: i64,
    /// How many descriptors of the reply are this container's, in the order of [`ContainerCreated`].
    #[prost(uint32, tag = "6")]
    pub descriptors: u32,
    #[prost(bool, tag = "7")]
    pub tty: bool,
    #[prost(bool, tag = "8")]
    pub has_stdin: bool,
    #[prost(bool, tag = "9")]
    pub has_log_state: bool,
    #[prost(bool, tag = "20")]
    pub has_mounts: bool,
}

/// Descriptors: the sandbox's (as [`SandboxCreated`]) first, then each container's in order. A container that has
/// exited and whose output is drained has none.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Inventory {
    #[prost(message, optional, tag = "1")]
    pub sandbox: Option<SandboxCreated>,
    #[prost(message, repeated, tag = "2")]
    pub containers: Vec<ContainerEntry>,
    #[prost(message, optional, tag = "3")]
    pub pause_exit: Option<Exit>,
    /// Another reply with the same id follows (a datagram carries at most 253 descriptors).
    #[prost(bool, tag = "4")]
    pub more: bool,
}

/// A container that the dead monitor ran, with what the daemon kept of it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AdoptContainer {
    #[prost(message, optional, tag = "1")]
    pub create: Option<CreateContainer>,
    #[prost(message, optional, tag = "2")]
    pub entry: Option<ContainerEntry>,
}

/// Descriptors as in [`Inventory`]. Large pods take several requests: the first has `init` and `sandbox`, the others
/// only containers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Adopt {
    #[prost(message, optional, tag = "1")]
    pub init: Option<Init>,
    #[prost(message, optional, tag = "2")]
    pub create_sandbox: Option<CreateSandbox>,
    #[prost(message, optional, tag = "3")]
    pub sandbox: Option<SandboxCreated>,
    #[prost(message, repeated, tag = "4")]
    pub containers: Vec<AdoptContainer>,
}

/// Why a request failed.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Failure {
    #[prost(enumeration = "FailureKind", tag = "1")]
    pub kind: i32,
    /// What was tried, on what, and what the kernel said.
    #[prost(string, tag = "2")]
    pub message: String,
    /// 0: not from a system call.
    #[prost(int32, tag = "3")]
    pub errno: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum FailureKind {
    Internal = 0,
    NotFound = 1,
    Invalid = 2,
    /// The state does not allow it (start of an exited container, exec in one that is not running).
    Precondition = 3,
    /// The kernel or the machine lacks what was asked for.
    Unsupported = 4,
    Exhausted = 5,
}
