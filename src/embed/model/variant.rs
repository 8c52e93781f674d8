//! Which of a folder's exports of one model.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The suffix of a graph file's name, as Hugging Face's exporters write it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// No suffix: usually fp32.
    #[default]
    Default,
    Fp16,
    Bf16,
    Quantized,
    Int8,
    Uint8,
    Q4,
    Q4f16,
    Bnb4,
}

impl Variant {
    pub const ALL: [Variant; 9] = [
        Variant::Default,
        Variant::Fp16,
        Variant::Bf16,
        Variant::Quantized,
        Variant::Int8,
        Variant::Uint8,
        Variant::Q4,
        Variant::Q4f16,
        Variant::Bnb4,
    ];

    /// What stands before `.onnx` in the file's name.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Variant::Default => "",
            Variant::Fp16 => "_fp16",
            Variant::Bf16 => "_bf16",
            Variant::Quantized => "_quantized",
            Variant::Int8 => "_int8",
            Variant::Uint8 => "_uint8",
            Variant::Q4 => "_q4",
            Variant::Q4f16 => "_q4f16",
            Variant::Bnb4 => "_bnb4",
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.suffix().strip_prefix('_').unwrap_or("default"))
    }
}
