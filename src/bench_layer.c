/* bench_layer.c: the deck's first layer as training runs it, forward and backward with all weight gradients: the
 * one figure that can be put beside another program's layer. */
#include "src/bench.h"
#include <stdio.h>
#include <string.h>

typedef struct one {
  sk_engine engine;
  size_t bytes; /* of each of */
  void *h, *mixed, *dout, *dh; /* [n, d] the stream before the layer, the layer's output; gradients after and before */
} one;

static void forward(void *arg) {
  one *x = arg;
  sk_engine *g = &x->engine;
  sk_slot *s = &g->slot[0];
  sk_arena_release(&s->saved, 0);
  sk_stream_pair r = {.h = x->h};
  sk_layer_forward(&g->ctx, &g->model.layer[0], &s->t, &s->layer[0], &r, x->mixed, NULL);
}

static void both(void *arg) {
  one *x = arg;
  sk_engine *g = &x->engine;
  sk_slot *s = &g->slot[0];
  forward(arg);
  g->ctx.op->copy(g->ctx.st, x->dh, x->dout, x->bytes);
  sk_layer_backward(&g->ctx, &g->model.layer[0], &s->t, &s->layer[0], x->dh);
}

static void report(sk_bench *b, const sk_engine *g, const char *pass, double s, double flops) {
  char shape[64];
  const char *device = g->ctx.op->describe(g->ctx.dev);
  snprintf(shape, sizeof shape, "B%lld L%lld", (long long)g->b, (long long)g->T);
  sk_say("  %-14s %-34s %-7s %7.3f ms %9.3f TFLOP/s", "layer", shape, pass, 1e3 * s, 1e-12 * flops / s);
  json_t *o = sk_bench_result(b, "ops", device);
  json_object_set_new(o, "model", json_string(b->model));
  json_object_set_new(o, "op", json_string("layer"));
  json_object_set_new(o, "shape", json_string(shape));
  json_object_set_new(o, "pass", json_string(pass));
  json_object_set_new(o, "dtype", json_string(g->ctx.act == SK_F32 ? "fp32" : "bf16"));
  json_object_set_new(o, "ms", json_real(1e3 * s));
  json_object_set_new(o, "tflops", json_real(1e-12 * flops / s));
  if (!b->results) json_decref(o);
}

static void fill(sk_engine *g, void *to, int64_t n, uint64_t key) {
  float *host = sk_malloc((size_t)n * sizeof *host);
  sk_bench_random(host, n, key, 0.5);
  if (g->ctx.act == SK_F32) {
    g->ctx.op->from_host(g->ctx.st, to, host, (size_t)n * sizeof *host);
  } else {
    void *act = sk_malloc((size_t)n * sk_dtype_size(g->ctx.act));
    sk_cpu_ops.cast(NULL, act, g->ctx.act, host, SK_F32, n);
    g->ctx.op->from_host(g->ctx.st, to, act, (size_t)n * sk_dtype_size(g->ctx.act));
    sk_free(act);
  }
  sk_free(host);
}

/* One document per sequence; the slot's memory begins after the tokens. */
static void load(one *x, int64_t b, int64_t T) {
  sk_engine *g = &x->engine;
  sk_slot *s = &g->slot[0];
  int64_t n = b * T;
  int32_t *ids = sk_calloc((size_t)(3 * n), sizeof *ids);
  sk_tokens_here t = sk_engine_tokens(g, b);
  sk_slot_begin(&g->model, &g->ctx, s, &t, true);
  sk_engine_load(g, s, b, ids, ids + n, ids + 2 * n);
  sk_free(ids);
  g->ctx.saved = &s->saved;
}

int sk_bench_layer(sk_bench *b, sk_err *e) {
  sk_config c = *b->cfg; /* the first layer alone, with a token of a vocabulary; nothing in it is owned */
  sk_grid grid;
  one x = {0};
  sk_arena mine = {0};
  c.n_layers = c.model.num_hidden_layers = 1;
  c.model.vocab_size = 256, c.model.pad_token_id = -1;
  c.parallel.virtual_stages = 1, c.parallel.schedule = SK_SCHED_1F1B;
  c.train.global_batch = c.train.micro_batch, c.train.recompute = SK_RECOMPUTE_NONE;
  c.optimizer.n_groups = 0;
  int64_t T = c.data.sequence, n = c.train.micro_batch * T * c.model.hidden_size;
  if (b->ranks != 1) return sk_fail(e, SK_USAGE, "saker bench layer: one rank only");
  sk_grid_pretend(&grid, (const int[SK_NAXES]){1, 1, 1, 1}, 0);
  sk_engine *g = &x.engine;
  if (sk_engine_open(g, &c, b->op, b->comms, &grid, true, c.train.micro_batch, T, T, e) != SK_OK) return e->code;
  size_t tokens = (size_t)(c.train.micro_batch * T) * sizeof(int32_t);
  x.bytes = (size_t)n * sk_dtype_size(g->ctx.act);
  if (sk_arena_alloc(&mine, b->op, g->ctx.dev, "the stream", 4 * x.bytes + tokens + 5 * 256, e) == SK_OK) {
    sk_engine_init(g);
    load(&x, c.train.micro_batch, T);
    /* The tokens' starts must outlive a pass, which starts the slot's memory afresh. */
    int32_t *start = sk_arena_take(&mine, tokens);
    b->op->zero(g->ctx.st, start, tokens);
    g->slot[0].t.piece[0].start = g->slot[0].t.piece[0].key_start = start;
    void **at[] = {&x.h, &x.mixed, &x.dout, &x.dh};
    for (int i = 0; i < 4; i++) *at[i] = sk_arena_take(&mine, x.bytes);
    fill(g, x.h, n, 1);
    fill(g, x.dout, n, 2);
    double flops = sk_layer_flops(&c.layer[0], T) * (double)(c.train.micro_batch * T);
    report(b, g, "fwd", sk_bench_time(b, g->ctx.st, forward, &x), flops);
    report(b, g, "fwd+bwd", sk_bench_time(b, g->ctx.st, both, &x), 3 * flops);
    sk_arena_free(&mine, b->op, g->ctx.dev);
  }
  sk_engine_close(g);
  return e->code;
}
