//! Classic BPF, assembled backwards.
//!
//! Jumps of classic BPF only lead forwards, so a program that is built from its end knows every target already, and
//! can share the returns at its tail. A place is counted from the end. Conditional jumps reach 255 instructions; what
//! is further away gets a copy (a return) or an unconditional jump in between.

use holdfast_sys::seccomp::Instruction;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
pub(crate) const JUMP_EQUAL: u16 = 0x15;
pub(crate) const JUMP_GREATER: u16 = 0x25;
pub(crate) const JUMP_GREATER_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
pub(crate) const NUMBER: u32 = 0;
pub(crate) const ARCH: u32 = 4;
pub(crate) const ARGUMENTS: u32 = 16;

/// Where an instruction is: its distance from the end of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(usize);

#[derive(Debug, Default)]
pub(crate) struct Assembler {
    /// Last instruction first.
    reversed: Vec<Instruction>,
    /// The nearest return of each value.
    returns: Vec<(u32, Place)>,
}

impl Assembler {
    pub fn finish(mut self) -> Vec<Instruction> {
        self.reversed.reverse();
        self.reversed
    }

    pub fn len(&self) -> usize {
        self.reversed.len()
    }

    /// A return of `value`: one that is near enough, or a new one.
    pub fn give(&mut self, value: u32) -> Place {
        const NEAR: usize = 128;
        let known = self.returns.iter().position(|it| it.0 == value);
        match known.map(|at| self.returns[at].1) {
            Some(place) if self.len() - place.0 < NEAR => return place,
            _ => {}
        }
        let place = self.push(RETURN, value, 0, 0);
        match known {
            Some(at) => self.returns[at].1 = place,
            None => self.returns.push((value, place)),
        }
        place
    }

    /// Loads a word of `seccomp_data`, then goes on at `next`.
    pub fn load(&mut self, offset: u32, next: Place) -> Place {
        self.fall_into(next);
        self.push(LOAD, offset, 0, 0)
    }

    /// Masks the loaded word, then goes on at `next`.
    pub fn and(&mut self, mask: u32, next: Place) -> Place {
        self.fall_into(next);
        self.push(AND, mask, 0, 0)
    }

    /// Compares the loaded word with `value`.
    pub fn jump(&mut self, test: u16, value: u32, yes: Place, no: Place) -> Place {
        if yes == no {
            return yes;
        }
        // Bringing the second target near can push the first one instruction further away.
        let yes = self.within(yes, 254);
        let no = self.within(no, 255);
        let (yes, no) = (self.distance(yes), self.distance(no));
        self.push(test, value, yes as u8, no as u8)
    }

    fn fall_into(&mut self, next: Place) {
        if self.distance(next) != 0 {
            self.push(JUMP, self.distance(next) as u32, 0, 0);
        }
    }

    fn within(&mut self, place: Place, most: usize) -> Place {
        if self.distance(place) <= most {
            return place;
        }
        match self.reversed[place.0] {
            target if target.code == RETURN => self.push(RETURN, target.k, 0, 0),
            _ => self.push(JUMP, self.distance(place) as u32, 0, 0),
        }
    }

    /// How many instructions the next one would have to skip to get there.
    fn distance(&self, place: Place) -> usize {
        self.len() - place.0 - 1
    }

    fn push(&mut self, code: u16, k: u32, jt: u8, jf: u8) -> Place {
        self.reversed.push(Instruction { code, jt, jf, k });
        Place(self.len() - 1)
    }
}
