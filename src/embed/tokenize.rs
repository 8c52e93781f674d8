//! Captions in, token ids of a fixed length out, as Hugging Face's tokenizers give them. Per sample.

use std::borrow::Cow;
use std::path::Path;

use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, NormalizerWrapper, Replace, Sequence, Strip};
use tokenizers::{PaddingDirection, PaddingParams, PaddingStrategy, PostProcessor, TruncationParams};

use super::model::{CaptionForm, ModelError, TextSide};
use crate::error::Error;
use crate::foreign::survived;

/// Lengths to which padding is cut are multiples of this, so that a graph meets few shapes.
const LENGTH_STEP: usize = 8;

/// Token ids of some captions, one row a caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Of each row.
    length: usize,
    /// `[n, length]`.
    ids: Vec<i64>,
    /// `[n, length]`: 1 for a token of the caption, 0 for padding.
    mask: Vec<i64>,
}

impl Tokens {
    pub fn new(length: usize) -> Tokens {
        assert!(length > 0);
        Tokens { length, ids: Vec::new(), mask: Vec::new() }
    }

    /// Rows made by hand.
    #[cfg(test)]
    pub(super) fn of(length: usize, ids: Vec<i64>, mask: Vec<i64>) -> Tokens {
        Tokens { length, ids, mask }
    }

    /// Rows of padding alone, with id 0.
    pub(super) fn blank(length: usize, n_rows: usize) -> Tokens {
        Tokens { length, ids: vec![0; length * n_rows], mask: vec![1; length * n_rows] }
    }

    /// Number of captions.
    pub fn n_rows(&self) -> usize {
        self.ids.len() / self.length
    }

    pub fn length(&self) -> usize {
        self.length
    }

    pub fn ids(&self) -> &[i64] {
        &self.ids
    }

    pub fn mask(&self) -> &[i64] {
        &self.mask
    }

    /// Adds the rows of others after these.
    pub fn append(&mut self, others: &Tokens) {
        assert_eq!(self.length, others.length);
        self.ids.extend_from_slice(&others.ids);
        self.mask.extend_from_slice(&others.mask);
    }

    pub fn clear(&mut self) {
        self.ids.clear();
        self.mask.clear();
    }

    /// The same without the padding at the ends that all rows have, but for what makes up a multiple of
    /// [`LENGTH_STEP`].
    pub fn without_shared_padding(&self) -> Tokens {
        let own_length = |mask: &[i64]| mask.iter().rposition(|&bit| bit == 1).map_or(0, |last| last + 1);
        let longest = self.mask.chunks_exact(self.length).map(own_length).max().unwrap_or(0);
        let length = longest.max(1).next_multiple_of(LENGTH_STEP).min(self.length);
        let cut = |values: &[i64]| -> Vec<i64> {
            values.chunks_exact(self.length).flat_map(|row| &row[..length]).copied().collect()
        };
        Tokens { length, ids: cut(&self.ids), mask: cut(&self.mask) }
    }
}

/// A model's tokenizer; threads may share it.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    form: CaptionForm,
    context_length: usize,
    folder: std::path::PathBuf,
}

impl Tokenizer {
    /// Sets up a model's `tokenizer.json` to cut and to pad every caption to the context length.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] if the tokenizer cannot be read, does not know the padding token, or adds more
    /// special tokens than the context holds.
    pub fn open(folder: &Path, side: &TextSide) -> Result<Tokenizer, Error> {
        of_foreign(|| open(folder, side)).map_err(|source| Error::Model { folder: folder.to_owned(), source })
    }

    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// Adds one caption's ids as a row. A caption that is too long loses its end, but keeps the special
    /// tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] if the tokenizer has no id for a piece of text and none for the unknown.
    pub fn encode(&self, caption: &str, tokens: &mut Tokens) -> Result<(), Error> {
        assert_eq!(tokens.length, self.context_length);
        let encode = || {
            let encoding = self.inner.encode_fast(cleaned(self.form, caption), true);
            encoding.map_err(|error| ModelError::Tokenizer { reason: error.to_string() })
        };
        let fault = |source| Error::Model { folder: self.folder.clone(), source };
        let encoding = of_foreign(encode).map_err(fault)?;
        if encoding.len() != self.context_length {
            let reason = format!("it cuts and pads a caption to {} tokens", encoding.len());
            return Err(fault(ModelError::Tokenizer { reason }));
        }
        tokens.ids.extend(encoding.get_ids().iter().map(|&id| i64::from(id)));
        tokens.mask.extend(encoding.get_attention_mask().iter().map(|&bit| i64::from(bit)));
        Ok(())
    }
}

/// Where the tokenizers' crate panics over a foreign `tokenizer.json`, that file cannot be used.
fn of_foreign<T>(work: impl FnOnce() -> Result<T, ModelError>) -> Result<T, ModelError> {
    let panicked = |_| ModelError::Tokenizer { reason: "its `tokenizer.json` contradicts itself".to_owned() };
    survived(work).map_err(panicked)?
}

fn open(folder: &Path, side: &TextSide) -> Result<Tokenizer, ModelError> {
    let fault = |reason: String| ModelError::Tokenizer { reason };
    let text = &side.preparation;
    let mut inner =
        tokenizers::Tokenizer::from_bytes(&side.tokenizer).map_err(|error| fault(error.to_string()))?;
    let pad_id = inner
        .token_to_id(&text.pad_token)
        .ok_or_else(|| fault(format!("its vocabulary has no padding token `{}`", text.pad_token)))?;
    let n_special = inner.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
    if n_special >= text.context_length {
        return Err(fault(format!(
            "it adds {n_special} tokens to each caption, which leaves no room for text"
        )));
    }
    bring_into_form(&mut inner, text.form).map_err(|error| fault(error.to_string()))?;
    let truncation = TruncationParams { max_length: text.context_length, ..TruncationParams::default() };
    inner.with_truncation(Some(truncation)).map_err(|error| fault(error.to_string()))?;
    inner.with_padding(Some(PaddingParams {
        strategy: PaddingStrategy::Fixed(text.context_length),
        direction: if text.pads_left { PaddingDirection::Left } else { PaddingDirection::Right },
        pad_to_multiple_of: None,
        pad_id,
        pad_type_id: 0,
        pad_token: text.pad_token.clone(),
    }));
    let folder = folder.to_owned();
    Ok(Tokenizer { inner, form: text.form, context_length: text.context_length, folder })
}

/// Puts the caption's form before the tokenizer's own normaliser, so that special tokens in a caption are found first, as
/// Hugging Face's classes do. OpenCLIP's forms are those of the whole text: see [`cleaned`].
///
/// # Source
///
/// transformers, `SiglipTokenizer.canonicalize_text` and `Siglip2Tokenizer`. Lower case is by character, as in the tokenizers
/// made of those classes: Python's rule for a sigma at the end of a word is not followed.
fn bring_into_form(inner: &mut tokenizers::Tokenizer, form: CaptionForm) -> tokenizers::Result<()> {
    let replace = |pattern: &str, by| {
        Replace::new(ReplacePattern::Regex(pattern.to_owned()), by).map(NormalizerWrapper::from)
    };
    let mut normalizers: Vec<NormalizerWrapper> = match form {
        CaptionForm::LowerCase => vec![Lowercase.into()],
        CaptionForm::Siglip => vec![
            Lowercase.into(),
            replace(PUNCTUATION, "")?,
            replace(r"\s+", " ")?,
            Strip::new(true, true).into(),
        ],
        CaptionForm::AsIs
        | CaptionForm::OpenClip
        | CaptionForm::OpenClipWhitespace
        | CaptionForm::OpenClipLower => return Ok(()),
    };
    normalizers.extend(inner.get_normalizer().cloned());
    inner.with_normalizer(Some(Sequence::new(normalizers)))?;
    Ok(())
}

/// Python's `string.punctuation`.
const PUNCTUATION: &str = r"[!-/:-@\[-`{-~]";

/// The caption in a form of OpenCLIP's, special tokens in it and all; as it is in others.
///
/// # Source
///
/// open_clip 3, `tokenizer.py`: `whitespace_clean`, `_clean_lower` and `canonicalize_text`, without the `basic_clean` before
/// them, which repairs broken text and HTML.
fn cleaned(form: CaptionForm, caption: &str) -> Cow<'_, str> {
    Cow::Owned(match form {
        CaptionForm::AsIs | CaptionForm::LowerCase | CaptionForm::Siglip => return Cow::Borrowed(caption),
        CaptionForm::OpenClipWhitespace => with_single_spaces(caption),
        CaptionForm::OpenClipLower => with_single_spaces(caption).to_lowercase(),
        CaptionForm::OpenClip => {
            let text = caption.replace('_', " ").replace(|c: char| c.is_ascii_punctuation(), "");
            with_single_spaces(&text.to_lowercase())
        }
    })
}

/// White space as single spaces, none at the ends. Python takes four separators among the control characters for white space,
/// which Unicode does not.
fn with_single_spaces(text: &str) -> String {
    let is_space = |c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c);
    text.split(is_space).filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embed::model::TextPreparation;

    #[derive(serde::Deserialize)]
    struct Golden {
        captions: Vec<String>,
        models: Vec<GoldenModel>,
    }

    #[derive(serde::Deserialize)]
    struct GoldenModel {
        folder: String,
        context_length: usize,
        pad_token: String,
        ids: Vec<Vec<i64>>,
    }

    fn golden() -> Golden {
        serde_json::from_str(include_str!("../../tests/golden/captions.json")).unwrap()
    }

    fn tokenizer(
        model: &GoldenModel,
        form: CaptionForm,
        change: impl Fn(&mut serde_json::Value),
    ) -> Tokenizer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(&model.folder);
        let bytes = std::fs::read(folder.join("tokenizer.json")).unwrap();
        let mut json = serde_json::from_slice(&bytes).unwrap();
        change(&mut json);
        let preparation = TextPreparation {
            context_length: model.context_length,
            pad_token: model.pad_token.clone(),
            pads_left: false,
            form,
        };
        let tokenizer = serde_json::to_vec(&json).unwrap().into();
        let graph = folder.join("none");
        let side = TextSide { graph, preparation, tokenizer, input: None, output: None, pooling: None };
        Tokenizer::open(&folder, &side).unwrap()
    }

    /// Ids and mask of each caption.
    #[track_caller]
    fn check(model: &GoldenModel, captions: &[String], tokenizer: &Tokenizer) {
        for (caption, expected) in captions.iter().zip(&model.ids) {
            let mut tokens = Tokens::new(tokenizer.context_length());
            tokenizer.encode(caption, &mut tokens).unwrap();
            assert_eq!(tokens.ids(), expected, "{}: {caption:?}", model.folder);
            let n_tokens = tokens.mask().iter().sum::<i64>() as usize;
            assert!(tokens.mask()[..n_tokens].iter().all(|&bit| bit == 1), "{caption:?}");
        }
    }

    fn form_of(folder: &str) -> CaptionForm {
        match folder {
            "siglip" => CaptionForm::Siglip,
            "siglip2" => CaptionForm::LowerCase,
            _ => CaptionForm::AsIs,
        }
    }

    #[test]
    fn ids_equal_hugging_faces() {
        let golden = golden();
        for model in &golden.models {
            check(model, &golden.captions, &tokenizer(model, form_of(&model.folder), |_| ()));
        }
        assert_eq!(golden.models.len(), 4);
    }

    /// Against Python: see `tests/oracle/open_clip.py`.
    #[test]
    fn captions_are_cleaned_as_open_clip_does() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/golden/open_clip.json")).unwrap();
        let rows = golden["captions"].as_array().unwrap();
        assert!(rows.len() > 10);
        for row in rows {
            let caption = row["caption"].as_str().unwrap();
            for (form, name) in [
                (CaptionForm::OpenClipWhitespace, "whitespace"),
                (CaptionForm::OpenClipLower, "lower"),
                (CaptionForm::OpenClip, "canonicalize"),
            ] {
                assert_eq!(cleaned(form, caption), row[name].as_str().unwrap(), "{name}: {caption:?}");
            }
            assert_eq!(cleaned(CaptionForm::AsIs, caption), caption);
        }
    }

    #[test]
    fn a_tokenizer_takes_what_was_cleaned() {
        let golden = golden();
        let model = golden.models.iter().find(|model| model.folder == "siglip").unwrap();
        let ids = |form, caption: &str| {
            let tokenizer = tokenizer(model, form, |json| json["normalizer"] = serde_json::Value::Null);
            let mut tokens = Tokens::new(tokenizer.context_length());
            tokenizer.encode(caption, &mut tokens).unwrap();
            tokens.ids().to_vec()
        };
        let caption = " _A snake_case\t name, isn't it?_\n";
        let as_is = |text| ids(CaptionForm::AsIs, text);
        assert_eq!(ids(CaptionForm::OpenClip, caption), as_is("a snake case name isnt it"));
        assert_ne!(ids(CaptionForm::Siglip, caption), as_is("a snake case name isnt it"));
        assert_eq!(ids(CaptionForm::OpenClipLower, caption), as_is("_a snake_case name, isn't it?_"));
        assert_eq!(ids(CaptionForm::OpenClipWhitespace, caption), as_is("_A snake_case name, isn't it?_"));
        assert_ne!(as_is(caption), as_is("_A snake_case name, isn't it?_"));
    }

    #[test]
    fn siglips_canonical_text_does_not_depend_on_the_normaliser_of_the_file() {
        let golden = golden();
        let model = golden.models.iter().find(|model| model.folder == "siglip").unwrap();
        // a conversion of the sentencepiece model alone, which knows nothing of `canonicalize_text`
        let without = |json: &mut serde_json::Value| {
            json["normalizer"]["normalizers"].as_array_mut().unwrap().drain(..4);
        };
        check(model, &golden.captions, &tokenizer(model, CaptionForm::Siglip, without));
    }
}
