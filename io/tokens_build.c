/* Text to tokens in two passes. Rank 0 lists the files; their bytes are cut into units, of which every
 * rank gets a contiguous share in order. Pass 1 counts each unit's tokens and documents; the sums before
 * a unit are its place in the data set. Pass 2 tokenizes again and writes there. What is written does
 * not depend on who writes it. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/fsutil.h"
#include "io/h5.h"
#include "io/tokens.h"
#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
  CHUNK = 1 << 20,     /* tokens per chunk of /data, and buffered before a write */
  UNIT = 16 << 20,     /* bytes of a file in one unit */
  MAX_LINE = 256 << 20, /* of a .jsonl file */
  MAX_DEPTH = 64,      /* of folders */
  END = 256,           /* ends a document */
  VOCAB = 257
};

/* ---- the list of files ---- */

typedef struct source {
  char *path;
  int64_t size;
} source;

typedef struct list {
  int64_t n, cap;
  source *at;
  int64_t skipped;
  sk_err *e;
} list;

static bool ends_in(const char *s, const char *end) {
  size_t n = strlen(s), k = strlen(end);
  return n >= k && strcasecmp(s + n - k, end) == 0;
}

/* Why a file of that name is no text; NULL when it may be. */
static const char *no_text(const char *path) {
  static const char *const packed[] = {".gz", ".zst", ".xz", ".bz2", ".zip", ".lz4"};
  if (ends_in(path, ".h5") || ends_in(path, ".h5.tmp")) return "an HDF5 file, not text";
  for (size_t i = 0; i < sizeof packed / sizeof *packed; i++)
    if (ends_in(path, packed[i])) return "compressed; unpack it first";
  return NULL;
}

static void skip(list *l, const char *path, const char *why) {
  if (l->skipped++ < 20) sk_say("note: %s is skipped: %s", path, why);
}

static void add_file(list *l, const char *path, int64_t size) {
  if (size == 0) {
    skip(l, path, "empty");
    return;
  }
  if (l->n == l->cap) l->at = sk_realloc(l->at, (size_t)(l->cap = 2 * l->cap + 16) * sizeof *l->at);
  l->at[l->n++] = (source){sk_strdup(path), size};
}

/* A folder's entries in byte order of their names, folders gone through in place. */
static void add_folder(list *l, const char *dir, int depth) {
  char **name;
  int64_t n;
  if (depth > MAX_DEPTH) {
    sk_fail(l->e, SK_FAILED, "%s: more than %d folders deep", dir, MAX_DEPTH);
    return;
  }
  sk_fs_list(dir, &name, &n, l->e);
  for (int64_t i = 0; i < n && !l->e->code; i++) {
    struct stat st, link;
    char *path = sk_strf("%s%s%s", dir, ends_in(dir, "/") ? "" : "/", name[i]);
    if (name[i][0] == '.')
      skip(l, path, "hidden");
    else if (stat(path, &st) != 0 || lstat(path, &link) != 0)
      sk_fs_fail(l->e, path, "read", errno);
    else if (S_ISDIR(st.st_mode) && S_ISLNK(link.st_mode))
      skip(l, path, "a link to a folder");
    else if (S_ISDIR(st.st_mode))
      add_folder(l, path, depth + 1);
    else if (!S_ISREG(st.st_mode))
      skip(l, path, "not a regular file");
    else if (no_text(path))
      skip(l, path, no_text(path));
    else
      add_file(l, path, (int64_t)st.st_size);
    sk_free(path);
  }
  sk_fs_free_names(name, n);
}

static void add_argument(list *l, const char *path) {
  struct stat st;
  if (stat(path, &st) != 0)
    sk_fs_fail(l->e, path, "read", errno);
  else if (S_ISDIR(st.st_mode))
    add_folder(l, path, 0);
  else if (!S_ISREG(st.st_mode))
    sk_fail(l->e, SK_FAILED, "%s: neither a file nor a folder", path);
  else if (no_text(path))
    sk_fail(l->e, SK_USAGE, "%s: %s", path, no_text(path));
  else
    add_file(l, path, (int64_t)st.st_size);
}

/* Collective: rank 0's list on every rank. */
static void share_list(MPI_Comm comm, list *l) {
  int rank;
  MPI_Comm_rank(comm, &rank);
  SK_MPI(MPI_Bcast(&l->n, 1, MPI_INT64_T, 0, comm));
  if (rank != 0) l->at = sk_calloc((size_t)l->n, sizeof *l->at);
  for (int64_t i = 0; i < l->n; i++) {
    int64_t head[2] = {l->at[i].size, rank == 0 ? (int64_t)strlen(l->at[i].path) + 1 : 0};
    SK_MPI(MPI_Bcast(head, 2, MPI_INT64_T, 0, comm));
    l->at[i].size = head[0];
    if (rank != 0) l->at[i].path = sk_malloc((size_t)head[1]);
    SK_MPI(MPI_Bcast(l->at[i].path, (int)head[1], MPI_CHAR, 0, comm));
  }
}

/* ---- units and their sinks ---- */

typedef struct unit {
  int64_t file, begin, end; /* bytes; of a .jsonl file the lines that begin there */
} unit;

typedef struct tally {
  int64_t tokens, docs;
} tally;

/* Where a unit's tokens go: counted in pass 1 (out is NULL), written in pass 2, where never more is
 * stored than pass 1 has found (most). */
typedef struct sink {
  tally got, most;
  int64_t empty;
  struct output *out;
  int64_t token_at; /* place in the data set of the unit's first token */
} sink;

typedef struct output {
  const char *path;
  hid_t file, data, documents;
  uint16_t *buf; /* [CHUNK] */
  uint64_t *doc; /* [CHUNK] */
  int64_t n, n_doc, at, doc_at;
} output;

static void write_at(hid_t dset, hid_t type, int64_t at, int64_t n, const void *data, const output *o,
                     sk_err *e) {
  hsize_t start = (hsize_t)at, count = (hsize_t)n;
  if (n == 0 || e->code) return;
  hid_t space = H5Dget_space(dset), mem = H5Screate_simple(1, &count, NULL);
  H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &count, NULL);
  if (H5Dwrite(dset, type, mem, space, H5P_DEFAULT, data) < 0) sk_h5_fail(e, o->path, "written");
  H5Sclose(mem);
  H5Sclose(space);
}

static void flush(output *o, sk_err *e) {
  write_at(o->data, H5T_NATIVE_UINT16, o->at, o->n, o->buf, o, e);
  write_at(o->documents, H5T_NATIVE_UINT64, o->doc_at, o->n_doc, o->doc, o, e);
  o->at += o->n;
  o->doc_at += o->n_doc;
  o->n = o->n_doc = 0;
}

static void begin_document(sink *s, sk_err *e) {
  if (s->out && s->got.docs < s->most.docs) {
    if (s->out->n_doc == CHUNK) flush(s->out, e);
    s->out->doc[s->out->n_doc++] = (uint64_t)(s->token_at + s->got.tokens);
  }
  s->got.docs++;
}

static void put_bytes(sink *s, const unsigned char *p, int64_t n, sk_err *e) {
  output *o = s->out;
  for (int64_t i = 0; o && i < n && s->got.tokens + i < s->most.tokens; i++) {
    if (o->n == CHUNK) flush(o, e);
    o->buf[o->n++] = p[i];
  }
  s->got.tokens += n;
}

static void end_document(sink *s, sk_err *e) {
  output *o = s->out;
  if (o && s->got.tokens < s->most.tokens) {
    if (o->n == CHUNK) flush(o, e);
    o->buf[o->n++] = END;
  }
  s->got.tokens++;
}

/* ---- tokenizing one unit ---- */

static void plain_unit(int fd, const source *f, const unit *u, sink *s, sk_err *e) {
  unsigned char *buf = sk_malloc(CHUNK);
  if (u->begin == 0) begin_document(s, e);
  for (int64_t at = u->begin; at < u->end && !e->code;) {
    int64_t want = u->end - at < CHUNK ? u->end - at : CHUNK;
    ssize_t k = pread(fd, buf, (size_t)want, at);
    if (k < 0 && errno == EINTR) continue;
    if (k < 0) sk_fs_fail(e, f->path, "read", errno);
    else if (k == 0) sk_fail(e, SK_FAILED, "%s: became shorter while it was read", f->path);
    else put_bytes(s, buf, k, e);
    at += k;
  }
  if (u->end == f->size) end_document(s, e);
  sk_free(buf);
}

/* Lines before byte `at`, for a message. */
static long long lines_before(FILE *f, int64_t at) {
  long long n = 0;
  rewind(f);
  for (int c; at > 0 && (c = getc(f)) != EOF; at--) n += c == '\n';
  return n;
}

static void json_line(const char *line, size_t n, const source *f, FILE *in, int64_t at, sink *s,
                      sk_err *e) {
  json_error_t why;
  json_t *o = json_loadb(line, n, JSON_ALLOW_NUL, &why);
  json_t *text = json_object_get(o, "text");
  if (!o || !json_is_string(text)) {
    sk_fail(e, SK_FAILED, "%s:%lld: %s", f->path, lines_before(in, at) + 1,
            !o                   ? why.text
            : json_is_object(o)  ? "no \"text\" with a string in this object"
                                 : "not a JSON object {\"text\": \"...\"}");
  } else if (json_string_length(text) == 0) {
    s->empty++;
  } else {
    begin_document(s, e);
    put_bytes(s, (const unsigned char *)json_string_value(text), (int64_t)json_string_length(text), e);
    end_document(s, e);
  }
  json_decref(o);
}

static bool blank(const char *s, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (!strchr(" \t\r\n", s[i]) || !s[i]) return false;
  return true;
}

/* One line from the stream into *buf, at most MAX_LINE bytes; -1 at the end. */
static int64_t get_line(FILE *in, char **buf, size_t *cap) {
  size_t n = 0;
  int c = EOF;
  while (n <= MAX_LINE && (c = getc_unlocked(in)) != EOF) {
    if (n == *cap) *buf = sk_realloc(*buf, *cap = 2 * *cap + 4096);
    (*buf)[n++] = (char)c;
    if (c == '\n') break;
  }
  return n ? (int64_t)n : -1;
}

/* The lines that begin in [begin, end): one cut by `begin` belongs to the unit before. */
static void json_unit(int fd, const source *f, const unit *u, sink *s, sk_err *e) {
  FILE *in = fdopen(dup(fd), "rb");
  SK_CHECK(in, "%s: no stream: %s", f->path, strerror(errno));
  char *buf = NULL;
  size_t cap = 0;
  int64_t at = u->begin, n;
  if (at > 0) {
    fseeko(in, at - 1, SEEK_SET);
    for (int c = 0; c != '\n' && (c = getc_unlocked(in)) != EOF; at++) {}
    at--; // the byte before `begin` was read too
  } else {
    fseeko(in, 0, SEEK_SET);
  }
  while (at < u->end && !e->code && (n = get_line(in, &buf, &cap)) > 0) {
    if (n > MAX_LINE)
      sk_fail(e, SK_FAILED, "%s:%lld: longer than %s", f->path, lines_before(in, at) + 1,
              sk_bytes(MAX_LINE));
    else if (!blank(buf, (size_t)n))
      json_line(buf, (size_t)n, f, in, at, s, e);
    at += n;
  }
  if (ferror(in)) sk_fs_fail(e, f->path, "read", errno);
  fclose(in);
  sk_free(buf);
}

static void run_unit(const list *l, const unit *u, sink *s, sk_err *e) {
  const source *f = &l->at[u->file];
  int fd = open(f->path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    sk_fs_fail(e, f->path, "read", errno);
    return;
  }
  (ends_in(f->path, ".jsonl") ? json_unit : plain_unit)(fd, f, u, s, e);
  close(fd);
}

/* ---- the passes ---- */

typedef struct work {
  MPI_Comm comm;
  int rank, size;
  list l;
  int64_t n, lo, hi; /* units; mine are lo .. hi-1 */
  unit *u;
  tally *c;  /* of each unit, after pass 1 */
  tally all; /* their sum */
  int64_t bytes, empty;
} work;

/* Cuts the files into units; every rank's share has about the same bytes. */
static void cut(work *w) {
  for (int64_t i = 0; i < w->l.n; i++) {
    w->n += (w->l.at[i].size - 1) / UNIT + 1;
    w->bytes += w->l.at[i].size;
  }
  w->u = sk_calloc((size_t)w->n, sizeof *w->u);
  w->c = sk_calloc((size_t)w->n, sizeof *w->c);
  int64_t k = 0, done = 0;
  for (int64_t i = 0; i < w->l.n; i++)
    for (int64_t at = 0; at < w->l.at[i].size; at += UNIT, k++) {
      int64_t end = at + UNIT < w->l.at[i].size ? at + UNIT : w->l.at[i].size;
      w->u[k] = (unit){.file = i, .begin = at, .end = end};
      double owner = (double)done / (double)w->bytes * w->size;
      w->lo += (int)owner < w->rank;
      w->hi += (int)owner <= w->rank;
      done += end - at;
    }
}

static void progress(const work *w, const char *what, int64_t i, double *last) {
  if (w->rank != 0 || sk_now() - *last < 5) return;
  *last = sk_now();
  sk_say("%s: %.0f %%", what, 100.0 * (double)(i - w->lo) / (double)(w->hi - w->lo));
}

static void count_pass(work *w, sk_err *e) {
  int64_t empty = 0;
  double last = sk_now();
  for (int64_t i = w->lo; i < w->hi && !e->code; i++) {
    sink s = {.out = NULL};
    progress(w, "counting tokens", i, &last);
    run_unit(&w->l, &w->u[i], &s, e);
    w->c[i] = s.got;
    empty += s.empty;
  }
  if (sk_agree(w->comm, e) != SK_OK) return;
  SK_MPI(MPI_Allreduce(&empty, &w->empty, 1, MPI_INT64_T, MPI_SUM, w->comm));
  for (int64_t i = 0; i < w->n; i += CHUNK) { // one rank has a unit's count, the others have 0
    int n = (int)(w->n - i < CHUNK ? w->n - i : CHUNK);
    SK_MPI(MPI_Allreduce(MPI_IN_PLACE, &w->c[i], 2 * n, MPI_INT64_T, MPI_SUM, w->comm));
  }
  for (int64_t i = 0; i < w->n; i++) {
    w->all.tokens += w->c[i].tokens;
    w->all.docs += w->c[i].docs;
  }
  if (w->all.docs == 0) sk_fail(e, SK_FAILED, "no text found: all documents are empty");
}

static void write_pass(work *w, output *o, sk_err *e) {
  double last = sk_now();
  for (int64_t i = 0; i < w->lo; i++) {
    o->at += w->c[i].tokens;
    o->doc_at += w->c[i].docs;
  }
  int64_t token = o->at;
  for (int64_t i = w->lo; i < w->hi && !e->code; token += w->c[i].tokens, i++) {
    sink s = {.out = o, .token_at = token, .most = w->c[i]};
    progress(w, "writing tokens", i, &last);
    run_unit(&w->l, &w->u[i], &s, e);
    if (s.got.tokens != w->c[i].tokens || s.got.docs != w->c[i].docs)
      sk_fail(e, SK_FAILED, "%s: changed while it was read", w->l.at[w->u[i].file].path);
  }
  flush(o, e);
}

/* ---- the file ---- */

static void create_dset(hid_t file, const char *path, const char *name, hid_t type, int64_t n,
                        int64_t chunk, sk_err *e) {
  hsize_t dim = (hsize_t)n, part = (hsize_t)(chunk < n ? chunk : n);
  hid_t plist = sk_h5_dset_plist(), space = H5Screate_simple(1, &dim, NULL);
  if (chunk) H5Pset_chunk(plist, 1, &part);
  hid_t d = H5Dcreate2(file, name, type, space, H5P_DEFAULT, plist, H5P_DEFAULT);
  if (d < 0) sk_h5_fail(e, path, "written");
  else H5Dclose(d);
  H5Sclose(space);
  H5Pclose(plist);
}

/* Rank 0: the file with its metadata and its space on the disk. */
static void create_file(const work *w, const char *tmp, const char *source_text, sk_err *e) {
#ifdef PACKAGE_VERSION
  const char *created_by = "saker " PACKAGE_VERSION;
#else
  const char *created_by = "saker";
#endif
  int64_t chunks = (w->all.tokens - 1) / CHUNK + 1;
  unlink(tmp); // of a build that was killed
  if (sk_fs_reserve(tmp, chunks * CHUNK * 2 + w->all.docs * 8 + (1 << 20), e) != SK_OK) return;
  hid_t f = sk_h5_create(tmp, e);
  if (f < 0) return;
  sk_h5_text_attr(f, tmp, "format", "saker-tokens", e);
  sk_h5_int_attr(f, tmp, "version", 1, e);
  sk_h5_int_attr(f, tmp, "vocab_size", VOCAB, e);
  sk_h5_int_attr(f, tmp, "eos_id", END, e);
  sk_h5_int_attr(f, tmp, "tokens", w->all.tokens, e);
  sk_h5_text_attr(f, tmp, "tokenizer", "bytes", e);
  sk_h5_text_attr(f, tmp, "tokenizer_xxh3", "", e); // the built-in one has no file
  sk_h5_text_attr(f, tmp, "source", source_text, e);
  sk_h5_text_attr(f, tmp, "created_by", created_by, e);
  create_dset(f, tmp, "data", H5T_STD_U16LE, w->all.tokens, CHUNK, e);
  create_dset(f, tmp, "documents", H5T_STD_U64LE, w->all.docs, 0, e);
  if (sk_h5_close(f) != SK_OK) sk_h5_fail(e, tmp, "written");
  if (!e->code) sk_fs_reserve(tmp, sk_fs_size(tmp), e);
}

/* Collective. */
static void write_file(work *w, const char *tmp, const char *source_text, sk_err *e) {
  if (w->rank == 0) create_file(w, tmp, source_text, e);
  if (sk_agree(w->comm, e) != SK_OK) return;
  output o = {.path = tmp, .file = sk_h5_open_shared(w->comm, tmp, true, e)};
  if (o.file < 0) return;
  o.data = H5Dopen2(o.file, "data", H5P_DEFAULT);
  o.documents = H5Dopen2(o.file, "documents", H5P_DEFAULT);
  if (o.data < 0 || o.documents < 0) sk_h5_fail(e, tmp, "opened at its datasets");
  o.buf = sk_malloc(CHUNK * sizeof *o.buf);
  o.doc = sk_malloc(CHUNK * sizeof *o.doc);
  if (!e->code) write_pass(w, &o, e);
  sk_free(o.buf);
  sk_free(o.doc);
  if (o.data >= 0) H5Dclose(o.data);
  if (o.documents >= 0) H5Dclose(o.documents);
  sk_h5_close_shared(w->comm, o.file, tmp, true, e);
}

/* The arguments as given, in one line that fits the attribute; cut between characters when they are long. */
static char *join(int n, char *const *text) {
  enum { CAP = 1024 };
  char *s = sk_calloc(CAP, 1);
  for (int i = 0; i < n; i++) {
    size_t at = strlen(s), room = CAP - at;
    if ((size_t)snprintf(s + at, room, "%s%s", i ? " " : "", text[i]) < room) continue;
    at = CAP - 4;
    while (at > 0 && ((unsigned char)s[at] & 0xc0) == 0x80) at--; /* not inside a UTF-8 character */
    memcpy(s + at, "...", 4);
    break;
  }
  return s;
}

static void publish(const work *w, const char *tmp, const char *out, sk_err *e) {
  char *dir = sk_fs_parent(out);
  if (rename(tmp, out) != 0) sk_fs_fail(e, out, "written", errno);
  else sk_fs_sync(dir, e);
  sk_free(dir);
  if (e->code) return;
  if (w->l.skipped > 20) sk_say("note: %lld files were skipped in all", (long long)w->l.skipped);
  if (w->empty) sk_say("note: %lld empty documents were skipped", (long long)w->empty);
  sk_say("%s: %lld tokens in %lld documents from %lld files (%s)", out, (long long)w->all.tokens,
         (long long)w->all.docs, (long long)w->l.n, sk_bytes((double)w->bytes));
}

int sk_tokens_build(MPI_Comm comm, const char *tokenizer, const char *out, int n_text,
                    char *const *text, sk_err *e) {
  work w = {.comm = comm, .l.e = e};
  MPI_Comm_rank(comm, &w.rank);
  MPI_Comm_size(comm, &w.size);
  if (strcmp(tokenizer, "bytes") != 0)
    sk_fail(e, SK_USAGE, "tokenizer %s: not yet; only \"bytes\" is built in", tokenizer);
  if (n_text < 1) sk_fail(e, SK_USAGE, "no text given: name files or folders");
  for (int i = 0; w.rank == 0 && i < n_text && !e->code; i++) add_argument(&w.l, text[i]);
  if (w.rank == 0 && w.l.n == 0) sk_fail(e, SK_FAILED, "no text found in what was given");
  char *tmp = sk_strf("%s.tmp", out), *source_text = join(n_text, text);
  if (sk_agree(comm, e) == SK_OK) {
    share_list(comm, &w.l);
    cut(&w);
    count_pass(&w, e);
    if (!e->code) write_file(&w, tmp, source_text, e);
    if (!e->code && w.rank == 0) publish(&w, tmp, out, e);
    sk_agree(comm, e);
    if (e->code && w.rank == 0) unlink(tmp);
  }
  for (int64_t i = 0; i < w.l.n; i++) sk_free(w.l.at[i].path);
  sk_free(w.l.at);
  sk_free(w.u);
  sk_free(w.c);
  sk_free(tmp);
  sk_free(source_text);
  return e->code;
}
