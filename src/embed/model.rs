//! A model folder in, a checked model out.

/// Why a model folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {}
