"""Writes a model folder with an image tower of the size of ViT-B/32, random weights, in f32 and f16: speed does not depend
on what the weights are.

python3 benches/gpu/make_vit.py FOLDER          (needs numpy, onnx)
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH, LAYERS, HEADS, PATCH, SIZE, DIM = 768, 12, 12, 32, 224, 512


class Graph:
    def __init__(self, dtype):
        self.dtype, self.rng = dtype, np.random.default_rng(0)
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
        scale = self.constant(f"{name}.scale", np.ones(WIDTH, self.dtype))
        bias = self.constant(f"{name}.bias", np.zeros(WIDTH, self.dtype))
        return self.node("LayerNormalization", [x, scale, bias], name, axis=-1, epsilon=1e-5)

    def attention(self, x, name, n_tokens):
        head = WIDTH // HEADS
        parts = []
        for part, order in [("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])]:
            projected = self.linear(x, WIDTH, WIDTH, f"{name}.{part}")
            shape = self.constant(f"{name}.{part}.shape", np.array([0, n_tokens, HEADS, head], np.int64))
            split = self.node("Reshape", [projected, shape], f"{name}.{part}.split")
            parts.append(self.node("Transpose", [split], f"{name}.{part}.heads", perm=order))
        scores = self.node("MatMul", parts[:2], f"{name}.scores")
        factor = self.constant(f"{name}.factor", np.array(head**-0.5, self.dtype))
        scaled = self.node("Mul", [scores, factor], f"{name}.scaled")
        weights = self.node("Softmax", [scaled], f"{name}.weights", axis=-1)
        mixed = self.node("MatMul", [weights, parts[2]], f"{name}.mixed")
        mixed = self.node("Transpose", [mixed], f"{name}.tokens", perm=[0, 2, 1, 3])
        shape = self.constant(f"{name}.shape", np.array([0, n_tokens, WIDTH], np.int64))
        joined = self.node("Reshape", [mixed, shape], f"{name}.joined")
        return self.linear(joined, WIDTH, WIDTH, f"{name}.out")

    def mlp(self, x, name):
        wide = self.linear(x, WIDTH, 4 * WIDTH, f"{name}.up")
        factor = self.constant(f"{name}.factor", np.array(1.702, self.dtype))
        gate = self.node("Sigmoid", [self.node("Mul", [wide, factor], f"{name}.scaled")], f"{name}.gate")
        return self.linear(self.node("Mul", [wide, gate], f"{name}.gated"), 4 * WIDTH, WIDTH, f"{name}.down")


def vit(dtype, element):
    graph, n_patches = Graph(dtype), (SIZE // PATCH) ** 2
    kernel = graph.weight("patch.weight", WIDTH, 3, PATCH, PATCH)
    x = graph.node("Conv", ["pixel_values", kernel], "patches", kernel_shape=[PATCH] * 2, strides=[PATCH] * 2)
    shape = graph.constant("patch.shape", np.array([0, WIDTH, n_patches], np.int64))
    x = graph.node("Transpose", [graph.node("Reshape", [x, shape], "flat")], "tokens", perm=[0, 2, 1])
    x = graph.node("Add", [x, graph.weight("position", 1, n_patches, WIDTH)], "placed")
    for layer in range(LAYERS):
        name = f"layer{layer}"
        attended = graph.attention(graph.norm(x, f"{name}.norm1"), f"{name}.attention", n_patches)
        x = graph.node("Add", [x, attended], f"{name}.middle")
        x = graph.node("Add", [x, graph.mlp(graph.norm(x, f"{name}.norm2"), f"{name}.mlp")], f"{name}.end")
    pooled = graph.node("ReduceMean", [graph.norm(x, "norm")], "pooled", axes=[1], keepdims=0)
    graph.node("MatMul", [pooled, graph.weight("projection", WIDTH, DIM)], "image_embeds")
    tensor = lambda name, shape: helper.make_tensor_value_info(name, element, shape)
    inputs, outputs = [tensor("pixel_values", ["n", 3, SIZE, SIZE])], [tensor("image_embeds", ["n", DIM])]
    made = helper.make_graph(graph.nodes, "vit", inputs, outputs, graph.initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def main():
    folder = Path(sys.argv[1])
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    onnx.save(vit(np.float32, TensorProto.FLOAT), folder / "onnx/vision_model.onnx")
    onnx.save(vit(np.float16, TensorProto.FLOAT16), folder / "onnx/vision_model_fp16.onnx")
    processor = dict(
        do_resize=True, size=dict(shortest_edge=SIZE), resample=3, do_center_crop=True,
        crop_size=dict(height=SIZE, width=SIZE), do_rescale=True, rescale_factor=1 / 255, do_normalize=True,
        image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711],
    )
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "config.json").write_text(json.dumps(dict(model_type="clip_vision_model")))


main()
