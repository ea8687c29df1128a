#!/usr/bin/env python3
"""How far Hugging Face's own bf16 is from the float64 references: one line per file, for tests/golden.c.

    python3 tests/ref/hf_bf16.py tests/ref > tests/ref/hf_bf16.txt

Columns: file, logits (max|a-b| / max|b|), gradients (all of them as one vector, |a-b| / |b| in the 2-norm).
Weights and arithmetic are bf16, as in torch's bf16 training without autocast. Needs torch, transformers and h5py.
"""
import json
import pathlib
import sys

import h5py
import torch
import transformers


def leaves(group):
    found = {}
    group.visititems(lambda name, x: found.update({name: torch.tensor(x[()])}) if isinstance(x, h5py.Dataset) else None)
    return found


def errors(path):
    with h5py.File(path) as f:
        if "attention_mask" in f:
            return None
        config = json.loads(f.attrs["config_json"])
        limit = config.get("time_step_limit")
        if limit and limit[1] is None:
            config["time_step_limit"] = (limit[0], float("inf"))
        model = transformers.FalconH1ForCausalLM(transformers.FalconH1Config(**config))
        model.load_state_dict(leaves(f["params"]), strict=False)
        ids, labels = torch.tensor(f["input_ids"][()]).long(), torch.tensor(f["labels"][()]).long()
        logits64, grads64 = torch.tensor(f["logits64"][()]), leaves(f["grads64"])
    model = model.to(torch.bfloat16)
    logits = model(input_ids=ids, use_cache=False).logits.float()
    wanted = labels[:, 1:].reshape(-1)
    torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), wanted).backward()
    grads = {name: p.grad.double() for name, p in model.named_parameters()}
    off = sum(((grads[k] - g) ** 2).sum() for k, g in grads64.items()) / sum((g**2).sum() for g in grads64.values())
    return float((logits - logits64).abs().max() / logits64.abs().max()), float(off.sqrt())


print(f"# by hf_bf16.py: transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, on a CPU")
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.h5")):
    measured = errors(path)
    if measured:
        print(f"{path.name} {measured[0]:.3e} {measured[1]:.3e}", flush=True)
