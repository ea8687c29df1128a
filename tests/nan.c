/* nan.c: a gradient that is not finite is found and named on every rank, whichever stage, tensor shard and slice
 * has it; the first one in the model's order counts. */
#include "tests/on_grid.h"

static void deck(sk_config *c) {
  small_config(c, 4, (const char *const[]){"P-", "P-", "P-", "P-"});
  c->model.tie_word_embeddings = true;
  c->data.sequence = 32;
  c->train.global_batch = 4;
  c->train.micro_batch = 1;
}

/* Puts a value into the last element of a parameter's gradient, on the one rank that owns it. Returns whether it is
 * this one. */
static int poison(sk_engine *g, const char *name, float value) {
  const sk_registry *r = g->ctx.reg;
  int p = sk_param_find(r, name);
  if (p < 0 || r->p[p].copy) return 0;
  const sk_run_of_rows *run = &r->run[r->p[p].run0 + r->p[p].n_runs - 1];
  int64_t at = r->p[p].offset + (run->row + run->rows) * r->p[p].row_len - 1, lo, hi;
  bool last = run->global_row + run->rows == r->p[p].dim[0] && r->p[p].col + r->p[p].row_len == r->p[p].global_len;
  for (int k = 0; k < r->n_buckets && last && run->first == r->tp_rank; k++) {
    sk_optim_slice(&g->opt, k, &lo, &hi);
    if (at < lo || at >= hi) continue;
    g->ctx.grads[at] = value;
    return 1;
  }
  return 0;
}

static double norm_of(on_grid *o, int *bad) {
  sk_engine *g = &o->engine;
  return sk_optim_norm(&g->opt, &g->ctx, o->grid.zero, o->grid.model, g->model.all.n, bad);
}

/* `first` comes before `second` in the model. */
static void found(sk_config *c, const int n[SK_NAXES], const char *first, const char *second, float value) {
  on_grid o;
  batch k;
  bool right = true;
  if (on_grid_open(&o, c, n)) {
    sk_engine *g = &o.engine;
    int clean, two, one, had[2], all[2];
    batch_create(&k, c, 3);
    sk_engine_init(g);
    on_grid_gradients(&o, &k);
    right = isfinite(norm_of(&o, &clean)) && clean == -1;
    had[1] = poison(g, second, value);
    right = !isfinite(norm_of(&o, &one)) && one == sk_param_find(&g->model.all, second) && right;
    had[0] = poison(g, first, value);
    right = !isfinite(norm_of(&o, &two)) && two == sk_param_find(&g->model.all, first) && right;
    SK_MPI(MPI_Allreduce(had, all, 2, MPI_INT, MPI_SUM, o.grid.world));
    right = right && all[0] == 1 && all[1] == 1 && two >= 0 && two < one;
    batch_free(&k);
  }
  on_grid_close(&o);
  tap_ok(right, "%s: %s in %s, then in %s too: the first one is named", grid_text(n),
         isnan(value) ? "NaN" : "infinity", second, first);
}

int main(int argc, char **argv) {
  static const int grids[][SK_NAXES] = { /* pp, dp, cp, tp */
      {1, 1, 1, 1}, {2, 1, 1, 2}, {4, 1, 1, 2}, {1, 2, 2, 2}, {2, 2, 1, 2}, {2, 1, 4, 1}, {1, 1, 1, 4}};
  static const char *const pairs[][2] = { /* first and last stage; sharded, shared and tied ones; rows and columns */
      {"model.layers.0.mamba.in_proj.weight", "model.layers.3.feed_forward.down_proj.weight"},
      {"model.layers.2.self_attn.k_proj.weight", "model.final_layernorm.weight"},
      {"model.embed_tokens.weight", "model.layers.3.mamba.A_log"},
      {"model.layers.1.mamba.conv1d.bias", "model.layers.1.self_attn.o_proj.weight"}};
  sk_config c;
  tap_init(&argc, &argv);
  SK_CHECK(tap_size == 8, "8 ranks are needed");
  deck(&c);
  for (size_t i = 0; i < sizeof grids / sizeof *grids; i++)
    for (size_t k = 0; k < sizeof pairs / sizeof *pairs; k++)
      found(&c, grids[i], pairs[k][0], pairs[k][1], (i + k) % 2 ? INFINITY : NAN);
  sk_free(c.layer);
  return tap_done();
}
