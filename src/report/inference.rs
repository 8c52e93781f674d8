//! The markers of the embeddings in, what ran each model out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::embed::EmbeddingsCounts;
use crate::error::Error;
use crate::run_folder::RunFolder;

/// One way in which a model ran: the runtime, the provider, how many nodes of its graphs each provider took, the rows
/// at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inference {
    pub numerics: BTreeMap<String, String>,
    /// Tasks that were embedded so; a run that moves between kinds of machines has several ways.
    pub n_tasks: usize,
}

/// Of each model, by role.
pub fn inference(run: &RunFolder, tasks: &[usize]) -> Result<BTreeMap<String, Vec<Inference>>, Error> {
    let mut by_role = BTreeMap::new();
    for (role, _) in run.plan().models.iter() {
        let stage = run.embeddings(role).expect("a model of the plan");
        let mut ways: BTreeMap<BTreeMap<String, String>, usize> = BTreeMap::new();
        let of_model = run.plan().tasks_of(role);
        for &task in tasks.iter().filter(|task| of_model.binary_search(task).is_ok()) {
            *ways.entry(run.committed::<EmbeddingsCounts>(&stage, task)?.numerics).or_default() += 1;
        }
        let ways = ways.into_iter().map(|(numerics, n_tasks)| Inference { numerics, n_tasks });
        by_role.insert(role.to_string(), ways.collect());
    }
    Ok(by_role)
}
