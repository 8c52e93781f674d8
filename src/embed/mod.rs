//! Samples in, unit embeddings of every model out, one row a sample, in the order of the shard.

pub mod image;
mod model;
mod tokenize;
mod runtime;
mod session;
mod tower;

pub use model::{
    GraphNames, Graphs, LogitBias, LogitScale, Model, ModelError, Sourced, TextPreparation, Variant,
};
pub use runtime::load as load_runtime;
pub use session::{Device, SessionSettings, UnknownDevice};
pub use tokenize::{Tokenizer, Tokens};
pub use tower::{CombinedTower, Embeddings, ImageTower, PairEmbeddings, TextTower, Towers};
