//! The command line. Doc comments here are what `--help` prints.

use std::path::PathBuf;
use std::time::Duration;

use crate::units::{bytes, duration};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// Where holdfast listens unless told otherwise.
pub const DEFAULT_ENDPOINT: &str = "unix:///run/holdfast/holdfast.sock";

/// A Kubernetes node runtime, and commands for any runtime that speaks the CRI.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, disable_help_subcommand = true)]
pub struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Clone, ClapArgs)]
pub struct Global {
    /// Socket of the runtime to talk to: `unix:///path` or `/path`
    #[arg(
        long,
        short = 'r',
        global = true,
        env = "CONTAINER_RUNTIME_ENDPOINT",
        default_value = DEFAULT_ENDPOINT,
        value_name = "ENDPOINT"
    )]
    pub runtime_endpoint: String,
    /// How long one call may take, such as 30s or 2m (pulls and `exec` have no limit)
    #[arg(long, global = true, default_value = "2m", value_parser = duration, value_name = "TIME")]
    pub timeout: Duration,
    /// Tables for people, JSON for programs
    #[arg(
        long,
        short = 'o',
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT"
    )]
    pub output: Format,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    #[default]
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server
    Serve(Serve),
    /// Hold a user namespace until standard input ends
    #[command(hide = true)]
    HoldUserNamespace,
    /// List pods
    Pods(Pods),
    /// List containers that run (-a: all)
    Ps(Ps),
    /// List images
    Images(Images),
    /// Fetch an image from its registry
    Pull(Pull),
    /// Load or remove images
    #[command(subcommand)]
    Image(Image),
    /// Start a container in a pod of its own, or as crictl's files describe both
    Run(Box<Run>),
    /// Run a command in a container and wait for its end; its exit code becomes ours
    Exec(Exec),
    /// Print what a container wrote
    Logs(Logs),
    /// Stop pods or containers
    Stop(Stop),
    /// Remove pods or containers
    Rm(Rm),
    /// Show everything about a pod, container or image
    Inspect(Inspect),
    /// Show the state of the runtime and what it can do
    Status,
    /// Move the monitors of running pods onto the installed program; no process of a pod notices
    UpgradeMonitors,
    /// Show our version and the runtime's
    Version,
    /// Show or check the server's configuration
    #[command(subcommand)]
    Config(Config),
    /// Try what this node has of what pods need; exit code 1 if something is missing
    Doctor(Doctor),
}

#[derive(Debug, ClapArgs)]
pub struct Serve {
    /// Socket to listen on [default: <state>/holdfast.sock]
    #[arg(long, value_name = "PATH")]
    pub listen: Option<PathBuf>,
    /// What outlives a reboot: images, records [default: /var/lib/holdfast]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// What does not: sockets, exits [default: /run/holdfast]
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Configuration; files in config.d beside it are read after it [default: /etc/holdfast/config.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Read and check the configuration, print it as it came out, and exit (as `holdfast config check`)
    #[arg(long)]
    pub check_config: bool,
}

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Print every key with its default, as a file to begin with
    Default,
    /// Read and check the files, print what came out
    Check {
        /// Configuration; files in config.d beside it are read after it [default: /etc/holdfast/config.toml]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

#[derive(Debug, ClapArgs)]
pub struct Doctor {
    /// Configuration [default: /etc/holdfast/config.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// As for `serve`
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// As for `serve`
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub struct Pods {
    /// Only this state
    #[arg(long, value_enum)]
    pub state: Option<PodState>,
    /// Only this namespace
    #[arg(long)]
    pub namespace: Option<String>,
    #[command(flatten)]
    pub select: Select,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PodState {
    Ready,
    Notready,
}

#[derive(Debug, ClapArgs)]
pub struct Ps {
    /// All states
    #[arg(long, short = 'a')]
    pub all: bool,
    /// Only this state
    #[arg(long, value_enum, conflicts_with = "all")]
    pub state: Option<ContainerState>,
    /// Only containers of this pod (name, id or the beginning of an id)
    #[arg(long, short = 'p')]
    pub pod: Option<String>,
    #[command(flatten)]
    pub select: Select,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ContainerState {
    Created,
    Running,
    Exited,
    Unknown,
}

#[derive(Debug, ClapArgs)]
pub struct Select {
    /// Only with this label, KEY=VALUE; may be repeated
    #[arg(long, short = 'l', value_parser = key_value, value_name = "KEY=VALUE")]
    pub label: Vec<(String, String)>,
    /// Only those whose name contains this
    #[arg(long)]
    pub name: Option<String>,
    /// Print ids only
    #[arg(long, short = 'q')]
    pub quiet: bool,
    /// Do not shorten ids
    #[arg(long)]
    pub no_trunc: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Images {
    /// Only this image
    pub image: Option<String>,
    /// Print ids only
    #[arg(long, short = 'q')]
    pub quiet: bool,
    /// Do not shorten ids
    #[arg(long)]
    pub no_trunc: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Pull {
    /// What to fetch, such as registry.k8s.io/pause:3.10
    pub image: String,
    /// USER:PASSWORD for the registry (seen by everyone who can list processes: prefer --creds-file)
    #[arg(long, value_name = "USER:PASSWORD")]
    pub creds: Option<String>,
    /// File that holds USER:PASSWORD
    #[arg(long, value_name = "FILE", conflicts_with = "creds")]
    pub creds_file: Option<PathBuf>,
    /// Runtime handler to pull for
    #[arg(long, default_value = "", hide_default_value = true)]
    pub runtime: String,
    /// No progress on the terminal
    #[arg(long, short = 'q')]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
pub enum Image {
    /// Load images from an OCI layout (directory or archive) or a docker archive; `-` is standard input
    Load {
        path: PathBuf,
        /// A name for the image, where the archive holds exactly one
        #[arg(long)]
        tag: Option<String>,
    },
    /// Remove images with all of their names
    Rm {
        #[arg(required = true)]
        images: Vec<String>,
    },
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum PullWhen {
    Always,
    #[default]
    Missing,
    Never,
}

#[derive(Debug, ClapArgs)]
pub struct Run {
    /// Image to run; may be left out where --container-config names one
    pub image: Option<String>,
    /// Arguments, which replace the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
    /// Pod configuration, JSON or YAML as crictl reads it; the other options change it
    #[arg(long, value_name = "FILE")]
    pub pod_config: Option<PathBuf>,
    /// Container configuration, JSON or YAML as crictl reads it
    #[arg(long, value_name = "FILE")]
    pub container_config: Option<PathBuf>,
    /// Run in this pod, which is there already
    #[arg(long, conflicts_with = "pod_config")]
    pub pod: Option<String>,
    /// Name of the pod and container [default: from the image]
    #[arg(long)]
    pub name: Option<String>,
    /// Namespace of the pod
    #[arg(long, default_value = "default")]
    pub namespace: String,
    /// Command, which replaces the image's entrypoint
    #[arg(long, value_name = "COMMAND")]
    pub entrypoint: Option<String>,
    /// Environment, KEY=VALUE; may be repeated
    #[arg(long, short = 'e', value_parser = key_value, value_name = "KEY=VALUE")]
    pub env: Vec<(String, String)>,
    /// Label of pod and container, KEY=VALUE; may be repeated
    #[arg(long, short = 'l', value_parser = key_value, value_name = "KEY=VALUE")]
    pub label: Vec<(String, String)>,
    /// Bind mount, HOST:CONTAINER[:ro]; may be repeated
    #[arg(long, short = 'v', value_name = "HOST:CONTAINER[:ro]")]
    pub volume: Vec<String>,
    /// Host port, [IP:]HOST:CONTAINER[/udp|/sctp]; may be repeated
    #[arg(long, short = 'p', value_name = "[IP:]HOST:CONTAINER")]
    pub publish: Vec<String>,
    /// Use the host's network
    #[arg(long)]
    pub host_network: bool,
    /// Give the container everything
    #[arg(long)]
    pub privileged: bool,
    /// User name or number
    #[arg(long, short = 'u')]
    pub user: Option<String>,
    /// Memory limit, such as 64Mi
    #[arg(long, value_parser = size, value_name = "SIZE")]
    pub memory: Option<i64>,
    /// CPU limit, such as 0.5
    #[arg(long)]
    pub cpus: Option<f64>,
    /// Directory for the log
    #[arg(long, value_name = "DIR", default_value = "/var/log/pods")]
    pub log_directory: PathBuf,
    /// Runtime handler
    #[arg(long, default_value = "", hide_default_value = true)]
    pub runtime: String,
    /// When to pull the image
    #[arg(long, value_enum, default_value_t)]
    pub pull: PullWhen,
    /// Print how long each step took
    #[arg(long)]
    pub timings: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Exec {
    /// Give up, and kill the command, after this long
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub time_limit: Option<Duration>,
    /// Name, id or the beginning of an id
    pub container: String,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub struct Logs {
    /// Name, id or the beginning of an id
    pub container: String,
    /// Go on until the container ends
    #[arg(long, short = 'f')]
    pub follow: bool,
    /// Only the last lines
    #[arg(long, short = 'n', value_name = "LINES")]
    pub tail: Option<usize>,
    /// Put the time before each line
    #[arg(long, short = 't')]
    pub timestamps: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Stop {
    /// Names, ids or beginnings of ids
    #[arg(required_unless_present = "all")]
    pub ids: Vec<String>,
    /// All pods
    #[arg(long, short = 'a', conflicts_with = "ids")]
    pub all: bool,
    /// Seconds between the stop signal and SIGKILL, for containers
    #[arg(long, short = 't', default_value_t = 10, value_name = "SECONDS")]
    pub time: i64,
}

#[derive(Debug, ClapArgs)]
pub struct Rm {
    /// Names, ids or beginnings of ids
    #[arg(required_unless_present = "all")]
    pub ids: Vec<String>,
    /// All pods
    #[arg(long, short = 'a', conflicts_with = "ids")]
    pub all: bool,
    /// Also what runs
    #[arg(long, short = 'f')]
    pub force: bool,
}

#[derive(Debug, ClapArgs)]
pub struct Inspect {
    /// Pod, container or image: name, id or the beginning of an id
    #[arg(required = true)]
    pub ids: Vec<String>,
    /// Print one field only, such as status.network.ip
    #[arg(long, value_name = "PATH")]
    pub field: Option<String>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("KEY=VALUE is wanted".into()),
    }
}

fn size(text: &str) -> Result<i64, String> {
    i64::try_from(bytes(text)?).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Args::command().debug_assert();
    }

    #[test]
    fn hyphens_of_the_command_are_its_own() {
        let args = Args::parse_from(["holdfast", "exec", "web", "sh", "-c", "exit 3"]);
        let Command::Exec(exec) = args.command else {
            unreachable!()
        };
        assert_eq!(exec.command, ["sh", "-c", "exit 3"]);
    }
}
