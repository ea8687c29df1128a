/* train_setup.c: everything before the first step: deck, grid, run folder, restart, memory, weights. */
#include "io/fsutil.h"
#include "io/tokenizer.h"
#include "src/checkpoint.h"
#include "src/device.h"
#include "src/hf_json.h"
#include "src/layout.h"
#include "src/placement.h"
#include "src/progress.h"
#include "src/train.h"
#include "src/transport.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Data sets open and fit the model, in every mode. */
static int open_data(MPI_Comm comm, sk_train *t, sk_err *e) {
  if (sk_data_open(comm, &t->cfg, true, &t->data, e) != SK_OK) return e->code;
  bool valid_too = t->cfg.data.n_valid > 0 || t->cfg.data.holdout > 0;
  if (valid_too && sk_data_open(comm, &t->cfg, false, &t->valid, e) != SK_OK) return e->code;
  const char *train = sk_data_tokenizer(t->data), *valid = t->valid ? sk_data_tokenizer(t->valid) : train;
  if (strcmp(train, valid) != 0 && strcmp(train, "unknown") != 0 && strcmp(valid, "unknown") != 0)
    sk_fail(e, SK_USAGE, "data.train and data.valid were made with different tokenizers (%s, %s): their ids do not mean the "
            "same", train, valid);
  return e->code;
}

static int check_init(MPI_Comm comm, const char *init, sk_err *e) {
  sk_ckpt_meta from = {0};
  if (init) sk_ckpt_open(comm, init, &from, NULL, e);
  sk_ckpt_meta_free(&from);
  return e->code;
}

/* What goes along with the weights: config.json as far as the deck names none, the tokenizer's files. */
static void inherit(sk_train *t, sk_ckpt_meta *from) {
  t->meta.hf_json = from->hf_json;
  from->hf_json = NULL;
  sk_ckpt_sides_move(&t->meta, from);
}

/* Rank 0: the tokenizer of the data goes along with the weights; it must be that of the weights, where they had one. */
static void adopt_tokenizer(sk_train *t, sk_err *e) {
  const char *name = sk_data_tokenizer(t->data);
  const sk_ckpt_side *have = sk_ckpt_side_find(&t->meta, "tokenizer.json");
  if (have) {
    char hash[SK_HASH_HEX];
    sk_hash_hex(have->data, have->size, hash);
    if (strcmp(name, "unknown") != 0 && strcmp(name, hash) != 0)
      sk_fail(e, SK_USAGE, "the weights come with a tokenizer.json (xxh3 %s), the data were made with another tokenizer (%s). "
              "Build the data with the tokenizer of the weights", hash, name);
    return;
  }
  size_t n;
  int64_t eos;
  char *json = sk_data_tokenizer_json(t->data, &n, &eos, e);
  sk_tokenizer *tok = NULL;
  if (json && sk_tokenizer_parse(json, n, "tokenizer.json in the data", NULL, &tok, e) == SK_OK) {
    size_t len;
    const char *token = sk_tokenizer_bytes_of(tok, eos, &len);
    json_t *config = json_pack("{s:s%, s:s}", "eos_token", token, len, "tokenizer_class", "PreTrainedTokenizerFast");
    char *text = json_dumps(config, JSON_INDENT(2));
    sk_ckpt_side_add(&t->meta, "tokenizer.json", json, n);
    if (text && !sk_ckpt_side_find(&t->meta, "tokenizer_config.json"))
      sk_ckpt_side_add(&t->meta, "tokenizer_config.json", text, strlen(text));
    free(text);
    json_decref(config);
  }
  sk_tokenizer_close(tok);
  sk_free(json);
}

static int report_only(MPI_Comm comm, sk_train *t, int ranks, const sk_ops *op, sk_err *e) {
  int n[SK_NAXES];
  if (sk_layout_grid(&t->cfg, ranks, n, e) != SK_OK || open_data(comm, t, e) != SK_OK ||
      check_init(comm, t->cfg.train.init, e) != SK_OK)
    return e->code;
  if (t->opts->dry_run && sk_layout_print(&t->cfg, op, ranks, e) != SK_OK) return e->code;
  sk_say("%s: the deck is good: %lld steps on %d rank%s, %s training tokens", t->opts->deck,
         (long long)t->cfg.train.steps, ranks, ranks == 1 ? "" : "s", sk_si((double)sk_data_tokens(t->data)));
  return SK_OK;
}

/* The checkpoint to continue from: its folder in path, "" for a fresh start. Collective. */
static int find_restart(sk_train *t, char *path, size_t cap, sk_err *e) {
  const char *how = t->opts->restart, *dir = sk_run_path(t->run);
  path[0] = 0;
  if (strcmp(how, "auto") == 0) return sk_ckpt_find(t->grid.world, dir, path, cap, e);
  if (strcmp(how, "none") != 0) {
    if ((size_t)snprintf(path, cap, "%s", how) >= cap) sk_fail(e, SK_USAGE, "--restart: path too long");
    return e->code;
  }
  sk_err found = {0};
  if (sk_ckpt_find(t->grid.world, dir, path, cap, &found) == SK_OK && !path[0]) return SK_OK;
  return sk_fail(e, SK_USAGE, "--restart none: %s has checkpoints and a fresh start would mix two runs.\n"
                 "Use --restart auto to continue, another run.dir, or move %s/checkpoints away.", dir, dir);
}

/* Random enough to tell runs apart; the same on all ranks. */
static void new_run_id(sk_train *t) {
  char id[sizeof t->meta.run_id] = "";
  uint64_t key = sk_hash_str((uint64_t)time(NULL) ^ (uint64_t)getpid() << 32, sk_host());
  snprintf(id, sizeof id, "%016llx", (unsigned long long)sk_rand(key, (uint64_t)(sk_now() * 1e6)));
  SK_MPI(MPI_Bcast(id, sizeof id, MPI_CHAR, 0, t->grid.world));
  memcpy(t->meta.run_id, id, sizeof id);
}

/* Checks a checkpoint against the deck; fills in t->meta for a continuation. *weights_only: it has no
 * optimizer state, so training starts at step 0 with its weights. */
static int check_restart(sk_train *t, const char *path, bool *weights_only, sk_err *e) {
  sk_ckpt_meta old = {0};
  bool has_optimizer = false;
  if (sk_ckpt_open(t->grid.world, path, &old, &has_optimizer, e) != SK_OK) return e->code;
  *weights_only = !has_optimizer;
  if (has_optimizer && sk_config_restart_diff(old.deck, t->cfg.resolved, e) == SK_OK) {
    memcpy(t->meta.run_id, old.run_id, sizeof old.run_id);
    t->meta.step = old.step;
    t->meta.tokens = old.tokens;
    t->meta.cursor = old.cursor;
    t->meta.skipped = old.skipped;
    t->meta.reruns = old.reruns;
    t->meta.rollbacks = old.rollbacks;
    t->meta.n_recent = old.n_recent;
    memcpy(t->meta.recent, old.recent, sizeof old.recent);
  }
  inherit(t, &old);
  sk_ckpt_meta_free(&old);
  return sk_agree(t->grid.world, e);
}

/* Collective. How neighbouring pipeline stages exchange messages, such as "ipc" or "ipc 6, nccl 2" (links, counted
 * from both ends); "" with one stage. */
static void describe_pipe(const sk_train *t, char *text, size_t cap) {
  const sk_engine *g = &t->engine;
  int mine[SK_NTRANSPORTS] = {0}, all[SK_NTRANSPORTS], kinds = 0;
  if (g->pp && g->ctx.op == sk_cuda) sk_transport_links(g->pp, mine);
  else if (g->pp) mine[SK_TRANSPORT_MPI] = 1;
  SK_MPI(MPI_Allreduce(mine, all, SK_NTRANSPORTS, MPI_INT, MPI_SUM, t->grid.world));
  for (int i = 0; i < SK_NTRANSPORTS; i++) kinds += all[i] > 0;
  text[0] = 0;
  for (int i = 0; i < SK_NTRANSPORTS; i++) {
    size_t at = strlen(text);
    if (all[i] && kinds == 1) snprintf(text, cap, "%s", sk_transport_name[i]);
    else if (all[i]) snprintf(text + at, cap - at, "%s%s %d", at ? ", " : "", sk_transport_name[i], all[i]);
  }
}

static void note_start(sk_train *t, const char *from) {
  int64_t *count = sk_calloc((size_t)t->grid.size, sizeof *count);
  int64_t mine = t->engine.ctx.reg->count;
  SK_MPI(MPI_Allgather(&mine, 1, MPI_INT64_T, count, 1, MPI_INT64_T, t->grid.world));
  sk_metric_begin(t->run);
  sk_metric_str(t->run, "event", "grid");
  sk_metric_int(t->run, "tp", t->grid.n[SK_TP]);
  sk_metric_int(t->run, "cp", t->grid.n[SK_CP]);
  sk_metric_int(t->run, "pp", t->grid.n[SK_PP]);
  sk_metric_int(t->run, "dp", t->grid.n[SK_DP]);
  sk_metric_ints(t->run, "parameters", count, t->grid.size);
  char pipe[80];
  describe_pipe(t, pipe, sizeof pipe);
  if (pipe[0]) sk_metric_str(t->run, "transport", pipe);
  if (pipe[0]) sk_say("Pipe    between pipeline stages by %s", pipe);
  sk_metric_str(t->run, "run_id", t->meta.run_id);
  sk_metric_end(t->run);
  sk_free(count);
  if (!from[0]) return;
  sk_metric_begin(t->run);
  sk_metric_str(t->run, "event", "restart");
  sk_metric_int(t->run, "step", t->meta.step);
  sk_metric_str(t->run, "checkpoint", from);
  sk_metric_end(t->run);
  sk_say("Restarted from %s after step %lld", from, (long long)t->meta.step);
}

static void header(const sk_train *t) {
  const sk_config *c = &t->cfg;
  const sk_engine *g = &t->engine;
  sk_say("Resolved deck (%s/deck.yaml)\n%s", sk_run_path(t->run), c->resolved);
  const int *n = t->grid.n;
  sk_say("Saker %s, %d rank%s: tp %d x cp %d x pp %d x dp %d", PACKAGE_VERSION, t->grid.size,
         t->grid.size == 1 ? "" : "s", n[SK_TP], n[SK_CP], n[SK_PP], n[SK_DP]);
  sk_say("Device  %s", g->ctx.op->describe(g->ctx.dev));
  if (c->train.dtype == SK_DTYPE_BF16 && g->ctx.act == SK_F32)
    sk_say("Note    train.dtype bf16 is computed in fp32 on the CPU");
  sk_err why = {0};
  if (c->run.device == SK_DEVICE_AUTO && sk_cuda && g->ctx.op != sk_cuda && sk_cuda->count(&why) == 0)
    sk_say("Note    run.device auto takes the CPU: %s", why.msg);
  if (t->grid.size > 1 && g->ctx.op == sk_cuda)
    sk_say("Comm    between GPUs by %s", sk_comm_nccl ? "NCCL" : "MPI through the host: built without NCCL");
  sk_say("Model   %s parameters, %lld layers of %s", sk_si((double)g->model.all.count),
         (long long)c->n_layers, c->pattern);
  sk_say("Data    %s tokens, %lld windows of %lld; %lld x %lld tokens per step, %.2f passes in all",
         sk_si((double)sk_data_tokens(t->data)), (long long)sk_data_windows(t->data),
         (long long)c->data.sequence, (long long)c->train.global_batch, (long long)c->data.sequence,
         (double)c->train.steps * (double)c->train.global_batch / (double)sk_data_windows(t->data));
  if (t->async)
    sk_say("Saving  every %lld steps while training goes on, from a copy of %s in rank 0's host memory",
           (long long)c->checkpoint.every, sk_bytes((double)sk_saver_bytes(t->saver)));
  else
    sk_say("Saving  every %lld steps; training waits%s", (long long)c->checkpoint.every,
           c->checkpoint.async ? ", because this MPI allows no threads (MPI_THREAD_SINGLE)" : "");
}

/* Weights: from the checkpoint, from train.init, or drawn. Collective. */
static int fill_weights(sk_train *t, const char *path, bool weights_only, sk_err *e) {
  const char *init = t->cfg.train.init;
  if (!path[0] && !init) {
    sk_engine_init(&t->engine);
    return SK_OK;
  }
  sk_ckpt_meta from = {0};
  if (!path[0] && sk_ckpt_open(t->grid.world, init, &from, NULL, e) != SK_OK) return e->code;
  if (!path[0]) inherit(t, &from);
  sk_ckpt_meta_free(&from);
  bool only = !path[0] || weights_only;
  if (only) sk_optim_reset(&t->engine.opt, &t->engine.ctx);
  return sk_checkpoint_load(t->grid.world, &t->engine, path[0] ? path : init, only, e);
}

/* Saving behind training needs threads beside the one that calls MPI, and memory for a copy. */
static int open_saver(sk_train *t, sk_err *e) {
  enum { GUESS = 500 << 20 }; /* bytes per second, until a save has been measured */
  int level;
  SK_MPI(MPI_Query_thread(&level));
  t->async = t->cfg.checkpoint.async && level >= MPI_THREAD_FUNNELED;
  t->save_seconds = 12.0 * (double)t->engine.model.all.count / GUESS;
  return t->async ? sk_train_saver(t, e) : SK_OK;
}

static int open_run(sk_train *t, const sk_ops *op, sk_err *e) {
  const sk_config *c = &t->cfg;
  char path[1024];
  bool weights_only = false;
  const int64_t T = c->data.sequence;
  if (sk_run_open(t->grid.world, c->run.dir, &t->run, e) != SK_OK) return e->code;
  sk_watch_start(&t->grid, c->run.dir, c->watch.step, c->watch.other, &t->timer, &t->watch);
  sk_ckpt_clean(t->grid.world, c->run.dir);
  if (find_restart(t, path, sizeof path, e) != SK_OK) return e->code;
  if (path[0] && check_restart(t, path, &weights_only, e) != SK_OK) return e->code;
  if (open_data(t->grid.world, t, e) != SK_OK) return e->code;
  if (sk_engine_open(&t->engine, c, op, sk_device_comm(op), &t->grid, true, c->train.micro_batch, T, T, e) != SK_OK)
    return e->code;
  if (fill_weights(t, path, weights_only, e) != SK_OK) return e->code;
  if (t->grid.rank == 0) adopt_tokenizer(t, e);
  if (sk_agree(t->grid.world, e) != SK_OK) return e->code;
  if (!t->meta.run_id[0]) new_run_id(t);
  t->saved_step = path[0] && !weights_only ? t->meta.step : -1;
  if (t->saved_step >= 0) snprintf(t->saved_path, sizeof t->saved_path, "%s", path);
  t->meta.deck = sk_strdup(c->resolved);
  char *base = t->meta.hf_json;
  t->meta.hf_json = sk_hf_json(c, c->hf_json ? c->hf_json : base);
  sk_free(base);
  for (int a = 0; a < SK_NAXES; a++) t->meta.grid[a] = t->grid.n[a];
  t->local = c->train.global_batch / t->grid.n[SK_DP];
  t->ids = sk_calloc((size_t)(t->local * T), sizeof *t->ids);
  t->label = sk_calloc((size_t)(t->local * T), sizeof *t->label);
  t->start = sk_calloc((size_t)(t->local * T), sizeof *t->start);
  t->per_rank = sk_calloc((size_t)t->grid.size * SK_TRAIN_EXCHANGED, sizeof *t->per_rank);
  t->busy = sk_calloc((size_t)t->grid.size, sizeof *t->busy);
  t->straggler = -1;
  if (open_saver(t, e) != SK_OK) return e->code;
  sk_run_write(t->run, "deck.yaml", c->resolved, e);
  if (sk_agree(t->grid.world, e) != SK_OK) return e->code;
  if (c->log.tensorboard && sk_run_tensorboard(t->run, t->grid.world, e) != SK_OK) return e->code;
  header(t);
  sk_placement_report(&t->grid, op == sk_cuda ? t->grid.node_rank : -1);
  note_start(t, path);
  return SK_OK;
}

int sk_train_open(MPI_Comm comm, const sk_train_opts *opts, sk_train *t, bool *done, sk_err *e) {
  int ranks, n[SK_NAXES];
  t->opts = opts;
  t->t0 = sk_now();
  *done = opts->check || opts->dry_run;
  SK_MPI(MPI_Comm_size(comm, &ranks));
  if (*done && opts->ranks > 0) ranks = opts->ranks;
  if (sk_config_read(comm, opts->deck, opts->n_set, opts->set, &t->cfg, e) != SK_OK) return e->code;
  if (sk_timeline_parse(t->cfg.log.trace, &t->timeline, e) != SK_OK) return e->code;
  const sk_ops *op = sk_device_choose(comm, t->cfg.run.device, false, *done, e);
  if (!op) return e->code;
  if (*done) return report_only(comm, t, ranks, op, e);
  if (sk_layout_grid(&t->cfg, ranks, n, e) != SK_OK) return e->code;
  sk_grid_create(&t->grid, comm, n);
  return open_run(t, op, e);
}

void sk_train_close(sk_train *t) {
  sk_watch_stop(t->watch);
  sk_saver_close(t->saver);
  sk_stop_close(&t->stop);
  sk_data_close(t->data);
  sk_data_close(t->valid);
  sk_engine_close(&t->engine);
  sk_run_close(t->run);
  sk_ckpt_meta_free(&t->meta);
  sk_free(t->ids);
  sk_free(t->label);
  sk_free(t->start);
  sk_free(t->per_rank);
  sk_free(t->busy);
  sk_free(t->timeline.span);
  sk_config_free(&t->cfg);
  sk_grid_destroy(&t->grid);
}
