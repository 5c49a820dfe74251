//! Tests of this module; filled with the archives that real tools make.
