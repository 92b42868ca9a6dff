//! The decisions, as pure functions over plain data: no I/O, no clock, no randomness of their own.
//!
//! What was observed goes in ([`plan::Observed`]), a step comes out ([`plan::decide`]); what became of the step
//! goes in, the next status comes out ([`status`]).

pub mod address;
pub mod admission;
pub mod announcement;
pub mod audit;
pub mod backoff;
pub mod custody;
pub mod duration;
pub mod glob;
pub mod grant;
pub mod plan;
pub mod pod;
pub mod policies;
pub mod renewal;
pub mod rights;
pub mod rules;
pub mod status;
pub mod sweep;
pub mod tally;
pub mod tenure;
pub mod token;
