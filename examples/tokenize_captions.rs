//! A `tokenizer.json` and captions in; their token ids, a JSON list of lists, out.
//!
//! ```text
//! cargo run --release --example tokenize_captions TOKENIZER.json CONTEXT_LENGTH PAD_TOKEN FORM <captions.json
//! ```
//!
//! FORM is `as_is`, `lower_case` or `siglip`. What `tests/consumers/real_models.py` compares with Hugging Face's.

use std::path::{Path, PathBuf};

use superbatch::embed::{CaptionForm, TextPreparation, TextSide, Tokenizer, Tokens};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, file, context_length, pad_token, form] = &arguments[..] else {
        eprintln!("usage: tokenize_captions TOKENIZER.json CONTEXT_LENGTH PAD_TOKEN FORM <captions.json");
        std::process::exit(2);
    };
    let form = match form.as_str() {
        "lower_case" => CaptionForm::LowerCase,
        "siglip" => CaptionForm::Siglip,
        _ => CaptionForm::AsIs,
    };
    let preparation = TextPreparation {
        context_length: context_length.parse().expect("a number of tokens"),
        pad_token: pad_token.clone(),
        pads_left: false,
        form,
    };
    let tokenizer = std::fs::read(file).expect("the tokenizer");
    let side = TextSide {
        graph: PathBuf::new(),
        preparation,
        tokenizer: tokenizer.into(),
        input: None,
        output: None,
        pooling: None,
    };
    let tokenizer =
        Tokenizer::open(Path::new("."), &side).unwrap_or_else(|error| panic!("{}", error.message()));
    let captions: Vec<String> = serde_json::from_reader(std::io::stdin().lock()).expect("a list of texts");
    let ids = captions.iter().map(|caption| {
        let mut tokens = Tokens::new(tokenizer.context_length());
        tokenizer.encode(caption, &mut tokens).unwrap_or_else(|error| panic!("{}", error.message()));
        tokens.ids().to_vec()
    });
    println!("{}", serde_json::to_string(&ids.collect::<Vec<_>>()).expect("numbers are JSON"));
}
