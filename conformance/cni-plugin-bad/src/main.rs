//! A CNI plugin that does on demand what plugins do at their worst.
//!
//! The network configuration says what, by command:
//!
//! ```json
//! {"type": "holdfast-cni-bad", "journal": "/tmp/journal", "address": "10.9.9.9/24",
//!  "behaviour": {"ADD": "ok", "DEL": "fail-until:/tmp/flag"}}
//! ```
//!
//! `ok` (the default) answers with `address`; `fail` reports a CNI error; `die` exits with 3 and a word on standard error;
//! `hang` sleeps for an hour, with a child that does too; `garbage` prints what is no JSON and exits with 0; `nothing`
//! exits with 0; `huge` prints without end; `linger` answers, and leaves a child behind that holds the pipes;
//! `fail-until:PATH` fails until the path exists; `deaf` answers without having read its input. Each call adds a line to
//! `journal`: the command, the container and what it was given.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread::sleep;
use std::time::Duration;

use cni_plugin::reply::{Dns, ErrorReply, Interface, Ip, SuccessReply, reply};
use cni_plugin::{Cni, Inputs};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(3600);

fn main() -> ExitCode {
    // Answers VERSION and malformed input by itself.
    let Some(inputs) = Cni::load().into_inputs() else {
        return ExitCode::FAILURE;
    };
    let command = inputs.command.as_ref().to_owned();
    let specific = &inputs.config.specific;
    journal(&inputs, &command);
    let behaviour = specific
        .get("behaviour")
        .and_then(|b| b.get(&command))
        .and_then(Value::as_str)
        .unwrap_or("ok");
    match behaviour {
        "fail" => refuse(&inputs, "told to fail"),
        "die" => {
            eprintln!("told to die\u{1b}[31m");
            return ExitCode::from(3);
        }
        "hang" => {
            let _child = Command::new("/bin/sleep").arg("3600").spawn();
            sleep(LONG);
        }
        "garbage" => print!("\u{1b}[2Jthis is \u{0}no JSON"),
        "nothing" => {}
        "huge" => loop {
            if io::stdout().write_all(&[b'x'; 65536]).is_err() {
                return ExitCode::FAILURE;
            }
        },
        "linger" => {
            let _child = Command::new("/bin/sleep").arg("20").stdin(Stdio::null()).spawn();
            succeed(&inputs, &command);
        }
        other => match other.strip_prefix("fail-until:") {
            Some(flag) if !Path::new(flag).exists() => refuse(&inputs, "the flag is not there yet"),
            _ => succeed(&inputs, &command),
        },
    }
    ExitCode::SUCCESS
}

fn journal(inputs: &Inputs, command: &str) {
    let Some(path) = inputs.config.specific.get("journal").and_then(Value::as_str) else {
        return;
    };
    let line = serde_json::json!({
        "command": command,
        "pid": std::process::id(),
        "container": inputs.container_id,
        "netns": inputs.netns,
        "args": std::env::var("CNI_ARGS").unwrap_or_default(),
        "config": inputs.config,
    });
    if let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path) {
        let _ = writeln!(file, "{line}");
    }
}

fn refuse(inputs: &Inputs, why: &str) -> ! {
    reply(ErrorReply {
        cni_version: inputs.config.cni_version.clone(),
        code: 100,
        msg: "misbehaving",
        details: why.to_owned(),
    })
}

fn succeed(inputs: &Inputs, command: &str) {
    if command != "ADD" {
        return;
    }
    let address = inputs
        .config
        .specific
        .get("address")
        .and_then(Value::as_str)
        .unwrap_or("10.9.9.9/24");
    let Ok(address) = address.parse() else {
        refuse(inputs, "the address is none");
    };
    reply(SuccessReply {
        cni_version: inputs.config.cni_version.clone(),
        interfaces: vec![Interface {
            name: inputs.ifname.clone(),
            mac: None,
            sandbox: inputs.netns.clone().unwrap_or_default(),
        }],
        ips: vec![Ip {
            address,
            gateway: None,
            interface: Some(0),
        }],
        routes: Vec::new(),
        dns: Dns::default(),
        specific: Default::default(),
    })
}
