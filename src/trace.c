#include "src/trace.h"
#include "io/fsutil.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Spans of a rank, and ranks: what a viewer can still show. */
enum { SPANS = 1 << 16, RANKS = 64 };

int sk_trace_parse(const char *steps, sk_trace *tr, sk_err *e) {
  long long a = 0, b = 0;
  int n = 0, all = (int)strlen(steps);
  *tr = (sk_trace){0};
  if (all == 0) return SK_OK;
  if (sscanf(steps, "%lld-%lld%n", &a, &b, &n) != 2 || n != all) {
    if (sscanf(steps, "%lld%n", &a, &n) != 1 || n != all) a = 0;
    b = a;
  }
  if (a < 1 || b < a)
    return sk_fail(e, SK_USAGE, "log.trace: \"%s\": give a step or a range of steps, as 10 or 10-12", steps);
  tr->first = a;
  tr->last = b;
  return SK_OK;
}

void sk_trace_begin(sk_trace *tr, const sk_grid *g, sk_timer *t, int64_t step) {
  if (step < tr->first || step > tr->last) return;
  if (!tr->on) { /* the ranks' clocks need not agree: time starts when all are here */
    tr->on = true;
    tr->span = sk_calloc(SPANS, sizeof *tr->span);
    t->n_spans = 0;
    sk_timer_begin(t, SK_T_WAIT);
    SK_MPI(MPI_Barrier(g->world));
    sk_timer_end(t);
    tr->t0 = sk_now();
  }
  t->span = tr->span;
  t->cap = SPANS;
  tr->began = sk_now();
}

/* One line per span: name, begin and length in microseconds, rank. Sections from SK_T_COUNT on are whole steps. */
static void put(FILE *f, const sk_trace *tr, const sk_grid *g, const double *x, int64_t n, int rank) {
  fprintf(f, "%s{\"name\": \"process_name\", \"ph\": \"M\", \"pid\": %d, \"args\": {\"name\": \"rank %d of %d%s\"}}",
          rank ? ",\n" : "", rank, rank, g->size, n == SPANS ? ", incomplete" : "");
  for (int64_t i = 0; i < n; i++, x += 3) {
    char name[32];
    snprintf(name, sizeof name, "step %lld", (long long)tr->first + (long long)x[0] - SK_T_COUNT);
    fprintf(f, ",\n{\"name\": \"%s\", \"ph\": \"X\", \"pid\": %d, \"tid\": 0, \"ts\": %.3f, \"dur\": %.3f}",
            x[0] < SK_T_COUNT ? sk_timer_label((int)x[0]) : name, rank, 1e6 * x[1], 1e6 * x[2]);
  }
}

/* Rank 0 writes what the others send one after the other. Collective. */
static void write_all(const sk_trace *tr, const sk_grid *g, sk_timer *t, const char *run_dir) {
  sk_timer_begin(t, SK_T_METRICS);
  int ranks = g->size < RANKS ? g->size : RANKS;
  double *x = sk_calloc((size_t)SPANS, 3 * sizeof *x);
  char *text = NULL, *path = sk_strf("%s/trace.json", run_dir);
  size_t size = 0;
  FILE *f = g->rank == 0 ? open_memstream(&text, &size) : NULL;
  if (f) fprintf(f, "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n");
  for (int64_t i = 0; i < t->n_spans; i++) {
    x[3 * i] = tr->span[i].section;
    x[3 * i + 1] = tr->span[i].begin - tr->t0;
    x[3 * i + 2] = tr->span[i].end - tr->span[i].begin;
  }
  for (int r = 0; r < ranks; r++) {
    int n = 3 * (int)t->n_spans;
    if (g->rank == r && r > 0) SK_MPI(MPI_Send(x, n, MPI_DOUBLE, 0, 0, g->world));
    if (g->rank == 0 && r > 0) {
      MPI_Status status;
      SK_MPI(MPI_Recv(x, 3 * SPANS, MPI_DOUBLE, r, 0, g->world, &status));
      SK_MPI(MPI_Get_count(&status, MPI_DOUBLE, &n));
    }
    if (f) put(f, tr, g, x, n / 3, r);
  }
  if (f) {
    sk_err e = {0};
    fprintf(f, "\n]}\n");
    if (fclose(f) != 0) sk_fail(&e, SK_FAILED, "%s: no memory to write it", path);
    else sk_fs_write(path, text, size, false, &e);
    if (e.code) sk_warn("%s", e.msg);
    else sk_say("time line of steps %lld to %lld: %s (open it in ui.perfetto.dev)", (long long)tr->first,
                (long long)tr->last, path);
  }
  free(text);
  sk_free(path);
  sk_free(x);
  sk_timer_end(t);
}

void sk_trace_end(sk_trace *tr, const sk_grid *g, sk_timer *t, int64_t step, bool end, const char *run_dir) {
  if (!tr->on) return;
  if (t->n_spans < t->cap)
    t->span[t->n_spans++] = (sk_span){tr->began, sk_now(), SK_T_COUNT + (int)(step - tr->first)};
  t->span = NULL;
  if (step >= tr->last || end) {
    write_all(tr, g, t, run_dir);
    sk_free(tr->span);
    *tr = (sk_trace){0};
  }
}
