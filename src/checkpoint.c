#include "src/checkpoint.h"
#include <string.h>

/* One file's datasets (all parameters of the whole model, in one group per kind) and this rank's slabs. */
typedef struct file {
  int n_dset, n_slab;
  sk_dset *dset;
  sk_slab *slab;
} file;

static void add_dsets(file *f, const sk_registry *all, const char *group) {
  f->dset = sk_realloc(f->dset, (size_t)(f->n_dset + all->n) * sizeof *f->dset);
  for (int i = 0; i < all->n; i++) {
    const sk_param *p = &all->p[i];
    sk_dset *d = &f->dset[f->n_dset++];
    *d = (sk_dset){.name = sk_strf("%s/%s", group, p->name), .rank = p->rank};
    memcpy(d->dim, p->dim, (size_t)p->rank * sizeof *d->dim);
  }
}

/* The part of a run of rows that lies in my slice [lo, hi), whose values begin at `values`. */
static void add_slab(file *f, const sk_registry *r, const sk_run_of_rows *run, int first_dset, int64_t lo,
                     int64_t hi, float *values) {
  const sk_param *p = &r->p[run->param];
  int64_t row0, rows;
  if (!sk_run_overlap(r, run, lo, hi, &row0, &rows)) return;
  sk_slab *s = &f->slab[f->n_slab++];
  *s = (sk_slab){.dset = first_dset + p->index, .data = values + (p->offset + row0 * p->row_len - lo)};
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
  add_dsets(f, &g->model.all, group);
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

static sk_ckpt_file named(const char *name, const file *f) {
  return (sk_ckpt_file){.name = name, .n_dset = f->n_dset, .n_slab = f->n_slab, .dset = f->dset,
                        .slab = f->slab};
}

/* My slices of the weights, between the host and the device. */
static void move_weights(sk_engine *g, float *host, bool to_host) {
  for (int k = 0; k < g->ctx.reg->n_buckets; k++) {
    int64_t lo, hi, state = sk_optim_slice(&g->opt, k, &lo, &hi);
    if (to_host)
      g->ctx.op->to_host(g->ctx.st, host + state, sk_optim_master(&g->opt, &g->ctx, k),
                         (size_t)(hi - lo) * sizeof *host);
    else
      sk_engine_set_weights(g, lo, hi - lo, host + state);
  }
}

int sk_checkpoint_save(MPI_Comm comm, sk_engine *g, const char *run_dir, const sk_ckpt_meta *meta,
                       int64_t *bytes, sk_err *e) {
  const sk_ops *op = g->ctx.op;
  size_t n = (size_t)sk_optim_count(&g->opt, g->ctx.reg), size = n * sizeof(float);
  float *host = sk_malloc(3 * size);
  file model = {0}, optim = {0};
  move_weights(g, host, true);
  op->to_host(g->ctx.st, host + n, g->opt.m, size);
  op->to_host(g->ctx.st, host + 2 * n, g->opt.v, size);
  add_group(&model, g, "params", host, false);
  add_group(&optim, g, "m", host + n, false);
  add_group(&optim, g, "v", host + 2 * n, false);
  const sk_ckpt_file files[2] = {named("model.h5", &model), named("optimizer.h5", &optim)};
  sk_ckpt_save(comm, run_dir, meta, 2, files, bytes, e);
  free_file(&model);
  free_file(&optim);
  sk_free(host);
  return e->code;
}

int sk_checkpoint_load(MPI_Comm comm, sk_engine *g, const char *path, bool weights_only, sk_err *e) {
  const sk_ops *op = g->ctx.op;
  size_t n = (size_t)sk_optim_count(&g->opt, g->ctx.reg), size = n * sizeof(float);
  float *host = sk_calloc(weights_only ? n : 3 * n, sizeof *host);
  file model = {0}, optim = {0};
  add_group(&model, g, "params", host, true);
  if (!weights_only) {
    add_group(&optim, g, "m", host + n, true);
    add_group(&optim, g, "v", host + 2 * n, true);
  }
  sk_ckpt_file f = named("model.h5", &model);
  sk_ckpt_read(comm, path, &f, e);
  f = named("optimizer.h5", &optim);
  if (!e->code && !weights_only) sk_ckpt_read(comm, path, &f, e);
  if (!e->code) {
    move_weights(g, host, false);
    if (!weights_only) {
      op->from_host(g->ctx.st, g->opt.m, host + n, size);
      op->from_host(g->ctx.st, g->opt.v, host + 2 * n, size);
    }
    sk_optim_gather(&g->opt, &g->ctx);
    sk_optim_need(&g->opt, &g->ctx, -1);
  }
  free_file(&model);
  free_file(&optim);
  sk_free(host);
  return e->code;
}
