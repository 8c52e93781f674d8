//! The two numbers that turn a cosine into a logit: `logit = scale · cos + bias`.

use serde::Serialize;
use serde_json::Value;

use super::error::ModelError;
use super::manifest::{MANIFEST, Manifest};

/// The linear factor α > 0 of a logit; checkpoints store its logarithm.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct LogitScale(f64);

impl LogitScale {
    /// Takes the linear value.
    pub fn linear(value: f64) -> Result<LogitScale, ModelError> {
        if value > 0.0 && value <= f64::from(f32::MAX) {
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
        if value.is_finite() { Ok(LogitBias(value)) } else { Err(ModelError::InvalidLogitBias { value }) }
    }

    pub fn get(self) -> f64 {
        self.0
    }
}

/// A value and the file that it was taken from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sourced<T> {
    pub value: T,
    pub source: String,
}

/// Scale and bias from `model.toml`. `config.json` states only what training began with, which is not taken.
pub(super) fn resolve(
    manifest: &Manifest,
    config: &Value,
) -> Result<(Sourced<LogitScale>, Option<Sourced<LogitBias>>), ModelError> {
    let initial_log = config["logit_scale_init_value"].as_f64();
    let scale = manifest.logit_scale.ok_or(ModelError::MissingLogitScale { initial_log })?;
    let scale = Sourced { value: LogitScale::linear(scale)?, source: MANIFEST.to_owned() };
    let bias = match manifest.logit_bias {
        Some(bias) => Some(Sourced { value: LogitBias::new(bias)?, source: MANIFEST.to_owned() }),
        None => None,
    };
    Ok((scale, bias))
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

    #[test]
    fn the_value_that_training_began_with_is_not_taken() {
        let config = serde_json::json!({"logit_scale_init_value": 2.6592});
        let error = resolve(&Manifest::default(), &config).unwrap_err();
        assert!(error.hint().unwrap().contains("14.28"), "{:?}", error.hint());
    }
}
