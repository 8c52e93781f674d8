//! Every method against numbers that were computed without it: `golden/methods/*.json`, written by
//! `oracle/golden_methods.py` from the formulas, dense and in f64. What each file holds: `golden/methods/README.md`.

mod pool;
#[path = "../support/golden.rs"]
mod support;

mod agreement;
mod clusters;
mod counts;
mod field;
mod hardness;
mod independent;
mod joint;
mod laws;
mod planted;
mod plackett_luce;
mod scores;
