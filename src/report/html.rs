//! The figures of a report in, one self-contained page out: no script, no file beside it.
//!
//! Shard names, paths and settings are foreign text; the template escapes every value.

use std::collections::BTreeMap;
use std::path::PathBuf;

use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde::Serialize;

use crate::divide::FitCounts;
use crate::embed::Variant;
use crate::plan::Plan;
use crate::settings::{
    DivideSettings, Draw, EmbedSettings, ModelSettings, ReadSettings, ReportSettings, ScoreKind,
    SelectSettings, WriteSettings,
};
use crate::write::Distribution;

use super::chart::{Bars, CLUSTERS_DRAWN_MAX, Quantiles};
use super::facts::{Fact, facts};
use super::planted::Planted;
use super::summary::{DivideReport, READ_BOUNDS, Report};
use crate::numbers::{bytes, counted, number, percent, percent_of, whole};

/// Rows of a table that may be as long as the pool; `report.json` has all.
const ROWS_MAX: usize = 100;

/// The page of a finished run.
pub fn page(report: &Report, plan: &Plan) -> String {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    // the name's extension turns escaping on
    environment.add_template("page.html", include_str!("page.html")).expect("the template is well formed");
    let template = environment.get_template("page.html").expect("added above");
    template.render(Serde(Page::new(report, plan))).expect("the template names only what the page has")
}

/// What the template shows; numbers are texts already.
#[derive(Serialize)]
struct Page<'a> {
    report: &'a Report,
    n_read: String,
    n_kept: String,
    kept_share: String,
    /// What draws, and how much it drops.
    draw: String,
    /// Where it is more than samples are kept.
    n_draws: Option<String>,
    pool: Pool<'a>,
    /// Kept, not drawn, filtered, rejected: together what was read.
    conservation: Vec<Share<'a>>,
    /// In the order of the steps.
    filtered: Vec<Share<'a>>,
    rejected: Vec<Share<'a>>,
    worst_shard_ratio: String,
    left_out_shards: Cut<&'a String>,
    broken_shards: Cut<&'a String>,
    models: Vec<Model<'a>>,
    divide: Option<Divide>,
    /// None of a draw over the whole pool.
    n_super_batches: Option<String>,
    /// Clusters that were drawn with others; none where there are none.
    n_joined_clusters: Option<String>,
    /// Of drawn sub-batches, of their samples dealt anew, of uniform draws.
    batch_learnability: Option<[String; 3]>,
    /// What batch learnability is of: where learner or reference score alone, not learnability.
    batch_score: &'static str,
    /// Whether these are of the first of several passes.
    is_of_first_pass: bool,
    /// Whether the draw looks at the pairs of a sub-batch, which batch learnability is of.
    is_by_pairs: bool,
    learnability: Option<Quantiles>,
    scores: Vec<ScoreRow<'a>>,
    planted: Option<PlantedRow>,
    facts: Vec<Fact>,
    curated: Cut<Curated<'a>>,
    curated_bytes: String,
    settings: String,
}

#[derive(Serialize)]
struct Pool<'a> {
    root: &'a PathBuf,
    n_shards: String,
    size: String,
}

/// A part of all that was read.
#[derive(Serialize)]
struct Share<'a> {
    name: &'a str,
    n: String,
    share: String,
}

/// The first rows of a table, and how many there are.
#[derive(Serialize)]
struct Cut<T> {
    rows: Vec<T>,
    n: String,
    is_cut: bool,
}

#[derive(Serialize)]
struct Model<'a> {
    role: String,
    folder: &'a PathBuf,
    variant: Variant,
    digest: String,
    embedding_dim: usize,
    logit_scale: String,
    logit_scale_source: &'a str,
    logit_bias: String,
    logit_bias_source: &'a str,
}

#[derive(Serialize)]
struct Divide {
    model: String,
    /// Where clusters were found.
    device: String,
    n_clusters: usize,
    bank_size: String,
    is_hardness_exact: bool,
    fit: Fit,
    effective_clusters: [String; 2],
    gain_standard_errors: Option<String>,
    sizes: Option<Bars>,
    n_drawn_max: usize,
    clusters: Cut<Cluster>,
}

#[derive(Serialize)]
#[serde(tag = "source", rename_all = "snake_case")]
enum Fit {
    Fitted { n_points: String, n_iterations: usize, objective_mean: String },
    Taken { path: PathBuf },
}

#[derive(Serialize)]
struct Cluster {
    cluster: u32,
    n_pool: String,
    n_kept: String,
    kept_share: String,
}

#[derive(Serialize)]
struct ScoreRow<'a> {
    name: &'a str,
    of: &'static str,
    count: String,
    mean: String,
    deciles: Vec<String>,
}

#[derive(Serialize)]
struct PlantedRow {
    n: String,
    n_listed: String,
    pool: String,
    /// None where there is no draw to come to.
    reaching: Option<String>,
    kept: String,
    random: String,
    random_deviation: String,
}

#[derive(Serialize)]
struct Curated<'a> {
    name: &'a str,
    rows: String,
    size: String,
}

impl<'a> Page<'a> {
    fn new(report: &'a Report, plan: &'a Plan) -> Page<'a> {
        let counts = &report.counts;
        let share = |name: &'a str, n: u64| Share { name, n: whole(n), share: percent(n, counts.read) };
        let curated = report.curated.iter().map(|shard| Curated {
            name: &shard.name,
            rows: whole(shard.rows),
            size: bytes(shard.size_bytes),
        });
        let learnability = (report.scores.get("learnability"), report.kept_scores.get("learnability"));
        let select = &report.select;
        Page {
            n_read: whole(counts.read),
            n_kept: whole(counts.kept),
            kept_share: percent(counts.kept, counts.read),
            draw: plan.select.draw.title(),
            n_draws: (select.n_draws > counts.kept).then(|| whole(select.n_draws)),
            pool: Pool {
                root: &plan.pool.root,
                n_shards: counted(plan.pool.shards.len() as u64, "shard", "shards"),
                size: bytes(plan.pool.size_bytes()),
            },
            conservation: vec![
                share("kept", counts.kept),
                share("not drawn", counts.not_drawn),
                share("filtered", counts.filtered.values().sum()),
                share("rejected", counts.rejected.values().sum()),
            ],
            filtered: by_step(&counts.filtered, &plan.select).map(|(name, n)| share(name, n)).collect(),
            rejected: counts.rejected.iter().map(|(name, &n)| share(name, n)).collect(),
            worst_shard_ratio: percent_of(report.rejection_ratio_max_of_shards),
            left_out_shards: Cut::new(report.left_out_shards.iter()),
            broken_shards: Cut::new(report.broken_shards.iter()),
            models: models(plan),
            divide: report
                .divide
                .as_ref()
                .zip(plan.divide.as_ref())
                .map(|(divide, settings)| Divide::new(divide, settings)),
            n_super_batches: plan
                .select
                .draw
                .deal()
                .map(|_| counted(select.n_super_batches, "super-batch", "super-batches")),
            n_joined_clusters: (select.n_joined_clusters > 0).then(|| whole(select.n_joined_clusters as u64)),
            batch_learnability: select
                .batch_learnability
                .zip(select.batch_learnability_reshuffled)
                .zip(select.batch_learnability_random)
                .map(|((drawn, reshuffled), random)| [drawn, reshuffled, random].map(number)),
            batch_score: match plan.pair_score() {
                Some(ScoreKind::HardLearner) => "loss under the learner",
                Some(ScoreKind::EasyReference) => "loss under the reference, taken negatively,",
                Some(ScoreKind::Learnability) | None => "learnability",
            },
            is_of_first_pass: plan.select.draw.deal().is_some_and(|deal| deal.n_passes > 1),
            is_by_pairs: plan.select.draw.pair_score().is_some(),
            learnability: match learnability {
                (Some(pool), Some(kept)) => Quantiles::new(&pool.deciles, &kept.deciles),
                _ => None,
            },
            scores: score_rows(report),
            planted: report.planted.as_ref().map(|planted| PlantedRow::new(planted, &plan.select.draw)),
            facts: facts(report, plan),
            curated: Cut::new(curated),
            curated_bytes: bytes(report.curated.iter().map(|shard| shard.size_bytes).sum()),
            settings: pipeline(plan),
            report,
        }
    }
}

impl<T> Cut<T> {
    fn new(rows: impl ExactSizeIterator<Item = T>) -> Cut<T> {
        let n = rows.len();
        Cut { rows: rows.take(ROWS_MAX).collect(), n: whole(n as u64), is_cut: n > ROWS_MAX }
    }
}

impl Fit {
    fn new(counts: &FitCounts) -> Fit {
        match counts {
            FitCounts::Fitted { n_points, objective, n_iterations } => Fit::Fitted {
                n_points: whole(*n_points),
                n_iterations: *n_iterations,
                objective_mean: number(objective / (*n_points).max(1) as f64),
            },
            FitCounts::Taken(centroids) => Fit::Taken { path: centroids.path.clone() },
        }
    }
}

impl Divide {
    fn new(report: &DivideReport, settings: &DivideSettings) -> Divide {
        let clusters = report.cluster_sizes.iter().map(|(&cluster, &n)| {
            let n_kept = report.kept_cluster_sizes.get(&cluster).copied().unwrap_or(0);
            Cluster { cluster, n_pool: whole(n), n_kept: whole(n_kept), kept_share: percent(n_kept, n) }
        });
        Divide {
            model: settings.model.to_string(),
            device: settings.device.to_string(),
            n_clusters: settings.n_clusters,
            bank_size: whole(settings.bank_size as u64),
            is_hardness_exact: report.is_hardness_exact,
            fit: Fit::new(&report.fit),
            effective_clusters: [report.effective_clusters, report.effective_clusters_kept].map(number),
            gain_standard_errors: report.hardness_gain_standard_errors.map(number),
            sizes: Bars::new(&report.cluster_sizes, &report.kept_cluster_sizes),
            n_drawn_max: CLUSTERS_DRAWN_MAX,
            clusters: Cut::new(clusters),
        }
    }
}

impl PlantedRow {
    fn new(planted: &Planted, draw: &Draw) -> PlantedRow {
        PlantedRow {
            n: whole(planted.n_planted),
            pool: percent_of(planted.pool_share),
            n_listed: whole(planted.n_listed),
            reaching: (*draw != Draw::Keep).then(|| percent_of(planted.reaching_share)),
            kept: percent_of(planted.kept_share),
            random: percent_of(planted.random_share_mean),
            random_deviation: percent_of(planted.random_share_standard_deviation),
        }
    }
}

/// What each step took out, in their order; a step of several parts has a line for each that took something.
fn by_step<'a>(
    filtered: &'a BTreeMap<String, u64>,
    select: &'a SelectSettings,
) -> impl Iterator<Item = (&'a str, u64)> {
    let bounds = filtered.get_key_value(READ_BOUNDS).map(|(name, &n)| (name.as_str(), n));
    let steps = select.filters.iter().flat_map(|filter| {
        let is_part = |name: &str| name.strip_prefix(&filter.name).is_some_and(|rest| rest.starts_with('.'));
        let parts: Vec<(&str, u64)> = filtered
            .iter()
            .filter(|(name, _)| **name == filter.name || is_part(name))
            .map(|(name, &n)| (name.as_str(), n))
            .collect();
        if parts.is_empty() { vec![(filter.name.as_str(), 0)] } else { parts }
    });
    bounds.into_iter().chain(steps)
}

fn models(plan: &Plan) -> Vec<Model<'_>> {
    let models = plan.models.iter().map(|(role, model)| Model {
        role: role.to_string(),
        folder: &model.folder,
        variant: model.variant,
        digest: model.digest.to_string(),
        embedding_dim: model.embedding_dim,
        logit_scale: model.logit_scale.map_or(String::new(), number),
        logit_scale_source: &model.logit_scale_source,
        logit_bias: model.logit_bias.map_or(String::new(), number),
        logit_bias_source: &model.logit_bias_source,
    });
    models.collect()
}

/// Two rows a score, of the pool and of what was kept.
fn score_rows(report: &Report) -> Vec<ScoreRow<'_>> {
    let row = |name, of, distribution: &Distribution| ScoreRow {
        name,
        of,
        count: whole(distribution.count),
        mean: number(distribution.mean),
        deciles: distribution.deciles.iter().copied().map(number).collect(),
    };
    let rows = report.scores.iter().flat_map(|(name, pool)| {
        let kept = report.kept_scores.get(name).map(|kept| row(name, "kept", kept));
        std::iter::once(row(name, "pool", pool)).chain(kept)
    });
    rows.collect()
}

/// The settings as they were resolved, as a pipeline file that does the same.
fn pipeline(plan: &Plan) -> String {
    #[derive(Serialize)]
    struct Pipeline<'a> {
        seed: u64,
        store: &'a Option<PathBuf>,
        read: &'a ReadSettings,
        models: BTreeMap<String, ModelSettings>,
        embed: &'a EmbedSettings,
        divide: &'a Option<DivideSettings>,
        select: &'a SelectSettings,
        write: &'a WriteSettings,
        report: &'a ReportSettings,
    }
    let models = plan.models.iter();
    let pipeline = Pipeline {
        seed: plan.seed,
        store: &plan.store,
        read: &plan.read,
        models: models.map(|(role, model)| (role.to_string(), model.settings())).collect(),
        embed: &plan.embed,
        divide: &plan.divide,
        select: &plan.select,
        write: &plan.write,
        report: &plan.report,
    };
    toml::to_string_pretty(&pipeline).expect("settings came from TOML")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{ModelRole, Settings};

    /// The run of the quickstart on the fixtures, as its `plan.json` and `report.json` had it.
    fn quickstart() -> (Report, Plan) {
        let plan = serde_json::from_str(include_str!("testdata/plan.json")).unwrap();
        (serde_json::from_str(include_str!("testdata/report.json")).unwrap(), plan)
    }

    #[test]
    fn the_page_holds_every_stage_and_nothing_from_outside() {
        let (report, plan) = quickstart();
        let page = page(&report, &plan);
        for stage in ["read", "embed", "divide", "select", "write"] {
            assert!(page.contains(&format!("<h2>{stage}</h2>")), "{stage}");
        }
        for shown in ["1,612", "322", "19.98 %", "10.180", "hard_learnability", "<polyline", "<rect"] {
            assert!(page.contains(shown), "{shown}");
        }
        for outside in ["<script", "<link", "src=", "http:", "https:", "undefined"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }

    #[test]
    fn foreign_text_is_escaped() {
        let (mut report, mut plan) = quickstart();
        let hostile = "<script>alert(\"&\")</script>".to_owned();
        report.worst_shard = Some(hostile.clone());
        report.left_out_shards = vec![hostile.clone()];
        report.counts.rejected.insert(hostile.clone(), 1);
        report.curated[0].name = hostile.clone();
        plan.pool.root = hostile.clone().into();
        plan.read.shards = vec![hostile.clone()];
        plan.models.get_mut(ModelRole::Learner).unwrap().folder = hostile.into();
        let page = page(&report, &plan);
        assert!(!page.contains("<script"));
        assert!(page.matches("&lt;script&gt;alert(").count() >= 7);
    }

    #[test]
    fn a_run_without_models_scores_or_clusters_has_a_page() {
        let (mut report, mut plan) = quickstart();
        plan.divide = None;
        plan.models.remove(ModelRole::Learner);
        (report.divide, report.planted) = (None, None);
        report.scores.clear();
        report.kept_scores.clear();
        (report.select.batch_learnability, report.select.batch_learnability_random) = (None, None);
        let page = page(&report, &plan);
        assert!(!page.contains("<h2>divide</h2>") && !page.contains("<svg"));
    }

    #[test]
    fn the_settings_are_a_pipeline_file_again() {
        let (_, mut plan) = quickstart();
        let settings = Settings::parse(&pipeline(&plan), &[]).unwrap();
        assert_eq!(settings.seed, plan.seed);
        assert_eq!(serde_json::json!(settings.select), serde_json::json!(plan.select));
        assert_eq!(serde_json::json!(settings.read), serde_json::json!(plan.read));
        let learner = plan.models.get_mut(ModelRole::Learner).unwrap();
        (learner.image_size_px, learner.calibrate) = (Some(64), true);
        let settings = Settings::parse(&pipeline(&plan), &[]).unwrap();
        let learner = settings.models.get(ModelRole::Learner).unwrap();
        assert_eq!((learner.image_size_px, learner.calibrate), (Some(64), true));
    }

    #[test]
    fn filters_are_listed_by_step_and_none_is_left_out() {
        let (mut report, mut plan) = quickstart();
        let step = |text: &str| toml::from_str::<toml::Table>(text).unwrap();
        let steps = [
            "method = 'semdedup'\nepsilon = 0.1",
            "method = 'clip_score'\nkeep = { min = 0.0 }",
            "method = 'decontaminate'\nname = 'clean'\nsets = [{ name = 'b', path = 'b.npy' }, { name = 'a', path = 'a.npy' }]",
        ];
        let steps: Vec<toml::Table> = steps.map(step).into();
        plan.select = toml::Table::from_iter([("step".to_owned(), steps.into())]).try_into().unwrap();
        report.counts.filtered =
            [("semdedup", 3), ("clean.a", 2), (READ_BOUNDS, 5)].map(|(name, n)| (name.to_owned(), n)).into();
        let listed: Vec<_> = by_step(&report.counts.filtered, &plan.select).collect();
        assert_eq!(listed, [(READ_BOUNDS, 5), ("semdedup", 3), ("clip_score", 0), ("clean.a", 2)]);
        let page = page(&report, &plan);
        assert!(page.contains("filters alone") && !page.contains("super-batches."));
    }
}
