//! The command line, and in its long help what is measured and how.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

const HOW: &str = "\
What is measured. Every runtime is driven through its CRI socket by one client, one call at a time unless said otherwise. \
Rounds are paired: in each, every runtime does the same once, in alternating order, and then the floor. Between two turns \
the machine rests for --rest milliseconds, so that work put off by one (a namespace's death, a snapshot's removal) is not \
charged to the next. The first --warm-up rounds are thrown away. Shown is the median, in brackets the 90th percentile.

  call      Version: what a call costs that does nothing.
  pods      RunPodSandbox, CreateContainer, StartContainer (image present, `sleep`, 1024 cpu shares, oom_score_adj
            1000), then StopPodSandbox with the container running, and RemovePodSandbox.
            Three times over: the network that the runtime brings or is configured for; the host's network; and Debian's CNI
            plugins loopback, bridge and portmap, for which a conflist is written into the directory of --cni-conf-dir (a
            runtime without that option is expected to use such plugins already).
  exec      ExecSync of `true` in a container that sleeps.
  parallel  --pods pods with one container each, --at-once at a time, from the first call to the last answer; then stopped
            and removed in the same way.
  memory    PSS (from smaps_rollup) of every helper process that --memory-pods sleeping pods brought: monitor or shim and
            pause, not the container itself; divided by the number of pods. RSS of the daemon (the process at the other end
            of the socket): as found, with those pods, and at the very end.
  pull      PullImage of --image-mb megabytes in 5 gzip layers from Debian's docker-registry on loopback. The content is
            made here, the same every time: some 20,000 small files of text, machine code and noise, and a few big ones.
            The image is removed and the disk synced before each pull. Floor: inflating and digesting the same layers in
            memory, a thread a processor; and writing as many bytes to one file with fsync.
  logs      --log-mb megabytes in lines of 100 bytes (99 and a newline), written by `cat` of a file to stdout, from the
            call of StartContainer until the last line stands in the log file. Floor: the same `cat` into a pipe, read and
            written to a file in blocks, with no line looked at.

The floor of a pod is a sequence of bare system calls of this program itself: cgroups in every hierarchy, a sleeping process \
in new mount, UTS, IPC, PID and network namespaces on an empty root, a veth pair onto a bridge with addresses and routes, \
then for the container overlay (volatile), /proc, /sys, /dev with its nodes, devpts, mqueue, shm, masked paths, pivot_root, \
a barrier, and execve of a static busybox. No seccomp filter, no capabilities, no records, no RPC.";

#[derive(Parser)]
#[command(name = "holdfast-bench", version, about = "Prints what CRI runtimes cost in time and memory, and the kernel's own floor", after_long_help = HOW)]
pub struct Args {
    /// A runtime to measure; may be given several times, ratios are against the first
    #[arg(long = "runtime", value_name = "NAME=SOCKET", value_parser = pair)]
    pub runtimes: Vec<(String, String)>,
    /// Directory that this runtime watches for CNI configurations, and where there is none yet
    #[arg(long = "cni-conf-dir", value_name = "NAME=DIR", value_parser = pair)]
    pub cni_conf_dirs: Vec<(String, String)>,
    /// Only these sections
    #[arg(long, value_enum, value_delimiter = ',')]
    pub only: Vec<Section>,
    /// Rounds of what is quick; slow sections make fewer
    #[arg(long, default_value_t = 30)]
    pub runs: usize,
    /// Rounds before, which do not count
    #[arg(long, default_value_t = 3)]
    pub warm_up: usize,
    /// Rounds of parallel, pull and logs
    #[arg(long, default_value_t = 5)]
    pub slow_runs: usize,
    /// Rest between two turns, in milliseconds
    #[arg(long, default_value_t = 50)]
    pub rest: u64,
    /// Pods of section `parallel`
    #[arg(long, default_value_t = 100)]
    pub pods: usize,
    /// How many of them at a time
    #[arg(long, default_value_t = 10)]
    pub at_once: usize,
    /// Pods of section `memory`
    #[arg(long, default_value_t = 50)]
    pub memory_pods: usize,
    /// Size of the pulled image before compression, in megabytes
    #[arg(long, default_value_t = 500)]
    pub image_mb: usize,
    /// Size of the log's lines, in megabytes
    #[arg(long, default_value_t = 500)]
    pub log_mb: usize,
    /// Where the registry, logs and the floor's files go [default: a new directory in /var/tmp]
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// Print JSON, with every sample
    #[arg(long)]
    pub json: bool,
    /// Without the floor
    #[arg(long)]
    pub no_floor: bool,
    /// Only how the tool calls itself
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Subcommand)]
pub enum Command {
    /// Serve the floor's measurements on stdin and stdout
    #[command(hide = true)]
    Floor { scratch: PathBuf },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Section {
    Call,
    Pods,
    Exec,
    Parallel,
    Memory,
    Pull,
    Logs,
}

impl Args {
    pub fn wants(&self, section: Section) -> bool {
        self.only.is_empty() || self.only.contains(&section)
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !value.is_empty() => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err("NAME=VALUE is wanted".to_owned()),
    }
}
