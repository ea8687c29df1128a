#!/usr/bin/env python3
"""Saker's training against Hugging Face's: the same initial weights, tokens, AdamW and learning rate.

    saker train -i DECK --set run.dir=R0 --set train.steps=0        the initial weights
    saker train -i DECK --set run.dir=R --set train.steps=100       the run to be compared
    python3 tests/hf_train.py R0/checkpoints/step-00000000 R        FalconH1ForCausalLM from those weights

The deck: one training set, data.documents: concatenate (Hugging Face's model knows no documents), no
optimizer.groups. Reads /params/<Hugging Face's name> of model.h5 by h5py, the model's config from manifest.json,
the deck's values from R/deck.yaml, losses and learning rates from R/metrics.jsonl; computes in fp32 on GPU 0
where there is one. Prints both losses at every tenth step and exits with 1 where they differ by more than 1 %.
Needs torch, transformers (seen with 5.17), h5py, PyYAML. --json FILE writes the table.
"""
import argparse
import json
import math
import os
import tempfile
import time

import h5py
import numpy as np
import torch
import yaml
from transformers import AutoConfig, FalconH1ForCausalLM

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x):
    """src/base.c: the finalizer of splitmix64."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def rand(key, counter):
    return mix((mix((key + GOLDEN) & MASK) + counter * GOLDEN) & MASK)


def hash_str(seed, text):
    h = mix((seed + GOLDEN) & MASK)
    for c in text.encode():
        h = (mix(h ^ c) + GOLDEN) & MASK
    return mix(h)


def permute(key, n, i):
    """src/data.c: sk_permute."""
    half = 1
    while half < 31 and 1 << (2 * half) < n:
        half += 1
    mask, x = (1 << half) - 1, i
    while True:
        left, right = x >> half, x & mask
        for k in range(6):
            left, right = right, (left ^ rand((key + k) & MASK, right)) & mask
        x = left << half | right
        if x < n:
            return x


def windows(deck, tokens):
    """Sample number -> its tokens and the one after them."""
    length = deck["data"]["sequence"]
    n = (len(tokens) - 1) // length
    seed = rand(hash_str(deck["run"]["seed"], "data order"), 0)

    def sample(i):
        first = permute(rand(seed, i // n), n, i % n) * length
        return tokens[first : first + length + 1]

    return sample


def load_model(checkpoint, device):
    with open(f"{checkpoint}/manifest.json") as f:
        manifest = json.load(f)
    config = manifest["hf_config"]
    config = json.loads(config) if isinstance(config, str) else config
    if None in config.get("time_step_limit", ()):  # no upper limit, which is also the default
        del config["time_step_limit"]
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "config.json"), "w") as f:
            json.dump(config, f)
        model = FalconH1ForCausalLM(AutoConfig.from_pretrained(folder)).to(torch.float32)
    state = model.state_dict()
    with h5py.File(f"{checkpoint}/model.h5") as f:
        names = set(f["params"])
        missing = set(state) - names - ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
        assert not missing and not names - set(state), f"names differ: {missing ^ (names - set(state))}"
        for name in names:
            value = torch.from_numpy(f["params"][name][...])
            assert state[name].shape == value.shape, f"{name}: {state[name].shape} and {value.shape}"
            state[name].copy_(value)
    model.load_state_dict(state)
    return model.to(device).train()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("run")
    parser.add_argument("--json")
    args = parser.parse_args()
    with open(f"{args.run}/deck.yaml") as f:
        deck = yaml.safe_load(f)
    ours = {}
    with open(f"{args.run}/metrics.jsonl") as f:
        for line in f:
            m = json.loads(line)
            if "event" not in m:
                ours[m["step"]] = m
    opt, batch = deck["optimizer"], deck["train"]["global_batch"]

    def number(key):  # PyYAML takes 1e-08 for a text
        return float(opt[key])

    assert len(deck["data"]["train"]) == 1 and deck["data"]["documents"] == "concatenate" and not opt["groups"]
    with h5py.File(deck["data"]["train"][0]["path"]) as f:
        sample = windows(deck, f["data"][...].astype(np.int64))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = load_model(args.checkpoint, device)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": number("weight_decay")}, {"params": others, "weight_decay": 0.0}],
        lr=number("lr"), betas=tuple(opt["betas"]), eps=number("eps"))
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {batch} x {deck['data']['sequence']} tokens, {device}")
    table, worst, start = [], 0.0, time.time()
    for step in range(1, max(ours) + 1):
        tokens = torch.from_numpy(np.stack([sample((step - 1) * batch + k) for k in range(batch)])).to(device)
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        adamw.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), number("clip") or math.inf)
        for group in adamw.param_groups:
            group["lr"] = ours[step]["lr"]
        adamw.step()
        if step == 1 or step % 10 == 0:
            a, b = ours[step]["loss"], loss.item()
            worst = max(worst, abs(a / b - 1)) if math.isfinite(a) and math.isfinite(b) else math.inf
            table.append({"step": step, "saker": a, "hf": b, "saker_norm": ours[step]["grad_norm"], "hf_norm": norm.item()})
            print(f"step {step:4d}  saker {a:.6f}  hf {b:.6f}  {100 * (a / b - 1):+.4f} %  "
                  f"norms {ours[step]['grad_norm']:.4f} {norm.item():.4f}  {time.time() - start:.0f} s", flush=True)
    print(f"{'ok' if worst <= 0.01 else 'not ok'}: within {100 * worst:.4f} %")
    if args.json:
        with open(args.json, "w") as f:
            json.dump({"worst": worst, "steps": table}, f, indent=1)
    return 0 if worst <= 0.01 else 1


if __name__ == "__main__":
    raise SystemExit(main())
