/* config.c: a deck, --set and a config.json, into struct sk_config. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "src/config.h"
#include "src/config_read.h"
#include "src/transport.h"
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- slots ---- */

const sk_slot *sk_reader_slot(const sk_reader *r, const char *path) {
  int k = sk_key_find(path);
  SK_CHECK(k >= 0, "no key \"%s\" in the table", path);
  return &r->slot[k];
}

sk_mark sk_reader_mark(const sk_reader *r, const char *path) {
  const sk_slot *s = sk_reader_slot(r, path);
  return s->given ? s->node->mark : (sk_mark){r->name, NULL, 0, 0};
}

void sk_reader_mistake(sk_reader *r, const char *path, const char *fmt, ...) {
  char msg[600];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(msg, sizeof msg, fmt, ap);
  va_end(ap);
  sk_mark m = sk_reader_mark(r, path);
  sk_mistake(&r->bad, &m, "%s", msg);
}

void sk_unknown_key(sk_reader *r, const sk_mark *mark, const char *path, const char *list) {
  const char *near = sk_key_nearest(path, list);
  sk_mistake(&r->bad, mark, "unknown key \"%.80s\"%s%s%s", path, near ? "; did you mean \"" : "",
             near ? near : "", near ? "\"?" : "");
}

static void fill(sk_reader *r, int k, const sk_node *n, const sk_node *source, const char *folder) {
  sk_slot *s = &r->slot[k];
  bool given = source != r->decks[0].root; // the first text holds the defaults
  if (given && s->source == source)
    sk_mistake(&r->bad, &n->mark, "%s is given twice", sk_keys[k].path);
  *s = (sk_slot){n, given ? s->dflt : n, source, folder, given, false};
}

static void take(sk_reader *r, const sk_node *map, const char *path, const sk_node *source,
                 const char *folder);

// One key and its value: into its slot, or deeper when it is a section.
static void take_one(sk_reader *r, const sk_node *n, const sk_mark *key, const char *path,
                     bool dotted, const sk_node *source, const char *folder) {
  int k = dotted ? -1 : sk_key_find(path);
  if (k >= 0)
    fill(r, k, n, source, folder);
  else if (dotted && (sk_key_find(path) >= 0 || sk_key_is_section(path)))
    sk_mistake(&r->bad, key, "keys are nested in a deck: \"%s\" is written with its last word below "
               "\"%.*s:\"", path, (int)(strrchr(path, '.') - path), path);
  else if (dotted || !sk_key_is_section(path))
    sk_unknown_key(r, key, path, NULL);
  else if (n->kind == SK_NODE_MAP)
    take(r, n, path, source, folder);
  else if (!sk_node_is_null(n)) // a section whose keys are all commented out is fine
    sk_mistake(&r->bad, &n->mark, "%s: a section of keys is expected, not %s", path,
               sk_node_what(n));
}

// path: the section's, "" at the top.
static void take(sk_reader *r, const sk_node *map, const char *path, const sk_node *source,
                 const char *folder) {
  for (const sk_node *n = map->child; n; n = n->next) {
    char *below = sk_strf("%s%s%s", path, *path ? "." : "", n->key);
    take_one(r, n, &n->key_mark, below, strchr(n->key, '.') != NULL, source, folder);
    sk_free(below);
  }
}

static const sk_deck *parse(sk_reader *r, const char *text, const char *where, bool rows) {
  r->decks = sk_realloc(r->decks, (size_t)(r->n_decks + 1) * sizeof *r->decks);
  sk_deck *d = &r->decks[r->n_decks++];
  sk_deck_parse(text, strlen(text), where, rows, d, &r->bad);
  return d;
}

static void begin(sk_reader *r, sk_config *c, const char *name) {
  *r = (sk_reader){.c = c, .name = name};
  *c = (sk_config){0};
  r->slot = sk_calloc((size_t)sk_n_keys, sizeof *r->slot);
  char *text = sk_keys_defaults(false);
  const sk_deck *d = parse(r, text, "defaults", true);
  sk_free(text);
  SK_CHECK(d->root, "the key table's defaults are no YAML");
  take(r, d->root, "", d->root, NULL);
}

static void take_deck(sk_reader *r, const char *text, const char *folder) {
  int before = r->bad.n;
  const sk_deck *d = parse(r, text, r->name, true);
  sk_mark top = {r->name, NULL, 0, 0};
  if (d->root && d->root->kind == SK_NODE_MAP)
    take(r, d->root, "", d->root, folder);
  else if (d->root)
    sk_mistake(&r->bad, &d->root->mark, "a deck is a mapping of sections, not %s",
               sk_node_what(d->root));
  else if (r->bad.n == before)
    sk_mistake(&r->bad, &top, "the deck is empty");
  r->broken = !d->root || d->root->kind != SK_NODE_MAP;
}

// `a.b=V`: V replaces the whole value, of a section as well.
static void take_set(sk_reader *r, const char *set, const char *folder) {
  const char *eq = strchr(set, '=');
  char *path = eq ? sk_strf("%.*s", (int)(eq - set), set) : sk_strdup(set);
  char *where = sk_strf("--set %s", path);
  int before = r->bad.n;
  const sk_deck *d = parse(r, eq ? eq + 1 : "", where, false);
  sk_mark m = {d->where, NULL, 0, 0};
  if (!eq) {
    sk_mistake(&r->bad, &m, "\"=VALUE\" is missing");
  } else if (!path[0]) {
    sk_mistake(&r->bad, &m, "the key before \"=\" is missing");
  } else if (r->bad.n == before) {
    size_t n = strlen(path);
    for (int i = 0; i < sk_n_keys && sk_key_is_section(path); i++)
      if (!strncmp(sk_keys[i].path, path, n) && sk_keys[i].path[n] == '.')
        r->slot[i] = (sk_slot){r->slot[i].dflt, r->slot[i].dflt, NULL, NULL, false, false};
    // nothing after "=" is YAML's empty value
    sk_node *value = d->root ? d->root : sk_node_new(SK_NODE_SCALAR, "", true, &m);
    r->decks[r->n_decks - 1].root = value;
    take_one(r, value, &m, path, false, value, folder);
  }
  sk_free(where);
  sk_free(path);
}

/* ---- checks over several keys ---- */

static bool sound(const sk_reader *r, const char *a, const char *b) {
  return !sk_reader_slot(r, a)->bad && !sk_reader_slot(r, b)->bad;
}

static void check_batch(sk_reader *r) {
  int64_t global = r->c->train.global_batch, micro = r->c->train.micro_batch;
  if (!sound(r, "train.global_batch", "train.micro_batch") || global % micro == 0) return;
  int64_t below = global / micro * micro, above = below + micro;
  if (below)
    sk_reader_mistake(r, "train.global_batch",
                      "train.global_batch %lld is not a multiple of train.micro_batch %lld; %lld and "
                      "%lld are", (long long)global, (long long)micro, (long long)below,
                      (long long)above);
  else
    sk_reader_mistake(r, "train.global_batch",
                      "train.global_batch %lld is less than train.micro_batch %lld",
                      (long long)global, (long long)micro);
}

static void check_schedule(sk_reader *r) {
  const sk_config *c = r->c;
  int64_t warmup = c->optimizer.schedule.warmup, decay = c->optimizer.schedule.decay;
  int64_t steps = c->train.steps;
  if (sound(r, "optimizer.schedule.min_lr", "optimizer.lr") &&
      c->optimizer.schedule.min_lr > c->optimizer.lr)
    sk_reader_mistake(r, "optimizer.schedule.min_lr",
                      "optimizer.schedule.min_lr %g is above optimizer.lr %g",
                      c->optimizer.schedule.min_lr, c->optimizer.lr);
  if (c->optimizer.schedule.kind == SK_LR_WSD &&
      sound(r, "optimizer.schedule.warmup", "optimizer.schedule.decay") &&
      sound(r, "train.steps", "optimizer.schedule.kind") &&
      (warmup > steps || decay > steps - warmup))
    sk_reader_mistake(r, "optimizer.schedule.decay",
                      "a wsd schedule with warmup %lld and decay %lld needs more than train.steps %lld",
                      (long long)warmup, (long long)decay, (long long)steps);
}

static void check_parallel(sk_reader *r) {
  const sk_config *c = r->c;
  bool gpus = c->parallel.transport == SK_TRANSPORT_IPC || c->parallel.transport == SK_TRANSPORT_NCCL;
  if (sound(r, "parallel.transport", "run.device") && gpus && c->run.device == SK_DEVICE_CPU)
    sk_reader_mistake(r, "parallel.transport",
                      "parallel.transport ipc and nccl are for GPUs and run.device is cpu; auto serves both");
}

static void check_model(sk_reader *r) {
  const sk_model_cfg *m = &r->c->model;
  if (sound(r, "model.pad_token_id", "model.vocab_size") && m->pad_token_id >= m->vocab_size)
    sk_reader_mistake(r, "model.pad_token_id",
                      "model.pad_token_id %lld is no row of the embedding: model.vocab_size is %lld",
                      (long long)m->pad_token_id, (long long)m->vocab_size);
  if (!sk_reader_slot(r, "model.time_step_limit")->bad &&
      m->time_step_limit[0] > m->time_step_limit[1])
    sk_reader_mistake(r, "model.time_step_limit",
                      "model.time_step_limit: the lowest step %g is above the highest, %g",
                      m->time_step_limit[0], m->time_step_limit[1]);
}

/* ---- all keys into the struct ---- */

static bool is_model(const sk_key *k) { return !strncmp(k->path, "model.", 6); }

static void read_keys(sk_reader *r, bool model_only) {
  for (int i = 0; i < sk_n_keys; i++) {
    const sk_key *k = &sk_keys[i];
    sk_slot *s = &r->slot[i];
    bool elsewhere = strchr(k->path, '[') || k->type == SK_KEY_LIST ||
                     !strcmp(k->path, "model.hf_config");
    if (elsewhere || (model_only && !is_model(k))) continue;
    s->bad = !sk_key_read(k, s->node, s->folder, r->c, &r->bad);
    if (s->bad) sk_key_read(k, s->dflt, NULL, r->c, NULL); // the checks that follow need a value
  }
}

// What a deck is for: training; a model alone; or one of a checkpoint, which may have been no training's.
typedef enum purpose { TRAINING, MODEL, RESOLVED } purpose;

static void finish(sk_reader *r, purpose p) {
  const sk_slot *hf = sk_reader_slot(r, "model.hf_config");
  if (r->broken) return;
  read_keys(r, p == MODEL);
  if (p == TRAINING || (p == RESOLVED && sk_reader_slot(r, "data.train")->given)) {
    sk_mark top = {r->name, NULL, 0, 0};
    if (sk_node_is_null(hf->node) && !sk_reader_slot(r, "model.hidden_size")->given)
      sk_mistake(&r->bad, &top, "no model: model.hf_config (a Hugging Face config.json) or "
                                "model.hidden_size and the other sizes must be given");
    sk_lists_read(r);
    check_batch(r);
    check_schedule(r);
    check_parallel(r);
  }
  sk_layers_read(r);
  check_model(r);
}

static char *resolved_value(const sk_key *k, const void *base) {
  if (k->flags & SK_KEY_IGNORED) return NULL;
  return k->type == SK_KEY_LIST ? sk_list_text(k, base) : sk_key_text(k, base);
}

static char *model_value(const sk_key *k, const void *base) {
  return is_model(k) ? resolved_value(k, base) : NULL;
}

// Turns the mistakes into e, or writes the resolved deck; frees the reader, and c after a mistake.
static int end(sk_reader *r, bool model_only, sk_err *e) {
  if (sk_mistakes_fail(&r->bad, e))
    sk_config_free(r->c);
  else
    r->c->resolved = sk_keys_deck(model_only ? model_value : resolved_value, r->c);
  for (int i = 0; i < r->n_decks; i++) sk_deck_free(&r->decks[i]);
  sk_free(r->decks);
  sk_free(r->slot);
  sk_node_free(r->hf);
  sk_free(r->hf_name);
  sk_free(r->hf_text);
  return e->code;
}

/* ---- files ---- */

typedef struct folders {
  char deck[PATH_MAX], cwd[PATH_MAX];
} folders;

// Collective: rank 0's working directory and the deck's folder, both absolute.
static int find_folders(MPI_Comm comm, const char *deck, folders *f, sk_err *e) {
  int rank;
  MPI_Comm_rank(comm, &rank);
  memset(f, 0, sizeof *f);
  if (rank == 0) {
    const char *slash = strrchr(deck, '/');
    char *dir = slash ? sk_strf("%.*s", slash == deck ? 1 : (int)(slash - deck), deck)
                      : sk_strdup(".");
    if (!getcwd(f->cwd, sizeof f->cwd))
      sk_fail(e, SK_FAILED, "the working directory cannot be found: %s", strerror(errno));
    else if (!realpath(dir, f->deck))
      sk_fail(e, SK_USAGE, "%s: cannot be opened: %s", deck, strerror(errno));
    sk_free(dir);
  }
  if (sk_agree(comm, e)) return e->code;
  SK_MPI(MPI_Bcast(f, (int)sizeof *f, MPI_BYTE, 0, comm));
  return SK_OK;
}

// Collective. Like sk_bcast_file, and refuses texts with NUL bytes, which would end them early.
static int read_text(MPI_Comm comm, const char *path, char **text, sk_err *e) {
  int rank;
  struct stat st;
  if (sk_bcast_file(comm, path, SK_DECK_MAX_BYTES, text, e)) return e->code;
  MPI_Comm_rank(comm, &rank);
  size_t n = strlen(*text);
  if (rank == 0 && stat(path, &st) == 0 && S_ISREG(st.st_mode) && (size_t)st.st_size != n) {
    sk_mark m = sk_mark_at(path, *text, n);
    sk_fail(e, SK_USAGE, "%s:%d:%d: error: byte 0x00 is no text", path, m.row, m.col);
  }
  if (!sk_agree(comm, e)) return SK_OK;
  sk_free(*text);
  *text = NULL;
  return e->code;
}

// Collective: all ranks have the same slots, so all come here or none.
static void read_hf_file(MPI_Comm comm, sk_reader *r) {
  const sk_slot *s = sk_reader_slot(r, "model.hf_config");
  sk_key k = sk_keys[sk_key_find("model.hf_config")];
  k.offset = 0; // into `path`
  char *path = NULL;
  sk_err e = {0};
  if (!sk_key_read(&k, s->node, s->folder, &path, &r->bad)) {
    r->model_unsure = true;
  } else if (path && read_text(comm, path, &r->c->hf_json, &e)) {
    sk_reader_mistake(r, k.path, "%s", e.msg);
    r->model_unsure = true;
  } else if (path) {
    sk_hf_read(r, path);
  }
  sk_free(path);
}

int sk_config_read(MPI_Comm comm, const char *deck, int n_set, char *const *sets, sk_config *c,
                   sk_err *e) {
  folders f;
  char *text;
  *c = (sk_config){0};
  if (find_folders(comm, deck, &f, e)) return e->code;
  if (read_text(comm, deck, &text, e)) return e->code = SK_USAGE; // no deck is a wrong deck
  sk_reader r;
  begin(&r, c, deck);
  take_deck(&r, text, f.deck);
  for (int i = 0; i < n_set; i++) take_set(&r, sets[i], f.cwd);
  sk_free(text);
  read_hf_file(comm, &r);
  finish(&r, TRAINING);
  end(&r, false, e);
  int code = sk_agree(comm, e);
  if (code) sk_config_free(c);
  return code;
}

int sk_config_from_hf(const char *json, const char *where, sk_config *c, sk_err *e) {
  sk_reader r;
  begin(&r, c, where);
  c->hf_json = sk_strdup(json);
  sk_hf_read(&r, where);
  finish(&r, MODEL);
  return end(&r, true, e);
}

void sk_config_free(sk_config *c) {
  for (int i = 0; i < c->data.n_train; i++) sk_free(c->data.train[i].path);
  for (int i = 0; i < c->data.n_valid; i++) sk_free(c->data.valid[i].path);
  for (int i = 0; i < c->optimizer.n_groups; i++) sk_free(c->optimizer.groups[i].match);
  sk_free(c->data.train);
  sk_free(c->data.valid);
  sk_free(c->optimizer.groups);
  sk_free(c->run.dir);
  sk_free(c->train.init);
  sk_free(c->log.trace);
  sk_free(c->pattern);
  sk_free(c->layer);
  sk_free(c->resolved);
  sk_free(c->hf_json);
  *c = (sk_config){0};
}

/* ---- restart ---- */

int sk_config_from_resolved(const char *resolved, const char *where, sk_config *c, sk_err *e) {
  sk_reader r;
  begin(&r, c, where);
  take_deck(&r, resolved, NULL);
  finish(&r, RESOLVED);
  return end(&r, false, e);
}

typedef enum scope { RESTART, MODEL_ONLY } scope;

static bool in_scope(const sk_key *k, scope s) {
  if (k->flags & SK_KEY_IGNORED || strchr(k->path, '[')) return false;
  return s == RESTART ? !(k->flags & SK_KEY_RESTART) : strncmp(k->path, "model.", 6) == 0;
}

/* The lines "key: old -> new" of two resolved decks; owned by the caller. */
static char *differences(const char *old_resolved, const char *new_resolved, scope s, sk_err *e) {
  sk_config was, now = {0};
  char *diff = NULL;
  size_t size = 0;
  if (sk_config_from_resolved(old_resolved, "the checkpoint's deck", &was, e)) return NULL;
  FILE *out = open_memstream(&diff, &size);
  SK_CHECK(out, "out of memory while comparing decks");
  bool readable = !sk_config_from_resolved(new_resolved, "the new deck", &now, e);
  for (int i = 0; i < sk_n_keys && readable; i++) {
    const sk_key *k = &sk_keys[i];
    if (!in_scope(k, s)) continue;
    char *a = resolved_value(k, &was), *b = resolved_value(k, &now);
    if (strcmp(a, b) != 0) fprintf(out, "\n  %s: %s -> %s", k->path, a, b);
    sk_free(a);
    sk_free(b);
  }
  fclose(out);
  sk_config_free(&was);
  sk_config_free(&now);
  return diff;
}

int sk_config_restart_diff(const char *old_resolved, const char *new_resolved, sk_err *e) {
  char *diff = differences(old_resolved, new_resolved, RESTART, e);
  if (!e->code && *diff)
    sk_fail(e, SK_USAGE,
            "the deck differs from the checkpoint's where a restart allows no change:%.7000s\n"
            "Put the old values back, or train into another run.dir (train.init takes the weights "
            "along).", diff);
  sk_free(diff);
  return e->code;
}

int sk_config_model_diff(const char *old_resolved, const char *new_resolved, sk_err *e) {
  char *diff = differences(old_resolved, new_resolved, MODEL_ONLY, e);
  if (!e->code && *diff)
    sk_fail(e, SK_USAGE, "the deck's model is not the checkpoint's:%.7000s\nTake the deck of the run that wrote it.", diff);
  sk_free(diff);
  return e->code;
}
