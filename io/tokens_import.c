/* Token files of other programs to a token data set. Rank 0 reads and checks the headers; then the tokens are one
 * long stream of parts (files), of which every rank copies a contiguous share, in two passes: the largest id and the
 * number of documents, then the data. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/tokens_import.h"
#include "io/fsutil.h"
#include "io/text_list.h"
#include "io/tokenizer.h"
#include "io/tokens.h"
#include "io/tokens_write.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 1 << 20 /* tokens */ };

typedef struct work {
  MPI_Comm comm;
  int rank, size;
  const sk_import_opts *o;
  sk_import in;
  sk_tokenizer *tok;
  int64_t vocab, eos;
  int64_t lo, hi;      /* my tokens */
  int64_t max, docs;   /* largest id; documents that start in my share, later before it */
  int open;            /* the part whose file is open; -1: none */
  int fd;
  unsigned char *raw;  /* [BLOCK * 8] */
  uint32_t *id;        /* [BLOCK + 1] */
} work;

/* ---- reading ---- */

static int open_part(work *w, int k, sk_err *e) {
  if (w->open == k) return SK_OK;
  if (w->fd >= 0) close(w->fd);
  w->open = k;
  w->fd = open(w->in.part[k].bin, O_RDONLY | O_CLOEXEC);
  return w->fd < 0 ? sk_fs_fail(e, w->in.part[k].bin, "read", errno) : SK_OK;
}

static int64_t value(const unsigned char *p, int width, bool sign) {
  uint64_t x = 0;
  for (int i = 0; i < width; i++) x |= (uint64_t)p[i] << 8 * i;
  if (sign && width < 8 && x >> (8 * width - 1)) x |= ~(uint64_t)0 << 8 * width;
  return (int64_t)x;
}

/* Tokens first .. first+n-1 of the whole, n <= BLOCK + 1, into w->id; every id is checked. */
static int read_ids(work *w, int64_t first, int64_t n, sk_err *e) {
  int k = 0;
  while (k + 1 < w->in.n && w->in.part[k + 1].first <= first) k++;
  for (int64_t done = 0; done < n && !e->code;) {
    const sk_import_part *p = &w->in.part[k];
    int64_t from = first + done - p->first, left = p->n - from, m = n - done < left ? n - done : left;
    if (m > BLOCK) m = BLOCK;
    if (m == 0) {
      k++;
      continue;
    }
    if (open_part(w, k, e) != SK_OK) break;
    size_t want = (size_t)m * (size_t)p->width;
    if (sk_import_read(w->fd, p->bin, p->at + from * p->width, w->raw, want, e) != SK_OK) break;
    for (int64_t i = 0; i < m; i++) {
      int64_t x = value(w->raw + i * p->width, p->width, p->sign);
      if (x < 0 || x >= w->vocab)
        return sk_fail(e, SK_FAILED, "%s: token %lld is %lld; ids are from 0 to %lld here%s", p->bin, (long long)(from + i),
                       (long long)x, (long long)w->vocab - 1,
                       w->vocab < INT32_MAX ? " (--vocab N, or another --tokenizer, for more)" : "");
      w->id[done + i] = (uint32_t)x;
    }
    done += m;
  }
  return e->code;
}

/* ---- the passes ---- */

/* A document starts at the head of a file that is no continuation, and behind each end-of-text, but for one that is
 * the first token of all (llm.c puts it before each document). */
static bool starts(const work *w, int64_t i, uint32_t before, int *part) {
  while (*part + 1 < w->in.n && w->in.part[*part + 1].first <= i) ++*part;
  if (i == 0 || (w->in.part[*part].first == i && w->in.part[*part].fresh)) return true;
  return before == (uint32_t)w->eos && w->eos >= 0 && i > 1;
}

/* My share, block by block; out: NULL in the first pass. */
static void pass(work *w, sk_tokens_writer *out, sk_err *e) {
  double said = sk_now(), began = said;
  uint64_t *doc = sk_malloc(BLOCK * sizeof *doc);
  int64_t doc_at = w->docs;
  int part = 0;
  for (int64_t at = w->lo, n; at < w->hi && !e->code; at += n) {
    n = w->hi - at < BLOCK ? w->hi - at : BLOCK;
    int64_t behind = at > 0, docs = 0;
    if (read_ids(w, at - behind, n + behind, e) != SK_OK) break;
    const uint32_t *id = w->id + behind;
    for (int64_t i = 0; i < n; i++) {
      if ((int64_t)id[i] > w->max) w->max = id[i];
      if (!w->in.counted && starts(w, at + i, at + i > 0 ? id[i - 1] : 0, &part)) doc[docs++] = (uint64_t)(at + i);
    }
    if (out) {
      if (out->width == 2)
        for (int64_t i = 0; i < n; i++) ((uint16_t *)w->raw)[i] = (uint16_t)id[i];
      sk_tokens_put(out, at, n, out->width == 2 ? (const void *)w->raw : id, e);
      sk_tokens_put_docs(out, doc_at, docs, doc, e);
    }
    doc_at += docs;
    if (w->rank == 0 && sk_now() - said >= 5) {
      said = sk_now();
      double share = (double)(at + n - w->lo) / (double)(w->hi - w->lo);
      sk_say("%s: %.0f %%, %.0f s left", out ? "writing" : "reading", 100 * share, (said - began) * (1 - share) / share);
    }
  }
  if (!out) w->docs = doc_at;
  sk_free(doc);
}

typedef struct doc_out {
  sk_tokens_writer *out;
  int64_t at, n;
  uint64_t start[4096];
} doc_out;

static void put_doc(void *to, int64_t start, sk_err *e) {
  doc_out *d = to;
  if (start >= 0) d->start[d->n++] = (uint64_t)start;
  if (d->n < 4096 && start >= 0) return;
  sk_tokens_put_docs(d->out, d->at, d->n, d->start, e);
  d->at += d->n;
  d->n = 0;
}

/* Rank 0: the documents that Megatron's index names. */
static void write_index(work *w, sk_tokens_writer *out, sk_err *e) {
  doc_out *d = sk_calloc(1, sizeof *d);
  d->out = out;
  for (int k = 0; k < w->in.n && !e->code; k++) sk_import_documents(&w->in.part[k], put_doc, d, e);
  put_doc(d, -1, e);
  sk_free(d);
}

/* What the ids mean: of the tokenizer, else what was given, else what the format is known for. */
static void choose_ids(work *w, sk_err *e) {
  const sk_import_opts *o = w->o;
  w->vocab = w->tok ? sk_tokenizer_vocab(w->tok) : o->vocab > 0 ? o->vocab : w->in.vocab;
  w->eos = o->eos >= 0 ? o->eos : w->tok ? sk_tokenizer_eos(w->tok) : w->in.eos;
  if (w->tok && o->vocab > 0 && o->vocab < w->vocab)
    sk_fail(e, SK_USAGE, "--vocab %lld: the tokenizer has %lld ids", (long long)o->vocab, (long long)w->vocab);
  else if (w->tok && o->vocab > 0)
    w->vocab = o->vocab;
  if (w->vocab > 0 && w->eos >= w->vocab) {
    if (o->eos >= 0) sk_fail(e, SK_USAGE, "--eos %lld: the vocabulary has %lld ids", (long long)o->eos, (long long)w->vocab);
    else w->eos = -1;
  }
  if (w->vocab <= 0) w->vocab = INT32_MAX; /* the largest id decides */
}

/* Collective. */
static void copy(work *w, sk_err *e) {
  w->lo = w->in.tokens / w->size * w->rank + (w->rank < w->in.tokens % w->size ? w->rank : w->in.tokens % w->size);
  w->hi = w->lo + w->in.tokens / w->size + (w->rank < w->in.tokens % w->size);
  pass(w, NULL, e);
  if (sk_agree(w->comm, e) != SK_OK) return;
  int64_t mine = w->docs, all, before = 0, max;
  SK_MPI(MPI_Allreduce(&mine, &all, 1, MPI_INT64_T, MPI_SUM, w->comm));
  SK_MPI(MPI_Exscan(&mine, &before, 1, MPI_INT64_T, MPI_SUM, w->comm));
  SK_MPI(MPI_Allreduce(&w->max, &max, 1, MPI_INT64_T, MPI_MAX, w->comm));
  w->docs = w->rank == 0 ? 0 : before;
  if (w->vocab == INT32_MAX) w->vocab = (w->eos > max ? w->eos : max) + 1;
  char *source = sk_tokens_source(w->o->n_path, w->o->path);
  sk_tokens_meta m = {.tokens = w->in.tokens, .documents = w->in.counted ? w->in.docs : all, .vocab_size = w->vocab,
                      .eos_id = w->eos, .tokenizer = w->tok ? sk_tokenizer_name(w->tok) : "unknown",
                      .hash = w->tok ? sk_tokenizer_hash(w->tok) : "", .source = source};
  if (w->tok) m.json = sk_tokenizer_json(w->tok, &m.json_n);
  sk_tokens_writer out;
  if (sk_tokens_writer_open(&out, w->comm, w->o->out, &m, e) == SK_OK) pass(w, &out, e);
  if (!e->code && w->in.counted && w->rank == 0) write_index(w, &out, e);
  if (sk_tokens_writer_close(&out, e) == SK_OK) {
    if (w->in.empty) sk_say("note: %lld empty documents are left out", (long long)w->in.empty);
    sk_say("%s: %lld tokens in %lld documents, %lld ids%s", w->o->out, (long long)m.tokens, (long long)m.documents,
           (long long)m.vocab_size, w->tok ? "" : "; the tokenizer is not known (--tokenizer FILE)");
  }
  sk_free(source);
}

int sk_tokens_import(MPI_Comm comm, const sk_import_opts *o, sk_err *e) {
  work w = {.comm = comm, .o = o, .open = -1, .fd = -1};
  MPI_Comm_rank(comm, &w.rank);
  MPI_Comm_size(comm, &w.size);
  if (o->tokenizer) sk_tokenizer_open(comm, o->tokenizer, NULL, &w.tok, e);
  if (!e->code && w.rank == 0) sk_import_open(&w.in, o, e);
  if (sk_agree(comm, e) == SK_OK) {
    sk_import_share(comm, &w.in);
    choose_ids(&w, e);
    w.raw = sk_malloc((size_t)BLOCK * 8);
    w.id = sk_malloc((BLOCK + 1) * sizeof *w.id);
    if (!e->code) copy(&w, e);
  }
  if (w.fd >= 0) close(w.fd);
  sk_import_close(&w.in);
  sk_tokenizer_close(w.tok);
  sk_free(w.raw);
  sk_free(w.id);
  return e->code;
}
