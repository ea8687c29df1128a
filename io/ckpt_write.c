/* ckpt_write.c: one rank's part of one file of a checkpoint: plain writes, each read back at once, and the sync. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/ckpt_job.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK = 256 << 10 }; // bytes hashed, written and read back in turn: three of them stay in a core's cache

void sk_ckpt_room_open(sk_ckpt_room *r) { *r = (sk_ckpt_room){.hash = sk_hash_new(), .buf = sk_malloc(BLOCK)}; }

void sk_ckpt_room_close(sk_ckpt_room *r) {
  sk_hash_free(r->hash);
  sk_free(r->buf);
  sk_free(r->slab);
}

static int write_at(const sk_ckpt_part *w, const char *p, size_t n, int64_t at, sk_err *e) {
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

static int read_at(const sk_ckpt_part *w, char *p, size_t n, int64_t at, sk_err *e) {
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

int sk_ckpt_lied(const char *path, const char *where, sk_err *e) {
  return sk_fail(e, SK_FAILED, "%s: does not hold what was written at %s: the disk, the file system or the memory is at "
                 "fault", path, where);
}

/* One contiguous run of bytes into the file and, unless NULL, the hash. Reading it back while it is in the cache costs
 * a fraction of reading it back later. */
static int write_run(const sk_ckpt_part *w, const sk_ckpt_room *r, sk_hash *hash, const char *data, size_t n, int64_t at,
                     const char *where, sk_err *e) {
  for (size_t done = 0; done < n; done += BLOCK) {
    size_t part = n - done < BLOCK ? n - done : BLOCK;
    if (hash) sk_hash_add(hash, data + done, part);
    if (write_at(w, data + done, part, at + (int64_t)done, e) != SK_OK ||
        read_at(w, r->buf, part, at + (int64_t)done, e) != SK_OK)
      return e->code;
    if (memcmp(r->buf, data + done, part) != 0) return sk_ckpt_lied(w->path, where, e);
  }
  return SK_OK;
}

/* A dataset or a block of its columns as the array that the file keeps together, a slab as a part of it. */
typedef struct box {
  sk_dset d;
  sk_slab s;
  int64_t at; /* bytes from the beginning of the file */
} box;

static box place_of(const sk_ckpt_part *w, const sk_slab *s) {
  box b = {.d = w->file->dset[s->dset], .s = *s};
  int64_t width = b.d.block, k = width ? s->start[1] / width : 0;
  if (width) {
    b.d.dim[1] = width;
    b.s.start[1] -= k * width;
    SK_CHECK(b.s.start[1] + s->count[1] <= width, "a slab leaves a block of dataset %s", b.d.name);
  }
  b.at = w->form->offset[w->form->first[s->dset] + k];
  return b;
}

static void check_slab(const sk_dset *d, const sk_slab *s) {
  for (int k = 0; k < d->rank; k++)
    SK_CHECK(s->start[k] >= 0 && s->count[k] >= 0 && s->count[k] <= d->dim[k] - s->start[k],
             "a slab leaves dataset %s", d->name);
}

/* Values of a slab without data: in room for the largest of the file, made once. */
static const float *fill(const sk_ckpt_part *w, sk_ckpt_room *r, int i, sk_err *e) {
  const sk_ckpt_file *f = w->file;
  SK_CHECK(f->source, "%s: slabs without data and without a source", f->name);
  int64_t most = 0;
  for (int k = 0; k < f->n_slab; k++) {
    const sk_slab *s = &f->slab[k];
    int64_t count = s->data ? 0 : sk_slab_count(s, f->dset[s->dset].rank);
    if (count > most) most = count;
  }
  if (most > r->slab_count) r->slab = sk_realloc(r->slab, (size_t)most * sizeof(float)), r->slab_count = most;
  return f->source->fill(f->source->arg, i, r->slab, e) == SK_OK ? r->slab : NULL;
}

/* Runs of a slab that lie together in the file: some indices of `axis` with everything of the axes behind it. */
typedef struct runs {
  int axis;
  int64_t n, bytes; /* how many, of each */
} runs;

static runs find_runs(const sk_dset *d, const sk_slab *s) {
  runs r = {.axis = d->rank - 1, .n = 1};
  int64_t count = s->count[r.axis];
  for (; r.axis > 0 && s->count[r.axis] == d->dim[r.axis]; r.axis--) count *= s->count[r.axis - 1];
  for (int i = 0; i < r.axis; i++) r.n *= s->count[i];
  r.bytes = count * (int64_t)sizeof(float);
  return r;
}

/* Place of run k in the file; it grows with k. */
static int64_t run_at(const sk_dset *d, const sk_slab *s, int64_t offset, const runs *r, int64_t k) {
  int64_t at = 0, stride = 1;
  for (int i = d->rank - 1; i >= 0; stride *= d->dim[i--]) {
    int64_t index = s->start[i];
    if (i < r->axis) index += k % s->count[i], k /= s->count[i];
    at += index * stride;
  }
  return offset + at * (int64_t)sizeof(float);
}

/* Short runs from number k on, as many as lie within a block and not too far apart (columns of a matrix of which other
 * ranks have the others): what the file then holds is read in one piece. Returns the next run. */
static int64_t write_short_runs(const sk_ckpt_part *w, const sk_ckpt_room *room, const sk_dset *d, const sk_slab *s,
                                int64_t offset, const runs *r, const char *data, int64_t k, sk_err *e) {
  enum { FAR = 16 };
  const size_t n = (size_t)r->bytes;
  int64_t first = k, begin = run_at(d, s, offset, r, k), end = begin;
  for (int64_t at = begin; k < r->n; at = k < r->n ? run_at(d, s, offset, r, k) : 0) {
    int64_t span = at + r->bytes - begin;
    if (k > first && (span > BLOCK || span > FAR * (k - first + 1) * r->bytes)) break;
    sk_hash_add(room->hash, data + k * r->bytes, n);
    if (write_at(w, data + k * r->bytes, n, at, e) != SK_OK) return k;
    end = at + r->bytes;
    k++;
  }
  if (read_at(w, room->buf, (size_t)(end - begin), begin, e) != SK_OK) return k;
  for (int64_t i = first; i < k; i++)
    if (memcmp(room->buf + (run_at(d, s, offset, r, i) - begin), data + i * r->bytes, n) != 0) {
      sk_ckpt_lied(w->path, d->name, e);
      break;
    }
  return k;
}

/* A slab's elements in row-major order, which is their order in the file as well. */
int sk_ckpt_part_slab(const sk_ckpt_part *w, int slab, sk_ckpt_room *room, sk_err *e) {
  const sk_slab *s = &w->file->slab[slab];
  check_slab(&w->file->dset[s->dset], s);
  const char *data = (const char *)(s->data ? s->data : fill(w, room, slab, e));
  if (!data) return e->code;
  const box b = place_of(w, s);
  const sk_dset *d = &b.d;
  const runs r = find_runs(d, &b.s);
  for (int64_t k = 0; k < r.n && !e->code;) {
    if (r.bytes < BLOCK / 2) {
      k = write_short_runs(w, room, d, &b.s, b.at, &r, data, k, e);
    } else {
      write_run(w, room, room->hash, data + k * r.bytes, (size_t)r.bytes, run_at(d, &b.s, b.at, &r, k), d->name, e);
      k++;
    }
  }
  sk_hash_take(room->hash, w->hash[slab]);
  return e->code;
}

/* The writer of the structure sees to the size as well, so that a full disk shows at once. */
static int write_form(const sk_ckpt_part *w, sk_err *e) {
  const sk_h5_form *form = w->form;
  struct stat st;
  sk_ckpt_room r;
  if (sk_fs_reserve(w->path, form->size, e) != SK_OK) return e->code;
  if (fstat(w->fd, &st) != 0 || (st.st_size != form->size && ftruncate(w->fd, (off_t)form->size) != 0))
    return sk_fs_fail(e, w->path, "written", errno);
  sk_ckpt_room_open(&r);
  for (int i = 0; i < form->n_piece && !e->code; i++)
    write_run(w, &r, NULL, form->piece[i].data, form->piece[i].n, form->piece[i].at, "HDF5's structures", e);
  sk_ckpt_room_close(&r);
  return e->code;
}

int sk_ckpt_part_open(sk_ckpt_part *w, bool structure, sk_err *e) {
  w->fd = open(w->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (w->fd < 0) return sk_fs_fail(e, w->path, "created", errno);
  return structure ? write_form(w, e) : SK_OK;
}

void sk_ckpt_part_flush(const sk_ckpt_part *w) {
  if (w->fd >= 0) sync_file_range(w->fd, 0, 0, SYNC_FILE_RANGE_WRITE); // a hint, which not every file system takes
}

int sk_ckpt_part_show(const sk_ckpt_part *w, sk_err *e) {
  int copy = w->fd >= 0 ? dup(w->fd) : -1;
  if (w->fd >= 0 && (copy < 0 || close(copy) != 0)) sk_fs_fail(e, w->path, "written", errno);
  return e->code;
}

int sk_ckpt_part_close(sk_ckpt_part *w, bool sync, sk_err *e) {
  if (w->fd >= 0 && sync && fsync(w->fd) != 0) sk_fs_fail(e, w->path, "written to disk", errno);
  if (w->fd >= 0 && close(w->fd) != 0) sk_fs_fail(e, w->path, "written to disk", errno);
  w->fd = -1;
  return e->code;
}
