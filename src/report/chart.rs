//! Numbers in, coordinates of a small picture out; the page's template draws it.

use std::collections::BTreeMap;

use serde::Serialize;

/// Size of every picture in the units of its `viewBox`, and the frame around what is drawn.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 8.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 24.0;

/// More clusters than this are not told apart in a picture of this width.
pub const CLUSTERS_DRAWN_MAX: usize = 60;

/// A line or a word of an axis.
#[derive(Debug, PartialEq, Serialize)]
pub struct Tick {
    pub at: f64,
    pub label: String,
}

/// The extent that every picture has.
#[derive(Debug, PartialEq, Serialize)]
pub struct Frame {
    pub width: f64,
    pub height: f64,
    pub left: f64,
    pub right: f64,
    pub bottom: f64,
    pub y_ticks: Vec<Tick>,
    pub x_ticks: Vec<Tick>,
}

/// Deciles of a column as two lines over the fraction of samples below.
#[derive(Debug, PartialEq, Serialize)]
pub struct Quantiles {
    pub frame: Frame,
    /// Points of an SVG polyline.
    pub pool: String,
    pub kept: String,
}

/// Shares of clusters as two bars each, in the order of their numbers.
#[derive(Debug, PartialEq, Serialize)]
pub struct Bars {
    pub frame: Frame,
    pub clusters: Vec<ClusterBars>,
    pub bar_width: f64,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct ClusterBars {
    pub cluster: u32,
    /// Left edges.
    pub pool_x: f64,
    pub kept_x: f64,
    /// Upper edges; the lower edge is the frame's.
    pub pool_y: f64,
    pub kept_y: f64,
}

impl Quantiles {
    /// From the eleven deciles of both; none where there is nothing to draw.
    pub fn new(pool: &[f64], kept: &[f64]) -> Option<Quantiles> {
        let values = || pool.iter().chain(kept).copied();
        let (low, high) =
            (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        if !(low.is_finite() && high.is_finite() && low < high) {
            return None;
        }
        let y = |value: f64| coordinate(TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM));
        let x = |fraction: f64| coordinate(LEFT + fraction * (WIDTH - LEFT - RIGHT));
        let line = |deciles: &[f64]| {
            let last = (deciles.len().max(2) - 1) as f64;
            let points = deciles.iter().enumerate();
            points
                .map(|(tenth, &value)| format!("{},{}", x(tenth as f64 / last), y(value)))
                .collect::<Vec<_>>()
                .join(" ")
        };
        let y_ticks =
            ticks(low, high).into_iter().map(|(value, label)| Tick { at: y(value), label }).collect();
        let x_ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
            .map(|fraction| Tick { at: x(fraction), label: format!("{:.0} %", fraction * 100.0) })
            .into();
        Some(Quantiles { pool: line(pool), kept: line(kept), frame: Frame::new(x_ticks, y_ticks) })
    }
}

impl Bars {
    /// Of the clusters that are largest in the pool; none without a sample.
    pub fn new(pool: &BTreeMap<u32, u64>, kept: &BTreeMap<u32, u64>) -> Option<Bars> {
        let (n_pool, n_kept) =
            (pool.values().sum::<u64>() as f64, (kept.values().sum::<u64>() as f64).max(1.0));
        let mut largest: Vec<(u32, u64)> = pool.iter().map(|(&cluster, &n)| (cluster, n)).collect();
        largest.sort_by_key(|&(cluster, n)| (std::cmp::Reverse(n), cluster));
        largest.truncate(CLUSTERS_DRAWN_MAX);
        largest.sort_unstable();
        let shares: Vec<(u32, f64, f64)> = largest
            .into_iter()
            .map(|(cluster, n)| {
                (cluster, n as f64 / n_pool, kept.get(&cluster).map_or(0.0, |&n| n as f64 / n_kept))
            })
            .collect();
        let high = shares.iter().fold(0.0, |high: f64, (_, pool, kept)| high.max(*pool).max(*kept));
        if !(high.is_finite() && high > 0.0) {
            return None;
        }
        let y = |share: f64| coordinate(TOP + (high - share) / high * (HEIGHT - TOP - BOTTOM));
        let cluster_width = (WIDTH - LEFT - RIGHT) / shares.len() as f64;
        let bar_width = cluster_width * 0.4;
        let left = |position: usize| LEFT + cluster_width * (position as f64 + 0.1);
        let labelled = shares.len().div_ceil(20);
        let x_ticks = shares.iter().enumerate().step_by(labelled);
        let x_ticks = x_ticks.map(|(position, (cluster, ..))| Tick {
            at: coordinate(left(position) + bar_width),
            label: cluster.to_string(),
        });
        let y_ticks = ticks(0.0, high * 100.0).into_iter();
        let y_ticks =
            y_ticks.map(|(percent, label)| Tick { at: y(percent / 100.0), label: format!("{label} %") });
        let frame = Frame::new(x_ticks.collect(), y_ticks.collect());
        let clusters = shares.iter().enumerate().map(|(position, &(cluster, pool, kept))| ClusterBars {
            cluster,
            pool_x: coordinate(left(position)),
            kept_x: coordinate(left(position) + bar_width),
            pool_y: y(pool),
            kept_y: y(kept),
        });
        Some(Bars { clusters: clusters.collect(), bar_width: coordinate(bar_width), frame })
    }
}

impl Frame {
    fn new(x_ticks: Vec<Tick>, y_ticks: Vec<Tick>) -> Frame {
        Frame {
            width: WIDTH,
            height: HEIGHT,
            left: LEFT,
            right: WIDTH - RIGHT,
            bottom: HEIGHT - BOTTOM,
            y_ticks,
            x_ticks,
        }
    }
}

/// About five round values between two, with as many decimals as their distance has.
fn ticks(low: f64, high: f64) -> Vec<(f64, String)> {
    let rough = (high - low) / 5.0;
    let magnitude = 10f64.powf(rough.log10().floor());
    let step =
        magnitude * [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| step * magnitude >= rough).unwrap_or(10.0);
    let n_decimals = (-step.log10().floor()).max(0.0) as usize;
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last)
        .map(|n| (n as f64 * step, format!("{:.n_decimals$}", n as f64 * step).replace('-', "−")))
        .collect()
}

/// A tenth of a unit is below what a screen shows.
fn coordinate(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        let labels =
            |low, high| ticks(low, high).into_iter().map(|(_, label)| label).collect::<Vec<_>>().join(" ");
        assert_eq!(labels(-9.6, 4.9), "−5 0");
        assert_eq!(labels(0.0, 1.0), "0.0 0.2 0.4 0.6 0.8 1.0");
        assert_eq!(labels(0.0, 23.0), "0 5 10 15 20");
    }

    #[test]
    fn the_highest_decile_is_at_the_top_and_the_lowest_at_the_bottom() {
        let picture = Quantiles::new(&[-1.0, 0.0, 3.0], &[0.0, 1.0, 2.0]).unwrap();
        assert_eq!(picture.pool, format!("{LEFT},{} 340,164 {},{TOP}", HEIGHT - BOTTOM, WIDTH - RIGHT));
        assert_eq!(Quantiles::new(&[1.0, 1.0], &[1.0]), None);
        assert_eq!(Quantiles::new(&[], &[]), None);
    }

    #[test]
    fn a_bar_is_as_high_as_its_share() {
        let bars = Bars::new(&[(0, 30), (7, 10)].into(), &[(0, 1), (7, 1)].into()).unwrap();
        let height = HEIGHT - TOP - BOTTOM;
        let heights: Vec<f64> =
            bars.clusters.iter().map(|bars| (HEIGHT - BOTTOM - bars.pool_y) / height).collect();
        assert!((heights[0] - 1.0).abs() < 1e-3 && (heights[1] - 1.0 / 3.0).abs() < 1e-3, "{heights:?}");
        assert_eq!(bars.clusters[0].kept_y, bars.clusters[1].kept_y);
        assert_eq!(Bars::new(&BTreeMap::new(), &BTreeMap::new()), None);
    }
}
