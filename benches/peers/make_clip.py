"""Writes a model folder with towers of the size of CLIP ViT-B/32, random weights, in f32 and f16: speed does not depend
on what the weights are. The tokenizer is the small one of the golden files.

python3 benches/peers/make_clip.py FOLDER          (needs numpy, onnx)
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LAYERS, HEAD, DIM = 12, 64, 512
PATCH, SIZE, IMAGE_WIDTH = 32, 224, 768
WORDS, LENGTH, TEXT_WIDTH = 49408, 77, 512


class Graph:
    def __init__(self, dtype, width):
        self.dtype, self.width, self.rng = dtype, width, np.random.default_rng(0)
        self.nodes, self.initializers = [], []

    def constant(self, name, values):
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def weight(self, name, *shape):
        return self.constant(name, (self.rng.normal(size=shape) * 0.02).astype(self.dtype))

    def node(self, operator, inputs, output, **attributes):
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def linear(self, x, n_in, n_out, name):
        product = self.node("MatMul", [x, self.weight(f"{name}.weight", n_in, n_out)], f"{name}.product")
        return self.node("Add", [product, self.weight(f"{name}.bias", n_out)], name)

    def norm(self, x, name):
        scale = self.constant(f"{name}.scale", np.ones(self.width, self.dtype))
        bias = self.constant(f"{name}.bias", np.zeros(self.width, self.dtype))
        return self.node("LayerNormalization", [x, scale, bias], name, axis=-1, epsilon=1e-5)

    def attention(self, x, name, mask=None):
        n_heads = self.width // HEAD
        parts = []
        for part, order in [("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])]:
            projected = self.linear(x, self.width, self.width, f"{name}.{part}")
            shape = self.constant(f"{name}.{part}.shape", np.array([0, 0, n_heads, HEAD], np.int64))
            split = self.node("Reshape", [projected, shape], f"{name}.{part}.split")
            parts.append(self.node("Transpose", [split], f"{name}.{part}.heads", perm=order))
        scores = self.node("MatMul", parts[:2], f"{name}.scores")
        factor = self.constant(f"{name}.factor", np.array(HEAD**-0.5, self.dtype))
        scaled = self.node("Mul", [scores, factor], f"{name}.scaled")
        if mask:
            scaled = self.node("Add", [scaled, mask], f"{name}.masked")
        weights = self.node("Softmax", [scaled], f"{name}.weights", axis=-1)
        mixed = self.node("MatMul", [weights, parts[2]], f"{name}.mixed")
        mixed = self.node("Transpose", [mixed], f"{name}.tokens", perm=[0, 2, 1, 3])
        shape = self.constant(f"{name}.shape", np.array([0, 0, self.width], np.int64))
        joined = self.node("Reshape", [mixed, shape], f"{name}.joined")
        return self.linear(joined, self.width, self.width, f"{name}.out")

    def mlp(self, x, name):
        wide = self.linear(x, self.width, 4 * self.width, f"{name}.up")
        factor = self.constant(f"{name}.factor", np.array(1.702, self.dtype))
        gate = self.node("Sigmoid", [self.node("Mul", [wide, factor], f"{name}.scaled")], f"{name}.gate")
        return self.linear(self.node("Mul", [wide, gate], f"{name}.gated"), 4 * self.width, self.width, f"{name}.down")

    def layers(self, x, mask=None):
        for layer in range(LAYERS):
            name = f"layer{layer}"
            attended = self.attention(self.norm(x, f"{name}.norm1"), f"{name}.attention", mask)
            x = self.node("Add", [x, attended], f"{name}.middle")
            x = self.node("Add", [x, self.mlp(self.norm(x, f"{name}.norm2"), f"{name}.mlp")], f"{name}.end")
        return self.norm(x, "norm")

    def model(self, pooled, input_value, output, element):
        self.node("MatMul", [pooled, self.weight("projection", self.width, DIM)], output)
        outputs = [helper.make_tensor_value_info(output, element, ["n", DIM])]
        made = helper.make_graph(self.nodes, "tower", [input_value], outputs, self.initializers)
        return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def image_tower(dtype, element):
    graph, n_patches = Graph(dtype, IMAGE_WIDTH), (SIZE // PATCH) ** 2
    kernel = graph.weight("patch.weight", IMAGE_WIDTH, 3, PATCH, PATCH)
    x = graph.node("Conv", ["pixel_values", kernel], "patches", kernel_shape=[PATCH] * 2, strides=[PATCH] * 2)
    shape = graph.constant("patch.shape", np.array([0, IMAGE_WIDTH, n_patches], np.int64))
    x = graph.node("Transpose", [graph.node("Reshape", [x, shape], "flat")], "tokens", perm=[0, 2, 1])
    x = graph.node("Add", [x, graph.weight("position", 1, n_patches, IMAGE_WIDTH)], "placed")
    pooled = graph.node("ReduceMean", [graph.layers(x)], "pooled", axes=[1], keepdims=0)
    pixels = helper.make_tensor_value_info("pixel_values", element, ["n", 3, SIZE, SIZE])
    return graph.model(pooled, pixels, "image_embeds", element)


def text_tower(dtype, element):
    """Causal attention; the vector of the end token, whose id is the largest, is the caption's."""
    graph = Graph(dtype, TEXT_WIDTH)
    shape = graph.node("Shape", ["input_ids"], "shape")
    length = graph.node("Slice", [shape, *(graph.constant(f"length.{i}", np.array([i])) for i in (1, 2))], "length")
    zeros, axes = graph.constant("zeros", np.zeros(2, np.int64)), graph.constant("axes", np.arange(2))
    causal = graph.constant("causal", np.triu(np.full((LENGTH, LENGTH), -1e4, dtype), 1))
    lengths = graph.node("Concat", [length, length], "lengths", axis=0)
    mask = graph.node("Slice", [causal, zeros, lengths, axes], "mask")
    first = graph.constant("first", np.zeros(1, np.int64))
    position = graph.node("Slice", [graph.weight("positions", LENGTH, TEXT_WIDTH), first, length, first], "position")
    words = graph.node("Gather", [graph.weight("words", WORDS, TEXT_WIDTH), "input_ids"], "vectors")
    x = graph.layers(graph.node("Add", [words, position], "placed"), mask)
    end = graph.node("ArgMax", ["input_ids"], "end", axis=1, keepdims=1)
    pooled = graph.node("GatherND", [x, end], "pooled", batch_dims=1)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "length"])
    return graph.model(pooled, ids, "text_embeds", element)


def main():
    folder = Path(sys.argv[1])
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    for name, tower in [("vision_model", image_tower), ("text_model", text_tower)]:
        onnx.save(tower(np.float32, TensorProto.FLOAT), folder / f"onnx/{name}.onnx")
        onnx.save(tower(np.float16, TensorProto.FLOAT16), folder / f"onnx/{name}_fp16.onnx")
    processor = dict(
        do_resize=True, size=dict(shortest_edge=SIZE), resample=3, do_center_crop=True,
        crop_size=dict(height=SIZE, width=SIZE), do_rescale=True, rescale_factor=1 / 255, do_normalize=True,
        image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711],
    )
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    config = dict(model_type="clip", text_config=dict(max_position_embeddings=LENGTH))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.toml").write_text("logit_scale = 100.0\n")
    golden = Path(__file__).parents[2] / "tests/golden/models/clip"
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]:
        shutil.copy(golden / name, folder / name)


main()
