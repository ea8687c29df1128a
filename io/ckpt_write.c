/* ckpt_write.c: one rank's part of one file of a checkpoint: plain writes, synced and read back. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/ckpt_job.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK = 1 << 20 }; // bytes hashed and written, or read and hashed, at a time: stays in a core's cache

typedef struct writer {
  int fd;
  const char *path;
  sk_hash *hash;
  char *buf; /* [BLOCK] */
  float *slab; /* room for any slab that has no data */
} writer;

static int write_at(const writer *w, const char *p, size_t n, int64_t at, sk_err *e) {
  while (n > 0) {
    ssize_t k = pwrite(w->fd, p, n, (off_t)at);
    if (k < 0 && errno == EINTR) continue;
    if (k <= 0) return sk_fs_fail(e, w->path, "written", k < 0 ? errno : EIO);
    p += k;
    at += k;
    n -= (size_t)k;
  }
  return SK_OK;
}

static int read_at(const writer *w, char *p, size_t n, int64_t at, sk_err *e) {
  while (n > 0) {
    ssize_t k = pread(w->fd, p, n, (off_t)at);
    if (k < 0 && errno == EINTR) continue;
    if (k <= 0) return sk_fs_fail(e, w->path, "read back", k < 0 ? errno : EIO);
    p += k;
    at += k;
    n -= (size_t)k;
  }
  return SK_OK;
}

/* One contiguous run of bytes into the hash: from memory and to the file, or (data NULL) back from the file. */
static int do_run(const writer *w, const char *data, size_t n, int64_t at, sk_err *e) {
  for (size_t done = 0; done < n && !e->code; done += BLOCK) {
    size_t part = n - done < BLOCK ? n - done : BLOCK;
    if (data) write_at(w, data + done, part, at + (int64_t)done, e);
    else read_at(w, w->buf, part, at + (int64_t)done, e);
    sk_hash_add(w->hash, data ? data + done : w->buf, part);
  }
  return e->code;
}

/* A slab's elements in row-major order, which is their order in the file as well, by runs that lie together there:
 * some indices of `axis` with everything of the axes behind it. data: NULL: back from the file. hash: of the whole slab. */
static int do_slab(const writer *w, const sk_dset *d, const sk_slab *s, int64_t offset, const float *data,
                   sk_hash_text hash, sk_err *e) {
  int axis = d->rank - 1;
  int64_t run = s->count[axis], runs = 1;
  for (; axis > 0 && s->count[axis] == d->dim[axis]; axis--) run *= s->count[axis - 1];
  for (int i = 0; i < axis; i++) runs *= s->count[i];
  for (int64_t k = 0; k < runs && !e->code; k++) {
    int64_t at = 0, rest = k, stride = 1;
    for (int i = d->rank - 1; i >= 0; stride *= d->dim[i--]) {
      int64_t index = s->start[i];
      if (i < axis) index += rest % s->count[i], rest /= s->count[i];
      at += index * stride;
    }
    do_run(w, data ? (const char *)(data + k * run) : NULL, (size_t)run * sizeof(float),
           offset + at * (int64_t)sizeof(float), e);
  }
  sk_hash_take(w->hash, hash);
  return e->code;
}

static void check_slab(const sk_dset *d, const sk_slab *s) {
  for (int k = 0; k < d->rank; k++)
    SK_CHECK(s->start[k] >= 0 && s->count[k] >= 0 && s->count[k] <= d->dim[k] - s->start[k],
             "a slab leaves dataset %s", d->name);
}

int sk_ckpt_lied(const char *path, const char *where, sk_err *e) {
  return sk_fail(e, SK_FAILED, "%s: does not hold what was written at %s: the disk, the file system or the memory is at "
                 "fault", path, where);
}

/* Writes the slabs (then hash[] gets their hashes) or reads them back and compares. */
static void do_slabs(const writer *w, const sk_ckpt_file *f, const sk_h5_form *form, bool back, sk_hash_text *hash,
                     sk_err *e) {
  for (int i = 0; i < f->n_slab && !e->code; i++) {
    const sk_slab *s = &f->slab[i];
    const sk_dset *d = &f->dset[s->dset];
    const float *data = s->data ? s->data : w->slab;
    sk_hash_text read;
    check_slab(d, s);
    if (sk_slab_count(s, d->rank) == 0) continue;
    if (!back && !s->data && f->source->fill(f->source->arg, i, w->slab, e) != SK_OK) return;
    do_slab(w, d, s, form->offset[s->dset], back ? NULL : data, back ? read : hash[i], e);
    if (back && !e->code && strcmp(read, hash[i]) != 0) sk_ckpt_lied(w->path, d->name, e);
  }
}

/* The writer of the structure sees to the size as well, so that a full disk shows at once. */
static void write_form(const writer *w, const sk_h5_form *form, sk_err *e) {
  struct stat st;
  if (sk_fs_reserve(w->path, form->size, e) != SK_OK) return;
  if (fstat(w->fd, &st) != 0 || (st.st_size != form->size && ftruncate(w->fd, (off_t)form->size) != 0))
    sk_fs_fail(e, w->path, "written", errno);
  for (int i = 0; i < form->n_piece && !e->code; i++)
    write_at(w, form->piece[i].data, form->piece[i].n, form->piece[i].at, e);
}

static void check_form(const writer *w, const sk_h5_form *form, sk_err *e) {
  for (int i = 0; i < form->n_piece; i++)
    for (size_t done = 0; done < form->piece[i].n && !e->code; done += BLOCK) {
      size_t part = form->piece[i].n - done < BLOCK ? form->piece[i].n - done : BLOCK;
      if (read_at(w, w->buf, part, form->piece[i].at + (int64_t)done, e) != SK_OK) return;
      if (memcmp(w->buf, form->piece[i].data + done, part) != 0) sk_ckpt_lied(w->path, "HDF5's structures", e);
    }
}

/* Room for the largest slab without data; NULL when all have theirs. */
static float *make_room(const sk_ckpt_file *f) {
  int64_t most = 0;
  for (int i = 0; i < f->n_slab; i++) {
    const sk_slab *s = &f->slab[i];
    int64_t count = s->data ? 0 : sk_slab_count(s, f->dset[s->dset].rank);
    if (count > most) most = count;
  }
  SK_CHECK(f->source || most == 0, "%s: slabs without data and without a source", f->name);
  return most ? sk_malloc((size_t)most * sizeof(float)) : NULL;
}

int sk_ckpt_write_file(const char *path, const sk_ckpt_file *f, const sk_h5_form *form, bool structure,
                       sk_hash_text *hash, sk_err *e) {
  writer w = {.path = path, .hash = sk_hash_new(), .buf = sk_malloc(BLOCK), .slab = make_room(f)};
  w.fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (w.fd < 0) {
    sk_fs_fail(e, path, "created", errno);
  } else {
    if (structure) write_form(&w, form, e);
    do_slabs(&w, f, form, false, hash, e);
    if (!e->code && fsync(w.fd) != 0) sk_fs_fail(e, path, "written to disk", errno); // every node its own pages
    do_slabs(&w, f, form, true, hash, e);
    if (structure && !e->code) check_form(&w, form, e);
    if (close(w.fd) != 0) sk_fs_fail(e, path, "written to disk", errno);
  }
  sk_hash_free(w.hash);
  sk_free(w.buf);
  sk_free(w.slab);
  return e->code;
}
