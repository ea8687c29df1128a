/* tap.h: the Test Anything Protocol for MPI programs. Header only, included once per program.
 *
 *   int main(int argc, char **argv) {
 *     tap_init(&argc, &argv);
 *     tap_ok(1 + 1 == 2, "sums");
 *     tap_close(sin(0.1), 0.1, 2e-3, "sine of a small angle");
 *     return tap_done();
 *   }
 *
 * tap_ok, tap_close and tap_skip are collective over MPI_COMM_WORLD: every rank calls them in the
 * same order, the check holds only if it holds on every rank, and rank 0 prints one line. */
#ifndef SK_TAP_H
#define SK_TAP_H
#include "src/agree.h"
#include "src/base.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

static int tap_count, tap_failed, tap_rank, tap_size;

static void tap_abort(void) { MPI_Abort(MPI_COMM_WORLD, 1); }

/* Collective. Starts MPI (MPI_THREAD_MULTIPLE where it is had) and the base. */
static inline void tap_init(int *argc, char ***argv) {
  int provided;
  SK_MPI(MPI_Init_thread(argc, argv, MPI_THREAD_MULTIPLE, &provided));
  SK_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &tap_rank));
  SK_MPI(MPI_Comm_size(MPI_COMM_WORLD, &tap_size));
  setvbuf(stdout, NULL, _IOLBF, 0);
  sk_base_init(tap_rank, tap_abort);
}

/* Prints `# ...` on rank 0. Not collective. */
SK_PRINTF(1, 2) static inline void tap_diag(const char *fmt, ...) {
  if (tap_rank != 0) return;
  va_list ap;
  va_start(ap, fmt);
  printf("# ");
  vprintf(fmt, ap);
  printf("\n");
  va_end(ap);
}

// Counts one check and prints its line, without the newline.
static inline void tap_line(bool ok, const char *fmt, va_list ap) {
  tap_count++;
  if (!ok) tap_failed++;
  if (tap_rank != 0) return;
  printf("%s %d - ", ok ? "ok" : "not ok", tap_count);
  vprintf(fmt, ap);
}

/* Collective. Returns whether ok holds on every rank; names the lowest rank where it does not. */
SK_PRINTF(2, 3) static inline bool tap_ok(bool ok, const char *fmt, ...) {
  int mine = ok ? tap_size : tap_rank, first;
  SK_MPI(MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD));
  va_list ap;
  va_start(ap, fmt);
  tap_line(first == tap_size, fmt, ap);
  va_end(ap);
  if (tap_rank == 0) printf("\n");
  if (first < tap_size && tap_size > 1) tap_diag("failed on rank %d", first);
  return first == tap_size;
}

/* Collective. Checks |got - want| / |want| <= limit (|got| <= limit where want is 0) on every rank
 * and prints the figures of the worst one. A NaN anywhere fails. Returns the agreed verdict. */
SK_PRINTF(4, 5)
static inline bool tap_close(double got, double want, double limit, const char *fmt, ...) {
  struct {
    double err;
    int rank;
  } mine, worst;
  double pair[2] = {got, want};
  double err = fabs(got - want) / (want != 0 ? fabs(want) : 1.0);
  mine.err = isnan(err) ? INFINITY : err;
  mine.rank = tap_rank;
  SK_MPI(MPI_Allreduce(&mine, &worst, 1, MPI_DOUBLE_INT, MPI_MAXLOC, MPI_COMM_WORLD));
  SK_MPI(MPI_Bcast(pair, 2, MPI_DOUBLE, worst.rank, MPI_COMM_WORLD));
  int good = mine.err <= limit, all;
  SK_MPI(MPI_Allreduce(&good, &all, 1, MPI_INT, MPI_LAND, MPI_COMM_WORLD));
  va_list ap;
  va_start(ap, fmt);
  tap_line(all, fmt, ap);
  va_end(ap);
  if (tap_rank == 0) {
    printf(": got %.9g, want %.9g, error %.3g, limit %.3g", pair[0], pair[1], worst.err, limit);
    printf(tap_size > 1 ? " (rank %d)\n" : "\n", worst.rank);
  }
  return all;
}

/* Collective in the count only: every rank calls it. One check that could not be made, and why. */
SK_PRINTF(1, 2) static inline void tap_skip(const char *fmt, ...) {
  tap_count++;
  if (tap_rank != 0) return;
  va_list ap;
  va_start(ap, fmt);
  printf("ok %d # SKIP ", tap_count);
  vprintf(fmt, ap);
  printf("\n");
  va_end(ap);
}

/* Collective. Prints the plan and ends MPI. Returns the program's exit status: 0 when there was at
 * least one check and none failed. */
static inline int tap_done(void) {
  if (tap_rank == 0) printf("1..%d\n", tap_count);
  MPI_Finalize();
  return tap_count > 0 && tap_failed == 0 ? 0 : 1;
}
#endif
