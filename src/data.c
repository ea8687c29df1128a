#include "src/data.h"
#include "io/tokens.h"
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { SLOTS = 65536, ROUNDS = 6 };

typedef struct set {
  sk_tokens *tokens;
  int64_t first, count; /* the tokens used here: all, or those on one side of data.holdout's border */
  int64_t windows;
  int64_t slots; /* how many of the SLOTS are its own */
  int64_t share; /* validation: its samples in an evaluation */
} set;

struct sk_data {
  bool shuffle, isolate;
  int64_t T, windows, tokens; /* windows: in one pass; validation: in one evaluation */
  uint64_t seed;
  int n;
  set *set;
  uint16_t *slot_set;  /* [SLOTS] which set */
  uint32_t *slot_rank; /* [SLOTS] how many slots of the same set lie before */
  int32_t *buf;        /* [T + 1] */
  int64_t *doc;        /* [T + 1] */
};

int64_t sk_permute(uint64_t key, int64_t n, int64_t i) {
  int half = 1;
  while (half < 31 && (int64_t)1 << (2 * half) < n) half++;
  uint64_t mask = ((uint64_t)1 << half) - 1, x = (uint64_t)i;
  do { /* walk the cycle until back inside 0 .. n-1 */
    uint64_t l = x >> half, r = x & mask;
    for (int k = 0; k < ROUNDS; k++) {
      uint64_t next = (l ^ sk_rand(key + (uint64_t)k, r)) & mask;
      l = r;
      r = next;
    }
    x = l << half | r;
  } while (x >= (uint64_t)n);
  return (int64_t)x;
}

/* Of a file that is not there. */
static void name_cure(const char *list, int k, sk_err *e) {
  size_t n = strlen(e->msg);
  snprintf(e->msg + n, sizeof e->msg - n, "\nIt is %s[%d] of the deck. `saker data build` makes such files: saker help data",
           list, k);
}

/* Slot i goes to the set that is furthest behind its share. */
static int fill_slots(sk_data *d, const sk_data_entry *entry, const char *list, sk_err *e) {
  double sum = 0;
  for (int k = 0; k < d->n; k++) sum += entry[k].weight;
  for (int i = 0; i < SLOTS; i++) {
    int best = 0;
    double most = -1e300;
    for (int k = 0; k < d->n; k++) {
      double behind = (i + 1) * (entry[k].weight / sum) - (double)d->set[k].slots;
      if (behind > most) most = behind, best = k;
    }
    d->slot_set[i] = (uint16_t)best;
    d->slot_rank[i] = (uint32_t)d->set[best].slots++;
  }
  for (int k = 0; k < d->n; k++)
    if (!d->set[k].slots)
      return sk_fail(e, SK_USAGE, "%s[%d]: weight %g is less than 1/%d of the sum and would "
                     "never be drawn; raise it or leave %s out", list, k, entry[k].weight, SLOTS, entry[k].path);
  return SK_OK;
}

static const char *identity(const sk_tokens_info *x) { return x->hash[0] ? x->hash : x->tokenizer; }
static bool known(const char *tokenizer) { return strcmp(tokenizer, "unknown") != 0; }

const char *sk_data_tokenizer(const sk_data *d) {
  for (int k = 0; k < d->n; k++) {
    const char *name = identity(sk_tokens_get_info(d->set[k].tokens));
    if (known(name)) return name;
  }
  return "unknown";
}

char *sk_data_tokenizer_json(const sk_data *d, size_t *n, int64_t *eos, sk_err *e) {
  for (int k = 0; k < d->n && !e->code; k++) {
    char *json = sk_tokens_tokenizer(d->set[k].tokens, n, e);
    *eos = sk_tokens_get_info(d->set[k].tokens)->eos_id;
    if (json) return json;
  }
  return NULL;
}

/* Ids of different tokenizers cannot be mixed: every set against the first whose tokenizer is known. */
static int check_tokenizers(const sk_data *d, const sk_data_entry *entry, sk_err *e) {
  int first = -1;
  for (int k = 0; k < d->n; k++) {
    const sk_tokens_info *x = sk_tokens_get_info(d->set[k].tokens);
    if (!known(identity(x))) continue;
    if (first < 0) first = k;
    const sk_tokens_info *y = sk_tokens_get_info(d->set[first].tokens);
    if (strcmp(identity(x), identity(y)) != 0)
      return sk_fail(
          e, SK_USAGE,
          "%s was made with the tokenizer %s, %s with %s%s: their ids do not mean the same",
          entry[k].path, x->tokenizer, entry[first].path, y->tokenizer,
          strcmp(x->tokenizer, y->tokenizer) ? "" : " of other contents");
  }
  return SK_OK;
}

/* The border lies at the start of a document where one is near, so that no document is on both sides. */
static void set_range(set *s, double holdout, bool held_out) {
  int64_t n = sk_tokens_get_info(s->tokens)->tokens, keep = (int64_t)((double)n * holdout),
          border = n - keep, start;
  if (keep > 0) {
    sk_tokens_doc_start(s->tokens, border, 1, &start);
    if (border - start <= keep / 2) border = start;
  }
  s->first = held_out ? border : 0;
  s->count = held_out ? n - border : border;
}

static int check_set(sk_data *d, int k, const char *path, int64_t vocab, double holdout, bool held_out, sk_err *e) {
  const sk_tokens_info *info = sk_tokens_get_info(d->set[k].tokens);
  if (info->vocab_size > vocab)
    return sk_fail(e, SK_USAGE, "%s: its vocabulary has %lld ids (tokenizer %s), the model's only %lld.\n"
                   "Set model.vocab_size to %lld or more, or build the data with another tokenizer.",
                   path, (long long)info->vocab_size, info->tokenizer, (long long)vocab,
                   (long long)info->vocab_size);
  set_range(&d->set[k], holdout, held_out);
  d->set[k].windows = (d->set[k].count - 1) / d->T;
  if (d->set[k].windows < 1)
    return sk_fail(e, SK_USAGE, "%s: %lld tokens%s are fewer than the %lld that one sample needs "
                   "(data.sequence + 1); use a shorter data.sequence or more text",
                   path, (long long)d->set[k].count, held_out ? " held out" : "", (long long)d->T + 1);
  d->windows += d->set[k].windows;
  d->tokens += d->set[k].count;
  return SK_OK;
}

/* An evaluation: everything once, or less when the deck says so; each set has its share of it. */
static void size_evaluation(sk_data *d, int64_t want) {
  if (want > 0 && want < d->windows) d->windows = want;
  for (int k = 0; k < d->n; k++) d->set[k].share = d->windows / SLOTS * d->set[k].slots;
  for (int64_t i = 0; i < d->windows % SLOTS; i++) d->set[d->slot_set[i]].share++;
}

int sk_data_open(MPI_Comm comm, const sk_config *c, bool train, sk_data **out, sk_err *e) {
  bool held_out = !train && c->data.n_valid == 0;
  const sk_data_entry *entry = train || held_out ? c->data.train : c->data.valid;
  double holdout = train || held_out ? c->data.holdout : 0;
  sk_data *d = sk_calloc(1, sizeof *d);
  *out = NULL;
  d->shuffle = train;
  d->isolate = c->data.documents == SK_DOCS_ISOLATE;
  d->T = c->data.sequence;
  d->seed = sk_hash_str((uint64_t)c->run.seed, "data order");
  d->n = train || held_out ? c->data.n_train : c->data.n_valid;
  if (train && c->data.holdout > 0 && c->data.n_valid > 0)
    sk_fail(e, SK_USAGE, "data.holdout %g and data.valid are both given: leave one out", c->data.holdout);
  d->set = sk_calloc((size_t)d->n, sizeof *d->set);
  d->slot_set = sk_calloc(SLOTS, sizeof *d->slot_set);
  d->slot_rank = sk_calloc(SLOTS, sizeof *d->slot_rank);
  d->buf = sk_calloc((size_t)d->T + 1, sizeof *d->buf);
  d->doc = sk_calloc((size_t)d->T + 1, sizeof *d->doc);
  for (int k = 0; k < d->n && !e->code; k++)
    if (sk_tokens_open(comm, entry[k].path, &d->set[k].tokens, e) == SK_OK)
      check_set(d, k, entry[k].path, c->model.vocab_size, holdout, held_out, e);
    else if (access(entry[k].path, F_OK) != 0)
      name_cure(entry == c->data.train ? "data.train" : "data.valid", k, e);
  if (!e->code) check_tokenizers(d, entry, e);
  if (!e->code) fill_slots(d, entry, train || held_out ? "data.train" : "data.valid", e);
  if (!train && !e->code) size_evaluation(d, c->train.eval_batches * c->train.global_batch);
  if (sk_agree(comm, e) != SK_OK) {
    sk_data_close(d);
    return e->code;
  }
  *out = d;
  return SK_OK;
}

void sk_data_close(sk_data *d) {
  if (!d) return;
  for (int k = 0; k < d->n; k++) sk_tokens_close(d->set[k].tokens);
  sk_free(d->set);
  sk_free(d->slot_set);
  sk_free(d->slot_rank);
  sk_free(d->buf);
  sk_free(d->doc);
  sk_free(d);
}

int64_t sk_data_windows(const sk_data *d) { return d->windows; }
int64_t sk_data_tokens(const sk_data *d) { return d->tokens; }

void sk_data_locate(const sk_data *d, int64_t s, int *which, int64_t *window) {
  int k = d->slot_set[s % SLOTS];
  const set *t = &d->set[k];
  int64_t nth = s / SLOTS * t->slots + d->slot_rank[s % SLOTS]; /* the set's how-manieth sample */
  *which = k;
  if (d->shuffle) {
    uint64_t key = sk_rand(sk_rand(d->seed, (uint64_t)k), (uint64_t)(nth / t->windows));
    *window = sk_permute(key, t->windows, nth % t->windows);
  } else if (t->share <= t->windows) {
    *window = nth * t->windows / t->share; /* evenly over the set */
  } else {
    *window = nth % t->windows;
  }
}

int sk_data_sample(sk_data *d, int64_t s, int32_t *ids, int32_t *label, int32_t *start, sk_err *e) {
  int k;
  int64_t window;
  sk_data_locate(d, s, &k, &window);
  int64_t first = d->set[k].first + window * d->T;
  if (sk_tokens_read(d->set[k].tokens, first, d->T + 1, d->buf, e) != SK_OK) return e->code;
  if (d->isolate) sk_tokens_doc_start(d->set[k].tokens, first, d->T + 1, d->doc);
  for (int64_t t = 0; t < d->T; t++) {
    ids[t] = d->buf[t];
    label[t] = d->buf[t + 1];
    start[t] = 0;
    if (!d->isolate) continue;
    if (d->doc[t] > first) start[t] = (int32_t)(d->doc[t] - first);
    if (d->doc[t + 1] == first + t + 1) label[t] = -1; /* the next document begins there */
  }
  return SK_OK;
}
