//! Scored super-batches in, verdicts out: what is kept, and why.
