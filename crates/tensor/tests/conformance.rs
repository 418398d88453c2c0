//! Every instruction set of this CPU, and any number of threads, against the reference backend.

use microscale_tensor::{Cpu, Isa, conformance};

#[test]
fn every_instruction_set_equals_the_reference() {
    for isa in Isa::available() {
        conformance::check(&Cpu::with_isa(isa)).unwrap_or_else(|difference| panic!("{isa}: {difference}"));
    }
}
