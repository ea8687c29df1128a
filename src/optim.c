#include "src/optim.h"
#include <math.h>

/* ---- slices ---- */

static int64_t *cuts(const sk_optim *o, int64_t *array, int bucket) { return array + bucket * (o->parts + 1); }

void sk_optim_create(sk_optim *o, const sk_registry *r, int n_all, int parts, int part) {
  size_t cells = (size_t)r->n_buckets * ((size_t)parts + 1);
  *o = (sk_optim){.parts = parts, .part = part};
  o->cut = sk_calloc(cells, sizeof *o->cut);
  o->block = sk_calloc(cells, sizeof *o->block);
  o->state0 = sk_calloc((size_t)r->n_buckets + 1, sizeof *o->state0);
  for (int k = 0; k < r->n_buckets; k++) {
    const sk_bucket *b = &r->bucket[k];
    int64_t *cut = cuts(o, o->cut, k), *block = cuts(o, o->block, k), n;
    for (int i = 0; i <= parts; i++) {
      cut[i] = sk_zero_start(r, b, parts, i);
      block[i] = i < parts ? sk_zero_blocks(r, b, parts, i, &n) : b->block0 + b->n_blocks;
      if (i && cut[i] - cut[i - 1] > o->longest) o->longest = cut[i] - cut[i - 1];
    }
    o->state0[k + 1] = o->state0[k] + cut[part + 1] - cut[part];
    if (b->shared_count > o->shared) o->shared = b->shared_count;
  }
  o->norms = sk_calloc((size_t)r->n_blocks, sizeof *o->norms);
  o->block_off = sk_calloc((size_t)r->n_blocks + 1, sizeof *o->block_off);
  o->sums = sk_calloc((size_t)n_all * (size_t)r->tp, sizeof *o->sums);
  o->gather = sk_calloc((size_t)r->n_buckets + 1, sizeof *o->gather); /* the last one has no tickets */
  for (int k = 0; k < SK_REDUCES + r->n_buckets; k++) {
    sk_exchange *x = k < SK_REDUCES ? &o->reduce[k] : &o->gather[k - SK_REDUCES];
    *x = (sk_exchange){.bucket = -1};
    x->ticket = sk_calloc(2 * (size_t)parts, sizeof *x->ticket);
  }
}

int64_t sk_optim_count(const sk_optim *o, const sk_registry *r) { return o->state0[r->n_buckets]; }

int64_t sk_optim_slice(const sk_optim *o, int bucket, int64_t *lo, int64_t *hi) {
  *lo = cuts(o, o->cut, bucket)[o->part];
  *hi = cuts(o, o->cut, bucket)[o->part + 1];
  return o->state0[bucket];
}

float *sk_optim_master(const sk_optim *o, const sk_ctx *c, int bucket) {
  int64_t lo, hi, at = sk_optim_slice(o, bucket, &lo, &hi);
  return o->master ? o->master + at : (float *)(void *)c->weights + lo;
}

void sk_optim_set_master(sk_optim *o, sk_ctx *c, int64_t first, int64_t n, const float *host) {
  for (int k = 0; o->master && k < c->reg->n_buckets; k++) {
    int64_t lo, hi, state = sk_optim_slice(o, k, &lo, &hi);
    int64_t from = first > lo ? first : lo, to = first + n < hi ? first + n : hi;
    if (from < to)
      c->op->from_host(c->st, o->master + state + (from - lo), host + (from - first),
                       (size_t)(to - from) * sizeof *host);
  }
}

void sk_optim_bind(sk_optim *o, sk_ctx *c, const sk_comm_ops *comm, sk_group *zero, sk_arena *a,
                   sk_arena *exchange) {
  int64_t n = sk_optim_count(o, c->reg);
  o->comm = comm;
  o->zero = zero;
  o->m = sk_take_f32(a, n);
  o->v = sk_take_f32(a, n);
  o->master = c->act == SK_F32 ? NULL : sk_take_f32(a, n);
  o->sq = sk_arena_take(a, (size_t)c->reg->n_blocks * sizeof(double));
  for (int k = 0; k < SK_REDUCES; k++)
    o->reduce[k].buf = o->parts > 1 ? sk_take_f32(exchange, o->parts * o->longest) : NULL;
  if (!o->shared) return;
  o->shared_buf = sk_take_f32(exchange, o->shared);
  o->shared_ws = sk_arena_take(exchange, comm->reduce_ws(c->n_tp, o->shared, SK_F32));
}

void sk_optim_free(sk_optim *o) {
  for (int k = 0; k < SK_REDUCES; k++) sk_free(o->reduce[k].ticket);
  if (o->gather) {
    int64_t n = 0;
    while (o->gather[n].ticket) sk_free(o->gather[n++].ticket);
  }
  sk_free(o->gather);
  sk_free(o->cut);
  sk_free(o->block);
  sk_free(o->state0);
  sk_free(o->norms);
  sk_free(o->block_off);
  sk_free(o->sums);
  *o = (sk_optim){0};
}

void sk_optim_reset(sk_optim *o, sk_ctx *c) {
  size_t bytes = (size_t)sk_optim_count(o, c->reg) * sizeof(float);
  c->op->zero(c->st, o->m, bytes);
  c->op->zero(c->st, o->v, bytes);
}

/* ---- gradients to their owners ---- */

/* Rows that several tp ranks have alike become the sum of all their gradients. */
static void add_shared(sk_optim *o, sk_ctx *c, const sk_bucket *b) {
  if (!b->shared_count) return;
  size_t f = sizeof(float);
  sk_timer_begin(c->timer, SK_T_TP);
  c->op->zero(c->st, o->shared_buf, (size_t)b->shared_count * f);
  for (int k = b->shared0; k < b->shared0 + b->n_shared; k++) {
    const sk_shared *s = &c->reg->shared[k];
    if (s->at >= 0) c->op->copy(c->st, o->shared_buf + s->pos, c->grads + s->at, (size_t)s->count * f);
  }
  c->comm->wait(c->tp, c->st,
                c->comm->all_reduce(c->tp, c->st, o->shared_buf, b->shared_count, SK_F32, o->shared_ws));
  for (int k = b->shared0; k < b->shared0 + b->n_shared; k++) {
    const sk_shared *s = &c->reg->shared[k];
    if (s->at >= 0) c->op->copy(c->st, c->grads + s->at, o->shared_buf + s->pos, (size_t)s->count * f);
  }
  sk_timer_end(c->timer);
}

static void wait_all(sk_optim *o, sk_ctx *c, sk_exchange *x) {
  for (int i = 0; i < x->n; i++) o->comm->wait(o->zero, c->st, x->ticket[i]);
  x->n = 0;
}

static void reduce_end(sk_optim *o, sk_ctx *c, sk_exchange *x) {
  int64_t lo, hi;
  if (x->bucket < 0) return;
  sk_optim_slice(o, x->bucket, &lo, &hi);
  wait_all(o, c, x);
  sk_parts p = {.rank = o->part, .size = o->parts, .own = c->grads + lo, .others = x->buf,
                .stride = (size_t)o->longest * sizeof(float)};
  sk_comm_add_parts(c->op, c->st, c->grads + lo, &p, hi - lo, SK_F32);
  x->bucket = -1;
}

void sk_optim_give(sk_optim *o, sk_ctx *c, int bucket) {
  add_shared(o, c, &c->reg->bucket[bucket]);
  if (o->parts == 1) return;
  sk_timer_begin(c->timer, SK_T_REDUCE);
  sk_exchange *x = &o->reduce[o->next];
  const int64_t *cut = cuts(o, o->cut, bucket);
  o->next = (o->next + 1) % SK_REDUCES;
  reduce_end(o, c, x);
  x->bucket = bucket;
  o->comm->together(o->zero, c->st, true);
  for (int i = 0; i < o->parts; i++) {
    if (i == o->part) continue;
    size_t mine = (size_t)(cut[o->part + 1] - cut[o->part]), theirs = (size_t)(cut[i + 1] - cut[i]);
    x->ticket[x->n++] = o->comm->recv(o->zero, c->st, x->buf + i * o->longest, mine * sizeof(float), i, 2 * bucket);
    x->ticket[x->n++] = o->comm->send(o->zero, c->st, c->grads + cut[i], theirs * sizeof(float), i, 2 * bucket);
  }
  o->comm->together(o->zero, c->st, false);
  sk_timer_end(c->timer);
}

void sk_optim_reduced(sk_optim *o, sk_ctx *c) {
  if (o->parts == 1) return;
  sk_timer_begin(c->timer, SK_T_REDUCE);
  for (int k = 0; k < SK_REDUCES; k++) reduce_end(o, c, &o->reduce[(o->next + k) % SK_REDUCES]);
  sk_timer_end(c->timer);
}

/* ---- norm ---- */

/* norms[] of my blocks, then of all parts; every block has one owner, so adding zeros is exact. */
static void block_norms(sk_optim *o, sk_ctx *c, MPI_Comm zero) {
  const sk_registry *r = c->reg;
  for (int64_t i = 0; i < r->n_blocks; i++) o->norms[i] = 0;
  for (int k = 0; k < r->n_buckets; k++) {
    int64_t lo, hi, b0 = cuts(o, o->block, k)[o->part], b1 = cuts(o, o->block, k)[o->part + 1];
    sk_optim_slice(o, k, &lo, &hi);
    if (b0 == b1) continue;
    for (int64_t b = b0; b < b1; b++) o->block_off[b - b0] = sk_block_start(r, b) - lo;
    o->block_off[b1 - b0] = hi - lo;
    c->op->sqnorm(c->st, o->sq + b0, c->grads + lo, o->block_off, b1 - b0);
  }
  for (int k = 0; k < r->n_buckets; k++) { /* apart, so that the host waits once */
    int64_t b0 = cuts(o, o->block, k)[o->part], b1 = cuts(o, o->block, k)[o->part + 1];
    if (b0 < b1) c->op->to_host(c->st, o->norms + b0, o->sq + b0, (size_t)(b1 - b0) * sizeof(double));
  }
  if (o->parts == 1) return;
  sk_timer_begin(c->timer, SK_T_WAIT);
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, o->norms, (int)r->n_blocks, MPI_DOUBLE, MPI_SUM, zero));
  sk_timer_end(c->timer);
}

double sk_optim_norm(sk_optim *o, sk_ctx *c, MPI_Comm zero, MPI_Comm model, int n_all, int *bad) {
  const sk_registry *r = c->reg;
  sk_timer_begin(c->timer, SK_T_OPTIMIZER);
  block_norms(o, c, zero);
  for (int i = 0; i < n_all * r->tp; i++) o->sums[i] = 0;
  for (int k = 0; k < r->n_runs; k++) {
    const sk_run_of_rows *run = &r->run[k];
    const sk_param *p = &r->p[run->param];
    if (run->first != r->tp_rank || p->copy) continue;
    double *sum = &o->sums[p->index * r->tp + r->tp_rank];
    for (int64_t b = 0; b < run->n_blocks; b++) *sum += o->norms[run->block0 + b];
  }
  sk_timer_begin(c->timer, SK_T_WAIT);
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, o->sums, n_all * r->tp, MPI_DOUBLE, MPI_SUM, model));
  sk_timer_end(c->timer);
  double total = 0;
  *bad = -1;
  for (int i = 0; i < n_all; i++) {
    double sum = 0;
    for (int t = 0; t < r->tp; t++) sum += o->sums[i * r->tp + t];
    if (!isfinite(sum) && *bad < 0) *bad = i;
    total += sum;
  }
  sk_timer_end(c->timer);
  return sqrt(total);
}

/* ---- update, weights to all ---- */

/* Elements from .. to-1 of my slice of a bucket with the same learning rate and decay. */
typedef struct run {
  int64_t from, to;
  double lr, wd;
} run;

/* The next run of my slice of bucket b at or after parameter *i; false: there is none. */
static bool next_run(const sk_ctx *c, const sk_config *cfg, const sk_bucket *b, int64_t lo, int64_t hi, double lr, int *i,
                     run *r) {
  *r = (run){0};
  for (; *i < b->param0 + b->n_params; ++*i) {
    const sk_param *p = &c->reg->p[*i];
    int64_t from = p->offset > lo ? p->offset : lo, to = p->offset + p->count < hi ? p->offset + p->count : hi;
    double rate = lr * p->lr_mult, wd = p->decay ? cfg->optimizer.weight_decay * p->wd_mult : 0;
    if (from >= to) continue;
    bool more = r->to == from && r->lr == rate && r->wd == wd;
    if (r->to && !more) break;
    *r = (run){more ? r->from : from, to, rate, wd};
  }
  return r->to > 0;
}

void sk_optim_update(sk_optim *o, sk_ctx *c, const sk_config *cfg, int64_t t, double lr, double gscale) {
  const double *beta = cfg->optimizer.betas;
  sk_timer_begin(c->timer, SK_T_OPTIMIZER);
  for (int k = 0; k < c->reg->n_buckets; k++) {
    const sk_bucket *b = &c->reg->bucket[k];
    int64_t lo, hi, state = sk_optim_slice(o, k, &lo, &hi);
    float *master = sk_optim_master(o, c, k);
    run r;
    for (int i = b->param0; next_run(c, cfg, b, lo, hi, lr, &i, &r);) {
      sk_adamw a = {.lr = r.lr, .beta1 = beta[0], .beta2 = beta[1], .eps = cfg->optimizer.eps, .wd = r.wd,
                    .gscale = gscale, .bias1 = 1 - pow(beta[0], (double)t), .bias2 = 1 - pow(beta[1], (double)t)};
      int64_t s = state + r.from - lo;
      c->op->adamw(c->st, o->master ? sk_at(c, c->weights, r.from) : NULL, master + (r.from - lo), o->m + s,
                   o->v + s, c->grads + r.from, r.to - r.from, &a);
    }
  }
  sk_timer_end(c->timer);
}

void sk_optim_gather(sk_optim *o, sk_ctx *c) {
  if (o->parts == 1) return;
  size_t size = sk_dtype_size(c->act);
  sk_timer_begin(c->timer, SK_T_GATHER);
  for (int k = 0; k < c->reg->n_buckets; k++) {
    const int64_t *cut = cuts(o, o->cut, k);
    sk_exchange *x = &o->gather[k];
    size_t mine = (size_t)(cut[o->part + 1] - cut[o->part]);
    x->bucket = k;
    o->comm->together(o->zero, c->st, true);
    for (int i = 0; i < o->parts; i++) {
      if (i == o->part) continue;
      size_t theirs = (size_t)(cut[i + 1] - cut[i]);
      x->ticket[x->n++] = o->comm->recv(o->zero, c->st, sk_at(c, c->weights, cut[i]), theirs * size, i, 2 * k + 1);
      x->ticket[x->n++] =
          o->comm->send(o->zero, c->st, sk_at(c, c->weights, cut[o->part]), mine * size, i, 2 * k + 1);
    }
    o->comm->together(o->zero, c->st, false);
  }
  sk_timer_end(c->timer);
}

void sk_optim_need(sk_optim *o, sk_ctx *c, int bucket) {
  if (o->parts == 1) return;
  sk_timer_begin(c->timer, SK_T_GATHER);
  for (int k = 0; k < c->reg->n_buckets; k++) {
    if ((bucket >= 0 && k != bucket) || o->gather[k].bucket < 0) continue;
    wait_all(o, c, &o->gather[k]);
    o->gather[k].bucket = -1;
  }
  sk_timer_end(c->timer);
}
