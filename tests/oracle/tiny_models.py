"""Writes tests/golden/models/: model folders of the real architectures with tiny widths and random weights.

    python tests/oracle/tiny_models.py

Each folder is laid out as Hugging Face's ONNX exports are, by the field's own tools: transformers 4.57 makes the model
and its configuration files, optimum-onnx the combined graph, torch the split ones (with the names of the hub's ONNX
community), ONNX Runtime the fp16 ones. Names of values inside the graphs are shortened to keep the files small;
inputs, outputs and weights keep theirs. `expected.json` holds what transformers computes in float32 from the same
folder's processor and tokenizer: unit embeddings of six images and six captions, and the logits of all pairs.

Needs torch, transformers 4.57, optimum-onnx, onnxruntime, sentencepiece, open_clip (for CLIP's merges), Pillow.
"""

from __future__ import annotations

import base64
import io
import json
import re
import string
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import open_clip
import sentencepiece
import torch
import transformers
from onnxruntime.transformers import float16
from onnxruntime.transformers.onnx_model import OnnxModel
from optimum.exporters.onnx import main_export
from PIL import Image
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (BertTokenizerFast, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextModelWithProjection,
                          CLIPTokenizerFast, CLIPVisionModelWithProjection, GemmaTokenizer, GemmaTokenizerFast,
                          PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessor, SiglipModel)
from transformers.convert_slow_tokenizer import convert_slow_tokenizer

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden"
SIDE, WIDTH = 32, 16
IMAGES = ("jpeg_420", "jpeg_large", "jpeg_tall", "png_rgba", "jpeg_cmyk", "gif")
CAPTIONS = ("a photo of a red apple on a table", "Two DOGS, running!", "drawing of a ship", "", "naïve café 🍏",
            "one two three four five six seven eight nine ten eleven twelve " * 8)
CHARSMAP = (("ﬁ", "fi"), ("Ａ", "A"), ("ａ", "a"), ("½", "1⁄2"), ("\u3000", " "), ("\u00a0", " "), ("…", "..."), ("\u200b", " "))
TOWER = dict(hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=2, num_attention_heads=2)


def captions_of_the_fixtures() -> list[str]:
    captions = []
    for path in sorted((ROOT / "fixtures/pool").glob("shard-*.tar")):
        with tarfile.open(path) as shard:
            captions += [shard.extractfile(m).read().decode() for m in shard if m.name.endswith(".txt")]
    return captions


def images() -> list[Image.Image]:
    rows = json.loads((GOLDEN / "preprocess.json").read_text())["decoded"]
    encoded = {row["name"]: base64.b64decode(row["bytes"]) for row in rows}
    return [Image.open(io.BytesIO(encoded[name])).convert("RGB") for name in IMAGES]


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Weights so large that embeddings differ from sample to sample, as trained ones do and fresh ones do not."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if name in ("logit_scale", "logit_bias"):
                continue
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() > 1 and "embedding" not in name:
                weight.copy_(noise * 1.6 / np.sqrt(weight[0].numel()))
            elif "norm" in name and name.endswith("weight"):
                weight.copy_(1 + 0.1 * noise)
            else:
                weight.copy_(noise * (0.8 if "embedding" in name else 0.1))


# Tokenizers

def clip_tokenizer() -> CLIPTokenizerFast:
    """CLIP's own bytes and the first of its own merges."""
    full = open_clip.tokenizer.SimpleTokenizer()
    merges = list(full.bpe_ranks)[:40]
    base = list(full.encoder)[:512]
    tokens = base + ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocab, merges_file = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab.write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        merges_file.write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges))
        return CLIPTokenizerFast(str(vocab), str(merges_file), model_max_length=77)


def sentencepiece_model(folder: str, **options) -> str:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions_of_the_fixtures()), model_prefix=f"{folder}/spiece", num_threads=1,
        minloglevel=2, **options)
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(Path(folder, "spiece.model").read_bytes())
    model.trainer_spec.model_prefix = model.normalizer_spec.normalization_rule_tsv = ""  # paths of this moment
    Path(folder, "spiece.model").write_bytes(model.SerializeToString())
    return f"{folder}/spiece.model"


def siglip_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The structure of the hub's converted SigLIP tokenizers, whose normaliser is `canonicalize_text`."""
    with tempfile.TemporaryDirectory() as scratch:
        rules = Path(scratch, "rules.tsv")  # a few of nmt_nfkc's, which as a whole would be 240 kB
        rules.write_text("".join(f"{ord(left):X}\t{' '.join(f'{ord(c):X}' for c in right)}\n" for left, right in CHARSMAP))
        spiece = sentencepiece_model(scratch, model_type="unigram", vocab_size=400, character_coverage=1.0, pad_id=0,
                                     eos_id=1, unk_id=2, bos_id=-1, normalization_rule_tsv=str(rules))
        pieces = sentencepiece.SentencePieceProcessor(model_file=spiece)
        (folder / "spiece.model").write_bytes(Path(spiece).read_bytes())
    vocab = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    charsmap = normalizer_charsmap(folder / "spiece.model")
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2))
    punctuation = "[" + "".join("\\" + c for c in string.punctuation) + "]"
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Lowercase(), normalizers.Replace(Regex(punctuation), ""), normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(), normalizers.Precompiled(charsmap), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[("</s>", 1)])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="</s>",
                                      model_max_length=64, do_lower_case=True, model_input_names=["input_ids"])
    return wrapped


def normalizer_charsmap(spiece: Path) -> bytes:
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(spiece.read_bytes())
    return model.normalizer_spec.precompiled_charsmap


def gemma_tokenizer() -> GemmaTokenizerFast:
    """Gemma's structure with SigLIP 2's settings: no beginning, an end, padded on the right."""
    with tempfile.TemporaryDirectory() as folder:
        spiece = sentencepiece_model(
            folder, model_type="bpe", vocab_size=480, byte_fallback=True, character_coverage=0.999, split_digits=True,
            add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name="identity",
            allow_whitespace_only_pieces=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>",
            eos_piece="<eos>", bos_piece="<bos>")
        slow = GemmaTokenizer(spiece, add_bos_token=False, add_eos_token=True)
        backend = convert_slow_tokenizer(slow)
        fast = GemmaTokenizerFast(tokenizer_object=backend, add_bos_token=False, add_eos_token=True, padding_side="right",
                                  model_max_length=64, model_input_names=["input_ids"])
    return fast


def bert_tokenizer() -> BertTokenizerFast:
    """WordPiece over the letters and the commonest words of the captions; trained ones differ from run to run."""
    words = Counter(word for caption in captions_of_the_fixtures() for word in re.findall(r"[a-z]+", caption.lower()))
    letters = string.ascii_lowercase + string.digits + string.punctuation + "é"
    common = sorted(words, key=lambda word: (-words[word], word))[:150]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    vocab += [*(word for word in common if len(word) > 1), "##ing", "##s", "##ed", "##er"][: 400 - len(vocab)]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.txt").write_text("\n".join(dict.fromkeys(vocab)))
        return BertTokenizerFast(f"{folder}/vocab.txt", model_max_length=32)


def save_tokenizer(tokenizer, folder: Path, **config) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            content = json.loads(Path(scratch, name).read_text())
            content = content | config if name == "tokenizer_config.json" else content
            (folder / name).write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")


# Graphs

def shortened(graph_file: Path) -> None:
    """Gives the values inside a graph short names, and takes out what only people read."""
    model = onnx.load(graph_file)
    kept = {value.name for value in (*model.graph.input, *model.graph.output)}
    kept |= {weight.name for weight in model.graph.initializer if "." in weight.name or weight.name.startswith("logit_")}
    names: dict[str, str] = {}

    def short(name: str) -> str:
        return name if not name or name in kept else names.setdefault(name, f"v{len(names)}")

    for node in model.graph.node:
        node.name, node.doc_string = "", ""
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
        assert all(attribute.type != onnx.AttributeProto.GRAPH for attribute in node.attribute)
    for weight in model.graph.initializer:
        weight.name, weight.doc_string = short(weight.name), ""
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    onnx.save(model, graph_file)


FLOAT = onnx.TensorProto.FLOAT


def finish(graph_file: Path, with_half: bool) -> None:
    if with_half:  # before names are shortened, since the converter goes by them
        model = onnx.load(graph_file)
        casts = {node.name for node in model.graph.node if node.op_type == "Cast" and node.attribute[0].i == FLOAT}
        model = float16.convert_float_to_float16(model, keep_io_types=True)
        for node in model.graph.node:  # the converter leaves them, and what they give would not fit the rest
            if node.name in casts:
                node.attribute[0].i = onnx.TensorProto.FLOAT16
        OnnxModel(model).topological_sort()
        half_file = graph_file.with_name(f"{graph_file.stem}_fp16.onnx")
        onnx.save(model, half_file)
        shortened(half_file)
    shortened(graph_file)


def export(module: torch.nn.Module, example, graph_file: Path, inputs: dict[str, dict], outputs: list[str],
           with_half: bool = False) -> None:
    axes = inputs | {output: {0: "batch_size"} for output in outputs}
    torch.onnx.export(module.eval(), example, graph_file, input_names=list(inputs), output_names=outputs,
                      dynamic_axes=axes, opset_version=17, dynamo=False)
    finish(graph_file, with_half)


PIXELS = {"pixel_values": {0: "batch_size", 1: "num_channels", 2: "height", 3: "width"}}
IDS = {"input_ids": {0: "batch_size", 1: "sequence_length"}}


class Outputs(torch.nn.Module):
    """A tower that returns these of its outputs."""

    def __init__(self, tower: torch.nn.Module, *names: str) -> None:
        super().__init__()
        self.tower, self.names = tower, names

    def forward(self, value):
        out = self.tower(value)
        return tuple(getattr(out, name) for name in self.names)


def export_combined(model, processor, tokenizer, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as target:
        model.save_pretrained(source)
        main_export(source, target, task="zero-shot-image-classification", do_validation=False)
        (folder / "onnx/model.onnx").write_bytes(Path(target, "model.onnx").read_bytes())
    finish(folder / "onnx/model.onnx", with_half=True)
    with tempfile.TemporaryDirectory() as scratch:
        model.config.save_pretrained(scratch)
        processor.save_pretrained(scratch)
        for name in ("config.json", "preprocessor_config.json"):
            (folder / name).write_text(Path(scratch, name).read_text())


def write_expected(folder: Path, image_rows: torch.Tensor, text_rows: torch.Tensor, scale: float, bias: float) -> None:
    image, text = (torch.nn.functional.normalize(rows.double(), dim=-1) for rows in (image_rows, text_rows))
    logits = scale * image @ text.T + bias
    spread = (image @ text.T).std().item()
    assert spread > 0.05, f"{folder.name}: similarities are all alike ({spread})"
    expected = {"images": IMAGES, "captions": CAPTIONS, "logit_scale": scale, "logit_bias": bias,
                "image_embeddings": np.round(image.numpy(), 7).tolist(),
                "text_embeddings": np.round(text.numpy(), 7).tolist(), "logits": np.round(logits.numpy(), 5).tolist()}
    (folder / "expected.json").write_text(json.dumps(expected, ensure_ascii=False) + "\n")
    print(f"{folder.name}: similarities {float((image @ text.T).min()):.3f} to {float((image @ text.T).max()):.3f}, "
          f"{sum(file.stat().st_size for file in folder.rglob('*') if file.is_file()):,} bytes")


def folder_of(name: str) -> Path:
    folder = GOLDEN / "models" / name
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    return folder


def clip() -> None:
    folder = folder_of("clip")
    tokenizer = clip_tokenizer()
    end = tokenizer.eos_token_id
    text = TOWER | dict(vocab_size=len(tokenizer), max_position_embeddings=77, bos_token_id=end - 1, eos_token_id=end,
                        pad_token_id=end, projection_dim=WIDTH)
    vision = TOWER | dict(image_size=SIDE, patch_size=8, projection_dim=WIDTH)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)).eval()
    randomise(model, 1)
    model.logit_scale.data.fill_(np.log(23.5))
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    save_tokenizer(tokenizer, folder)
    export_combined(model, processor, tokenizer, folder)
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        vision = CLIPVisionModelWithProjection.from_pretrained(scratch, attn_implementation="eager")
        text = CLIPTextModelWithProjection.from_pretrained(scratch, attn_implementation="eager")
    pixels = processor(images(), return_tensors="pt")["pixel_values"]
    tokens = tokenizer(list(CAPTIONS), padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    export(Outputs(vision, "image_embeds", "last_hidden_state"), (pixels,), folder / "onnx/vision_model.onnx", PIXELS,
           ["image_embeds", "last_hidden_state"])
    export(Outputs(text, "text_embeds", "last_hidden_state"), (tokens["input_ids"],), folder / "onnx/text_model.onnx", IDS,
           ["text_embeds", "last_hidden_state"])
    with torch.no_grad():
        out = model(**tokens, pixel_values=pixels)
    write_expected(folder, out.image_embeds, out.text_embeds, model.logit_scale.exp().item(), 0.0)


def siglip_like(name: str, tokenizer, tokenizer_class: str, resample: int, seed: int) -> None:
    """SigLIP and the SigLIP 2 of fixed resolution, which differ in tokenizer, filter and vocabulary; split for one."""
    folder = folder_of(name)
    text = TOWER | dict(vocab_size=len(tokenizer), max_position_embeddings=64, projection_size=WIDTH)
    vision = TOWER | dict(image_size=SIDE, patch_size=8)
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    randomise(model, seed)
    model.logit_scale.data.fill_(np.log(14.25))
    model.logit_bias.data.fill_(-6.5)
    half = [0.5] * 3
    processor = SiglipImageProcessor(size={"height": SIDE, "width": SIDE}, resample=resample, image_mean=half, image_std=half)
    save_tokenizer(tokenizer, folder, tokenizer_class=tokenizer_class)
    export_combined(model, processor, tokenizer, folder)
    pixels = processor(images(), return_tensors="pt")["pixel_values"]
    lowered = [caption.lower() for caption in CAPTIONS]
    ids = tokenizer(lowered, padding="max_length", truncation=True, max_length=64, return_tensors="pt")["input_ids"]
    model.set_attn_implementation("eager")
    if name == "siglip":
        outputs = ["last_hidden_state", "pooler_output"]
        export(Outputs(model.vision_model, *outputs), (pixels,), folder / "onnx/vision_model.onnx", PIXELS, outputs)
        export(Outputs(model.text_model, *outputs), (ids,), folder / "onnx/text_model.onnx", IDS, outputs)
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=pixels)
    write_expected(folder, out.image_embeds, out.text_embeds, model.logit_scale.exp().item(), model.logit_bias.item())


class MobileImageTower(torch.nn.Module):
    """What MobileCLIP's image tower is made of: depthwise and pointwise convolutions, then a mean over the picture."""

    def __init__(self) -> None:
        super().__init__()
        conv, norm = torch.nn.Conv2d, torch.nn.BatchNorm2d
        self.layers = torch.nn.Sequential(
            conv(3, WIDTH, 3, 2, 1), torch.nn.GELU(), conv(WIDTH, WIDTH, 3, 2, 1, groups=WIDTH), norm(WIDTH),
            conv(WIDTH, 2 * WIDTH, 1), torch.nn.GELU(), conv(2 * WIDTH, 2 * WIDTH, 3, 2, 1, groups=2 * WIDTH),
            conv(2 * WIDTH, 2 * WIDTH, 1), torch.nn.GELU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
            torch.nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, pixel_values):
        return self.layers(pixel_values * 4 - 2)


def mobile_clip() -> None:
    """Only split graphs, CLIP's tokenizer, no normalisation, the bilinear filter; the scale is stated nowhere."""
    folder = folder_of("mobile_clip")
    tokenizer = clip_tokenizer()
    end = tokenizer.eos_token_id
    text = TOWER | dict(vocab_size=len(tokenizer), max_position_embeddings=77, bos_token_id=end - 1, eos_token_id=end,
                        pad_token_id=end, projection_dim=WIDTH)
    config = CLIPConfig(text_config=text, vision_config=TOWER | dict(image_size=SIDE, patch_size=8), projection_dim=WIDTH)
    text_tower, image_tower = CLIPTextModelWithProjection._from_config(config.text_config, attn_implementation="eager"), MobileImageTower()
    randomise(text_tower, 4)
    randomise(image_tower, 5)
    text_tower.eval(), image_tower.eval()
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE},
                                   resample=2, do_normalize=False, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    save_tokenizer(tokenizer, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"}) + "\n")
    (folder / "preprocessor_config.json").write_text(json.dumps(
        json.loads(processor.to_json_string()) | {"image_processor_type": "CLIPFeatureExtractor"}, indent=2) + "\n")
    pixels = processor(images(), return_tensors="pt")["pixel_values"]
    ids = tokenizer(list(CAPTIONS), padding="max_length", truncation=True, max_length=77, return_tensors="pt")["input_ids"]
    export(image_tower, (pixels,), folder / "onnx/vision_model.onnx", PIXELS, ["image_embeds"], with_half=True)
    export(Outputs(text_tower, "text_embeds"), (ids,), folder / "onnx/text_model.onnx", IDS, ["text_embeds"], with_half=True)
    with torch.no_grad():
        image_rows, text_rows = image_tower(pixels), text_tower(ids).text_embeds
    write_expected(folder, image_rows, text_rows, 100.0, 0.0)


def main() -> int:
    transformers.logging.set_verbosity_error()
    clip()
    siglip = siglip_tokenizer(folder_of("siglip"))
    siglip_like("siglip", siglip, "SiglipTokenizer", 3, 2)
    siglip_like("siglip2", gemma_tokenizer(), "GemmaTokenizer", 2, 3)
    mobile_clip()
    bert = folder_of("bert")
    (bert / "onnx").rmdir()
    save_tokenizer(bert_tokenizer(), bert)
    return 0


if __name__ == "__main__":
    sys.exit(main())
