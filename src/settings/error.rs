//! What can be wrong with a pipeline file.

use crate::fold::NoBf16;
use crate::select::FilterRatio;

use super::ModelRole;

/// Why a pipeline file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{0}")]
    Syntax(String),
    #[error("`{key}` is not finite")]
    NotFinite { key: String },
    #[error("`--set {assignment}` is not of the form `table.key=value`")]
    Assignment { assignment: String },
    #[error("`{path}` names no table or step that the pipeline file has")]
    NoSuchTable { path: String },
    #[error("`{key}` is {value}, but must be {must}")]
    OutOfRange { key: String, value: String, must: &'static str },
    #[error("`{what}` needs `models.{model}`")]
    ModelMissing { what: String, model: ModelRole },
    #[error("`models.{model}` {fault}")]
    ModelSource { model: ModelRole, fault: &'static str },
    #[error("`models` names no model")]
    NoModel,
    #[error("{what} needs a `[divide]` table")]
    NoClusters { what: &'static str },
    #[error(
        "`divide.model` is `{model}`, but must be `learner`, `reference` or `base`, and a model of the run"
    )]
    DivideModel { model: ModelRole },
    #[error(
        "the filter name `{name}` is taken by a column or by an earlier filter, or has other letters than a to z, digits and \
         `_`: give the step a `name` of its own"
    )]
    FilterName { name: String },
    #[error("`{column}` is no column that samples can be ranked by here: {}", one_of(known))]
    NoSuchColumn { column: String, known: Vec<String> },
    #[error(
        "experts take the reference's place: they need super-batches within clusters, and no `models.reference` or \
         full model beside them"
    )]
    Experts,
    #[error(
        "{n_passes} passes of what remains are more than a filter ratio of {filter_ratio} leaves samples for"
    )]
    Passes { n_passes: usize, filter_ratio: FilterRatio },
    #[error("`read.label_field` needs `read.samples` = `image_class`")]
    NoLabels,
    #[error("`select.precision` cannot be `bf16` here")]
    Precision { source: NoBf16 },
    #[error("`soft_cap` repeats samples itself: `pass_pool` must be `all`")]
    SoftCapRemaining,
    #[error(
        "a quota over clusters needs super-batches within clusters, and passes that draw from all samples"
    )]
    Quota,
    #[error("`{table}` has bounds on the sizes of images, which `samples = \"text\"` has none of")]
    SizesWithoutImages { table: String },
    #[error("`write.distil` needs `models.reference`, or the experts of all clusters")]
    NoExperts,
}

fn one_of(known: &[String]) -> String {
    match known {
        [] => "there is none".to_owned(),
        known => format!("there are {}", known.join(", ")),
    }
}
