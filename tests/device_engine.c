/* device_engine.c: small models trained for some steps on the CPU and on the GPU. */
#include <math.h>
#include <string.h>
#include "src/device.h"
#include "tests/device_check.h"
#include "tests/device_tap.h"
#include "tests/small_model.h"

enum { STEPS = 4 };

typedef struct result {
  double loss[STEPS];
  int64_t n;
  float *grads, *weights; // of the first step; fp32 weights after the last one
} result;

typedef struct batch {
  int64_t b, T;
  int32_t *ids, *label, *start;
} batch;

static batch make_batch(int64_t b, int64_t T, int64_t vocab, uint64_t mean) {
  int64_t n = b * T;
  batch k = {b, T, sk_calloc((size_t)n, 4), sk_calloc((size_t)n, 4), sk_calloc((size_t)n, 4)};
  small_ids(k.ids, n, vocab, 3);
  for (int64_t i = 0; i < n; i++) {
    int64_t t = i % T;
    bool begins = t > 0 && sk_rand(5, (uint64_t)i) % mean == 0;
    k.start[i] = begins ? (int32_t)t : t > 0 ? k.start[i - 1] : 0;
    k.label[i] = t + 1 < T ? k.ids[i + 1] : -1;
  }
  return k;
}

static float *to_host(const sk_engine *g, const float *dev, int64_t n) {
  float *host = sk_malloc((size_t)n * sizeof *host);
  g->ctx.op->to_host(g->ctx.st, host, dev, (size_t)n * sizeof *host);
  return host;
}

static result train(sk_config *c, const sk_ops *op, const batch *k) {
  sk_engine g;
  sk_grid one;
  sk_err e = {0};
  result r = {0};
  sk_grid_pretend(&one, (const int[SK_NAXES]){1, 1, 1, 1}, 0);
  c->parallel.virtual_stages = 1;
  c->train.global_batch = c->train.micro_batch = k->b;
  c->optimizer.betas[0] = 0.9, c->optimizer.betas[1] = 0.95;
  c->optimizer.eps = 1e-8, c->optimizer.weight_decay = 0.1;
  SK_CHECK(sk_engine_open(&g, c, op, sk_device_comm(op), &one, true, k->b, k->T, k->T, &e) == SK_OK,
           "%s", e.msg);
  sk_engine_init(&g);
  double scale = 1.0 / (double)(k->b * (k->T - 1));
  for (int i = 0; i < STEPS; i++) {
    sk_engine_step(&g, k->ids, k->label, k->start, scale);
    r.loss[i] = sk_engine_take_loss(&g) * scale;
    if (i == 0) r.grads = to_host(&g, g.ctx.grads, g.ctx.reg->total);
    sk_optim_update(&g.opt, &g.ctx, c, i + 1, 1e-3, 0.9);
  }
  r.n = sk_optim_count(&g.opt, g.ctx.reg);
  r.weights = sk_malloc((size_t)r.n * sizeof *r.weights);
  for (int i = 0; i < g.ctx.reg->n_buckets; i++) {
    int64_t lo, hi, at = sk_optim_slice(&g.opt, i, &lo, &hi);
    op->to_host(g.ctx.st, r.weights + at, sk_optim_master(&g.opt, &g.ctx, i),
                (size_t)(hi - lo) * 4);
  }
  sk_engine_close(&g);
  return r;
}

static void drop(result *r) {
  sk_free(r->grads);
  sk_free(r->weights);
}

static double distance(const float *a, const float *b, int64_t n) {
  double diff = 0, norm = 0;
  for (int64_t i = 0; i < n; i++) {
    double d = (double)a[i] - (double)b[i];
    diff += isnan(d) ? INFINITY : d * d;
    norm += (double)b[i] * (double)b[i];
  }
  return sqrt(diff / (norm > 0 ? norm : 1));
}

static void compare(sk_config *c, const batch *k, const char *name) {
  result cpu = train(c, &sk_cpu_ops, k);
  for (int dtype = SK_DTYPE_FP32; dtype <= SK_DTYPE_BF16; dtype++) {
    bool half = dtype == SK_DTYPE_BF16;
    double worst = 0, limit = half ? 1e-2 : 1e-5;
    c->train.dtype = dtype;
    result gpu = train(c, g_gpu, k), again = train(c, g_gpu, k);
    for (int i = 0; i < STEPS; i++) worst = fmax(worst, fabs(gpu.loss[i] / cpu.loss[i] - 1));
    device_ok(worst <= limit, "%s %s: losses of %d steps, %.6f to %.6f, within %.2g, limit %.0e",
              half ? "bf16" : "fp32", name, STEPS, gpu.loss[0], gpu.loss[STEPS - 1], worst, limit);
    double grads = distance(gpu.grads, cpu.grads, cpu.n),
           weights = distance(gpu.weights, cpu.weights, cpu.n);
    // bf16: each of some dozen roundings on the way adds 2e-3 or so; Hugging Face's own bf16 gradients are 3e-2 to
    // 3e-1 off (tests/ref/hf_bf16.txt).
    device_ok(grads <= (half ? 5e-2 : 1e-5), "%s %s: gradients, error %.2g", half ? "bf16" : "fp32",
              name, grads);
    device_ok(weights <= (half ? 2e-2 : 1e-4), "%s %s: weights, error %.2g", half ? "bf16" : "fp32",
              name, weights);
    bool same = memcmp(gpu.loss, again.loss, sizeof gpu.loss) == 0 && gpu.n == again.n &&
                memcmp(gpu.weights, again.weights, (size_t)gpu.n * 4) == 0;
    device_ok(same, "%s %s: a second run gives the same bits", half ? "bf16" : "fp32", name);
    drop(&gpu);
    drop(&again);
  }
  drop(&cpu);
}

// What is set is what is there, as act weights and as fp32 master.
static void set_weights(void) {
  const char *const pattern[] = {"P-"};
  sk_config c;
  sk_engine g;
  sk_grid one;
  sk_err e = {0};
  small_config(&c, 1, pattern);
  sk_grid_pretend(&one, (const int[SK_NAXES]){1, 1, 1, 1}, 0);
  c.parallel.virtual_stages = 1;
  c.train.global_batch = c.train.micro_batch = 1;
  c.train.dtype = SK_DTYPE_BF16;
  SK_CHECK(sk_engine_open(&g, &c, g_gpu, sk_device_comm(g_gpu), &one, true, 1, 16, 16, &e) == SK_OK,
           "%s", e.msg);
  int64_t n = g.ctx.reg->total;
  float *w = sk_calloc((size_t)n, sizeof *w), *master = sk_calloc((size_t)n, sizeof *w);
  uint16_t *act = sk_calloc((size_t)n, 2), *want = sk_calloc((size_t)n, 2);
  for (int64_t i = 0; i < n; i++) w[i] = (float)draw();
  sk_engine_set_weights(&g, 0, 100, w); // in two pieces, neither at a bucket's border
  sk_engine_set_weights(&g, 100, n - 100, w + 100);
  g.ctx.op->to_host(g.ctx.st, act, g.ctx.weights, (size_t)n * 2);
  sk_cpu_ops.cast(NULL, want, SK_BF16, w, SK_F32, n);
  bool good = memcmp(act, want, (size_t)n * 2) == 0;
  for (int i = 0; i < g.ctx.reg->n_buckets; i++) {
    int64_t lo, hi;
    sk_optim_slice(&g.opt, i, &lo, &hi);
    g.ctx.op->to_host(g.ctx.st, master, sk_optim_master(&g.opt, &g.ctx, i), (size_t)(hi - lo) * 4);
    good = good && memcmp(master, w + lo, (size_t)(hi - lo) * 4) == 0;
  }
  device_ok(g.opt.master && good, "weights are set in bf16 and in their fp32 master");
  sk_engine_close(&g);
  sk_free(w);
  sk_free(master);
  sk_free(act);
  sk_free(want);
  sk_free(c.layer);
}

void test_engine(void) {
  const char *const mixed[] = {"P-", "*", "M-", "P"};
  sk_config c;
  set_weights();
  small_config(&c, 4, mixed);
  batch k = make_batch(3, 41, c.model.vocab_size, 15);
  compare(&c, &k, "small, odd sizes");
  c.train.recompute = SK_RECOMPUTE_SELECTIVE;
  c.model.tie_word_embeddings = true;
  compare(&c, &k, "small, tied, recomputed");
  sk_free(c.layer);
  // Sizes in the proportions of a released model.
  small_config(&c, 0, NULL);
  c.n_layers = 2;
  c.model.vocab_size = 1000, c.model.hidden_size = 256, c.model.intermediate_size = 512,
  c.model.num_hidden_layers = 2;
  c.model.num_attention_heads = 4, c.model.num_key_value_heads = 2, c.model.head_dim = 64;
  c.model.mamba_d_ssm = 512, c.model.mamba_n_heads = 8, c.model.mamba_d_head = 64,
  c.model.mamba_n_groups = 1;
  c.model.mamba_d_state = 128, c.model.mamba_chunk_size = 128, c.model.initializer_range = 0.05;
  sk_free(c.layer);
  c.layer = sk_calloc(2, sizeof *c.layer);
  for (int i = 0; i < 2; i++) c.layer[i] = (sk_layer_cfg){.mixer = 'P', .mlp = true, .m = c.model};
  batch real = make_batch(2, 512, c.model.vocab_size, 200);
  compare(&c, &real, "2 layers of 256");
  sk_free(c.layer);
  for (int i = 0; i < 2; i++) {
    batch *b = i ? &real : &k;
    sk_free(b->ids);
    sk_free(b->label);
    sk_free(b->start);
  }
}
