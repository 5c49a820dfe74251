//! Streams between the daemon and a container's processes. Bytes never pass through the monitor's loop: the two sides
//! hand each other descriptors.

/// Starts a process in a running container, with the daemon at the other end of its standard streams.
///
/// Descriptors of the request, without `tty`: the process's own ends, in the order stdin, stdout, stderr, each present
/// where its flag is set; what is not is /dev/null. With `tty` there are none: the process gets a terminal of the
/// container's devpts.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecStream {
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// Unique among the container's execs: names the leaf cgroup.
    #[prost(string, tag = "2")]
    pub exec_id: String,
    /// OCI `process` (JSON): the container's own with other args.
    #[prost(bytes = "vec", tag = "3")]
    pub process: Vec<u8>,
    /// OCI `linux.seccomp` (JSON) of the container, which the new process gets too; empty: unconfined.
    #[prost(bytes = "vec", tag = "4")]
    pub seccomp: Vec<u8>,
    /// Clamp what the monitor may not set, with no warning, instead of failing.
    #[prost(bool, tag = "5")]
    pub clamp_privileges: bool,
    #[prost(bool, tag = "6")]
    pub tty: bool,
    #[prost(bool, tag = "7")]
    pub stdin: bool,
    #[prost(bool, tag = "8")]
    pub stdout: bool,
    #[prost(bool, tag = "9")]
    pub stderr: bool,
}

/// execve has happened. Descriptor, where `has_terminal`: the terminal's master, of which the monitor keeps no copy, so
/// that closing it hangs up.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ExecStarted {
    #[prost(int32, tag = "1")]
    pub pid: i32,
    #[prost(bool, tag = "2")]
    pub has_terminal: bool,
}

/// Copies a running container's output, from now on, into the daemon's pipes as well as into the log.
///
/// Descriptors: the non-blocking write ends of pipes, in the order stdout, stderr, each present where its flag is set.
/// They are closed when all that the container has written is in them, or when their readers are gone. What does not
/// fit is dropped and counted, and a line says so where it is missing.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Attach {
    #[prost(string, tag = "1")]
    pub container_id: String,
    #[prost(bool, tag = "2")]
    pub stdout: bool,
    /// With a terminal there is none.
    #[prost(bool, tag = "3")]
    pub stderr: bool,
    /// The monitor closes its write end of stdin: the daemon's is the last, and with it stdin ends (`stdin_once`).
    #[prost(bool, tag = "4")]
    pub release_stdin: bool,
}

/// Unconnected, non-blocking TCP sockets of the sandbox's network namespace (the node's where the sandbox has none), in
/// this order, each present where its flag is set: IPv4, IPv6.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PodSockets {
    #[prost(bool, tag = "1")]
    pub has_ipv4: bool,
    #[prost(bool, tag = "2")]
    pub has_ipv6: bool,
}
