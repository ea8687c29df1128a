#include "src/info.h"
#include "io/ckpt.h"
#include "io/fsutil.h"
#include "io/manifest.h"
#include "io/tokens.h"
#include "src/model.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

typedef long long ll;

/* ---- tables by layer ---- */

typedef struct counts {
  int64_t norms, attention, mamba, mlp, all;
} counts;

/* The parameters of layer i, from the registry. */
static counts count_layer(const sk_registry *r, int64_t i) {
  char prefix[64];
  counts c = {0};
  size_t n = (size_t)snprintf(prefix, sizeof prefix, "model.layers.%lld.", (ll)i);
  for (int k = 0; k < r->n; k++) {
    if (strncmp(r->p[k].name, prefix, n) != 0) continue;
    const char *rest = r->p[k].name + n;
    int64_t *part = strncmp(rest, "self_attn.", 10) == 0      ? &c.attention
                    : strncmp(rest, "mamba.", 6) == 0         ? &c.mamba
                    : strncmp(rest, "feed_forward.", 13) == 0 ? &c.mlp
                                                              : &c.norms;
    *part += r->p[k].count;
    c.all += r->p[k].count;
  }
  return c;
}

static int64_t count_of(const sk_registry *r, const char *name) {
  int i = sk_param_find(r, name);
  return i < 0 ? 0 : r->p[i].count;
}

static void print_parameters(const sk_config *c, const sk_registry *r) {
  sk_say("\nParameters            attention        mamba          mlp    norms            all");
  for (int64_t i = 0, j; i < c->n_layers; i = j) {
    const sk_layer_cfg *a = &c->layer[i];
    for (j = i + 1; j < c->n_layers && memcmp(a, &c->layer[j], sizeof *a) == 0; j++) {}
    counts k = count_layer(r, i);
    sk_say("  %4lld..%-4lld %c%c    %12lld %12lld %12lld %8lld %14lld%s", (ll)i, (ll)j - 1, a->mixer, a->mlp ? '-' : ' ',
           (ll)k.attention, (ll)k.mamba, (ll)k.mlp, (ll)k.norms, (ll)k.all, j - i > 1 ? " each" : "");
  }
  sk_say("  embedding      %65lld", (ll)count_of(r, "model.embed_tokens.weight"));
  sk_say("  final norm     %65lld", (ll)count_of(r, "model.final_layernorm.weight"));
  if (c->model.tie_word_embeddings) sk_say("  head           %65s", "(the embedding)");
  else sk_say("  head           %65lld", (ll)count_of(r, "lm_head.weight"));
  sk_say("  all            %65lld", (ll)r->count);
}

static void print_flops(const sk_config *c, int64_t T) {
  double head = (double)(c->model.vocab_size * c->model.hidden_size), W = head, all = sk_model_flops(c, T);
  sk_say("\nForward FLOP per token at %lld tokens (attention and SSD: the causal half)\n"
         "                         matrices    attention          ssd         conv            all", (ll)T);
  for (int64_t i = 0, j; i < c->n_layers; i = j) {
    const sk_layer_cfg *a = &c->layer[i];
    sk_flops f = sk_layer_flops_by(a, T);
    for (j = i + 1; j < c->n_layers && memcmp(a, &c->layer[j], sizeof *a) == 0; j++) {}
    W += f.weights * (double)(j - i);
    sk_say("  %4lld..%-4lld %c%c    %16.0f %12.0f %12.0f %12.0f %14.0f%s", (ll)i, (ll)j - 1, a->mixer, a->mlp ? '-' : ' ',
           2 * f.weights, f.attention, f.ssd, f.conv, sk_layer_flops(a, T), j - i > 1 ? " each" : "");
  }
  sk_say("  head           %16.0f %53.0f", 2 * head, 2 * head);
  sk_say("  all            %16.0f %53.0f", 2 * W, all);
  sk_say("  matrix weights that a token meets: %.0f; training (forward and backward): %sFLOP per token", W,
         sk_si(3 * all));
}

int sk_info_tables(const sk_config *c, int64_t T, sk_err *e) {
  sk_model m = {0};
  sk_grid one;
  sk_grid_pretend(&one, (const int[SK_NAXES]){1, 1, 1, 1}, 0);
  const sk_chunk all = {0, c->n_layers, true, true};
  if (sk_model_create(&m, c, &one, 1, &all, T, e) == SK_OK) {
    print_parameters(c, &m.all);
    print_flops(c, T);
  }
  sk_model_free(&m);
  return e->code;
}

/* ---- what a path is ---- */

static void model_line(const sk_config *c) {
  sk_say("  model        %lld layers of %s, width %lld, vocabulary %lld", (ll)c->n_layers, c->pattern,
         (ll)c->model.hidden_size, (ll)c->model.vocab_size);
}

static int checkpoint_info(MPI_Comm comm, const char *path, int64_t T, sk_err *e) {
  sk_manifest *m = sk_calloc(1, sizeof *m);
  sk_config c = {0};
  bool tables = false;
  if (sk_base_rank() == 0 && sk_manifest_read(path, m, e) == SK_OK) {
    const sk_ckpt_meta *t = &m->meta;
    sk_say("%s: a checkpoint", path);
    sk_say("  run          %s", t->run_id);
    sk_say("  step         %lld, after %lld sequences and %s tokens", (ll)t->step, (ll)t->cursor, sk_si((double)t->tokens));
    sk_say("  written by   tp %lld x cp %lld x pp %lld x dp %lld", (ll)t->grid[3], (ll)t->grid[2], (ll)t->grid[0],
           (ll)t->grid[1]);
    for (int k = 0; k < m->n_file; k++)
      sk_say("  %-12s %s, %d datasets", m->file[k].name, sk_bytes((double)m->file[k].size), m->file[k].n_dset);
    tables = sk_config_from_resolved(t->deck, path, &c, e) == SK_OK;
    if (tables) model_line(&c);
    if (tables) sk_info_tables(&c, T > 0 ? T : c.data.sequence, e);
    if (!e->code) sk_say("\nOnly the manifest has been read; `saker verify %s` checks every byte.", path);
    sk_manifest_free(m);
  }
  if (tables) sk_config_free(&c);
  sk_free(m);
  return sk_agree(comm, e);
}

static int hf_info(MPI_Comm comm, const char *path, int64_t T, sk_err *e) {
  sk_config c = {0};
  char *text = NULL;
  if (sk_bcast_file(comm, path, 16 << 20, &text, e) == SK_OK && sk_config_from_hf(text, path, &c, e) == SK_OK) {
    sk_say("%s: a configuration of Hugging Face's", path);
    model_line(&c);
    sk_info_tables(&c, T > 0 ? T : 4096, e);
    sk_config_free(&c);
  }
  sk_free(text);
  return sk_agree(comm, e);
}

static int deck_info(MPI_Comm comm, const char *path, int64_t T, sk_err *e) {
  sk_config c;
  if (sk_config_read(comm, path, 0, NULL, &c, e) != SK_OK) return e->code;
  double tokens = (double)(c.train.global_batch * c.data.sequence);
  sk_say("%s: a deck", path);
  sk_say("  run          %s", c.run.dir);
  model_line(&c);
  for (int i = 0; i < c.data.n_train; i++)
    sk_say("  %-12s %s, weight %g", i ? "" : "data", c.data.train[i].path, c.data.train[i].weight);
  for (int i = 0; i < c.data.n_valid; i++) sk_say("  %-12s %s", i ? "" : "validation", c.data.valid[i].path);
  sk_say("  training     %lld steps of %lld x %lld tokens, %s tokens in all", (ll)c.train.steps, (ll)c.train.global_batch,
         (ll)c.data.sequence, sk_si(tokens * (double)c.train.steps));
  sk_info_tables(&c, T > 0 ? T : c.data.sequence, e);
  if (!e->code) sk_say("\n`saker train -i %s --dry-run --ranks N` shows the memory per rank.", path);
  sk_config_free(&c);
  return sk_agree(comm, e);
}

typedef enum kind { MISSING, FOLDER, HDF5, JSON, DECK } kind;

static kind kind_of(const char *path) {
  static const unsigned char magic[8] = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
  unsigned char head[8] = {0};
  struct stat st;
  if (stat(path, &st) != 0) return MISSING;
  if (S_ISDIR(st.st_mode)) return FOLDER;
  FILE *f = S_ISREG(st.st_mode) ? fopen(path, "rb") : NULL;
  bool hdf5 = f && fread(head, 1, 8, f) == 8 && memcmp(head, magic, 8) == 0;
  if (f) fclose(f);
  const char *dot = strrchr(path, '.');
  if (hdf5 || (dot && (strcasecmp(dot, ".h5") == 0 || strcasecmp(dot, ".hdf5") == 0))) return HDF5;
  return dot && strcasecmp(dot, ".json") == 0 ? JSON : DECK;
}

int sk_info_run(MPI_Comm comm, int argc, char **argv, sk_err *e) {
  static const struct option opts[] = {{"sequence", 1, 0, 's'}, {0}};
  long T = 0;
  int code, what;
  while (!e->code && (code = getopt_long(argc, argv, ":", opts, NULL)) != -1) {
    char *end = NULL;
    if (code != 's')
      sk_fail(e, SK_USAGE, "info: option '%s' %s\nTry: saker help info", argv[optind - 1],
              code == ':' ? "needs a value" : "is unknown");
    else if ((T = strtol(optarg, &end, 10)) < 1 || *end || T > 1 << 28)
      sk_fail(e, SK_USAGE, "info: --sequence %s: give a number of tokens from 1\nTry: saker help info", optarg);
  }
  if (!e->code && optind + 1 != argc) sk_fail(e, SK_USAGE, "info: give one PATH\nTry: saker help info");
  if (e->code) return e->code;
  const char *path = argv[optind];
  what = kind_of(path);
  SK_MPI(MPI_Bcast(&what, 1, MPI_INT, 0, comm)); /* rank 0's file system counts */
  switch (what) {
    case FOLDER: return checkpoint_info(comm, path, T, e);
    case JSON: return hf_info(comm, path, T, e);
    case DECK: return deck_info(comm, path, T, e);
    case HDF5:
      if (sk_base_rank() == 0) sk_tokens_print_info(path, e);
      return sk_agree(comm, e);
    default: return sk_fail(e, SK_FAILED, "%s: no such file or folder", path);
  }
}
