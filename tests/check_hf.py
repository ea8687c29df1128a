#!/usr/bin/env python3
"""Saker against the real transformers, both ways (TAP). Needs torch, transformers with FalconH1, safetensors, h5py.

  make check-hf PYTHON=/path/of/a/venv/bin/python        (or: check_hf.py BUILD_DIR GOLDEN_DIR)

Every reference model, saved by transformers in fp32 and bf16, is converted to a checkpoint and back:
  - the tensors are the same byte for byte;
  - transformers loads the folder and its logits are those of the model it saved, within 1e-5 of the largest;
  - Saker's own logits of the checkpoint agree with transformers' within 1e-5.
Then random models: one saved in many shards, one that Saker has drawn and trained itself."""
import json, os, shutil, subprocess, sys, tempfile
import h5py, numpy as np, torch
from safetensors.torch import load_file, save_file
from transformers import FalconH1Config, FalconH1ForCausalLM, __version__
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
LIMIT = 1e-5
build, golden = (os.path.abspath(p) for p in sys.argv[1:3])
saker, hf_logits = build + '/saker', build + '/tests/hf_logits'
count = failed = 0


def ok(good, text):
    global count, failed
    count += 1
    failed += not good
    print(f"{'ok' if good else 'not ok'} {count} - {text}", flush=True)


def run(*command):
    r = subprocess.run(command, capture_output=True, text=True)
    if r.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {r.returncode}\n{r.stdout}{r.stderr}")
    return r.stdout


def tensors(folder):
    """Every tensor of a folder as raw bytes, read by the safetensors library."""
    out = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith('.safetensors'):
            for k, v in load_file(f'{folder}/{name}').items():
                assert k not in out
                out[k] = (v.dtype, tuple(v.shape), v.contiguous().view(torch.uint8).numpy().tobytes())
    return out


def hf_result(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits.double()


def saker_result(checkpoint, ids, vocab):
    with open('ids', 'w') as f:
        f.write(f'{ids.shape[0]} {ids.shape[1]}\n' + ' '.join(str(i) for i in ids.flatten().tolist()) + '\n')
    run(hf_logits, checkpoint, 'ids', 'logits')
    return torch.from_numpy(np.fromfile('logits', dtype='<f4').reshape(*ids.shape, vocab)).double()


def error(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def load(folder):
    return FalconH1ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def both_ways(model, name, vocab, **save):
    """A model in memory: transformers saves it, Saker reads it and writes it, transformers reads that."""
    for d in ('in', 'ck', 'out'):
        shutil.rmtree(d, ignore_errors=True)
    model.save_pretrained('in', **save)
    json.dump({'kept': True}, open('in/tokenizer_config.json', 'w'))
    run(saker, 'convert', 'from-hf', 'in', '-o', 'ck')
    run(saker, 'convert', 'to-hf', 'ck', '-o', 'out')
    a, b = tensors('in'), tensors('out')
    files = sum(f.endswith('.safetensors') for f in os.listdir('in'))
    ok(a == b and len(a) > 0, f'{name}: {sum(a[k] == b.get(k) for k in a)} of {len(a)} tensors byte for byte, from '
       f'{files} file{"s" * (files > 1)}')
    ok(open('in/config.json').read() == open('out/config.json').read() and
       open('in/tokenizer_config.json').read() == open('out/tokenizer_config.json').read(), f'{name}: config.json and tokenizer_config.json as they were')
    ids = torch.randint(0, vocab, (2, 29), generator=torch.Generator().manual_seed(7))
    want = hf_result(load('in'), ids)
    e = error(hf_result(load('out'), ids), want)
    ok(e <= LIMIT, f'{name}: transformers on the exported folder: error {e:.3g}, limit {LIMIT:g}')
    e = error(saker_result('ck', ids, vocab), want)
    ok(e <= LIMIT, f'{name}: Saker on the imported weights: error {e:.3g}, limit {LIMIT:g}')


def reference_models():
    found = sorted(f for f in os.listdir(golden) if f.endswith('.h5'))
    ok(len(found) > 0, f'{len(found)} reference files in {golden}')
    for f in found:
        with h5py.File(f'{golden}/{f}') as h:
            config = json.loads(h.attrs['config_json'])
            state = {}
            h['params'].visititems(lambda k, v: state.update({k: torch.from_numpy(v[()].astype('f4'))})
                                   if isinstance(v, h5py.Dataset) else None)
        limit = config.pop('time_step_limit', None)
        if limit:
            config['time_step_limit'] = [limit[0], float('inf') if limit[1] is None else limit[1]]
        for dtype, label in ((torch.float32, 'fp32'), (torch.bfloat16, 'bf16')):
            model = FalconH1ForCausalLM(FalconH1Config(**config))
            missing, unexpected = model.load_state_dict(state, strict=False)
            assert not unexpected and set(missing) <= {'lm_head.weight'}, (missing, unexpected)
            model.tie_weights()
            both_ways(model.to(dtype), f'{f[:-3]} {label}', config['vocab_size'])


def random_model():
    torch.manual_seed(3)
    config = FalconH1Config(vocab_size=1031, hidden_size=128, intermediate_size=192, num_hidden_layers=5, head_dim=16,
                            num_attention_heads=8, num_key_value_heads=2, mamba_d_ssm=192, mamba_n_heads=12,
                            mamba_d_head=16, mamba_n_groups=2, mamba_d_state=32, mamba_chunk_size=16, mamba_rms_norm=True,
                            mamba_norm_before_gate=False, ssm_multipliers=[0.5, 0.9, 1.1, 1.2, 0.7], key_multiplier=0.7,
                            embedding_multiplier=2.5, lm_head_multiplier=0.6, rope_parameters={'rope_type': 'default', 'rope_theta': 1e6})
    for dtype, label in ((torch.float32, 'fp32'), (torch.bfloat16, 'bf16'), (torch.float16, 'fp16')):
        both_ways(FalconH1ForCausalLM(config).to(dtype), f'random sharded {label}', 1031, max_shard_size='300KB')


DECK = """
run: {dir: run, device: cpu}
model: {vocab_size: 257, hidden_size: 64, num_hidden_layers: 3, num_attention_heads: 4, num_key_value_heads: 2,
        intermediate_size: 96, mamba_d_ssm: 128, mamba_n_heads: 8, mamba_d_state: 16, mamba_chunk_size: 32, mamba_rms_norm: true,
        key_multiplier: 0.5, rope_theta: 2.0e6%s}
data: {train: [{path: t.h5}], sequence: 64}
train: {steps: %d, global_batch: 4, micro_batch: 2, dtype: fp32%s}
optimizer: {lr: %s, schedule: {kind: constant, warmup: 0}}
"""


def deck(name, model='', steps=20, train='', lr='1e-3'):
    open(name, 'w').write(DECK % (model, steps, train, lr))


def trained_model():
    """What Saker has drawn and trained, without any config.json; then training goes on from transformers' save."""
    open('text.txt', 'w').write('The quick brown fox jumps over the lazy dog. ' * 200)
    run(saker, 'data', 'build', '-o', 't.h5', 'text.txt')
    deck('a.yaml')
    run(saker, 'train', '-i', 'a.yaml')
    ids = torch.randint(0, 257, (2, 29), generator=torch.Generator().manual_seed(8))
    ck = 'run/checkpoints/step-00000020'
    run(saker, 'convert', 'to-hf', ck, '-o', 'trained')
    model = load('trained')
    want = hf_result(model, ids)
    ok(json.load(open('trained/config.json')).get('torch_dtype') == 'float32', 'trained: config.json names the dtype')
    e = error(saker_result(ck, ids, 257), want)
    ok(e <= LIMIT, f'trained: transformers on the exported folder against Saker: error {e:.3g}, limit {LIMIT:g}')
    shutil.rmtree('in', ignore_errors=True)
    model.save_pretrained('in')
    json.dump({'kept': 1}, open('in/tokenizer.json', 'w'))
    shutil.rmtree('ck', ignore_errors=True)
    run(saker, 'convert', 'from-hf', 'in', '-o', 'ck')
    deck('b.yaml', train=', init: ck', steps=3, lr='0')
    run(saker, 'train', '-i', 'b.yaml', '--set', 'run.dir=run-b')
    run(saker, 'convert', 'to-hf', 'run-b/checkpoints/step-00000003', '-o', 'again')
    ok(tensors('again') == tensors('in'), 'three steps with lr 0 from imported weights leave every byte as it was')
    ok(open('again/tokenizer.json').read() == open('in/tokenizer.json').read(), "the tokenizer's files go along through training")
    first = json.loads([x for x in open('run-b/metrics.jsonl') if '"event"' not in x][0])['loss']
    last = [json.loads(x)['loss'] for x in open('run/metrics.jsonl') if '"event"' not in x]
    ok(first < 0.8 * last[0], f'training goes on where it was: loss {last[0]:.3f} at first, {last[-1]:.3f} in the end, {first:.3f} now')


print(f'# transformers {__version__}, torch {torch.__version__}')
here = tempfile.mkdtemp(prefix='saker-check-hf.')
os.chdir(here)
os.environ.update(OMPI_ALLOW_RUN_AS_ROOT='1', OMPI_ALLOW_RUN_AS_ROOT_CONFIRM='1')
torch.set_num_threads(2)
reference_models()
random_model()
trained_model()
os.chdir('/')
shutil.rmtree(here)
print(f'1..{count}')
sys.exit(failed > 0)
