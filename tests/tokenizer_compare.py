#!/usr/bin/env python3
"""Compares `saker data build --tokenizer` with Hugging Face's `tokenizers` (PyPI): the ids on mixed text, on every
corner of added tokens and on every code point, and the speed on the same cores. Prints TAP; `make check-tokenizer`
runs it in a virtual environment with tokenizers, h5py and numpy.

  tokenizer_compare.py --saker build/saker [--mpirun mpirun] [--work DIR] [--json FILE]
  tokenizer_compare.py --fixture DIR      (re)makes the small files of tests/tokenizer.c
"""
import argparse
import glob
import gzip
import json
import os
import platform
import random
import resource
import subprocess
import sys
import time
import unicodedata

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
import h5py
import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN = LLAMA3.replace("{1,3}", "")
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
DEEPSEEK = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"]
EOS = "<|endoftext|>"


def byte_level(**k):
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, "use_regex": False, **k})


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def styles():
    """name: (normalizer, pre-tokenizer, ignore_merges)"""
    seq = pre_tokenizers.Sequence
    return {
        "gpt2": (None, byte_level(use_regex=True), False),
        "llama3": (None, seq([split(LLAMA3), byte_level()]), True),
        "qwen2": (normalizers.NFC(), seq([split(QWEN), byte_level()]), False),
        "o200k": (None, seq([split(O200K), byte_level()]), True),
        "deepseek3": (None, seq([split(p) for p in DEEPSEEK] + [byte_level()]), False),
        "falcon": (None, seq([pre_tokenizers.Punctuation("contiguous"), byte_level(use_regex=True),
                              pre_tokenizers.Digits(individual_digits=False), split("[0-9][0-9][0-9]")]), False),
        "prefix": (normalizers.NFKC(), byte_level(use_regex=True, add_prefix_space=True), False),
        "behaviors": (normalizers.Sequence([normalizers.NFD(), normalizers.NFC()]), seq([
            split(r"[aeiou]", "merged_with_previous"), split(r"[,;\s]", "merged_with_next"), split(r"[0-9]+", "removed"),
            split(r"\p{Lu}", "contiguous"), split(r"[^xyz]+", "isolated", True),
            pre_tokenizers.Split("the", "isolated"), pre_tokenizers.Digits(True), byte_level()]), False),
    }


def make(style, files, vocab):
    norm, pre, ignore = styles()[style]
    t = Tokenizer(models.BPE(ignore_merges=ignore))
    if norm:
        t.normalizer = norm
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    t.train(files, trainers.BpeTrainer(vocab_size=vocab, special_tokens=[EOS], show_progress=False,
                                       initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return t


# ---- text ----

def fetch(work):
    """Debian packages, unpacked below work; nothing is installed."""
    for package in ["anarchism", "manpages-zh", "dict-freedict-eng-ara", "dict-freedict-ara-eng", "python3.11-doc"]:
        if os.path.isdir(f"{work}/pkg/{package}"):
            continue
        subprocess.run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package], cwd=work, check=True,
                       stdout=subprocess.DEVNULL)
        deb = glob.glob(f"{work}/{package}_*.deb")[0]
        os.makedirs(f"{work}/pkg", exist_ok=True)
        subprocess.run(["dpkg-deb", "-x", deb, f"{work}/pkg/{package}"], check=True)
        os.remove(deb)


def take(paths, limit):
    out = bytearray()
    for p in sorted(paths):
        if not os.path.isfile(p) or os.path.islink(p):
            continue
        out += gzip.open(p).read() if p.endswith((".gz", ".dz")) else open(p, "rb").read()
        if len(out) >= limit:
            break
    return bytes(out[:limit])


def is_new(c):
    """Newer than the tables of the normalization forms in `tokenizers` (Unicode 13, some of 12)."""
    return normalizers.NFKC().normalize_str(chr(c)) != unicodedata.normalize("NFKC", chr(c))


def odd_text(n, seed):
    """Emoji with modifiers and joiners, all kinds of space, marks, digits and letters of many scripts; of characters that
    all libraries know, as newer ones are letters to one and unassigned to the other."""
    r = random.Random(seed)
    known = lambda c: "\ufffd" if unicodedata.category(chr(c)) == "Cn" or is_new(c) else chr(c)
    spaces = [" ", "  ", "\t", "\n", "\r\n", "\n\n", "   ", "\u00a0", "\u3000", "\u2028", "\u180e", "\u200b", "\u0085", "\x0b",
              "\x0c", "\x1c", " \n ", "\ufeff"]
    words = ["I'm", "they'LL", "don't", "x", "Été", "e\u0301te\u0301", "straße", "ſ", "'ſ", "K", "ﬁ", "12", "1234567", "٣٤٥", "½", "²³",
             "Ⅻ", "…", "!!", "://", "السَّلَام", "中文", "日本語", "한국어", "각", "हिन्दी", "ไทย", "עִבְרִית", "__init__", "a_b", "->", "\\n",
             "{}", "\x00", "\x7f", "👩‍👩‍👧", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "𝔘𝔫𝔦", "𐍈", "\U000e0041", "́", "̈o", "ǅ", "ʰ"]
    out = []
    size = 0
    while size < n:
        w = r.choice(words) if r.random() < .8 else known(r.choice([r.randrange(32, 0xd800), r.randrange(0x1f300, 0x1f700)]))
        out.append(w + (r.choice(spaces) * r.randint(1, 3) if r.random() < .4 else " " if r.random() < .7 else ""))
        size += len(out[-1].encode())
    return "".join(out).encode()


def damaged(data, seed):
    """Bytes changed, dropped and cut in places."""
    r = random.Random(seed)
    out = bytearray(data)
    for _ in range(len(out) // 200):
        i = r.randrange(len(out))
        if r.random() < .5:
            out[i] = r.randrange(128, 256)
        else:
            del out[i:i + r.randint(1, 3)]
    return bytes(out)


def corpus(work):
    """name -> bytes; about 16 MB."""
    fetch(work)
    pkg = f"{work}/pkg"
    every = lambda *p: [f for q in p for f in glob.glob(f"{pkg}/{q}", recursive=True)]
    lib = os.path.dirname(os.__file__)
    parts = {
        "english": take(every("anarchism/**/*.md.gz"), 4_000_000),
        "rst": take(every("python3.11-doc/**/*.rst.txt"), 2_000_000),
        "code": take(glob.glob(f"{lib}/*.py") + glob.glob("/usr/include/*.h"), 4_000_000),
        "chinese": take(every("manpages-zh/**/zh_CN/**/*.gz"), 2_500_000),
        "arabic": take(every("dict-freedict-*/**/*.dict.dz"), 3_000_000),
        "odd": odd_text(1_500_000, 1),
    }
    parts["invalid"] = damaged(parts["chinese"][:300_000] + parts["arabic"][:300_000] + parts["odd"][:300_000], 2)
    for name, data in parts.items():
        with open(f"{work}/{name}.txt", "wb") as f:
            f.write(data)
    return parts


# ---- running ----

class Bench:
    def __init__(self, a):
        self.a, self.count, self.failed, self.rows = a, 0, 0, []

    def ok(self, good, what):
        self.count += 1
        self.failed += not good
        print(f"{'ok' if good else 'not ok'} {self.count} - {what}", flush=True)

    def build(self, tokenizer, texts, ranks=1, core=None):
        """The token arrays of the documents; seconds of the whole command."""
        out = f"{self.a.work}/out.h5"
        env = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMP_NUM_THREADS="1",
                   OMPI_MCA_rmaps_base_oversubscribe="1", OMPI_MCA_hwloc_base_binding_policy="none")
        cmd = self.a.mpirun.split() + ["-np", str(ranks), self.a.saker, "data", "build", "--tokenizer", tokenizer, "--eos", EOS,
                                       "-o", out] + texts
        if core is not None:
            cmd = ["taskset", "-c", core] + cmd
        start = time.monotonic()
        r = subprocess.run(cmd, env=env, capture_output=True, text=True)
        seconds = time.monotonic() - start
        if r.returncode:
            raise SystemExit(f"{' '.join(cmd)}\n{r.stdout}{r.stderr}")
        with h5py.File(out) as f:
            data, docs = f["data"][:], list(f["documents"][:]) + [f["data"].shape[0]]
        return [data[docs[i]:docs[i + 1]] for i in range(len(docs) - 1)], seconds

    def same(self, got, want):
        """Number of documents that differ; the first is shown."""
        bad = 0
        for i, (g, w) in enumerate(zip(got, want)):
            if len(g) != len(w) or not np.array_equal(g, w):
                if bad == 0:
                    k = next((k for k in range(min(len(g), len(w))) if g[k] != w[k]), min(len(g), len(w)))
                    print(f"# document {i}, token {k} of {len(w)} ({len(g)}): {list(g[k:k + 8])} wanted {list(w[k:k + 8])}")
                bad += 1
        return bad + abs(len(got) - len(want))


def as_text(data):
    return data.decode("utf-8", "replace")


def lines_file(path, docs):
    with open(path, "w") as f:
        for d in docs:
            f.write(json.dumps({"text": d}) + "\n")


def whole_files(b, parts, name, path, t):
    eos = t.token_to_id(EOS)
    texts = [f"{b.a.work}/{p}.txt" for p in parts]
    got, _ = b.build(path, texts)
    want = [t.encode(as_text(parts[p]), add_special_tokens=False).ids + [eos] for p in parts]
    n = sum(map(len, parts.values()))
    bad = b.same(got, want)
    b.ok(bad == 0, f"{name}: {len(texts)} files, {n / 1e6:.1f} MB, {sum(map(len, want))} tokens: the same ids ({bad} files differ)")


CORNERS = [dict(single_word=s, lstrip=l, rstrip=r, normalized=n, special=p)
           for s in (0, 1) for l in (0, 1) for r in (0, 1) for n in (0, 1) for p in (0, 1)]


def add_corners(t):
    """One token for each mix of the flags, and some that overlap, contain space, or change in normalization."""
    for i, flags in enumerate(CORNERS):
        t.add_tokens([AddedToken(f"<t{i}>", **{k: bool(v) for k, v in flags.items()})])
    for text in ["<t1", "ab", "abc", "  ", " x ", "é", "e\u0301", "①", "\n\n", "the", "中文字", "Ġa", "<t1>>"]:
        t.add_tokens([AddedToken(text, normalized=text in ("é", "①", "the", "Ġa"))])
    t.add_special_tokens(["<|im_start|>", AddedToken("<|im_end|>", rstrip=True), "<|im|>"])


def corner_docs(n, seed):
    r = random.Random(seed)
    bits = [f"<t{i}>" for i in range(len(CORNERS))] + ["<t1", ">", "<", "ab", "abc", "abcab", "a", "é", "e\u0301", "①", "1", "the", "The",
            " ", "  ", "   ", "\n", "\n\n", "\t", "\u3000", "\u00a0", "x", " x ", "_", "中", "中文字", "中文", "🙂", "<|im_start|>", "<|im_end|>",
            "<|im|>", "<|im", "user", ".", ",", "'s", "12", "\u0301", "\u200d", "Ġa", EOS]
    return ["".join(r.choice(bits) for _ in range(r.randint(1, 14))) for _ in range(n)]


def corners(b, name, t):
    path = f"{b.a.work}/{name}-corners.json"
    add_corners(t)
    t.save(path)
    t = Tokenizer.from_file(path)
    eos = t.token_to_id(EOS)
    docs = corner_docs(20000, 7)
    lines_file(f"{b.a.work}/corners.jsonl", docs)
    got, _ = b.build(path, [f"{b.a.work}/corners.jsonl"])
    want = [x.ids + [eos] for x in t.encode_batch(docs, add_special_tokens=False)]
    bad = b.same(got, want)
    if bad:
        i = next(i for i in range(len(docs)) if not np.array_equal(got[i], want[i]))
        print(f"# {docs[i]!r}: {t.encode(docs[i], add_special_tokens=False).tokens}")
    b.ok(bad == 0, f"{name}: {len(docs)} texts of added tokens with every mix of flags: the same ids ({bad} differ)")


def code_points(b, name, path, t):
    """Every assigned code point between letters, digits, spaces and marks. Which differ depends on the Unicode versions of
    the libraries, so the first ones are named."""
    eos = t.token_to_id(EOS)
    cps = [c for c in range(1, 0x110000) if not 0xd800 <= c < 0xe000 and unicodedata.category(chr(c)) not in ("Cn", "Co")]
    docs = [f"a{chr(c)}b {chr(c)}1{chr(c)} {chr(c)}{chr(c)}!{chr(c)}\n" for c in cps]
    lines_file(f"{b.a.work}/points.jsonl", docs)
    got, _ = b.build(path, [f"{b.a.work}/points.jsonl"])
    want = [x.ids + [eos] for x in t.encode_batch(docs, add_special_tokens=False)]
    bad = [c for c, g, w in zip(cps, got, want) if not np.array_equal(g, w)]
    new = [c for c in bad if is_new(c)]
    if new:
        print(f"# {len(new)} code points are newer than the normalization tables of tokenizers: " + " ".join(f"U+{c:04X}" for c in new[:8]))
        bad = [c for c in bad if c not in new]
    if bad:
        print("# " + " ".join(f"U+{c:04X}({unicodedata.category(chr(c))})" for c in bad[:60]))
    b.ok(not bad and len(got) == len(docs), f"{name}: {len(cps)} code points of Unicode {unicodedata.unidata_version} in context: the same ids "
         f"({len(bad)} differ)")


def speed(b, parts, name, path, t):
    """Documents of some kilobytes, as a data set has them. `tokenizers` gets them in memory and only encodes; Saker's time is
    that of the whole command: start, reading JSON, writing HDF5. MB per second that passed, the fastest of some runs in turn,
    decides; MB per second of CPU time, which a busy machine changes less, is told as well."""
    docs = []
    for p in parts:
        text = as_text(parts[p])
        docs += [text[i:i + 3000] for i in range(0, len(text), 3000)]
    random.Random(3).shuffle(docs)
    size = np.cumsum([len(d.encode()) for d in docs])
    docs = docs[:int(np.searchsorted(size, b.a.speed_mb * 1e6)) + 1]
    n = int(size[len(docs) - 1])
    lines_file(f"{b.a.work}/speed.jsonl", docs)
    eos = t.token_to_id(EOS)
    cores = sorted(os.sched_getaffinity(0))
    for ranks in sorted({1, min(2, len(cores))}):
        mask = ",".join(map(str, cores[:ranks]))
        child = [sys.executable, os.path.abspath(__file__), "--encode", path, f"{b.a.work}/speed.jsonl"]
        theirs, ours = [], []
        for _ in range(b.a.trials):
            r = subprocess.run(["taskset", "-c", mask] + child, env=dict(os.environ, RAYON_NUM_THREADS=str(ranks)), check=True,
                               capture_output=True, text=True)
            theirs.append(tuple(map(float, r.stdout.split())))
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            got, s = b.build(path, [f"{b.a.work}/speed.jsonl"], ranks, mask)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            ours.append((s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
        if ranks == 1:
            want = [x.ids + [eos] for x in t.encode_batch_fast(docs, add_special_tokens=False)]
        bad = b.same(got, want)
        rate = lambda runs, k: n / 1e6 / min(r[k] for r in runs)
        their, our = rate(theirs, 0), rate(ours, 0)
        b.ok(bad == 0 and our >= their, f"{name}, {ranks} core(s), {n / 1e6:.1f} MB: saker {our:.1f} MB/s, tokenizers {their:.1f} MB/s: "
             f"{our / their:.1f} times; in CPU time {rate(ours, 1):.1f} and {rate(theirs, 1):.1f}; {bad} documents differ")
        for what, runs in ("saker", ours), ("tokenizers " + tokenizers.__version__, theirs):
            b.rows.append({"bench": "tokenizer", "device": cpu(), "ranks": ranks, "commit": commit(), "command": "make check-tokenizer",
                           "tokenizer": name, "program": what, "bytes": n, "mb_per_s": round(rate(runs, 0), 2),
                           "mb_per_cpu_s": round(rate(runs, 1), 2), "load": round(os.getloadavg()[0], 1)})


def encode_only(path, lines):
    """A process of its own, so that its threads and caches are fresh: seconds that passed and of CPU."""
    docs = [json.loads(x)["text"] for x in open(lines)]
    t = Tokenizer.from_file(path)
    start, cpu_start = time.monotonic(), time.process_time()
    t.encode_batch_fast(docs, add_special_tokens=False)
    print(time.monotonic() - start, time.process_time() - cpu_start)


def cpu():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def commit():
    r = subprocess.run(["git", "-C", os.path.dirname(os.path.abspath(__file__)), "describe", "--always", "--dirty"], capture_output=True,
                       text=True)
    return r.stdout.strip() or "unknown"


def compare(a):
    os.makedirs(a.work, exist_ok=True)
    b = Bench(a)
    print(f"# tokenizers {tokenizers.__version__}, Unicode {unicodedata.unidata_version} in Python")
    parts = corpus(a.work)
    b.ok(sum(map(len, parts.values())) >= 10_000_000, f"{sum(map(len, parts.values())) / 1e6:.1f} MB of text: " +
         ", ".join(f"{k} {len(v) / 1e6:.1f}" for k, v in parts.items()))
    train = [f"{a.work}/{p}.txt" for p in parts if p != "invalid"]
    for name in styles():
        path = f"{a.work}/{name}.json"
        if not os.path.exists(path):
            make(name, train, 70000 if name == "o200k" else 20000).save(path)
        t = Tokenizer.from_file(path)
        if a.only != "ids" and name in ("gpt2", "llama3", "qwen2"):
            speed(b, parts, name, path, t)
        if a.only == "speed":
            continue
        whole_files(b, parts, name, path, t)
        code_points(b, name, path, t)
        corners(b, name, t)
    if a.json:
        with open(a.json, "w") as f:
            json.dump(b.rows, f, indent=1)
            f.write("\n")
    print(f"1..{b.count}")
    return 1 if b.failed else 0


def fixture(folder):
    """Small tokenizers of five styles with added tokens, and the ids of texts: tests/tokenizer.c needs nothing of PyPI."""
    os.makedirs(folder, exist_ok=True)
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    train = f"{folder}/train.txt"
    with open(train, "wb") as f:
        f.write(take(glob.glob(f"{here}/*.md") + glob.glob(f"{here}/docs/*.md"), 100_000) + odd_text(60_000, 5))
    cases = {}
    for style in "gpt2", "llama3", "qwen2", "falcon", "behaviors":
        t = make(style, [train], 640)
        if style != "gpt2":  # stays one whose text may be cut
            add_corners(t)
        t.save(f"{folder}/{style}.json", pretty=False)
        t = Tokenizer.from_file(f"{folder}/{style}.json")
        odd = odd_text(12_000, 11)
        raw = [odd[i:i + 90] for i in range(0, 3600, 90)] + [d.encode() for d in corner_docs(100, 13)]
        raw = raw[:40] if style == "gpt2" else raw
        raw += [damaged(odd[-1000:], 17), open(f"{here}/LICENSE", "rb").read()[:800], b"a" * 90, b" " * 70 + b"x", b"\n" * 45,
                "中文字".encode() * 40, b"the" * 50, "\u0301".encode() * 30, b"x1234567890" * 9, b"\xf0\x9f\x98", b"\xc0\xaf\xed\xa0\x80ok"]
        ids = [t.encode(as_text(x), add_special_tokens=False).ids for x in raw]
        cases[style] = [{"hex": x.hex(), "ids": i} for x, i in zip(raw, ids)]
        for k in range(0, len(raw), 12):
            cases[style][k]["decoded"] = t.decode(ids[k]).encode().hex()
    os.remove(train)
    with open(f"{folder}/expected.json", "w") as f:
        json.dump(cases, f, separators=(",", ":"), ensure_ascii=False)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--saker")
    p.add_argument("--mpirun", default="mpirun")
    p.add_argument("--work", default="tokenizer-compare")
    p.add_argument("--json")
    p.add_argument("--only", choices=["ids", "speed"], help="one half of the comparison")
    p.add_argument("--speed-mb", type=float, default=12, help="MB of text to measure with")
    p.add_argument("--trials", type=int, default=3, help="runs of which the fastest counts")
    p.add_argument("--encode", nargs=2, help=argparse.SUPPRESS)
    p.add_argument("--fixture", metavar="DIR")
    a = p.parse_args()
    if a.fixture:
        return fixture(a.fixture)
    if a.encode:
        return encode_only(*a.encode)
    a.work = os.path.abspath(a.work)
    a.saker = os.path.abspath(a.saker)
    return compare(a)


if __name__ == "__main__":
    sys.exit(main())
