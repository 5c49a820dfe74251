//! The wire is fixed: `golden/wire.txt` lists every name, number and type. `UPDATE_GOLDEN=1` rewrites it,
//! and the diff is then read by someone who has the specification at hand.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;

use holdfast_cri_api::{DESCRIPTORS, v1};
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};

fn descriptors() -> FileDescriptorSet {
    FileDescriptorSet::decode(DESCRIPTORS).unwrap()
}

#[test]
fn every_call_is_there() {
    let set = descriptors();
    let count = |service: &str| {
        set.file
            .iter()
            .flat_map(|f| &f.service)
            .find(|s| s.name() == service)
            .unwrap()
            .method
            .len()
    };
    assert_eq!(count("RuntimeService"), 37);
    assert_eq!(count("ImageService"), 6);
}

#[test]
fn names_numbers_and_types() {
    let set = descriptors();
    let mut lines = Vec::new();
    for file in set.file.iter().filter(|f| f.package() == "runtime.v1") {
        for s in &file.service {
            for m in &s.method {
                let stream = if m.server_streaming() { "stream " } else { "" };
                assert!(!m.client_streaming());
                lines.push(format!(
                    "rpc {}.{} {} -> {stream}{}",
                    s.name(),
                    m.name(),
                    short(m.input_type()),
                    short(m.output_type())
                ));
            }
        }
        for e in &file.enum_type {
            lines.push(enumeration("", e));
        }
        for m in &file.message_type {
            message(m, &mut lines);
        }
    }
    lines.sort();
    let text = lines.join("\n") + "\n";

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/wire.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).unwrap();
        std::fs::write(path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    for (now, then) in text.lines().zip(golden.lines()) {
        assert_eq!(now, then);
    }
    assert_eq!(text.lines().count(), golden.lines().count());
}

#[test]
fn credentials_are_not_printed() {
    let request = v1::PullImageRequest {
        auth: Some(v1::AuthConfig {
            username: "someone".into(),
            password: "hunter2".into(),
            auth: "c29tZW9uZTpodW50ZXIy".into(),
            identity_token: "id-token".into(),
            registry_token: "reg-token".into(),
            server_address: "registry.example".into(),
        }),
        ..Default::default()
    };
    let text = format!("{request:?}");
    for secret in ["hunter2", "c29tZW9uZTpodW50ZXIy", "id-token", "reg-token"] {
        assert!(!text.contains(secret), "{text}");
    }
    assert!(text.contains("registry.example"));
}

/// `Name field=number:type …`; repeated types in brackets, maps as `{key,value}`.
fn message(m: &DescriptorProto, lines: &mut Vec<String>) {
    let mut line = format!("message {}", m.name());
    for f in &m.field {
        let nested = m
            .nested_type
            .iter()
            .find(|n| f.type_name().ends_with(&format!(".{}.{}", m.name(), n.name())));
        let ty = match nested {
            Some(entry)
                if entry
                    .options
                    .as_ref()
                    .is_some_and(prost_types::MessageOptions::map_entry) =>
            {
                format!(
                    "{{{},{}}}",
                    field_type(&entry.field[0]),
                    field_type(&entry.field[1])
                )
            }
            _ if f.label() == Label::Repeated => format!("[{}]", field_type(f)),
            _ => field_type(f),
        };
        write!(line, " {}={}:{ty}", f.name(), f.number()).unwrap();
    }
    lines.push(line);
    for e in &m.enum_type {
        lines.push(enumeration(&format!("{}.", m.name()), e));
    }
}

fn enumeration(scope: &str, e: &EnumDescriptorProto) -> String {
    e.value
        .iter()
        .fold(format!("enum {scope}{}", e.name()), |line, v| {
            format!("{line} {}={}", v.name(), v.number())
        })
}

fn field_type(f: &prost_types::FieldDescriptorProto) -> String {
    match f.r#type() {
        Type::Message | Type::Enum => short(f.type_name()).to_owned(),
        other => format!("{other:?}").to_lowercase(),
    }
}

fn short(name: &str) -> &str {
    name.strip_prefix(".runtime.v1.").unwrap_or(name)
}
