/* mamba_cp.c: what the SSM mixer exchanges over cp (spec section 4): the last K-1 raw rows of every segment,
 * and for every segment what it adds to the state and how much of the state before it keeps. Both are
 * all-gathered, so the order of the sums is that of the sequence on every rank. */
#include "src/mamba.h"
#include "src/segment.h"

/* ---- halo ---- */

static int64_t halo_elements(const sk_mamba *m, const sk_tokens_here *t) {
  return t->piece[0].b * (m->K - 1) * m->cd;
}

/* The last K-1 raw rows of sequence bi of piece `half`, in proj or dproj [n, dip]. */
static void *last_rows(const sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, const void *proj, int half,
                       int64_t bi) {
  int64_t S = t->piece[0].T, row = (half * t->piece[0].b + bi + 1) * S - (m->K - 1);
  return sk_at(c, proj, row * m->dip + m->ds);
}

static void send_begin(sk_ctx *c, sk_mamba_flight *f, void *all, size_t mine) {
  sk_timer_begin(c->timer, SK_T_CP);
  f->ticket = c->comm->all_gather(c->cp, c->st, all, (char *)all + (size_t)c->cp_rank * mine, mine);
  sk_timer_end(c->timer);
}

static void send_end(sk_ctx *c, sk_mamba_flight *f) {
  sk_timer_begin(c->timer, SK_T_CP);
  c->comm->wait(c->cp, c->st, f->ticket);
  sk_timer_end(c->timer);
  f->ticket = NULL;
}

void sk_mamba_halo_send(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_flight *f,
                        const void *proj) {
  int64_t one = halo_elements(m, t), b = t->piece[0].b, rows = m->K - 1;
  size_t size = sk_dtype_size(c->act), width = (size_t)m->cd * size;
  f->halo = sk_take_act(c, &c->scratch, c->n_cp * 2 * one);
  char *mine = sk_at(c, f->halo, c->cp_rank * 2 * one);
  for (int64_t k = 0; k < 2 * b; k++)
    c->op->copy2d(c->st, mine + (size_t)(k * rows) * width, width,
                  last_rows(c, m, t, proj, (int)(k / b), k % b), (size_t)m->dip * size, width, rows);
  send_begin(c, f, f->halo, (size_t)(2 * one) * size);
}

/* Segment s in a gathered [cp][2][...] of `one` elements each. */
static void *of_segment(const sk_ctx *c, const void *all, int s, int64_t one) {
  return sk_at(c, all, (2 * sk_segment_rank(c->n_cp, s) + sk_segment_half(c->n_cp, s)) * one);
}

void sk_mamba_halo_take(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_flight *f,
                        void *halo) {
  int64_t one = halo_elements(m, t);
  size_t bytes = (size_t)one * sk_dtype_size(c->act);
  send_end(c, f);
  for (int half = 0; half < 2; half++) {
    int s = sk_segment_of(c->n_cp, c->cp_rank, half);
    if (s == 0) c->op->zero(c->st, halo, bytes);
    else c->op->copy(c->st, sk_at(c, halo, half * one), of_segment(c, f->halo, s - 1, one), bytes);
  }
}

void sk_mamba_dhalo_send(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_flight *f,
                         void *dhalo) {
  int64_t one = halo_elements(m, t);
  size_t mine = (size_t)(2 * one) * sk_dtype_size(c->act);
  f->halo = sk_take_act(c, &c->scratch, c->n_cp * 2 * one);
  c->op->copy(c->st, sk_at(c, f->halo, c->cp_rank * 2 * one), dhalo, mine);
  send_begin(c, f, f->halo, mine);
}

void sk_mamba_dhalo_take(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_flight *f) {
  int64_t one = halo_elements(m, t), b = t->piece[0].b, rows = m->K - 1;
  size_t size = sk_dtype_size(c->act), width = (size_t)m->cd * size, ld = (size_t)m->dip * size;
  void *sum = sk_take_act(c, &c->scratch, rows * m->cd);
  send_end(c, f);
  for (int half = 0; half < 2; half++) {
    int next = sk_segment_of(c->n_cp, c->cp_rank, half) + 1;
    if (next == 2 * c->n_cp) continue;
    for (int64_t bi = 0; bi < b; bi++) {
      void *mine = last_rows(c, m, t, f->dproj, half, bi);
      const void *theirs = sk_at(c, of_segment(c, f->halo, next, one), bi * rows * m->cd);
      c->op->copy2d(c->st, sum, width, mine, ld, width, rows);
      c->op->add(c->st, sum, sum, theirs, rows * m->cd);
      c->op->copy2d(c->st, mine, ld, sum, width, width, rows);
    }
  }
}

/* ---- states ---- */

static int64_t state_elements(const sk_mamba *m, const sk_tokens_here *t) {
  return t->piece[0].b * m->nh * m->P * m->N;
}

static int64_t keep_elements(const sk_mamba *m, const sk_tokens_here *t) { return t->piece[0].b * m->nh; }

float *sk_mamba_state_slot(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_flight *f,
                           int half, float **keep) {
  int64_t state = state_elements(m, t), one = state + keep_elements(m, t);
  if (half == 0) f->state = sk_take_f32(&c->scratch, c->n_cp * 2 * one);
  float *slot = f->state + (2 * c->cp_rank + half) * one;
  *keep = slot + state;
  return slot;
}

void sk_mamba_state_send(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_flight *f) {
  int64_t one = state_elements(m, t) + keep_elements(m, t);
  send_begin(c, f, f->state, (size_t)(2 * one) * sizeof(float));
}

void sk_mamba_state_take(sk_ctx *c, const sk_mamba *m, const sk_tokens_here *t, sk_mamba_flight *f, float *S,
                         bool reverse) {
  int64_t state = state_elements(m, t), keep = keep_elements(m, t), one = state + keep;
  int last = 2 * c->n_cp - 1;
  float *run = sk_take_f32(&c->scratch, state);
  send_end(c, f);
  c->op->zero(c->st, run, (size_t)state * sizeof(float));
  for (int i = 0; i <= last; i++) {
    int s = reverse ? last - i : i, half = sk_segment_half(c->n_cp, s), r = sk_segment_rank(c->n_cp, s);
    if (r == c->cp_rank) c->op->copy(c->st, S + half * state, run, (size_t)state * sizeof(float));
    const float *theirs = f->state + (2 * r + half) * one;
    c->op->fade_add(c->st, run, theirs + state, theirs, keep, m->P * m->N);
  }
}
