//! Reproduces the reference behaviours of METHODS §7 on planted pools, with the library's own scores and draws.
//!
//! ```text
//! cargo run --release --example planted -- [--seeds 10] [--svg PATH] [--oracle FILE]
//! ```
//!
//! Prints a Markdown table of every line over the seeds, with spread. `--oracle` takes what `tests/oracle/planted.py
//! --json FILE` writes, the same lines by NumPy for the same pools, and sets its figures beside ours.

mod pools;
mod baselines;
mod lines;
mod table;
mod plot;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Parser;
use rayon::prelude::*;

#[derive(Parser)]
struct Options {
    /// How many seeds, from 1 on.
    #[arg(long, default_value_t = 10)]
    seeds: u64,
    /// Writes a picture of the chunk curve and the filter-ratio curve.
    #[arg(long)]
    svg: Option<PathBuf>,
    /// Lines by `tests/oracle/planted.py --json FILE`.
    #[arg(long)]
    oracle: Option<PathBuf>,
}

fn main() -> std::io::Result<()> {
    let options = Options::parse();
    assert!(options.seeds > 0, "no seed, no line");
    let oracle: BTreeMap<String, Vec<f64>> = match &options.oracle {
        Some(path) => serde_json::from_slice(&std::fs::read(path)?)?,
        None => BTreeMap::new(),
    };
    let seeds: Vec<lines::Lines> = (1..=options.seeds).into_par_iter().map(lines::all).collect();
    let found = table::by_line(&seeds);
    println!("{}", table::markdown(&found, &oracle));
    println!("{}", table::control(&found));
    if !oracle.is_empty() {
        println!("{}", table::agreement(&found, &oracle));
    }
    if let Some(path) = &options.svg {
        std::fs::write(path, plot::svg(&found))?;
    }
    Ok(())
}
