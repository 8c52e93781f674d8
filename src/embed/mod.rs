//! Samples in, unit embeddings of every model out, one row a sample, in the order of the shard.

pub mod image;
mod model;
mod tokenize;
mod runtime;
mod session;
mod tower;
mod loaded;
mod feed;
mod decoded;
mod values;
mod writer;
mod stage;
mod complete;
mod rows;

pub use complete::{CompleteTasks, complete_tasks};
pub use feed::open_shard;
pub use loaded::LoadedModel;
pub use model::{
    CaptionForm, ImageSide, LogitBias, LogitScale, Model, ModelChoice, ModelError, ModelKind, ModelParts,
    Sourced, StatedLogits, TextPreparation, TextSide, Variant,
};
pub use rows::{EmbeddedRows, read_embedded_samples, read_embeddings};
pub use runtime::{build_info as runtime_build, library as runtime_library, load as load_runtime};
pub use session::{Device, SessionSettings, UnknownDevice};
pub use stage::{FailedTask, run};
pub use tokenize::{Tokenizer, Tokens};
pub use tower::{
    BatchInputs, BatchOutputs, CombinedTower, Embeddings, ImageTower, Logits, PairEmbeddings, TextTower,
    Towers,
};
pub use values::ModelRows;
pub use writer::{EmbeddingsCounts, SamplesCounts, ShardCounts};
