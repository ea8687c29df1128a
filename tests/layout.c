/* layout.c: which grids are taken and which refused, with what reason and which advice; how layers are cut over
 * stages; how many parameters a rank holds. Nothing is run: see tests/plan.c for what a rank really takes. */
#include "tests/small_model.h"
#include "tests/tap.h"
#include "src/device.h"
#include "src/layout.h"
#include "src/split.h"
#include <stdlib.h>

/* ---- decks ---- */

enum { LAYERS = 4 };

/* A model and a batch that work on many grids: 8 heads, 8 SSM heads in 2 groups, 64 tokens, 16 micro-batches. */
static void deck(sk_config *c) {
  small_config(c, LAYERS, (const char *const[]){"P-", "P-", "P-", "P-"});
  c->model.num_attention_heads = c->model.mamba_n_heads = 8;
  c->model.mamba_d_ssm = 64;
  for (int i = 0; i < LAYERS; i++) c->layer[i].m = c->model;
  c->data.sequence = 64;
  c->train.global_batch = 32;
  c->train.micro_batch = 2;
  c->parallel.tp = c->parallel.cp = c->parallel.pp = c->parallel.virtual_stages = 1;
}

static void grid(sk_config *c, int tp, int cp, int pp) {
  c->parallel.tp = tp, c->parallel.cp = cp, c->parallel.pp = pp;
}

static bool taken(const sk_config *c, int tp, int cp, int pp, int ranks) {
  sk_config d = *c;
  sk_err e = {0};
  int n[SK_NAXES];
  grid(&d, tp, cp, pp);
  if (sk_layout_grid(&d, ranks, n, &e) != SK_OK) return false;
  return n[SK_TP] == tp && n[SK_CP] == cp && n[SK_PP] == pp && n[SK_DP] * tp * cp * pp == ranks;
}

/* ---- advice ---- */

static double distance(const sk_config *c, int tp, int cp, int pp) {
  return fabs(log2(tp / (double)c->parallel.tp)) + fabs(log2(cp / (double)c->parallel.cp)) +
         fabs(log2(pp / (double)c->parallel.pp));
}

/* The grids after "Grids that work": each must be taken, none that is not listed may be nearer, and where nothing
 * is listed nothing may work. Returns how many, -1 when something is wrong. */
static int grids_advised(const sk_config *c, int ranks, const char *msg) {
  double farthest = -1;
  int listed = 0, nearer = 0, working = 0, tp, cp, pp, dp, used;
  const char *at = strstr(msg, "Grids that work on");
  if (at && (at = strchr(at, ':')))
    for (at++; sscanf(at, " tp %d x cp %d x pp %d x dp %d%n", &tp, &cp, &pp, &dp, &used) == 4; at += used + 1) {
      if (tp * cp * pp * dp != ranks || !taken(c, tp, cp, pp, ranks)) {
        tap_diag("advised but refused: tp %d x cp %d x pp %d x dp %d on %d ranks", tp, cp, pp, dp, ranks);
        return -1;
      }
      if (distance(c, tp, cp, pp) < farthest - 1e-9) return -1; /* the nearest first */
      farthest = distance(c, tp, cp, pp);
      listed++;
      if (at[used] != ',') break;
    }
  for (tp = 1; tp <= ranks; tp++)
    for (cp = 1; tp * cp <= ranks; cp++)
      for (pp = 1; tp * cp * pp <= ranks; pp++) {
        if (ranks % (tp * cp * pp) || !taken(c, tp, cp, pp, ranks)) continue;
        working++;
        nearer += distance(c, tp, cp, pp) < farthest - 1e-9;
      }
  if (working && !listed) tap_diag("%d grids work and none is listed", working);
  if ((listed == 0) != (working == 0) || nearer > listed || listed > working) return -1;
  return listed;
}

/* The numbers of ranks on which the deck's own tp, cp and pp would work. */
static int ranks_advised(const sk_config *c, const char *msg) {
  int listed = 0, ranks, used;
  const char *at = strstr(msg, "so many ranks:");
  if (!at) return 0;
  for (at = strchr(at, ':') + 1; sscanf(at, " %d%n", &ranks, &used) == 1; at += used + 1) {
    if (!taken(c, (int)c->parallel.tp, (int)c->parallel.cp, (int)c->parallel.pp, ranks)) {
      tap_diag("advised but refused: %d ranks", ranks);
      return -1;
    }
    listed++;
    if (at[used] != ',') break;
  }
  return listed;
}

/* The deck is refused with a message that has both words, and its advice is right. */
static void refused(const sk_config *c, int ranks, const char *word, const char *other) {
  sk_err e = {0};
  int n[SK_NAXES], code = sk_layout_grid(c, ranks, n, &e);
  bool says = code == SK_USAGE && strstr(e.msg, word) && strstr(e.msg, other);
  if (!says) tap_diag("code %d: %s", code, e.msg);
  tap_ok(says, "refused: %s ... %s", word, other);
  int grids = grids_advised(c, ranks, e.msg), numbers = ranks_advised(c, e.msg);
  bool right = grids >= 0 && numbers >= 0;
  bool nothing = grids == 0 && numbers == 0 && (strstr(e.msg, "No grid of") || strstr(e.msg, "schedule"));
  if (!right || !(grids || numbers || nothing)) tap_diag("%s", e.msg);
  tap_ok(right && (grids || numbers || nothing), "its %d grids and %d numbers of ranks do work", grids, numbers);
}

/* ---- refusals ---- */

static void model_and_tp(void) {
  sk_config c;
  deck(&c);
  tap_ok(taken(&c, 2, 2, 2, 16) && taken(&c, 8, 1, 1, 8) && taken(&c, 1, 4, 4, 32), "grids that work are taken");
  grid(&c, 4, 1, 1);
  c.layer[2].m.num_attention_heads = 6;
  refused(&c, 8, "layer 2: num_attention_heads 6", "parallel.tp 4");
  c.layer[2].mixer = 'M'; /* and does not matter without attention */
  tap_ok(taken(&c, 4, 1, 1, 8), "a layer's attention heads do not matter where it has no attention");
  c.layer[1].m.mamba_n_heads = 6;
  refused(&c, 8, "layer 1: mamba_n_heads 6", "parallel.tp 4");
  c.layer[1].mixer = '*';
  tap_ok(taken(&c, 4, 1, 1, 8), "nor do SSM heads where there is no SSM");
  c.layer[3].m.intermediate_size = 42;
  refused(&c, 8, "layer 3: intermediate_size 42", "parallel.tp 4");
  sk_free(c.layer);
  deck(&c);
  grid(&c, 2, 1, 1);
  c.layer[0].m.mamba_n_heads = 12, c.layer[0].m.mamba_n_groups = 3;
  refused(&c, 4, "SSM heads lie in unequal parts", "3 mamba_n_groups");
  sk_free(c.layer);
  deck(&c);
  grid(&c, 8, 1, 1);
  c.model.vocab_size = 7;
  refused(&c, 8, "model.vocab_size 7", "parallel.tp 8");
  sk_free(c.layer);
}

static void sequence_and_cp(void) {
  sk_config c;
  deck(&c);
  grid(&c, 1, 4, 1);
  c.data.sequence = 60;
  refused(&c, 8, "data.sequence 60 is not a multiple", "2 x parallel.cp = 8");
  c.data.sequence = 16;
  refused(&c, 8, "segments (2 x parallel.cp) of 2 tokens", "mamba_d_conv - 1 = 3");
  for (int i = 0; i < LAYERS; i++) c.layer[i].mixer = '*';
  tap_ok(taken(&c, 1, 4, 1, 8), "short segments are fine where there is no conv");
  sk_free(c.layer);
  deck(&c);
  grid(&c, 8, 2, 1);
  c.data.sequence = 24;
  refused(&c, 16, "data.sequence / parallel.cp = 12 tokens", "parallel.tp 8");
  sk_free(c.layer);
}

static void stages(void) {
  sk_config c;
  deck(&c);
  grid(&c, 1, 1, 8);
  refused(&c, 8, "parallel.pp 8 x virtual_stages 1 = 8 stages", "4 layers");
  c.parallel.schedule = SK_SCHED_INTERLEAVED;
  c.parallel.virtual_stages = 2;
  grid(&c, 1, 1, 4);
  refused(&c, 8, "parallel.pp 4 x virtual_stages 2 = 8 stages", "4 layers");
  grid(&c, 1, 1, 1);
  refused(&c, 4, "parallel.virtual_stages 2", "more than one pipeline stage");
  grid(&c, 1, 1, 2);
  tap_ok(taken(&c, 1, 1, 2, 4), "interleaved, 2 stages of 2 chunks");
  c.train.global_batch = 6; /* three micro-batches */
  refused(&c, 2, "multiple of 2 micro-batches", "not 3");
  c.parallel.virtual_stages = 1;
  refused(&c, 2, "interleaved schedule takes 2 to 1024 virtual stages", "not 1");
  c.parallel.virtual_stages = 2;
  c.parallel.schedule = SK_SCHED_1F1B;
  refused(&c, 2, "1f1b takes 1 virtual stage", "not 2");
  c.parallel.schedule = SK_SCHED_ZB_H1;
  refused(&c, 2, "zb-h1 takes 1 virtual stage", "not 2");
  c.parallel.virtual_stages = 1;
  tap_ok(taken(&c, 1, 1, 2, 2), "zb-h1 on 2 stages");
  sk_free(c.layer);
}

static void ranks_and_batch(void) {
  sk_config c;
  sk_err e = {0};
  int n[SK_NAXES];
  deck(&c);
  grid(&c, 2, 1, 2);
  refused(&c, 6, "6 ranks cannot be shared out: tp 2 x cp 1 x pp 2", "a multiple of 4");
  refused(&c, 1, "1 rank cannot be shared out", "a multiple of 4");
  refused(&c, 7, "7 ranks cannot be shared out", "a multiple of 4");
  grid(&c, 65536, 65536, 65536);
  tap_ok(sk_layout_grid(&c, 64, n, &e) == SK_USAGE && strstr(e.msg, "64 ranks"), "a monstrous grid is refused too");
  grid(&c, 1, 1, 1);
  refused(&c, 3, "train.global_batch: 32 is not a multiple of dp x micro_batch = 3 x 2", "work are 30 or 36.");
  bool near[2];
  c.train.global_batch = 30, near[0] = taken(&c, 1, 1, 1, 3);
  c.train.global_batch = 36, near[1] = taken(&c, 1, 1, 1, 3);
  tap_ok(near[0] && near[1], "and 30 and 36 are taken");
  c.train.global_batch = 4;
  refused(&c, 4, "dp x micro_batch = 4 x 2 = 8", "nearest that works is 8.");
  grid(&c, 1, 2, 1);
  tap_ok(taken(&c, 1, 2, 1, 4), "cp does not cut the batch");
  sk_free(c.layer);
}

static int pick(uint64_t key, uint64_t *at, size_t n, const int *from) { return from[sk_rand(key, (*at)++) % n]; }

/* What no combination of refusals above has met: random decks on random numbers of ranks. */
static void random_decks(void) {
  enum { DECKS = 400 };
  int good = 0, bad = 0, wrong = 0;
  for (uint64_t k = 0; k < DECKS; k++) {
    sk_config c;
    sk_err e = {0};
    int n[SK_NAXES];
    uint64_t at = 0;
#define PICK(...) pick(k, &at, sizeof((const int[]){__VA_ARGS__}) / sizeof(int), (const int[]){__VA_ARGS__})
    deck(&c);
    c.model.num_attention_heads = PICK(2, 6, 8, 12), c.model.mamba_n_heads = PICK(4, 6, 8, 12);
    c.model.mamba_n_groups = PICK(1, 2), c.model.intermediate_size = PICK(24, 40, 30);
    for (int i = 0; i < LAYERS; i++) c.layer[i].m = c.model, c.layer[i].mixer = "P*M"[sk_rand(k, at++) % 3];
    c.data.sequence = PICK(16, 24, 64, 60, 96);
    c.train.global_batch = PICK(2, 4, 6, 8, 24), c.train.micro_batch = PICK(1, 2, 4);
    c.parallel.schedule = PICK(SK_SCHED_1F1B, SK_SCHED_INTERLEAVED, SK_SCHED_ZB_H1);
    c.parallel.virtual_stages = c.parallel.schedule == SK_SCHED_INTERLEAVED ? 2 : 1;
    int tp = PICK(1, 2, 3, 4, 5, 8), cp = PICK(1, 2, 3, 4), pp = PICK(1, 2, 3, 4, 5);
    grid(&c, tp, cp, pp);
    int ranks = PICK(1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 36);
    if (sk_layout_grid(&c, ranks, n, &e) == SK_OK) {
      good++;
    } else {
      bad++;
      bool ok = e.code == SK_USAGE && grids_advised(&c, ranks, e.msg) >= 0 && ranks_advised(&c, e.msg) >= 0;
      if (!ok && wrong++ < 3) tap_diag("deck %llu: %s", (unsigned long long)k, e.msg);
    }
    sk_free(c.layer);
  }
  tap_ok(wrong == 0 && good >= 10 && bad > 100, "%d decks: %d are taken, the advice for the other %d is right", DECKS,
         good, bad - wrong);
}

/* Which tp the released models take (spec section 5: heads, SSM heads, MLP width). */
static void released_models(void) {
  static const struct { const char *file; int tp[8]; } m[] = {
      {"0.5b", {1, 2, 4, 8}}, {"1.5b", {1, 2, 4, 8}}, {"1.5b-deep", {1, 2, 3, 6}}, {"3b", {1, 2}},
      {"7b", {1, 2, 3, 4, 6, 12}}, {"34b", {1, 2, 4}}, {"tiny-90m", {1, 2, 4, 8}}};
  const char *src = getenv("SAKER_SRCDIR");
  for (size_t i = 0; i < sizeof m / sizeof *m; i++) {
    sk_config c;
    sk_err e = {0};
    char *path = sk_strf("%s/input/falcon-h1-%s.json", src ? src : ".", m[i].file), *json = sk_calloc(1, 1 << 16);
    FILE *f = fopen(path, "r");
    SK_CHECK(f && fread(json, 1, (1 << 16) - 1, f) > 0, "cannot read %s", path);
    fclose(f);
    SK_CHECK(sk_config_from_hf(json, path, &c, &e) == SK_OK, "%s", e.msg);
    c.data.sequence = 16 * 4096 * 3; /* a multiple of whatever tp */
    c.train.global_batch = c.train.micro_batch = 1;
    c.parallel.virtual_stages = 1;
    bool right = true;
    for (int tp = 1; tp <= 16; tp++) {
      bool want = false;
      for (int k = 0; k < 8; k++) want = want || m[i].tp[k] == tp;
      if ((c.data.sequence % tp == 0 || want) && taken(&c, tp, 1, 1, tp) != want) right = false;
    }
    tap_ok(right, "falcon-h1-%s takes the tp that spec section 5 gives", m[i].file);
    sk_config_free(&c);
    sk_free(path);
    sk_free(json);
  }
}

/* ---- cutting layers ---- */

static double worst_part(const sk_config *c, int parts, const int64_t *first) {
  double most = 0;
  for (int i = 0; i < parts; i++) most = fmax(most, sk_split_cost(c, parts, first, i));
  return most;
}

/* The best of all cuts of layers at.. into parts part..; keeps[i]: the largest first[i] of any best cut. */
static void try_cuts(const sk_config *c, int parts, int part, int64_t *first, double *best, int64_t *keeps) {
  if (part == parts) {
    double cost = worst_part(c, parts, first);
    if (cost > *best * (1 + 1e-12)) return;
    if (cost < *best * (1 - 1e-12)) memset(keeps, 0, (size_t)(parts + 1) * sizeof *keeps);
    *best = cost < *best ? cost : *best;
    for (int i = 0; i <= parts; i++)
      if (first[i] > keeps[i]) keeps[i] = first[i];
    return;
  }
  for (int64_t at = first[part - 1] + 1; at <= c->n_layers - (parts - part); at++) {
    first[part] = at;
    try_cuts(c, parts, part + 1, first, best, keeps);
  }
}

static bool best_cut(const sk_config *c, int parts) {
  int64_t got[16], first[16] = {0}, keeps[16] = {0};
  double best = INFINITY, cost;
  first[parts] = c->n_layers;
  try_cuts(c, parts, 1, first, &best, keeps);
  sk_split_layers(c, parts, got);
  cost = worst_part(c, parts, got);
  bool ok = got[0] == 0 && got[parts] == c->n_layers && cost <= best * (1 + 1e-12);
  for (int i = 0; i < parts; i++) ok = ok && got[i] < got[i + 1] && got[i] == keeps[i];
  if (!ok) {
    tap_diag("%d parts of %lld layers: worst %.17g, best cut %.17g", parts, (long long)c->n_layers, cost, best);
    for (int i = 0; i <= parts; i++) tap_diag("  got %lld, want %lld", (long long)got[i], (long long)keeps[i]);
  }
  return ok;
}

static void cuts(void) {
  sk_config c;
  const char *pattern[12];
  bool ok = true;
  for (int i = 0; i < 12; i++) pattern[i] = "P-";
  small_config(&c, 12, pattern);
  c.data.sequence = 64;
  for (int parts = 1; parts <= 12; parts++) ok = best_cut(&c, parts) && ok;
  tap_ok(ok, "12 equal layers into 1 to 12 parts: the best of all cuts, later parts the shorter ones");
  c.model.vocab_size = 20000; /* the head is worth many layers */
  for (int i = 0; i < 12; i++) c.layer[i].m = c.model;
  ok = true;
  for (int parts = 1; parts <= 12; parts++) ok = best_cut(&c, parts) && ok;
  int64_t first[5];
  sk_split_layers(&c, 4, first);
  tap_ok(ok && first[4] - first[3] == 1, "a heavy head: its part has one layer, and the cut is the best of all");
  ok = true;
  for (uint64_t k = 0; k < 200; k++) {
    c.model.vocab_size = 8 + (int64_t)(sk_rand(k, 99) % 3000);
    for (int i = 0; i < 12; i++) {
      c.layer[i].m = c.model;
      c.layer[i].mixer = "P*M"[sk_rand(k, (uint64_t)i) % 3];
      c.layer[i].mlp = sk_rand(k, 50 + (uint64_t)i) % 2;
      c.layer[i].m.intermediate_size = 8 + (int64_t)(sk_rand(k, 20 + (uint64_t)i) % (k % 2 ? 200 : 8000));
    }
    c.n_layers = 4 + (int64_t)(sk_rand(k, 77) % 9);
    ok = best_cut(&c, 1 + (int)(sk_rand(k, 88) % (uint64_t)c.n_layers)) && ok;
  }
  tap_ok(ok, "200 models of uneven layers: the best of all cuts each time");
  c.n_layers = 3;
  c.model.vocab_size = 8;
  for (int i = 0; i < 3; i++) {
    c.layer[i] = (sk_layer_cfg){.mixer = '*', .mlp = true, .m = c.model};
    c.layer[i].m.intermediate_size = i == 0 ? 4000 : i == 1 ? 8 : 3997;
  }
  tap_ok(best_cut(&c, 2), "a tie but for one part in ten thousand");
  sk_free(c.layer);
}

/* ---- parameters of a rank ---- */

static int64_t at_least_1(int64_t units, int tp) { return units > tp ? units / tp : 1; }

static int64_t layer_params(const sk_layer_cfg *l, int tp) {
  const sk_model_cfg *m = &l->m;
  const int64_t d = m->hidden_size, ds = m->mamba_d_ssm / tp, nh = m->mamba_n_heads / tp;
  const int64_t GN2 = 2 * at_least_1(m->mamba_n_groups, tp) * m->mamba_d_state;
  const int64_t q = m->num_attention_heads / tp * m->head_dim, kv = at_least_1(m->num_key_value_heads, tp) * m->head_dim;
  int64_t n = d * (1 + l->mlp);
  if (l->mixer != '*')
    n += d * (2 * ds + GN2 + nh) + (ds + GN2) * (m->mamba_d_conv + m->mamba_conv_bias) + 3 * nh + ds * d +
         ds * m->mamba_rms_norm;
  if (l->mixer != 'M') n += d * (q + 2 * kv) + q * d;
  if (l->mlp) n += 3 * d * m->intermediate_size / tp;
  return n;
}

static int64_t rank_params(const sk_config *c, const int n[SK_NAXES], int rank) {
  const int tp = n[SK_TP], pp = n[SK_PP], t = rank % tp, stage = rank / tp / n[SK_CP] / n[SK_DP];
  const int64_t d = c->model.hidden_size, V = c->model.vocab_size, rows = V / tp + (t < V % tp);
  int64_t first[16], sum = 0;
  sk_split_layers(c, pp, first);
  for (int64_t i = first[stage]; i < first[stage + 1]; i++) sum += layer_params(&c->layer[i], tp);
  bool begins = stage == 0, ends = stage == pp - 1, tied = c->model.tie_word_embeddings;
  if (begins) sum += rows * d;
  if (ends) sum += d + (tied && begins ? 0 : rows * d); /* tied: a copy where the embedding is elsewhere */
  return sum;
}

static void parameters(void) {
  static const int grid_list[][SK_NAXES] = {{1, 1, 1, 1}, {1, 1, 1, 2}, {1, 1, 1, 4}, {2, 1, 1, 1},
                                            {4, 1, 1, 1}, {2, 2, 2, 2}, {1, 2, 2, 4}, {1, 4, 1, 8}};
  sk_config c;
  deck(&c);
  for (int k = 0; k < 16; k++) {
    const int *n = grid_list[k % 8];
    const int ranks = n[0] * n[1] * n[2] * n[3];
    bool ok = true;
    c.model.tie_word_embeddings = k >= 8;
    for (int r = 0; r < ranks; r++) {
      sk_err e = {0};
      size_t bytes[SK_PARTS];
      int64_t got = -1;
      ok = sk_engine_plan(&c, &sk_cpu_ops, n, r, bytes, &got, NULL, 0, &e) == SK_OK && got == rank_params(&c, n, r) &&
           ok;
      if (!ok) tap_diag("rank %d: %lld, want %lld %s", r, (long long)got, (long long)rank_params(&c, n, r), e.msg);
    }
    tap_ok(ok, "tp %d x cp %d x pp %d x dp %d%s: every rank's parameters", n[SK_TP], n[SK_CP], n[SK_PP], n[SK_DP],
           k >= 8 ? ", tied" : "");
  }
  c.model.tie_word_embeddings = false;
  const double all = (double)rank_params(&c, grid_list[0], 0);
  bool half = true;
  for (int r = 0; r < 2; r++) {
    half = half && fabs((double)rank_params(&c, grid_list[1], r) / all - 0.5) < 0.03;
    half = half && fabs((double)rank_params(&c, grid_list[3], r) / all - 0.5) < 0.03;
  }
  tap_ok(half, "about half of all parameters on each rank at tp 2, and at pp 2");
  sk_free(c.layer);
}

// Ranks and GPUs of one node.
static void gpus_of_a_node(void) {
  sk_err none = {0}, few = {0}, one = {0}, hidden = {0};
  tap_ok(sk_device_fits(8, 8, NULL, "n1", &none) == SK_OK && sk_device_fits(3, 8, "0,1,2,3,4,5,6,7", "n1", &none) == SK_OK &&
             sk_device_fits(2, 0, NULL, "n1", &none) == SK_OK,
         "a GPU for every rank (no GPU at all is told elsewhere)");
  tap_ok(sk_device_fits(9, 8, NULL, "n1", &few) == SK_FAILED && strstr(few.msg, "9 ranks run on n1 and see 8 GPUs") &&
             strstr(few.msg, "\nStart at most 8 ranks on a node") && !strstr(few.msg, "every rank see"),
         "more ranks than GPUs: %s", few.msg);
  tap_ok(sk_device_fits(2, 1, "1", "n1", &one) == SK_FAILED && strstr(one.msg, "see 1 GPU (CUDA_VISIBLE_DEVICES is 1)") &&
             strstr(one.msg, "\nLet every rank see all GPUs of its node"),
         "one visible GPU for each rank: %s", one.msg);
  tap_ok(sk_device_fits(4, 2, "0,1", "n1", &hidden) == SK_FAILED && strstr(hidden.msg, "Let every rank see") &&
             strstr(hidden.msg, "at most 2 ranks"),
         "some GPUs hidden");
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  model_and_tp();
  sequence_and_cp();
  stages();
  ranks_and_batch();
  random_decks();
  released_models();
  cuts();
  parameters();
  gpus_of_a_node();
  return tap_done();
}
