#!/usr/bin/env python3
"""One run on N GPUs of a node (4 or 8; any N works, on CPUs too): parity of process grids, speed and
long context, as one table and as JSON. Python's standard library only.

    python3 tests/scale.py --ranks 8 --device cuda --out scale            # on a node with 8 GPUs
    python3 tests/scale.py --ranks 8 --device cpu --out scale             # the rehearsal, small models

--parts chooses among parity, speed and long. MPIRUN and SAKER name the launcher and the program (default: mpirun
--bind-to none, and build/saker); unless OMP_NUM_THREADS says otherwise, the ranks share the cores. Exit code 1 when
something failed or a loss is off; what does not run says so in the table. A part whose time is over (--limit, seconds
for all) is reported as left out.
"""
import argparse
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent.parent

DECK = """\
run: {{dir: run, seed: 7, device: {device}}}
model:
  {{pattern: "P-", vocab_size: 257, hidden_size: {d}, num_hidden_layers: 8, num_attention_heads: 8,
   num_key_value_heads: 2, head_dim: {hd}, intermediate_size: {ff}, mamba_d_ssm: {ds}, mamba_n_heads: 8,
   mamba_d_head: {P}, mamba_d_state: {N}, mamba_chunk_size: 32, mamba_rms_norm: true, pad_token_id: null}}
data: {{train: [{{path: text.h5}}], sequence: {T}, documents: isolate}}
train: {{steps: 20, global_batch: 16, micro_batch: 1, dtype: fp32}}
optimizer: {{lr: 1.0e-3, clip: 1.0, schedule: {{kind: constant, warmup: 4}}}}
checkpoint: {{every: 20, keep: 2}}
"""
SIZES = {
    "cuda": dict(d=256, hd=64, ff=512, ds=512, P=64, N=64, T=512),
    "cpu": dict(d=24, hd=8, ff=32, ds=64, P=8, N=8, T=128),
}
# Largest |loss / one rank's - 1| of any step.
LIMIT = {"fp32": 1e-5, "bf16": 1e-3}
# In bf16 a model that learns slowly (as in tests/devices.c): one that soon knows its few tokens by heart has a loss near
# 0, which has no digits to compare.
SLOW = {"fp32": {}, "bf16": dict(optimizer__lr=1e-4, model__initializer_range=0.06)}


def sets(**keys):
    return [a for k, v in keys.items() for a in ("--set", f"{k.replace('__', '.')}={v}")]


def grid(tp=1, cp=1, pp=1, **more):
    return sets(parallel__tp=tp, parallel__cp=cp, parallel__pp=pp, **more)


def grid_name(ranks, tp=1, cp=1, pp=1):
    axes = dict(tp=tp, cp=cp, pp=pp, dp=ranks // (tp * cp * pp))
    return " x ".join(f"{k}{v}" for k, v in axes.items() if v > 1) or "one rank"


class Run:
    def __init__(self, args):
        self.args, self.rows, self.started = args, [], time.monotonic()
        self.folder = pathlib.Path(args.out).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.saker = os.path.abspath(os.environ.get("SAKER", HERE / "build" / "saker"))
        self.cores = len(os.sched_getaffinity(0))
        more = " --oversubscribe" if args.ranks > self.cores else ""
        self.mpirun = shlex.split(os.environ.get("MPIRUN", "mpirun --bind-to none" + more))

    def late(self):
        return time.monotonic() - self.started > self.args.limit

    def add(self, part, what, ok, text, **figures):
        """ok: True, False, or None for what was left out."""
        self.rows.append(dict(part=part, what=what, ok=ok, text=text, **figures))
        mark = {True: "ok", False: "FAILED", None: "left out"}[ok]
        print(f"{time.monotonic() - self.started:6.0f} s  {part:<7} {what:<44} {mark:<8} {text}", flush=True)
        self.save()

    def save(self):
        """Whole at any time: whoever ends this program keeps what has been measured."""
        new = self.folder / "scale.json.new"
        new.write_text(json.dumps(
            dict(ranks=self.args.ranks, device=self.args.device, command=shlex.join(sys.argv),
                 seconds=round(time.monotonic() - self.started, 1), rows=self.rows), indent=1) + "\n")
        new.replace(self.folder / "scale.json")

    def launch(self, ranks, *words):
        """Runs the program; returns (exit code, the end of its output)."""
        command = [*self.mpirun, "-np", str(ranks), self.saker, *map(str, words)]
        threads = str(max(1, self.cores // ranks))
        try:
            r = subprocess.run(command, cwd=self.folder, env={"OMP_NUM_THREADS": threads, **os.environ},
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               timeout=self.args.timeout, text=True, errors="replace")
        except subprocess.TimeoutExpired as e:
            return 124, f"no end after {e.timeout:.0f} s"
        with open(self.folder / "log", "a") as log:
            log.write(f"$ {shlex.join(command)}\n{r.stdout}\n")
        return r.returncode, r.stdout

    def failed(self, part, what, code, output):
        lines = [x for x in output.splitlines() if x.strip("- ")]
        self.add(part, what, False, f"exit code {code}: {lines[-1].strip() if lines else 'no output'}")


# ---- parity ----


def losses(folder):
    """Of every step; the last one where a step appears again."""
    found = {}
    for line in open(folder / "metrics.jsonl"):
        o = json.loads(line)
        if "event" not in o and "step" in o:
            found[o["step"]] = o["loss"]
    return [found[k] for k in sorted(found)]


def compare(run, what, name, want, steps, dtype):
    got = losses(run.folder / name)
    ok = len(got) == len(want) == steps
    worst = max((abs(a / b - 1) for a, b in zip(got, want)), default=0)
    run.add("parity", what, ok and worst <= LIMIT[dtype],
            f"{len(got)} steps, loss off by {worst:.1e} of {LIMIT[dtype]:.0e}", steps=len(got), error=worst,
            limit=LIMIT[dtype], dtype=dtype)


def most_ranks(n):
    return max(k for k in (1, 2, 4, 8) if k <= n)


def mixed_axes(n):
    """What the checkpoint is saved on that other grids go on from."""
    return dict(tp=2, pp=2) if n >= 4 else dict(tp=2)


def parity_grids(n):
    """(ranks, axes): those of at most 8 GPUs that n ranks can run, single axes and mixed ones."""
    if n < 4:
        return [(2, axes) for axes in (dict(tp=2), dict(cp=2), dict(pp=2), {})] if n > 1 else []
    grids = [(4, dict(tp=4)), (4, dict(cp=4)), (4, dict(pp=4))]
    if n < 8:
        return [*grids, (4, mixed_axes(n)), (4, {})]
    return [*grids, (8, dict(tp=8)), (8, mixed_axes(n)), (8, dict(tp=2, cp=2, pp=2)), (8, {})]


def folder_name(dtype, ranks, axes):
    return f"{dtype}-{grid_name(ranks, **axes).replace(' x ', '-')}"


def train(run, dtype, name, ranks, axes, steps):
    what = f"{grid_name(ranks, **axes)}, {dtype}" + (f", to step {steps}" if steps != 20 else "")
    if run.late():
        run.add("parity", what, None, "no time left")
        return None
    if steps == 20:  # else it goes on where the run of an earlier call ended
        shutil.rmtree(run.folder / name, ignore_errors=True)
    code, output = run.launch(ranks, "train", "-i", "deck.yaml", *grid(**axes), *sets(
        run__dir=name, train__dtype=dtype, train__steps=steps, **SLOW[dtype]))
    if code != 0:
        run.failed("parity", what, code, output)
        return None
    return what


def parity(run):
    size = SIZES[run.args.device]
    text = run.folder / "text.txt"
    text.write_text((HERE / "LICENSE").read_text() * 8)
    code, output = run.launch(1, "data", "build", "--tokenizer", "bytes", "-o", "text.h5", text)
    if code != 0:
        return run.failed("parity", "data build", code, output)
    (run.folder / "deck.yaml").write_text(DECK.format(device=run.args.device, **size))
    for dtype in ("fp32",) if run.args.device == "cpu" else ("fp32", "bf16"):
        if not train(run, dtype, f"one-{dtype}", 1, {}, 20):
            continue
        want = losses(run.folder / f"one-{dtype}")
        run.add("parity", f"one rank, {dtype}", want[-1] < want[0], f"loss {want[0]:.4f} to {want[-1]:.4f}")
        for ranks, axes in parity_grids(run.args.ranks):
            name = folder_name(dtype, ranks, axes)
            what = train(run, dtype, name, ranks, axes, 20)
            if what:
                compare(run, what, name, want, 20, dtype)
    regrid(run)


def regrid(run):
    """Saved on one grid, gone on with on two others, against one rank that goes on by itself."""
    most = most_ranks(run.args.ranks)
    source = folder_name("fp32", most, mixed_axes(most))
    if most == 1 or not (run.folder / source / "checkpoints").exists() or not train(run, "fp32", "one-fp32", 1, {}, 26):
        return
    want = losses(run.folder / "one-fp32")
    for name, axes in ((f"regrid-tp{most}", dict(tp=most)), (f"regrid-dp{most}", {})):
        shutil.rmtree(run.folder / name, ignore_errors=True)
        shutil.copytree(run.folder / source, run.folder / name)
        what = train(run, "fp32", name, most, axes, 26)
        if what:
            compare(run, f"saved at {source[5:]}, gone on at {what}", name, want, 26, "fp32")


# ---- speed ----


def bench(run, part, what, ranks, axes, keys, base=None):
    """One `bench step`; returns tokens/s per rank, or None. base: tokens/s per rank to compare with."""
    if run.late():
        return run.add(part, what, None, "no time left")
    out = run.folder / "step.json"
    out.unlink(missing_ok=True)
    code, output = run.launch(ranks, "bench", "step", "-i", HERE / "input" / "bench.yaml", "--brief", "--repeat", 3,
                              "--warmup", 2, "--json", out, *grid(**axes), *sets(run__device=run.args.device, **keys))
    if code != 0 or not out.exists():
        return run.failed(part, what, code, output)
    o = json.loads(out.read_text())[0]
    each = o["tokens_per_s"] / ranks
    text = f"{o['tokens_per_s']:12,.0f} tokens/s, {each:10,.0f} a rank, {o['step_ms']:8.1f} ms, {o['peak_gib']:.1f} GiB"
    if o.get("mfu"):
        text += f", MFU {100 * o['mfu']:.1f} %"
    if base:
        text += f", efficiency {100 * each / base:.0f} %"
    o.update(tokens_per_s_rank=each, **({"efficiency": each / base} if base else {}))
    run.add(part, what, True, text, result=o)
    return each


def model_keys(run, name, layers=None, **more):
    keys = {"model__hf_config": HERE / "input" / f"falcon-h1-{name}.json", **more}
    if run.args.device == "cpu":  # the same shapes in small
        keys.update(model__hidden_size=64, model__intermediate_size=64, model__vocab_size=512,
                    model__num_attention_heads=8, model__num_key_value_heads=2, model__head_dim=8,
                    model__mamba_d_ssm=128, model__mamba_n_heads=8, model__mamba_d_head=16, model__mamba_d_state=16,
                    model__num_hidden_layers=8, data__sequence=128)
    elif layers:
        keys.update(model__num_hidden_layers=layers)
    return keys


def speed(run):
    n, T = run.args.ranks, 4096
    base = None
    for k in (1, 2, 4, 8):
        if k <= n:
            keys = model_keys(run, "0.5b", data__sequence=T, train__micro_batch=8, train__global_batch=8 * k)
            each = bench(run, "speed", f"0.5B dp{k}", k, {}, keys, base)
            base = base or each
    base = None
    for tp in (2, 4, 8):
        if tp <= n:
            dp = n // tp
            keys = model_keys(run, "7b", run.args.layers, data__sequence=T, train__micro_batch=1,
                              train__global_batch=4 * dp, train__recompute="selective")
            each = bench(run, "speed", f"7B {grid_name(n, tp=tp)}", n, dict(tp=tp), keys, base)
            base = base or each
    for pp in (2, 4):
        for schedule in ("1f1b", "interleaved", "zb-h1"):
            if pp <= n:
                keys = model_keys(run, "7b", run.args.layers, data__sequence=T, train__micro_batch=1,
                                  train__global_batch=8 * (n // pp), train__recompute="selective",
                                  parallel__schedule=schedule,
                                  parallel__virtual_stages=2 if schedule == "interleaved" else 1)
                bench(run, "speed", f"7B {grid_name(n, pp=pp)}, {schedule}", n, dict(pp=pp), keys, base)


# ---- long context ----


def cp_bytes(o, model, cp, T):
    """What a rank sends over cp in a step and layer: the formulas of docs/parallel.md, which
    tests/comm_count.8 counts."""
    e = 2 if o["dtype"] == "bf16" else 4
    nh, P, N, G = (model[k] for k in ("mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_n_groups"))
    cd = model["mamba_d_ssm"] + 2 * G * N
    states = 2 * (cp - 1) * 2 * (4 * nh * (P * N + 1) + (model["mamba_d_conv"] - 1) * cd * e)
    keys = 3 * (cp - 1) * (T // cp) * 2 * model["num_key_value_heads"] * model["head_dim"] * e
    return states, keys


def long_context(run):
    model = json.loads((HERE / "input" / "falcon-h1-7b.json").read_text())
    for T in (131072, 262144):
        for cp in (4, 8) if run.args.ranks >= 4 else (run.args.ranks,):
            if cp > run.args.ranks:
                continue
            keys = model_keys(run, "7b", 4, train__micro_batch=1, train__global_batch=1, train__recompute="full")
            keys["data__sequence"] = T if run.args.device == "cuda" else T // 256
            before = len(run.rows)
            bench(run, "long", f"7B, {keys['model__num_hidden_layers']} layers, {keys['data__sequence']} tokens, cp{cp}",
                  cp, dict(cp=cp), keys)
            row = run.rows[before]
            if row["ok"]:
                shapes = {**model, **{k[7:]: v for k, v in keys.items() if k.startswith("model__")}}
                states, kv = cp_bytes(row["result"], shapes, cp, keys["data__sequence"])
                row.update(bytes_states=states, bytes_kv=kv)
                print(f"{'':60} by formula a rank sends {states / 1e6:.2f} MB of states and {kv / 1e6:.2f} MB of keys "
                      "and values per layer and step")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--ranks", type=int, required=True, help="GPUs (or CPU ranks) to use")
    p.add_argument("--device", choices=("cuda", "cpu"), required=True)
    p.add_argument("--out", required=True, help="folder for run folders, log and scale.json")
    p.add_argument("--parts", default="parity,speed,long")
    p.add_argument("--layers", type=int, help="of the 7B shape in `speed` (default: all)")
    p.add_argument("--limit", type=float, default=450, help="seconds after which nothing more starts")
    p.add_argument("--timeout", type=float, default=120, help="seconds for one launch")
    run = Run(p.parse_args())
    parts = {"parity": parity, "speed": speed, "long": long_context}
    for part in run.args.parts.split(","):
        if part not in parts:
            p.error(f"--parts {part}: choose among {', '.join(parts)}")
        parts[part](run)
    run.save()
    bad = sum(r["ok"] is False for r in run.rows)
    left = sum(r["ok"] is None for r in run.rows)
    print(f"{sum(r['ok'] is True for r in run.rows)} passed, {bad} failed, {left} left out; "
          f"{run.folder / 'scale.json'}")
    return 1 if bad or left or not run.rows else 0


if __name__ == "__main__":
    sys.exit(main())
