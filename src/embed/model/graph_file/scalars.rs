//! The nodes and constants of a graph in, its logit scale and bias out.

use super::{GraphFile, Node};

/// Nodes between a constant and the logits; a file with a circle would have no end.
const STEPS_MAX: usize = 16;

/// A constant that a graph works with, and how it stands there.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// Taken as it is.
    Plain { name: String, value: f64 },
    /// The graph takes its exponential.
    Log { name: String, value: f64 },
}

/// What turns the cosines of a graph with both towers into logits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogitScalars {
    pub scale: Option<Scalar>,
    pub bias: Option<Scalar>,
}

impl GraphFile {
    /// Logit scale and bias: what the cosines are multiplied by, and what is added, on the way to `logits_per_text` or
    /// `logits_per_image`; where there are no such outputs, what is named `logit_scale` and `logit_bias`.
    pub fn logit_scalars(&self) -> LogitScalars {
        let found = ["logits_per_text", "logits_per_image"]
            .into_iter()
            .map(|output| self.scalars_before(output))
            .find(|found| found.scale.is_some());
        found.unwrap_or_else(|| LogitScalars {
            scale: self.named("logit_scale", "Mul"),
            bias: self.named("logit_bias", "Add"),
        })
    }

    /// Walks back from an output to the product of the towers.
    fn scalars_before(&self, output: &str) -> LogitScalars {
        let mut found = LogitScalars::default();
        let mut value = output;
        for _ in 0..STEPS_MAX {
            let Some(node) = self.maker(value) else { break };
            let scalar = || node.inputs.iter().find_map(|input| self.scalar(input));
            let other = || node.inputs.iter().find(|input| self.scalar(input).is_none());
            match node.operator.as_str() {
                "Transpose" | "Cast" | "Identity" => {}
                "Add" if found.bias.is_none() && scalar().is_some() => found.bias = scalar(),
                "Mul" => {
                    found.scale = scalar();
                    break;
                }
                _ => break,
            }
            let Some(next) = other() else { break };
            value = next;
        }
        if found.scale.is_none() { LogitScalars::default() } else { found }
    }

    /// The constant of this name, if the operator or the exponential takes it.
    fn named(&self, name: &str, operator: &str) -> Option<Scalar> {
        let is_named = |full: &&String| full.rsplit(['.', '/']).next() == Some(name);
        let full = self.scalars.keys().find(is_named)?;
        let takes = |value: &str, operator: &str| {
            self.nodes.iter().any(|node| node.operator == operator && node.inputs.iter().any(|n| n == value))
        };
        let value = self.scalars[full];
        if takes(full, "Exp") {
            return Some(Scalar::Log { name: full.clone(), value });
        }
        takes(full, operator).then(|| Scalar::Plain { name: full.clone(), value })
    }

    fn maker(&self, value: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.outputs.iter().any(|output| output == value))
    }

    /// The constant behind a value, if it is one.
    fn scalar(&self, value: &str) -> Option<Scalar> {
        let mut value = value;
        let mut is_log = false;
        for _ in 0..STEPS_MAX {
            if let Some(&number) = self.scalars.get(value) {
                let name = value.to_owned();
                return Some(match is_log {
                    true => Scalar::Log { name, value: number },
                    false => Scalar::Plain { name, value: number },
                });
            }
            let node = self.maker(value)?;
            match node.operator.as_str() {
                "Exp" if !is_log => is_log = true,
                "Cast" | "Identity" | "Unsqueeze" | "Squeeze" | "Reshape" => {}
                _ => return None,
            }
            value = node.inputs.first()?;
        }
        None
    }
}
