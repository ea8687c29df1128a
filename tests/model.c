/* model.c: whole-model properties that the reference files (one pattern, no documents) cannot show. */
#include "tests/tap.h"
#include "tests/small_model.h"

enum { B = 2, T = 37 };

typedef struct tokens {
  int32_t ids[B * T], label[B * T], start[B * T];
} tokens;

static void make_tokens(tokens *k, int64_t vocab) {
  small_ids(k->ids, B * T, vocab, 11);
  for (int i = 0; i < B * T; i++) {
    k->label[i] = i % T + 1 < T ? k->ids[i + 1] : -1;
    k->start[i] = 0;
  }
}

static double run(sk_engine *g, const tokens *k, double scale) {
  if (scale != 0) sk_engine_step(g, k->ids, k->label, k->start, scale);
  else sk_engine_eval(g, B, k->ids, k->label, k->start);
  return sk_engine_take_loss(g);
}

/* Worst error over the gradients of all parameters that `small` has, against those of `large`. */
static double grads_error(const sk_engine *small, const sk_engine *large, const char **name) {
  double worst = 0;
  for (int i = 0; i < small->ctx.reg->n; i++) {
    const sk_param *p = &small->ctx.reg->p[i];
    int64_t n;
    double err = small_error(small->ctx.grads + p->offset, small_at(large, large->ctx.grads, p->name, &n),
                             p->count);
    if (err >= worst) worst = err, *name = p->name;
  }
  return worst;
}

/* A hybrid layer whose other branch is silenced (its output projection is zero) is the pure layer. */
static void pure_against_hybrid(const char *pure, const char *silenced) {
  sk_config a, b;
  sk_engine small, large;
  tokens k;
  int64_t n;
  const char *name = "";
  small_config(&a, 2, (const char *const[]){pure, pure});
  small_config(&b, 2, (const char *const[]){"P-", "P-"});
  make_tokens(&k, a.model.vocab_size);
  small_engine(&small, &a, B, T);
  small_engine(&large, &b, B, T);
  small_copy_weights(&small, &large);
  for (int i = 0; i < 2; i++) {
    char *full = sk_strf("model.layers.%d.%s", i, silenced);
    float *w = small_at(&large, (float *)large.ctx.weights, full, &n);
    memset(w, 0, (size_t)n * sizeof *w);
    sk_free(full);
  }
  double l1 = run(&small, &k, 1.0 / (B * (T - 1))), l2 = run(&large, &k, 1.0 / (B * (T - 1)));
  tap_close(l1, l2, 1e-6, "%s is P- without %s: loss", pure, silenced);
  double err = grads_error(&small, &large, &name);
  tap_ok(err <= 1e-5, "%s is P- without %s: gradients, worst %s %.3g", pure, silenced, name, err);
  sk_engine_close(&small);
  sk_engine_close(&large);
  sk_free(a.layer);
  sk_free(b.layer);
}

/* The directional derivative of the loss along its own gradient, by central differences. */
static void finite_difference(const char *const *pattern, int layers, bool tied) {
  sk_config c;
  sk_engine g;
  tokens k;
  small_config(&c, layers, pattern);
  c.model.tie_word_embeddings = tied;
  c.layer[0].m.mamba_d_state = 7; /* a per-layer override */
  c.layer[0].m.num_attention_heads = 2;
  make_tokens(&k, c.model.vocab_size);
  small_engine(&g, &c, B, T);
  double scale = 1.0 / (B * (T - 1)), norm2 = 0, eps = 1e-2;
  run(&g, &k, scale);
  int64_t n = g.ctx.reg->total;
  float *w = (float *)g.ctx.weights, *base = sk_malloc((size_t)n * sizeof *base);
  memcpy(base, w, (size_t)n * sizeof *base);
  for (int64_t i = 0; i < n; i++) norm2 += (double)g.ctx.grads[i] * g.ctx.grads[i];
  double h = eps / sqrt(norm2), side[2];
  for (int s = 0; s < 2; s++) {
    for (int64_t i = 0; i < n; i++) w[i] = (float)(base[i] + (s ? -h : h) * g.ctx.grads[i]);
    side[s] = run(&g, &k, 0) * scale;
  }
  char text[64] = "";
  for (int i = 0; i < layers; i++) strcat(text, pattern[i]);
  tap_close((side[0] - side[1]) / (2 * h), norm2, 2e-3, "%s%s: derivative along the gradient", text,
            tied ? ", tied" : "");
  sk_free(base);
  sk_engine_close(&g);
  sk_free(c.layer);
}

/* Two documents in one sequence, isolated, give the losses and gradients of two separate sequences
 * (the second starts inside a chunk; RoPE is relative, so its positions do not matter). */
static void documents(void) {
  const char *const pattern[] = {"P-", "P-"};
  enum { CUT = 13 };
  sk_config c;
  sk_engine one, two;
  int32_t ids[T], label[T], start[T], from_zero[T] = {0};
  const char *name = "";
  small_config(&c, 2, pattern);
  small_engine(&one, &c, 1, T);
  small_engine(&two, &c, 1, T);
  small_ids(ids, T, c.model.vocab_size, 5);
  for (int t = 0; t < T; t++) {
    start[t] = t < CUT ? 0 : CUT;
    label[t] = t == CUT - 1 || t == T - 1 ? -1 : ids[t + 1];
  }
  small_micro(&one, 1, T, ids, label, start, 0.1);
  small_micro(&two, 1, CUT, ids, label, from_zero, 0.1);
  small_micro(&two, 1, T - CUT, ids + CUT, label + CUT, from_zero, 0.1);
  tap_close(sk_engine_take_loss(&one), sk_engine_take_loss(&two), 1e-6, "isolated documents: loss");
  double err = grads_error(&one, &two, &name);
  tap_ok(err <= 2e-5, "isolated documents: gradients, worst %s %.3g", name, err);
  for (int t = 0; t < T; t++) start[t] = 0;
  small_micro(&one, 1, T, ids, label, start, 0);
  small_micro(&two, 1, CUT, ids, label, from_zero, 0);
  small_micro(&two, 1, T - CUT, ids + CUT, label + CUT, from_zero, 0);
  double joined = sk_engine_take_loss(&one), apart = sk_engine_take_loss(&two);
  tap_ok(fabs(joined - apart) > 1e-3 * apart, "concatenated documents do see each other");
  sk_engine_close(&one);
  sk_engine_close(&two);
  sk_free(c.layer);
}

/* Gradients of a batch are those of its micro-batches added up; a change in a label's future does not
 * change the past. */
static void accumulation(void) {
  const char *const pattern[] = {"P-", "M"};
  sk_config c;
  sk_engine whole, parts;
  tokens k;
  const char *name = "";
  small_config(&c, 2, pattern);
  make_tokens(&k, c.model.vocab_size);
  small_engine(&whole, &c, B, T);
  small_engine(&parts, &c, B, T);
  double all = run(&whole, &k, 0.01);
  for (int i = 0; i < B; i++)
    small_micro(&parts, 1, T, k.ids + i * T, k.label + i * T, k.start + i * T, 0.01);
  tap_close(sk_engine_take_loss(&parts), all, 1e-6, "micro-batches: loss");
  double err = grads_error(&parts, &whole, &name);
  tap_ok(err <= 1e-5, "micro-batches: gradients, worst %s %.3g", name, err);
  sk_engine_close(&whole);
  sk_engine_close(&parts);
  sk_free(c.layer);
}

/* The plan that --dry-run prints is what is allocated, and enough. */
static void memory_plan(void) {
  const char *const pattern[] = {"P-", "*", "M-"};
  sk_config c;
  sk_engine g;
  tokens k;
  sk_err e = {0};
  size_t plan[SK_PARTS];
  small_config(&c, 3, pattern);
  c.train.micro_batch = B;
  c.data.sequence = T;
  c.train.global_batch = B;
  c.parallel.virtual_stages = 1;
  const int n[SK_NAXES] = {1, 1, 1, 1};
  tap_ok(sk_engine_plan(&c, &sk_cpu_ops, n, 0, plan, NULL, NULL, 0, &e) == SK_OK, "memory plan");
  make_tokens(&k, c.model.vocab_size);
  small_engine(&g, &c, B, T);
  run(&g, &k, 1);
  bool same = g.slot[0].saved.peak == plan[SK_PART_SAVED] && g.ctx.scratch.peak == plan[SK_PART_SCRATCH];
  for (int i = 0; i < SK_PART_SAVED; i++) same = same && g.part[i].peak == plan[i];
  tap_ok(same, "a training step uses exactly the planned memory");
  sk_engine_close(&g);
  sk_free(c.layer);
}

/* Initial weights: functions of seed and name, whole or in pieces. */
static void initialisation(void) {
  const char *const pattern[] = {"P-"};
  sk_config c;
  sk_model m;
  sk_err e = {0};
  float whole[40], piece[40];
  small_config(&c, 1, pattern);
  c.model.pad_token_id = 3;
  sk_grid one;
  sk_grid_pretend(&one, (const int[SK_NAXES]){1, 1, 1, 1}, 0);
  const sk_chunk all = {0, c.n_layers, true, true};
  tap_ok(sk_model_create(&m, &c, &one, 1, &all, T, &e) == SK_OK, "registry");
  const sk_param *p = &m.reg.p[sk_param_find(&m.reg, "model.layers.0.mamba.in_proj.weight")];
  sk_param_init(p, 7, 0, 40, whole);
  sk_param_init(p, 7, 0, 15, piece);
  sk_param_init(p, 7, 15, 25, piece + 15);
  tap_ok(memcmp(whole, piece, sizeof whole) == 0, "initial weights do not depend on how they are cut");
  sk_param_init(p, 8, 0, 40, piece);
  tap_ok(memcmp(whole, piece, sizeof whole) != 0, "another seed gives other weights");
  const sk_param *emb = &m.reg.p[m.embed];
  sk_param_init(emb, 7, 3 * emb->row_len, emb->row_len, whole);
  bool zero = true;
  for (int64_t i = 0; i < emb->row_len; i++) zero = zero && whole[i] == 0;
  tap_ok(zero, "the padding row starts at zero");
  int dt = sk_param_find(&m.reg, "model.layers.0.mamba.dt_bias");
  int a_log = sk_param_find(&m.reg, "model.layers.0.mamba.A_log");
  sk_param_init(&m.reg.p[dt], 7, 0, 4, whole);
  sk_param_init(&m.reg.p[a_log], 7, 0, 4, piece);
  bool range = true;
  for (int i = 0; i < 4; i++) {
    double step = log1p(exp((double)whole[i])), A = exp((double)piece[i]);
    range = range && step > 9e-4 && step < 0.11 && A >= 1 && A <= 16;
  }
  tap_ok(range, "dt in [0.001, 0.1] and A in [1, 16] at the start");
  sk_model_free(&m);
  sk_free(c.layer);
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  pure_against_hybrid("M-", "self_attn.o_proj.weight");
  pure_against_hybrid("*-", "mamba.out_proj.weight");
  finite_difference((const char *const[]){"M", "*-", "M-", "P-"}, 4, false);
  finite_difference((const char *const[]){"P-", "*", "M"}, 3, true);
  documents();
  accumulation();
  memory_plan();
  initialisation();
  return tap_done();
}
