/* comm_count.c: who sends how much. Every collective and message of an evaluation and of a training step, on each
 * group of each rank, against formulas written here from the model's sizes alone; docs/parallel.md explains them.
 * At the end, as comments, the tables of that page. */
#include "tests/on_grid.h"
#include "src/config.h"
#include <stdlib.h>

enum { TP, CP, PP, ZERO, GROUPS };
static const char *const group_name[GROUPS] = {"tp", "cp", "pp", "dp x cp"};

/* Of one rank: calls and bytes by group and kind (src/comm.h says what is counted). */
typedef struct counts {
  int64_t calls[GROUPS][SK_COMM_KINDS], bytes[GROUPS][SK_COMM_KINDS];
} counts;

/* The sizes of one micro-batch on one rank. */
typedef struct shape {
  int n[SK_NAXES];
  int64_t b, T, tokens, local; /* local: of the residual stream, tokens / tp */
  int64_t e;                   /* bytes of an activation */
  int recompute;
} shape;

static shape shape_of(const int n[SK_NAXES], int64_t b, int64_t T, int64_t e, int recompute) {
  shape s = {.b = b, .T = T, .tokens = b * T / n[SK_CP], .e = e, .recompute = recompute};
  memcpy(s.n, n, sizeof s.n);
  s.local = s.tokens / n[SK_TP];
  return s;
}

/* ---- formulas ---- */

/* `calls` collectives in which every rank sends `bytes` to each of the others. */
static void add(counts *c, const shape *s, int group, int kind, int64_t calls, int64_t bytes) {
  int ranks = group == TP ? s->n[SK_TP] : s->n[SK_CP];
  if (ranks == 1) return;
  c->calls[group][kind] += calls;
  c->bytes[group][kind] += calls * (ranks - 1) * bytes;
}

static int64_t at_least_1(int64_t units, int tp) { return units > tp ? units / tp : 1; }

static int64_t halo_bytes(const sk_layer_cfg *l, const shape *s) {
  const sk_model_cfg *m = &l->m;
  int64_t cd = m->mamba_d_ssm / s->n[SK_TP] + 2 * at_least_1(m->mamba_n_groups, s->n[SK_TP]) * m->mamba_d_state;
  return 2 * s->b * (m->mamba_d_conv - 1) * cd * s->e;
}

static int64_t state_bytes(const sk_layer_cfg *l, const shape *s) {
  const sk_model_cfg *m = &l->m;
  return 2 * s->b * (m->mamba_n_heads / s->n[SK_TP]) * (m->mamba_d_head * m->mamba_d_state + 1) * 4;
}

static int64_t kv_bytes(const sk_layer_cfg *l, const shape *s) {
  return s->tokens * 2 * at_least_1(l->m.num_key_value_heads, s->n[SK_TP]) * l->m.head_dim * s->e;
}

static int64_t stream_bytes(const sk_model_cfg *m, const shape *s) { return s->local * m->hidden_size * s->e; }

static bool norm_is_shared(const sk_layer_cfg *l, const shape *s) {
  return l->mixer != '*' && l->m.mamba_rms_norm && l->m.mamba_n_groups % s->n[SK_TP] != 0;
}

/* 4 bytes for each token and group. */
static void gated_norm(counts *c, const sk_layer_cfg *l, const shape *s) {
  if (norm_is_shared(l, s)) add(c, s, TP, SK_COMM_REDUCE, 1, s->tokens * l->m.mamba_n_groups * 4);
}

/* The exchanges over cp that both passes have: halo, states, keys and values. */
static void over_cp(counts *c, const sk_layer_cfg *l, const shape *s) {
  if (l->mixer != '*') {
    add(c, s, CP, SK_COMM_GATHER, 1, halo_bytes(l, s));
    add(c, s, CP, SK_COMM_GATHER, 1, state_bytes(l, s));
  }
  if (l->mixer != 'M') add(c, s, CP, SK_COMM_GATHER, 1, kv_bytes(l, s));
}

static void layer_forward(counts *c, const sk_layer_cfg *l, const shape *s) {
  const int64_t blocks = 1 + l->mlp, x = stream_bytes(&l->m, s);
  add(c, s, TP, SK_COMM_GATHER, blocks, x);
  add(c, s, TP, SK_COMM_SCATTER, blocks, x);
  gated_norm(c, l, s);
  over_cp(c, l, s);
}

/* Gathers of the block's input, for the weight gradients, and of the output's gradient. */
static void layer_backward(counts *c, const sk_layer_cfg *l, const shape *s) {
  const int64_t blocks = 1 + l->mlp, x = stream_bytes(&l->m, s);
  if (s->recompute == SK_RECOMPUTE_FULL) layer_forward(c, l, s);
  if (s->recompute == SK_RECOMPUTE_SELECTIVE) gated_norm(c, l, s);
  add(c, s, TP, SK_COMM_GATHER, 2 * blocks, x);
  add(c, s, TP, SK_COMM_SCATTER, blocks, x);
  gated_norm(c, l, s);
  over_cp(c, l, s);
  if (l->mixer != 'M') add(c, s, CP, SK_COMM_SCATTER, 1, kv_bytes(l, s));
}

/* The parameters of a layer that several tp ranks have alike, and whose gradients they add once per step. */
static int64_t shared_rows(const sk_layer_cfg *l, int tp) {
  const sk_model_cfg *m = &l->m;
  int64_t d = m->hidden_size, n = d * (1 + l->mlp) + d * (l->mlp && m->mlp_bias);
  if (l->mixer != 'M') {
    n += d * m->attention_bias;
    if (m->num_key_value_heads < tp) n += 2 * m->num_key_value_heads * m->head_dim * (d + m->attention_bias);
  }
  if (l->mixer != '*') {
    n += d * m->projectors_bias;
    if (m->mamba_n_groups < tp)
      n += 2 * m->mamba_n_groups * m->mamba_d_state *
           (d + m->mamba_proj_bias + m->mamba_d_conv + m->mamba_conv_bias);
  }
  return n;
}

/* What the parts of the model that a rank has send in one forward pass, and with `train` in the backward pass. */
static void one_micro(counts *c, const sk_config *cfg, const shape *s, int n_chunks, const sk_chunk *chunk,
                      bool train) {
  const int64_t x = stream_bytes(&cfg->model, s);
  for (int k = 0; k < n_chunks; k++) {
    for (int64_t i = chunk[k].layer0; i < chunk[k].layer0 + chunk[k].layers; i++) {
      layer_forward(c, &cfg->layer[i], s);
      if (train) layer_backward(c, &cfg->layer[i], s);
    }
    if (chunk[k].first) {
      add(c, s, TP, SK_COMM_SCATTER, 1, x);            /* embedding */
      if (train) add(c, s, TP, SK_COMM_GATHER, 1, x);
    }
    if (chunk[k].last) {
      add(c, s, TP, SK_COMM_GATHER, 1, x);             /* head */
      add(c, s, TP, SK_COMM_GATHER, 1, 3 * s->tokens * 4); /* maximum, sum and the label's logit */
      if (train) add(c, s, TP, SK_COMM_SCATTER, 1, x);
    }
    int messages = !chunk[k].last + (train && !chunk[k].first);
    if (s->n[SK_PP] == 1) continue;
    c->calls[PP][SK_COMM_SEND] += messages;
    c->bytes[PP][SK_COMM_SEND] += messages * x;
  }
}

/* Once per step. The bytes of ZeRO-1 depend on where slices end; they are checked for the whole group. */
static void one_step(counts *c, const sk_config *cfg, const shape *s, int n_chunks, const sk_chunk *chunk,
                     int64_t vocab_rows) {
  const int tp = s->n[SK_TP], pp = s->n[SK_PP], parts = s->n[SK_DP] * s->n[SK_CP];
  int buckets = 0;
  for (int k = 0; k < n_chunks; k++) {
    for (int64_t i = chunk[k].layer0; i < chunk[k].layer0 + chunk[k].layers; i++)
      add(c, s, TP, SK_COMM_REDUCE, 1, shared_rows(&cfg->layer[i], tp) * 4);
    if (chunk[k].last) add(c, s, TP, SK_COMM_REDUCE, 1, cfg->model.hidden_size * 4);
    buckets += (int)chunk[k].layers + chunk[k].first + chunk[k].last;
  }
  bool end = chunk[0].first || chunk[n_chunks - 1].last;
  if (cfg->model.tie_word_embeddings && pp > 1 && end) {
    c->calls[PP][SK_COMM_SEND]++;
    c->bytes[PP][SK_COMM_SEND] += vocab_rows * cfg->model.hidden_size * 4;
  }
  if (parts > 1) c->calls[ZERO][SK_COMM_SEND] += 2 * (parts - 1) * buckets;
}

/* ---- measuring ---- */

static sk_comm_stats *stats_of(const on_grid *o, int group) {
  const sk_engine *g = &o->engine;
  sk_group *const all[GROUPS] = {g->ctx.tp, g->ctx.cp, g->pp, g->zero};
  return all[group] ? g->ctx.comm->stats(all[group]) : NULL;
}

static void clear(const on_grid *o) {
  for (int k = 0; k < GROUPS; k++)
    if (stats_of(o, k)) *stats_of(o, k) = (sk_comm_stats){0};
}

static void take(const on_grid *o, counts *c) {
  for (int k = 0; k < GROUPS; k++) {
    const sk_comm_stats *s = stats_of(o, k);
    if (!s) continue;
    memcpy(c->calls[k], s->calls, sizeof s->calls);
    memcpy(c->bytes[k], s->bytes, sizeof s->bytes);
  }
}

static void measure_eval(on_grid *o, const batch *k, counts *c) {
  clear(o);
  sk_engine_eval(&o->engine, o->engine.b, k->ids, k->label, k->start);
  take(o, c);
}

static void measure_step(on_grid *o, const batch *k, counts *c) {
  double norm;
  clear(o);
  on_grid_step(o, 1, k, &norm);
  sk_optim_need(&o->engine.opt, &o->engine.ctx, -1);
  take(o, c);
}

static bool same(const counts *got, const counts *want, const char *what) {
  bool ok = true;
  for (int g = 0; g < GROUPS; g++)
    for (int k = 0; k < SK_COMM_KINDS; k++) {
      bool bytes = g == ZERO || got->bytes[g][k] == want->bytes[g][k];
      if (got->calls[g][k] == want->calls[g][k] && bytes) continue;
      ok = false;
      fprintf(stderr, "# rank %d, %s: %s over %s: %lld calls, %lld bytes; want %lld, %lld\n", tap_rank, what,
              sk_comm_kind_name[k], group_name[g], (long long)got->calls[g][k], (long long)got->bytes[g][k],
              (long long)want->calls[g][k], (long long)want->bytes[g][k]);
    }
  return ok;
}

/* All ranks of a dp x cp group together: every part of every bucket goes to its owner and, updated, back. */
static bool zero_bytes(const on_grid *o, const counts *got) {
  const sk_registry *r = o->engine.ctx.reg;
  const int64_t parts = o->grid.n[SK_DP] * o->grid.n[SK_CP];
  int64_t all, held = 0;
  SK_MPI(MPI_Allreduce(&got->bytes[ZERO][SK_COMM_SEND], &all, 1, MPI_INT64_T, MPI_SUM, o->grid.zero));
  for (int k = 0; k < r->n_buckets; k++) held += r->bucket[k].hi - r->bucket[k].lo;
  bool padding = held >= r->count && held < r->count + 64 * r->n; /* parameters start at multiples of 64 */
  if (all != 2 * (parts - 1) * held * 4 || !padding)
    fprintf(stderr, "# rank %d: ZeRO over %lld ranks sent %lld bytes for %lld elements (%lld parameters)\n", tap_rank,
            (long long)parts, (long long)all, (long long)held, (long long)r->count);
  return all == 2 * (parts - 1) * held * 4 && padding;
}

/* Collective over the job. Counts of an evaluation and of a step; zeros on ranks without work. */
static void measure(sk_config *c, const int n[SK_NAXES], counts *eval, counts *train, bool *right) {
  on_grid o;
  batch k;
  const bool mine = on_grid_open(&o, c, n);
  *eval = *train = (counts){0};
  right[0] = right[1] = right[2] = true;
  if (mine) {
    const sk_model *m = &o.engine.model;
    const shape s = shape_of(n, c->train.micro_batch, c->data.sequence, 4, c->train.recompute);
    counts want_eval = {0}, want = {0};
    batch_create(&k, c, 77);
    sk_engine_init(&o.engine);
    measure_eval(&o, &k, eval);
    measure_step(&o, &k, train);
    one_micro(&want_eval, c, &s, m->n_chunks, m->chunk, false);
    for (int64_t i = 0; i < c->train.global_batch / n[SK_DP] / c->train.micro_batch; i++)
      one_micro(&want, c, &s, m->n_chunks, m->chunk, true);
    one_step(&want, c, &s, m->n_chunks, m->chunk, m->nv);
    right[0] = same(eval, &want_eval, "evaluation");
    right[1] = same(train, &want, "step");
    right[2] = zero_bytes(&o, train);
    batch_free(&k);
  }
  on_grid_close(&o);
}

/* ---- cases ---- */

static void model(sk_config *c, int layers, const char *const *pattern, int64_t T) {
  small_config(c, layers, pattern);
  c->data.sequence = T;
  c->train.global_batch = 8;
  c->train.micro_batch = 2;
  c->optimizer.lr = 1e-3;
  c->optimizer.betas[0] = 0.9, c->optimizer.betas[1] = 0.95;
  c->optimizer.eps = 1e-8;
  c->optimizer.clip = 1;
}

static const int grid_list[][SK_NAXES] = { /* pp, dp, cp, tp */
    {1, 1, 1, 2}, {1, 1, 1, 4}, {1, 1, 2, 1}, {1, 1, 4, 1}, {1, 1, 2, 2}, {1, 1, 2, 4}, {2, 1, 1, 1},
    {4, 1, 1, 1}, {1, 2, 1, 1}, {1, 4, 1, 1}, {1, 2, 2, 1}, {2, 2, 1, 2}, {2, 1, 2, 2}, {4, 1, 1, 2}};

static void count(sk_config *c, const int n[SK_NAXES], const char *name) {
  static const char *const how[] = {"", ", selective recomputation", ", full recomputation"};
  counts eval, train;
  bool right[3];
  measure(c, n, &eval, &train, right);
  tap_ok(right[0], "%s on %s: evaluation sends what the formulas say", name, grid_text(n));
  tap_ok(right[1], "%s on %s%s: a step does", name, grid_text(n), how[c->train.recompute]);
  if (n[SK_DP] * n[SK_CP] > 1) tap_ok(right[2], "%s on %s: and so does ZeRO-1", name, grid_text(n));
}

static void all_cases(void) {
  static const char *const hybrid[] = {"P-", "P-", "P-", "P-"}, *const mixed[] = {"M-", "*", "P-", "M"};
  sk_config c;
  model(&c, 4, hybrid, 32);
  for (size_t i = 0; i < sizeof grid_list / sizeof *grid_list; i++) {
    c.train.recompute = (int)i % 3;
    count(&c, grid_list[i], "P-");
  }
  sk_free(c.layer);
  model(&c, 4, mixed, 32);
  c.model.tie_word_embeddings = true;
  c.model.attention_bias = c.model.mlp_bias = c.model.mamba_proj_bias = c.model.projectors_bias = true;
  c.model.mamba_n_groups = c.model.num_key_value_heads = 1;
  for (int i = 0; i < 4; i++) c.layer[i].m = c.model;
  for (size_t i = 0; i < sizeof grid_list / sizeof *grid_list; i += 3) count(&c, grid_list[i], "mixed");
  c.parallel.schedule = SK_SCHED_INTERLEAVED;
  c.parallel.virtual_stages = 2;
  count(&c, (const int[SK_NAXES]){2, 1, 1, 2}, "mixed, interleaved");
  c.parallel.virtual_stages = 1;
  c.parallel.schedule = SK_SCHED_ZB_H1;
  count(&c, (const int[SK_NAXES]){2, 1, 2, 2}, "mixed, zb-h1");
  sk_free(c.layer);
}

/* ---- what the formulas mean, from the counts alone ---- */

/* Evaluation and step of `layers` layers of one kind on a grid. */
static void counts_of(const char *layer, int layers, int64_t T, const int n[SK_NAXES], counts *eval, counts *train) {
  const char *pattern[8];
  bool right[3];
  sk_config c;
  for (int i = 0; i < layers; i++) pattern[i] = layer;
  model(&c, layers, pattern, T);
  c.train.global_batch = 2; /* one micro-batch */
  measure(&c, n, eval, train, right);
  sk_free(c.layer);
}

/* Two more layers, halved. */
static void layer_alone(const char *layer, int64_t T, const int n[SK_NAXES], counts *eval, counts *train) {
  counts a, b, ta, tb;
  counts_of(layer, 1, T, n, &a, &ta);
  counts_of(layer, 3, T, n, &b, &tb);
  for (int g = 0; g < GROUPS; g++)
    for (int k = 0; k < SK_COMM_KINDS; k++) {
      eval->calls[g][k] = (b.calls[g][k] - a.calls[g][k]) / 2;
      eval->bytes[g][k] = (b.bytes[g][k] - a.bytes[g][k]) / 2;
      train->calls[g][k] = (tb.calls[g][k] - ta.calls[g][k]) / 2;
      train->bytes[g][k] = (tb.bytes[g][k] - ta.bytes[g][k]) / 2;
    }
}

static void falcon_layer_tp(void) {
  counts f, t;
  layer_alone("P-", 32, (const int[SK_NAXES]){1, 1, 1, 4}, &f, &t);
  const int64_t *calls = f.calls[TP], x = 3 * (2 * 32 / 4) * 24 * 4;
  bool busy = tap_rank < 4;
  tap_ok(!busy || (calls[SK_COMM_GATHER] == 2 && calls[SK_COMM_SCATTER] == 2),
         "a Falcon-H1 layer's forward pass on tp 4: 2 gathers and 2 reduce-scatters");
  tap_ok(!busy || (f.bytes[TP][SK_COMM_GATHER] == 2 * x && f.bytes[TP][SK_COMM_SCATTER] == 2 * x),
         "each of a rank's share of the activations, %lld bytes sent", (long long)x);
  tap_ok(!busy || (calls[SK_COMM_REDUCE] == 1 && f.bytes[TP][SK_COMM_REDUCE] == 3 * 2 * 32 * 2 * 4),
         "and one sum of 4 bytes for each token and group");
  layer_alone("P-", 32, (const int[SK_NAXES]){1, 1, 1, 2}, &f, &t);
  tap_ok(tap_rank >= 2 || (f.calls[TP][SK_COMM_GATHER] == 2 && f.calls[TP][SK_COMM_REDUCE] == 0),
         "on tp 2 no rank shares a group, and there is no such sum");
}

static int64_t all_bytes(const counts *c, int group) {
  int64_t sum = 0;
  for (int k = 0; k < SK_COMM_KINDS; k++) sum += c->bytes[group][k];
  return sum;
}

static void lengths(void) {
  static const int n[SK_NAXES] = {1, 1, 4, 1};
  counts f[2][3], t[2][3];
  static const char *const kind[] = {"M", "*", "P"};
  for (int i = 0; i < 2; i++)
    for (int k = 0; k < 3; k++) layer_alone(kind[k], i ? 128 : 32, n, &f[i][k], &t[i][k]);
  bool busy = tap_rank < 4;
  const int64_t ssm = all_bytes(&f[0][0], CP), both = all_bytes(&t[0][0], CP), kv = all_bytes(&f[0][1], CP);
  const int64_t want = 3 * (2 * 2 * 4 * (8 * 10 + 1) * 4 + 2 * 2 * 3 * (32 + 2 * 2 * 10) * 4);
  tap_ok(!busy || ssm == want, "SSM over cp 4, forward: %lld bytes, 2 segments' states and halos", (long long)ssm);
  tap_ok(!busy || both == 2 * ssm, "twice that with the backward pass");
  tap_ok(!busy || (all_bytes(&f[1][0], CP) == ssm && all_bytes(&t[1][0], CP) == both),
         "the same at 4 times the sequence length");
  tap_ok(!busy || kv == 3 * (2 * 32 / 4) * 2 * 2 * 6 * 4, "attention over cp 4, forward: %lld bytes of keys and values",
         (long long)kv);
  tap_ok(!busy || all_bytes(&t[0][1], CP) == 3 * kv, "three times that with the backward pass");
  tap_ok(!busy || (all_bytes(&f[1][1], CP) == 4 * kv && all_bytes(&t[1][1], CP) == 12 * kv),
         "and 4 times as many at 4 times the sequence length");
  tap_ok(!busy || (all_bytes(&f[0][2], CP) == ssm + kv && all_bytes(&t[1][2], CP) == both + 12 * kv),
         "a hybrid mixer sends what its two branches send");
}

/* ---- the tables of docs/parallel.md ---- */

static const char *mb(int64_t bytes) {
  static char text[8][32];
  static int at;
  at = (at + 1) % 8;
  snprintf(text[at], sizeof text[at], "%.3g MB", (double)bytes / 1e6);
  return text[at];
}

static void read_model(const char *file, sk_config *c) {
  sk_err e = {0};
  const char *src = getenv("SAKER_SRCDIR");
  char *path = sk_strf("%s/input/%s", src ? src : ".", file), *json = sk_calloc(1, 1 << 16);
  FILE *f = fopen(path, "r");
  SK_CHECK(f && fread(json, 1, (1 << 16) - 1, f) > 0, "cannot read %s", path);
  fclose(f);
  SK_CHECK(sk_config_from_hf(json, path, c, &e) == SK_OK, "%s", e.msg);
  sk_free(path);
  sk_free(json);
}

/* One layer of a released model: bytes that a rank sends for one sequence in bf16. */
static void released(const char *name, const char *file, int tp, int cp, int64_t T) {
  sk_config c;
  read_model(file, &c);
  const sk_layer_cfg *l = &c.layer[0];
  const sk_model_cfg *m = &l->m;
  const shape s = shape_of((const int[SK_NAXES]){1, 1, cp, tp}, 1, T, 2, SK_RECOMPUTE_NONE);
  int64_t cd = m->mamba_d_ssm + 2 * m->mamba_n_groups * m->mamba_d_state;
  int64_t ulysses = 2 * (2 * m->mamba_d_ssm + cd + m->mamba_n_heads) / tp * (T / cp) * (cp - 1) / cp;
  counts f = {0}, t = {0};
  layer_forward(&f, l, &s);
  layer_forward(&t, l, &s), layer_backward(&t, l, &s);
  int64_t ssm = (cp - 1) * (state_bytes(l, &s) + halo_bytes(l, &s)), kv = (cp - 1) * kv_bytes(l, &s);
  tap_diag("%-5s tp %d cp %d %4lldK | tp fwd %9s step %9s | cp: state+halo %9s K,V %9s step %9s | a2a for SSM %9s",
           name, tp, cp, (long long)T >> 10, mb(all_bytes(&f, TP)), mb(all_bytes(&t, TP)), mb(ssm), mb(kv),
           mb(all_bytes(&t, CP)), mb(ulysses));
  sk_config_free(&c);
}

static void tables(void) {
  static const struct { const char *name, *file; } m[] = {
      {"0.5B", "falcon-h1-0.5b.json"}, {"7B", "falcon-h1-7b.json"}, {"34B", "falcon-h1-34b.json"}};
  tap_diag("Bytes that one rank sends per layer and sequence, by formula, bf16:");
  for (int i = 0; i < 3; i++) {
    released(m[i].name, m[i].file, 4, 1, 8192);
    released(m[i].name, m[i].file, 1, 8, 65536);
    released(m[i].name, m[i].file, 1, 8, 262144);
    released(m[i].name, m[i].file, 4, 8, 262144);
  }
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  SK_CHECK(tap_size == 8, "8 ranks are needed");
  all_cases();
  falcon_layer_tp();
  lengths();
  if (tap_rank == 0) tables();
  return tap_done();
}
