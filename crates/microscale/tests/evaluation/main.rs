//! Whole evaluations through the library: against other programs, and against themselves under other circumstances.

mod demo;
mod identity;
mod reference;
mod speed;
mod support;
