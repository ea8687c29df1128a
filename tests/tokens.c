/* tokens.c: token data sets: what sk_tokens_build makes of text files, folders and .jsonl, compared with
 * byte sequences and document starts put together here, so that 1, 2 and 4 ranks are compared with each
 * other too; reading; and the refusal of all that is no data set. The working directory is private. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/folder.h"
#include "io/fsutil.h"
#include "io/h5.h"
#include "io/tokens.h"
#include <hdf5.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { UNIT = 16 << 20 /* a multiple of what one is cut into */, MI = 1 << 20, MAX_TOKENS = 4096, MAX_DOCS = 64 };

/* ---- files, by rank 0 for all ---- */

/* Formatted text, good for the next 15 calls. */
SK_PRINTF(1, 2) static const char *str(const char *fmt, ...) {
  static char ring[16][2048];
  static int at;
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(ring[at = (at + 1) % 16], sizeof ring[0], fmt, ap);
  va_end(ap);
  return ring[at];
}

static void meet(void) { SK_MPI(MPI_Barrier(MPI_COMM_WORLD)); }

static void write_bytes(const char *path, const void *data, size_t n) {
  sk_err e = {0};
  if (tap_rank == 0) SK_CHECK(sk_fs_write(path, data, n, false, &e) == SK_OK, "%s", e.msg);
}

static void write_text(const char *path, const char *text) { write_bytes(path, text, strlen(text)); }

static bool there(const char *path) { return access(path, F_OK) == 0; }

/* Collective. The failure is there, the same on every rank, and its message has `what`. */
static bool told(const sk_err *e, int code, const char *what) {
  static sk_err first;
  first = *e;
  SK_MPI(MPI_Bcast(&first, (int)sizeof first, MPI_BYTE, 0, MPI_COMM_WORLD));
  bool ok = e->code == code && !strcmp(e->msg, first.msg) && strstr(e->msg, what);
  if (!ok) tap_diag("code %d, %d and '%s' wanted: %s", e->code, code, what, e->msg);
  return ok;
}

/* Collective. Builds OUT from up to eight texts. */
#define BUILD(out, e, ...) build(MPI_COMM_WORLD, out, e, (const char *const[9]){__VA_ARGS__})
static int build(MPI_Comm comm, const char *out, sk_err *e, const char *const text[9]) {
  char *copy[9];
  int n = 0;
  while (text[n]) copy[n] = sk_strdup(text[n]), n++;
  *e = (sk_err){0};
  meet();
  if (comm != MPI_COMM_NULL) sk_tokens_build(comm, "bytes", NULL, out, n, copy, e);
  for (int i = 0; i < n; i++) sk_free(copy[i]);
  meet();
  return e->code;
}

/* ---- what is expected ---- */

static struct {
  int64_t n, n_doc;
  uint16_t id[MAX_TOKENS];
  uint64_t doc[MAX_DOCS];
} want;

static void want_bytes(const void *text, size_t n) {
  SK_CHECK(want.n + (int64_t)n < MAX_TOKENS && want.n_doc < MAX_DOCS, "the test's buffers are too small");
  want.doc[want.n_doc++] = (uint64_t)want.n;
  for (size_t i = 0; i < n; i++) want.id[want.n++] = ((const unsigned char *)text)[i];
  want.id[want.n++] = 256;
}

static void want_text(const char *text) { want_bytes(text, strlen(text)); }

static const char lines[] =
    "{\"text\": \"plain\"}\n"
    "\n"
    "{\"text\": \"\"}\n"
    "{\"id\": 7, \"text\": \"\\u00e9\\u4e2d\\ud83d\\ude00\\uFFFD\", \"meta\": {\"text\": \"no\"}}\n"
    "  {\"text\":\"\\n\\t\\\"\\\\\\/\\b\\f\\r\"}  \r\n"
    "{\"text\": \"nul\\u0000inside\"}\n"
    " \t\n"
    "{\"text\": \"\xc3\xbc\xe2\x82\xac\xf0\x9f\x98\x80\"}\r\n"
    "{\"meta\": [1, {\"text\": \"no\"}], \"text\": \" the last line has no end \"}";

static void want_lines(void) {
  want_text("plain");
  want_text("\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80\xef\xbf\xbd");
  want_text("\n\t\"\\/\b\f\r");
  want_bytes("nul\0inside", 10);
  want_text("\xc3\xbc\xe2\x82\xac\xf0\x9f\x98\x80");
  want_text(" the last line has no end ");
}

/* lines.jsonl, one.txt, none.txt and the folder `texts`, whose names stand here in the order of bytes. */
static void make_corpus(void) {
  char all[256];
  sk_err e = {0};
  for (int i = 0; i < 256; i++) all[i] = (char)(255 - i);
  if (tap_rank == 0) SK_CHECK(sk_fs_mkdirs("texts/sub/deep", &e) == SK_OK, "%s", e.msg);
  write_text("lines.jsonl", lines);
  write_text("one.txt", "One line.\n");
  write_text("none.txt", "");
  write_text("texts/.hidden", "not this");
  write_text("texts/B.txt", "capitals first\n");
  write_bytes("texts/a.bin", all, sizeof all);
  write_text("texts/b.txt", "no newline at the end");
  write_text("texts/c.h5", "not this");
  write_text("texts/c.txt.XZ", "not this");
  write_text("texts/empty.txt", "");
  write_text("texts/nothing.jsonl", "\n\n{\"text\": \"\"}\n");
  write_text("texts/sub/deep/x", "x");
  write_text("texts/sub/y.JSONL", "{\"text\": \"in a folder\"}\n");
  write_text("texts/z.txt", "\n");
  if (tap_rank == 0) SK_CHECK(symlink("sub", "texts/loop") == 0, "no link");
  memset(&want, 0, sizeof want);
  want_text("One line.\n");
  want_text("capitals first\n");
  want_bytes(all, sizeof all);
  want_text("no newline at the end");
  want_text("x");
  want_text("in a folder");
  want_text("\n");
  want_lines();
  want_text("One line.\n");
}

/* What HDF5 itself finds: types, shapes, values. */
static bool has_array(const char *path, const char *name, hid_t type, int64_t n, const void *values) {
  hid_t f = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT), d = H5Dopen2(f, name, H5P_DEFAULT);
  hid_t have = H5Dget_type(d), space = H5Dget_space(d);
  size_t size = (size_t)n * H5Tget_size(type);
  void *got = sk_calloc(1, size);
  hsize_t dim = 0;
  bool ok = H5Sget_simple_extent_ndims(space) == 1 && H5Sget_simple_extent_dims(space, &dim, NULL) == 1 &&
            dim == (hsize_t)n && H5Tequal(have, type) > 0 &&
            H5Dread(d, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, got) >= 0 && !memcmp(got, values, size);
  sk_free(got);
  H5Sclose(space);
  H5Tclose(have);
  H5Dclose(d);
  H5Fclose(f);
  return ok;
}

static bool is_attr(hid_t f, const char *name, const char *text, int64_t number) {
  char got[2000] = "";
  int64_t x = -1;
  hid_t a = H5Aopen(f, name, H5P_DEFAULT), type = H5Aget_type(a);
  if (text) H5Aread(a, type, got);
  else H5Aread(a, H5T_NATIVE_INT64, &x);
  bool ok = text ? H5Tget_class(type) == H5T_STRING && !strncmp(got, text, text[0] ? strlen(text) : 1)
                 : H5Tget_class(type) == H5T_INTEGER && x == number;
  H5Tclose(type);
  H5Aclose(a);
  return ok;
}

static bool attributes(const char *path, const char *source) {
  H5O_info_t info;
  hid_t f = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT);
  H5Oget_info_by_name(f, "/", &info, H5P_DEFAULT);
  bool ok = is_attr(f, "format", "saker-tokens", 0) && is_attr(f, "version", NULL, 1) &&
            is_attr(f, "vocab_size", NULL, 257) && is_attr(f, "eos_id", NULL, 256) &&
            is_attr(f, "tokens", NULL, want.n) && is_attr(f, "tokenizer", "bytes", 0) &&
            is_attr(f, "tokenizer_xxh3", "", 0) && is_attr(f, "source", source, 0) &&
            is_attr(f, "created_by", "saker ", 0) && info.num_attrs == 9;
  H5Fclose(f);
  return ok;
}

static void building(void) {
  char hash[2][SK_HASH_HEX];
  sk_err e;
  make_corpus();
  write_text("all.h5.tmp", "left over by a build that was killed");
  write_text("all.h5", "to be replaced");
  static const char *const text[9] = {"one.txt", "none.txt", "texts", "lines.jsonl", "./one.txt"};
  tap_ok(build(MPI_COMM_WORLD, "all.h5", &e, text) == SK_OK && !there("all.h5.tmp"), "build %s", e.msg);
  tap_ok(has_array("all.h5", "data", H5T_STD_U16LE, want.n, want.id), "/data: uint16, every token");
  tap_ok(has_array("all.h5", "documents", H5T_STD_U64LE, want.n_doc, want.doc), "/documents: uint64");
  tap_ok(attributes("all.h5", "one.txt none.txt texts lines.jsonl ./one.txt"), "the nine attributes");
  build(tap_rank ? MPI_COMM_NULL : MPI_COMM_SELF, "self.h5", &e, text);
  sk_fs_hash("all.h5", hash[0], &e);
  sk_fs_hash("self.h5", hash[1], &e);
  tap_ok(!e.code && !strcmp(hash[0], hash[1]), "one rank alone writes the same bytes %s", e.msg);
  memset(&want, 0, sizeof want);
  want_text("x");
  want_text("in a folder");
  want_text("One line.\n");
  BUILD("slash.h5", &e, "texts/sub/", "one.txt");
  tap_ok(!e.code && has_array("slash.h5", "data", H5T_STD_U16LE, want.n, want.id), "a folder/ %s", e.msg);
}

/* ---- files of several units ---- */

static unsigned char big_byte(int64_t i) { return (unsigned char)(i * 7 + i / 251); }

/* Blanks up to byte `at`; the last one may be a newline. */
static void pad(char *text, int64_t *n, int64_t at, bool newline) {
  memset(text + *n, ' ', (size_t)(at - *n));
  if (newline) text[at - 1] = '\n';
  *n = at;
}

/* Lines that end at a unit's border, begin at one and just before one, and fill a whole unit. */
static void make_large(void) {
  char *text = sk_malloc(4 * UNIT);
  int64_t n = 0;
  for (int64_t i = 0; i < UNIT + 5; i++) text[i] = (char)big_byte(i);
  write_bytes("big.txt", text, UNIT + 5);
  n += sprintf(text + n, "{\"text\": \"ends at the border\"}");
  pad(text, &n, UNIT, true);
  n += sprintf(text + n, "{\"text\": \"begins there\"}\n");
  pad(text, &n, 2 * UNIT - 1, true);
  n += sprintf(text + n, "{\"text\": \"across, and all of a unit\",");
  pad(text, &n, 3 * UNIT + 3, false);
  n += sprintf(text + n, "\"x\": 1}\n{\"text\": \"last\"}");
  write_bytes("wide.jsonl", text, (size_t)n);
  memset(&want, 0, sizeof want);
  want_text("ends at the border");
  want_text("begins there");
  want_text("across, and all of a unit");
  want_text("last");
  text[UNIT] = '[';
  write_bytes("bad2.jsonl", text, (size_t)n);
  text[UNIT] = '{';
  text[n - 1] = ' ';
  write_bytes("bad5.jsonl", text, (size_t)n);
  sk_free(text);
}

/* Every rank a share of the windows, which cross the borders of chunks. */
static bool big_tokens(sk_tokens *t) {
  int32_t *ids = sk_malloc((MI + 100) * sizeof *ids);
  sk_err e = {0};
  bool ok = true;
  for (int64_t w = tap_rank; w < 16 && ok; w += tap_size) {
    int64_t n = w < 15 ? MI + 100 : MI + 5;
    ok = sk_tokens_read(t, w * MI, n, ids, &e) == SK_OK;
    for (int64_t i = 0; i < n && ok; i++) ok = ids[i] == big_byte(w * MI + i);
  }
  sk_free(ids);
  return ok;
}

static void large(void) {
  sk_err e;
  sk_tokens *t = NULL;
  int32_t ids[200] = {0};
  int64_t start[2] = {0};
  make_large();
  BUILD("large.h5", &e, "big.txt", "wide.jsonl");
  SK_CHECK(sk_tokens_open(MPI_COMM_WORLD, "large.h5", &t, &e) == SK_OK, "%s", e.msg);
  bool ok = sk_tokens_get_info(t)->tokens == UNIT + 6 + want.n && sk_tokens_get_info(t)->documents == 5;
  tap_ok(ok && big_tokens(t), "text across units: every byte once");
  SK_CHECK(sk_tokens_read(t, UNIT + 5, want.n + 1, ids, &e) == SK_OK, "%s", e.msg);
  for (int i = 0; i < want.n; i++) ok = ok && ids[i + 1] == want.id[i];
  tap_ok(ok && ids[0] == 256, ".jsonl: lines at, across and over units: each once");
  for (int64_t i = 0, last = 0; i < 4; i++, last = start[1]) {
    sk_tokens_doc_start(t, UNIT + 6 + (int64_t)want.doc[i] - 1, 2, start);
    ok = ok && start[0] == last && start[1] == UNIT + 6 + (int64_t)want.doc[i];
  }
  tap_ok(ok, "and their document starts");
  sk_tokens_close(t);
  hid_t f = H5Fopen("large.h5", H5F_ACC_RDONLY, H5P_DEFAULT), d = H5Dopen2(f, "data", H5P_DEFAULT);
  hid_t plist = H5Dget_create_plist(d);
  hsize_t chunk = 0;
  tap_ok(H5Pget_chunk(plist, 1, &chunk) == 1 && chunk == MI, "chunks of 1 Mi tokens");
  H5Pclose(plist);
  H5Dclose(d);
  H5Fclose(f);
  BUILD("no.h5", &e, "bad5.jsonl", "bad2.jsonl");
  tap_ok(told(&e, SK_FAILED, "bad5.jsonl:5: ") && !there("no.h5"), "line numbers count across units");
  BUILD("no.h5", &e, "bad2.jsonl", "bad5.jsonl");
  tap_ok(told(&e, SK_FAILED, "bad2.jsonl:2: "), "of several broken lines the first is named");
}

/* ---- what cannot be built ---- */

/* Lines of which the third is bad: named with file and line; nothing is made, what was there stays. */
static void broken_lines(void) {
  static const char *const c[][2] = {{"{\"text\": \"x\"", "expected"},
                                     {"{\"text\": \"x\"} y", "end of file expected"},
                                     {"[\"text\"]", "not a JSON object"},
                                     {"{\"txt\": \"x\"}", "no \"text\""},
                                     {"{\"text\": 5}", "no \"text\" with a string"},
                                     {"{\"text\": null}", "no \"text\" with a string"},
                                     {"{\"text\": \"\\ud83d\"}", "invalid Unicode"},
                                     {"{\"text\": \"\\x\"}", "invalid escape"},
                                     {"{\"text\": \"\xff\"}", "unable to decode byte 0xff"}};
  char hash[2][SK_HASH_HEX];
  sk_err e = {0};
  sk_fs_hash("all.h5", hash[0], &e);
  for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
    write_text("bad.jsonl", str("{\"text\": \"good\"}\n\n%s\n{\"text\": \"good\"}\n", c[i][0]));
    BUILD("all.h5", &e, "one.txt", "bad.jsonl", "one.txt");
    tap_ok(told(&e, SK_FAILED, "bad.jsonl:3: ") && strstr(e.msg, c[i][1]), "line %zu: %s", i, c[i][1]);
  }
  e = (sk_err){0};
  sk_fs_hash("all.h5", hash[1], &e);
  tap_ok(!e.code && !strcmp(hash[0], hash[1]) && !there("all.h5.tmp"), "the old file stays");
}

static void refused_texts(void) {
  static const struct {
    const char *text, *out;
    int code;
    const char *says;
  } c[] = {{"missing.txt", "no.h5", SK_FAILED, "missing.txt: "},
           {"texts/c.h5", "no.h5", SK_USAGE, "texts/c.h5: an HDF5 file"},
           {"texts/c.txt.XZ", "no.h5", SK_USAGE, "texts/c.txt.XZ: an archive"},
           {"pipe", "no.h5", SK_FAILED, "pipe: neither a file nor a folder"},
           {"none.txt", "no.h5", SK_FAILED, "no text found in what was given"},
           {"texts/nothing.jsonl", "no.h5", SK_FAILED, "no text found"},
           {"one.txt", "nowhere/no.h5", SK_FAILED, "nowhere/no.h5"},
           {"one.txt", "one.txt/no.h5", SK_FAILED, "one.txt/no.h5"},
           {"one.txt", "texts", SK_FAILED, "texts: "}};
  sk_err e = {0};
  if (tap_rank == 0) SK_CHECK(mkfifo("pipe", 0666) == 0, "no pipe");
  for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
    BUILD(c[i].out, &e, c[i].text);
    bool none = !there("no.h5") && !there("no.h5.tmp") && !there("texts.tmp");
    tap_ok(told(&e, c[i].code, c[i].says) && none, "%s to %s: %s", c[i].text, c[i].out, c[i].says);
  }
  e = (sk_err){0};
  sk_tokens_build(MPI_COMM_WORLD, "gpt2", NULL, "no.h5", 1, (char *[]){(char[]){"one.txt"}}, &e);
  tap_ok(told(&e, SK_FAILED, "gpt2: cannot be opened"), "a tokenizer that is not there");
  e = (sk_err){0};
  sk_tokens_build(MPI_COMM_WORLD, "bytes", NULL, "no.h5", 0, NULL, &e);
  tap_ok(told(&e, SK_USAGE, "no text given"), "no text");
}

/* A disk without space for rank 0, then for the last rank. */
static void full_disk(void) {
  struct rlimit old, r;
  SK_CHECK(getrlimit(RLIMIT_FSIZE, &old) == 0, "no limit on files");
  signal(SIGXFSZ, SIG_IGN);
  for (int i = 0; i < 2; i++) {
    sk_err e;
    r = old;
    r.rlim_cur = 64;
    if (tap_rank == (i ? tap_size - 1 : 0)) setrlimit(RLIMIT_FSIZE, &r);
    BUILD("full.h5", &e, "one.txt", "one.txt", "one.txt", "one.txt");
    setrlimit(RLIMIT_FSIZE, &old);
    bool ok = told(&e, SK_FAILED, "full.h5.tmp") && !there("full.h5") && !there("full.h5.tmp");
    tap_ok(ok, "no space on %s rank", i ? "the last" : "the first");
  }
}

static void reading(void) {
  sk_tokens *t = NULL;
  sk_err e;
  int32_t ids[64];
  int64_t start[64];
  bool tokens = true, starts = true;
  memset(&want, 0, sizeof want);
  want_lines();
  BUILD("lines.h5", &e, "lines.jsonl");
  tap_ok(sk_tokens_open(MPI_COMM_WORLD, "lines.h5", &t, &e) == SK_OK, "open %s", e.msg);
  const sk_tokens_info *x = sk_tokens_get_info(t);
  tap_ok(x->tokens == want.n && x->documents == want.n_doc && x->vocab_size == 257 && x->eos_id == 256 &&
             x->width == 2 && !strcmp(x->tokenizer, "bytes") && !strcmp(x->source, "lines.jsonl") &&
             !strncmp(x->created_by, "saker", 5), "info");
  for (int64_t first = 0; first < want.n; first++)
    for (int64_t count = 0; count <= 64 && first + count <= want.n; count++) {
      tokens = tokens && sk_tokens_read(t, first, count, ids, &e) == SK_OK;
      if (count > 0) sk_tokens_doc_start(t, first, count, start);
      for (int64_t i = 0; i < count; i++) {
        int64_t d = 0;
        while (d + 1 < want.n_doc && (int64_t)want.doc[d + 1] <= first + i) d++;
        tokens = tokens && ids[i] == want.id[first + i];
        starts = starts && start[i] == (int64_t)want.doc[d];
      }
    }
  tap_ok(tokens, "every window of up to 64 tokens, across documents");
  tap_ok(starts, "the start of every token's document");
  sk_tokens_close(t);
}

/* saker data info. */
static void printed(void) {
  sk_err e = {0};
  char *text = NULL;
  sk_log_file("log");
  if (tap_rank == 0) sk_tokens_print_info("lines.h5", &e);
  sk_log_file(NULL);
  sk_bcast_file(MPI_COMM_WORLD, "log", 1 << 16, &text, &e);
  tap_ok(!e.code && strstr(text, "tokens       76 (76), uint16\n") && strstr(text, "documents    6\n") &&
             strstr(text, "document 3: nul\\x00inside<end>\n"), "info is printed %s", e.msg);
  sk_free(text);
  e = (sk_err){0};
  sk_tokens_print_info("lines.jsonl", &e);
  tap_ok(e.code == SK_FAILED && strstr(e.msg, "lines.jsonl"), "info refuses another format");
}

/* ---- what cannot be opened ---- */

/* Collective. Opening fails on all ranks in one line that begins with the file's name and has `what`. */
static bool refused(const char *path, const char *what) {
  sk_tokens *t = NULL;
  sk_err e = {0};
  meet();
  sk_tokens_open(MPI_COMM_WORLD, path, &t, &e);
  sk_tokens_close(t);
  return told(&e, SK_FAILED, what) && !t && strstr(e.msg, path) == e.msg && !strchr(e.msg, '\n');
}

/* Rank 0: a fresh copy of lines.h5 at x.h5, cut to `keep` hundredths. */
static void copy(int keep) {
  char *data = NULL;
  sk_err e = {0};
  int64_t n = sk_fs_size("lines.h5");
  SK_CHECK(sk_bcast_file(MPI_COMM_SELF, "lines.h5", 1 << 20, &data, &e) == SK_OK, "%s", e.msg);
  write_bytes("x.h5", data, (size_t)(n * keep / 100));
  sk_free(data);
}

static void damaged_files(void) {
  for (int keep = 0; keep < 100; keep += 33) {
    if (tap_rank == 0) copy(keep);
    tap_ok(refused("x.h5", "cannot be read as HDF5"), "cut to %d %%", keep);
  }
  tap_ok(refused("lines.jsonl", "another format"), "not HDF5");
  tap_ok(refused("missing.h5", "No such file"), "no file");
  tap_ok(refused("texts", "not a regular file"), "a folder");
  tap_ok(refused("pipe", "not a regular file"), "a pipe");
  if (tap_size == 1) return;
  if (tap_rank == tap_size - 1) SK_CHECK(chdir("texts") == 0, "no texts");
  tap_ok(refused("lines.h5", "No such file"), "a file that one rank does not see");
  if (tap_rank == tap_size - 1) SK_CHECK(chdir("..") == 0, "no way back");
}

enum { NONE, INT, TEXT, REAL, LONG }; /* nothing, integer, text, float, text of variable length */

static void set_attr(const char *name, int how, int64_t x) {
  double real = 1;
  const char *text = "something";
  sk_err e = {0};
  hid_t f = H5Fopen("x.h5", H5F_ACC_RDWR, H5P_DEFAULT), s = H5Screate(H5S_SCALAR);
  hid_t type = how == REAL ? H5Tcopy(H5T_NATIVE_DOUBLE) : H5Tcopy(H5T_C_S1);
  if (how == LONG) H5Tset_size(type, H5T_VARIABLE);
  H5Adelete(f, name);
  if (how == INT) sk_h5_int_attr(f, "x.h5", name, x, &e);
  if (how == TEXT) sk_h5_text_attr(f, "x.h5", name, text, &e);
  if (how == REAL || how == LONG) {
    hid_t a = H5Acreate2(f, name, type, s, H5P_DEFAULT, H5P_DEFAULT);
    SK_CHECK(H5Awrite(a, type, how == REAL ? (void *)&real : &text) >= 0, "attribute %s", name);
    H5Aclose(a);
  }
  H5Tclose(type);
  H5Sclose(s);
  H5Fclose(f);
}

static void wrong_attributes(void) {
  static const struct {
    const char *name;
    int how;
    int64_t x;
    const char *says;
  } c[] = {{"format", NONE, 0, "no attribute \"format\""},
           {"format", TEXT, 0, "its format is \"something\""},
           {"format", LONG, 0, "\"format\" is not a single text"},
           {"format", INT, 1, "\"format\" is not a single text"},
           {"version", INT, 2, "\"version\" is 2"},
           {"vocab_size", INT, 0, "\"vocab_size\" is 0"},
           {"vocab_size", INT, 1LL << 40, "\"vocab_size\" is 1099511627776"},
           {"vocab_size", REAL, 0, "\"vocab_size\" is not a single integer"},
           {"eos_id", INT, 257, "\"eos_id\" is 257"},
           {"tokens", INT, 5, "the attribute \"tokens\" says 5"},
           {"tokens", INT, -1, "\"tokens\" is -1"},
           {"tokens", TEXT, 0, "\"tokens\" is not a single integer"},
           {"tokenizer", NONE, 0, "no attribute \"tokenizer\""},
           {"created_by", NONE, 0, "no attribute \"created_by\""}};
  for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
    if (tap_rank == 0) copy(100), set_attr(c[i].name, c[i].how, c[i].x);
    tap_ok(refused("x.h5", c[i].says), "attribute: %s", c[i].says);
  }
}

/* Puts another dataset of x.h5 in the place of one, flat (n) or not (n x n). */
static void replace(const char *name, hid_t type, hsize_t n, bool flat, hid_t plist, const void *values) {
  hid_t f = H5Fopen("x.h5", H5F_ACC_RDWR, H5P_DEFAULT);
  hid_t s = H5Screate_simple(flat ? 1 : 2, (hsize_t[]){n, n}, NULL);
  H5Ldelete(f, name, H5P_DEFAULT);
  hid_t d = H5Dcreate2(f, name, type, s, H5P_DEFAULT, plist, H5P_DEFAULT);
  SK_CHECK(d >= 0, "%s of x.h5", name);
  if (values) SK_CHECK(H5Dwrite(d, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) >= 0, "%s of x.h5", name);
  H5Dclose(d);
  H5Sclose(s);
  H5Fclose(f);
}

static void link_away(bool external) {
  hid_t f = H5Fopen("x.h5", H5F_ACC_RDWR, H5P_DEFAULT);
  H5Ldelete(f, "data", H5P_DEFAULT);
  if (external) H5Lcreate_external("lines.h5", "/data", f, "data", H5P_DEFAULT, H5P_DEFAULT);
  H5Fclose(f);
}

/* Rank 0: case i of wrong_datasets. Storage: 0 plain, 1 filtered, 2 elsewhere, 3 virtual, 4 when written. */
static void make_wrong(int i) {
  static const uint64_t late[] = {1, 5}, twice[] = {0, 5, 5}, behind[] = {0, 1 << 20}, zero[] = {0};
  hsize_t n = (hsize_t)want.n;
  hid_t s = H5Screate_simple(1, &n, NULL), p[5];
  for (int k = 0; k < 5; k++) p[k] = k < 3 ? sk_h5_dset_plist() : H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_chunk(p[1], 1, &n);
  H5Pset_shuffle(p[1]);
  H5Pset_external(p[2], "raw", 0, 2 * n);
  H5Pset_virtual(p[3], s, "lines.h5", "/data", s);
  const struct {
    hid_t type;
    hsize_t n;
    int plist;
    const void *values;
  } c[] = {{0, 0, 0, NULL},                 {0, 0, 0, NULL},
           {H5T_STD_I32LE, n, 0, NULL},     {H5T_STD_U16BE, n, 0, NULL},  {H5T_STD_U16LE, 4, 0, NULL},
           {H5T_STD_U16LE, n - 1, 0, NULL}, {H5T_STD_U16LE, n, 1, NULL},  {H5T_STD_U16LE, n, 2, NULL},
           {H5T_STD_U16LE, n, 3, NULL},     {H5T_STD_U16LE, n, 4, NULL},  {H5T_STD_U32LE, 1, 0, zero},
           {H5T_STD_U64LE, 2, 0, late},     {H5T_STD_U64LE, 3, 0, twice}, {H5T_STD_U64LE, 2, 0, behind},
           {H5T_STD_U64LE, 0, 0, NULL}};
  copy(100);
  if (i < 2) link_away(i == 1);
  else replace(i < 10 ? "data" : "documents", c[i].type, c[i].n, i != 4, p[c[i].plist], c[i].values);
  for (int k = 0; k < 5; k++) H5Pclose(p[k]);
  H5Sclose(s);
}

static void wrong_datasets(void) {
  static const char *const says[] = {
      "no dataset data of its own", "(missing, or a link)", "/data is neither uint16 nor uint32",
      "/data is neither uint16 nor uint32", "data has another number of dimensions", "has 75 tokens",
      "data is compressed or filtered", "data keeps its data in another file",
      "data keeps its data in another file", "larger than what the file", "/documents is not uint64",
      "/documents does not begin with 0", "/documents does not ascend at entry 2",
      "/documents points behind the last token", "/documents is empty"};
  for (int i = 0; i < (int)(sizeof says / sizeof *says); i++) {
    if (tap_rank == 0) make_wrong(i);
    tap_ok(refused("x.h5", says[i]), "dataset %d: %s", i, says[i]);
  }
}

/* Ids of 32 bits, and ids outside of the vocabulary. */
static void vocabulary(void) {
  static uint32_t id[MAX_TOKENS];
  int32_t got[8] = {0};
  sk_tokens *t = NULL;
  sk_err e = {0};
  id[1] = 70000;
  id[2] = 70001;
  id[9] = UINT32_MAX;
  if (tap_rank == 0) {
    hid_t plain = sk_h5_dset_plist();
    copy(100);
    set_attr("vocab_size", INT, 70001);
    replace("data", H5T_STD_U32LE, (hsize_t)want.n, true, plain, id);
    H5Pclose(plain);
  }
  meet();
  SK_CHECK(sk_tokens_open(MPI_COMM_WORLD, "x.h5", &t, &e) == SK_OK, "%s", e.msg);
  sk_tokens_read(t, 0, 2, got, &e);
  tap_ok(!e.code && sk_tokens_get_info(t)->width == 4 && got[0] == 0 && got[1] == 70000, "uint32");
  sk_tokens_read(t, 1, 4, got, &e);
  tap_ok(told(&e, SK_FAILED, "x.h5: token 2 is 70001"), "an id outside of the vocabulary");
  e = (sk_err){0};
  sk_tokens_read(t, 9, 1, got, &e);
  tap_ok(told(&e, SK_FAILED, "x.h5: token 9 is 4294967295"), "the largest too");
  sk_tokens_close(t);
}

int main(int argc, char **argv) {
  static void (*const test[])(void) = {building, large, broken_lines, refused_texts, full_disk, reading,
                                       printed, damaged_files, wrong_attributes, wrong_datasets,
                                       vocabulary};
  tap_init(&argc, &argv);
  folder_enter("tokens");
  for (size_t i = 0; i < sizeof test / sizeof *test; i++) test[i]();
  folder_remove();
  return tap_done();
}
