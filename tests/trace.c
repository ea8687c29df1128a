/* trace.c: the time line of chosen steps (src/trace.h): which steps, every rank's sections, valid JSON. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/tap.h"
#include "io/fsutil.h"
#include "src/trace.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool parses(const char *s, int64_t first, int64_t last) {
  sk_trace tr;
  sk_err e = {0};
  return sk_trace_parse(s, &tr, &e) == SK_OK && tr.first == first && tr.last == last;
}

static bool refused(const char *s) {
  sk_trace tr;
  sk_err e = {0};
  return sk_trace_parse(s, &tr, &e) == SK_USAGE && strstr(e.msg, "log.trace");
}

/* Spans of that name and rank, all of them within a step of 1 to 100 ms. */
static int count(json_t *root, const char *name, int rank) {
  json_t *events = json_object_get(root, "traceEvents"), *x;
  size_t i;
  int n = 0;
  json_array_foreach(events, i, x) {
    const char *s = json_string_value(json_object_get(x, "name")), *ph = json_string_value(json_object_get(x, "ph"));
    double ts = json_number_value(json_object_get(x, "ts")), dur = json_number_value(json_object_get(x, "dur"));
    if (!s || !ph || strcmp(ph, "X") != 0 || strcmp(s, name) != 0) continue;
    if (json_integer_value(json_object_get(x, "pid")) != rank) continue;
    n += ts >= 0 && dur >= 1000 && dur < 1e6;
  }
  return n;
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  tap_ok(parses("", 0, 0) && parses("7", 7, 7) && parses("10-12", 10, 12), "nothing, a step, a range");
  tap_ok(refused("0") && refused("3-2") && refused("a") && refused("3-") && refused("1-2-3") && refused("4 5"), "all else is refused");
  char dir[32] = "/tmp/saker-trace-XXXXXX";
  if (tap_rank == 0) SK_CHECK(mkdtemp(dir), "no temporary folder");
  MPI_Bcast(dir, sizeof dir, MPI_CHAR, 0, MPI_COMM_WORLD);
  sk_grid g;
  int n[SK_NAXES] = {1, 1, 1, 1};
  n[SK_DP] = tap_size;
  sk_grid_create(&g, MPI_COMM_WORLD, n);
  sk_timer t = {0};
  sk_trace tr;
  sk_err e = {0};
  sk_trace_parse("3-4", &tr, &e);
  sk_timer_start(&t);
  for (int64_t step = 1; step <= 6; step++) {
    sk_trace_begin(&tr, &g, &t, step);
    sk_timer_begin(&t, SK_T_DATA);
    usleep(1500);
    sk_timer_end(&t);
    sk_trace_end(&tr, &g, &t, step, step == 6, dir);
  }
  tap_ok(!tr.on && !t.span, "recording is over");
  if (tap_rank == 0) {
    char *path = sk_strf("%s/trace.json", dir);
    json_error_t why;
    json_t *root = json_load_file(path, 0, &why);
    bool good = root != NULL;
    for (int r = 0; r < tap_size; r++)
      good = good && count(root, "data", r) == 2 && count(root, "step 3", r) == 1 && count(root, "step 4", r) == 1 &&
             count(root, "step 2", r) == 0 && count(root, "step 5", r) == 0;
    if (!good) tap_failed++;
    tap_diag("%s", good ? "trace.json is as expected" : why.text);
    json_decref(root);
    sk_free(path);
  }
  int failed = tap_failed;
  MPI_Bcast(&failed, 1, MPI_INT, 0, MPI_COMM_WORLD);
  tap_ok(failed == 0, "valid JSON: in steps 3 and 4 every rank's section and step, and none of the others");
  MPI_Barrier(MPI_COMM_WORLD);
  if (tap_rank == 0) sk_fs_remove(dir);
  sk_grid_destroy(&g);
  return tap_done();
}
