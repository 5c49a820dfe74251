//! A small root file system: Debian's static busybox with its applets.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// From the package `busybox-static`.
pub const BUSYBOX: &str = "/usr/bin/busybox";

/// What tests run; a link each is enough, and `busybox NAME` has the rest.
const APPLETS: &str = "sh ash cat ls echo true false sleep env id ps mount umount grep head tail dd wc kill touch rm \
     mkdir stat readlink hostname ip ping nc wget httpd pwd seq yes sort test [ sed awk tr date df du ln cp mv chmod \
     chown find uname nslookup sync tee timeout trap usleep printf which xargs unshare setsid tty stty";

const FILES: [(&str, &str); 3] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\napp:x:1000:1000:app:/home/app:/bin/sh\n",
    ),
    (
        "etc/group",
        "root:x:0:\ndaemon:x:1:\nextra:x:2000:app\nmore:x:2001:app,daemon\napp:x:1000:\n",
    ),
    ("etc/nsswitch.conf", "hosts: files dns\n"),
];

/// Fills `dir` with it. Users: root, daemon (1) and app (1000, also in extra 2000 and more 2001).
pub fn busybox_rootfs(dir: &Path) {
    if let Err(error) = fill(dir) {
        panic!(
            "could not make a root file system in {} (it needs {BUSYBOX}): {error}",
            dir.display()
        );
    }
}

fn fill(dir: &Path) -> std::io::Result<()> {
    for name in [
        "bin", "dev", "etc", "home/app", "proc", "root", "run", "sys", "tmp", "usr", "var",
    ] {
        std::fs::create_dir_all(dir.join(name))?;
    }
    std::fs::set_permissions(dir.join("tmp"), std::fs::Permissions::from_mode(0o1777))?;
    std::os::unix::fs::chown(dir.join("home/app"), Some(1000), Some(1000))?;
    let busybox = dir.join("bin/busybox");
    std::fs::copy(BUSYBOX, &busybox)?;
    std::fs::set_permissions(&busybox, std::fs::Permissions::from_mode(0o755))?;
    for applet in APPLETS.split_whitespace() {
        match std::os::unix::fs::symlink("busybox", dir.join("bin").join(applet)) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    for (name, content) in FILES {
        std::fs::write(dir.join(name), content)?;
    }
    Ok(())
}
