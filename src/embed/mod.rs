//! Samples in, unit embeddings of every model out, one row a sample, in the order of the shard.

pub mod image;
mod model;
mod tokenize;
mod session;
mod graph;
mod graph_inputs;
mod tower;
mod loaded;
mod feed;
mod decoded;
mod values;
mod infer;
mod writer;
mod precomputed;
mod stage;
mod rate;
mod complete;
mod rows;

pub use crate::runtime::Device;
pub use complete::{CompleteTasks, complete_tasks, tasks_at_once};
pub use decoded::{DecodedSample, EmbeddedBatch, Encoders, ModelInputs, SampleRow};
pub use feed::{check_shard, open_shard};
pub use infer::{CPU_ROWS_MAX, DEFAULT_INFERENCE_BATCH_SIZE, Sharing, rows_at_once};
pub use loaded::{LoadedModel, Padding};
pub use model::{
    CaptionForm, ImageSide, LogitBias, LogitScale, Model, ModelChoice, ModelError, ModelKind, ModelParts,
    Sourced, StatedLogits, TextPooling, TextPreparation, TextSide, Variant,
};
pub use rate::Sessions;
pub use rows::{EmbeddedRows, read_embeddings, smallest_by_hash};
pub use session::SessionSettings;
pub use stage::{FailedTask, InferenceSettings, run};
pub use tokenize::{Tokenizer, Tokens};
pub use tower::{
    BatchInputs, BatchOutputs, CombinedTower, Embeddings, ImageTower, Logits, PairEmbeddings, TextTower,
    Towers,
};
pub use values::ModelRows;
pub use writer::{EmbeddingsCounts, SamplesCounts, ShardCounts};

#[cfg(test)]
mod tests;
