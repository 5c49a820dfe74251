//! Debian's `docker-registry` on loopback, with its storage in a scratch directory.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

pub struct Registry {
    child: Child,
    /// `127.0.0.1:PORT`: the host part of its images' names.
    pub host: String,
}

impl Registry {
    /// `htpasswd`: a file of users, when the registry shall ask for basic authentication.
    pub fn start(dir: &Path, htpasswd: Option<&Path>) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let host = format!("127.0.0.1:{port}");
        let auth = htpasswd.map_or(String::new(), |file| {
            format!(
                "auth:\n  htpasswd:\n    realm: conformance\n    path: {}\n",
                file.display()
            )
        });
        let config = dir.join(format!("registry-{port}.yml"));
        let storage = dir.join(format!("registry-{port}"));
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n  \
                 delete:\n    enabled: true\nhttp:\n  addr: {host}\n{auth}",
                storage.display()
            ),
        )?;
        let log = std::fs::File::create(dir.join(format!("registry-{port}.log")))?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start docker-registry (Debian's package of that name)")?;
        let registry = Self { child, host };
        let deadline = Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(&registry.host).is_err() {
            if Instant::now() > deadline {
                bail!("docker-registry does not answer on {}", registry.host);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It was started here, so it ends here; an error means that it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
