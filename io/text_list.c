#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/text_list.h"
#include "io/fsutil.h"
#include <errno.h>
#include <glob.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

enum { MAX_DEPTH = 64 /* of folders */, NOTES = 20 };

bool sk_ends_in(const char *s, const char *end) {
  size_t n = strlen(s), k = strlen(end);
  return n >= k && strcasecmp(s + n - k, end) == 0;
}

bool sk_text_packed(const char *path) { return sk_ends_in(path, ".gz") || sk_ends_in(path, ".zst"); }

bool sk_text_lines(const char *path) {
  return sk_ends_in(path, ".jsonl") || sk_ends_in(path, ".jsonl.gz") || sk_ends_in(path, ".jsonl.zst");
}

/* Why a file of that name is no text; NULL when it may be. */
static const char *no_text(const char *path) {
  static const char *const packed[] = {".xz", ".bz2", ".zip", ".lz4", ".tar", ".tar.gz", ".tgz", ".tar.zst"};
  if (sk_ends_in(path, ".h5") || sk_ends_in(path, ".h5.tmp")) return "an HDF5 file, not text";
  for (size_t i = 0; i < sizeof packed / sizeof *packed; i++)
    if (sk_ends_in(path, packed[i])) return "an archive; unpack it first (.gz and .zst of one text can be read)";
  return NULL;
}

static void skip(sk_text_list *l, const char *path, const char *why) {
  if (l->skipped++ < NOTES) sk_say("note: %s is skipped: %s", path, why);
}

static void add_file(sk_text_list *l, const char *path, int64_t size) {
  if (size == 0) {
    skip(l, path, "empty");
    return;
  }
  if (l->n == l->cap) l->at = sk_realloc(l->at, (size_t)(l->cap = 2 * l->cap + 16) * sizeof *l->at);
  l->at[l->n++] = (sk_text_file){sk_strdup(path), size};
}

/* A folder's entries in byte order of their names, folders gone through in place. */
static void add_folder(sk_text_list *l, const char *dir, int depth, sk_err *e) {
  char **name;
  int64_t n;
  if (depth > MAX_DEPTH) {
    sk_fail(e, SK_FAILED, "%s: more than %d folders deep", dir, MAX_DEPTH);
    return;
  }
  sk_fs_list(dir, &name, &n, e);
  for (int64_t i = 0; i < n && !e->code; i++) {
    struct stat st, link;
    char *path = sk_strf("%s%s%s", dir, sk_ends_in(dir, "/") ? "" : "/", name[i]);
    if (name[i][0] == '.')
      skip(l, path, "hidden");
    else if (stat(path, &st) != 0 || lstat(path, &link) != 0)
      sk_fs_fail(e, path, "read", errno);
    else if (S_ISDIR(st.st_mode) && S_ISLNK(link.st_mode))
      skip(l, path, "a link to a folder");
    else if (S_ISDIR(st.st_mode))
      add_folder(l, path, depth + 1, e);
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

static void add_path(sk_text_list *l, const char *path, sk_err *e) {
  struct stat st;
  if (stat(path, &st) != 0)
    sk_fs_fail(e, path, "read", errno);
  else if (S_ISDIR(st.st_mode))
    add_folder(l, path, 0, e);
  else if (!S_ISREG(st.st_mode))
    sk_fail(e, SK_FAILED, "%s: neither a file nor a folder", path);
  else if (no_text(path))
    sk_fail(e, SK_USAGE, "%s: %s", path, no_text(path));
  else
    add_file(l, path, (int64_t)st.st_size);
}

/* glob sorts by the locale's order, which is C's here: no setlocale is called. */
static void add_argument(sk_text_list *l, const char *arg, sk_err *e) {
  struct stat st;
  glob_t g = {0};
  if (stat(arg, &st) != 0 && strpbrk(arg, "*?[") && glob(arg, 0, NULL, &g) == 0) {
    for (size_t i = 0; i < g.gl_pathc && !e->code; i++) add_path(l, g.gl_pathv[i], e);
    globfree(&g);
    return;
  }
  add_path(l, arg, e);
}

/* Collective: rank 0's list on every rank. */
static void share(MPI_Comm comm, int rank, sk_text_list *l) {
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

int sk_text_list_make(MPI_Comm comm, int n_arg, char *const *arg, sk_text_list *l, sk_err *e) {
  int rank;
  MPI_Comm_rank(comm, &rank);
  *l = (sk_text_list){0};
  if (n_arg < 1) sk_fail(e, SK_USAGE, "no text given: name files or folders");
  for (int i = 0; rank == 0 && i < n_arg && !e->code; i++) add_argument(l, arg[i], e);
  if (rank == 0 && l->n == 0) sk_fail(e, SK_FAILED, "no text found in what was given");
  if (rank == 0 && l->skipped > NOTES) sk_say("note: %lld files are skipped in all", (long long)l->skipped);
  if (sk_agree(comm, e) == SK_OK) share(comm, rank, l);
  return e->code;
}

void sk_text_list_free(sk_text_list *l) {
  for (int64_t i = 0; i < l->n; i++) sk_free(l->at[i].path);
  sk_free(l->at);
}
