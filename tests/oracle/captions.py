"""Writes tests/golden/captions.json: the token ids that Hugging Face's own classes give for nasty captions.

    python tests/oracle/captions.py

Needs transformers 5 (whose `Siglip2Tokenizer` lower-cases as SigLIP 2 was trained), sentencepiece and the tokenizers of
tests/golden/models/, which tiny_models.py writes. Captions are cut and padded to the context length, as the processors
do. For SigLIP the ids come from the `tokenizers` library with the canonical normaliser; the sentencepiece class is held
against them, and may differ only where it is known to: it keeps white space at the start, takes `▁` for a space
and the control characters 1c to 1f for white space, lower-cases a final sigma by Python's rule, and lets special tokens
swallow the white space around them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tokenizers
import transformers
from transformers import BertTokenizer, CLIPTokenizer, PreTrainedTokenizerFast, Siglip2Tokenizer, SiglipTokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
MODELS = GOLDEN / "models"

CAPTIONS = [
    "a photo of a cat", "A Photo, of: (two) DOGS & 3 birds!", "", " ", "\t\n  \r\n", "   two  spaces   inside \t and around  ",
    "don't can't we'll I'm you've he'd they're", "naïve café — “quoted” … ½ ﬁne ﬂour", "e\u0301 combining e\u0301\u0327 marks Z̸͑a̴l̷g̶o",
    "emoji 🍏👩‍👩‍👧‍👦🏳️‍🌈 flags 🇩🇪🇯🇵 skin 👍🏽", "Привет мир, как дела?", "日本語のキャプション、東京タワー。", "中文字幕测试", "한국어 캡션",
    "مرحبا بالعالم ١٢٣", "שלום עולם", "ไทย ภาษา", "ΟΔΥΣΣΕΥΣ ΣΟΦΟΣ", "İstanbul ı ẞ ß ǅ", "mixed Ελληνικά русский 漢字 العربية text",
    "nul \0 inside", "controls \x01\x02\x1b[31m bell\x07 del\x7f", "zero\u200bwidth\u200djoiner\ufeffbom\u00adhyphen",
    "\u202eright to left override\u202c and \u2066isolates\u2069", "line\u2028separator\u2029paragraph\x85next\xa0nbsp\u3000wide",
    "<|endoftext|> and <|startoftext|> inside", "</s> <unk> <pad> </S> <eos> <bos>", "[CLS] [SEP] [MASK] [PAD] [cls]",
    "▁lower▁one▁eighth", "file\x1cgroup\x1drecord\x1eunit\x1f vertical\x0btab form\x0cfeed \u180emongolian \u2003em", "http://example.com/a?b=c&d=%20#e", "#hashtag @user $100 50% C++ a_b-c/d\\e|f~g`h^i{j}[k]<l>",
    "1234567890 0.5 1,000,000 ²³", "ＦＵＬＬ ｗｉｄｔｈ", "\U0001d54f\U0001d4d0 math alphanumerics \U00010348", "\ufffd\ufffe\uffff noncharacters",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "word " * 2000, "x" * 10_000, "🍏" * 300, "a\u0301" * 500, "! ? . , ; :", "🍏",
]


def ids(tokenizer, context_length: int) -> list[list[int]]:
    return tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=context_length)["input_ids"]


def siglip_ids() -> list[list[int]]:
    folder = MODELS / "siglip"
    fast = ids(PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="</s>"), 64)
    slow = ids(SiglipTokenizer(str(folder / "spiece.model")), 64)
    differ = [caption for caption, left, right in zip(CAPTIONS, fast, slow) if left != right]
    known = [caption for caption in differ if caption[:1].isspace() or "Σ" in caption or "▁" in caption or "\x1c" in caption]
    print("the sentencepiece class differs on", [caption[:40] for caption in differ])
    assert set(differ) - set(known) <= {"</s> <unk> <pad> </S> <eos> <bos>"}, set(differ) - set(known)
    return fast


def main() -> int:
    transformers.logging.set_verbosity_error()
    bert = BertTokenizer(tokenizer_file=str(MODELS / "bert/tokenizer.json"))
    gemma = Siglip2Tokenizer.from_pretrained(MODELS / "siglip2")
    clip = CLIPTokenizer.from_pretrained(MODELS / "clip")
    rows = [
        {"folder": "clip", "context_length": 77, "pad_token": "<|endoftext|>", "ids": ids(clip, 77)},
        {"folder": "siglip", "context_length": 64, "pad_token": "</s>", "ids": siglip_ids()},
        {"folder": "siglip2", "context_length": 64, "pad_token": "<pad>", "ids": ids(gemma, 64)},
        {"folder": "bert", "context_length": 32, "pad_token": "[PAD]", "ids": ids(bert, 32)},
    ]
    for row in rows:
        assert all(len(of_caption) == row["context_length"] for of_caption in row["ids"])
    lines = [json.dumps(row, separators=(",", ":")) for row in rows]
    (GOLDEN / "captions.json").write_text(
        f'{{"transformers": "{transformers.__version__}", "tokenizers": "{tokenizers.__version__}",\n'
        f' "captions": {json.dumps(CAPTIONS)},\n "models": [\n  ' + ",\n  ".join(lines) + "\n ]}\n")
    print(GOLDEN / "captions.json", (GOLDEN / "captions.json").stat().st_size, "bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
