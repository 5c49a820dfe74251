//! The small files of a pod that its containers see under /etc, in `<state>/pods/<id>`.

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use holdfast_model::{DnsConfig, SandboxSpec};

use crate::Error;
use crate::spec::PodFiles;

/// The host's files are copied up to this size.
const MAX_COPY: usize = 1 << 20;

pub(super) fn places(dir: &Path) -> PodFiles {
    PodFiles {
        resolv_conf: dir.join("resolv.conf"),
        hostname: dir.join("hostname"),
        hosts: Some(dir.join("hosts")),
    }
}

/// Makes the pod's directory with `resolv.conf` and `hostname`. `<state>` is a tmpfs: this takes microseconds.
pub(super) fn write(dir: &Path, spec: &SandboxSpec, hostname: &str, host_resolv: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(dir)
        .map_err(|e| Error::io("make", dir, e))?;
    let resolv = spec.dns.as_ref().map(resolv_conf).filter(|text| !text.is_empty());
    let resolv = match resolv {
        Some(text) => text.into_bytes(),
        None => copy_of(host_resolv)?,
    };
    let files = places(dir);
    put(&files.resolv_conf, &resolv)?;
    put(&files.hostname, format!("{hostname}\n").as_bytes())
}

/// Written once the addresses are known. The kubelet mounts its own over it, other clients have this one.
pub(super) fn write_hosts(
    dir: &Path,
    host_network: bool,
    hostname: &str,
    ips: &[IpAddr],
) -> Result<(), Error> {
    let text = if host_network {
        copy_of(Path::new("/etc/hosts"))?
    } else {
        hosts(hostname, ips).into_bytes()
    };
    put(&dir.join("hosts"), &text)
}

fn copy_of(path: &Path) -> Result<Vec<u8>, Error> {
    match fs::read(path) {
        Ok(mut bytes) => {
            bytes.truncate(MAX_COPY);
            Ok(bytes)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

/// Containers read these whatever they run as, so they are 0644 under any umask.
fn put(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let mut file: File = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(path)
        .map_err(|e| Error::io("write", path, e))?;
    file.write_all(bytes).map_err(|e| Error::io("write", path, e))?;
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o644))
        .map_err(|e| Error::io("write", path, e.into()))
}

/// resolv.conf(5).
fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

fn hosts(hostname: &str, ips: &[IpAddr]) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for ip in ips {
        text.push_str(&format!("{ip}\t{hostname}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn resolv_conf_has_one_line_per_server() {
        let dns = DnsConfig {
            servers: vec!["10.0.0.10".into(), "fd00::a".into()],
            searches: vec!["a.local".into(), "local".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(
            resolv_conf(&dns),
            "search a.local local\nnameserver 10.0.0.10\nnameserver fd00::a\noptions ndots:5\n"
        );
    }

    #[test]
    fn files_are_readable_by_all_and_written_over() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("pods/x");
        for hostname in ["a-long-name", "b"] {
            write(&pod, &SandboxSpec::default(), hostname, Path::new("/nonexistent")).unwrap();
        }
        write_hosts(&pod, false, "b", &["10.1.2.3".parse().unwrap()]).unwrap();
        assert_eq!(fs::read_to_string(pod.join("hostname")).unwrap(), "b\n");
        assert_eq!(
            fs::metadata(pod.join("hostname")).unwrap().permissions().mode() & 0o777,
            0o644
        );
        assert!(
            fs::read_to_string(pod.join("hosts"))
                .unwrap()
                .ends_with("10.1.2.3\tb\n")
        );
    }
}
