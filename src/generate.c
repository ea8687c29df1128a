#include "src/generate.h"
#include "io/tokenizer.h"
#include "src/checkpoint.h"
#include "src/device.h"
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { PIECE = 128 }; /* tokens fed at once */

static void bind(sk_decoder *d) {
  sk_ctx *c = &d->engine.ctx;
  sk_arena *a = &d->memory;
  for (int64_t i = 0; i < d->engine.model.n_layers; i++) {
    const sk_layer *l = &d->engine.model.layer[i];
    sk_layer_cache *k = &d->cache[i];
    if (l->mixer != 'M')
      k->attention.kv = sk_take_act(c, a, d->capacity * 2 * l->attention.KV * l->attention.hd);
    if (l->mixer == '*') continue;
    k->mamba.halo = sk_take_act(c, a, (l->mamba.K - 1) * l->mamba.cd);
    for (int s = 0; s < 2; s++)
      k->mamba.state[s] = sk_take_f32(a, l->mamba.nh * l->mamba.P * l->mamba.N);
  }
  d->ids = sk_arena_take(a, (size_t)d->piece * sizeof(int32_t));
  d->start = sk_arena_take(a, (size_t)d->piece * sizeof(int32_t));
  d->key_start = sk_arena_take(a, (size_t)d->piece * sizeof(int32_t));
  d->logits = sk_take_f32(a, d->engine.model.cfg->vocab_size);
}

int sk_decoder_open(sk_decoder *d, const sk_config *cfg, const sk_ops *op, int64_t capacity, int64_t piece,
                    sk_err *e) {
  *d = (sk_decoder){.capacity = capacity, .piece = piece};
  sk_grid_pretend(&d->grid, (const int[SK_NAXES]){1, 1, 1, 1}, 0);
  if (sk_engine_open(&d->engine, cfg, op, sk_device_comm(op), &d->grid, false, 1, piece, capacity, e) != SK_OK)
    return e->code;
  d->cache = sk_calloc((size_t)cfg->n_layers, sizeof *d->cache);
  sk_arena_plan(&d->memory, "cache");
  bind(d);
  if (sk_arena_alloc(&d->memory, op, d->engine.ctx.dev, "the cache", d->memory.peak, e) != SK_OK) {
    sk_decoder_close(d);
    return e->code;
  }
  bind(d);
  sk_decoder_reset(d);
  return SK_OK;
}

void sk_decoder_close(sk_decoder *d) {
  if (d->engine.ctx.dev) sk_arena_free(&d->memory, d->engine.ctx.op, d->engine.ctx.dev);
  sk_engine_close(&d->engine);
  sk_free(d->cache);
  *d = (sk_decoder){0};
}

void sk_decoder_reset(sk_decoder *d) {
  const sk_ctx *c = &d->engine.ctx;
  c->op->zero(c->st, d->memory.base, d->memory.size);
  d->pos = 0;
}

static void feed_piece(sk_decoder *d, const int32_t *ids, int64_t n, bool last) {
  sk_ctx *c = &d->engine.ctx;
  sk_model *m = &d->engine.model;
  int32_t *zero = sk_calloc((size_t)n, sizeof *zero), *start = sk_calloc((size_t)n, sizeof *start);
  size_t bytes = (size_t)n * sizeof *ids;
  for (int64_t t = 0; t < n; t++) start[t] = (int32_t)-d->pos; /* one document from position 0 */
  c->op->from_host(c->st, d->ids, ids, bytes);
  c->op->from_host(c->st, d->start, start, bytes);
  c->op->from_host(c->st, d->key_start, zero, bytes);
  sk_slot *s = &d->engine.slot[0];
  sk_tokens_here t = {.n_pieces = 1, .n = n, .n_local = n, .length = d->pos + n};
  t.piece[0] = (sk_piece){.b = 1, .T = n, .pos = d->pos, .start = d->start, .key_start = d->key_start};
  sk_slot_begin(m, c, s, &t, false);
  s->ids = d->ids;
  const void *hidden = sk_model_hidden(m, c, s, d->cache);
  if (last) sk_model_logits(m, c, d->logits, m->nv, sk_at(c, hidden, (n - 1) * m->cfg->hidden_size), 1);
  c->op->sync(c->st);
  d->pos += n;
  sk_free(zero);
  sk_free(start);
}

void sk_decoder_feed(sk_decoder *d, const int32_t *ids, int64_t n, float *logits) {
  const sk_ctx *c = &d->engine.ctx;
  SK_CHECK(n >= 1 && d->pos + n <= d->capacity, "%lld tokens after %lld of %lld", (long long)n,
           (long long)d->pos, (long long)d->capacity);
  for (int64_t at = 0; at < n; at += d->piece) {
    int64_t k = n - at < d->piece ? n - at : d->piece;
    feed_piece(d, ids + at, k, at + k == n);
  }
  c->op->to_host(c->st, logits, d->logits, (size_t)d->engine.model.cfg->vocab_size * sizeof *logits);
}

/* Draws from softmax(logits / temperature) over the n first ids; u in (0, 1). */
static int32_t pick(const float *logits, int64_t n, double temperature, double u) {
  int64_t best = 0;
  double sum = 0;
  for (int64_t i = 1; i < n; i++)
    if (logits[i] > logits[best]) best = i;
  if (temperature <= 0) return (int32_t)best;
  for (int64_t i = 0; i < n; i++) sum += exp(((double)logits[i] - logits[best]) / temperature);
  double left = u * sum;
  for (int64_t i = 0; i < n; i++) {
    left -= exp(((double)logits[i] - logits[best]) / temperature);
    if (left <= 0) return (int32_t)i;
  }
  return (int32_t)best;
}

/* Rank 0's tokenizer, and what all ranks know of it. */
typedef struct text {
  sk_tokenizer *tokenizer;
  sk_ids prompt;
  int64_t limit; /* ids that may be drawn are below */
  int64_t eos;
} text;

static void print(void *to, const char *bytes, size_t n) {
  (void)to;
  fwrite(bytes, 1, n, stdout);
  fflush(stdout);
}

static void write_text(sk_decoder *d, const sk_generate_opts *o, const text *x) {
  float *logits = sk_calloc((size_t)d->engine.model.cfg->vocab_size, sizeof *logits);
  uint64_t key = sk_hash_str((uint64_t)o->seed, "generate");
  sk_detok out = {.write = print};
  if (x->tokenizer) print(NULL, o->prompt, strlen(o->prompt));
  sk_decoder_feed(d, x->prompt.at, x->prompt.n, logits);
  for (int64_t k = 0; k < o->tokens; k++) {
    int32_t next = pick(logits, x->limit, o->temperature, sk_uniform(key, (uint64_t)k));
    if (next == x->eos) break;
    if (x->tokenizer) sk_detok_push(&out, x->tokenizer, next);
    if (k + 1 < o->tokens) sk_decoder_feed(d, &next, 1, logits);
  }
  if (x->tokenizer) sk_detok_finish(&out), print(NULL, "\n", 1);
  sk_free(logits);
}

/* eos_token of the tokenizer_config.json that goes along; owned by the caller, NULL: none. */
static char *eos_token(const sk_ckpt_meta *meta) {
  const sk_ckpt_side *side = sk_ckpt_side_find(meta, "tokenizer_config.json");
  json_t *j = side ? json_loadb(side->data, side->size, 0, NULL) : NULL, *x = json_object_get(j, "eos_token");
  if (json_is_object(x)) x = json_object_get(x, "content");
  char *token = json_is_string(x) ? sk_strdup(json_string_value(x)) : NULL;
  json_decref(j);
  return token;
}

/* Rank 0: the one asked for, or that of the checkpoint. Without any, a vocabulary as small as that can only be of bytes. */
static void find_tokenizer(const sk_generate_opts *o, const sk_config *c, const sk_ckpt_meta *meta, text *x, sk_err *e) {
  enum { SMALL = 512 };
  const sk_ckpt_side *side = sk_ckpt_side_find(meta, "tokenizer.json");
  if (o->tokenizer) {
    sk_tokenizer_open(MPI_COMM_SELF, o->tokenizer, NULL, &x->tokenizer, e);
  } else if (side) {
    char *where = sk_strf("%s/tokenizer.json", o->from), *eos = eos_token(meta);
    sk_tokenizer_parse(side->data, side->size, where, eos, &x->tokenizer, e);
    sk_free(where);
    sk_free(eos);
  } else if (c->model.vocab_size < SMALL) {
    sk_tokenizer_open(MPI_COMM_SELF, "bytes", NULL, &x->tokenizer, e);
  } else {
    sk_fail(e, SK_USAGE, "%s holds no tokenizer.json: give --tokenizer PATH/tokenizer.json, or --tokenizer bytes", o->from);
  }
}

/* Collective: the prompt's ids on every rank. */
static int encode(MPI_Comm comm, const sk_generate_opts *o, const sk_config *c, const sk_ckpt_meta *meta, text *x,
                  sk_err *e) {
  const int64_t vocab = c->model.vocab_size;
  if (!o->prompt[0]) sk_fail(e, SK_USAGE, "--prompt: give at least one character");
  if (!e->code && sk_base_rank() == 0) find_tokenizer(o, c, meta, x, e);
  if (!e->code && x->tokenizer) {
    x->limit = sk_tokenizer_vocab(x->tokenizer);
    x->eos = sk_tokenizer_eos(x->tokenizer);
    if (x->limit > vocab)
      sk_fail(e, SK_USAGE, "%s: its vocabulary has %lld ids, the tokenizer %s needs %lld", o->from, (long long)vocab,
              sk_tokenizer_name(x->tokenizer), (long long)x->limit);
    else if (sk_tokenizer_encode(x->tokenizer, o->prompt, strlen(o->prompt), &x->prompt, e) == SK_OK && x->prompt.n == 0)
      sk_fail(e, SK_USAGE, "--prompt: there is no token in it");
  }
  if (sk_agree(comm, e) != SK_OK) return e->code;
  int64_t head[3] = {x->prompt.n, x->limit, x->eos};
  SK_MPI(MPI_Bcast(head, 3, MPI_INT64_T, 0, comm));
  if (!x->tokenizer) sk_ids_room(&x->prompt, head[0]);
  x->prompt.n = head[0];
  x->limit = head[1];
  x->eos = head[2];
  SK_MPI(MPI_Bcast(x->prompt.at, (int)head[0], MPI_INT32_T, 0, comm));
  return SK_OK;
}

int sk_generate(MPI_Comm comm, const sk_generate_opts *o, sk_err *e) {
  sk_ckpt_meta meta = {0};
  sk_config cfg = {0};
  sk_decoder d = {0};
  text x = {0};
  if (sk_ckpt_open(comm, o->from, &meta, NULL, e) == SK_OK) sk_config_from_resolved(meta.deck, o->from, &cfg, e);
  if (sk_agree(comm, e) == SK_OK && encode(comm, o, &cfg, &meta, &x, e) == SK_OK) {
    /* Where the deck says cuda the run had a GPU; what is here now is taken. */
    int device = cfg.run.device == SK_DEVICE_CPU ? SK_DEVICE_CPU : SK_DEVICE_AUTO;
    const sk_ops *op = sk_device_choose(comm, device, true, false, e);
    if (op) sk_decoder_open(&d, &cfg, op, x.prompt.n + o->tokens, PIECE, e);
    if (sk_agree(comm, e) == SK_OK && sk_checkpoint_load(comm, &d.engine, o->from, true, e) == SK_OK)
      write_text(&d, o, &x);
  }
  sk_decoder_close(&d);
  sk_config_free(&cfg);
  sk_ckpt_meta_free(&meta);
  sk_tokenizer_close(x.tokenizer);
  sk_free(x.prompt.at);
  return e->code;
}
