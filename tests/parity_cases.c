/* parity_cases.c: the models and the grids of tests/parity.c. Sizes are the smallest that still
 * have what a case is about: several heads, groups, chunks and segments, layers for every stage. */
#include "tests/parity.h"
#include "tests/small_model.h"
#include <stdio.h>

/* ---- models ---- */

typedef struct models {
  parity_model *at;
  int n;
} models;

/* A model of n_patterns layers repeated to `layers`; sequences of T tokens. */
static parity_model *add_model(models *list, const char *name, const char *const *pattern,
                               int n_patterns, int layers, int64_t T) {
  const char *all[16];
  for (int i = 0; i < layers; i++) all[i] = pattern[i % n_patterns];
  list->at = sk_realloc(list->at, (size_t)(list->n + 1) * sizeof *list->at);
  parity_model *m = &list->at[list->n++];
  *m = (parity_model){.documents = PARITY_MIXED, .segment = T / 8};
  snprintf(m->name, sizeof m->name, "%s", name);
  small_config(&m->cfg, layers, all);
  m->cfg.model.intermediate_size = 24;
  m->cfg.model.mamba_d_head = 4;
  m->cfg.model.initializer_range = 0.15;
  /* Well-conditioned gradients: with the usual 1e-5 the gated norm blows up tokens with small
   * outputs, and one ulp in the weights of one rank moves the gradient of a D by 5e-5. */
  m->cfg.model.rms_norm_eps = 1e-3;
  m->cfg.data.sequence = T;
  m->cfg.train.global_batch = 8;
  m->cfg.optimizer.lr = 1e-3;
  m->cfg.optimizer.betas[0] = 0.9, m->cfg.optimizer.betas[1] = 0.95;
  /* Adam's first step is g / (|g| + eps): rounding must not become a sign. */
  m->cfg.optimizer.eps = 1e-6;
  m->cfg.optimizer.weight_decay = 0.1;
  m->cfg.optimizer.clip = 1;
  static sk_param_group slower = {(char *)"*layernorm.weight", 0.5, 0};
  m->cfg.optimizer.n_groups = 1;
  m->cfg.optimizer.groups = &slower;
  return m;
}

/* The layers have the model's sizes, as changed by now. */
static void finish(parity_model *m) {
  for (int64_t i = 0; i < m->cfg.n_layers; i++) m->cfg.layer[i].m = m->cfg.model;
}

static void heads(parity_model *m, int64_t H, int64_t kv, int64_t nh, int64_t G) {
  sk_model_cfg *c = &m->cfg.model;
  c->num_attention_heads = H, c->num_key_value_heads = kv;
  c->mamba_n_heads = nh, c->mamba_n_groups = G;
  c->mamba_d_ssm = nh * c->mamba_d_head;
  finish(m);
}

static void biases(parity_model *m) {
  sk_model_cfg *c = &m->cfg.model;
  c->attention_bias = c->mlp_bias = true;
  c->mamba_proj_bias = c->projectors_bias = c->mamba_conv_bias = true;
  finish(m);
}

/* P- with G and kv of 1 and 2, the three kinds of norm, tied and untied; conv widths and biases
 * vary along. */
static void add_hybrids(models *list) {
  static const char *const hybrid[] = {"P-"};
  static const char *const norm[] = {"after the gate", "before the gate", "none"};
  for (int i = 0; i < 24; i++) {
    int64_t G = 1 + i % 2, kv = 1 + i / 2 % 2;
    int kind = i / 4 % 3;
    char name[64];
    snprintf(name, sizeof name, "P- G %lld kv %lld norm %s%s", (long long)G, (long long)kv,
             norm[kind], i < 12 ? "" : " tied");
    parity_model *m = add_model(list, name, hybrid, 1, 4, 32);
    m->cfg.model.mamba_rms_norm = kind < 2;
    m->cfg.model.mamba_norm_before_gate = kind == 1;
    m->cfg.model.tie_word_embeddings = i >= 12;
    m->cfg.model.mamba_d_conv = 2 + i % 3;
    heads(m, 4, kv, 8, G);
    if (i / 3 % 2) biases(m);
  }
}

static void add_patterns(models *list) {
  parity_model *m = add_model(list, "*-", (const char *const[]){"*-"}, 1, 4, 32);
  heads(m, 4, 2, 8, 2);
  m = add_model(list, "M", (const char *const[]){"M"}, 1, 4, 32);
  m->cfg.model.tie_word_embeddings = true;
  heads(m, 4, 2, 8, 2);
  m = add_model(list, "M-*-", (const char *const[]){"M-", "*-"}, 2, 4, 32);
  heads(m, 4, 2, 8, 2);
  biases(m);
  m = add_model(list, "M-*-M-P-", (const char *const[]){"M-", "*-", "M-", "P-"}, 4, 4, 32);
  heads(m, 4, 1, 8, 1);
  m = add_model(list, "P- 8 layers tied", (const char *const[]){"P-"}, 1, 8, 32);
  m->cfg.model.tie_word_embeddings = true;
  heads(m, 4, 2, 8, 2);
  m = add_model(list, "M-*-M-P- 8 layers", (const char *const[]){"M-", "*-", "M-", "P-"}, 4, 8, 32);
  m->cfg.model.mamba_norm_before_gate = true;
  heads(m, 4, 1, 8, 1);
  biases(m);
}

/* Models for heads, groups and vocabularies that tp does not divide. */
static void add_odd_shares(models *list) {
  static const char *const p[] = {"P-"};
  static const struct {
    const char *name;
    int64_t H, kv, nh, G, T, V;
  } t[] = {
      {"H 6 kv 2, 6 SSM heads G 2", 6, 2, 6, 2, 24, 53},
      {"H 12 kv 4, 6 SSM heads G 3", 12, 4, 6, 3, 24, 53},
      {"H 15 kv 5, 15 SSM heads G 1", 15, 5, 15, 1, 24, 53},
      {"H 12 kv 3, 12 SSM heads G 1", 12, 3, 12, 1, 48, 53},
      {"H 8 kv 2, 8 SSM heads G 2", 8, 2, 8, 2, 64, 53},
      {"H 5 kv 5, 5 SSM heads G 5", 5, 5, 5, 5, 40, 53},
      {"H 7 kv 1, 7 SSM heads G 1", 7, 1, 7, 1, 56, 53},
      {"vocabulary of 7", 4, 2, 8, 2, 32, 7},
  };
  for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
    parity_model *m = add_model(list, t[i].name, p, 1, 2, t[i].T);
    sk_model_cfg *c = &m->cfg.model;
    c->vocab_size = t[i].V;
    c->tie_word_embeddings = i % 2;
    c->mamba_norm_before_gate = i % 4 == 1;
    if (i == 2) c->mamba_d_head = 5, c->mamba_d_state = 7;
    if (t[i].H == 5 || t[i].H == 7 || t[i].H == 15) c->intermediate_size = 5 * 7 * 3;
    heads(m, t[i].H, t[i].kv, t[i].nh, t[i].G);
    if (i % 3 == 1) biases(m);
  }
}

/* Layers of different sizes (model.overrides), cut into uneven stages. */
static void add_uneven(models *list) {
  parity_model *m = add_model(list, "5 layers", (const char *const[]){"P-", "M", "*-"}, 3, 5, 32);
  heads(m, 4, 2, 8, 2);
  m = add_model(list, "7 layers, overrides", (const char *const[]){"P-", "M-", "*-"}, 3, 7, 24);
  heads(m, 6, 2, 6, 2);
  sk_layer_cfg *l = m->cfg.layer;
  l[0].m.num_attention_heads = 12, l[0].m.head_dim = 4;
  l[1].m.mamba_d_conv = 2, l[1].m.mamba_d_state = 7;
  l[3].m.mamba_n_heads = 12, l[3].m.mamba_d_ssm = 48, l[3].m.mamba_n_groups = 1;
  l[4].m.intermediate_size = 60;
  l[6].m.num_key_value_heads = 1;
  m->cfg.model.tie_word_embeddings = true;
  m = add_model(list, "9 layers", (const char *const[]){"M", "*-"}, 2, 9, 16);
  heads(m, 2, 1, 4, 1);
}

static void add_document_models(models *list) {
  static const char *const p[] = {"P-", "M-"};
  static const char *const what[] = {"nowhere", "on borders", "inside segments", "far apart",
                                     "everywhere"};
  for (int kind = PARITY_WHOLE; kind < PARITY_MIXED; kind++) {
    for (int cp = 2; cp <= 8; cp += cp) { /* cp 8: segments of 3 tokens, the conv's halo */
      char name[64];
      int64_t S = cp == 2 ? 9 : cp == 4 ? 5 : 3;
      snprintf(name, sizeof name, "documents begin %s, segments of %lld", what[kind], (long long)S);
      parity_model *m = add_model(list, name, p, 2, 2, 2 * cp * S);
      m->documents = kind;
      m->segment = S;
      m->cfg.train.global_batch = 4;
      m->cfg.model.mamba_chunk_size = 4;
      heads(m, 2, 1, 8, 2);
    }
  }
}

static void add_others(models *list) {
  static const char *const p[] = {"P-"};
  for (int K = 2; K <= 4; K++) {
    char name[64];
    snprintf(name, sizeof name, "mamba_d_conv %d", K);
    parity_model *m = add_model(list, name, p, 1, 2, 24);
    m->segment = 3;
    m->cfg.model.mamba_d_conv = K;
    heads(m, 4, 2, 8, 2);
  }
  parity_model *m = add_model(list, "parameters of several blocks", p, 1, 2, 16);
  /* The tied matrix's blocks go to other dp ranks on the first stage than on the last, where they
   * lie behind the final norm. */
  m->cfg.model.vocab_size = 1365;
  m->cfg.model.tie_word_embeddings = true;
  m->cfg.model.intermediate_size = 1024;
  heads(m, 4, 2, 8, 2);
  m = add_model(list, "padding id, dt limits, no conv bias", p, 1, 2, 32);
  m->cfg.model.pad_token_id = 3;
  m->cfg.model.tie_word_embeddings = true;
  m->cfg.model.time_step_limit[0] = 0.05, m->cfg.model.time_step_limit[1] = 0.3;
  m->cfg.model.mamba_conv_bias = false;
  heads(m, 4, 2, 8, 2);
  m = add_model(list, "biases everywhere", p, 1, 2, 32);
  heads(m, 4, 2, 8, 2);
  biases(m);
  m = add_model(list, "no clipping", p, 1, 2, 24);
  m->cfg.optimizer.clip = 0;
  m->cfg.train.global_batch = 24;
  heads(m, 4, 2, 8, 2);
}

parity_model *parity_models(int *n) {
  models list = {0};
  add_hybrids(&list);
  add_patterns(&list);
  SK_CHECK(list.n == PARITY_WIDE, "%d models", list.n);
  add_odd_shares(&list);
  add_uneven(&list);
  add_document_models(&list);
  add_others(&list);
  *n = list.n;
  return list.at;
}

void parity_models_free(parity_model *m, int n) {
  for (int i = 0; i < n; i++) sk_free(m[i].cfg.layer);
  sk_free(m);
}

/* ---- cases ---- */

typedef struct cases {
  parity_case *at;
  int n, model; /* of the next ones */
  const parity_model *models;
  int n_models;
  const char *why;
} cases;

static void take(cases *l, const char *name, const char *why) {
  l->why = why;
  for (l->model = 0; l->model < l->n_models; l->model++)
    if (strcmp(l->models[l->model].name, name) == 0) return;
  SK_CHECK(false, "no model \"%s\"", name);
}

/* One virtual stage; interleaved: two. */
static parity_case *add(cases *l, int tp, int cp, int pp, int dp, int schedule, int recompute) {
  l->at = sk_realloc(l->at, (size_t)(l->n + 1) * sizeof *l->at);
  parity_case *c = &l->at[l->n++];
  *c = (parity_case){.model = l->model,
                     .n = {[SK_PP] = pp, [SK_DP] = dp, [SK_CP] = cp, [SK_TP] = tp},
                     .schedule = schedule,
                     .virtual_stages = schedule == SK_SCHED_INTERLEAVED ? 2 : 1,
                     .recompute = recompute,
                     .micro_batch = 1,
                     .why = l->why};
  return c;
}

enum { F1B = SK_SCHED_1F1B, INT = SK_SCHED_INTERLEAVED, ZB = SK_SCHED_ZB_H1 };
enum { NONE = SK_RECOMPUTE_NONE, SEL = SK_RECOMPUTE_SELECTIVE, FULL = SK_RECOMPUTE_FULL };

static void shares(cases *l) {
  take(l, "H 6 kv 2, 6 SSM heads G 2", "kv does not divide tp, a rank's SSM heads in two groups");
  add(l, 3, 1, 1, 1, F1B, NONE);
  add(l, 3, 2, 1, 1, F1B, SEL);
  add(l, 3, 1, 2, 1, ZB, FULL);
  take(l, "H 12 kv 4, 6 SSM heads G 3", "unequal spans of heads, kv does not divide tp");
  add(l, 3, 1, 1, 1, F1B, NONE);
  add(l, 3, 2, 1, 1, F1B, NONE);
  add(l, 3, 1, 1, 2, F1B, FULL);
  add(l, 6, 1, 1, 1, F1B, SEL);
  take(l, "H 15 kv 5, 15 SSM heads G 1",
       "three spans of heads, n_groups < tp, odd heads, d_head and d_state");
  add(l, 3, 1, 1, 1, F1B, NONE);
  add(l, 3, 2, 1, 1, F1B, FULL);
  take(l, "H 12 kv 3, 12 SSM heads G 1", "kv < tp and does not divide it");
  add(l, 4, 2, 1, 1, F1B, NONE);
  add(l, 6, 1, 1, 1, F1B, NONE);
  take(l, "H 8 kv 2, 8 SSM heads G 2", "n_groups < tp, kv < tp: four ranks share one");
  add(l, 8, 1, 1, 1, F1B, SEL);
  add(l, 4, 2, 1, 1, F1B, NONE);
  add(l, 4, 1, 2, 1, ZB, NONE);
  take(l, "H 5 kv 5, 5 SSM heads G 5", "tp 5");
  add(l, 5, 1, 1, 1, F1B, NONE);
  take(l, "H 7 kv 1, 7 SSM heads G 1", "tp 7, n_groups < tp, kv < tp");
  add(l, 7, 1, 1, 1, F1B, FULL);
  take(l, "vocabulary of 7", "odd vocabulary");
  add(l, 4, 1, 1, 1, F1B, NONE);
  add(l, 4, 1, 2, 1, F1B, NONE);
  add(l, 2, 2, 1, 2, F1B, NONE);
}

static void stages(cases *l) {
  take(l, "5 layers", "uneven pipeline stages");
  add(l, 1, 1, 2, 1, F1B, NONE);
  add(l, 1, 1, 3, 1, ZB, NONE);
  add(l, 1, 1, 5, 1, F1B, NONE);
  add(l, 1, 1, 1, 2, F1B, NONE);
  add(l, 1, 1, 4, 2, F1B, SEL);
  add(l, 2, 1, 1, 1, F1B, NONE);
  add(l, 2, 1, 4, 1, ZB, FULL);
  add(l, 1, 2, 1, 1, F1B, NONE);
  add(l, 1, 2, 4, 1, F1B, NONE);
  add(l, 2, 1, 1, 2, F1B, NONE);
  add(l, 2, 1, 2, 2, INT, NONE);
  take(l, "7 layers, overrides", "layers of different sizes, uneven stages");
  add(l, 1, 1, 7, 1, F1B, FULL);
  add(l, 3, 1, 1, 1, F1B, NONE);
  add(l, 3, 1, 2, 1, F1B, NONE);
  add(l, 3, 1, 2, 1, INT, SEL)->virtual_stages = 3;
  add(l, 1, 2, 1, 1, F1B, NONE);
  add(l, 1, 2, 3, 1, ZB, NONE);
  add(l, 1, 2, 1, 2, F1B, NONE);
  add(l, 1, 2, 2, 2, INT, NONE);
  take(l, "9 layers", "long pipelines");
  add(l, 1, 1, 8, 1, F1B, NONE);
  add(l, 1, 1, 8, 1, ZB, NONE);
  add(l, 1, 1, 4, 2, INT, NONE);
  add(l, 1, 1, 2, 1, INT, NONE)->virtual_stages = 4;
}

static void documents(cases *l, bool all) {
  for (int i = 0; i < l->n_models; i++) {
    const parity_model *m = &l->models[i];
    if (strncmp(m->name, "documents", 9) != 0) continue;
    int cp = (int)(m->cfg.data.sequence / m->segment / 2);
    take(l, m->name, "documents across cp ranks");
    if (cp < 8) add(l, 1, cp, 1, 1, F1B, NONE);
    if (cp < 8 && (all || cp == 2)) add(l, 2, cp, 1, 1, F1B, FULL);
    for (int pp = 1; pp <= 2 && (cp == 2 || (cp == 4 && all)); pp++)
      add(l, 1, cp, pp, 1, pp == 1 ? F1B : ZB, SEL)->micro_batch = 2;
    if (cp == 8 && (all || m->documents >= PARITY_SPANNING)) add(l, 1, cp, 1, 1, F1B, NONE);
  }
}

static void others(cases *l) {
  for (int K = 2; K <= 4; K++) {
    static const char *const name[] = {"mamba_d_conv 2", "mamba_d_conv 3", "mamba_d_conv 4"};
    take(l, name[K - 2], "the conv's halo over cp");
    add(l, 1, 2, 1, 1, F1B, NONE);
    add(l, 1, 3, 1, 1, F1B, SEL);
    add(l, 2, 4, 1, 1, F1B, NONE);
  }
  take(l, "parameters of several blocks", "ZeRO-1 and the norm over blocks inside a parameter");
  add(l, 1, 1, 1, 2, F1B, NONE);
  add(l, 1, 1, 1, 8, F1B, NONE);
  add(l, 2, 2, 1, 2, F1B, NONE);
  add(l, 4, 1, 2, 1, F1B, NONE);
  l->why = "a tied matrix cut differently in two stages";
  add(l, 1, 1, 1, 4, F1B, NONE);
  add(l, 1, 1, 2, 4, F1B, NONE);
  add(l, 1, 2, 2, 2, ZB, NONE);
  take(l, "padding id, dt limits, no conv bias", "rare options");
  add(l, 2, 2, 1, 1, F1B, SEL);
  add(l, 4, 1, 2, 1, ZB, NONE);
  add(l, 1, 2, 2, 2, F1B, FULL);
  take(l, "biases everywhere", "");
  add(l, 4, 1, 1, 2, F1B, NONE);
  add(l, 2, 2, 2, 1, ZB, FULL);
  add(l, 1, 4, 1, 1, F1B, SEL);
  take(l, "no clipping", "dp that is no power of two");
  add(l, 1, 1, 1, 3, F1B, NONE);
  add(l, 1, 2, 1, 3, F1B, NONE);
  add(l, 1, 1, 2, 3, ZB, NONE);
  add(l, 2, 1, 1, 3, F1B, NONE);
  add(l, 1, 1, 1, 6, F1B, NONE);
}

/* Micro-batches of 2 and 4; recomputation x schedules and the same deck twice: "same bits". */
static void bits(cases *l) {
  take(l, "P- G 2 kv 2 norm before the gate tied", "micro-batch 2");
  add(l, 2, 2, 1, 1, F1B, NONE)->micro_batch = 2;
  add(l, 2, 2, 2, 1, ZB, SEL)->micro_batch = 2;
  add(l, 2, 2, 2, 1, INT, NONE)->micro_batch = 2;
  add(l, 1, 2, 1, 2, F1B, NONE)->micro_batch = 4;
  add(l, 2, 1, 2, 2, F1B, FULL)->micro_batch = 4;
  take(l, "P- G 1 kv 2 norm after the gate tied", "recomputation x schedules");
  for (int recompute = NONE; recompute <= FULL; recompute++)
    for (int schedule = F1B; schedule <= ZB; schedule++) add(l, 2, 2, 2, 1, schedule, recompute);
  add(l, 2, 2, 1, 1, F1B, NONE);
  l->why = "repeated";
  add(l, 2, 2, 2, 1, INT, NONE);
  add(l, 2, 2, 2, 1, ZB, FULL);
  add(l, 2, 2, 1, 1, F1B, NONE);
}

/* All grids of at most 8 ranks. each: one in so many of the schedules and recomputations. */
static void every_grid(cases *l, const char *name, int each) {
  take(l, name, "");
  for (int i = 0, k = l->n; i < 81; i++) {
    int tp = 1 << i % 3, cp = 1 << i / 3 % 3, dp = 1 << i / 9 % 3, pp = 1 << i / 27;
    if (tp * cp * dp * pp > 8) continue;
    for (int schedule = F1B; schedule <= ZB; schedule++) {
      if (schedule == INT && (pp == 1 || l->models[l->model].cfg.n_layers < 2 * pp)) continue;
      for (int recompute = NONE; recompute <= FULL; recompute++)
        if (k++ % each == 0) add(l, tp, cp, pp, dp, schedule, recompute);
    }
  }
}

/* Some of eight grids of 8 ranks for a model of 4 layers, others for the next model. */
static void some_grids(cases *l, int model) {
  static const int grid[8][4] = {{4, 2, 1, 1}, {2, 2, 2, 1}, {4, 1, 2, 1}, {1, 2, 2, 2},
                                 {2, 4, 1, 1}, {2, 2, 1, 2}, {1, 2, 4, 1}, {2, 1, 2, 2}};
  take(l, l->models[model].name, "");
  for (int k = 0; k < 3; k++) {
    const int *n = grid[(model + 3 * k) % 8];
    int schedule = (k + model) % 3;
    if (schedule == INT && n[2] != 2) schedule = F1B;
    add(l, n[0], n[1], n[2], n[3], schedule, (k + model / 3) % 3);
  }
}

parity_case *parity_cases(bool all, const parity_model *model, int n_models, int *n) {
  cases l = {.models = model, .n_models = n_models};
  shares(&l);
  stages(&l);
  documents(&l, all);
  others(&l);
  bits(&l);
  for (int i = 0; i < PARITY_WIDE; i++) {
    const bool last = i >= PARITY_WIDE - 2;
    if (all || last) every_grid(&l, model[i].name, !all ? 4 : last ? 1 : 2);
    else some_grids(&l, i);
  }
  *n = l.n;
  return l.at;
}
