//! The chunk curve and the filter-ratio curve in, a picture of both with their spread out.

use super::table::Spread;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 330.0;
/// Of one panel's axes.
const PANEL: (f64, f64) = (290.0, 220.0);
const TOP: f64 = 56.0;

/// What is drawn in one panel: places from 0 to 1 across it, and a label each.
struct Panel {
    left: f64,
    title: &'static str,
    label: &'static str,
    places: Vec<(f64, String)>,
    here: Vec<Spread>,
    /// Of the paper, by place.
    paper: Vec<(usize, f64)>,
    low: f64,
    high: f64,
    /// Between two lines across.
    step: f64,
}

/// Draws both curves; lines are found by their names.
pub fn svg(found: &[(String, Vec<f64>)]) -> String {
    let of = |prefix: &str| -> Vec<(String, Spread)> {
        let lines = found.iter().filter_map(|(name, values)| Some((name.strip_prefix(prefix)?, values)));
        let first_word = |rest: &str| rest.split([' ', ',']).next().unwrap_or_default().to_owned();
        lines.map(|(rest, values)| (first_word(rest), Spread::of(values))).collect()
    };
    let panel = |left, title, label, curve: Vec<(String, Spread)>, paper, (low, high, step)| {
        let last = (curve.len() - 1).max(1) as f64;
        let (labels, here): (Vec<String>, Vec<Spread>) = curve.into_iter().unzip();
        let places = labels.into_iter().enumerate().map(|(at, label)| (at as f64 / last, label)).collect();
        Panel { left, title, label, places, here, paper, low, high, step }
    };
    let chunks = panel(
        64.0,
        "Chunks of a draw",
        "n_chunks",
        of("chunks: "),
        vec![(0, 0.0), (1, 0.69), (2, 0.89), (3, 0.96), (4, 0.99)],
        (-0.1, 1.1, 0.2),
    );
    let ratios = panel(
        444.0,
        "Filter ratio, 16 chunks",
        "filter_ratio",
        of("filter ratio: "),
        vec![(0, 1.0), (1, 1.12), (2, 1.15)],
        (0.0, 6.0, 1.0),
    );
    let n = chunks.here[0].n;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"11\" fill=\"#333\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n\
         <text x=\"64\" y=\"20\" font-size=\"13\">Batch learnability of the drawn: 0 random, 1 exhaustive Gibbs \
         (coarse pool, b = 256, gain 2)</text>\n"
    );
    text += &chunks.svg();
    text += &ratios.svg();
    text += &format!(
        "<circle cx=\"70\" cy=\"{0}\" r=\"3.5\" fill=\"#1b6ca8\"/><text x=\"80\" y=\"{1}\">here, mean and standard \
         deviation of {n} seeds</text>\n<circle cx=\"330\" cy=\"{0}\" r=\"3.5\" fill=\"none\" stroke=\"#999\"/>\
         <text x=\"340\" y=\"{1}\">JEST's plot at b = 32,768</text>\n</svg>\n",
        HEIGHT - 12.0,
        HEIGHT - 8.0
    );
    text
}

impl Panel {
    fn x(&self, place: f64) -> f64 {
        self.left + 14.0 + place * (PANEL.0 - 28.0)
    }

    fn y(&self, value: f64) -> f64 {
        TOP + PANEL.1 * (1.0 - (value - self.low) / (self.high - self.low))
    }

    fn svg(&self) -> String {
        let (right, bottom) = (self.left + PANEL.0, TOP + PANEL.1);
        let mut text = format!("<text x=\"{}\" y=\"44\">{}</text>\n", self.left, self.title);
        let mut value = (self.low / self.step).ceil() * self.step;
        while value <= self.high + 1e-9 {
            let y = self.y(value);
            text += &format!(
                "<path d=\"M{} {y:.1}H{right}\" stroke=\"#e4e4e4\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">\
                 {value:.1}</text>\n",
                self.left,
                self.left - 6.0,
                y + 4.0
            );
            value += self.step;
        }
        text +=
            &format!("<path d=\"M{0} {TOP}V{bottom}H{right}\" stroke=\"#333\" fill=\"none\"/>\n", self.left);
        for (place, label) in &self.places {
            let x = self.x(*place);
            text += &format!(
                "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>\n",
                bottom + 15.0
            );
        }
        let middle = self.x(0.5);
        text += &format!(
            "<text x=\"{middle:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
            bottom + 30.0,
            self.label
        );
        for &(at, value) in &self.paper {
            let (x, y) = (self.x(self.places[at].0), self.y(value));
            text +=
                &format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"none\" stroke=\"#999\"/>\n");
        }
        let mut line = String::new();
        for (spread, (place, _)) in self.here.iter().zip(&self.places) {
            let (x, y) = (self.x(*place), self.y(spread.mean));
            line += &format!("{}{x:.1} {y:.1}", if line.is_empty() { 'M' } else { 'L' });
            text += &format!(
                "<path d=\"M{x:.1} {:.1}V{:.1}\" stroke=\"#1b6ca8\" stroke-width=\"1.5\"/>\
                 <circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"#1b6ca8\"/>\n",
                self.y(spread.mean - spread.deviation),
                self.y(spread.mean + spread.deviation)
            );
        }
        text + &format!("<path d=\"{line}\" stroke=\"#1b6ca8\" fill=\"none\"/>\n")
    }
}
