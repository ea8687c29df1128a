/* import.c: token files of Megatron, nanoGPT and llm.c, written here byte by byte from the formats'
 * tables, become data sets with the same tokens and documents on every number of ranks; every wrong
 * field and size is refused by name. (tests/import_compare.py does the same with files of
 * Megatron's own writer.) The working directory is private. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/folder.h"
#include "io/fsutil.h"
#include "io/tokens.h"
#include "io/tokens_import.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct bytes {
  unsigned char at[1 << 16];
  size_t n;
} bytes;

static void add(bytes *b, int64_t x, size_t width) {
  memcpy(b->at + b->n, &x, width);
  b->n += width;
}

static void write_file(const char *path, const bytes *b) {
  sk_err e = {0};
  if (tap_rank == 0) SK_CHECK(sk_fs_write(path, b->at, b->n, false, &e) == SK_OK, "%s", e.msg);
}

/* ---- good files ---- */

enum { TOKENS = 4000 };
static const int seq_len[] = {700, 0, 1, 1299, 2, 998, 1000}; /* sum TOKENS */
static const int64_t doc_end[] = {0, 1, 1, 3, 4, 7, 7};       /* documents 1 and 5 are empty */
static const int64_t doc_start[] = {0, 700, 701, 2000};
enum { SEQS = 7, DOCS = 7, FULL = 4 };

static int64_t id_of(int64_t i) {
  return (i * 7919 + 13) % 50000;
}

static void make_bin(bytes *b, size_t width, int64_t limit) {
  b->n = 0;
  for (int64_t i = 0; i < TOKENS; i++) add(b, id_of(i) % limit, width);
}

/* Sequence lengths, byte offsets, document index behind the header of 34 bytes. */
static void make_idx(bytes *b, int code, size_t width) {
  b->n = 0;
  memcpy(b->at, "MMIDIDX\0", 9);
  b->n = 9;
  add(b, 1, 8);
  add(b, code, 1);
  add(b, SEQS, 8);
  add(b, DOCS, 8);
  int64_t at = 0;
  for (int i = 0; i < SEQS; i++) add(b, seq_len[i], 4);
  for (int i = 0; i < SEQS; at += seq_len[i++]) add(b, at * (int64_t)width, 8);
  for (int i = 0; i < DOCS; i++) add(b, doc_end[i], 8);
}

static void make_llmc(bytes *b, int magic, int version, int64_t first, int64_t n, size_t width) {
  b->n = 0;
  add(b, magic, 4);
  add(b, version, 4);
  add(b, n, 4);
  memset(b->at + b->n, 0, 1024 - b->n);
  b->n = 1024;
  for (int64_t i = first; i < first + n; i++)
    add(b, i % 100 == 0 ? (width == 2 ? 50256 : 128000) : id_of(i), width);
}

/* Collective. The import's code; its message in e. */
static int import(const char *from, const char *path, int64_t vocab, int64_t eos, sk_err *e) {
  char *copy = sk_strdup(path);
  sk_import_opts o = {
      .from = from, .out = "out.h5", .vocab = vocab, .eos = eos, .n_path = 1, .path = &copy};
  *e = (sk_err){0};
  SK_MPI(MPI_Barrier(MPI_COMM_WORLD));
  sk_tokens_import(MPI_COMM_WORLD, &o, e);
  SK_MPI(MPI_Barrier(MPI_COMM_WORLD));
  sk_free(copy);
  return e->code;
}

/* The data set has the ids of `want(i)` and the documents given. */
static bool has(int64_t n, int64_t (*want)(int64_t), int64_t docs, const int64_t *start,
                int64_t vocab, int64_t eos, int width) {
  static int32_t ids[TOKENS];
  static int64_t begin[TOKENS];
  sk_tokens *t;
  sk_err e = {0};
  if (sk_tokens_open(MPI_COMM_WORLD, "out.h5", &t, &e) != SK_OK)
    return tap_diag("%s", e.msg), false;
  const sk_tokens_info *x = sk_tokens_get_info(t);
  bool ok = x->tokens == n && x->documents == docs && x->vocab_size == vocab && x->eos_id == eos &&
            x->width == width && !strcmp(x->tokenizer, "unknown") &&
            sk_tokens_read(t, 0, n, ids, &e) == SK_OK;
  if (!ok)
    tap_diag("%lld tokens, %lld documents, vocabulary %lld, end %lld, %d bytes %s",
             (long long)x->tokens, (long long)x->documents, (long long)x->vocab_size,
             (long long)x->eos_id, x->width, e.msg);
  for (int64_t i = 0; ok && i < n; i++) ok = ids[i] == want(i);
  for (int64_t d = 0; ok && d < docs; d++) ok = sk_tokens_doc_first(t, d) == start[d];
  if (ok) sk_tokens_doc_start(t, 0, n, begin);
  sk_tokens_close(t);
  return ok;
}

static int64_t small_id(int64_t i) {
  return id_of(i) % 100;
}
static int64_t gpt2_id(int64_t i) {
  return i % 100 == 0 ? 50256 : id_of(i);
}
static int64_t llama_id(int64_t i) {
  return i % 100 == 0 ? 128000 : id_of(i);
}
static int64_t nano_id(int64_t i) {
  return i % 500 == 499 ? 50256 : id_of(i);
}

static void good(void) {
  static const struct {
    int code;
    size_t width;
    bool small;
  } type[] = {{1, 1, true},  {2, 1, true},  {3, 2, true},
              {4, 4, false}, {5, 8, false}, {8, 2, false}};
  bytes b;
  sk_err e;
  int64_t max = 0, start[64];
  for (int64_t i = 0; i < TOKENS; i++) max = id_of(i) > max ? id_of(i) : max;
  for (size_t k = 0; k < sizeof type / sizeof *type; k++) {
    make_bin(&b, type[k].width, type[k].small ? 100 : INT64_MAX);
    write_file("m.bin", &b);
    make_idx(&b, type[k].code, type[k].width);
    write_file("m.idx", &b);
    int code = import("megatron", k % 2 ? "m.idx" : "m", 0, -1, &e);
    tap_ok(code == SK_OK && has(TOKENS, type[k].small ? small_id : id_of, FULL, doc_start,
                                type[k].small ? 100 : max + 1, -1, 2),
           "megatron, type %d: tokens, documents, the largest id %s", type[k].code, e.msg);
  }
  import("megatron", "m", 131072, 7, &e);
  tap_ok(!e.code && has(TOKENS, id_of, FULL, doc_start, 131072, 7, 4),
         "a vocabulary and an end given: uint32 %s", e.msg);
  for (int i = 0; i < 40; i++)
    start[i] = i ? 100 * i + 1 : 0; /* an end-of-text belongs to the document before it */
  make_llmc(&b, 20240520, 1, 0, 1950, 2);
  write_file("l_000001.bin", &b);
  make_llmc(&b, 20240520, 1, 1950, TOKENS - 1950, 2);
  write_file("l_000002.bin", &b);
  import("llmc", "l_*.bin", 0, -1, &e);
  tap_ok(!e.code && has(TOKENS, gpt2_id, 40, start, 50257, 50256, 2),
         "llm.c: two shards that cut a document %s", e.msg);
  make_llmc(&b, 20240801, 7, 0, TOKENS, 4);
  write_file("l3.bin", &b);
  import("llmc", "l3.bin", 0, -1, &e);
  tap_ok(!e.code && has(TOKENS, llama_id, 40, start, 128256, 128000, 4),
         "llm.c: Llama 3, uint32 %s", e.msg);
  b.n = 0;
  for (int64_t i = 0; i < TOKENS; i++) add(&b, nano_id(i), 2);
  for (int i = 0; i < 8; i++) start[i] = 500 * i;
  write_file("n.bin", &b);
  import("nanogpt", "n.bin", 0, -1, &e);
  tap_ok(!e.code && has(TOKENS, nano_id, 8, start, 50257, 50256, 2),
         "nanoGPT: documents end with 50256 %s", e.msg);
}

/* ---- bad files ---- */

/* One message of one line, the same on every rank; nothing is left. */
static bool told(const sk_err *e, int code, const char *what) {
  bool ok = e->code == code && strstr(e->msg, what) && !strchr(e->msg, '\n') &&
            access("out.h5", F_OK) != 0 && access("out.h5.tmp", F_OK) != 0;
  if (!ok) tap_diag("code %d, '%s' wanted: %s", e->code, what, e->msg);
  return ok;
}

static void bad_index(void) {
  static const struct {
    size_t at, width;
    int64_t value;
    const char *says;
  } c[] = {{0, 1, 'X', "m.idx: not an index of Megatron"},
           {7, 1, 1, "m.idx: not an index of Megatron"},
           {9, 8, 2, "m.idx: version 2; only 1"},
           {17, 1, 7, "m.idx: the token type has the code 7"},
           {17, 1, 200, "m.idx: the token type has the code 200"},
           {17, 1, 0, "m.idx: the token type has the code 0"},
           {18, 8, 1LL << 60, "sequences and 7 document entries are impossible"},
           {18, 8, -1, "-1 sequences"},
           {18, 8, SEQS - 1, "bytes; its header needs"},
           {26, 8, 0, "0 document entries"},
           {26, 8, INT64_MAX, "document entries are impossible"},
           {34, 4, 701, "m.idx: sequence 1 begins at byte 1400, 1402 is behind"},
           {34, 4, -5, "m.idx: sequence 0 has -5 tokens"},
           {34, 4, 1 << 30, "m.idx: sequence 0 has 1073741824 tokens; 4000 are left"},
           {34 + 4 * SEQS + 16, 8, 3, "m.idx: sequence 2 begins at byte 3, 1400 is behind"},
           {34 + 12 * SEQS, 8, 1, "m.idx: the document index begins with 1"},
           {34 + 12 * SEQS + 16, 8, 0, "m.idx: document 1 ends at sequence 0; 1 to 7"},
           {34 + 12 * SEQS + 16, 8, 8, "m.idx: document 1 ends at sequence 8; 1 to 7"},
           {34 + 12 * SEQS + 8 * (DOCS - 1), 8, -1, "m.idx: document 5 ends at sequence -1"}};
  bytes good, b;
  sk_err e;
  make_bin(&b, 2, INT64_MAX);
  write_file("m.bin", &b);
  make_idx(&good, 8, 2);
  for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
    b = good;
    memcpy(b.at + c[i].at, &c[i].value, c[i].width);
    write_file("m.idx", &b);
    import("megatron", "m", 0, -1, &e);
    tap_ok(told(&e, SK_FAILED, c[i].says), "%s", c[i].says);
  }
  for (size_t cut = 0; cut < good.n; cut += 23) {
    b = good;
    b.n = cut;
    write_file("m.idx", &b);
    if (import("megatron", "m", 0, -1, &e) == SK_OK || !strstr(e.msg, "m.idx")) break;
    if (cut + 23 >= good.n) tap_ok(told(&e, SK_FAILED, "m.idx: "), "an index cut off anywhere");
  }
  b = good;
  for (int i = 0; i < SEQS; i++) add(&b, 0, 1);
  write_file("m.idx", &b);
  import("megatron", "m", 0, -1, &e);
  tap_ok(told(&e, SK_FAILED, "multimodal"), "modes of sequences are refused");
  write_file("m.idx", &good);
  make_bin(&b, 2, INT64_MAX);
  b.n -= 2;
  write_file("m.bin", &b);
  import("megatron", "m", 0, -1, &e);
  tap_ok(told(&e, SK_FAILED, "m.idx: sequence 6 has 1000 tokens; 999 are left"),
         "a .bin that is too short");
  b.n += 6;
  write_file("m.bin", &b);
  import("megatron", "m", 0, -1, &e);
  tap_ok(
      told(&e, SK_FAILED, "m.idx: its documents have 7 of 7 sequences and 4000 of the 4002 tokens"),
      "one that is too long");
  b.n--;
  write_file("m.bin", &b);
  import("megatron", "m", 0, -1, &e);
  tap_ok(told(&e, SK_FAILED, "m.bin: 8003 bytes are no multiple"), "half a token");
}

static void bad_others(void) {
  bytes b;
  sk_err e;
  make_llmc(&b, 20240522, 1, 0, 10, 2);
  write_file("x.bin", &b);
  import("llmc", "x.bin", 0, -1, &e);
  tap_ok(told(&e, SK_FAILED, "an evaluation file"), "llm.c: an evaluation file");
  make_llmc(&b, 1, 1, 0, 10, 2);
  write_file("x.bin", &b);
  import("llmc", "x.bin", 0, -1, &e);
  tap_ok(told(&e, SK_FAILED, "its magic is 1"), "llm.c: the magic");
  make_llmc(&b, 20240520, 7, 0, 10, 2);
  write_file("x.bin", &b);
  import("llmc", "x.bin", 0, -1, &e);
  tap_ok(told(&e, SK_FAILED, "version 7; 1 is known"), "llm.c: the version");
  make_llmc(&b, 20240520, 1, 0, 10, 2);
  b.at[100] = 1;
  write_file("x.bin", &b);
  import("llmc", "x.bin", 0, -1, &e);
  tap_ok(told(&e, SK_FAILED, "field 25 of its header is 1"), "llm.c: a field that must be 0");
  make_llmc(&b, 20240520, 1, 0, 10, 2);
  b.n++;
  write_file("x.bin", &b);
  import("llmc", "x.bin", 0, -1, &e);
  tap_ok(told(&e, SK_FAILED, "1045 bytes; 10 tokens"), "llm.c: the size");
  b.n = 20;
  write_file("x.bin", &b);
  import("llmc", "x.bin", 0, -1, &e);
  tap_ok(told(&e, SK_FAILED, "fewer than its header"), "llm.c: no header");
  b.n = 3;
  write_file("x.bin", &b);
  import("nanogpt", "x.bin", 0, -1, &e);
  tap_ok(told(&e, SK_FAILED, "no multiple of a token's 2"), "nanoGPT: half a token");
  b.n = 0;
  write_file("x.bin", &b);
  import("nanogpt", "x.bin", 0, -1, &e);
  tap_ok(told(&e, SK_FAILED, "there are no tokens"), "nanoGPT: nothing");
  add(&b, 3, 2);
  add(&b, 50300, 2);
  write_file("x.bin", &b);
  import("nanogpt", "x.bin", 0, -1, &e);
  tap_ok(told(&e, SK_FAILED, "x.bin: token 1 is 50300; ids are from 0 to 50256"),
         "an id outside of the vocabulary");
  import("nanogpt", "x.bin", 50301, 60000, &e);
  tap_ok(told(&e, SK_USAGE, "--eos 60000: the vocabulary has 50301 ids"),
         "an end outside of the vocabulary");
  import("nanogpt", "none.bin", 0, -1, &e);
  tap_ok(told(&e, SK_FAILED, "none.bin: cannot be read"), "no such file");
  import("megatron", "none", 0, -1, &e);
  tap_ok(told(&e, SK_FAILED, "none.idx: cannot be read"), "no such index");
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  folder_enter("import");
  good();
  SK_MPI(MPI_Barrier(MPI_COMM_WORLD));
  if (tap_rank == 0) unlink("out.h5");
  bad_index();
  bad_others();
  folder_remove();
  return tap_done();
}
