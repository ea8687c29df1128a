/* Text to tokens. Rank 0 lists the files; their bytes are cut into units, of which every rank gets
 * a contiguous share in order. Each rank tokenizes its share into scratch files; the sums before a
 * rank are its place in the data set, to which it copies them. What is written does not depend on
 * who writes it: units are the same on every number of ranks, and a document goes over from one to
 * the next only where its tokens allow a cut. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/fsutil.h"
#include "io/scratch.h"
#include "io/text_list.h"
#include "io/text_read.h"
#include "io/tokenizer.h"
#include "io/tokens.h"
#include "io/tokens_write.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
  MIN_UNIT = 1 << 20, MAX_UNIT = 16 << 20, /* bytes of a file in one unit */
  UNITS = 1024,    /* about so many, so that every rank has a share, where the text is enough */
  BLOCK = 1 << 20, /* bytes that are tokenized at once, where they can be cut */
  MAX_TEXT =
      256 << 20, /* bytes that cannot be cut: a line of a .jsonl file, text without a line's end */
  PACKING = 4,   /* text is about so many times longer than its packed form */
  BEHIND = 8     /* bytes before a place that decide whether text may be cut there */
};

typedef struct unit {
  int64_t file, begin, end; /* bytes; the text, or the lines, that begin there */
} unit;

typedef struct work {
  MPI_Comm comm;
  int rank, size;
  sk_text_list l;
  sk_tokenizer *tok;
  int64_t n, lo, hi; /* units; mine are lo .. hi-1 */
  unit *u;
  int64_t bytes, mine, done; /* on the disk: all, of my units, of those that are finished */
  double began, said;
  int64_t empty, tokens, docs; /* mine; of all ranks in the end */
  sk_ids ids;
  sk_scratch tokens_out, docs_out;
} work;

/* ---- documents ---- */

static void flush_ids(work *w, sk_err *e) {
  if (sk_tokens_width(sk_tokenizer_vocab(w->tok)) == 2) {
    uint16_t *narrow = (uint16_t *)w->ids.at;
    for (int64_t i = 0; i < w->ids.n; i++) narrow[i] = (uint16_t)w->ids.at[i];
    sk_scratch_put(&w->tokens_out, narrow, (size_t)w->ids.n * sizeof *narrow, e);
  } else {
    sk_scratch_put(&w->tokens_out, w->ids.at, (size_t)w->ids.n * sizeof *w->ids.at, e);
  }
  w->tokens += w->ids.n;
  w->ids.n = 0;
}

static void begin_document(work *w, sk_err *e) {
  uint64_t start = (uint64_t)(w->tokens + w->ids.n);
  sk_scratch_put(&w->docs_out, &start, sizeof start, e);
  w->docs++;
}

static void add_text(work *w, const char *text, size_t n, const char *path, sk_err *e) {
  if (e->code) return;
  sk_err why = {0};
  if (sk_tokenizer_encode(w->tok, text, n, &w->ids, &why) != SK_OK)
    sk_fail(e, why.code, "%s: %s", path, why.msg);
  if (w->ids.n >= BLOCK) flush_ids(w, e);
}

static void end_document(work *w) {
  sk_ids_room(&w->ids, 1);
  w->ids.at[w->ids.n++] = (int32_t)sk_tokenizer_eos(w->tok);
}

/* ---- progress: rank 0's share is like the others' ---- */

static void progress(work *w, int64_t more) {
  double now = sk_now();
  if (w->rank != 0 || now - w->said < 5) return;
  w->said = now;
  double part = (double)(w->done + more) / (double)w->mine, passed = now - w->began;
  sk_say("tokenizing: %.0f %%, %s/s of text on the disk, %.0f s left", 100 * part,
         sk_bytes(part * (double)w->bytes / passed), part > 0 ? passed * (1 - part) / part : 0);
}

/* ---- reading a unit ---- */

typedef struct window {
  const sk_text_file *f;
  sk_text *in;
  char *buf, *p; /* buf[cap]; p[n] is what is read and not yet used */
  size_t n, cap;
  int64_t at; /* of p[0] in the text */
  bool over;  /* all is read */
} window;

/* Reads on until n bytes are there or the text is over. */
static void fill(window *v, size_t n, sk_err *e) {
  if (v->over || v->n >= n || e->code) return;
  if (n > v->cap) {
    char *buf = sk_malloc(n);
    if (v->n) memcpy(buf, v->p, v->n);
    sk_free(v->buf);
    v->buf = buf;
    v->cap = n;
  } else {
    memmove(v->buf, v->p, v->n);
  }
  v->p = v->buf;
  size_t want = n - v->n, k = sk_text_read(v->in, v->p + v->n, want, e);
  v->n += k;
  v->over = k < want;
}

static void drop(window *v, size_t n) {
  v->p += n;
  v->n -= n;
  v->at += (int64_t)n;
}

static bool grown_too_long(const window *v, sk_err *e) {
  if (v->n < MAX_TEXT) return false;
  sk_fail(e, SK_FAILED,
          "%s: %s of text that cannot be tokenized in parts (no line's end between two words, or a "
          "tokenizer "
          "that needs its text whole); split the file",
          v->f->path, sk_bytes(MAX_TEXT));
  return true;
}

/* Moves to the first place at or behind `begin` where the text may be cut. False: there is none. */
static bool to_first_cut(const work *w, window *v, int64_t begin, sk_err *e) {
  while (!e->code) {
    fill(v, v->n + BLOCK, e);
    size_t from = begin > v->at ? (size_t)(begin - v->at) : 0,
           p = sk_tokenizer_cut(w->tok, v->p, from, v->n);
    if (p < v->n) return drop(v, p), true;
    if (v->over) return false;
    drop(v, v->n - BEHIND);
    if (begin < v->at + BEHIND) begin = v->at + BEHIND;
  }
  return false;
}

/* One document, or the part of it between the first cuts behind begin and end. */
static void plain_unit(work *w, window *v, const unit *u, sk_err *e) {
  if (u->begin > 0 && !to_first_cut(w, v, u->begin, e)) return;
  bool to_end = u->end == v->f->size;
  fill(v, BLOCK, e);
  if (v->n == 0 && u->begin == 0) w->empty += !e->code;
  if (v->n == 0) return;
  if (u->begin == 0) begin_document(w, e);
  while (!e->code) {
    if (!to_end && v->at >= u->end) return; // at a cut, where a later unit begins
    size_t from = u->end > v->at ? (size_t)(u->end - v->at) : 0;
    size_t p = to_end || from >= v->n ? v->n : sk_tokenizer_cut(w->tok, v->p, from, v->n);
    bool last = p < v->n;
    if (!last && v->over && v->at + (int64_t)v->n < v->f->size && !sk_text_packed(v->f->path))
      sk_fail(e, SK_FAILED, "%s: became shorter while it was read", v->f->path);
    if (!last && !v->over) p = sk_tokenizer_last_cut(w->tok, v->p, v->n);
    add_text(w, v->p, p, v->f->path, e);
    drop(v, p);
    progress(w, sk_text_used(v->in) - u->begin);
    if (last) return;
    if (v->over && v->n == 0) break;
    if (p == 0 && grown_too_long(v, e)) return;
    fill(v, p == 0 ? 2 * v->n : BLOCK, e);
  }
  end_document(w);
}

/* ---- .jsonl ---- */

/* Lines before byte `at` of the text, for a message. */
static long long lines_before(const char *path, int64_t at) {
  sk_err e = {0};
  sk_text *t = sk_text_open(path, 0, &e);
  char *buf = sk_malloc(BLOCK);
  long long n = 0;
  while (t && at > 0) {
    size_t k = sk_text_read(t, buf, at < BLOCK ? (size_t)at : BLOCK, &e);
    if (k == 0) break;
    for (size_t i = 0; i < k; i++) n += buf[i] == '\n';
    at -= (int64_t)k;
  }
  sk_free(buf);
  sk_text_close(t);
  return n;
}

static void json_line(work *w, const window *v, size_t n, sk_err *e) {
  json_error_t why;
  json_t *o = json_loadb(v->p, n, JSON_ALLOW_NUL, &why);
  json_t *text = json_object_get(o, "text");
  if (!o || !json_is_string(text)) {
    sk_fail(e, SK_FAILED, "%s:%lld: %s", v->f->path, lines_before(v->f->path, v->at) + 1,
            !o                  ? why.text
            : json_is_object(o) ? "no \"text\" with a string in this object"
                                : "not a JSON object {\"text\": \"...\"}");
  } else if (json_string_length(text) == 0) {
    w->empty++;
  } else {
    begin_document(w, e);
    add_text(w, json_string_value(text), json_string_length(text), v->f->path, e);
    end_document(w);
  }
  json_decref(o);
}

static bool blank(const char *s, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (!s[i] || !strchr(" \t\r\n", s[i])) return false;
  return true;
}

/* The bytes of the line at the head of the window, its end included; 0 at the end of the text. */
static size_t line_length(window *v, sk_err *e) {
  for (size_t seen = 0;;) {
    const char *end = v->n > seen ? memchr(v->p + seen, '\n', v->n - seen) : NULL;
    if (end) return (size_t)(end - v->p) + 1;
    if (v->over || e->code) return v->n;
    seen = v->n;
    if (seen >= MAX_TEXT) {
      sk_fail(e, SK_FAILED, "%s:%lld: longer than %s", v->f->path,
              lines_before(v->f->path, v->at) + 1, sk_bytes(MAX_TEXT));
      return 0;
    }
    fill(v, v->n + BLOCK, e);
  }
}

/* The lines that begin in [begin, end): one cut by `begin` belongs to the unit before. The window
 * begins one byte before, so that a line's end there is seen. Lines are gone through inside of what
 * is read; then it is dropped. */
static void lines_unit(work *w, window *v, const unit *u, sk_err *e) {
  if (u->begin > 0) drop(v, line_length(v, e));
  size_t n;
  while ((v->at < u->end || sk_text_packed(v->f->path)) && !e->code &&
         (n = line_length(v, e)) > 0) {
    if (!blank(v->p, n)) json_line(w, v, n, e);
    drop(v, n);
    progress(w, sk_text_used(v->in) - u->begin);
  }
}

static void run_unit(work *w, const unit *u, sk_err *e) {
  window v = {.f = &w->l.at[u->file]};
  bool lines = sk_text_lines(v.f->path);
  int64_t behind = lines ? 1 : BEHIND;
  v.at = u->begin > behind ? u->begin - behind : 0;
  v.in = sk_text_open(v.f->path, v.at, e);
  if (v.in) (lines ? lines_unit : plain_unit)(w, &v, u, e);
  sk_text_close(v.in);
  sk_free(v.buf);
}

/* ---- the whole ---- */

/* Cuts the files into units; every rank's share has about the same bytes. */
static void cut(work *w) {
  int64_t text = 0, before = 0, k = 0;
  bool whole = !sk_tokenizer_cuttable(w->tok);
  for (int64_t i = 0; i < w->l.n; i++) w->bytes += w->l.at[i].size;
  int64_t size = w->bytes / UNITS;
  size = size < MIN_UNIT ? MIN_UNIT : size > MAX_UNIT ? MAX_UNIT : size;
  for (int64_t i = 0; i < w->l.n; i++) {
    w->n += (w->l.at[i].size - 1) / size + 1;
    text += w->l.at[i].size * (sk_text_packed(w->l.at[i].path) ? PACKING : 1);
  }
  w->u = sk_calloc((size_t)w->n, sizeof *w->u);
  for (int64_t i = 0; i < w->l.n; i++) {
    const sk_text_file *f = &w->l.at[i];
    bool packed = sk_text_packed(f->path), one = packed || (whole && !sk_text_lines(f->path));
    for (int64_t at = 0, end; at < f->size; at = end, k++) {
      end = !one && at + size < f->size ? at + size : f->size;
      w->u[k] = (unit){.file = i, .begin = at, .end = end};
      int owner = (int)((double)before / (double)text * w->size);
      w->lo += owner < w->rank;
      w->hi += owner <= w->rank;
      if (owner == w->rank) w->mine += end - at;
      before += (end - at) * (packed ? PACKING : 1);
    }
  }
}

static void tokenize(work *w, sk_err *e) {
  w->began = w->said = sk_now();
  for (int64_t i = w->lo; i < w->hi && !e->code; i++) {
    run_unit(w, &w->u[i], e);
    w->done += w->u[i].end - w->u[i].begin;
  }
  flush_ids(w, e);
}

/* Copies this rank's scratch files to their places. */
static void copy(work *w, sk_tokens_writer *out, int64_t token_at, int64_t doc_at, sk_err *e) {
  size_t width = (size_t)out->width;
  char *buf = sk_malloc(SK_TOKENS_CHUNK * sizeof(uint64_t));
  for (int64_t i = 0, n; i < w->tokens && !e->code; i += n) {
    n = w->tokens - i < SK_TOKENS_CHUNK ? w->tokens - i : SK_TOKENS_CHUNK;
    sk_scratch_get(&w->tokens_out, (size_t)i * width, buf, (size_t)n * width, e);
    sk_tokens_put(out, token_at + i, n, buf, e);
  }
  for (int64_t i = 0, n; i < w->docs && !e->code; i += n) {
    n = w->docs - i < SK_TOKENS_CHUNK ? w->docs - i : SK_TOKENS_CHUNK;
    uint64_t *start = (uint64_t *)buf;
    sk_scratch_get(&w->docs_out, (size_t)i * sizeof *start, buf, (size_t)n * sizeof *start, e);
    for (int64_t k = 0; k < n; k++) start[k] += (uint64_t)token_at;
    sk_tokens_put_docs(out, doc_at + i, n, start, e);
  }
  sk_free(buf);
}

/* Collective. */
static void write_all(work *w, const char *out, char *source, sk_err *e) {
  int64_t have[3] = {w->tokens, w->docs, w->empty}, before[3] = {0}, all[3];
  SK_MPI(MPI_Exscan(have, before, 3, MPI_INT64_T, MPI_SUM, w->comm));
  SK_MPI(MPI_Allreduce(have, all, 3, MPI_INT64_T, MPI_SUM, w->comm));
  if (w->rank == 0) memset(before, 0, sizeof before); // MPI leaves it undefined there
  if (all[1] == 0) {
    sk_fail(e, SK_FAILED, "no text found: all documents are empty");
    return;
  }
  sk_tokens_meta m = {.tokens = all[0],
                      .documents = all[1],
                      .source = source,
                      .vocab_size = sk_tokenizer_vocab(w->tok),
                      .eos_id = sk_tokenizer_eos(w->tok),
                      .tokenizer = sk_tokenizer_name(w->tok),
                      .hash = sk_tokenizer_hash(w->tok)};
  m.json = sk_tokenizer_json(w->tok, &m.json_n);
  sk_tokens_writer o;
  if (sk_tokens_writer_open(&o, w->comm, out, &m, e) == SK_OK) copy(w, &o, before[0], before[1], e);
  if (sk_tokens_writer_close(&o, e) != SK_OK) return;
  double seconds = sk_now() - w->began;
  if (all[2]) sk_say("note: %lld empty documents were skipped", (long long)all[2]);
  sk_say("%s: %lld tokens in %lld documents from %lld files (%s, %.1f s, %s/s)", out,
         (long long)all[0], (long long)all[1], (long long)w->l.n, sk_bytes((double)w->bytes),
         seconds, sk_bytes((double)w->bytes / seconds));
}

static void check_eos(const work *w, sk_err *e) {
  if (sk_tokenizer_eos(w->tok) < 0)
    sk_fail(e, SK_USAGE,
            "%s: none of its tokens is known to end a document; name one with --eos TOKEN",
            sk_tokenizer_name(w->tok));
}

int sk_tokens_build(MPI_Comm comm, const char *tokenizer, const char *eos, const char *out,
                    int n_text, char *const *text, sk_err *e) {
  work w = {.comm = comm, .tokens_out = SK_NO_SCRATCH, .docs_out = SK_NO_SCRATCH};
  MPI_Comm_rank(comm, &w.rank);
  MPI_Comm_size(comm, &w.size);
  char *source = sk_tokens_source(n_text, text);
  if (sk_tokenizer_open(comm, tokenizer, eos, &w.tok, e) == SK_OK) check_eos(&w, e);
  if (!e->code && sk_text_list_make(comm, n_text, text, &w.l, e) == SK_OK) {
    cut(&w);
    sk_scratch_open(&w.tokens_out, out, w.rank, e);
    sk_scratch_open(&w.docs_out, out, w.rank, e);
    if (sk_agree(comm, e) == SK_OK) tokenize(&w, e);
    if (sk_agree(comm, e) == SK_OK) write_all(&w, out, source, e);
  }
  sk_scratch_close(&w.tokens_out);
  sk_scratch_close(&w.docs_out);
  sk_text_list_free(&w.l);
  sk_tokenizer_close(w.tok);
  sk_free(w.ids.at);
  sk_free(w.u);
  sk_free(source);
  return e->code;
}
