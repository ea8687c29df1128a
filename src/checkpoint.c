#include "src/checkpoint.h"
#include <string.h>

/* One file's datasets (all parameters, in one group per kind) and this rank's slabs. */
typedef struct file {
  int n_dset, n_slab;
  sk_dset *dset;
  sk_slab *slab;
} file;

/* group: "params", "m" or "v"; values: host copy of my slice. */
static void add_group(file *f, const sk_engine *g, const char *group, float *values) {
  const sk_registry *r = g->ctx.reg;
  int64_t lo = sk_optim_lo(&g->opt), hi = lo + sk_optim_count(&g->opt), row0, rows;
  f->dset = sk_realloc(f->dset, (size_t)(f->n_dset + r->n) * sizeof *f->dset);
  f->slab = sk_realloc(f->slab, (size_t)(f->n_slab + r->n) * sizeof *f->slab);
  for (int i = 0; i < r->n; i++) {
    const sk_param *p = &r->p[i];
    sk_dset *d = &f->dset[f->n_dset];
    *d = (sk_dset){.name = sk_strf("%s/%s", group, p->name), .rank = p->rank};
    memcpy(d->dim, p->dim, (size_t)p->rank * sizeof *d->dim);
    if (sk_param_overlap(p, lo, hi, &row0, &rows)) {
      sk_slab *s = &f->slab[f->n_slab++];
      *s = (sk_slab){.dset = f->n_dset, .data = values + (p->offset + row0 * p->row_len - lo)};
      memcpy(s->count, p->dim, (size_t)p->rank * sizeof *s->count);
      s->start[0] = row0;
      s->count[0] = rows;
    }
    f->n_dset++;
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

int sk_checkpoint_save(MPI_Comm comm, sk_engine *g, const char *run_dir, const sk_ckpt_meta *meta,
                       int64_t *bytes, sk_err *e) {
  const sk_ops *op = g->ctx.op;
  size_t n = (size_t)sk_optim_count(&g->opt), size = n * sizeof(float);
  float *host = sk_malloc(3 * size), *src[3] = {g->opt.master, g->opt.m, g->opt.v};
  file model = {0}, optim = {0};
  for (int k = 0; k < 3; k++) op->to_host(g->ctx.st, host + (size_t)k * n, src[k], size);
  add_group(&model, g, "params", host);
  add_group(&optim, g, "m", host + n);
  add_group(&optim, g, "v", host + 2 * n);
  const sk_ckpt_file files[2] = {named("model.h5", &model), named("optimizer.h5", &optim)};
  sk_ckpt_save(comm, run_dir, meta, 2, files, bytes, e);
  free_file(&model);
  free_file(&optim);
  sk_free(host);
  return e->code;
}

int sk_checkpoint_load(MPI_Comm comm, sk_engine *g, const char *path, bool weights_only, sk_err *e) {
  const sk_ops *op = g->ctx.op;
  size_t n = (size_t)sk_optim_count(&g->opt), size = n * sizeof(float);
  float *host = sk_calloc(weights_only ? n : 3 * n, sizeof *host);
  file model = {0}, optim = {0};
  add_group(&model, g, "params", host);
  if (!weights_only) {
    add_group(&optim, g, "m", host + n);
    add_group(&optim, g, "v", host + 2 * n);
  }
  sk_ckpt_file f = named("model.h5", &model);
  sk_ckpt_read(comm, path, &f, e);
  f = named("optimizer.h5", &optim);
  if (!e->code && !weights_only) sk_ckpt_read(comm, path, &f, e);
  if (!e->code) {
    sk_engine_set_weights(g, sk_optim_lo(&g->opt), (int64_t)n, host);
    if (!weights_only) {
      op->from_host(g->ctx.st, g->opt.m, host + n, size);
      op->from_host(g->ctx.st, g->opt.v, host + 2 * n, size);
    }
    sk_optim_gather(&g->opt, &g->ctx);
  }
  free_file(&model);
  free_file(&optim);
  sk_free(host);
  return e->code;
}
