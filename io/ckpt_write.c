/* ckpt_write.c: one rank's part of one file of a checkpoint: plain writes, the sum of what they wrote, and the sync. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/ckpt_job.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BLOCK = 256 << 10 }; // bytes hashed, added up and written in turn: they stay in a core's cache

void sk_ckpt_room_open(sk_ckpt_room *r) { *r = (sk_ckpt_room){.hash = sk_hash_new()}; }

void sk_ckpt_room_close(sk_ckpt_room *r) {
  sk_hash_free(r->hash);
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

int sk_ckpt_lied(const char *path, sk_err *e) {
  return sk_fail(e, SK_FAILED, "%s: does not hold what was written: the disk, the file system or the memory is at fault", path);
}

/* Bytes that are no whole words, by the same weights. */
static uint64_t sum_bytes(const unsigned char *p, size_t n, uint64_t at) {
  uint64_t sum = 0;
  for (size_t i = 0; i < n; i++) sum += ((uint64_t)p[i] << 8 * ((at + i) % 8)) * ((at + i) / 8 * 2 + 1);
  return sum;
}

/* Sum of n words, and of n words times their number among them. Of LANES columns of words each has its own sum and the
 * sum of what that was after each row, which counts the words of row r (rows - r) times: additions alone, as fast as
 * memory gives the words. */
static uint64_t sum_words(const unsigned char *p, size_t n, uint64_t *plain) {
  enum { LANES = 16 };
  uint64_t sum[LANES] = {0}, sums[LANES] = {0}, ranked = 0;
  const size_t rows = n / LANES;
  for (size_t r = 0; r < rows; r++)
#pragma omp simd
    for (size_t l = 0; l < LANES; l++) {
      uint64_t w;
      memcpy(&w, p + 8 * (r * LANES + l), sizeof w);
      sum[l] += w;
      sums[l] += sum[l];
    }
  *plain = 0;
  for (size_t l = 0; l < LANES; l++) *plain += sum[l], ranked += LANES * (rows * sum[l] - sums[l]) + l * sum[l];
  for (size_t i = rows * LANES; i < n; i++) {
    uint64_t w;
    memcpy(&w, p + 8 * i, sizeof w);
    *plain += w;
    ranked += w * i;
  }
  return ranked;
}

uint64_t sk_ckpt_sum(const char *data, size_t n, int64_t at) {
  const unsigned char *p = (const unsigned char *)data;
  size_t head = (size_t)(-at & 7);
  if (head > n) head = n;
  const size_t words = (n - head) / 8, rest = head + 8 * words;
  uint64_t plain, ranked = sum_words(p + head, words, &plain);
  return sum_bytes(p, head, (uint64_t)at) + 2 * (ranked + plain * (((uint64_t)at + head) / 8)) + plain +
         sum_bytes(p + rest, n - rest, (uint64_t)at + rest);
}

/* One contiguous run of bytes into the file and, unless NULL, the hash. */
static int write_run(sk_ckpt_part *w, sk_hash *hash, const char *data, size_t n, int64_t at, sk_err *e) {
  uint64_t sum = 0;
  for (size_t done = 0; done < n && !e->code; done += BLOCK) {
    size_t part = n - done < BLOCK ? n - done : BLOCK;
    if (hash) sk_hash_add(hash, data + done, part);
    sum += sk_ckpt_sum(data + done, part, at + (int64_t)done);
    write_at(w, data + done, part, at + (int64_t)done, e);
  }
  atomic_fetch_add(&w->sum, sum);
  return e->code;
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

/* A slab's elements in row-major order, which is their order in the file as well. */
int sk_ckpt_part_slab(sk_ckpt_part *w, int slab, sk_ckpt_room *room, sk_err *e) {
  const sk_slab *s = &w->file->slab[slab];
  check_slab(&w->file->dset[s->dset], s);
  const char *data = (const char *)(s->data ? s->data : fill(w, room, slab, e));
  if (!data) return e->code;
  const box b = place_of(w, s);
  const sk_dset *d = &b.d;
  const runs r = find_runs(d, &b.s);
  for (int64_t k = 0; k < r.n && !e->code; k++)
    write_run(w, room->hash, data + k * r.bytes, (size_t)r.bytes, run_at(d, &b.s, b.at, &r, k), e);
  sk_hash_take(room->hash, w->hash[slab]);
  return e->code;
}

/* The writer of the structure sees to the size as well, so that a full disk shows at once. */
static int write_form(sk_ckpt_part *w, sk_err *e) {
  const sk_h5_form *form = w->form;
  struct stat st;
  if (sk_fs_reserve(w->path, form->size, e) != SK_OK) return e->code;
  if (fstat(w->fd, &st) != 0 || (st.st_size != form->size && ftruncate(w->fd, (off_t)form->size) != 0))
    return sk_fs_fail(e, w->path, "written", errno);
  for (int i = 0; i < form->n_piece && !e->code; i++)
    write_run(w, NULL, form->piece[i].data, form->piece[i].n, form->piece[i].at, e);
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
