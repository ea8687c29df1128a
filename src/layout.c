#include "src/layout.h"
#include <stdio.h>
#include <string.h>

static void append(char *s, size_t cap, const char *fmt, long long a, long long b) {
  size_t n = strlen(s);
  snprintf(s + n, cap - n, fmt, a, b);
}

/* Data-parallel sizes up to `ranks` that divide the batch: "1, 2, 4". */
static void list_dp(const sk_config *c, int ranks, char *s, size_t cap) {
  int64_t micros = c->train.global_batch / c->train.micro_batch;
  for (int dp = 1; dp <= ranks && strlen(s) < cap - 32; dp++)
    if (micros % dp == 0) append(s, cap, s[0] ? ", %lld" : "%lld", dp, 0);
}

int sk_layout_grid(const sk_config *c, int ranks, int n[SK_NAXES], sk_err *e) {
  const int64_t tp = c->parallel.tp, cp = c->parallel.cp, pp = c->parallel.pp;
  const int64_t gb = c->train.global_batch, mb = c->train.micro_batch, unit = mb * ranks;
  char dps[400] = "";
  list_dp(c, ranks, dps, sizeof dps);
  n[SK_PP] = n[SK_CP] = n[SK_TP] = 1;
  n[SK_DP] = ranks;
  if (tp != 1 || cp != 1 || pp != 1)
    return sk_fail(e, SK_USAGE,
                   "parallel: tp %lld x cp %lld x pp %lld on %d rank%s: this version has data parallelism "
                   "only.\nGrids that work: tp 1 x cp 1 x pp 1 x dp = number of ranks; with global_batch "
                   "%lld and micro_batch %lld, dp may be %s (of up to %d).\n"
                   "Set parallel.tp, parallel.cp and parallel.pp to 1.",
                   (long long)tp, (long long)cp, (long long)pp, ranks, ranks == 1 ? "" : "s",
                   (long long)gb, (long long)mb, dps, ranks);
  if (gb % unit == 0) return SK_OK;
  char near[128] = "";
  if (gb > unit) append(near, sizeof near, "%lld or ", gb / unit * unit, 0);
  append(near, sizeof near, "%lld", (gb / unit + 1) * unit, 0);
  return sk_fail(e, SK_USAGE,
                 "train.global_batch: %lld is not a multiple of dp x micro_batch = %d x %lld = %lld.\n"
                 "On %d rank%s the nearest that work are %s. With this batch dp may be %s: run on that many "
                 "ranks (tp 1 x cp 1 x pp 1).",
                 (long long)gb, ranks, (long long)mb, (long long)unit, ranks, ranks == 1 ? "" : "s", near, dps);
}

static void print_model(const sk_config *c, const sk_model *m) {
  const sk_registry *r = &m->reg;
  sk_say("\nLayers (%lld, pattern %s)", (long long)c->n_layers, c->pattern);
  for (int64_t i = 0, j; i < c->n_layers; i = j) {
    const sk_layer_cfg *a = &c->layer[i];
    for (j = i + 1; j < c->n_layers && memcmp(a, &c->layer[j], sizeof *a) == 0; j++) {}
    char what[256] = "";
    if (a->mixer != 'M')
      append(what, sizeof what, "attention %lld heads, %lld kv", a->m.num_attention_heads,
             a->m.num_key_value_heads);
    if (a->mixer == 'P') append(what, sizeof what, " | ", 0, 0);
    if (a->mixer != '*')
      append(what, sizeof what, "mamba %lld heads, state %lld", a->m.mamba_n_heads, a->m.mamba_d_state);
    if (a->mlp) append(what, sizeof what, " + mlp %lld", a->m.intermediate_size, 0);
    sk_say("  %4lld..%-4lld %c%c  %s", (long long)i, (long long)j - 1, a->mixer, a->mlp ? '-' : ' ', what);
  }
  sk_say("\nParameters (%s in %d tensors)", sk_si((double)r->count), r->n);
  for (int i = 0; i < r->n; i++) {
    bool shown = strncmp(r->p[i].name, "model.layers.", 13) != 0 ||
                 strncmp(r->p[i].name, "model.layers.0.", 15) == 0;
    char shape[64] = "";
    for (int k = 0; k < r->p[i].rank; k++) append(shape, sizeof shape, k ? " x %lld" : "%lld", r->p[i].dim[k], 0);
    if (shown) sk_say("  %-52s %-20s %12lld", r->p[i].name, shape, (long long)r->p[i].count);
  }
  if (c->n_layers > 1) sk_say("  (layers 1 to %lld not listed)", (long long)c->n_layers - 1);
}

int sk_layout_print(const sk_config *c, const sk_ops *op, int ranks, sk_err *e) {
  int n[SK_NAXES];
  sk_model m = {0};
  if (sk_layout_grid(c, ranks, n, e) != SK_OK) return e->code;
  if (sk_model_create(&m, c, c->data.sequence, e) == SK_OK) print_model(c, &m);
  double flops = sk_model_flops(c, c->data.sequence);
  double step = (double)c->train.global_batch * (double)c->data.sequence;
  if (!e->code) {
    sk_say("  all %lld", (long long)m.reg.count);
    sk_say("\nArithmetic: %sFLOP forward per token, %sFLOP per step of %s tokens (causal half counted)",
           sk_si(flops), sk_si(3 * flops * step), sk_si(step));
    sk_say("\nGrid: tp 1 x cp 1 x pp 1 x dp %d; %lld micro-batches of %lld x %lld tokens per rank and step",
           ranks, (long long)(c->train.global_batch / ranks / c->train.micro_batch),
           (long long)c->train.micro_batch, (long long)c->data.sequence);
    sk_say("\nMemory per rank on the %s (first and last rank)", op->name);
  }
  size_t first[SK_PARTS], last[SK_PARTS], sum[2] = {0};
  if (!e->code) sk_engine_plan(c, op, ranks, 0, first, e);
  if (!e->code) sk_engine_plan(c, op, ranks, ranks - 1, last, e);
  for (int i = 0; i < SK_PARTS && !e->code; i++) {
    sum[0] += first[i];
    sum[1] += last[i];
    sk_say("  %-16s %12s %12s", sk_part_name[i], sk_bytes((double)first[i]), sk_bytes((double)last[i]));
  }
  if (!e->code) sk_say("  %-16s %12s %12s", "all", sk_bytes((double)sum[0]), sk_bytes((double)sum[1]));
  sk_model_free(&m);
  return e->code;
}
