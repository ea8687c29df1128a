/* data.c: the sampler: a shuffled permutation of (seed, sample), equal on every rank, with documents
 * and blends. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/tap.h"
#include "io/tokens.h"
#include "src/data.h"
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { T = 16 };

static char dir[256];

static void write_file(const char *name, const char *text, int copies) {
  char *path = sk_strf("%s/%s", dir, name);
  if (tap_rank == 0) {
    FILE *f = fopen(path, "w");
    SK_CHECK(f, "cannot write %s", path);
    for (int i = 0; i < copies; i++) fputs(text, f);
    fclose(f);
  }
  sk_free(path);
  MPI_Barrier(MPI_COMM_WORLD);
}

static char *build(const char *name, int n, const char *const *text) {
  char *out = sk_strf("%s/%s", dir, name), *in[8];
  sk_err e = {0};
  for (int i = 0; i < n; i++) in[i] = sk_strf("%s/%s", dir, text[i]);
  SK_CHECK(sk_tokens_build(MPI_COMM_WORLD, "bytes", NULL, out, n, in, &e) == SK_OK, "%s", e.msg);
  for (int i = 0; i < n; i++) sk_free(in[i]);
  return out;
}

static void permutation(void) {
  bool all = true, moved = false;
  for (int64_t n = 1; n <= 300; n = n < 20 ? n + 1 : n * 2 + 1) {
    char *seen = sk_calloc((size_t)n, 1);
    for (int64_t i = 0; i < n; i++) {
      int64_t x = sk_permute(99, n, i);
      all = all && x >= 0 && x < n && !seen[x];
      if (x >= 0 && x < n) seen[x] = 1;
      moved = moved || x != i;
    }
    sk_free(seen);
  }
  tap_ok(all && moved, "sk_permute is a permutation for every size");
  int same = 0;
  for (int64_t i = 0; i < 1000; i++) same += sk_permute(1, 1000, i) == sk_permute(2, 1000, i);
  tap_ok(same < 10, "another key, another order (%d of 1000 alike)", same);
}

static void config(sk_config *c, sk_data_entry *entry, int n) {
  *c = (sk_config){.model.vocab_size = 257};
  c->run.seed = 3;
  c->data.train = c->data.valid = entry;
  c->data.n_train = c->data.n_valid = n;
  c->data.sequence = T;
}

static void epochs_and_blend(const char *a, const char *b) {
  sk_data_entry entry[2] = {{(char *)(uintptr_t)a, 0.75}, {(char *)(uintptr_t)b, 0.25}};
  sk_config c;
  sk_data *d = NULL;
  sk_err e = {0};
  config(&c, entry, 2);
  tap_ok(sk_data_open(MPI_COMM_WORLD, &c, true, &d, &e) == SK_OK, "blend opens %s", e.msg);
  int count[2] = {0}, set;
  int64_t w, drift = 0;
  for (int64_t s = 0; s < 4000; s++) {
    sk_data_locate(d, s, &set, &w);
    count[set]++;
    int64_t off = llabs((long long)(4 * count[1] - (s + 1)));
    if (off > drift) drift = off;
  }
  tap_ok(count[0] == 3000 && count[1] == 1000 && drift <= 4, "3:1 blend: %d and %d of 4000, even at all times",
         count[0], count[1]);
  sk_data_close(d);
  config(&c, entry, 1);
  SK_CHECK(sk_data_open(MPI_COMM_WORLD, &c, true, &d, &e) == SK_OK, "%s", e.msg);
  int64_t n = sk_data_windows(d);
  bool once = true, shuffled = false, anew = false;
  for (int64_t epoch = 0; epoch < 3; epoch++) {
    char *seen = sk_calloc((size_t)n, 1);
    for (int64_t i = 0; i < n; i++) {
      int64_t first;
      sk_data_locate(d, epoch * n + i, &set, &w);
      sk_data_locate(d, i, &set, &first);
      once = once && !seen[w];
      seen[w] = 1;
      shuffled = shuffled || w != i;
      anew = anew || (epoch > 0 && first != w);
    }
    sk_free(seen);
  }
  tap_ok(once, "every window once per epoch");
  tap_ok(shuffled && anew, "shuffled, and anew in every epoch");
  sk_data_close(d);
}

/* An evaluation of two sets by weight: samples evenly over each, all of them where that is asked for. */
static void evaluation(const char *a, const char *b) {
  sk_data_entry entry[2] = {{(char *)(uintptr_t)a, 3}, {(char *)(uintptr_t)b, 1}};
  sk_config c;
  sk_data *d = NULL;
  sk_err e = {0};
  int64_t all[2], w, last[2] = {-1, -1};
  for (int k = 0; k < 2; k++) {
    config(&c, &entry[k], 1);
    SK_CHECK(sk_data_open(MPI_COMM_WORLD, &c, false, &d, &e) == SK_OK, "%s", e.msg);
    all[k] = sk_data_windows(d);
    bool order = true;
    for (int64_t s = 0; s < all[k]; s++) {
      int set;
      sk_data_locate(d, s, &set, &w);
      order = order && set == 0 && w == s;
    }
    tap_ok(order, "one validation set, no limit: its %lld windows in their order", (long long)all[k]);
    sk_data_close(d);
  }
  config(&c, entry, 2);
  c.train.eval_batches = 2, c.train.global_batch = 4;
  SK_CHECK(sk_data_open(MPI_COMM_WORLD, &c, false, &d, &e) == SK_OK, "%s", e.msg);
  int count[2] = {0}, set;
  bool ascends = true;
  for (int64_t s = 0; s < sk_data_windows(d); s++) {
    sk_data_locate(d, s, &set, &w);
    ascends = ascends && w > last[set] && w < all[set];
    last[set] = w;
    count[set]++;
  }
  tap_ok(count[0] == 6 && count[1] == 2, "8 samples of two sets, 3:1: %d and %d", count[0], count[1]);
  tap_ok(ascends && last[0] == 5 * all[0] / 6 && last[1] == all[1] / 2, "evenly over each set");
  sk_data_close(d);
}

/* Labels are the next tokens; under isolate the step into the next document is not counted. */
static void windows(const char *path, bool isolate) {
  sk_data_entry entry = {(char *)(uintptr_t)path, 1};
  sk_config c;
  sk_data *d = NULL;
  sk_err e = {0};
  config(&c, &entry, 1);
  c.data.documents = isolate ? SK_DOCS_ISOLATE : SK_DOCS_CONCATENATE;
  SK_CHECK(sk_data_open(MPI_COMM_WORLD, &c, false, &d, &e) == SK_OK, "%s", e.msg);
  int32_t ids[T], label[T], start[T], last = -1;
  bool follow = true, starts = true, borders = true;
  int cut = 0;
  for (int64_t s = 0; s < sk_data_windows(d); s++) {
    SK_CHECK(sk_data_sample(d, s, ids, label, start, &e) == SK_OK, "%s", e.msg);
    int64_t doc = 0;
    for (int t = 0; t < T; t++) {
      if (t > 0 && ids[t - 1] == 256) doc = t;
      starts = starts && start[t] == (isolate ? doc : 0);
      bool end = ids[t] == 256;
      borders = borders && (label[t] == -1) == (isolate && end);
      cut += label[t] == -1;
      if (label[t] >= 0 && t + 1 < T) follow = follow && label[t] == ids[t + 1];
      if (t == 0 && last >= 0) follow = follow && last == ids[0];
    }
    last = label[T - 1];
  }
  const char *mode = isolate ? "isolate" : "concatenate";
  tap_ok(follow, "%s: labels are the tokens that follow", mode);
  tap_ok(starts, "%s: document starts", mode);
  tap_ok(borders && (cut > 0) == isolate, "%s: %d steps across documents are not counted", mode, cut);
  sk_data_close(d);
}

/* data.holdout: training and validation share no token; the border is at a document's start. */
static void holdout(const char *a, const char *b) {
  sk_data_entry entry[2] = {{(char *)(uintptr_t)a, 1}, {(char *)(uintptr_t)b, 1}};
  for (int k = 0; k < 2; k++) {
    sk_config c;
    sk_data *d[2] = {NULL};
    sk_err e = {0};
    config(&c, &entry[k], 1);
    c.data.n_valid = 0;
    c.data.holdout = 0.3;
    SK_CHECK(sk_data_open(MPI_COMM_WORLD, &c, true, &d[0], &e) == SK_OK, "%s", e.msg);
    SK_CHECK(sk_data_open(MPI_COMM_WORLD, &c, false, &d[1], &e) == SK_OK, "%s", e.msg);
    int64_t all = sk_data_tokens(d[0]) + sk_data_tokens(d[1]);
    int32_t ids[T], label[T], start[T], want[T];
    SK_CHECK(sk_data_sample(d[1], 0, ids, label, start, &e) == SK_OK, "%s", e.msg);
    sk_tokens *t;
    SK_CHECK(sk_tokens_open(MPI_COMM_WORLD, entry[k].path, &t, &e) == SK_OK, "%s", e.msg);
    SK_CHECK(sk_tokens_read(t, sk_data_tokens(d[0]), T, want, &e) == SK_OK, "%s", e.msg);
    int64_t border = -1;
    sk_tokens_doc_start(t, sk_data_tokens(d[0]), 1, &border);
    double share = (double)sk_data_tokens(d[1]) / (double)all;
    tap_ok(all == sk_tokens_get_info(t)->tokens && !memcmp(ids, want, sizeof want) && share > 0.29 && share <= 0.46 &&
               (k == 0 || border == sk_data_tokens(d[0])),
           "holdout 0.3, %s: %.2f of the tokens, validation begins where training ends", k ? "documents" : "one document", share);
    sk_tokens_close(t);
    sk_data_close(d[0]);
    sk_data_close(d[1]);
    d[0] = NULL;
    c.data.n_valid = 1;
    sk_data_open(MPI_COMM_WORLD, &c, true, &d[0], &e);
    tap_ok(!d[0] && e.code == SK_USAGE && strstr(e.msg, "data.holdout"), "holdout together with data.valid is refused");
  }
}

static void refusals(const char *path) {
  sk_data_entry entry = {(char *)(uintptr_t)path, 1};
  sk_config c;
  sk_data *d = NULL;
  sk_err e = {0};
  config(&c, &entry, 1);
  c.model.vocab_size = 200;
  sk_data_open(MPI_COMM_WORLD, &c, true, &d, &e);
  tap_ok(!d && e.code == SK_USAGE && strstr(e.msg, path) && strstr(e.msg, "257"),
         "a vocabulary smaller than the data's is refused");
  e = (sk_err){0};
  config(&c, &entry, 1);
  c.data.sequence = 1 << 20;
  sk_data_open(MPI_COMM_WORLD, &c, true, &d, &e);
  tap_ok(!d && e.code == SK_USAGE && strstr(e.msg, path), "too little text for one window is refused");
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  const char *tmp = getenv("TMPDIR");
  snprintf(dir, sizeof dir, "%s/saker-data-XXXXXX", tmp ? tmp : "/tmp");
  if (tap_rank == 0) SK_CHECK(mkdtemp(dir), "cannot make a temporary folder");
  MPI_Bcast(dir, sizeof dir, MPI_CHAR, 0, MPI_COMM_WORLD);
  write_file("a.txt", "The quick brown fox jumps over the lazy dog. ", 60);
  write_file("b.txt", "Short.", 1);
  write_file("c.txt", "A document of middling length, no more. ", 3);
  char *a = build("a.h5", 1, (const char *const[]){"a.txt"});
  char *b = build("b.h5", 4, (const char *const[]){"b.txt", "c.txt", "b.txt", "b.txt"});
  permutation();
  epochs_and_blend(a, b);
  evaluation(a, b);
  windows(b, true);
  windows(b, false);
  char *many = build("many.h5", 6, (const char *const[]){"c.txt", "c.txt", "c.txt", "b.txt", "c.txt", "c.txt"});
  holdout(a, many);
  sk_free(many);
  refusals(a);
  MPI_Barrier(MPI_COMM_WORLD);
  if (tap_rank == 0) {
    const char *name[] = {"a.txt", "b.txt", "c.txt", "a.h5", "b.h5", "many.h5"};
    for (int i = 0; i < 6; i++) {
      char *path = sk_strf("%s/%s", dir, name[i]);
      unlink(path);
      sk_free(path);
    }
    rmdir(dir);
  }
  sk_free(a);
  sk_free(b);
  return tap_done();
}
