//! Models in, how many samples a second they embed out, measured on blank images or on samples that are at hand.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::read::Limits;
use crate::runtime::Place;

use super::decoded::{EmbeddedBatch, Encoders, ModelInputs, embed_batch};
use super::infer::{Sharing, rows_at_once};
use super::loaded::LoadedModel;
use super::model::Model;
use super::session::SessionSettings;
use super::stage::InferenceSettings;

/// Long enough for a rate that is right within a few per cent.
const TIMED_MIN: Duration = Duration::from_millis(300);

/// One model on several sets of sessions.
pub struct Sessions {
    sessions: Vec<LoadedModel>,
    rows_at_once: usize,
}

impl Sessions {
    /// As many as `embed` would open for this model alone.
    pub fn open(
        model: &Model,
        inference: &InferenceSettings,
        n_threads: usize,
        inference_batch_size: usize,
    ) -> Result<Sessions, Error> {
        let places = inference.device.places()?;
        let sharing = Sharing::on(&places, n_threads, model.graph_bytes, inference);
        Sessions::open_on(model, &places, sharing, rows_at_once(places[0].provider, inference_batch_size))
    }

    /// So many on each place.
    pub fn open_on(
        model: &Model,
        places: &[Place],
        sharing: Sharing,
        rows_at_once: usize,
    ) -> Result<Sessions, Error> {
        let on_all = (0..sharing.n_sessions).flat_map(|_| places).map(|&place| {
            let settings = SessionSettings { place, n_threads: sharing.n_threads };
            LoadedModel::load(model.clone(), &settings)
        });
        Ok(Sessions { sessions: on_all.collect::<Result<_, _>>()?, rows_at_once })
    }

    /// As [`LoadedModel::find_padding`] does.
    pub fn find_padding(&mut self, model_idx: usize, probe: &[ModelInputs]) -> Result<(), Error> {
        LoadedModel::share_padding(&mut self.sessions, model_idx, probe)
    }

    pub fn model(&self) -> &LoadedModel {
        &self.sessions[0]
    }

    /// Embeds samples on all sessions at once; the results are in order. `model_idx` is the model's position in the
    /// encoders that made the inputs.
    pub fn embed(&mut self, model_idx: usize, inputs: &[ModelInputs]) -> Result<Vec<EmbeddedBatch>, Error> {
        let runs: Vec<&[ModelInputs]> = inputs.chunks(self.rows_at_once).collect();
        let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(runs.len())));
        std::thread::scope(|scope| {
            for loaded in &mut self.sessions {
                scope.spawn(|| {
                    loop {
                        let run_idx = next.fetch_add(1, Ordering::Relaxed);
                        let Some(run) = runs.get(run_idx) else { return };
                        let embedded = embed_batch(loaded, model_idx, run);
                        done.lock().expect("no holder panics").push((run_idx, embedded));
                    }
                });
            }
        });
        let mut done = done.into_inner().expect("no holder panics");
        done.sort_unstable_by_key(|(run_idx, _)| *run_idx);
        done.into_iter().map(|(_, embedded)| embedded).collect()
    }

    /// How many blank images with short captions are embedded in a second.
    pub fn samples_per_sec(&mut self) -> Result<f64, Error> {
        let rows_at_once = self.rows_at_once;
        Ok(self.samples_per_sec_by_rows(&[rows_at_once], 1)?[0])
    }

    /// The same with each of these numbers of rows at once: the fastest of `n_turns` timings, after one round to warm up.
    /// They take turns, so that whatever else the machine does meets all of them; it only ever makes a timing slower.
    pub fn samples_per_sec_by_rows(&mut self, rows: &[usize], n_turns: usize) -> Result<Vec<f64>, Error> {
        let encoders = Encoders::new(std::slice::from_ref(&self.model().model), Limits::default())?;
        self.find_padding(0, &encoders.probe()?)?;
        let n_inputs_max = self.sessions.len() * rows.iter().max().expect("some number of rows is timed");
        let mut inputs = Vec::with_capacity(n_inputs_max + 1);
        while inputs.len() < n_inputs_max {
            inputs.extend(encoders.probe()?);
        }
        let mut rates = vec![0.0f64; rows.len()];
        for turn in 0..n_turns {
            for (rate, &rows_at_once) in rates.iter_mut().zip(rows) {
                self.rows_at_once = rows_at_once;
                let inputs = &inputs[..self.sessions.len() * rows_at_once];
                if turn == 0 {
                    self.embed(0, inputs)?;
                }
                *rate = rate.max(self.timed(inputs)?);
            }
        }
        Ok(rates)
    }

    /// Embeds these again and again, and says how many a second.
    fn timed(&mut self, inputs: &[ModelInputs]) -> Result<f64, Error> {
        let start = Instant::now();
        let mut n_samples = 0;
        while start.elapsed() < TIMED_MIN {
            self.embed(0, inputs)?;
            n_samples += inputs.len();
        }
        Ok(n_samples as f64 / start.elapsed().as_secs_f64())
    }
}
