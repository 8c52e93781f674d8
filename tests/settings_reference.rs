//! `pipelines/README.md` has every key of a pipeline file with its choices and its default, and no other.
//!
//! Which there are the settings say themselves: an unknown key, choice or method is refused with the right ones.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use superbatch::settings::{AtLeast, AtMost, Best, OWN_COLUMNS, Settings};

const PAGE: &str = include_str!("../pipelines/README.md");
const README: &str = include_str!("../README.md");

/// No more than a pipeline file must state.
const LEAST: &str = "
[read]
shards = ['a.tar']
[models.learner]
folder = 'l'
[models.reference]
folder = 'r'
[[select.step]]
method = 'random'
filter_ratio = 0.5
super_batch_size = 4
";

/// Each method, and what a step of it must state.
const STEPS: [(&str, &str); 16] = [
    ("metadata", ""),
    ("threshold", "by='learnability', keep={min=0}"),
    ("clip_score", "keep={min=0}"),
    ("neg_clip_loss", "keep={min=0}"),
    ("norm_sim", "targets='t.npy', keep={min=0}"),
    ("decontaminate", "sets=[{name='s', path='s.npy'}]"),
    ("semdedup", "epsilon=0.1"),
    ("jest", "filter_ratio=0.5, super_batch_size=4"),
    ("active_clip", "filter_ratio=0.5, super_batch_size=4"),
    ("class_act", "filter_ratio=0.5, super_batch_size=4"),
    ("full_loss", "filter_ratio=0.5, super_batch_size=4"),
    ("soft_cap", "filter_ratio=0.5, super_batch_size=4, by='learnability', n_per_turn=1, penalty=1"),
    ("random", "filter_ratio=0.5, super_batch_size=4"),
    ("top", "filter_ratio=0.5, by='learnability'"),
    ("balanced", "filter_ratio=0.5"),
    ("dbp", "filter_ratio=0.5"),
];

/// The least settings with these assignments.
fn settings(assignments: &[String]) -> Result<Value, String> {
    let settings = Settings::parse(LEAST, assignments).map_err(|error| error.to_string())?;
    Ok(serde_json::to_value(settings).expect("settings are written as plans are"))
}

/// Why a file with these assignments is refused; nothing where it is taken.
fn refusal(assignments: &[String]) -> String {
    settings(assignments).err().unwrap_or_default()
}

/// The names that a refusal expects in place of an unknown `field` or `variant`.
fn expected(refusal: &str, what: &str) -> Option<Vec<String>> {
    let opening = format!("unknown {what} `");
    let (_, rest) = refusal.lines().find_map(|line| line.split_once(opening.as_str()))?;
    let (_, names) = rest.split_once("`, ")?;
    Some(names.split('`').skip(1).step_by(2).map(str::to_owned).collect())
}

/// The lines of the page between a heading and the next one.
fn section(heading: &str) -> Vec<&'static str> {
    let mut is_code = false;
    let lines = PAGE.lines().map(|line| {
        is_code ^= line.starts_with("```");
        (line, !is_code && line.starts_with('#'))
    });
    let lines: Vec<(&str, bool)> = lines.collect();
    let is_it =
        |(line, is_heading): &(&str, bool)| *is_heading && line.trim_start_matches('#').trim() == heading;
    let start = lines.iter().position(is_it).unwrap_or_else(|| panic!("the page has no section {heading}"));
    let section = lines[start + 1..].iter().take_while(|(_, is_heading)| !is_heading);
    section.map(|(line, _)| *line).collect()
}

/// Default and whole row of each key of a section: rows of key, type, default and what it does.
fn rows(heading: &str) -> BTreeMap<&'static str, (&'static str, &'static str)> {
    let rows = section(heading).into_iter().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, key, _, default, _, _] = cells[..] else { return None };
        Some((key.strip_prefix('`')?.strip_suffix('`')?, (default, line)))
    });
    rows.collect()
}

/// What a section is to say of its keys.
struct Wanted<'a> {
    heading: &'a str,
    keys: Vec<String>,
    /// Those that have no default.
    stated: Vec<String>,
    /// By key, what stands there where a file says nothing.
    defaults: Value,
    /// Why `zzz` is refused as the value of a key.
    refused: &'a dyn Fn(&str) -> String,
}

impl Wanted<'_> {
    fn check(&self) {
        let rows = rows(self.heading);
        let keys: BTreeSet<&str> = self.keys.iter().map(String::as_str).collect();
        assert_eq!(rows.keys().copied().collect::<BTreeSet<_>>(), keys, "{}", self.heading);
        for (key, (default, row)) in rows {
            let is_right = match &self.defaults[key] {
                _ if self.stated.iter().any(|stated| stated == key) => default.starts_with("needed"),
                Value::Null | Value::Object(_) => !default.starts_with('`'),
                value => default.starts_with(&format!("`{value}`")),
            };
            assert!(is_right, "{}: the default of {key} is {}: {row}", self.heading, self.defaults[key]);
            for choice in expected(&(self.refused)(key), "variant").unwrap_or_default() {
                assert!(
                    row.contains(&format!("`\"{choice}\"`")),
                    "{}: {choice} is missing: {row}",
                    self.heading
                );
            }
        }
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

/// The path of a key of a table; the whole file is the table of no name.
fn below(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
}

/// The keys of a table; none where it is no table of fixed keys.
fn keys(table: &str) -> Option<Vec<String>> {
    expected(&refusal(&[format!("{}=1", below(table, "zzz"))]), "field")
}

/// What makes a table be there with the least that it must state, and that.
fn least(table: &str) -> (Vec<String>, Vec<String>) {
    match table {
        "" => (Vec::new(), names(&["read", "models", "select"])),
        "read" => (Vec::new(), names(&["shards"])),
        "models.learner" => (Vec::new(), names(&["folder"])),
        "models.learner.precomputed" => {
            (names(&["models.learner={precomputed={image='i.npy'}}"]), names(&["image"]))
        }
        "divide" => (names(&["divide={}"]), Vec::new()),
        "select" => (Vec::new(), names(&["step"])),
        _ => (Vec::new(), Vec::new()),
    }
}

const BOUNDS: &str = "`[read.bounds]` and `metadata`";

fn heading_of_table(table: &str) -> String {
    match table {
        "" => "Top level".to_owned(),
        "read.bounds" => BOUNDS.to_owned(),
        table => format!("`[{}]`", table.replace("models.learner", "models.ROLE")),
    }
}

#[test]
fn every_key_of_every_table_is_there() {
    // tables by role have no fixed keys, and are not found below the file
    let mut tables = names(&["", "models.learner"]);
    let mut n_checked = 0;
    while let Some(table) = tables.pop() {
        let keys_of_table = keys(&table).unwrap_or_else(|| panic!("`{table}` is a table"));
        let paths = keys_of_table.iter().map(|key| below(&table, key));
        tables.extend(paths.filter(|path| keys(path).is_some()));
        let (assignments, stated) = least(&table);
        let all = settings(&assignments).unwrap();
        let place = if table.is_empty() { String::new() } else { format!("/{}", table.replace('.', "/")) };
        Wanted {
            heading: &heading_of_table(&table),
            keys: keys_of_table,
            stated,
            defaults: all.pointer(&place).cloned().unwrap_or_else(|| json!({})),
            refused: &|key| {
                refusal(&[assignments.clone(), vec![format!("{}=zzz", below(&table, key))]].concat())
            },
        }
        .check();
        n_checked += 1;
    }
    // the file, read and two below it, a model and one below it, embed, divide, select, write, report
    assert!(n_checked >= 11, "{n_checked} tables were found");
}

/// A file whose only step is of this method, states this and has clusters.
fn step(method: &str, stated: &str, more: &str) -> Vec<String> {
    let method = format!("method='{method}'");
    let keys: Vec<&str> =
        [method.as_str(), stated, more].into_iter().filter(|keys| !keys.is_empty()).collect();
    vec!["divide={}".to_owned(), format!("select.step=[{{{}}}]", keys.join(", "))]
}

#[test]
fn every_key_of_every_method_is_there() {
    let message = refusal(&step("zzz", "", ""));
    let lists = message.lines().find_map(|line| line.split_once("unknown method `zzz`: ")).unwrap().1;
    let lists = lists.split("one of ").skip(1).filter_map(|list| list.split(';').next());
    let methods: BTreeSet<&str> = lists.flat_map(|list| list.split(", ")).map(str::trim).collect();
    assert_eq!(methods, STEPS.iter().map(|(method, _)| *method).collect::<BTreeSet<_>>());
    for (method, stated) in STEPS {
        let message = refusal(&step(method, stated, "zzz=1"));
        let keys = expected(&message, "field").unwrap_or_else(|| panic!("{method}: {message}"));
        let defaults = settings(&step(method, stated, "")).unwrap()["select"]["step"][0].clone();
        let table: toml::Table = toml::from_str(&format!("value = {{{stated}}}")).unwrap();
        let stated_keys: Vec<String> = table["value"].as_table().unwrap().keys().cloned().collect();
        let refused = |key: &str| {
            refusal(&[step(method, stated, ""), vec![format!("select.step.0.{key}=zzz")]].concat())
        };
        let heading = if method == "metadata" { BOUNDS.to_owned() } else { format!("`{method}`") };
        let wanted = |heading: &str, keys: Vec<String>| {
            let (stated, defaults) = (stated_keys.clone(), defaults.clone());
            Wanted { heading, keys, stated, defaults, refused: &refused }.check();
        };
        wanted(&heading, keys);
        if let Some((_, shared)) = message.split_once("or of every draw ") {
            let shared = shared.lines().next().unwrap().split(", ").map(str::to_owned);
            wanted("Shared keys of draws in super-batches", shared.collect());
        }
    }
    // taken off before a filter is read, so that no message names them
    let every_filter: Vec<&str> = rows("Keys of every filter").into_keys().collect();
    assert_eq!(every_filter, ["method", "name"]);
}

#[test]
fn every_key_inside_a_list_or_a_bound_is_there() {
    let check = |heading: &str, message: &str, stated: &[&str]| {
        let keys = expected(message, "field").unwrap_or_else(|| panic!("{heading}: {message}"));
        let (stated, refused) = (names(stated), |_: &str| String::new());
        Wanted { heading, keys, stated, defaults: json!({}), refused: &refused }.check();
    };
    let bound = refusal(&["read.bounds={json=[{field='a', zzz=1}]}".to_owned()]);
    check("`json`", &bound, &["field"]);
    check("`sets`", &refusal(&step("decontaminate", "sets=[{zzz=1}]", "")), &["name", "path"]);

    // which of three tables `keep` is, no message says
    let errors = [
        toml::from_str::<AtLeast>("zzz=1").unwrap_err(),
        toml::from_str::<AtMost>("zzz=1").unwrap_err(),
        toml::from_str::<Best>("zzz=1").unwrap_err(),
    ];
    let best: Best = toml::from_str("filter_ratio=0.5").unwrap();
    Wanted {
        heading: "`keep`",
        keys: errors.iter().flat_map(|error| expected(&error.to_string(), "field").unwrap()).collect(),
        stated: names(&["min", "max", "filter_ratio"]),
        defaults: serde_json::to_value(best).unwrap(),
        refused: &|key| {
            let error = toml::from_str::<Best>(&format!("{key}='zzz'")).err();
            error.map_or(String::new(), |error| error.to_string())
        },
    }
    .check();
}

#[test]
fn every_column_to_rank_by_is_there() {
    let text = section("`by`").join("\n");
    for column in OWN_COLUMNS {
        assert!(text.contains(&format!("`{column}`")), "{column}");
    }
}

#[test]
fn every_pipeline_file_is_listed() {
    let listed = section("Which file shows what").join("\n");
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(!name.ends_with(".toml") || listed.contains(&format!("| `{name}` |")), "{name}");
    }
}

/// Puts an example's tables in the place of those of the same names; keys of others stay.
fn put(into: &mut toml::Table, example: toml::Table) {
    for (key, value) in example {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(value)) => into.extend(value),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

#[test]
fn every_example_is_taken() {
    let examples: Vec<&str> = [PAGE, README]
        .into_iter()
        .flat_map(|page| page.split("```toml\n").skip(1))
        .map(|rest| rest.split("```").next().expect("a block ends"))
        // without a table it is a model's `model.toml`
        .filter(|example| example.contains('['))
        .collect();
    assert!(examples.len() >= 6, "{examples:?}");
    for example in examples {
        let mut pipeline: toml::Table = toml::from_str(LEAST).unwrap();
        put(&mut pipeline, toml::from_str(example).unwrap());
        let pipeline = toml::to_string(&pipeline).unwrap();
        Settings::parse(&pipeline, &[]).unwrap_or_else(|error| panic!("{example}\n{error}"));
    }
}
