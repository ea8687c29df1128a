/* hf_logits.c: a tool for tests/check_hf.py: the logits of a checkpoint.
 *
 *   hf_logits CHECKPOINT IDS OUT      IDS: text, "b T" and b*T ids;  OUT: float32 [b, T, vocabulary] */
#include "src/agree.h"
#include "src/checkpoint.h"
#include "src/device.h"
#include <stdio.h>
#include <stdlib.h>

static int32_t *read_ids(const char *path, int64_t *b, int64_t *T) {
  FILE *f = fopen(path, "r");
  long long rows, columns;
  SK_CHECK(f && fscanf(f, "%lld %lld", &rows, &columns) == 2 && rows > 0 && columns > 0, "%s: no ids", path);
  int32_t *ids = sk_calloc((size_t)(rows * columns), sizeof *ids);
  for (long long i = 0; i < rows * columns; i++) SK_CHECK(fscanf(f, "%d", &ids[i]) == 1, "%s: too short", path);
  fclose(f);
  *b = rows;
  *T = columns;
  return ids;
}

int main(int argc, char **argv) {
  sk_err e = {0};
  sk_ckpt_meta meta = {0};
  sk_config cfg = {0};
  sk_engine g;
  sk_grid one;
  int64_t b, T;
  SK_MPI(MPI_Init(&argc, &argv));
  SK_CHECK(argc == 4, "usage: hf_logits CHECKPOINT IDS OUT");
  int32_t *ids = read_ids(argv[2], &b, &T);
  sk_grid_create(&one, MPI_COMM_SELF, (const int[SK_NAXES]){1, 1, 1, 1});
  SK_CHECK(sk_ckpt_open(MPI_COMM_SELF, argv[1], &meta, NULL, &e) == SK_OK &&
           sk_config_from_resolved(meta.deck, argv[1], &cfg, &e) == SK_OK, "%s", e.msg);
  cfg.train.global_batch = cfg.train.micro_batch = b;
  cfg.train.dtype = SK_DTYPE_FP32;
  SK_CHECK(sk_engine_open(&g, &cfg, &sk_cpu_ops, sk_device_comm(&sk_cpu_ops), &one, true, b, T, T, &e) == SK_OK &&
           sk_checkpoint_load(MPI_COMM_SELF, &g, argv[1], true, &e) == SK_OK, "%s", e.msg);
  size_t n = (size_t)(b * T), V = (size_t)cfg.model.vocab_size;
  int32_t *label = sk_calloc(n, sizeof *label), *start = sk_calloc(n, sizeof *start);
  float *logits = sk_calloc(n * V, sizeof *logits);
  sk_engine_step(&g, ids, label, start, 1.0);
  sk_model_logits(&g.model, &g.ctx, logits, g.slot[0].final.u, b * T);
  g.ctx.op->sync(g.ctx.st);
  FILE *out = fopen(argv[3], "wb");
  SK_CHECK(out && fwrite(logits, sizeof *logits, n * V, out) == n * V && fclose(out) == 0, "%s", argv[3]);
  sk_engine_close(&g);
  sk_free(ids);
  sk_free(label);
  sk_free(start);
  sk_free(logits);
  sk_config_free(&cfg);
  sk_ckpt_meta_free(&meta);
  sk_grid_destroy(&one);
  MPI_Finalize();
  return 0;
}
