/* head.c: logits and loss in slices of tokens, over the vocabulary's rows of this rank (spec sections 2.6, 5). */
#include "src/model.h"
#include "src/shard.h"

void sk_model_logits(sk_model *m, sk_ctx *c, float *logits, int64_t ld, const void *hidden, int64_t n) {
  int64_t d = m->cfg->hidden_size;
  c->op->gemm(c->st, false, true, n, m->nv, d, m->cfg->lm_head_multiplier, hidden, d, sk_weight(c, m->head),
              d, 0, logits, ld, SK_F32);
}

/* Tokens per slice of the loss: the logits of a slice take about 512 MiB. A slice's weight gradient reads and
 * writes the whole matrix, so short slices are slow. The same on all tp ranks. */
static int64_t slice_tokens(int64_t n, int64_t vocab, int tp) {
  int64_t k = (128 << 20) / ((vocab + tp - 1) / tp);
  if (k >= 128) k = (k + 64) / 128 * 128; /* a whole number of the products' tiles */
  return k < 1 ? 1 : k < n ? k : n;
}

/* stats[3][n] over the whole vocabulary from those of this rank's rows. */
static void merge_stats(sk_ctx *c, float *stats, int64_t n) {
  if (c->n_tp == 1) return;
  float *all = sk_take_f32(&c->scratch, c->n_tp * 3 * n);
  sk_timer_begin(c->timer, SK_T_TP);
  c->comm->wait(c->tp, c->st,
                c->comm->all_gather(c->tp, c->st, all, stats, (size_t)(3 * n) * sizeof(float)));
  sk_timer_end(c->timer);
  c->op->xent_merge(c->st, stats, all, c->n_tp, n);
}

/* Tokens t0 .. t0+n-1 of hidden [., d]; with scale != 0 their gradient into dhidden (a partial sum under tp)
 * and the head's weights. */
static void loss_slice(sk_model *m, sk_ctx *c, const int32_t *label, int64_t t0, int64_t n, double scale,
                       double *loss, const void *hidden, void *dhidden) {
  int64_t d = m->cfg->hidden_size, V = m->nv, ld = (V + 63) / 64 * 64; /* aligned rows: fast products */
  const void *x = sk_at(c, hidden, t0 * d);
  size_t mark = sk_arena_mark(&c->scratch);
  float *logits = sk_take_f32(&c->scratch, n * ld), *stats = sk_take_f32(&c->scratch, 3 * n);
  float *each = sk_take_f32(&c->scratch, n);
  void *dlogits = NULL;
  if (scale != 0) dlogits = c->act == SK_F32 ? (void *)logits : sk_take_act(c, &c->scratch, n * ld);
  sk_timer_begin(c->timer, SK_T_HEAD);
  sk_model_logits(m, c, logits, ld, x, n);
  c->op->xent_stats(c->st, stats, logits, ld, label + t0, n, m->v0, V);
  merge_stats(c, stats, n);
  c->op->xent_grad(c->st, each, dlogits, logits, ld, stats, label + t0, scale, n, m->v0, V);
  c->op->sum(c->st, loss, each, n);
  sk_timer_end(c->timer);
  if (scale != 0) {
    float *dw = m->head == m->embed && m->chunk[0].first ? m->tied_grad : sk_grad(c, m->head);
    sk_timer_begin(c->timer, SK_T_BACKWARD + SK_T_HEAD);
    c->op->gemm(c->st, false, false, n, d, V, m->cfg->lm_head_multiplier, dlogits, ld,
                sk_weight(c, m->head), d, 0, sk_at(c, dhidden, t0 * d), d, c->act);
    sk_wgrad_gemm(c, dw, dlogits, ld, x, n, V, d, m->cfg->lm_head_multiplier);
    sk_timer_end(c->timer);
  }
  sk_arena_release(&c->scratch, mark);
}

void sk_head_loss(sk_model *m, sk_ctx *c, sk_slot *s, double scale, double *loss) {
  int64_t n = s->t.n, d = m->cfg->hidden_size, step = slice_tokens(n, m->cfg->vocab_size, c->n_tp);
  size_t mark = sk_arena_mark(&c->scratch);
  const void *hidden = sk_gather(c, &c->scratch, s->final.u, &s->t, d);
  void *part = scale != 0 ? sk_partial(c, s->dhidden, &s->t, d) : NULL;
  for (int64_t t = 0; t < n; t += step)
    loss_slice(m, c, s->label, t, t + step < n ? step : n - t, scale, loss, hidden, part);
  if (scale != 0) sk_scatter(c, s->dhidden, part, &s->t, d);
  sk_arena_release(&c->scratch, mark);
}
