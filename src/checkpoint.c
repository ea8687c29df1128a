#include "src/checkpoint.h"
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One file's datasets (parameters of the whole model, in one group per kind) and this rank's slabs. */
typedef struct file {
  char name[64];
  int first, end; /* parameters of the whole model */
  int n_dset, n_slab;
  sk_dset *dset;
  sk_slab *slab;
} file;

/* tp ranks that have the same number of rows or columns of a matrix each write them in one piece. */
static void cut(sk_dset *d, const sk_param *p, int tp) {
  enum { LEAST = 64 << 10 }; // bytes of rows for which it is worth it: they lie together in any case
  const int64_t most = (INT64_C(4) << 30) - 1, bytes = (int64_t)sizeof(float) * p->dim[0] * p->dim[1] / tp;
  const bool columns = p->col_units && p->col_units % tp == 0, rows = p->row_units && p->row_units % tp == 0 && bytes >= LEAST;
  if (tp == 1 || p->rank != 2 || bytes > most || !(columns || rows)) return;
  d->block[0] = rows ? p->dim[0] / tp : p->dim[0];
  d->block[1] = columns ? p->dim[1] / tp : p->dim[1];
}

static void add_dsets(file *f, const sk_registry *all, int tp, const char *group) {
  f->dset = sk_realloc(f->dset, (size_t)(f->n_dset + f->end - f->first) * sizeof *f->dset);
  for (int i = f->first; i < f->end; i++) {
    const sk_param *p = &all->p[i];
    sk_dset *d = &f->dset[f->n_dset++];
    *d = (sk_dset){.name = sk_strf("%s/%s", group, p->name), .rank = p->rank};
    memcpy(d->dim, p->dim, (size_t)p->rank * sizeof *d->dim);
    cut(d, p, tp);
  }
}

/* The part of a run of rows that lies in my slice [lo, hi), whose values begin at `values`. */
static void add_slab(file *f, const sk_registry *r, const sk_run_of_rows *run, int first_dset, int64_t lo,
                     int64_t hi, float *values) {
  const sk_param *p = &r->p[run->param];
  int64_t row0, rows;
  if (p->index < f->first || p->index >= f->end || !sk_run_overlap(r, run, lo, hi, &row0, &rows)) return;
  sk_slab *s = &f->slab[f->n_slab++];
  *s = (sk_slab){.dset = first_dset + p->index - f->first, .data = values + (p->offset + row0 * p->row_len - lo)};
  memcpy(s->count, p->dim, (size_t)p->rank * sizeof *s->count);
  s->start[0] = run->global_row + row0 - run->row;
  s->count[0] = rows;
  if (p->row_len == p->global_len) return;
  s->start[1] = p->col;
  s->count[1] = p->row_len;
}

/* group: "params", "m" or "v"; values: host copy of my slices, in the order of the optimizer's state. all: also
 * the rows that another rank owns (for reading). */
static void add_group(file *f, const sk_engine *g, const char *group, float *values, bool all) {
  const sk_registry *r = g->ctx.reg;
  int first = f->n_dset;
  add_dsets(f, &g->model.all, r->tp, group);
  f->slab = sk_realloc(f->slab, (size_t)(f->n_slab + r->n_runs) * sizeof *f->slab);
  for (int k = 0, run = 0; k < r->n_buckets; k++) {
    const sk_bucket *b = &r->bucket[k];
    int64_t lo, hi, state = sk_optim_slice(&g->opt, k, &lo, &hi);
    for (; run < r->n_runs && r->run[run].param < b->param0 + b->n_params; run++) {
      const sk_run_of_rows *rows = &r->run[run];
      bool mine = rows->first == r->tp_rank && !r->p[rows->param].copy;
      if (all || mine) add_slab(f, r, rows, first, lo, hi, values + state);
    }
  }
}

static void free_file(file *f) {
  for (int i = 0; i < f->n_dset; i++) sk_free((char *)(uintptr_t)f->dset[i].name);
  sk_free(f->dset);
  sk_free(f->slab);
}

static sk_ckpt_file parts(const file *f) {
  return (sk_ckpt_file){.name = f->name, .n_dset = f->n_dset, .n_slab = f->n_slab, .dset = f->dset,
                        .slab = f->slab};
}

/* ---- saving ---- */

/* Values that lie together on the device and in the host's memory. */
typedef struct piece {
  int group, bucket; /* 0: weights, of that bucket; 1: m; 2: v */
  int64_t at, n;     /* elements */
  float *to;
} piece;

struct sk_saver {
  MPI_Comm comm;
  sk_engine *g; /* not owned */
  char *host;   /* snapshot of my slices; the slabs' data point into it */
  size_t n;     /* elements of weights, of m, of v */
  int n_piece;
  piece *piece;
  sk_copy *copy; /* [n_piece] */
  sk_sum *sum;   /* [n_piece], where the device has it */
  int n_file;
  file *file;
  sk_ckpt_file *part;
  const sk_sum ***slab_sum; /* [n_file][its n_slab] of slabs that are a piece, else NULL */
  sk_ckpt_form *form;
};

static int64_t elements(const sk_param *p) {
  int64_t n = 1;
  for (int i = 0; i < p->rank; i++) n *= p->dim[i];
  return n;
}

/* Parameters in the model's order, as even in size as whole ones can be: files 0 .. k-1 with weights, then as many
 * with the optimizer's state of the same parameters. */
static void cut_files(sk_saver *s, int k) {
  const sk_registry *all = &s->g->model.all;
  int64_t total = 0, done = 0;
  for (int i = 0; i < all->n; i++) total += elements(&all->p[i]);
  s->n_file = 2 * k;
  s->file = sk_calloc((size_t)s->n_file, sizeof *s->file);
  for (int f = 0, i = 0; f < k; f++) {
    file *w = &s->file[f], *o = &s->file[k + f];
    w->first = i;
    do done += elements(&all->p[i++]); // at least one for each, and one left for each of the others
    while (i < all->n - (k - 1 - f) && (f == k - 1 || done + elements(&all->p[i]) / 2 <= total / k * (f + 1)));
    o->first = w->first;
    o->end = w->end = i;
    if (k == 1) {
      snprintf(w->name, sizeof w->name, "model.h5");
      snprintf(o->name, sizeof o->name, "optimizer.h5");
    } else {
      snprintf(w->name, sizeof w->name, "model-%05d-of-%05d.h5", f + 1, k);
      snprintf(o->name, sizeof o->name, "optimizer-%05d-of-%05d.h5", f + 1, k);
    }
  }
}

// ---- where a snapshot lies in the host's memory ----

enum {
  PAGE = 4096,
  LARGE = 64 << 10, // bytes from which a slab lies as in its file, page by page: sk_ckpt_form_place
};

typedef struct placed {
  int file, slab;
  int64_t at, n; // in the order of the optimizer's state
  int64_t place; // byte of the file
  bool large;
} placed;

// Large ones in the order of their files, so that what lies together there does here; then the others in that of the state.
static int by_place(const void *a, const void *b) {
  const placed *x = a, *y = b;
  if (x->large != y->large) return x->large ? -1 : 1;
  if (!x->large) return (x->at > y->at) - (x->at < y->at);
  if (x->file != y->file) return x->file - y->file;
  return (x->place > y->place) - (x->place < y->place);
}

// All slabs with elements, whose data are at their place in s->host in the order of the state as yet.
static placed *list_slabs(const sk_saver *s, int *n) {
  int most = 0;
  *n = 0;
  for (int k = 0; k < s->n_file; k++) most += s->file[k].n_slab;
  placed *list = sk_calloc((size_t)most, sizeof *list);
  for (int k = 0; k < s->n_file; k++)
    for (int i = 0; i < s->file[k].n_slab; i++) {
      const sk_slab *x = &s->file[k].slab[i];
      const int64_t count = sk_slab_count(x, s->file[k].dset[x->dset].rank);
      if (count == 0) continue;
      list[(*n)++] = (placed){k, i, x->data - (const float *)(void *)s->host, count,
                              sk_ckpt_form_place(s->form, k, &s->part[k], i), count * (int64_t)sizeof(float) >= LARGE};
    }
  if (*n > 0) qsort(list, (size_t)*n, sizeof *list, by_place);
  return list;
}

// From the order of the state to where it is on the device.
static void find_piece(const sk_saver *s, int64_t at, piece *p) {
  const int64_t n = (int64_t)s->n;
  *p = (piece){.group = (int)(at / n), .at = at % n};
  if (p->group > 0) return;
  for (int k = 0; k < s->g->ctx.reg->n_buckets; k++) {
    int64_t lo, hi, state = sk_optim_slice(&s->g->opt, k, &lo, &hi);
    if (at < state || at >= state + hi - lo) continue;
    p->bucket = k;
    p->at = at - state;
    return;
  }
}

// Large slabs are copied each by themselves, of the others those that lie together on the device.
static void place_slabs(sk_saver *s) {
  int n;
  placed *list = list_slabs(s, &n);
  char *to = s->host;
  s->piece = sk_calloc((size_t)n, sizeof *s->piece);
  s->sum = sk_calloc((size_t)n, sizeof *s->sum);
  for (int i = 0; i < n; i++) {
    const placed *x = &list[i];
    piece p, *last = i > 0 && !list[i - 1].large ? &s->piece[s->n_piece - 1] : NULL;
    find_piece(s, x->at, &p);
    if (x->large) to += (x->place - (int64_t)(uintptr_t)to) & (PAGE - 1);
    p.to = s->file[x->file].slab[x->slab].data = (float *)(void *)to;
    p.n = x->n;
    to += x->n * (int64_t)sizeof(float);
    if (x->large) s->slab_sum[x->file][x->slab] = &s->sum[s->n_piece];
    if (last && last->group == p.group && last->bucket == p.bucket && last->at + last->n == p.at) last->n += p.n;
    else s->piece[s->n_piece++] = p;
  }
  s->copy = sk_calloc((size_t)s->n_piece, sizeof *s->copy);
  sk_free(list);
}

int sk_saver_open(MPI_Comm comm, sk_engine *g, const char *run_dir, const char *run_id, int64_t files, sk_saver **out,
                  sk_err *e) {
  const sk_ops *op = g->ctx.op;
  int k = (int)(files < g->model.all.n ? files : g->model.all.n);
  sk_saver *s = sk_calloc(1, sizeof *s);
  *s = (sk_saver){.comm = comm, .g = g, .n = (size_t)sk_optim_count(&g->opt, g->ctx.reg)};
  *out = NULL;
  size_t bytes = 3 * s->n * sizeof(float);
  bytes += (bytes / LARGE + 1) * PAGE;
  s->host = op->host_alloc(g->ctx.dev, bytes);
  if (!s->host)
    sk_fail(e, SK_FAILED, "out of host memory on rank %d, %s: %s for a copy of weights and optimizer state; use more "
            "ranks or nodes, or checkpoint.async: false, which takes it only while it saves", sk_base_rank(), sk_host(), sk_bytes((double)bytes));
  if (sk_agree(comm, e) == SK_OK) {
    float *state = (float *)(void *)s->host;
    memset(s->host, 0, bytes); // now, not in the first save
    cut_files(s, k);
    s->part = sk_calloc((size_t)s->n_file, sizeof *s->part);
    s->slab_sum = sk_calloc((size_t)s->n_file, sizeof *s->slab_sum);
    for (int f = 0; f < s->n_file; f++) {
      if (f < k) {
        add_group(&s->file[f], g, "params", state, false);
      } else {
        add_group(&s->file[f], g, "m", state + s->n, false);
        add_group(&s->file[f], g, "v", state + 2 * s->n, false);
      }
      s->part[f] = parts(&s->file[f]);
      s->slab_sum[f] = sk_calloc((size_t)s->part[f].n_slab, sizeof *s->slab_sum[f]);
    }
    if (sk_ckpt_form_make(comm, run_dir, run_id, s->n_file, s->part, &s->form, e) == SK_OK) {
      place_slabs(s);
      sk_ckpt_form_beside(comm, s->form, strcmp(op->name, "cpu") == 0 ? omp_get_max_threads() : 1); // a GPU needs one
    }
  }
  if (e->code) sk_saver_close(s);
  else *out = s;
  return e->code;
}

void sk_saver_close(sk_saver *s) {
  if (!s) return;
  sk_ckpt_form_free(s->form);
  for (int f = 0; f < s->n_file; f++) {
    free_file(&s->file[f]);
    if (s->slab_sum) sk_free(s->slab_sum[f]);
  }
  sk_free(s->slab_sum);
  sk_free(s->part);
  sk_free(s->file);
  sk_free(s->piece);
  sk_free(s->copy);
  sk_free(s->sum);
  s->g->ctx.op->host_free(s->g->ctx.dev, s->host);
  sk_free(s);
}

size_t sk_saver_bytes(const sk_saver *s) { return 3 * s->n * sizeof(float); }

int sk_saver_files(const sk_saver *s, const sk_ckpt_form **form) {
  *form = s->form;
  return s->n_file;
}

sk_ckpt_job *sk_saver_begin(sk_saver *s, const char *run_dir, const sk_ckpt_meta *meta, bool behind, int64_t keep,
                            int64_t keep_every) {
  sk_engine *g = s->g;
  const sk_ops *op = g->ctx.op;
  for (int i = 0; i < s->n_piece; i++) {
    const piece *p = &s->piece[i];
    const float *from = p->group == 0 ? sk_optim_master(&g->opt, &g->ctx, p->bucket) : p->group == 1 ? g->opt.m : g->opt.v;
    s->copy[i] = (sk_copy){p->to, from + p->at, (size_t)p->n * sizeof(float)};
  }
  const bool summed = op->copies_host(g->ctx.st, s->n_piece, s->copy, s->sum);
  op->sync(g->ctx.st);
  for (int f = 0; f < s->n_file; f++) s->part[f].sum = summed ? s->slab_sum[f] : NULL;
  return sk_ckpt_begin(s->comm, run_dir, meta, s->form, s->part, behind, keep, keep_every);
}

int sk_checkpoint_save(MPI_Comm comm, sk_engine *g, const char *run_dir, const sk_ckpt_meta *meta,
                       int64_t *bytes, sk_err *e) {
  sk_saver *s;
  sk_ckpt_result r = {0};
  if (sk_saver_open(comm, g, run_dir, meta->run_id, 1, &s, e) == SK_OK)
    sk_ckpt_end(sk_saver_begin(s, run_dir, meta, false, 0, 0), &r, e);
  sk_saver_close(s);
  if (bytes) *bytes = e->code ? 0 : r.bytes;
  return e->code;
}

/* ---- loading ---- */

int sk_checkpoint_load(MPI_Comm comm, sk_engine *g, const char *path, bool weights_only, sk_err *e) {
  const sk_ops *op = g->ctx.op;
  size_t n = (size_t)sk_optim_count(&g->opt, g->ctx.reg), size = n * sizeof(float);
  float *host = sk_calloc(weights_only ? n : 3 * n, sizeof *host);
  file all = {.end = g->model.all.n};
  sk_optim_need(&g->opt, &g->ctx, -1); // the latest step's weights may still be on their way
  add_group(&all, g, "params", host, true);
  if (!weights_only) {
    add_group(&all, g, "m", host + n, true);
    add_group(&all, g, "v", host + 2 * n, true);
  }
  const sk_ckpt_file f = parts(&all);
  if (sk_ckpt_read(comm, path, &f, e) == SK_OK) {
    for (int k = 0; k < g->ctx.reg->n_buckets; k++) {
      int64_t lo, hi, state = sk_optim_slice(&g->opt, k, &lo, &hi);
      sk_engine_set_weights(g, lo, hi - lo, host + state);
    }
    if (!weights_only) {
      op->from_host(g->ctx.st, g->opt.m, host + n, size);
      op->from_host(g->ctx.st, g->opt.v, host + 2 * n, size);
    }
    sk_optim_gather(&g->opt, &g->ctx);
    sk_optim_need(&g->opt, &g->ctx, -1);
  }
  free_file(&all);
  sk_free(host);
  return e->code;
}
