#include "src/checkpoint.h"
#include <omp.h>
#include <stdio.h>
#include <string.h>

/* One file's datasets (parameters of the whole model, in one group per kind) and this rank's slabs. */
typedef struct file {
  char name[64];
  int first, end; /* parameters of the whole model */
  int n_dset, n_slab;
  sk_dset *dset;
  sk_slab *slab;
} file;

/* tp: ranks that have the same number of columns each write them in one piece. */
static void add_dsets(file *f, const sk_registry *all, int tp, const char *group) {
  f->dset = sk_realloc(f->dset, (size_t)(f->n_dset + f->end - f->first) * sizeof *f->dset);
  for (int i = f->first; i < f->end; i++) {
    const sk_param *p = &all->p[i];
    sk_dset *d = &f->dset[f->n_dset++];
    *d = (sk_dset){.name = sk_strf("%s/%s", group, p->name), .rank = p->rank};
    memcpy(d->dim, p->dim, (size_t)p->rank * sizeof *d->dim);
    if (tp > 1 && p->col_units && p->col_units % tp == 0) d->block = p->dim[1] / tp;
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

struct sk_saver {
  MPI_Comm comm;
  sk_engine *g; /* not owned */
  float *host;  /* snapshot of my slices: weights, m, v */
  size_t n;     /* elements of each */
  int n_file;
  file *file;
  sk_ckpt_file *part;
  sk_ckpt_form *form;
  int threads, aside; /* that compute, and while others work on a save behind them */
  const sk_ckpt_job *job; /* theirs */
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

int sk_saver_open(MPI_Comm comm, sk_engine *g, const char *run_dir, const char *run_id, int64_t files, sk_saver **out,
                  sk_err *e) {
  const sk_ops *op = g->ctx.op;
  int k = (int)(files < g->model.all.n ? files : g->model.all.n);
  sk_saver *s = sk_calloc(1, sizeof *s);
  *s = (sk_saver){.comm = comm, .g = g, .n = (size_t)sk_optim_count(&g->opt, g->ctx.reg)};
  *out = NULL;
  size_t bytes = 3 * s->n * sizeof(float);
  s->host = op->host_alloc(g->ctx.dev, bytes);
  if (!s->host)
    sk_fail(e, SK_FAILED, "out of host memory on rank %d, %s: %s for a copy of weights and optimizer state; use more "
            "ranks or nodes, or checkpoint.async: false, which takes it only while it saves", sk_base_rank(), sk_host(), sk_bytes((double)bytes));
  if (sk_agree(comm, e) == SK_OK) {
    memset(s->host, 0, bytes); // now, not in the first save
    cut_files(s, k);
    s->part = sk_calloc((size_t)s->n_file, sizeof *s->part);
    for (int f = 0; f < s->n_file; f++) {
      if (f < k) {
        add_group(&s->file[f], g, "params", s->host, false);
      } else {
        add_group(&s->file[f], g, "m", s->host + s->n, false);
        add_group(&s->file[f], g, "v", s->host + 2 * s->n, false);
      }
      s->part[f] = parts(&s->file[f]);
    }
    s->threads = strcmp(op->name, "cpu") == 0 ? omp_get_max_threads() : 1; // a GPU is kept busy by one
    if (sk_ckpt_form_make(comm, run_dir, run_id, s->n_file, s->part, &s->form, e) == SK_OK)
      s->aside = sk_ckpt_form_beside(comm, s->form, s->threads, op->threads(g->ctx.dev, s->threads));
  }
  if (e->code) sk_saver_close(s);
  else *out = s;
  return e->code;
}

void sk_saver_close(sk_saver *s) {
  if (!s) return;
  sk_ckpt_form_free(s->form);
  for (int f = 0; f < s->n_file; f++) free_file(&s->file[f]);
  sk_free(s->part);
  sk_free(s->file);
  s->g->ctx.op->host_free(s->g->ctx.dev, s->host);
  sk_free(s);
}

size_t sk_saver_bytes(const sk_saver *s) { return 3 * s->n * sizeof(float); }

int sk_saver_threads(const sk_saver *s, int *own) {
  *own = s->threads;
  return s->aside;
}

int sk_saver_files(const sk_saver *s, const sk_ckpt_form **form) {
  *form = s->form;
  return s->n_file;
}

static void come_back(sk_saver *s) {
  sk_ctx *c = &s->g->ctx;
  if (!c->between) return;
  c->between = NULL;
  c->op->threads(c->dev, s->threads);
}

/* Between two layers: a step may be much longer than what those that write have to do in it. */
static void look(void *arg) {
  sk_saver *s = arg;
  if (sk_ckpt_idle(s->job)) come_back(s);
}

static void step_aside(sk_saver *s, const sk_ckpt_job *job) {
  sk_ctx *c = &s->g->ctx;
  if (s->aside == s->threads) return;
  s->job = job;
  c->between = look;
  c->between_arg = s;
  c->op->threads(c->dev, s->aside);
}

sk_ckpt_job *sk_saver_begin(sk_saver *s, const char *run_dir, const sk_ckpt_meta *meta, bool behind, int64_t keep,
                            int64_t keep_every) {
  sk_engine *g = s->g;
  const sk_ops *op = g->ctx.op;
  for (int k = 0; k < g->ctx.reg->n_buckets; k++) {
    int64_t lo, hi, state = sk_optim_slice(&g->opt, k, &lo, &hi);
    op->copy_host(g->ctx.st, s->host + state, sk_optim_master(&g->opt, &g->ctx, k), (size_t)(hi - lo) * sizeof(float));
  }
  op->copy_host(g->ctx.st, s->host + s->n, g->opt.m, s->n * sizeof(float));
  op->copy_host(g->ctx.st, s->host + 2 * s->n, g->opt.v, s->n * sizeof(float));
  op->sync(g->ctx.st);
  sk_ckpt_job *job = sk_ckpt_begin(s->comm, run_dir, meta, s->form, s->part, behind, keep, keep_every);
  if (behind) step_aside(s, job);
  return job;
}

bool sk_saver_go_on(sk_saver *s, sk_ckpt_job *job) {
  const bool over = sk_ckpt_go_on(job);
  if (over) come_back(s);
  else step_aside(s, job);
  return over;
}

int sk_saver_end(sk_saver *s, sk_ckpt_job *job, sk_ckpt_result *r, sk_err *e) {
  sk_ckpt_end(job, r, e);
  come_back(s);
  return e->code;
}

int sk_checkpoint_save(MPI_Comm comm, sk_engine *g, const char *run_dir, const sk_ckpt_meta *meta,
                       int64_t *bytes, sk_err *e) {
  sk_saver *s;
  sk_ckpt_result r = {0};
  if (sk_saver_open(comm, g, run_dir, meta->run_id, 1, &s, e) == SK_OK)
    sk_saver_end(s, sk_saver_begin(s, run_dir, meta, false, 0, 0), &r, e);
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
