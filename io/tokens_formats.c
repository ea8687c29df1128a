/* The headers of foreign token files (io/tokens_import.h). Sizes are compared with the files' before they are used. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/fsutil.h"
#include "io/text_list.h"
#include "io/tokens_import.h"
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_PARTS = 4096, IDX_HEAD = 34, LLMC_HEAD = 1024 };

int sk_import_read(int fd, const char *path, int64_t at, void *data, size_t n, sk_err *e) {
  for (char *p = data; n > 0;) {
    ssize_t k = pread(fd, p, n, at);
    if (k < 0 && errno == EINTR) continue;
    if (k < 0) return sk_fs_fail(e, path, "read", errno);
    if (k == 0) return sk_fail(e, SK_FAILED, "%s: ends at byte %lld, earlier than its size says", path, (long long)at);
    p += k, n -= (size_t)k, at += k;
  }
  return SK_OK;
}

/* The first n bytes of a regular file of `size` bytes. */
static int read_head(const char *path, void *data, size_t n, int64_t *size, sk_err *e) {
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a pipe must not hold us
  *size = sk_fs_size(path);
  if (fd < 0) return sk_fs_fail(e, path, "read", errno);
  if (*size < 0) sk_fail(e, SK_FAILED, "%s: not a regular file", path);
  else if (*size < (int64_t)n) sk_fail(e, SK_FAILED, "%s: %lld bytes are fewer than its header has", path, (long long)*size);
  else sk_import_read(fd, path, 0, data, n, e);
  close(fd);
  return e->code;
}

static int64_t get64(const unsigned char *p) {
  int64_t x;
  memcpy(&x, p, sizeof x);
  return x;
}

static int32_t get32(const unsigned char *p) {
  int32_t x;
  memcpy(&x, p, sizeof x);
  return x;
}

/* ---- Megatron's index: the arrays are not aligned ---- */

typedef struct array {
  int fd, width;
  const char *path;
  int64_t at, left; /* next byte, entries */
  int64_t n, i;     /* in the buffer */
  unsigned char buf[1 << 16];
} array;

static int64_t next(array *a, sk_err *e) {
  if (e->code) return 0;
  if (a->i == a->n) {
    int64_t most = (int64_t)sizeof a->buf / a->width;
    a->n = a->left < most ? a->left : most;
    a->i = 0;
    if (a->n == 0) return 0;
    if (sk_import_read(a->fd, a->path, a->at, a->buf, (size_t)(a->n * a->width), e) != SK_OK) return 0;
    a->at += a->n * a->width;
    a->left -= a->n;
  }
  const unsigned char *p = a->buf + a->i++ * a->width;
  return a->width == 4 ? get32(p) : get64(p);
}

/* One sequence: its length, after checking that it lies right behind the one before. */
static int64_t sequence(const sk_import_part *p, array *length, array *place, int64_t seq, int64_t tokens, sk_err *e) {
  int64_t n = next(length, e), at = next(place, e);
  if (e->code) return 0;
  if (n < 0 || n > p->n - tokens)
    sk_fail(e, SK_FAILED, "%s: sequence %lld has %lld tokens; %lld are left in the .bin", p->idx, (long long)seq, (long long)n,
            (long long)(p->n - tokens));
  else if (at != tokens * p->width)
    sk_fail(e, SK_FAILED, "%s: sequence %lld begins at byte %lld, %lld is behind the one before", p->idx, (long long)seq,
            (long long)at, (long long)(tokens * p->width));
  return e->code ? 0 : n;
}

int64_t sk_import_documents(const sk_import_part *p, void (*document)(void *, int64_t, sk_err *), void *to, sk_err *e) {
  int fd = open(p->idx, O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    sk_fs_fail(e, p->idx, "read", errno);
    return -1;
  }
  array *a = sk_calloc(3, sizeof *a), *length = a, *place = a + 1, *docs = a + 2;
  for (int i = 0; i < 3; i++) a[i].fd = fd, a[i].path = p->idx, a[i].width = i == 0 ? 4 : 8;
  length->at = IDX_HEAD;
  place->at = IDX_HEAD + 4 * p->seqs;
  docs->at = IDX_HEAD + 12 * p->seqs;
  length->left = place->left = p->seqs;
  docs->left = p->docs;
  int64_t tokens = 0, seq = 0, empty = 0, begin = next(docs, e);
  if (begin != 0) sk_fail(e, SK_FAILED, "%s: the document index begins with %lld, not 0", p->idx, (long long)begin);
  for (int64_t d = 1; d < p->docs && !e->code; d++) {
    int64_t end = next(docs, e), start = tokens;
    if (!e->code && (end < seq || end > p->seqs))
      sk_fail(e, SK_FAILED, "%s: document %lld ends at sequence %lld; %lld to %lld are possible", p->idx, (long long)d - 1,
              (long long)end, (long long)seq, (long long)p->seqs);
    for (; seq < end && !e->code; seq++) tokens += sequence(p, length, place, seq, tokens, e);
    if (tokens == start) empty++;
    else if (!e->code) document(to, p->first + start, e);
  }
  if (!e->code && (seq != p->seqs || tokens != p->n))
    sk_fail(e, SK_FAILED, "%s: its documents have %lld of %lld sequences and %lld of the %lld tokens in the .bin", p->idx,
            (long long)seq, (long long)p->seqs, (long long)tokens, (long long)p->n);
  close(fd);
  sk_free(a);
  return e->code ? -1 : empty;
}

static void count_doc(void *to, int64_t start, sk_err *e) {
  (void)start;
  (void)e;
  ++*(int64_t *)to;
}

static void read_megatron(sk_import *in, sk_import_part *p, const char *path, sk_err *e) {
  static const struct {
    int width;
    bool sign;
  } type[] = {{0, 0}, {1, false}, {1, true}, {2, true}, {4, true}, {8, true}, {0, 0}, {0, 0}, {2, false}};
  unsigned char h[IDX_HEAD];
  size_t n = strlen(path) - (sk_ends_in(path, ".bin") || sk_ends_in(path, ".idx") ? 4 : 0);
  int64_t size = 0, bin;
  if (snprintf(p->bin, sizeof p->bin, "%.*s.bin", (int)n, path) >= (int)sizeof p->bin) {
    sk_fail(e, SK_FAILED, "%s: the path is too long", path);
    return;
  }
  snprintf(p->idx, sizeof p->idx, "%.*s.idx", (int)n, path);
  if (read_head(p->idx, h, sizeof h, &size, e) != SK_OK) return;
  int code = h[17];
  p->seqs = get64(h + 18);
  p->docs = get64(h + 26);
  if (memcmp(h, "MMIDIDX\0", 9) != 0)
    sk_fail(e, SK_FAILED, "%s: not an index of Megatron: it does not begin with MMIDIDX", p->idx);
  else if (get64(h + 9) != 1)
    sk_fail(e, SK_FAILED, "%s: version %lld; only 1 is known", p->idx, (long long)get64(h + 9));
  else if (code > 8 || type[code].width == 0)
    sk_fail(e, SK_FAILED, "%s: the token type has the code %d; integers are 1 to 5 and 8", p->idx, code);
  else if (p->seqs < 0 || p->docs < 1 || p->seqs > size / 12 || p->docs > size / 8)
    sk_fail(e, SK_FAILED, "%s: %lld sequences and %lld document entries are impossible in %lld bytes", p->idx,
            (long long)p->seqs, (long long)p->docs, (long long)size);
  else if (size == IDX_HEAD + 13 * p->seqs + 8 * p->docs && p->seqs > 0)
    sk_fail(e, SK_FAILED, "%s: has modes of sequences: multimodal data are not supported", p->idx);
  else if (size != IDX_HEAD + 12 * p->seqs + 8 * p->docs)
    sk_fail(e, SK_FAILED, "%s: %lld bytes; its header needs %lld", p->idx, (long long)size,
            (long long)(IDX_HEAD + 12 * p->seqs + 8 * p->docs));
  if (e->code) return;
  p->width = type[code].width;
  p->sign = type[code].sign;
  p->fresh = true;
  if (read_head(p->bin, NULL, 0, &bin, e) != SK_OK) return;
  p->n = bin / p->width;
  if (bin % p->width)
    sk_fail(e, SK_FAILED, "%s: %lld bytes are no multiple of a token's %d", p->bin, (long long)bin, p->width);
  int64_t empty = e->code ? 0 : sk_import_documents(p, count_doc, &in->docs, e);
  in->empty += empty;
  in->counted = true;
}

/* ---- nanoGPT and llm.c ---- */

static void read_nanogpt(sk_import *in, sk_import_part *p, const char *path, sk_err *e) {
  int64_t size = 0;
  if (read_head(path, NULL, 0, &size, e) != SK_OK) return;
  if (size % 2) sk_fail(e, SK_FAILED, "%s: %lld bytes are no multiple of a token's 2", path, (long long)size);
  p->n = size / 2;
  p->width = 2;
  p->fresh = true;
  in->vocab = 50257;
  in->eos = 50256;
}

static void read_llmc(sk_import *in, sk_import_part *p, const char *path, sk_err *e) {
  unsigned char h[LLMC_HEAD];
  int64_t size = 0;
  if (read_head(path, h, sizeof h, &size, e) != SK_OK) return;
  int32_t magic = get32(h), version = get32(h + 4);
  bool gpt2 = magic == 20240520, llama = magic == 20240801;
  if (magic == 20240522)
    sk_fail(e, SK_FAILED, "%s: an evaluation file of llm.c (magic 20240522), no stream of tokens", path);
  else if (!gpt2 && !llama)
    sk_fail(e, SK_FAILED, "%s: not of llm.c: its magic is %d, 20240520 and 20240801 are known", path, (int)magic);
  else if (version != (gpt2 ? 1 : 7))
    sk_fail(e, SK_FAILED, "%s: version %d; %d is known for magic %d", path, (int)version, gpt2 ? 1 : 7, (int)magic);
  for (int i = 3; i < LLMC_HEAD / 4 && !e->code; i++)
    if (get32(h + 4 * i) != 0) sk_fail(e, SK_FAILED, "%s: field %d of its header is %d, not 0", path, i, (int)get32(h + 4 * i));
  if (e->code) return;
  int64_t eos = gpt2 ? 50256 : 128000;
  p->at = LLMC_HEAD;
  p->n = get32(h + 8);
  p->width = gpt2 ? 2 : 4;
  if (p->n < 0 || size != LLMC_HEAD + p->n * p->width)
    sk_fail(e, SK_FAILED, "%s: %lld bytes; %lld tokens, as its header says, need %lld", path, (long long)size, (long long)p->n,
            (long long)(LLMC_HEAD + p->n * p->width));
  else if (in->vocab && in->eos != eos)
    sk_fail(e, SK_FAILED, "%s: of another vocabulary than the files before", path);
  in->vocab = gpt2 ? 50257 : 128256;
  in->eos = eos;
}

/* ---- all parts ---- */

static void add(sk_import *in, const char *from, const char *path, sk_err *e) {
  if (in->n == MAX_PARTS) sk_fail(e, SK_FAILED, "more than %d files", MAX_PARTS);
  if (strlen(path) >= sizeof in->part->bin) sk_fail(e, SK_FAILED, "%s: the path is too long", path);
  if (e->code) return;
  in->part = sk_realloc(in->part, (size_t)(in->n + 1) * sizeof *in->part);
  sk_import_part *p = &in->part[in->n++];
  *p = (sk_import_part){.first = in->tokens};
  snprintf(p->bin, sizeof p->bin, "%s", path);
  (strcmp(from, "megatron") == 0 ? read_megatron : strcmp(from, "nanogpt") == 0 ? read_nanogpt : read_llmc)(in, p, path, e);
  if (!e->code && p->n > INT64_MAX / 16 - in->tokens) sk_fail(e, SK_FAILED, "%s: too many tokens in all", path);
  in->tokens += p->n;
}

int sk_import_open(sk_import *in, const sk_import_opts *o, sk_err *e) {
  *in = (sk_import){.eos = -1};
  for (int i = 0; i < o->n_path && !e->code; i++) {
    glob_t g = {0};
    if (access(o->path[i], F_OK) != 0 && strpbrk(o->path[i], "*?[") && glob(o->path[i], 0, NULL, &g) == 0)
      for (size_t k = 0; k < g.gl_pathc && !e->code; k++) add(in, o->from, g.gl_pathv[k], e);
    else
      add(in, o->from, o->path[i], e);
    globfree(&g);
  }
  if (!e->code && in->tokens == 0) sk_fail(e, SK_FAILED, "%s: there are no tokens", o->path[0]);
  return e->code;
}

void sk_import_share(MPI_Comm comm, sk_import *in) {
  int rank;
  MPI_Comm_rank(comm, &rank);
  sk_import_part *mine = in->part;
  SK_MPI(MPI_Bcast(in, (int)sizeof *in, MPI_BYTE, 0, comm));
  in->part = rank == 0 ? mine : sk_calloc((size_t)in->n, sizeof *in->part);
  for (int k = 0; k < in->n; k++) SK_MPI(MPI_Bcast(&in->part[k], (int)sizeof *in->part, MPI_BYTE, 0, comm));
}

void sk_import_close(sk_import *in) {
  sk_free(in->part);
  in->part = NULL;
}
