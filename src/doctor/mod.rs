//! This machine, and a model if one is named, in; what they offer to a run out.

mod machine;
mod gpu;
mod model;
mod bench;

use crate::compare::ModelName;
use crate::error::Error;
use crate::runtime::{Device, Provider, library};
use std::fmt::Write;

pub use model::Bench;

/// Width of the names before the findings.
const NAME_WIDTH: usize = 12;

/// What was found, a line each.
#[derive(Default)]
struct Findings {
    text: String,
}

impl Findings {
    fn say(&mut self, name: &str, finding: impl AsRef<str>) {
        let separator = if self.text.is_empty() { "" } else { "\n" };
        let finding = finding.as_ref().replace('\n', &format!("\n{:NAME_WIDTH$}  ", ""));
        let _ = write!(self.text, "{separator}{name:NAME_WIDTH$}  {finding}");
    }
}

/// A model to look at, and how.
#[derive(Clone, Copy, Debug)]
pub struct ExaminedModel<'a> {
    pub name: &'a ModelName,
    pub device: Device,
    pub bench: Bench,
}

/// Looks at the machine, the runtime library, the GPUs and the model; says whether a run can work with them.
pub fn examine(model: Option<ExaminedModel>) -> (String, bool) {
    let mut findings = Findings::default();
    findings.say("superbatch", env!("CARGO_PKG_VERSION"));
    machine::examine(&mut findings);
    let examined = examine_runtime(&mut findings).and_then(|()| gpu::examine(&mut findings));
    let examined = examined.and_then(|()| match model {
        Some(model) => model::examine(&mut findings, &model),
        None => Ok(()),
    });
    let is_well = examined.is_ok();
    let faults = examined.err().map(|error| format!("\n{}", error.message()));
    (findings.text + faults.as_deref().unwrap_or_default(), is_well)
}

fn examine_runtime(findings: &mut Findings) -> Result<(), Error> {
    library::load()?;
    findings.say("runtime", library::library()?.display().to_string());
    // what follows are compiler flags
    findings.say("", library::build_info().split(", cmake").next().unwrap_or_default());
    let providers = Provider::ALL.into_iter().filter(|provider| provider.is_compiled_in());
    let names: Vec<&str> = providers.map(Provider::name).collect();
    findings.say("", format!("execution providers compiled in: {}", names.join(", ")));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(name: &ModelName) -> ExaminedModel<'_> {
        ExaminedModel { name, device: Device::Cpu, bench: Bench::Default }
    }

    #[test]
    fn a_machine_with_a_model_is_well() {
        let learner = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/models/learner").parse().unwrap();
        let (text, is_well) = examine(Some(cpu(&learner)));
        assert!(is_well, "{text}");
        for shown in ["superbatch", "processor", "runtime", "CPU", "model.toml", "samples/s"] {
            assert!(text.contains(shown), "{shown} in {text}");
        }
    }

    #[test]
    fn a_model_that_is_not_there_is_said_with_a_hint() {
        let (text, is_well) = examine(Some(cpu(&"no/such/model".parse().unwrap())));
        assert!(!is_well);
        let last: Vec<&str> = text.lines().rev().take(3).map(str::trim).collect();
        assert_eq!(last[2], "error: cannot load model `no/such/model`");
        assert_eq!((last[1], &last[0][..6]), ("caused by: there is no `no/such/model`", "hint: "));
    }
}
