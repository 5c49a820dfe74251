//! Who a container runs as: CRI's wishes, the image's, and the image's own passwd and group.

use holdfast_model::{ContainerUser, GroupsPolicy, Invalid};

use super::Inputs;

/// Lines of passwd and group that are looked at; what is beyond is ignored.
const MAX_LINES: usize = 65_536;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub user: ContainerUser,
    /// `/` where passwd does not say.
    pub home: String,
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn lines(file: Option<&[u8]>) -> impl Iterator<Item = &str> {
    file.unwrap_or_default()
        .split(|byte| *byte == b'\n')
        .take(MAX_LINES)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .map(|line| line.trim_end_matches('\r'))
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// name:password:uid:gid:gecos:home:shell (passwd(5)); lines that are not so are passed over.
fn passwd(file: Option<&[u8]>) -> impl Iterator<Item = PasswdEntry<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let _password = fields.next()?;
        let uid = fields.next()?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let _gecos = fields.next();
        let home = fields.next().unwrap_or("");
        Some(PasswdEntry { name, uid, gid, home })
    })
}

/// name:password:gid:member,member (group(5)).
fn group(file: Option<&[u8]>) -> impl Iterator<Item = (&str, u32, &str)> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let _password = fields.next()?;
        let gid = fields.next()?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

fn id(text: &str, field: &str) -> Result<Option<u32>, Invalid> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse::<u32>() {
        Ok(id) if id < 1 << 31 => Ok(Some(id)),
        _ => Err(Invalid::new(
            field,
            format!("{text} is not an id from 0 to 2147483647"),
        )),
    }
}

fn small(id: i64, field: &str) -> Result<u32, Invalid> {
    u32::try_from(id).map_err(|_| Invalid::new(field, format!("{id} is not an id from 0 to 2147483647")))
}

struct Found {
    uid: u32,
    gid: u32,
    /// Only where passwd has it.
    name: Option<String>,
    home: Option<String>,
}

impl Found {
    fn entry(entry: &PasswdEntry<'_>) -> Self {
        Self {
            uid: entry.uid,
            gid: entry.gid,
            name: Some(entry.name.to_owned()),
            home: Some(entry.home.to_owned()),
        }
    }

    fn by_uid(file: Option<&[u8]>, uid: u32) -> Self {
        match passwd(file).find(|entry| entry.uid == uid) {
            Some(entry) => Self::entry(&entry),
            None => Self {
                uid,
                gid: 0,
                name: None,
                home: None,
            },
        }
    }

    /// A name first, as useradd allows names of digits; then a number.
    fn by_text(file: Option<&[u8]>, text: &str, field: &str) -> Result<Self, Invalid> {
        if let Some(entry) = passwd(file).find(|entry| entry.name == text) {
            return Ok(Self::entry(&entry));
        }
        match id(text, field)? {
            Some(uid) => Ok(Self::by_uid(file, uid)),
            None => Err(Invalid::new(
                field,
                format!("the image's /etc/passwd has no user {text:?}"),
            )),
        }
    }
}

fn group_by_text(file: Option<&[u8]>, text: &str, field: &str) -> Result<u32, Invalid> {
    if let Some((_, gid, _)) = group(file).find(|(name, ..)| *name == text) {
        return Ok(gid);
    }
    id(text, field)?
        .ok_or_else(|| Invalid::new(field, format!("the image's /etc/group has no group {text:?}")))
}

pub(crate) fn resolve(inputs: &Inputs<'_>) -> Result<Identity, Invalid> {
    const SECURITY: &str = "linux.security_context";
    let security = &inputs.container.security;
    let mut found = if let Some(uid) = security.run_as_user {
        Found::by_uid(inputs.passwd, small(uid, "linux.security_context.run_as_user")?)
    } else if !security.run_as_username.is_empty() {
        let field = format!("{SECURITY}.run_as_username");
        Found::by_text(inputs.passwd, &security.run_as_username, &field)?
    } else {
        image_user(inputs)?
    };
    if let Some(gid) = security.run_as_group {
        found.gid = small(gid, "linux.security_context.run_as_group")?;
    }
    let mut groups = vec![found.gid];
    if security.groups_policy == GroupsPolicy::Merge
        && let Some(name) = &found.name
    {
        let member = |members: &str| members.split(',').any(|member| member.trim() == name);
        groups.extend(
            group(inputs.group)
                .filter(|(_, _, members)| member(members))
                .map(|(_, gid, _)| gid),
        );
    }
    for gid in &security.supplemental_groups {
        groups.push(small(*gid, "linux.security_context.supplemental_groups")?);
    }
    let mut seen = std::collections::HashSet::new();
    groups.retain(|gid| seen.insert(*gid));
    from_files(found.name.as_deref(), found.uid, &groups)?;
    let home = home(found.name.as_deref(), found.home)?;
    Ok(Identity {
        user: ContainerUser {
            uid: found.uid,
            gid: found.gid,
            groups,
        },
        home,
    })
}

/// What comes from the image's files is held to the same as what comes with a request.
fn from_files(name: Option<&str>, uid: u32, groups: &[u32]) -> Result<(), Invalid> {
    let fine = |id: &u32| *id < 1 << 31;
    let (what, id) = match groups.iter().find(|gid| !fine(gid)) {
        _ if !fine(&uid) => ("the user", uid),
        Some(gid) => ("a group", *gid),
        None => return Ok(()),
    };
    Err(Invalid::new(
        "the image's /etc/passwd or /etc/group",
        format!(
            "give {what} id {id} to {:?}; possible are ids from 0 to 2147483647",
            name.unwrap_or_default()
        ),
    ))
}

/// It becomes HOME, which many programs copy into files of lines.
fn home(name: Option<&str>, home: Option<String>) -> Result<String, Invalid> {
    match home.filter(|home| home.starts_with('/')) {
        None => Ok("/".into()),
        Some(home) if home.chars().any(char::is_control) => Err(Invalid::new(
            "the image's /etc/passwd",
            format!(
                "the home directory of {:?}, which becomes HOME, holds a control character: {home:?}",
                name.unwrap_or_default()
            ),
        )),
        Some(home) => Ok(home),
    }
}

fn image_user(inputs: &Inputs<'_>) -> Result<Found, Invalid> {
    const FIELD: &str = "the image's user";
    let text = inputs.image.user.as_str();
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, group),
        None => (text, ""),
    };
    let mut found = if user.is_empty() {
        Found::by_uid(inputs.passwd, 0)
    } else {
        Found::by_text(inputs.passwd, user, FIELD)?
    };
    if !group.is_empty() {
        found.gid = group_by_text(inputs.group, group, FIELD)?;
    }
    Ok(found)
}
