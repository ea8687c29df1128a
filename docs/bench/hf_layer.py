#!/usr/bin/env python3
"""One Falcon-H1 decoder layer of Hugging Face's transformers on the CPU (its plain path, no CUDA kernels), fp32,
forward and forward + backward with all weight gradients, as one line of JSON.

Usage: hf_layer.py CONFIG.json [--sequence T] [--repeat N] [--warmup N] [--threads N]
docs/bench/layer.sh runs it and `saker bench layer` in turn.
"""
import argparse
import json
import os
import statistics
import time

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from transformers import FalconH1Config
from transformers.models.falcon_h1 import modeling_falcon_h1 as hf


def main():
    p = argparse.ArgumentParser()
    p.add_argument("config")
    p.add_argument("--sequence", type=int, default=1024)
    p.add_argument("--repeat", type=int, default=5)
    p.add_argument("--warmup", type=int, default=1)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    with open(a.config) as f:
        keys = json.load(f)
    keys.update(num_hidden_layers=1, vocab_size=256, pad_token_id=0, dtype="float32")
    c = FalconH1Config(**keys)
    # sdpa is the fastest attention on the CPU.
    c._attn_implementation = "sdpa"
    model = hf.FalconH1Model(c).to(torch.float32)
    layer = model.layers[0]
    T = a.sequence
    h = (0.5 * torch.randn(1, T, c.hidden_size)).requires_grad_(True)
    dout = 0.5 * torch.randn(1, T, c.hidden_size)
    pos = torch.arange(T)[None]
    rope = model.rotary_emb(h, position_ids=pos)

    def forward():
        out = layer(h, attention_mask=None, mamba_attention_mask=None, position_ids=pos, position_embeddings=rope)
        return out[0] if isinstance(out, tuple) else out

    def both():
        layer.zero_grad(set_to_none=False)
        h.grad = None
        forward().backward(dout)

    def measure(f):
        for _ in range(a.warmup):
            f()
        t = []
        for _ in range(a.repeat):
            begin = time.perf_counter()
            f()
            t.append(1e3 * (time.perf_counter() - begin))
        return {"median": statistics.median(t), "best": min(t)}

    with torch.no_grad():
        fwd = measure(forward)
    bwd = measure(both)
    print(json.dumps({"program": f"transformers {transformers.__version__}, torch {torch.__version__}",
                      "threads": torch.get_num_threads(), "sequence": T, "fwd_ms": fwd["median"],
                      "fwd_best_ms": fwd["best"], "fwd_bwd_ms": bwd["median"], "fwd_bwd_best_ms": bwd["best"]}))


main()
