#include "src/eval.h"
#include "src/checkpoint.h"
#include "src/device.h"
#include "src/layout.h"
#include "src/train.h"
#include <getopt.h>
#include <math.h>

/* One rank's error becomes that of all ranks that work on the same sequences (all of the same dp coordinate),
 * before they wait for each other in the layers. */
static int agree_here(const sk_grid *g, sk_err *e) {
  sk_agree(g->model, e);
  return sk_agree(g->line[SK_CP], e);
}

/* Sums the loss over the windows of this rank's copy of the model; returns the counted tokens. Loss and count are
 * of one rank in each copy and cp rank, 0 on the others. */
static int64_t sum_loss(sk_engine *engine, sk_data *valid, double *sum, sk_err *e) {
  const int64_t T = engine->T, b = engine->b;
  const sk_grid *g = engine->grid;
  int64_t n, counted = 0, first = sk_block(sk_data_windows(valid), g->n[SK_DP], g->at[SK_DP], &n);
  bool last = g->at[SK_PP] == g->n[SK_PP] - 1 && g->at[SK_TP] == 0;
  int32_t *ids = sk_calloc((size_t)(b * T) * 3, sizeof *ids), *label = ids + b * T, *start = label + b * T;
  for (int64_t k = 0; k < n && !e->code; k += b) {
    int64_t m = n - k < b ? n - k : b;
    for (int64_t i = 0; i < m && !e->code; i++)
      sk_data_sample(valid, first + k + i, ids + i * T, label + i * T, start + i * T, e);
    if (agree_here(g, e) != SK_OK) break;
    for (int64_t i = 0; i < m * T; i++) counted += label[i] >= 0;
    sk_engine_eval(engine, m, ids, label, start);
  }
  *sum = sk_engine_take_loss(engine);
  if (!last) *sum = 0;
  sk_free(ids);
  return last && g->at[SK_CP] == 0 ? counted : 0;
}

int sk_eval_loss(sk_engine *g, sk_data *valid, double *loss, int64_t *tokens, sk_err *e) {
  double sum = 0;
  int64_t counted = sum_loss(g, valid, &sum, e);
  if (sk_agree(g->grid->world, e) != SK_OK) return e->code;
  sum = sk_sum_ranks(g->grid->world, sum);
  *tokens = (int64_t)sk_sum_ranks(g->grid->world, (double)counted);
  *loss = sum / fmax((double)*tokens, 1);
  return SK_OK;
}

/* ---- the verb ---- */

typedef struct options {
  const char *deck, *from;
  char **set;
  int n_set;
} options;

static int parse(int argc, char **argv, options *o, sk_err *e) {
  enum { O_SET = 256, O_FROM };
  static const struct option opts[] = {{"input", 1, 0, 'i'}, {"set", 1, 0, O_SET}, {"from", 1, 0, O_FROM}, {0}};
  int code;
  while (!e->code && (code = getopt_long(argc, argv, ":i:", opts, NULL)) != -1) {
    if (code == 'i') o->deck = optarg;
    else if (code == O_SET) o->set[o->n_set++] = optarg;
    else if (code == O_FROM) o->from = optarg;
    else
      sk_fail(e, SK_USAGE, "eval: option '%s' %s\nTry: saker help eval", argv[optind - 1],
              code == ':' ? "needs a value" : "is unknown");
  }
  if (!e->code && optind < argc) sk_fail(e, SK_USAGE, "eval: unexpected '%s'\nTry: saker help eval", argv[optind]);
  if (!e->code && !o->deck) sk_fail(e, SK_USAGE, "eval: no deck: give -i DECK\nTry: saker help eval");
  if (!e->code && !o->from)
    sk_fail(e, SK_USAGE, "eval: no checkpoint: give --from CHECKPOINT_DIR\nTry: saker help eval");
  return e->code;
}

/* The deck, and that the checkpoint has its model. */
static int check(MPI_Comm comm, const options *o, sk_config *cfg, sk_ckpt_meta *meta, sk_err *e) {
  if (sk_config_read(comm, o->deck, o->n_set, o->set, cfg, e) != SK_OK) return e->code;
  if (cfg->data.n_valid == 0)
    return sk_fail(e, SK_USAGE, "%s: data.valid: there are no validation sets; name some, or give --set "
                   "'data.valid=[{path: FILE.h5}]'", o->deck);
  if (sk_ckpt_open(comm, o->from, meta, NULL, e) == SK_OK) sk_config_model_diff(meta->deck, cfg->resolved, e);
  return sk_agree(comm, e);
}

static int evaluate(const options *o, const sk_config *cfg, const sk_grid *grid, const sk_ckpt_meta *meta, sk_err *e) {
  sk_data *valid = NULL;
  sk_engine g = {0};
  int64_t T = cfg->data.sequence, tokens = 0;
  double loss = 0, begin = sk_now();
  const sk_ops *op = sk_device_choose(grid->world, cfg->run.device, false, false, e);
  if (!op || sk_data_open(grid->world, cfg, false, &valid, e) != SK_OK) return e->code;
  if (sk_engine_open(&g, cfg, op, sk_device_comm(op), grid, true, cfg->train.micro_batch, T, T, e) == SK_OK) {
    sk_optim_reset(&g.opt, &g.ctx);
    if (sk_checkpoint_load(grid->world, &g, o->from, true, e) == SK_OK &&
        sk_eval_loss(&g, valid, &loss, &tokens, e) == SK_OK)
      sk_say("%s, step %lld: valid loss %.5f, perplexity %.3f over %lld tokens in %lld windows of %lld, %.1f s", o->from,
             (long long)meta->step, loss, exp(loss), (long long)tokens, (long long)sk_data_windows(valid), (long long)T,
             sk_now() - begin);
    sk_engine_close(&g);
  }
  sk_data_close(valid);
  return e->code;
}

int sk_eval_run(MPI_Comm comm, int argc, char **argv, sk_err *e) {
  options o = {.set = sk_calloc((size_t)argc, sizeof *o.set)};
  sk_config cfg = {0};
  sk_ckpt_meta meta = {0};
  sk_grid grid = {0};
  int ranks, n[SK_NAXES];
  SK_MPI(MPI_Comm_size(comm, &ranks));
  if (parse(argc, argv, &o, e) == SK_OK && check(comm, &o, &cfg, &meta, e) == SK_OK &&
      sk_layout_grid(&cfg, ranks, n, e) == SK_OK) {
    sk_grid_create(&grid, comm, n);
    evaluate(&o, &cfg, &grid, &meta, e);
    sk_grid_destroy(&grid);
  }
  sk_ckpt_meta_free(&meta);
  sk_config_free(&cfg);
  sk_free(o.set);
  return e->code;
}
