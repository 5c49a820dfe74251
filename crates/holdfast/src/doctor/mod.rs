//! `holdfast doctor`: what this node has of what pods need, by trying it. Nothing is changed: what is made for a probe
//! (a cgroup, a network namespace) is gone when the line is printed.
//!
//! Each line is ok, degraded (pods run, something is lost) or missing (pods cannot run). The exit code is 1 if a line is
//! missing.

mod cgroups;
mod kernel;
mod network;
mod node;

use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use crate::args::{Doctor, Format};
use crate::config::{self, Config, Overrides};
use crate::output;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    Ok,
    Degraded,
    Missing,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    check: &'static str,
    grade: Grade,
    /// What there is.
    found: String,
    /// What pods go without; empty where the grade is ok.
    lost: String,
    /// What an administrator can do about it; empty where the grade is ok.
    remedy: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            grade: Grade::Ok,
            found: found.into(),
            lost: String::new(),
            remedy: String::new(),
        }
    }

    fn degraded(check: &'static str, found: impl Into<String>, lost: &str, remedy: &str) -> Self {
        Self {
            grade: Grade::Degraded,
            lost: lost.into(),
            remedy: remedy.into(),
            ..Self::ok(check, found)
        }
    }

    fn missing(check: &'static str, found: impl Into<String>, lost: &str, remedy: &str) -> Self {
        Self {
            grade: Grade::Missing,
            ..Self::degraded(check, found, lost, remedy)
        }
    }
}

#[derive(Serialize)]
struct Report<'a> {
    version: &'static str,
    grade: Grade,
    checks: &'a [Finding],
}

pub fn run(options: &Doctor, format: Format) -> Result<ExitCode> {
    let (config, configured) = configuration(options)?;
    let mut all = vec![configured];
    all.extend(node::privileges());
    all.extend(kernel::all(&config));
    all.extend(cgroups::all(&config));
    all.extend(network::all(&config));
    all.extend(node::all(&config));
    let grade = worst(&all);
    if format == Format::Json {
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            grade,
            checks: &all,
        };
        output::print(&serde_json::to_value(report)?)?;
    } else {
        for finding in &all {
            print(finding)?;
        }
    }
    Ok(match grade {
        Grade::Ok | Grade::Degraded => ExitCode::SUCCESS,
        Grade::Missing => ExitCode::FAILURE,
    })
}

/// A configuration that cannot be used is a finding too; the rest is then looked at with the defaults.
fn configuration(options: &Doctor) -> Result<(Config, Finding)> {
    const CHECK: &str = "configuration";
    let overrides = |options: &Doctor| Overrides {
        root: options.root.clone(),
        state: options.state.clone(),
        listen: None,
    };
    let read = config::load(options.config.as_deref())
        .and_then(|(raw, origins)| Config::new(raw, &origins, overrides(options)));
    match read {
        Ok(config) => {
            let found = format!(
                "root {}, state {}, cgroup driver {}",
                config.root.display(),
                config.state.display(),
                config.engine.cgroup_driver.as_str()
            );
            Ok((config, Finding::ok(CHECK, found)))
        }
        Err(error) => {
            let config = Config::new(
                config::Raw::default(),
                &config::Origins::default(),
                overrides(options),
            )?;
            let finding = Finding::missing(
                CHECK,
                format!("{error:#}"),
                "the daemon does not start; the rest of this was looked at with the defaults",
                "correct it; `holdfast config check` tries it, `holdfast config default` shows every key",
            );
            Ok((config, finding))
        }
    }
}

fn worst(all: &[Finding]) -> Grade {
    let has = |grade| all.iter().any(|finding| finding.grade == grade);
    match (has(Grade::Missing), has(Grade::Degraded)) {
        (true, _) => Grade::Missing,
        (false, true) => Grade::Degraded,
        (false, false) => Grade::Ok,
    }
}

fn print(finding: &Finding) -> Result<()> {
    let grade = match finding.grade {
        Grade::Ok => "ok",
        Grade::Degraded => "degraded",
        Grade::Missing => "missing",
    };
    output::line(format_args!("{grade:<9} {:<17} {}", finding.check, finding.found))?;
    if finding.grade != Grade::Ok {
        output::line(format_args!("{:>10}lost: {}", "", finding.lost))?;
        output::line(format_args!("{:>10}do:   {}", "", finding.remedy))?;
    }
    Ok(())
}

/// An errno with its number, as people search for it.
fn reason(error: &std::io::Error) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_line_decides() {
        let ok = Finding::ok("a", "");
        let degraded = Finding::degraded("b", "", "x", "y");
        let missing = Finding::missing("c", "", "x", "y");
        assert_eq!(worst(std::slice::from_ref(&ok)), Grade::Ok);
        assert_eq!(worst(&[ok.clone(), degraded.clone()]), Grade::Degraded);
        assert_eq!(worst(&[missing, degraded, ok]), Grade::Missing);
    }

    /// Whatever the machine is like, every line says all that it should.
    #[test]
    fn findings_are_complete() {
        let config = Config::new(
            config::Raw::default(),
            &config::Origins::default(),
            Overrides::default(),
        )
        .unwrap();
        let mut all: Vec<Finding> = node::privileges().into_iter().collect();
        all.extend(kernel::all(&config));
        all.extend(cgroups::all(&config));
        all.extend(network::all(&config));
        all.extend(node::all(&config));
        let mut names = std::collections::BTreeSet::new();
        for finding in &all {
            assert!(names.insert(finding.check), "{} twice", finding.check);
            assert!(!finding.found.is_empty(), "{finding:?}");
            let said = !finding.lost.is_empty() && !finding.remedy.is_empty();
            assert_eq!(said, finding.grade != Grade::Ok, "{finding:?}");
        }
        assert!(all.len() > 20, "{}", all.len());
    }
}
