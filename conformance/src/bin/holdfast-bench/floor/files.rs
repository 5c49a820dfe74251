//! The files that the floor's containers run on.

use std::ffi::CString;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use holdfast_sys::exec::Image;
use rustix::fs::Mode;

pub struct Files {
    scratch: PathBuf,
    /// The only layer.
    pub lower: PathBuf,
    /// A static busybox, open.
    pub busybox: File,
}

/// Where one container writes.
pub struct Place {
    dir: PathBuf,
    pub root: PathBuf,
    pub overlay: CString,
}

impl Files {
    pub fn new(scratch: &Path) -> anyhow::Result<Self> {
        let lower = scratch.join("lower");
        for dir in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
            std::fs::create_dir_all(lower.join(dir))?;
        }
        let busybox = ["/usr/bin/busybox", "/bin/busybox"]
            .iter()
            .find(|path| Path::new(path).exists())
            .context("no busybox: install Debian's busybox-static")?;
        std::fs::copy(busybox, lower.join("bin/busybox"))?;
        Ok(Self {
            scratch: scratch.to_owned(),
            busybox: File::open(lower.join("bin/busybox"))?,
            lower,
        })
    }

    pub fn place(&self, number: u32) -> anyhow::Result<Place> {
        let dir = self.scratch.join(number.to_string());
        let mode = Mode::from_raw_mode(0o755);
        rustix::fs::mkdir(&dir, mode)?;
        let [root, upper, work] = ["root", "upper", "work"].map(|name| dir.join(name));
        for one in [&root, &upper, &work] {
            rustix::fs::mkdir(one, mode)?;
        }
        let overlay = format!(
            "lowerdir={},upperdir={},workdir={},volatile",
            self.lower.display(),
            upper.display(),
            work.display()
        );
        Ok(Place {
            dir,
            root,
            overlay: CString::new(overlay)?,
        })
    }
}

impl Place {
    pub fn remove(&self) -> anyhow::Result<()> {
        std::fs::remove_dir_all(&self.dir).with_context(|| format!("remove {}", self.dir.display()))
    }
}

/// busybox with these words.
pub fn program(words: &[&str]) -> anyhow::Result<Image> {
    let args = words
        .iter()
        .map(|word| CString::new(*word))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Image::new(args, vec![c"PATH=/bin".to_owned()]))
}
