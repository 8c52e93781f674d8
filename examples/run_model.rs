//! A model folder and a JSON file of captions and images in; what the model makes of them, as JSON, out.
//!
//! ```text
//! cargo run --release --example run_model FOLDER INPUT.json     {"captions": ["…"], "images": ["a.jpg"]}
//! ```
//!
//! What `tests/consumers/real_models.py` compares with the field's own libraries.

use std::path::Path;

use serde_json::{Value, json};
use superbatch::embed::image::{decode, preprocess};
use superbatch::embed::{
    BatchInputs, BatchOutputs, Embeddings, LoadedModel, ModelChoice, ModelParts, SessionSettings, Tokenizer,
    Tokens,
};
use superbatch::matrix::Matrix;
use superbatch::read::Limits;
use superbatch::runtime::Place;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, folder, input] = &arguments[..] else {
        eprintln!("usage: run_model FOLDER INPUT.json");
        std::process::exit(2);
    };
    let input: Value = serde_json::from_slice(&std::fs::read(input).expect("the input")).expect("JSON");
    match run(Path::new(folder), &input) {
        Ok(output) => println!("{output}"),
        Err(error) => {
            eprintln!("{}", error.message());
            std::process::exit(1);
        }
    }
}

fn run(folder: &Path, input: &Value) -> Result<Value, superbatch::error::Error> {
    let settings = SessionSettings { place: Place::CPU, n_threads: 1 };
    let mut loaded = LoadedModel::open(folder, ModelChoice::default(), &settings)?;
    let texts = |field: &str| -> Vec<String> {
        let values = input[field].as_array().into_iter().flatten();
        values.map(|value| value.as_str().expect("a text").to_owned()).collect()
    };
    let parts = loaded.model.parts.clone();
    let mut pixels = Vec::new();
    let images = texts("images");
    if let Some(image) = parts.image() {
        for path in &images {
            let bytes = std::fs::read(path).expect("the image");
            let decoded = decode(&bytes, &Limits::default()).expect("an image");
            let mut of_image = vec![0.0; image.preprocessing.n_values()];
            preprocess(&decoded, &image.preprocessing, &mut of_image);
            pixels.extend(of_image);
        }
    }
    let mut tokens = Tokens::new(1);
    if let Some(text) = parts.text() {
        let tokenizer = Tokenizer::open(folder, text)?;
        tokens = Tokens::new(tokenizer.context_length());
        texts("captions").iter().try_for_each(|caption| tokenizer.encode(caption, &mut tokens))?;
    }
    let ids = tokens.ids().to_vec();
    let inputs = match parts {
        ModelParts::Pair { .. } => BatchInputs::Pairs { pixels, tokens },
        ModelParts::Image(_) | ModelParts::Classifier(_) => {
            BatchInputs::Images { pixels, n_images: images.len() }
        }
        ModelParts::Text(_) => BatchInputs::Captions(tokens),
    };
    let rows = |rows: &Matrix| (0..rows.n_rows()).map(|row| rows.row(row).to_vec()).collect::<Vec<_>>();
    let of = |embeddings: &Embeddings| rows(&embeddings.rows);
    let kind = loaded.model.kind().to_string();
    Ok(match loaded.towers.embed(&inputs)? {
        BatchOutputs::Pairs(pairs) => {
            json!({"kind": kind, "ids": ids, "images": of(&pairs.image), "captions": of(&pairs.text)})
        }
        BatchOutputs::Images(embeddings) => json!({"kind": kind, "images": of(&embeddings)}),
        BatchOutputs::Captions(embeddings) => json!({"kind": kind, "ids": ids, "captions": of(&embeddings)}),
        BatchOutputs::Logits(logits) => json!({"kind": kind, "logits": rows(&logits.rows)}),
    })
}
