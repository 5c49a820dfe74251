//! What a tracked file may look like: its length, `unsafe`, stubs, and names that belong to one machine.

/// Lines that a Rust source file may have, tests included (they go to `tests.rs` when they grow).
const MAX_LINES: usize = 800;

/// Crates that may hold `unsafe`.
const UNSAFE_CRATES: &[&str] = &["crates/sys/", "crates/pause/"];

pub fn check(name: &str, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    if name == "crates/tidy/src/files.rs" || name == "Cargo.lock" {
        return findings;
    }
    for (number, line) in text.lines().enumerate() {
        let at = format!("{name}:{}", number + 1);
        if names_a_machine(line) {
            findings.push(format!("{at}: a path or host of one machine"));
        }
        if name.ends_with(".rs") {
            findings.extend(rust_line(name, line).map(|what| format!("{at}: {what}")));
        }
    }
    if name.ends_with(".rs") {
        let lines = text.lines().count();
        if lines > MAX_LINES {
            findings.push(format!("{name}: {lines} lines, more than {MAX_LINES}: split it"));
        }
        let is_library = name.ends_with("/src/lib.rs") || name.ends_with("/src/main.rs");
        if is_library && !text.starts_with("//!") && !text.starts_with("#!") {
            findings.push(format!("{name}: no `//!` that says what it owns and leaves out"));
        }
    }
    findings
}

fn rust_line(name: &str, line: &str) -> Option<&'static str> {
    let code = line.split("//").next().unwrap_or(line).trim();
    let has_unsafe = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
        .iter()
        .any(|k| code.contains(k));
    if has_unsafe && !UNSAFE_CRATES.iter().any(|c| name.starts_with(c)) {
        return Some("unsafe outside crates/sys and crates/pause");
    }
    if code.contains("todo!(") || code.contains("unimplemented!(") {
        return Some("a stub");
    }
    if code.starts_with("#[ignore") {
        return Some("an ignored test: give it a target of its own or delete it");
    }
    if code.contains("assert!(true") {
        return Some("a test that cannot fail");
    }
    None
}

/// Absolute paths of a developer's machine and hosts of package mirrors have no place in a repository that stands alone.
fn names_a_machine(line: &str) -> bool {
    const PATHS: &[&str] = &[
        "/work/main",
        "/work/shared",
        "/work/tmp",
        "/work/target",
        "/work/.",
        "/root/.cargo",
        "/root/.cache",
        "/root/.rustup",
    ];
    const MIRRORS: &[&str] = &[
        "deb.debian.org",
        "index.crates.io",
        "static.crates.io",
        "pypi.org/",
        "registry.npmjs",
    ];
    PATHS.iter().chain(MIRRORS).any(|p| line.contains(p))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_file_has_no_finding() {
        assert_eq!(
            check("crates/model/src/lib.rs", "//! What a pod is.\npub struct Pod;\n"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn unsafe_is_fenced() {
        let text = "//! x\nfn f() { unsafe { g() } }\n";
        assert_eq!(check("crates/engine/src/lib.rs", text).len(), 1);
        assert_eq!(check("crates/sys/src/lib.rs", text).len(), 0);
        assert_eq!(
            check("crates/engine/src/lib.rs", "//! x\n// never unsafe { }\n").len(),
            0
        );
    }

    #[test]
    fn length_stubs_and_headers() {
        let long = format!("//! x\n{}", "fn a() {}\n".repeat(MAX_LINES));
        assert_eq!(check("crates/a/src/b.rs", &long).len(), 1);
        assert_eq!(check("crates/a/src/b.rs", "fn a() { todo!() }\n").len(), 1);
        assert_eq!(check("crates/a/src/lib.rs", "fn a() {}\n").len(), 1);
        assert_eq!(
            check("crates/a/tests/b.rs", "#[ignore]\n#[test]\nfn a() {}\n").len(),
            1
        );
    }

    #[test]
    fn names_of_one_machine() {
        assert_eq!(check("README.md", "see /work/main/x\n").len(), 1);
        assert_eq!(check("README.md", "see /var/lib/holdfast\n").len(), 0);
    }
}
