//! Security modules of the kernel that confine containers by name: AppArmor's profiles, SELinux's labels. What this
//! kernel offers is asked once, at the start; what a container asks for is checked when it comes. Leaves out applying
//! them, which is the launcher's.

pub(crate) mod apparmor;
pub(crate) mod selinux;

pub use apparmor::AppArmor;
pub use selinux::Selinux;

/// Why something is not possible here, where the configuration says so.
const SWITCHED_OFF: &str = "it is switched off in holdfast's configuration ([security])";
