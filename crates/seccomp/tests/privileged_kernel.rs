//! The kernel takes compiled filters and does what they say, in threads of their own (a filter is a thread's).
#![allow(clippy::unwrap_used)]

use holdfast_seccomp::{Machine, compile, default_profile, parse};
use holdfast_sys::seccomp::install;
use rustix::io::Errno;
use std::path::Path;

/// Runs `work` in a thread that is under the profile.
fn under<T: Send + 'static>(profile: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let profile = parse(profile.as_bytes(), Path::new("test")).unwrap();
    let program = compile(&profile, Machine::NATIVE).unwrap();
    std::thread::spawn(move || {
        assert!(
            install(program.instructions(), program.flags())
                .unwrap()
                .is_none()
        );
        work()
    })
    .join()
    .unwrap()
}

#[test]
fn errno_is_returned_and_the_rest_is_allowed() {
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 61},
        {"names": ["umask"], "action": "SCMP_ACT_ERRNO", "errnoRet": 62,
         "args": [{"index": 0, "value": 7, "op": "SCMP_CMP_EQ"}]},
        {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 63,
         "args": [{"index": 0, "value": 4294967295, "valueTwo": 4294967295, "op": "SCMP_CMP_MASKED_EQ"}]}]}"#;
    under(profile, || {
        let error = std::fs::create_dir("/tmp/holdfast-test-never").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(61));
        assert!(std::fs::metadata("/").is_ok());
        // Arguments count: our own pid may be probed, and process -1 may not.
        rustix::process::test_kill_process(rustix::process::getpid()).unwrap();
    });
}

#[test]
fn the_default_profile_lets_a_thread_live_and_keeps_it_small() {
    let none: [&str; 0] = [];
    let program = compile(&default_profile(&none, Machine::NATIVE), Machine::NATIVE).unwrap();
    std::thread::spawn(move || {
        install(program.instructions(), program.flags()).unwrap();
        let scratch = std::env::temp_dir().join(format!("holdfast-test-seccomp-{}", std::process::id()));
        std::fs::create_dir(&scratch).unwrap();
        std::fs::write(scratch.join("file"), "text").unwrap();
        assert_eq!(std::fs::read_to_string(scratch.join("file")).unwrap(), "text");
        std::fs::remove_dir_all(&scratch).unwrap();
        std::thread::spawn(|| ()).join().unwrap();
        drop(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let family = |raw| {
            rustix::net::socket(
                rustix::net::AddressFamily::from_raw(raw),
                rustix::net::SocketType::STREAM,
                None,
            )
        };
        assert_eq!(family(40).unwrap_err(), Errno::PERM);
        assert_eq!(family(38).unwrap_err(), Errno::PERM);
        let mount = rustix::mount::mount("none", "/", "tmpfs", rustix::mount::MountFlags::empty(), None);
        assert_eq!(mount.unwrap_err(), Errno::PERM);
    })
    .join()
    .unwrap();
}

#[test]
fn a_process_is_killed_by_a_call_that_kills() {
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_KILL_PROCESS"}]}"#;
    // The filter is inherited by what the thread executes.
    let status = under(profile, || {
        std::process::Command::new("/bin/mkdir")
            .arg("/tmp/holdfast-test-never")
            .status()
            .unwrap()
    });
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(31));
}

#[test]
fn a_notifying_filter_gives_a_listener() {
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["swapoff"], "action": "SCMP_ACT_NOTIFY"}]}"#;
    let program = compile(
        &parse(profile.as_bytes(), Path::new("test")).unwrap(),
        Machine::NATIVE,
    )
    .unwrap();
    assert!(program.notifies());
    let listener = std::thread::spawn(move || install(program.instructions(), program.flags()).unwrap())
        .join()
        .unwrap();
    assert!(listener.is_some());
}

#[test]
fn the_kernel_knows_the_flags_that_profiles_may_set() {
    use holdfast_sys::seccomp::{FLAG_LOG, FLAG_SPEC_ALLOW, FLAG_TSYNC, flags_supported};
    assert!(flags_supported(FLAG_TSYNC | FLAG_LOG | FLAG_SPEC_ALLOW));
    assert!(!flags_supported(1 << 30));
}
