"""Writes tests/golden/models/sentence/: a text-only folder as sentence-transformers saves it, with a graph beside it.

    python tests/oracle/sentence_model.py

A BERT with tiny widths and random weights over the vocabulary of tests/golden/models/bert, pooled by the mean as MiniLM is.
torch exports the bare transformer, whose graph gives a vector a token; `expected.json` holds what sentence-transformers itself
makes of some captions, by the mean, by the first token and by the last.

Needs torch, transformers 4.57, sentence-transformers 5.1, onnx.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from transformers import BertConfig, BertModel

GOLDEN = Path(__file__).parents[1] / "golden/models"
WIDTH, CONTEXT_LENGTH = 16, 12
CAPTIONS = ("a photo of a red apple on a table", "Two DOGS, running!", "drawing of a ship", "a", "naïve café 🍏",
            "one two three four five six seven eight nine ten eleven twelve " * 2)
KEPT = ("modules.json", "sentence_bert_config.json", "config.json", "tokenizer.json", "tokenizer_config.json",
        "special_tokens_map.json", "1_Pooling/config.json")


def bert() -> BertModel:
    vocabulary = json.loads((GOLDEN / "bert/tokenizer.json").read_text())["model"]["vocab"]
    torch.manual_seed(3)
    model = BertModel(BertConfig(vocab_size=len(vocabulary), hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=2,
                                 num_attention_heads=2, max_position_embeddings=32), add_pooling_layer=True).eval()
    with torch.no_grad():  # so large that captions differ, as trained weights make them and fresh ones do not
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.copy_(torch.randn_like(weight) * (0.8 if weight.shape[1] == WIDTH and len(weight) > 40 else 0.4))
    return model


def pooled(folder: Path, mode: str) -> SentenceTransformer:
    transformer = Transformer(str(folder), max_seq_length=CONTEXT_LENGTH)
    return SentenceTransformer(modules=[transformer, Pooling(WIDTH, pooling_mode=mode)], device="cpu")


def export(model: BertModel, path: Path) -> None:
    """Both outputs that a bare export has: a vector a token, and BERT's own pooler, which sentence-transformers ignores."""
    ids = torch.ones(2, CONTEXT_LENGTH, dtype=torch.long)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    outputs = ["last_hidden_state", "pooler_output"]
    axes = {name: {0: "batch", 1: "length"} for name in [*names, "last_hidden_state"]} | {"pooler_output": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (ids, ids, torch.zeros_like(ids)), str(path), input_names=names, output_names=outputs,
                          dynamic_axes=axes, opset_version=17, dynamo=False)
    graph = onnx.load(path)
    for node in graph.graph.node:
        node.doc_string = ""
    onnx.save(graph, path)


def main() -> int:
    out = GOLDEN / "sentence"
    shutil.rmtree(out, ignore_errors=True)
    (out / "onnx").mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        base, saved = Path(scratch, "base"), Path(scratch, "saved")
        model = bert()
        model.save_pretrained(base)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            shutil.copy(GOLDEN / "bert" / name, base / name)
        expected = {}
        for mode in ("mean", "cls", "lasttoken"):
            sentences = pooled(base, mode)
            expected[mode] = sentences.encode(list(CAPTIONS), normalize_embeddings=True).astype(np.float64).round(7).tolist()
            if mode == "mean":
                sentences.save(str(saved))
        for name in KEPT:
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copy(saved / name, out / name)
        export(model, out / "onnx/model.onnx")
    (out / "expected.json").write_text(json.dumps({"captions": CAPTIONS, "embeddings": expected}) + "\n")
    print(f"{sum(f.stat().st_size for f in out.rglob('*') if f.is_file())} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
