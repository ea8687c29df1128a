#!/usr/bin/env python3
"""`saker data import` against files written by others: Megatron's own writer (megatron-core from PyPI; the modules that it
imports beside numpy are stood in for, as they have no part in the format), nanoGPT's and llm.c's layouts from their data
scripts. Prints TAP. Needs numpy, h5py, and megatron-core (pip install --no-deps).

  import_compare.py --saker build/saker [--mpirun mpirun]
"""
import argparse
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
from unittest.mock import MagicMock

import h5py
import numpy as np


def megatron():
    """megatron.core.datasets.indexed_dataset alone."""
    path = os.path.join(os.path.dirname(importlib.util.find_spec("megatron.core").submodule_search_locations[0]),
                        "core/datasets/indexed_dataset.py")
    torch = MagicMock()
    torch.utils.data.Dataset = object
    storage, client = MagicMock(), MagicMock()
    storage.is_object_storage_path.return_value = False
    client.MultiStorageClientFeature.is_enabled.return_value = False
    for name, module in {"torch": torch, "megatron.core.datasets.object_storage_utils": storage,
                         "megatron.core.msc_utils": client, "megatron.core.utils": MagicMock()}.items():
        sys.modules[name] = module
    spec = importlib.util.spec_from_file_location("indexed_dataset", path)
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    return m


class Tests:
    def __init__(self, a):
        self.a, self.count, self.failed = a, 0, 0

    def ok(self, good, what):
        self.count += 1
        self.failed += not good
        print(f"{'ok' if good else 'not ok'} {self.count} - {what}", flush=True)

    def imported(self, form, paths, *more, ranks=1):
        env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1")
        subprocess.run(self.a.mpirun.split() + ["-np", str(ranks), self.a.saker, "data", "import", "--from", form, "-o", "out.h5", *more,
                                                *paths], env=env, check=True, stdout=subprocess.DEVNULL)
        with h5py.File("out.h5") as f:
            return f["data"][:], list(f["documents"][:]), dict(f.attrs)

    def check(self, form, paths, docs, what, *more, vocab=None):
        want = np.concatenate(docs)
        starts = [int(x) for x in np.cumsum([0] + [len(d) for d in docs[:-1]])]
        for ranks in (1, 3):
            data, got, attrs = self.imported(form, paths, *more, ranks=ranks)
            good = np.array_equal(data, want) and got == starts and (vocab is None or attrs["vocab_size"] == vocab)
            self.ok(good, f"{what}, {ranks} rank(s): {len(data)} tokens, {len(got)} documents")


def documents(r, n, vocab, longest):
    return [np.array([r.randrange(vocab) for _ in range(r.randint(1, longest))]) for _ in range(n)]


def from_megatron(t, r):
    m = megatron()
    for vocab, n, longest in ((300, 700, 60), (65499, 400, 9000), (131072, 500, 4000)):
        dtype = m.DType.optimal_dtype(vocab)
        docs = documents(r, n, vocab, longest)
        docs[3][:] = vocab - 1
        b = m.IndexedDatasetBuilder("m.bin", dtype=dtype)
        for d in docs:  # of one to four sequences
            cuts = sorted(r.randrange(len(d) + 1) for _ in range(r.randint(0, 3)))
            lengths = [y - x for x, y in zip([0] + cuts, cuts + [len(d)])]
            b.add_document(d, lengths)
            if r.random() < .1:
                b.add_document(np.array([], dtype=dtype), [0])  # left out
        b.finalize("m.idx")
        t.check("megatron", ["m"], docs, f"Megatron's writer, {np.dtype(dtype).name}, ids below {vocab}", vocab=vocab)
    return docs


def from_nanogpt(t, r):
    eot = 50256
    docs = [np.append(d, eot) for d in documents(r, 300, 50256, 8000)]
    np.concatenate(docs).astype(np.uint16).tofile("train.bin")
    t.check("nanogpt", ["train.bin"], docs, "nanoGPT's train.bin", vocab=50257)
    chars = documents(r, 1, 65, 100)
    chars[0].astype(np.uint16).tofile("chars.bin")
    t.check("nanogpt", ["chars.bin"], chars, "nanoGPT's characters", "--vocab", "65", vocab=65)


def write_llmc(path, magic, version, tokens, dtype):
    head = np.zeros(256, dtype=np.int32)
    head[:3] = magic, version, len(tokens)
    with open(path, "wb") as f:
        f.write(head.tobytes() + tokens.astype(dtype).tobytes())


def from_llmc(t, r):
    for magic, version, eot, vocab, dtype in ((20240520, 1, 50256, 50257, np.uint16), (20240801, 7, 128000, 128256, np.uint32)):
        texts = documents(r, 300, eot, 6000)
        stream = np.concatenate([np.append([eot], d) for d in texts])
        cuts = [0, 400_000, 777_777, len(stream)]
        for i in range(3):  # shards cut through documents
            write_llmc(f"shard_{magic}_{i + 1:06d}.bin", magic, version, stream[cuts[i]:cuts[i + 1]], dtype)
        # Saker's documents end with the end-of-text: it goes to the one before, the first one keeps its own.
        docs = [np.append(d, [eot]) for d in texts[:-1]] + [texts[-1]]
        docs[0] = np.append([eot], docs[0])
        t.check("llmc", [f"shard_{magic}_*.bin"], docs, f"llm.c's shards, magic {magic}", vocab=vocab)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--saker", required=True)
    p.add_argument("--mpirun", default="mpirun")
    a = p.parse_args()
    a.saker = os.path.abspath(a.saker)
    t, r = Tests(a), random.Random(5)
    with tempfile.TemporaryDirectory() as d:
        os.chdir(d)
        from_megatron(t, r)
        from_nanogpt(t, r)
        from_llmc(t, r)
        os.chdir("/")
    print(f"1..{t.count}")
    return 1 if t.failed else 0


if __name__ == "__main__":
    sys.exit(main())
