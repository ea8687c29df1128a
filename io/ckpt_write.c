/* ckpt_write.c: one rank's part of one file of a checkpoint: plain writes, past the page cache where that can be, and the
 * sums of what they write. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/ckpt_job.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
  PAGE = 4096,      // O_DIRECT's unit: every disk's divides it
  CHUNK = 8 << 20,  // bytes of a write past the page cache
  WORD = 4,         // bytes that a sum counts together
  READ = 4 << 20,   // bytes read at a time
  HUGE_PAGE = 2 << 20,
};

static int write_at(const sk_ckpt_part *w, const char *p, int64_t n, int64_t at, sk_err *e) {
  while (n > 0) {
    ssize_t k = pwrite(w->fd, p, (size_t)n, (off_t)at);
    if (k < 0 && errno == EINTR) continue;
    if (k <= 0) return sk_fs_fail(e, w->path, "written", k < 0 ? errno : EIO);
    p += k;
    at += k;
    n -= k;
  }
  return SK_OK;
}

// Whole pages past the page cache. What is refused, or left by a short write that ends within a page, goes through it.
static int write_pages(const sk_ckpt_part *w, const char *p, int64_t n, int64_t at, sk_err *e) {
  while (n > 0) {
    ssize_t k = pwrite(w->direct, p, (size_t)(n < CHUNK ? n : CHUNK), (off_t)at);
    if (k < 0 && errno == EINTR) continue;
    if (k < 0 && errno == EINVAL) break;
    if (k <= 0) return sk_fs_fail(e, w->path, "written", k < 0 ? errno : EIO);
    p += k;
    at += k;
    n -= k;
    if (k % PAGE) break;
  }
  return write_at(w, p, n, at, e);
}

/* pages: those of a run that lie in memory as in the file, past the page cache; else the rest of it. */
static int write_run(const sk_ckpt_part *w, bool pages, const char *p, int64_t n, int64_t at, sk_err *e) {
  const int64_t head = -at & (PAGE - 1), whole = n - head < 0 ? 0 : (n - head) / PAGE * PAGE, tail = head + whole;
  if (w->direct < 0 || ((uintptr_t)p + (uintptr_t)head) % PAGE || whole == 0) return pages ? SK_OK : write_at(w, p, n, at, e);
  if (pages) return write_pages(w, p + head, whole, at + head, e);
  if (write_at(w, p, head, at, e) == SK_OK) write_at(w, p + tail, n - tail, at + tail, e);
  return e->code;
}

int sk_ckpt_lied(const char *path, sk_err *e) {
  return sk_fail(e, SK_FAILED, "%s: does not hold what was written: the disk, the file system or the memory is at fault", path);
}

/* Bytes that are no whole words, by the same weights. */
static uint64_t sum_bytes(const unsigned char *p, size_t n, uint64_t at) {
  uint64_t sum = 0;
  for (size_t i = 0; i < n; i++) sum += ((uint64_t)p[i] << 8 * ((at + i) % WORD)) * ((at + i) / WORD * 2 + 1);
  return sum;
}

static uint64_t sum_words(const char *p, size_t words, int64_t at) {
  const sk_sum none = {0, 0};
  return sk_sum_weighted(sk_sum_join(none, sk_sum_of(p, words), (uint64_t)at / WORD));
}

uint64_t sk_ckpt_sum(const char *data, size_t n, int64_t at) {
  const unsigned char *p = (const unsigned char *)data;
  size_t head = (size_t)(-at & (WORD - 1));
  if (head > n) head = n;
  const size_t words = (n - head) / WORD, rest = head + WORD * words;
  return sum_bytes(p, head, (uint64_t)at) + sum_words(data + head, words, at + (int64_t)head) +
         sum_bytes(p + rest, n - rest, (uint64_t)at + rest);
}

/* A dataset or a block of it as the array that the file keeps together, a slab as a part of it. */
typedef struct box {
  sk_dset d;
  sk_slab s;
  int64_t at; /* bytes from the beginning of the file */
} box;

static box place_of(const sk_ckpt_file *f, const sk_h5_form *form, int slab) {
  const sk_slab *s = &f->slab[slab];
  box b = {.d = f->dset[s->dset], .s = *s};
  int64_t k = 0;
  for (int i = 0; i < 2 && b.d.block[0]; i++) { // along one of them there is one block only
    const int64_t at = s->start[i] / b.d.block[i];
    b.d.dim[i] = b.d.block[i];
    b.s.start[i] -= at * b.d.block[i];
    SK_CHECK(b.s.start[i] + s->count[i] <= b.d.block[i], "a slab leaves a block of dataset %s", b.d.name);
    k += at;
  }
  b.at = form->offset[form->first[s->dset] + k];
  return b;
}

static void check_slab(const sk_dset *d, const sk_slab *s) {
  for (int k = 0; k < d->rank; k++)
    SK_CHECK(s->start[k] >= 0 && s->count[k] >= 0 && s->count[k] <= d->dim[k] - s->start[k],
             "a slab leaves dataset %s", d->name);
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

/* A slab's elements in row-major order, which is their order in the file as well: place and bytes of each run of them. */
typedef struct map {
  box b;
  runs r;
} map;

static map map_of(const sk_ckpt_file *f, const sk_h5_form *form, int slab) {
  map m;
  check_slab(&f->dset[f->slab[slab].dset], &f->slab[slab]);
  m.b = place_of(f, form, slab);
  m.r = find_runs(&m.b.d, &m.b.s);
  return m;
}

static int64_t map_at(const map *m, int64_t k) { return run_at(&m->b.d, &m->b.s, m->b.at, &m->r, k); }

int64_t sk_ckpt_place(const sk_ckpt_file *f, const sk_h5_form *form, int slab, int64_t *together) {
  const map m = map_of(f, form, slab);
  if (together) *together = m.r.n == 1 ? m.r.bytes : 0;
  return map_at(&m, 0);
}

int sk_ckpt_part_write_run(const sk_ckpt_part *w, const void *data, int64_t n, int64_t at, bool pages, sk_err *e) {
  return write_run(w, pages, data, n, at, e);
}

int sk_ckpt_part_write(const sk_ckpt_part *w, int slab, const float *data, bool pages, sk_err *e) {
  const map m = map_of(w->file, w->form, slab);
  for (int64_t k = 0; k < m.r.n && !e->code; k++)
    write_run(w, pages, (const char *)data + k * m.r.bytes, m.r.bytes, map_at(&m, k), e);
  return e->code;
}

void sk_ckpt_part_sum(sk_ckpt_part *w, int slab, const float *data) {
  const map m = map_of(w->file, w->form, slab);
  const sk_sum *known = w->file->sum && m.r.n == 1 ? w->file->sum[slab] : NULL;
  sk_sum all = {0, 0};
  uint64_t in_file = 0;
  for (int64_t k = 0; k < m.r.n; k++) {
    const char *p = (const char *)data + k * m.r.bytes;
    const int64_t at = map_at(&m, k);
    const sk_sum none = {0, 0}, run = known ? *known : sk_sum_of(p, (size_t)m.r.bytes / WORD);
    all = sk_sum_join(all, run, (uint64_t)(k * m.r.bytes / WORD));
    in_file += at % WORD ? sk_ckpt_sum(p, (size_t)m.r.bytes, at)
                         : sk_sum_weighted(sk_sum_join(none, run, (uint64_t)at / WORD));
  }
  w->slab_sum[slab] = sk_sum_weighted(all);
  atomic_fetch_add(&w->sum, in_file);
}

/* The writer of the structure sees to the size as well, so that a full disk shows at once. */
static int write_form(sk_ckpt_part *w, sk_err *e) {
  const sk_h5_form *form = w->form;
  struct stat st;
  if (sk_fs_reserve(w->path, form->size, e) != SK_OK) return e->code;
  if (fstat(w->fd, &st) != 0 || (st.st_size != form->size && ftruncate(w->fd, (off_t)form->size) != 0))
    return sk_fs_fail(e, w->path, "written", errno);
  uint64_t sum = 0;
  for (int i = 0; i < form->n_piece && !e->code; i++) {
    const sk_h5_piece *p = &form->piece[i];
    sum += sk_ckpt_sum(p->data, p->n, p->at);
    write_at(w, p->data, (int64_t)p->n, p->at, e);
  }
  atomic_fetch_add(&w->sum, sum);
  return e->code;
}

int sk_ckpt_part_open(sk_ckpt_part *w, bool structure, sk_err *e) {
  w->fd = open(w->path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (w->fd < 0) return sk_fs_fail(e, w->path, "created", errno);
  w->direct = open(w->path, O_WRONLY | O_DIRECT | O_CLOEXEC);
  return structure ? write_form(w, e) : SK_OK;
}

int sk_ckpt_part_close(sk_ckpt_part *w, bool sync, sk_err *e) {
  if (w->fd >= 0 && sync && fsync(w->fd) != 0) sk_fs_fail(e, w->path, "written to disk", errno);
  if (w->direct >= 0 && close(w->direct) != 0) sk_fs_fail(e, w->path, "written to disk", errno);
  if (w->fd >= 0 && close(w->fd) != 0) sk_fs_fail(e, w->path, "written to disk", errno);
  w->fd = w->direct = -1;
  return e->code;
}

/* ---- reading back ---- */

static int reopen(int fd, const char *path, bool direct, sk_err *e) {
  if (fd >= 0) close(fd);
  fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | (direct ? O_DIRECT : 0)); // a pipe in its place must not block
  if (fd < 0 && direct) return reopen(-1, path, false, e);
  if (fd < 0) sk_fs_fail(e, path, "opened", errno);
  return fd;
}

uint64_t sk_ckpt_read_sum(const char *path, bool direct, double share, const atomic_bool *behind, sk_err *e) {
  struct stat st;
  uint64_t sum = 0;
  int64_t at = 0;
  const double wall = sk_now(), cpu = sk_ckpt_cpu_time();
  int fd = reopen(-1, path, direct, e);
  if (fd >= 0 && (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode))) sk_fail(e, SK_FAILED, "%s: not a regular file", path);
  char *buf = aligned_alloc(HUGE_PAGE, READ);
  SK_CHECK(buf, "out of memory for %d bytes", READ);
  madvise(buf, READ, MADV_HUGEPAGE); // a hint: what goes past the page cache is handed over page by page
  while (!e->code) {
    ssize_t n = pread(fd, buf, READ, (off_t)at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EINVAL && direct) {
      if ((fd = reopen(fd, path, direct = false, e)) < 0) break;
      continue;
    }
    if (n < 0) sk_fs_fail(e, path, "read", errno);
    if (n <= 0) break;
    sum += sk_ckpt_sum(buf, (size_t)n, at);
    at += n;
    if (n % PAGE && direct) fd = reopen(fd, path, direct = false, e); // O_DIRECT begins at a page
    if (behind) sk_ckpt_rest(share, sk_ckpt_cpu_time() - cpu, sk_now() - wall, behind);
  }
  free(buf);
  if (fd >= 0) close(fd);
  return sum;
}
