//! AppArmor: the profile that holdfast brings along, and whether a profile is loaded. Decision record 13 says why
//! `apparmor_parser` compiles it.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::SWITCHED_OFF;

/// Name of the profile that containers get which ask for the runtime's default, or for nothing.
pub(crate) const DEFAULT: &str = "holdfast-default";
const TEMPLATE: &str = include_str!("holdfast-default.profile");
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const PROFILES: &str = "/sys/kernel/security/apparmor/profiles";
/// Where Debian, Ubuntu and SUSE have it. Not searched for on the PATH, which services have without /sbin.
const PARSERS: [&str; 2] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];
/// Compiling takes milliseconds, on an emulated machine a second.
const PARSER_LIMIT: Duration = Duration::from_secs(20);
/// Of what the parser says, as much as goes into an error.
const WORDS_LIMIT: usize = 500;

/// What the kernel and the machine offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppArmor {
    /// Nothing can be confined; why.
    Absent(&'static str),
    /// Profiles that are loaded can be used, but the default is not; why.
    NoDefault(String),
    Ready,
}

impl Default for AppArmor {
    fn default() -> Self {
        Self::Absent("this kernel has no AppArmor")
    }
}

impl AppArmor {
    /// Looks at the kernel and loads the default profile. Blocks.
    pub(crate) fn prepare(wanted: bool) -> Self {
        if !wanted {
            return Self::Absent(SWITCHED_OFF);
        }
        let enabled = std::fs::read_to_string(ENABLED).is_ok_and(|text| text.trim() == "Y");
        if !enabled {
            return Self::default();
        }
        match load_default() {
            Ok(()) => Self::Ready,
            Err(why) => Self::NoDefault(why),
        }
    }

    /// The program that compiles profiles; `None`: it is not installed.
    pub fn parser() -> Option<&'static Path> {
        PARSERS.iter().map(Path::new).find(|path| path.exists())
    }

    /// For people: `RuntimeDefault`, `Localhost`, or why not.
    pub fn describe(&self) -> String {
        match self {
            Self::Absent(why) => format!("off: {why}"),
            Self::NoDefault(why) => format!("without a default profile: {why}"),
            Self::Ready => format!("on, default profile {DEFAULT}"),
        }
    }
}

/// Whether the kernel has a profile of this name. Reads memory of the kernel's.
pub(crate) fn is_loaded(name: &str) -> io::Result<bool> {
    let list = std::fs::read_to_string(PROFILES)
        .map_err(|e| io::Error::new(e.kind(), format!("read {PROFILES} (is securityfs mounted?): {e}")))?;
    // `name (mode)`, and names may have spaces in them.
    let named = |line: &str| line.rsplit_once(" (").is_some_and(|(known, _)| known == name);
    Ok(list.lines().any(named))
}

/// Sees to it that the default profile is loaded: something may have taken it away (`aa-teardown` takes all).
pub(crate) fn ensure_default() -> Result<(), String> {
    match is_loaded(DEFAULT) {
        Ok(true) => Ok(()),
        Ok(false) => load_default(),
        Err(error) => Err(error.to_string()),
    }
}

fn load_default() -> Result<(), String> {
    let parser = AppArmor::parser().and_then(Path::to_str).ok_or_else(|| {
        format!(
            "{} is not installed (Debian's package `apparmor`), which compiles {DEFAULT}",
            PARSERS[0]
        )
    })?;
    let version = run(parser, &["--version"], "")?;
    let current = std::fs::read_to_string("/proc/self/attr/apparmor/current").unwrap_or_default();
    let text = profile(major(&version), confinement(&current));
    // Not from the cache: what is there may be of another release.
    run(parser, &["--replace", "--skip-cache", "--quiet"], &text).map(drop)?;
    match is_loaded(DEFAULT) {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!(
            "{parser} loaded {DEFAULT}, but the kernel does not show it"
        )),
        Err(error) => Err(error.to_string()),
    }
}

/// The text for a parser of this major version; `own` is the profile of the daemon, which its monitors inherit.
fn profile(parser: u32, own: Option<&str>) -> String {
    // These classes came with version 4, which denies what is not allowed of them; version 3 does not know the words.
    let rules = if parser >= 4 {
        "  userns,\n  io_uring,\n  mqueue,"
    } else {
        ""
    };
    let peer = own
        .map(|own| format!("  signal (receive) peer=\"{own}\","))
        .unwrap_or_default();
    TEMPLATE.replace("@RULES@", rules).replace("@PEER@", &peer)
}

/// From `AppArmor parser version 4.1.0` and lines after it.
fn major(version: &str) -> u32 {
    let number = version.lines().next().and_then(|line| line.rsplit(' ').next());
    let major = number.and_then(|number| number.split('.').next());
    major.and_then(|major| major.parse().ok()).unwrap_or(0)
}

/// From `name (mode)`; `None`: unconfined, or not to be quoted.
fn confinement(current: &str) -> Option<&str> {
    let name = current.trim_end_matches(['\n', '\0']).rsplit_once(" (")?.0;
    let plain =
        |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\' | '*' | '?' | '[' | '{' | '@' | '^');
    (name != "unconfined" && !name.is_empty() && name.chars().all(plain)).then_some(name)
}

fn run(program: &str, args: &[&str], input: &str) -> Result<String, String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what} {program}: {error}");
    let mut command = Command::new(program);
    holdfast_sys::process::keep_service_private(&mut command);
    let mut child = command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed("start", &e))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A few KiB: the pipe takes them at once. A parser that ends without reading says why itself.
        let _said_by_its_exit = stdin.write_all(input.as_bytes());
    }
    let deadline = Instant::now() + PARSER_LIMIT;
    loop {
        match child.try_wait() {
            Ok(Some(_)) => break,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(2)),
            Ok(None) => {
                let _gone = child.kill();
                let _reaped = child.wait();
                return Err(format!("{program} did not end within {PARSER_LIMIT:?}"));
            }
            Err(e) => return Err(failed("wait for", &e)),
        }
    }
    let output = child.wait_with_output().map_err(|e| failed("hear", &e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said: String = String::from_utf8_lossy(&output.stderr)
        .trim()
        .chars()
        .take(WORDS_LIMIT)
        .collect();
    Err(format!(
        "{program} could not load {DEFAULT} ({}): {said}",
        output.status
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_suits_its_parser() {
        let (old, new) = (profile(3, None), profile(4, Some("my-daemon")));
        assert!(!old.contains("userns") && new.contains("  userns,\n  io_uring,\n  mqueue,\n"));
        assert!(new.contains("signal (receive) peer=\"my-daemon\","));
        for text in [old, new] {
            assert!(!text.contains('@'), "{text}");
            assert_eq!(text.matches('{').count(), text.matches('}').count());
            assert!(text.contains("profile holdfast-default "));
        }
    }

    #[test]
    fn what_programs_print_is_understood() {
        assert_eq!(
            major("AppArmor parser version 4.1.0\nCopyright (C) 1999-2008 Novell Inc.\n"),
            4
        );
        assert_eq!(major("AppArmor parser version 3.0.8\n"), 3);
        assert_eq!(major("nonsense"), 0);
        assert_eq!(confinement("unconfined\n"), None);
        assert_eq!(confinement("holdfast (enforce)\n"), Some("holdfast"));
        assert_eq!(confinement("with \"quotes\" (enforce)"), None);
    }
}
