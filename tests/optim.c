/* optim.c: learning-rate schedules against their formulas; one whole update against AdamW in double, with weight
 * decay where it belongs and optimizer.groups. */
#include "tests/tap.h"
#include "src/lr.h"
#include "src/optim.h"
#include "tests/small_model.h"
#include <fnmatch.h>

/* ---- schedules ---- */

static sk_config deck(int kind, double min_lr, int64_t warmup) {
  sk_config c = {.train.steps = 100};
  c.optimizer.lr = 0.02;
  c.optimizer.schedule.kind = kind;
  c.optimizer.schedule.min_lr = min_lr;
  c.optimizer.schedule.warmup = warmup;
  c.optimizer.schedule.decay = 30;
  c.optimizer.schedule.power = 0.25;
  return c;
}

static void is(const sk_config *c, int64_t t, double want, const char *what) {
  tap_close(sk_lr(c, t), want, 1e-12, "%s, step %d", what, (int)t);
}

static void schedules(void) {
  sk_config c = deck(SK_LR_CONSTANT, 0, 0);
  is(&c, 1, 0.02, "constant");
  is(&c, 100, 0.02, "constant");
  for (int kind = SK_LR_CONSTANT; kind <= SK_LR_POWER; kind++) {
    c = deck(kind, 0.001, 10);
    tap_ok(fabs(sk_lr(&c, 1) - 0.002) < 1e-15 && fabs(sk_lr(&c, 5) - 0.01) < 1e-15 && sk_lr(&c, 10) == 0.02,
           "schedule %d: linear warmup from 0", kind);
    double step = 0;
    for (int t = 10; t < 130; t++) step = fmax(step, fabs(sk_lr(&c, t + 1) - sk_lr(&c, t)));
    tap_ok(step < 0.0025 && sk_lr(&c, 130) >= 0.001, "schedule %d: no jumps after it, never below min_lr", kind);
  }
  c = deck(SK_LR_COSINE, 0.001, 10);
  is(&c, 55, 0.0105, "cosine, half way");
  is(&c, 100, 0.001, "cosine, end");
  is(&c, 120, 0.001, "cosine, beyond");
  c = deck(SK_LR_WSD, 0.002, 10);
  is(&c, 70, 0.02, "wsd, stable");
  is(&c, 85, sqrt(0.02 * 0.002), "wsd, half of the fall");
  is(&c, 100, 0.002, "wsd, end");
  c = deck(SK_LR_WSD, 0, 10);
  is(&c, 85, 0.01, "wsd to 0, half of the fall");
  is(&c, 100, 0, "wsd to 0, end");
  c = deck(SK_LR_POWER, 0.001, 10);
  is(&c, 90, 0.02 * pow(10.0 / 90, 0.25), "power");
  c = deck(SK_LR_POWER, 0.015, 10);
  is(&c, 90, 0.015, "power, at min_lr");
}

/* ---- update ---- */

static sk_param_group group[] = {{.match = (char[]){"*"}, .lr_mult = 0.5, .wd_mult = 1},
                                 {.match = (char[]){"*.mamba.A_log"}, .lr_mult = 0, .wd_mult = 1},
                                 {.match = (char[]){"*.feed_forward.*"}, .lr_mult = 2, .wd_mult = 0.25}};

/* Matrices and the conv's weight only. */
static bool decays(const char *name) {
  return strstr(name, "proj.weight") || strstr(name, "conv1d.weight") || strstr(name, "embed_tokens") ||
         strstr(name, "lm_head");
}

static double reference(const sk_config *c, const char *name, int t, double lr, double scale, const double *g,
                        double p) {
  double m = 0, v = 0, b1 = c->optimizer.betas[0], b2 = c->optimizer.betas[1];
  double lr_mult = 1, wd = decays(name) ? c->optimizer.weight_decay : 0, wd_mult = 1;
  for (int k = 0; k < c->optimizer.n_groups; k++)
    if (fnmatch(c->optimizer.groups[k].match, name, 0) == 0)
      lr_mult = c->optimizer.groups[k].lr_mult, wd_mult = c->optimizer.groups[k].wd_mult;
  for (int s = 1; s <= t; s++) {
    double x = scale * g[s - 1];
    m = b1 * m + (1 - b1) * x;
    v = b2 * v + (1 - b2) * x * x;
    double step = m / (1 - pow(b1, s)) / (sqrt(v / (1 - pow(b2, s))) + c->optimizer.eps);
    p -= lr * lr_mult * (step + wd * wd_mult * p);
  }
  return p;
}

enum { STEPS = 3 };

static double gradient(int64_t i, int t) { return sk_normal(11 + (uint64_t)t, (uint64_t)i); }

static void update(int n_groups) {
  sk_config c;
  sk_engine g;
  small_config(&c, 2, (const char *const[]){"P-", "M"});
  c.optimizer.betas[0] = 0.9, c.optimizer.betas[1] = 0.95;
  c.optimizer.eps = 1e-8, c.optimizer.weight_decay = 0.3;
  c.optimizer.groups = group, c.optimizer.n_groups = n_groups;
  small_engine(&g, &c, 1, 16);
  const sk_registry *r = g.ctx.reg;
  const float *w = (const float *)(const void *)g.ctx.weights;
  float *start = sk_malloc((size_t)r->total * sizeof *start);
  memcpy(start, w, (size_t)r->total * sizeof *w);
  for (int t = 1; t <= STEPS; t++) {
    for (int64_t i = 0; i < r->total; i++) g.ctx.grads[i] = (float)gradient(i, t);
    sk_optim_update(&g.opt, &g.ctx, &c, t, 0.01, 0.7);
  }
  double worst = 0;
  const char *name = "";
  for (int k = 0; k < r->n; k++)
    for (int64_t i = r->p[k].offset; i < r->p[k].offset + r->p[k].count; i++) {
      double x[STEPS];
      for (int t = 1; t <= STEPS; t++) x[t - 1] = (float)gradient(i, t);
      double err = fabs(w[i] - reference(&c, r->p[k].name, STEPS, 0.01, 0.7, x, start[i]));
      if (err > worst) worst = err, name = r->p[k].name;
    }
  tap_ok(worst < 1e-6, "%d groups: %d steps as AdamW in double, worst %.3g (%s)", n_groups, STEPS, worst, name);
  sk_engine_close(&g);
  sk_free(start);
  sk_free(c.layer);
}

static void no_match(void) {
  sk_param_group typo = {.match = (char[]){"*.mamba.dt_bais"}, .lr_mult = 0, .wd_mult = 1};
  sk_config c;
  sk_engine g;
  sk_grid alone;
  sk_err e = {0};
  sk_grid_create(&alone, MPI_COMM_SELF, (const int[SK_NAXES]){1, 1, 1, 1});
  small_config(&c, 1, (const char *const[]){"M"});
  c.optimizer.groups = &typo, c.optimizer.n_groups = 1;
  c.parallel.virtual_stages = 1;
  c.train.global_batch = c.train.micro_batch = 1;
  sk_engine_open(&g, &c, &sk_cpu_ops, &sk_comm_mpi, &alone, true, 1, 16, 16, &e);
  tap_ok(e.code == SK_USAGE && strstr(e.msg, "*.mamba.dt_bais"), "a group that matches no parameter is refused: %s",
         e.msg);
  sk_engine_close(&g);
  sk_grid_destroy(&alone);
  sk_free(c.layer);
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  schedules();
  update(0);
  update(3);
  no_match();
  return tap_done();
}
