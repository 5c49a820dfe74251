//! Architectures and looking up system calls.

use crate::tables::{ARM_PRIVATE, TABLE, X};
use oci_spec::runtime::Arch;

/// The bit that marks an x32 call: it shares x86-64's audit architecture.
pub(crate) const X32_BIT: u32 = 0x4000_0000;

/// What a kernel runs on. Each also runs the programs of an older 32-bit architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Machine {
    X86_64,
    Aarch64,
}

impl Machine {
    /// The one that this program was built for.
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Self = Self::X86_64;
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Self = Self::Aarch64;

    /// Its own table first.
    #[must_use]
    pub fn tables(self) -> &'static [SyscallTable] {
        match self {
            Self::X86_64 => &[SyscallTable::X86_64, SyscallTable::I386, SyscallTable::X32],
            Self::Aarch64 => &[SyscallTable::Aarch64, SyscallTable::Arm],
        }
    }
}

/// One numbering of system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SyscallTable {
    X86_64 = 0,
    I386 = 1,
    X32 = 2,
    Aarch64 = 3,
    Arm = 4,
}

impl SyscallTable {
    /// The number of `name`, as a filter sees it (x32's with their marker bit).
    #[must_use]
    pub fn number(self, name: &str) -> Option<u32> {
        self.number_in(find(name)?)
    }

    pub(crate) fn number_in(self, row: &[u16; 5]) -> Option<u32> {
        match (self, row[self as usize]) {
            (_, X) => None,
            (Self::X32, number) => Some(u32::from(number) | X32_BIT),
            (Self::Arm, number) if number >= ARM_PRIVATE => Some(0xf_0000 | u32::from(number & 0xf)),
            (_, number) => Some(u32::from(number)),
        }
    }

    /// What `seccomp_data.arch` holds (AUDIT_ARCH_*).
    #[must_use]
    pub fn audit_arch(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::I386 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// Whether arguments have only 32 bits that count.
    pub(crate) fn is_32_bit(self) -> bool {
        !matches!(self, Self::X86_64 | Self::Aarch64)
    }

    pub(crate) fn of(arch: Arch) -> Option<Self> {
        match arch {
            Arch::ScmpArchX86_64 => Some(Self::X86_64),
            Arch::ScmpArchX86 => Some(Self::I386),
            Arch::ScmpArchX32 => Some(Self::X32),
            Arch::ScmpArchAarch64 => Some(Self::Aarch64),
            Arch::ScmpArchArm => Some(Self::Arm),
            _ => None,
        }
    }
}

/// The numbers of `name` in all tables.
pub(crate) fn find(name: &str) -> Option<&'static [u16; 5]> {
    let at = TABLE.binary_search_by(|(row, _)| (*row).cmp(name)).ok()?;
    Some(&TABLE[at].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_its_numbers_are_unique() {
        assert!(TABLE.windows(2).all(|pair| pair[0].0 < pair[1].0));
        for table in [
            SyscallTable::X86_64,
            SyscallTable::I386,
            SyscallTable::X32,
            SyscallTable::Aarch64,
        ] {
            let mut numbers: Vec<u32> = TABLE.iter().filter_map(|(_, row)| table.number_in(row)).collect();
            let all = numbers.len();
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), all, "{table:?}");
            assert!(all > 300, "{table:?}");
        }
    }

    /// Against numbers from another source: each architecture's ABI as its manual pages and libc have them.
    #[test]
    fn known_numbers() {
        let table = [
            ("read", [Some(0), Some(3), Some(X32_BIT), Some(63), Some(3)]),
            (
                "execve",
                [Some(59), Some(11), Some(520 | X32_BIT), Some(221), Some(11)],
            ),
            ("open", [Some(2), Some(5), Some(2 | X32_BIT), None, Some(5)]),
            (
                "clone3",
                [Some(435), Some(435), Some(435 | X32_BIT), Some(435), Some(435)],
            ),
            ("socketcall", [None, Some(102), None, None, None]),
            ("set_tls", [None, None, None, None, Some(0xf_0005)]),
            ("no_such_call", [None; 5]),
        ];
        let columns = [
            SyscallTable::X86_64,
            SyscallTable::I386,
            SyscallTable::X32,
            SyscallTable::Aarch64,
            SyscallTable::Arm,
        ];
        for (name, numbers) in table {
            for (column, number) in columns.into_iter().zip(numbers) {
                assert_eq!(column.number(name), number, "{name} {column:?}");
            }
        }
    }
}
