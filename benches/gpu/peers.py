"""The bare loop over ONNX Runtime with CUDA, and torch's own ViT-B/32, on the same GPU: images a second.

python3 benches/gpu/peers.py FOLDER          (needs numpy, onnxruntime-gpu; torch and transformers for torch's figures)
"""

import sys
import time
from pathlib import Path

import numpy as np

BATCHES = [64, 256]


def rate(step, n_images):
    for _ in range(5):
        step()
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < 3.0:
        step()
        n += n_images
    return n / (time.perf_counter() - start)


def onnxruntime_rates(folder):
    import onnxruntime

    onnxruntime.preload_dlls()
    options = dict(use_tf32=0, cudnn_conv_algo_search="HEURISTIC")
    for name, dtype in [("vision_model", np.float32), ("vision_model_fp16", np.float16)]:
        path = str(folder / f"onnx/{name}.onnx")
        session = onnxruntime.InferenceSession(path, providers=[("CUDAExecutionProvider", options)])
        assert session.get_providers()[0] == "CUDAExecutionProvider", session.get_providers()
        for n in BATCHES:
            pixels = np.random.default_rng(0).normal(size=(n, 3, 224, 224)).astype(dtype)
            print(f"onnxruntime {name}, {n} rows from memory: {rate(lambda: session.run(None, {'pixel_values': pixels}), n):.0f}")
            binding = session.io_binding()
            binding.bind_ortvalue_input("pixel_values", onnxruntime.OrtValue.ortvalue_from_numpy(pixels, "cuda", 0))
            binding.bind_output("image_embeds", "cuda")
            print(f"onnxruntime {name}, {n} rows on the GPU: {rate(lambda: session.run_with_iobinding(binding), n):.0f}")


def torch_rates():
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, patch_size=32)
    for dtype in [torch.float32, torch.float16]:
        model = CLIPVisionModelWithProjection(config).eval().to("cuda", dtype)
        for n in BATCHES:
            pixels = torch.randn(n, 3, 224, 224).to(dtype).pin_memory()

            def step():
                with torch.inference_mode():
                    model(pixels.to("cuda", non_blocking=True)).image_embeds.cpu()

            print(f"torch {dtype}, {n} rows from memory: {rate(step, n):.0f}")


def main():
    for name, measure in [("onnxruntime", lambda: onnxruntime_rates(Path(sys.argv[1]))), ("torch", torch_rates)]:
        try:
            measure()
        except ImportError as error:
            print(f"left out: {name}: {error}")


main()
