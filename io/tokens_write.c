#include "io/tokens_write.h"
#include "io/fsutil.h"
#include "io/h5.h"
#include <errno.h>
#include <hdf5.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int sk_tokens_width(int64_t vocab) {
  return vocab <= 65536 ? 2 : 4;
}

char *sk_tokens_source(int n, char *const *text) {
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

static void create_dset(hid_t file, const char *path, const char *name, hid_t type, int64_t n,
                        int64_t chunk, const void *values, sk_err *e) {
  hsize_t dim = (hsize_t)n, part = (hsize_t)(chunk < n ? chunk : n);
  hid_t plist = sk_h5_dset_plist(), space = H5Screate_simple(1, &dim, NULL);
  if (chunk) H5Pset_chunk(plist, 1, &part);
  hid_t d = H5Dcreate2(file, name, type, space, H5P_DEFAULT, plist, H5P_DEFAULT);
  if (d < 0 || (values && H5Dwrite(d, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) < 0))
    sk_h5_fail(e, path, "written");
  if (d >= 0) H5Dclose(d);
  H5Sclose(space);
  H5Pclose(plist);
}

/* Rank 0: the file with its metadata and its space on the disk. */
static void create_file(const sk_tokens_writer *w, const sk_tokens_meta *m, sk_err *e) {
#ifdef PACKAGE_VERSION
  const char *created_by = "saker " PACKAGE_VERSION;
#else
  const char *created_by = "saker";
#endif
  int64_t chunks = (m->tokens - 1) / SK_TOKENS_CHUNK + 1;
  const char *tmp = w->tmp;
  unlink(tmp); // of a build that was killed
  if (sk_fs_reserve(tmp, chunks * SK_TOKENS_CHUNK * w->width + m->documents * 8 + (1 << 20), e) !=
      SK_OK)
    return;
  hid_t f = sk_h5_create(tmp, 0, 0, e);
  if (f < 0) return;
  sk_h5_text_attr(f, tmp, "format", "saker-tokens", e);
  sk_h5_int_attr(f, tmp, "version", 1, e);
  sk_h5_int_attr(f, tmp, "vocab_size", m->vocab_size, e);
  sk_h5_int_attr(f, tmp, "eos_id", m->eos_id, e);
  sk_h5_int_attr(f, tmp, "tokens", m->tokens, e);
  sk_h5_text_attr(f, tmp, "tokenizer", m->tokenizer, e);
  sk_h5_text_attr(f, tmp, "tokenizer_xxh3", m->hash, e);
  sk_h5_text_attr(f, tmp, "source", m->source, e);
  sk_h5_text_attr(f, tmp, "created_by", created_by, e);
  create_dset(f, tmp, "data", w->width == 2 ? H5T_STD_U16LE : H5T_STD_U32LE, m->tokens,
              SK_TOKENS_CHUNK, NULL, e);
  create_dset(f, tmp, "documents", H5T_STD_U64LE, m->documents, 0, NULL, e);
  if (m->json)
    create_dset(f, tmp, "tokenizer.json", H5T_STD_U8LE, (int64_t)m->json_n, 0, m->json, e);
  if (sk_h5_close(f) != SK_OK) sk_h5_fail(e, tmp, "written");
  if (!e->code) sk_fs_reserve(tmp, sk_fs_size(tmp), e);
}

int sk_tokens_writer_open(sk_tokens_writer *w, MPI_Comm comm, const char *out,
                          const sk_tokens_meta *m, sk_err *e) {
  int rank;
  MPI_Comm_rank(comm, &rank);
  *w = (sk_tokens_writer){.comm = comm, .file = -1, .data = -1, .documents = -1};
  w->out = sk_strdup(out);
  w->tmp = sk_strf("%s.tmp", out);
  w->width = sk_tokens_width(m->vocab_size);
  if (rank == 0) create_file(w, m, e);
  if (sk_agree(comm, e) != SK_OK) return e->code;
  w->file = sk_h5_open_shared(comm, w->tmp, true, e);
  if (w->file < 0) return e->code;
  w->data = H5Dopen2(w->file, "data", H5P_DEFAULT);
  w->documents = H5Dopen2(w->file, "documents", H5P_DEFAULT);
  if (w->data < 0 || w->documents < 0) sk_h5_fail(e, w->tmp, "opened at its datasets");
  return e->code;
}

static void put(const sk_tokens_writer *w, hid_t dset, hid_t type, int64_t at, int64_t n,
                const void *data, sk_err *e) {
  hsize_t start = (hsize_t)at, count = (hsize_t)n;
  if (n == 0 || e->code) return;
  hid_t space = H5Dget_space(dset), mem = H5Screate_simple(1, &count, NULL);
  H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &count, NULL);
  if (H5Dwrite(dset, type, mem, space, H5P_DEFAULT, data) < 0) sk_h5_fail(e, w->tmp, "written");
  H5Sclose(mem);
  H5Sclose(space);
}

void sk_tokens_put(sk_tokens_writer *w, int64_t at, int64_t n, const void *ids, sk_err *e) {
  put(w, w->data, w->width == 2 ? H5T_NATIVE_UINT16 : H5T_NATIVE_UINT32, at, n, ids, e);
}

void sk_tokens_put_docs(sk_tokens_writer *w, int64_t at, int64_t n, const uint64_t *start,
                        sk_err *e) {
  put(w, w->documents, H5T_NATIVE_UINT64, at, n, start, e);
}

static void publish(const sk_tokens_writer *w, sk_err *e) {
  char *dir = sk_fs_parent(w->out);
  if (rename(w->tmp, w->out) != 0)
    sk_fs_fail(e, w->out, "written", errno);
  else
    sk_fs_sync(dir, e);
  sk_free(dir);
}

int sk_tokens_writer_close(sk_tokens_writer *w, sk_err *e) {
  int rank;
  MPI_Comm_rank(w->comm, &rank);
  if (w->data >= 0) H5Dclose(w->data);
  if (w->documents >= 0) H5Dclose(w->documents);
  if (w->file >= 0) sk_h5_close_shared(w->comm, w->file, w->tmp, true, e);
  if (sk_agree(w->comm, e) == SK_OK && rank == 0) publish(w, e);
  if (sk_agree(w->comm, e) != SK_OK && rank == 0) unlink(w->tmp);
  sk_free(w->out);
  sk_free(w->tmp);
  return e->code;
}
