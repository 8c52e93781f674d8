//! Markers in, what their tasks ran on out: each model, and what found the clusters.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::run_folder::{RunFolder, Stage};

/// One way in which tasks ran: the runtime, the provider, how many nodes of their graphs each provider took, the rows
/// at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inference {
    pub numerics: BTreeMap<String, String>,
    /// Tasks that ran so; a run that moves between kinds of machines has several ways.
    pub n_tasks: usize,
}

/// Of each model, by role.
pub fn inference(run: &RunFolder, tasks: &[usize]) -> Result<BTreeMap<String, Vec<Inference>>, Error> {
    let mut by_role = BTreeMap::new();
    for (role, _) in run.plan().models.iter() {
        let stage = run.embeddings(role).expect("a model of the plan");
        let of_model = run.plan().tasks_of(role);
        let tasks: Vec<usize> =
            tasks.iter().copied().filter(|task| of_model.binary_search(task).is_ok()).collect();
        by_role.insert(role.to_string(), ways(run, &stage, &tasks)?);
    }
    Ok(by_role)
}

/// Of one step.
pub fn ways(run: &RunFolder, stage: &Stage, tasks: &[usize]) -> Result<Vec<Inference>, Error> {
    let mut ways: BTreeMap<BTreeMap<String, String>, usize> = BTreeMap::new();
    for &task in tasks {
        *ways.entry(run.committed_numerics(stage, task)?).or_default() += 1;
    }
    Ok(ways.into_iter().map(|(numerics, n_tasks)| Inference { numerics, n_tasks }).collect())
}
