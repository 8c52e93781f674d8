//! This machine, and a model if one is named, in; what they offer to a run out.

mod machine;
mod model;

use std::fmt::Write;
use std::path::Path;

use ort::ep::{self, ExecutionProvider};

use crate::error::Error;
use crate::runtime::library;

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

/// Looks at the machine, the runtime library and the model; says whether a run can work with them.
pub fn examine(model: Option<&Path>) -> (String, bool) {
    let mut findings = Findings::default();
    findings.say("superbatch", env!("CARGO_PKG_VERSION"));
    machine::examine(&mut findings);
    let examined = examine_runtime(&mut findings).and_then(|()| match model {
        Some(folder) => model::examine(&mut findings, folder),
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
    // the two that sessions are opened with
    let providers = if ep::CUDA::is_available().unwrap_or(false) { "CPU, CUDA" } else { "CPU" };
    findings.say("", format!("execution providers compiled in: {providers}"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models").join(name)
    }

    #[test]
    fn a_machine_with_a_model_is_well() {
        let (text, is_well) = examine(Some(&fixture("learner")));
        assert!(is_well, "{text}");
        for shown in ["superbatch", "processor", "runtime", "CPU", "model.toml", "inference batch of 64"] {
            assert!(text.contains(shown), "{shown} in {text}");
        }
    }

    #[test]
    fn a_model_that_is_not_there_is_said_with_a_hint() {
        let (text, is_well) = examine(Some(Path::new("no/such/model")));
        assert!(!is_well);
        let last: Vec<&str> = text.lines().rev().take(3).map(str::trim).collect();
        assert_eq!(last[2], "error: cannot load model `no/such/model`");
        assert_eq!((last[1], &last[0][..6]), ("caused by: there is no `no/such/model`", "hint: "));
    }
}
