//! A model folder in; which of its files are the graphs, and so what kind of model it is, out.
//!
//! The folder is foreign: a file that it names must lie in it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::error::ModelError;
use super::graph_file::GraphFile;
use super::kind::ModelKind;
use super::manifest::{MANIFEST, Manifest};
use super::variant::Variant;

/// Of a JSON or TOML file; the largest tokenizers take about 35 MB.
const TEXT_BYTES_MAX: u64 = 256 << 20;

/// Where Hugging Face's exports lie, in the order in which they are looked for.
const PLACES: [&str; 2] = ["onnx", "."];

/// The folders of each tower's files where exports of OpenCLIP's models are laid out so: `model.onnx` in both,
/// `preprocess_cfg.json` in the one, `tokenizer.json` in the other.
pub(super) const TOWER_FOLDERS: [&str; 2] = ["visual", "textual"];

/// The graph files of a model; both towers may be in one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GraphPaths {
    Pair { image: PathBuf, text: PathBuf },
    Image(PathBuf),
    Text(PathBuf),
    Classifier(PathBuf),
}

/// The graph files that there are.
#[derive(Default)]
struct Found {
    image: Option<PathBuf>,
    text: Option<PathBuf>,
    /// `model.onnx`, which may be anything.
    single: Option<PathBuf>,
}

/// The files that `model.toml` names, else the names of Hugging Face exports, in `onnx/` or beside the configuration.
///
/// The kind is what `model.toml` states; else what `config.json` calls an image classifier is one; else it follows from
/// which graphs there are, and of a single graph from its inputs.
pub(super) fn find_graphs(
    folder: &Path,
    variant: Variant,
    manifest: &Manifest,
    config: &Value,
) -> Result<GraphPaths, ModelError> {
    let mut searched = Vec::new();
    let Found { image, text, single } = Found::in_folder(folder, variant, manifest, &mut searched)?;
    let missing = ModelError::MissingGraph { searched };
    let stated = manifest.kind.or_else(|| is_classifier(config).then_some(ModelKind::Classifier));
    let pair_of = |graph: PathBuf| GraphPaths::Pair { image: graph.clone(), text: graph };
    match (stated, image, text, single) {
        (None | Some(ModelKind::Pair), Some(image), Some(text), _) => Ok(GraphPaths::Pair { image, text }),
        (Some(ModelKind::Pair), _, _, Some(graph)) => Ok(pair_of(graph)),
        (Some(ModelKind::Image), Some(graph), ..) => Ok(GraphPaths::Image(graph)),
        (Some(ModelKind::Image), _, _, Some(graph)) => Ok(GraphPaths::Image(graph)),
        (Some(ModelKind::Classifier), Some(graph), ..) => Ok(GraphPaths::Classifier(graph)),
        (Some(ModelKind::Classifier), _, _, Some(graph)) => Ok(GraphPaths::Classifier(graph)),
        (Some(ModelKind::Text), _, Some(graph), _) => Ok(GraphPaths::Text(graph)),
        (Some(ModelKind::Text), _, _, Some(graph)) => Ok(GraphPaths::Text(graph)),
        (Some(_), ..) => Err(missing),
        (None, _, _, Some(graph)) => Ok(match kind_of_single(&graph, manifest)? {
            ModelKind::Text => GraphPaths::Text(graph),
            ModelKind::Pair => pair_of(graph),
            _ => GraphPaths::Image(graph),
        }),
        (None, Some(graph), None, None) => Ok(GraphPaths::Image(graph)),
        (None, None, Some(graph), None) => Ok(GraphPaths::Text(graph)),
        (None, None, None, None) => Err(missing),
    }
}

impl Found {
    fn in_folder(
        folder: &Path,
        variant: Variant,
        manifest: &Manifest,
        searched: &mut Vec<PathBuf>,
    ) -> Result<Found, ModelError> {
        let mut find = |path: PathBuf| {
            let is_file = path.is_file();
            searched.push(path.clone());
            is_file.then_some(path)
        };
        let mut found = Found::default();
        for (name, place) in
            [(&manifest.image_graph, &mut found.image), (&manifest.text_graph, &mut found.text)]
        {
            let Some(name) = name else { continue };
            let path = folder.join(inside(&with_suffix(name, variant), MANIFEST)?);
            *place = find(path.clone());
            if place.is_none() {
                return Err(ModelError::MissingGraph { searched: vec![path] });
            }
        }
        if found.image.is_some() && found.text.is_some() {
            return Ok(found);
        }
        for place in PLACES {
            let file = |name: &str| folder.join(place).join(with_suffix(name, variant));
            let image = find(file("vision_model.onnx"));
            let text = find(file("text_model.onnx"));
            let single = find(file("model.onnx"));
            if image.is_some() || text.is_some() || single.is_some() {
                found.image = found.image.or(image);
                found.text = found.text.or(text);
                found.single = single;
                return Ok(found);
            }
        }
        let [image, text] =
            TOWER_FOLDERS.map(|tower| find(folder.join(tower).join(with_suffix("model.onnx", variant))));
        found.image = found.image.or(image);
        found.text = found.text.or(text);
        Ok(found)
    }
}

/// What a graph takes says what it is of.
fn kind_of_single(graph: &Path, manifest: &Manifest) -> Result<ModelKind, ModelError> {
    let file = read_graph(graph)?;
    let takes = |named: &Option<String>, usual| file.has_input(named.as_deref().unwrap_or(usual));
    let takes_pixels = takes(&manifest.image_input, "pixel_values")
        || file.inputs.iter().any(|input| input.shape.len() == PIXEL_RANK);
    match (takes_pixels, takes(&manifest.text_input, "input_ids")) {
        (true, true) => Ok(ModelKind::Pair),
        (true, false) => Ok(ModelKind::Image),
        (false, true) => Ok(ModelKind::Text),
        (false, false) => Err(ModelError::UnknownKind {
            graph: graph.to_owned(),
            offered: file.inputs.into_iter().map(|input| input.name).collect(),
        }),
    }
}

/// Images, channels, rows, columns.
const PIXEL_RANK: usize = 4;

fn is_classifier(config: &Value) -> bool {
    let architectures = config["architectures"].as_array().into_iter().flatten();
    architectures.filter_map(Value::as_str).any(|name| name.ends_with("ForImageClassification"))
}

/// The variant's name of a graph file.
fn with_suffix(file: &str, variant: Variant) -> String {
    match file.strip_suffix(".onnx") {
        Some(stem) => format!("{stem}{}.onnx", variant.suffix()),
        None => file.to_owned(),
    }
}

/// A graph with both towers beside those of one tower each: of the same variant, else of any precision.
pub(super) fn combined_graph(folder: &Path, variant: Variant) -> Option<PathBuf> {
    let names = [variant, Variant::default()].map(|variant| with_suffix("model.onnx", variant));
    let mut paths =
        PLACES.iter().flat_map(|place| names.iter().map(move |name| folder.join(place).join(name)));
    paths.find(|path| path.is_file())
}

pub(super) fn read_graph(path: &Path) -> Result<GraphFile, ModelError> {
    GraphFile::read(path).map_err(|source| ModelError::GraphFile { path: path.to_owned(), source })
}

/// The files with a graph's weights, in the order of their names.
///
/// # Errors
///
/// One that is not there, or that lies elsewhere: not in the model's folder, and not beside the graph itself where the
/// graph is a link, as in Hugging Face's cache.
pub(super) fn external_paths(
    folder: &Path,
    graph: &Path,
    file: &GraphFile,
) -> Result<Vec<PathBuf>, ModelError> {
    let resolve = |path: &Path| {
        path.canonicalize().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ModelError::MissingFile { path: path.to_owned() },
            _ => ModelError::Read { path: path.to_owned(), source },
        })
    };
    let beside = graph.parent().expect("a graph lies in the model's folder");
    let allowed = [resolve(folder)?, resolve(graph)?.parent().expect("a file has a folder").to_owned()];
    let mut paths = Vec::new();
    for location in &file.external_files {
        let graph_name = graph.display().to_string();
        let path = beside.join(inside(location, &graph_name)?);
        let resolved = resolve(&path)?;
        if !resolved.starts_with(&allowed[0]) && resolved.parent() != Some(&allowed[1]) {
            return Err(ModelError::OutsideFolder { file: location.clone(), named_by: graph_name });
        }
        if !resolved.is_file() {
            return Err(ModelError::MissingFile { path });
        }
        paths.push(path);
    }
    Ok(paths)
}

/// A file's name, if it goes down from where it stands and nowhere else.
pub(super) fn inside<'a>(name: &'a str, named_by: &str) -> Result<&'a Path, ModelError> {
    let path = Path::new(name);
    let is_inside = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
    if !name.is_empty() && path.components().all(is_inside) {
        return Ok(path);
    }
    Err(ModelError::OutsideFolder { file: name.to_owned(), named_by: named_by.to_owned() })
}

/// The file's bytes, or nothing if there is no such file.
pub(super) fn read_file(path: &Path) -> Result<Option<Vec<u8>>, ModelError> {
    let fault = |source| ModelError::Read { path: path.to_owned(), source };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fault(error)),
        // a pipe would never end
        Ok(metadata) if !metadata.is_file() => {
            return Err(fault(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file")));
        }
        Ok(_) => {}
    }
    let mut bytes = Vec::new();
    File::open(path).map_err(fault)?.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(fault)?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return Err(ModelError::TooLarge { path: path.to_owned(), bytes_max: TEXT_BYTES_MAX });
    }
    Ok(Some(bytes))
}

pub(super) fn read_json(path: &Path) -> Result<Option<Value>, ModelError> {
    let Some(bytes) = read_file(path)? else { return Ok(None) };
    let value = serde_json::from_slice(&bytes)
        .map_err(|source| ModelError::Json { path: path.to_owned(), source })?;
    Ok(Some(value))
}
