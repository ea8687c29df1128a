#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "src/param.h"
#include <fnmatch.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { BLOCK = 16384, ALIGN = 64 }; /* elements */

int sk_param_add(sk_registry *r, const char *name, int rank, const int64_t *dim, sk_init init,
                 bool decay, bool join) {
  if (r->n == r->cap) r->p = sk_realloc(r->p, (size_t)(r->cap = 2 * r->cap + 64) * sizeof *r->p);
  sk_param *p = &r->p[r->n];
  *p = (sk_param){.rank = rank, .init = init, .scale = r->init_std, .decay = decay, .lr_mult = 1,
                  .wd_mult = 1, .pad_row = -1};
  SK_CHECK((size_t)snprintf(p->name, sizeof p->name, "%s", name) < sizeof p->name,
           "parameter name too long: %s", name);
  p->rows = dim[0];
  p->row_len = 1;
  for (int i = 0; i < rank; i++) p->dim[i] = dim[i];
  for (int i = 1; i < rank; i++) p->row_len *= dim[i];
  p->count = p->rows * p->row_len;
  p->offset = join ? r->total : (r->total + ALIGN - 1) / ALIGN * ALIGN;
  p->block_rows = p->row_len >= BLOCK ? 1 : BLOCK / p->row_len;
  p->block0 = r->n_blocks;
  p->n_blocks = (p->rows + p->block_rows - 1) / p->block_rows;
  r->total = p->offset + p->count;
  r->count += p->count;
  r->n_blocks += p->n_blocks;
  return r->n++;
}

int sk_param_find(const sk_registry *r, const char *name) {
  for (int i = 0; i < r->n; i++)
    if (strcmp(r->p[i].name, name) == 0) return i;
  return -1;
}

void sk_registry_free(sk_registry *r) {
  sk_free(r->p);
  *r = (sk_registry){0};
}

int sk_registry_groups(sk_registry *r, const sk_config *c, sk_err *e) {
  for (int g = 0; g < c->optimizer.n_groups; g++) {
    const sk_param_group *group = &c->optimizer.groups[g];
    int hits = 0;
    for (int i = 0; i < r->n; i++) {
      if (fnmatch(group->match, r->p[i].name, 0) != 0) continue;
      r->p[i].lr_mult = group->lr_mult;
      r->p[i].wd_mult = group->wd_mult;
      hits++;
    }
    if (!hits)
      return sk_fail(e, SK_USAGE,
                     "optimizer.groups[%d]: match \"%s\" matches no parameter; `saker train --dry-run` "
                     "lists the names",
                     g, group->match);
  }
  return SK_OK;
}

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
    bool pad = p->pad_row >= 0 && (first + i) / p->row_len == p->pad_row;
    out[i] = pad ? 0 : (float)draw(p, key, first + i);
  }
}

static const sk_param *param_of_block(const sk_registry *r, int64_t block) {
  int lo = 0, hi = r->n - 1;
  while (lo < hi) {
    int mid = (lo + hi + 1) / 2;
    if (r->p[mid].block0 <= block) lo = mid;
    else hi = mid - 1;
  }
  return &r->p[lo];
}

int64_t sk_block_start(const sk_registry *r, int64_t block) {
  if (block >= r->n_blocks) return r->total;
  const sk_param *p = param_of_block(r, block);
  return p->offset + (block - p->block0) * p->block_rows * p->row_len;
}

/* First block that starts at or after the ideal cut. */
static int64_t zero_cut(const sk_registry *r, int parts, int part) {
  if (part >= parts) return r->n_blocks;
  int64_t ideal = sk_block(r->total, parts, part, NULL), lo = 0, hi = r->n_blocks;
  while (lo < hi) {
    int64_t mid = (lo + hi) / 2;
    if (sk_block_start(r, mid) >= ideal) hi = mid;
    else lo = mid + 1;
  }
  return lo;
}

int64_t sk_zero_blocks(const sk_registry *r, int parts, int part, int64_t *n) {
  int64_t first = zero_cut(r, parts, part);
  *n = zero_cut(r, parts, part + 1) - first;
  return first;
}

bool sk_param_overlap(const sk_param *p, int64_t lo, int64_t hi, int64_t *row0, int64_t *rows) {
  int64_t a = lo > p->offset ? lo : p->offset;
  int64_t b = hi < p->offset + p->count ? hi : p->offset + p->count;
  if (a >= b) return false;
  *row0 = (a - p->offset) / p->row_len;
  *rows = (b - a) / p->row_len;
  return true;
}
