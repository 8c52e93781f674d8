//! The page of benchmarks is of one machine.

use std::path::Path;
use std::process::Command;

/// What `benches/run` says of which parts it runs, as JSON.
fn chosen_parts(arguments: &str) -> String {
    let program = "
import importlib.machinery, importlib.util, json, sys
loader = importlib.machinery.SourceFileLoader('run', sys.argv[1])
run = importlib.util.module_from_spec(importlib.util.spec_from_loader('run', loader))
loader.exec_module(run)
print(json.dumps(eval('run.chosen_parts(' + sys.argv[2] + ')')))
";
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/run");
    let output =
        Command::new("python3").args(["-B", "-c", program]).arg(file).arg(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn figures_of_two_machines_are_never_mixed() {
    let parts = |asked: &str, is_same_machine: &str, quick: &str| {
        chosen_parts(&format!("{asked}, ['joint', 'scale', 'build'], {is_same_machine}, {quick}"))
    };
    assert_eq!(parts("['joint']", "False", "False"), "null");
    assert_eq!(parts("[]", "False", "False"), r#"["joint", "scale", "build"]"#);
    assert_eq!(parts("['build', 'scale', 'joint']", "False", "False"), r#"["joint", "scale", "build"]"#);
    assert_eq!(parts("['joint']", "True", "False"), r#"["joint"]"#);
    assert_eq!(parts("[]", "True", "False"), r#"["joint", "scale"]"#);
    // a quick page says nothing of any machine
    assert_eq!(parts("['joint']", "False", "True"), r#"["joint"]"#);
    assert_eq!(parts("[]", "True", "True"), r#"["joint", "scale", "build"]"#);
}
