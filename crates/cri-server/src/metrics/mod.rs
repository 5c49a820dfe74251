//! What pods and containers use, under the names that cAdvisor made customary (KEP-2371). The kubelet passes them on as
//! they are, with the labels of their descriptors.

mod table;
mod values;

pub use table::descriptors;
pub use values::of_pod;

#[cfg(test)]
mod tests;
