//! The two numbers that turn a cosine into a logit: `logit = scale · cos + bias`.

use serde::Serialize;

use super::error::ModelError;
use super::graph_file::{GraphFile, Scalar};
use super::manifest::{MANIFEST, Manifest};

/// The linear factor α > 0 of a logit; checkpoints store its logarithm.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct LogitScale(f64);

/// Far above any use, and so low that sums of losses are numbers.
const LOGIT_MAX: f64 = 1e6;

impl LogitScale {
    /// Takes the linear value.
    pub fn linear(value: f64) -> Result<LogitScale, ModelError> {
        if value > 0.0 && value <= LOGIT_MAX {
            Ok(LogitScale(value))
        } else {
            Err(ModelError::InvalidLogitScale { value })
        }
    }

    /// Takes the logarithm, as checkpoints store it.
    pub fn from_log(log: f64) -> Result<LogitScale, ModelError> {
        LogitScale::linear(log.exp())
    }

    /// The linear value.
    pub fn get(self) -> f64 {
        self.0
    }
}

/// The summand β of a logit, with SigLIP's sign: about −10 when training begins.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct LogitBias(f64);

impl LogitBias {
    pub fn new(value: f64) -> Result<LogitBias, ModelError> {
        if value.abs() <= LOGIT_MAX {
            Ok(LogitBias(value))
        } else {
            Err(ModelError::InvalidLogitBias { value })
        }
    }

    pub fn get(self) -> f64 {
        self.0
    }
}

/// A value and where it was taken from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sourced<T> {
    pub value: T,
    pub source: String,
}

/// What a folder states of a model's logits. Graphs of one tower hold neither number, and a CLIP checkpoint has no bias.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StatedLogits {
    pub scale: Option<Sourced<LogitScale>>,
    pub bias: Option<Sourced<LogitBias>>,
}

/// Scale and bias from `model.toml`, else from the constants of a graph with both towers, whose name comes with it.
///
/// `config.json` states only what training began with, which is not taken.
pub(super) fn resolve(
    manifest: &Manifest,
    combined: Option<(String, GraphFile)>,
) -> Result<StatedLogits, ModelError> {
    let (graph, scalars) = match combined {
        Some((graph, file)) => (graph, file.logit_scalars()),
        None => Default::default(),
    };
    let scale = match (manifest.logit_scale, scalars.scale) {
        (Some(scale), _) => Some(Sourced { value: LogitScale::linear(scale)?, source: MANIFEST.to_owned() }),
        (None, Some(Scalar::Plain { name, value })) => {
            Some(Sourced { value: LogitScale::linear(value)?, source: initialiser(&name, &graph) })
        }
        (None, Some(Scalar::Log { name, value })) => Some(Sourced {
            value: LogitScale::from_log(value)?,
            source: format!("{}, its exponential", initialiser(&name, &graph)),
        }),
        (None, None) => None,
    };
    let bias = match (manifest.logit_bias, scalars.bias) {
        (Some(bias), _) => Some(Sourced { value: LogitBias::new(bias)?, source: MANIFEST.to_owned() }),
        (None, Some(Scalar::Plain { name, value })) => {
            Some(Sourced { value: LogitBias::new(value)?, source: initialiser(&name, &graph) })
        }
        // no model adds the exponential of a parameter
        (None, Some(Scalar::Log { .. }) | None) => None,
    };
    Ok(StatedLogits { scale, bias })
}

fn initialiser(name: &str, graph: &str) -> String {
    format!("initialiser `{name}` of {graph}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_and_the_linear_value_meet() {
        assert_eq!(LogitScale::from_log(0.0).unwrap(), LogitScale::linear(1.0).unwrap());
        assert!((LogitScale::from_log(4.605_170_185_988_092).unwrap().get() - 100.0).abs() < 1e-9);
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(LogitScale::linear(bad).is_err());
        }
    }
}
