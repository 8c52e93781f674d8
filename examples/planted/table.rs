//! The lines of all seeds in, a Markdown table beside what METHODS says out.

use std::collections::BTreeMap;

use super::lines::Lines;

/// What METHODS §7 says of a line, and the range that it means: a single figure holds to half of its last digit.
const SAID: [(&str, &str, f64, f64); 19] = [
    ("noisy: AUC(clean > mismatched), easy_reference", "1.00", 0.995, 1.0),
    ("noisy: AUC(clean > mismatched), learnability", "0.94", 0.935, 0.945),
    ("noisy: AUC(clean > mismatched), hard_learner", "0.03", 0.025, 0.035),
    ("noisy: top 20 % by hard_learner, mismatched", "0.82", 0.815, 0.825),
    ("noisy: top 20 % by easy_reference, learnt", "0.37", 0.365, 0.375),
    ("noisy: top 20 % by easy_reference, mismatched", "0.00", 0.0, 0.005),
    ("noisy: top 20 % by learnability, learnable", "> 0.99", 0.99, 1.0),
    ("noisy: joint / independent, gain 1", "1 ± 0.05", 0.95, 1.05),
    ("coarse: AUC(learnable > others), learnability", "0.33", 0.325, 0.335),
    ("coarse: batch learnability, random", "2.1", 2.05, 2.15),
    ("coarse: batch learnability, independent", "2.5", 2.45, 2.55),
    ("coarse: batch learnability, joint, gain 1", "3.0–3.8", 3.0, 3.8),
    ("coarse: batch learnability, joint, gain 2", "4.4–4.6", 4.4, 4.6),
    ("coarse: batch learnability, joint, gain 4", "4.4–4.6", 4.4, 4.6),
    ("coarse: batch learnability, full-loss top-k", "5.0", 4.95, 5.05),
    ("coarse: batch learnability, Gibbs", "5.2", 5.15, 5.25),
    ("hardness: random", "0.18 ± 0.02", 0.16, 0.20),
    ("hardness: union of ten concepts", "0.37 ± 0.02", 0.35, 0.39),
    ("hardness: one concept", "0.56 ± 0.02", 0.54, 0.58),
];

/// Figures of other pools and sizes, to look at and not to meet: JEST's plot at b = 32,768, and §3 and §4.
const ELSEWHERE: [(&str, &str); 15] = [
    ("noisy: ActiveCLIP swaps kept, gain 1", "(another pool: 0.192)"),
    ("noisy: ActiveCLIP swaps kept, gain 10", "(another pool: 0.144)"),
    ("noisy: ActiveCLIP swaps kept, gain 30", "(another pool: 0.103)"),
    ("noisy: ActiveCLIP swaps kept, top-k", "(another pool: 0.088)"),
    ("chunks: 1 of b = 256, gain 2", "(paper: 0.00)"),
    ("chunks: 2 of b = 256, gain 2", "(paper: 0.69)"),
    ("chunks: 4 of b = 256, gain 2", "(paper: 0.89)"),
    ("chunks: 8 of b = 256, gain 2", "(paper: 0.96)"),
    ("chunks: 16 of b = 256, gain 2", "(paper: 0.99)"),
    ("filter ratio: 0.5, gain 2", "(paper: 1.00)"),
    ("filter ratio: 0.8, gain 2", "(paper: 1.12)"),
    ("filter ratio: 0.9, gain 2", "(paper: 1.15)"),
    ("sub-batches: within concepts, drawn, gain 2", "(another pool: 3.99)"),
    ("sub-batches: within concepts, reshuffled, gain 2", "(another pool: 2.55)"),
    ("sub-batches: within concepts, random, gain 2", "(another pool: 2.21)"),
];

/// One line over the seeds.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub mean: f64,
    /// Of single seeds.
    pub deviation: f64,
    pub n: usize,
}

impl Spread {
    pub fn of(values: &[f64]) -> Spread {
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|value| (value - mean) * (value - mean)).sum();
        Spread { mean, deviation: (squares / n.saturating_sub(1).max(1) as f64).sqrt(), n }
    }

    pub fn standard_error(&self) -> f64 {
        self.deviation / (self.n as f64).sqrt()
    }

    fn text(&self) -> String {
        format!("{:.3} ± {:.3}", self.mean, self.deviation)
    }
}

/// Values of each line by seed, in the order of the lines.
pub fn by_line(seeds: &[Lines]) -> Vec<(String, Vec<f64>)> {
    let names = seeds[0].iter().map(|(name, _)| name.clone());
    names
        .enumerate()
        .map(|(position, name)| {
            let values = seeds.iter().map(|lines| {
                assert_eq!(lines[position].0, name, "every seed has the same lines");
                lines[position].1
            });
            (name.clone(), values.collect())
        })
        .collect()
}

pub fn markdown(found: &[(String, Vec<f64>)], oracle: &BTreeMap<String, Vec<f64>>) -> String {
    let mut text = String::from("| line | expected | here, mean ± sd |");
    text += if oracle.is_empty() {
        " holds |\n|---|---|---|---|\n"
    } else {
        " NumPy | holds |\n|---|---|---|---|---|\n"
    };
    for (name, values) in found {
        let here = Spread::of(values);
        let (said, holds) = match SAID.iter().find(|(line, ..)| line == name) {
            Some((_, said, low, high)) => {
                let margin = 3.0 * here.standard_error();
                let holds = (low - margin..=high + margin).contains(&here.mean);
                (*said, if holds { "yes" } else { "no" })
            }
            None => (ELSEWHERE.iter().find(|(line, _)| line == name).map_or("", |(_, said)| said), ""),
        };
        text += &format!("| {name} | {said} | {} |", here.text());
        if !oracle.is_empty() {
            let beside = oracle.get(name).map(|values| Spread::of(values).text()).unwrap_or_default();
            text += &format!(" {beside} |");
        }
        text += &format!(" {holds} |\n");
    }
    text + "\nExpected: from an earlier simulation of ours, of which no code is left. Holds: the mean is within three standard \
            errors of it. In brackets: figures of other pools and sizes.\n"
}

fn mean_of(found: &[(String, Vec<f64>)], name: &str) -> f64 {
    Spread::of(&found.iter().find(|(line, _)| line == name).expect("a line").1).mean
}

/// The law on swapped captions: JEST keeps at most half of random's, and with the models exchanged more than random's.
pub fn control(found: &[(String, Vec<f64>)]) -> String {
    let line = |pool: &str| {
        let mean = |who: &str| mean_of(found, &format!("{pool}: swaps kept, {who}"));
        let (random, jest, exchanged) = (mean("random"), mean("JEST"), mean("exchanged"));
        let holds = if jest <= random / 2.0 && exchanged > random { "holds" } else { "DOES NOT HOLD" };
        format!(
            "- {pool}: swaps kept by JEST {jest:.3} ≤ ½ random {random:.3} < exchanged {exchanged:.3}: {holds}\n"
        )
    };
    line("noisy") + &line("coarse")
}

/// How far the means are from the oracle's, in standard errors of their difference.
pub fn agreement(found: &[(String, Vec<f64>)], oracle: &BTreeMap<String, Vec<f64>>) -> String {
    let mut n_lines = 0;
    let mut worst = (0.0, "none");
    for (name, values) in found {
        let Some(others) = oracle.get(name) else { continue };
        let (here, there) = (Spread::of(values), Spread::of(others));
        let error = here.standard_error().hypot(there.standard_error());
        let apart = if error > 0.0 { (here.mean - there.mean).abs() / error } else { 0.0 };
        n_lines += 1;
        if apart > worst.0 {
            worst = (apart, name.as_str());
        }
    }
    format!(
        "{n_lines} lines beside NumPy's; farthest apart, by {:.2} standard errors: {}\n",
        worst.0, worst.1
    )
}
