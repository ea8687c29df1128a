#include "src/optim.h"
#include <math.h>

enum { BUFFER = 64 << 20 }; /* elements of the exchange buffer at most */

void sk_optim_create(sk_optim *o, const sk_registry *r, MPI_Comm comm, int parts, int part) {
  *o = (sk_optim){.comm = comm, .parts = parts, .part = part};
  o->lo = sk_calloc((size_t)parts + 1, sizeof *o->lo);
  o->block0 = sk_calloc((size_t)parts + 1, sizeof *o->block0);
  SK_CHECK(r->n_blocks < INT32_MAX, "%lld blocks", (long long)r->n_blocks);
  int64_t longest = 0;
  for (int i = 0; i <= parts; i++) {
    int64_t n;
    o->block0[i] = i < parts ? (int)sk_zero_blocks(r, parts, i, &n) : (int)r->n_blocks;
    o->lo[i] = sk_block_start(r, o->block0[i]);
    if (i > 0 && o->lo[i] - o->lo[i - 1] > longest) longest = o->lo[i] - o->lo[i - 1];
  }
  o->piece = longest < BUFFER / parts ? longest : BUFFER / parts;
  int first = o->block0[part], n = o->block0[part + 1] - first;
  o->block_off = sk_calloc((size_t)n + 1, sizeof *o->block_off);
  for (int i = 0; i <= n; i++) o->block_off[i] = sk_block_start(r, first + i) - o->lo[part];
  o->norms = sk_calloc((size_t)r->n_blocks, sizeof *o->norms);
}

void sk_optim_bind(sk_optim *o, sk_ctx *c, sk_arena *a, sk_arena *exchange) {
  int64_t n = sk_optim_count(o);
  o->m = sk_take_f32(a, n);
  o->v = sk_take_f32(a, n);
  o->master = c->act == SK_F32 ? (float *)c->weights + sk_optim_lo(o) : sk_take_f32(a, n);
  o->sq = sk_arena_take(a, (size_t)c->reg->n_blocks * sizeof(double));
  o->buf = o->parts > 1 ? sk_take_f32(exchange, o->parts * o->piece) : NULL;
}

void sk_optim_free(sk_optim *o) {
  sk_free(o->lo);
  sk_free(o->block0);
  sk_free(o->block_off);
  sk_free(o->norms);
  *o = (sk_optim){0};
}

void sk_optim_reset(sk_optim *o, sk_ctx *c) {
  size_t bytes = (size_t)sk_optim_count(o) * sizeof(float);
  c->op->zero(c->st, o->m, bytes);
  c->op->zero(c->st, o->v, bytes);
}

/* Piece k of part i's slice: first element and length (0 when the slice is shorter). */
static int64_t piece_of(const sk_optim *o, int i, int64_t k, int *len) {
  int64_t first = o->lo[i] + k * o->piece, left = o->lo[i + 1] - first;
  *len = left <= 0 ? 0 : (int)(left < o->piece ? left : o->piece);
  return first;
}

static int64_t pieces(const sk_optim *o) {
  int64_t most = 0;
  for (int i = 0; i < o->parts; i++) {
    int64_t n = o->piece ? (o->lo[i + 1] - o->lo[i] + o->piece - 1) / o->piece : 0;
    if (n > most) most = n;
  }
  return most;
}

/* Receives piece k of my slice from every other rank and sends them theirs. */
static void exchange_grads(sk_optim *o, sk_ctx *c, int64_t k, MPI_Request *req) {
  int mine, theirs, n = 0;
  piece_of(o, o->part, k, &mine);
  for (int i = 0; i < o->parts; i++) {
    if (i == o->part) continue;
    int64_t at = piece_of(o, i, k, &theirs);
    if (mine)
      SK_MPI(MPI_Irecv(o->buf + i * o->piece, mine, MPI_FLOAT, i, 1, o->comm, &req[n++]));
    if (theirs) SK_MPI(MPI_Isend(c->grads + at, theirs, MPI_FLOAT, i, 1, o->comm, &req[n++]));
  }
  SK_MPI(MPI_Waitall(n, req, MPI_STATUSES_IGNORE));
}

void sk_optim_reduce(sk_optim *o, sk_ctx *c) {
  if (o->parts == 1) return;
  sk_timer_begin(c->timer, SK_T_REDUCE);
  c->op->sync(c->st);
  MPI_Request *req = sk_calloc((size_t)o->parts * 2, sizeof(MPI_Request));
  for (int64_t k = 0; k < pieces(o); k++) {
    int mine;
    int64_t first = piece_of(o, o->part, k, &mine);
    size_t bytes = (size_t)mine * sizeof(float);
    exchange_grads(o, c, k, req);
    c->op->copy(c->st, o->buf + o->part * o->piece, c->grads + first, bytes);
    for (int i = 1; i < o->parts; i++) c->op->add_f32(c->st, o->buf, o->buf + i * o->piece, mine);
    c->op->copy(c->st, c->grads + first, o->buf, bytes);
    c->op->sync(c->st);
  }
  sk_free(req);
  sk_timer_end(c->timer);
}

double sk_optim_norm(sk_optim *o, sk_ctx *c, int *bad) {
  const sk_registry *r = c->reg;
  int first = o->block0[o->part], n = o->block0[o->part + 1] - first;
  sk_timer_begin(c->timer, SK_T_OPTIMIZER);
  c->op->sqnorm(c->st, o->sq, c->grads + sk_optim_lo(o), o->block_off, n);
  c->op->to_host(c->st, o->norms + first, o->sq, (size_t)n * sizeof(double));
  if (o->parts > 1) {
    int *count = sk_calloc((size_t)o->parts, sizeof *count);
    for (int i = 0; i < o->parts; i++) count[i] = o->block0[i + 1] - o->block0[i];
    SK_MPI(MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, o->norms, count, o->block0, MPI_DOUBLE,
                          o->comm));
    sk_free(count);
  }
  double total = 0;
  *bad = -1;
  for (int i = 0; i < r->n; i++) {
    double sum = 0;
    for (int64_t b = 0; b < r->p[i].n_blocks; b++) sum += o->norms[r->p[i].block0 + b];
    if (!isfinite(sum) && *bad < 0) *bad = i;
    total += sum;
  }
  sk_timer_end(c->timer);
  return sqrt(total);
}

void sk_optim_update(sk_optim *o, sk_ctx *c, const sk_config *cfg, int64_t t, double lr, double gscale) {
  const int64_t lo = sk_optim_lo(o), hi = lo + sk_optim_count(o);
  const double *beta = cfg->optimizer.betas;
  sk_timer_begin(c->timer, SK_T_OPTIMIZER);
  for (int i = 0; i < c->reg->n; i++) {
    const sk_param *p = &c->reg->p[i];
    int64_t row0, rows;
    if (!sk_param_overlap(p, lo, hi, &row0, &rows)) continue;
    int64_t at = p->offset + row0 * p->row_len, k = at - lo;
    sk_adamw a = {.lr = lr * p->lr_mult, .beta1 = beta[0], .beta2 = beta[1], .eps = cfg->optimizer.eps,
                  .wd = p->decay ? cfg->optimizer.weight_decay * p->wd_mult : 0, .gscale = gscale,
                  .bias1 = 1 - pow(beta[0], (double)t), .bias2 = 1 - pow(beta[1], (double)t)};
    c->op->adamw(c->st, c->act == SK_F32 ? NULL : sk_at(c, c->weights, at), o->master + k, o->m + k,
                 o->v + k, c->grads + at, rows * p->row_len, &a);
  }
  sk_timer_end(c->timer);
}

void sk_optim_gather(sk_optim *o, sk_ctx *c) {
  if (o->parts == 1) return;
  sk_timer_begin(c->timer, SK_T_GATHER);
  c->op->sync(c->st);
  int size = (int)sk_dtype_size(c->act), *count = sk_calloc((size_t)o->parts * 2, sizeof *count);
  int *at = count + o->parts;
  for (int64_t k = 0; k < pieces(o); k++) {
    /* Through a buffer: the places in the weights may lie farther apart than an int can say. */
    for (int i = 0; i < o->parts; i++) {
      piece_of(o, i, k, &count[i]);
      at[i] = (int)(i * o->piece);
    }
    int64_t mine = piece_of(o, o->part, k, &count[o->part]);
    MPI_Datatype type;
    SK_MPI(MPI_Type_contiguous(size, MPI_BYTE, &type));
    SK_MPI(MPI_Type_commit(&type));
    SK_MPI(MPI_Allgatherv(sk_at(c, c->weights, mine), count[o->part], type, o->buf, count, at, type,
                          o->comm));
    SK_MPI(MPI_Type_free(&type));
    for (int i = 0; i < o->parts; i++)
      if (i != o->part && count[i])
        c->op->copy(c->st, sk_at(c, c->weights, piece_of(o, i, k, &count[i])),
                    sk_at(c, o->buf, i * o->piece), (size_t)count[i] * (size_t)size);
    c->op->sync(c->st);
  }
  sk_free(count);
  sk_timer_end(c->timer);
}
