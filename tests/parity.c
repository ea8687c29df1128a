/* parity.c: a run on any process grid is the run of one rank. One launch of 8 ranks does many
 * cases, several at a time on sub-communicators, on random tokens in memory (parity.h). Each is
 * compared with the same model on one rank:
 *  - every step's loss within 5e-6 and gradient norm (before clipping) within 2e-5, relative;
 *  - every parameter's gradient within 2e-5, max|a-b| / max|b|;
 *  - all ranks' copies of the weights equal after the steps.
 * The limits are the design's (section 9): fp32 sums in another order. And with every other case of
 * the same model, tp, cp, dp and micro-batch it is compared bit by bit (section 6): pp, schedule
 * and recomputation change no bit, and neither does doing it again.
 *
 * By default a part of the cases, each kind at least once; SAKER_LONG=1 (`make check-long`): all.
 */
#include "tests/parity.h"
#include "tests/on_grid.h"
#include <stdlib.h>
#include <string.h>

static const double max_loss = 5e-6, max_norm = 2e-5, max_grad = 2e-5;

/* What rank 0 of a case's grid finds; sent to all. */
typedef struct verdict {
  double loss, norm, grad;                   /* errors */
  int worst, replica;                        /* parameters; replica: -1 is fine */
  double figure[2 * (1 + PARITY_STEPS) + 1]; /* losses, norms, evaluation: compared as bits */
  uint64_t grad_bits[PARITY_PARAMS], weight_bits[PARITY_PARAMS], moment_bits[PARITY_PARAMS];
} verdict;

static parity_model *models;
static int n_models, n_cases, n_twins; /* n_twins: cases compared bit by bit */
static parity_case *cases;
static parity_result *reference; /* [n_models], on all ranks; those not needed are empty */
static verdict *alone, *seen; /* of the references [n_models] and the cases [n_cases], likewise */
static bool *done;

/* ---- one run ---- */

static double relative(double got, double want) {
  double err = fabs(got - want) / fabs(want);
  return isnan(err) ? INFINITY : err;
}

static double largest(double a, double b) {
  return a > b ? a : b;
}

static double array_error(const float *a, const float *b, int64_t n) {
  double diff = 0, scale = 0;
  for (int64_t i = 0; i < n; i++) {
    double d = fabs((double)a[i] - (double)b[i]);
    diff = largest(isnan(d) ? INFINITY : d, diff);
    scale = largest(fabs((double)b[i]), scale);
  }
  return diff / scale;
}

/* -0 counts as 0: collecting adds zeros. */
static uint64_t digest(const float *x, int64_t n) {
  uint64_t h = 0;
  for (int64_t i = 0; i < n; i++) {
    float value = x[i] + 0.0f;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    h = sk_rand(h, bits);
  }
  return h;
}

static void judge(verdict *v, const parity_result *r, const parity_result *ref) {
  *v = (verdict){.replica = r->replica, .loss = relative(r->eval, ref->eval)};
  for (int k = 0; k <= PARITY_STEPS; k++) {
    v->loss = largest(relative(r->loss[k], ref->loss[k]), v->loss);
    v->norm = largest(relative(r->norm[k], ref->norm[k]), v->norm);
    v->figure[2 * k] = r->loss[k];
    v->figure[2 * k + 1] = r->norm[k];
  }
  v->figure[2 * (1 + PARITY_STEPS)] = r->eval;
  SK_CHECK(r->n_params == ref->n_params, "%d and %d parameters", r->n_params, ref->n_params);
  for (int i = 0; i < r->n_params; i++) {
    double err = array_error(r->grad + r->offset[i], ref->grad + r->offset[i], r->count[i]);
    if (err > v->grad) v->grad = err, v->worst = i;
    v->grad_bits[i] = digest(r->grad + r->offset[i], r->count[i]);
    v->weight_bits[i] = digest(r->weight + r->offset[i], r->count[i]);
    v->moment_bits[i] = digest(r->moment + r->offset[i], r->count[i]);
  }
}

/* ---- one rank ---- */

static void share_reference(parity_result *r, verdict *v, int root) {
  if (tap_rank == root) judge(v, r, r);
  SK_MPI(MPI_Bcast(v, sizeof *v, MPI_BYTE, root, MPI_COMM_WORLD));
  SK_MPI(MPI_Bcast(r, sizeof *r, MPI_BYTE, root, MPI_COMM_WORLD));
  size_t total = (size_t)r->offset[r->n_params];
  if (tap_rank != root) {
    r->grad = sk_malloc(total * sizeof *r->grad);
    r->weight = r->moment = NULL;
  }
  SK_MPI(MPI_Bcast(r->grad, (int)total, MPI_FLOAT, root, MPI_COMM_WORLD));
}

static double square(const float *x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
  return sum;
}

/* The reference must be worth comparing with: no parameter without a gradient, a norm that is that
 * of its gradients, and learning. */
static void check_reference(const char *name, const parity_result *r) {
  double sum = 0;
  const char *still = NULL;
  for (int i = 0; i < r->n_params; i++) {
    double mine = square(r->grad + r->offset[i], r->count[i]);
    if (!(mine > 0)) still = r->name[i];
    sum += mine;
  }
  double err = fabs(r->norm[0] / sqrt(sum) - 1);
  bool learns = r->loss[PARITY_STEPS] != r->loss[0] && isfinite(r->eval);
  tap_ok(!still && err <= 1e-9 && learns,
         "one rank, %s: %d gradients%s%s; norm %.6g, its error %.2g", name, r->n_params,
         still ? ", but none of " : "", still ? still : "", r->norm[0], err);
}

static void make_references(void) {
  bool *wanted = sk_calloc((size_t)n_models, sizeof *wanted);
  int n = 0;
  reference = sk_calloc((size_t)n_models, sizeof *reference);
  alone = sk_calloc((size_t)n_models, sizeof *alone);
  for (int i = 0; i < n_cases; i++) wanted[cases[i].model] = true;
  for (int i = 0; i < n_models; i++) {
    const parity_case one = {.model = i, .n = {1, 1, 1, 1}, .virtual_stages = 1, .micro_batch = 1};
    if (wanted[i] && n++ % tap_size == tap_rank)
      parity_run(MPI_COMM_SELF, &models[i], &one, &reference[i]);
  }
  n = 0;
  for (int i = 0; i < n_models; i++) {
    if (!wanted[i]) continue;
    share_reference(&reference[i], &alone[i], n++ % tap_size);
    check_reference(models[i].name, &reference[i]);
  }
  sk_free(wanted);
}

/* ---- waves: as many cases side by side as the ranks allow ---- */

static int case_ranks(const parity_case *c) {
  return c->n[SK_PP] * c->n[SK_DP] * c->n[SK_CP] * c->n[SK_TP];
}

/* The next cases: the first that is left, and those behind it that fit beside it. root[]: their
 * first ranks. */
static int fill_wave(int *wave, int *root) {
  int n = 0, used = 0, first = 0;
  while (first < n_cases && done[first]) first++;
  for (int i = first; i < n_cases && i < first + 64 && used < tap_size; i++) {
    if (done[i] || used + case_ranks(&cases[i]) > tap_size) continue;
    done[i] = true;
    wave[n] = i;
    root[n++] = used;
    used += case_ranks(&cases[i]);
  }
  return n;
}

/* Whose bits case i must have: the first of the n cases reported so far (order[]) that differs in
 * pp, schedule and recomputation at most; one rank where there is nothing else; NULL: nobody's. */
static const verdict *twin_of(int i, const int *order, int n) {
  const parity_case *c = &cases[i];
  if (c->n[SK_TP] * c->n[SK_CP] * c->n[SK_DP] * c->micro_batch == 1) return &alone[c->model];
  for (int k = 0; k < n; k++) {
    const parity_case *o = &cases[order[k]];
    if (o->model == c->model && o->n[SK_TP] == c->n[SK_TP] && o->n[SK_CP] == c->n[SK_CP] &&
        o->n[SK_DP] == c->n[SK_DP] && o->micro_batch == c->micro_batch)
      return &seen[order[k]];
  }
  return NULL;
}

/* What differs first in bits: the words in what[], "" for nothing. */
static void find_other_bits(const verdict *a, const verdict *b, const parity_result *ref,
                            char what[160]) {
  what[0] = 0;
  for (int i = 0; i < ref->n_params && !what[0]; i++) {
    const char *kind = a->grad_bits[i] != b->grad_bits[i]       ? "gradient"
                       : a->weight_bits[i] != b->weight_bits[i] ? "last weights"
                       : a->moment_bits[i] != b->moment_bits[i] ? "last first moment"
                                                                : NULL;
    if (kind) snprintf(what, 160, "%s of %s", kind, ref->name[i]);
  }
  for (int k = 0; k <= 2 * (1 + PARITY_STEPS) && !what[0]; k++)
    if (memcmp(&a->figure[k], &b->figure[k], sizeof a->figure[k]) != 0)
      snprintf(what, 160, "%s of step %d", k % 2 ? "grad_norm" : "loss", k / 2);
}

static const char *title(const parity_case *c) {
  static const char *const schedule[] = {"1f1b", "interleaved", "zb-h1"};
  static const char *const recompute[] = {"", ", selective recomputation", ", full recomputation"};
  static char text[400];
  const parity_model *m = &models[c->model];
  int n = snprintf(text, sizeof text, "%s: tp %d cp %d pp %d dp %d, %s", m->name, c->n[SK_TP],
                   c->n[SK_CP], c->n[SK_PP], c->n[SK_DP], schedule[c->schedule]);
  if (c->virtual_stages > 1)
    n += snprintf(text + n, sizeof text - (size_t)n, " x %d", c->virtual_stages);
  n += snprintf(text + n, sizeof text - (size_t)n, ", %lld x %lld sequences%s",
                (long long)(m->cfg.train.global_batch / c->n[SK_DP] / c->micro_batch),
                (long long)c->micro_batch, recompute[c->recompute]);
  if (c->why[0]) snprintf(text + n, sizeof text - (size_t)n, " (%s)", c->why);
  return text;
}

static void report(int i, const verdict *twin) {
  const verdict *v = &seen[i];
  const parity_result *ref = &reference[cases[i].model];
  bool near = v->loss <= max_loss && v->norm <= max_norm && v->grad <= max_grad;
  char other[160] = "", bits[200] = "", copies[128] = "";
  if (twin) {
    n_twins++;
    find_other_bits(v, twin, ref, other);
    snprintf(bits, sizeof bits, "%s%s", other[0] ? "; other bits: " : "; same bits", other);
  }
  if (v->replica >= 0)
    snprintf(copies, sizeof copies, "; copies differ: %s", ref->name[v->replica]);
  tap_ok(near && !other[0] && v->replica < 0, "%s: loss %.1e norm %.1e gradient %.1e %s%s%s",
         title(&cases[i]), v->loss, v->norm, v->grad, ref->name[v->worst], bits, copies);
}

static void run_wave(const int *wave, const int *root, int n) {
  int mine = -1;
  for (int k = 0; k < n; k++)
    if (tap_rank >= root[k] && tap_rank < root[k] + case_ranks(&cases[wave[k]])) mine = k;
  MPI_Comm comm;
  SK_MPI(MPI_Comm_split(MPI_COMM_WORLD, mine < 0 ? MPI_UNDEFINED : mine, tap_rank, &comm));
  if (mine >= 0) {
    parity_result r;
    const parity_case *c = &cases[wave[mine]];
    parity_run(comm, &models[c->model], c, &r);
    if (tap_rank == root[mine]) judge(&seen[wave[mine]], &r, &reference[c->model]);
    parity_result_free(&r);
    SK_MPI(MPI_Comm_free(&comm));
  }
  meet_patiently();
  for (int k = 0; k < n; k++)
    SK_MPI(MPI_Bcast(&seen[wave[k]], sizeof *seen, MPI_BYTE, root[k], MPI_COMM_WORLD));
}

static void run_cases(void) {
  int *order = sk_calloc((size_t)n_cases, sizeof *order), n_order = 0, n, wave[64], root[64];
  while ((n = fill_wave(wave, root)) > 0) {
    run_wave(wave, root, n);
    for (int k = 0; k < n; k++) {
      report(wave[k], twin_of(wave[k], order, n_order));
      order[n_order++] = wave[k];
    }
  }
  sk_free(order);
}

/* ---- summary ---- */

static bool same_grid(const parity_case *a, const parity_case *b) {
  return memcmp(a->n, b->n, sizeof a->n) == 0;
}

/* Different grids of one model, or of all (-1). */
static int count_grids(int model) {
  int n = 0;
  for (int i = 0; i < n_cases; i++) {
    bool again = model >= 0 && cases[i].model != model;
    for (int k = 0; k < i && !again; k++)
      again = same_grid(&cases[i], &cases[k]) && (model < 0 || cases[k].model == model);
    n += !again;
  }
  return n;
}

/* The models for many grids were on many: at least 8 with all, and all of them for the last two. */
static void check_coverage(bool all) {
  int fewest = PARITY_ALL_GRIDS, last[2] = {0};
  for (int i = 0; i < PARITY_WIDE; i++) {
    int n = count_grids(i);
    if (n < fewest) fewest = n;
    if (i >= PARITY_WIDE - 2) last[i - PARITY_WIDE + 2] = n;
  }
  tap_ok(last[0] == PARITY_ALL_GRIDS && last[1] == PARITY_ALL_GRIDS && fewest >= (all ? 8 : 3),
         "%d and %d grids of %s and %s, at least %d of every pattern and option", last[0], last[1],
         models[PARITY_WIDE - 2].name, models[PARITY_WIDE - 1].name, fewest);
}

static void summary(double seconds) {
  verdict worst = {0};
  int used = 0;
  for (int i = 0; i < n_cases; i++) {
    worst.loss = largest(seen[i].loss, worst.loss);
    worst.norm = largest(seen[i].norm, worst.norm);
    worst.grad = largest(seen[i].grad, worst.grad);
  }
  for (int i = 0; i < n_models; i++) used += count_grids(i) > 0;
  tap_diag("%d cases: %d models on %d grids; %d compared bit by bit; %.0f s", n_cases, used,
           count_grids(-1), n_twins, seconds);
  tap_diag("worst errors: loss %.2e of %.0e, norm %.2e of %.0e, gradient %.2e of %.0e", worst.loss,
           max_loss, worst.norm, max_norm, worst.grad, max_grad);
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  const char *set = getenv("SAKER_LONG");
  const bool all = set && strcmp(set, "1") == 0;
  double start = sk_now();
  models = parity_models(&n_models);
  cases = parity_cases(all, models, n_models, &n_cases);
  seen = sk_calloc((size_t)n_cases, sizeof *seen);
  done = sk_calloc((size_t)n_cases, sizeof *done);
  make_references();
  tap_diag("references: %.1f s", sk_now() - start);
  run_cases();
  check_coverage(all);
  summary(sk_now() - start);
  for (int i = 0; i < n_models; i++) parity_result_free(&reference[i]);
  parity_models_free(models, n_models);
  sk_free(reference);
  sk_free(cases);
  sk_free(alone);
  sk_free(seen);
  sk_free(done);
  return tap_done();
}
