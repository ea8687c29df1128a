#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "src/param.h"
#include <fnmatch.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { BLOCK = 16384, ALIGN = 64 }; /* elements */

/* ---- segments ---- */

int64_t sk_segment_units(const sk_segment *s, int tp, int t, int64_t *n) {
  *n = s->units;
  if (s->users == 0) return 0;
  int64_t count, first = sk_block(s->users, tp, t, &count), per = s->users / s->units;
  int64_t lo = first / per, hi = count ? (first + count - 1) / per + 1 : lo;
  *n = hi - lo;
  return lo;
}

/* The tp ranks that need unit u. */
static void holders(const sk_segment *s, int tp, int64_t u, int *first, int *last) {
  *first = tp;
  *last = -1;
  for (int t = 0; t < tp; t++) {
    int64_t n, lo = sk_segment_units(s, tp, t, &n);
    if (u < lo || u >= lo + n) continue;
    if (*first == tp) *first = t;
    *last = t;
  }
}

/* ---- adding ---- */

int sk_bucket_begin(sk_registry *r) {
  if (r->n_buckets % 64 == 0)
    r->bucket = sk_realloc(r->bucket, (size_t)(r->n_buckets + 64) * sizeof *r->bucket);
  r->total = (r->total + ALIGN - 1) / ALIGN * ALIGN;
  r->bucket[r->n_buckets] = (sk_bucket){.param0 = r->n, .lo = r->total, .hi = r->total,
                                        .block0 = r->n_blocks, .shared0 = r->n_shared};
  return r->n_buckets++;
}

/* Rows `row` .. of the shard. Joins the previous run when it goes on from there. */
static void add_run(sk_registry *r, sk_param *p, int64_t row, int64_t rows, int64_t global_row, int first,
                    int last) {
  sk_run_of_rows *before = p->n_runs ? &r->run[r->n_runs - 1] : NULL;
  if (before && before->first == first && before->last == last &&
      before->global_row + before->rows == global_row) {
    before->rows += rows;
    return;
  }
  if (r->n_runs == r->cap_runs)
    r->run = sk_realloc(r->run, (size_t)(r->cap_runs = 2 * r->cap_runs + 64) * sizeof *r->run);
  r->run[r->n_runs++] = (sk_run_of_rows){.param = r->n, .row = row, .rows = rows, .global_row = global_row,
                                         .first = first, .last = last};
  p->n_runs++;
}

static void add_shared(sk_registry *r, int64_t at, int64_t count) {
  sk_bucket *b = &r->bucket[r->n_buckets - 1];
  if (r->n_shared == r->cap_shared)
    r->shared = sk_realloc(r->shared, (size_t)(r->cap_shared = 2 * r->cap_shared + 64) * sizeof *r->shared);
  r->shared[r->n_shared++] = (sk_shared){.at = at, .pos = b->shared_count, .count = count};
  b->shared_count += count;
  b->n_shared++;
}

/* The runs of a parameter that is cut along its rows; p->rows grows. */
static void cut_rows(sk_registry *r, sk_param *p, const sk_param_spec *spec) {
  sk_segment whole = {.units = 1, .width = p->dim[0]};
  int n = spec->n_seg ? spec->n_seg : 1;
  int64_t global_row = 0;
  if (spec->n_seg == 1 && spec->seg[0].users == spec->seg[0].units) p->row_units = spec->seg[0].units;
  for (int k = 0; k < n; k++) {
    const sk_segment *s = spec->n_seg ? &spec->seg[k] : &whole;
    int64_t have, lo = sk_segment_units(s, r->tp, r->tp_rank, &have);
    SK_ASSERT(s->users == 0 || s->users % s->units == 0);
    for (int64_t u = 0; u < s->units; u++) {
      bool here = u >= lo && u < lo + have, one = s->users == s->units;
      if (one && !here) continue; /* every unit has one user: nothing is shared */
      int first = r->tp_rank, last = r->tp_rank;
      if (!one) holders(s, r->tp, u, &first, &last);
      if (first < last) add_shared(r, here ? p->offset + p->rows * p->row_len : -1, s->width * p->row_len);
      if (!here) continue;
      add_run(r, p, p->rows, s->width, global_row + u * s->width, first, last);
      p->rows += s->width;
    }
    global_row += s->units * s->width;
  }
}

static void cut_columns(sk_registry *r, sk_param *p, const sk_param_spec *spec) {
  const sk_segment *s = &spec->seg[0];
  int64_t have, lo = sk_segment_units(s, r->tp, r->tp_rank, &have);
  SK_ASSERT(spec->n_seg == 1 && s->users == s->units);
  p->col = lo * s->width;
  p->col_units = s->units;
  p->row_len = have * s->width;
  p->rows = p->dim[0];
  add_run(r, p, 0, p->rows, 0, r->tp_rank, r->tp_rank);
}

static void cut_blocks(sk_registry *r, sk_param *p) {
  p->block_rows = p->row_len >= BLOCK ? 1 : BLOCK / p->row_len;
  for (int k = 0; k < p->n_runs; k++) {
    sk_run_of_rows *run = &r->run[p->run0 + k];
    run->block0 = r->n_blocks;
    run->n_blocks = (run->rows + p->block_rows - 1) / p->block_rows;
    r->n_blocks += run->n_blocks;
  }
}

int sk_param_add(sk_registry *r, const char *name, const sk_param_spec *spec) {
  SK_CHECK(r->n_buckets > 0 && r->tp > 0, "parameter %s before the first bucket", name);
  if (r->n == r->cap) r->p = sk_realloc(r->p, (size_t)(r->cap = 2 * r->cap + 64) * sizeof *r->p);
  sk_param *p = &r->p[r->n];
  sk_bucket *b = &r->bucket[r->n_buckets - 1];
  *p = (sk_param){.index = r->next_index++, .rank = spec->rank, .init = spec->init, .scale = r->init_std,
                  .decay = spec->decay, .lr_mult = 1, .wd_mult = 1, .pad_row = -1, .run0 = r->n_runs};
  SK_CHECK((size_t)snprintf(p->name, sizeof p->name, "%s", name) < sizeof p->name,
           "parameter name too long: %s", name);
  p->global_len = 1;
  for (int i = 0; i < spec->rank; i++) p->dim[i] = spec->dim[i];
  for (int i = 1; i < spec->rank; i++) p->global_len *= spec->dim[i];
  p->row_len = p->global_len;
  p->offset = spec->join ? r->total : (r->total + ALIGN - 1) / ALIGN * ALIGN;
  (spec->columns ? cut_columns : cut_rows)(r, p, spec);
  p->count = p->rows * p->row_len;
  cut_blocks(r, p);
  int64_t stored = spec->pad ? (p->rows + spec->pad - 1) / spec->pad * spec->pad : p->rows;
  r->total = p->offset + stored * p->row_len;
  r->count += p->count;
  b->hi = r->total;
  b->n_params++;
  b->n_blocks = r->n_blocks - b->block0;
  return r->n++;
}

int sk_param_find(const sk_registry *r, const char *name) {
  for (int i = 0; i < r->n; i++)
    if (strcmp(r->p[i].name, name) == 0) return i;
  return -1;
}

void sk_registry_free(sk_registry *r) {
  sk_free(r->p);
  sk_free(r->run);
  sk_free(r->shared);
  sk_free(r->bucket);
  *r = (sk_registry){0};
}

void sk_registry_groups(sk_registry *r, const sk_config *c, bool *hit) {
  for (int g = 0; g < c->optimizer.n_groups; g++) {
    const sk_param_group *group = &c->optimizer.groups[g];
    for (int i = 0; i < r->n; i++) {
      if (fnmatch(group->match, r->p[i].name, 0) != 0) continue;
      r->p[i].lr_mult = group->lr_mult;
      r->p[i].wd_mult = group->wd_mult;
      if (hit) hit[g] = true;
    }
  }
}

/* ---- initial values ---- */

static double draw(const sk_param *p, uint64_t key, int64_t i) {
  switch (p->init) {
    case SK_INIT_ZERO: return 0;
    case SK_INIT_ONE: return 1;
    case SK_INIT_NORMAL: return p->scale * sk_normal(key, (uint64_t)i);
    case SK_INIT_UNIFORM: return p->scale * (2 * sk_uniform(key, (uint64_t)i) - 1);
    case SK_INIT_A_LOG: return log(1 + 15 * sk_uniform(key, (uint64_t)i)); /* A ~ U(1, 16) */
    case SK_INIT_DT_BIAS: { /* inverse softplus of dt, log-uniform in [1e-3, 1e-1] */
      double dt = exp(log(1e-3) + (log(1e-1) - log(1e-3)) * sk_uniform(key, (uint64_t)i));
      return dt + log(-expm1(-dt));
    }
  }
  return 0;
}

void sk_param_init(const sk_param *p, uint64_t seed, int64_t first, int64_t count, float *out) {
  uint64_t key = sk_hash_str(seed, p->name);
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < count; i++) {
    bool pad = p->pad_row >= 0 && (first + i) / p->global_len == p->pad_row;
    out[i] = pad ? 0 : (float)draw(p, key, first + i);
  }
}

/* ---- blocks ---- */

int64_t sk_block_start(const sk_registry *r, int64_t block) {
  int lo = 0, hi = r->n_runs - 1;
  while (lo < hi) {
    int mid = (lo + hi + 1) / 2;
    if (r->run[mid].block0 <= block) lo = mid;
    else hi = mid - 1;
  }
  const sk_run_of_rows *run = &r->run[lo];
  const sk_param *p = &r->p[run->param];
  return p->offset + (run->row + (block - run->block0) * p->block_rows) * p->row_len;
}

/* First block of the bucket that starts at or after the ideal cut. */
static int64_t zero_cut(const sk_registry *r, const sk_bucket *b, int parts, int part) {
  int64_t end = b->block0 + b->n_blocks;
  if (part >= parts) return end;
  int64_t ideal = b->lo + sk_block(b->hi - b->lo, parts, part, NULL), lo = b->block0, hi = end;
  while (lo < hi) {
    int64_t mid = (lo + hi) / 2;
    if (sk_block_start(r, mid) >= ideal) hi = mid;
    else lo = mid + 1;
  }
  return lo;
}

int64_t sk_zero_blocks(const sk_registry *r, const sk_bucket *b, int parts, int part, int64_t *n) {
  int64_t first = zero_cut(r, b, parts, part);
  *n = zero_cut(r, b, parts, part + 1) - first;
  return first;
}

int64_t sk_zero_start(const sk_registry *r, const sk_bucket *b, int parts, int part) {
  int64_t block = zero_cut(r, b, parts, part);
  return block < b->block0 + b->n_blocks ? sk_block_start(r, block) : b->hi;
}

bool sk_run_overlap(const sk_registry *r, const sk_run_of_rows *run, int64_t lo, int64_t hi, int64_t *row0,
                    int64_t *rows) {
  const sk_param *p = &r->p[run->param];
  int64_t from = p->offset + run->row * p->row_len, to = from + run->rows * p->row_len;
  int64_t a = lo > from ? lo : from, b = hi < to ? hi : to;
  if (a >= b) return false;
  *row0 = (a - p->offset) / p->row_len;
  *rows = (b - a) / p->row_len;
  return true;
}
