/* main.c: starts MPI, runs a verb, and prints the one error that all ranks agree on. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "src/placement.h"
#include "src/verbs.h"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void abort_job(void) { MPI_Abort(MPI_COMM_WORLD, SK_FAILED); }

/* What MPI is asked for: SAKER_MPI_THREADS=single, funneled, serialized or multiple (docs/reliability.md); -1: wrong. */
static int wanted_level(void) {
  const char *text = getenv("SAKER_MPI_THREADS");
  static const struct {
    const char *name;
    int level;
  } known[] = {{"single", MPI_THREAD_SINGLE},
               {"funneled", MPI_THREAD_FUNNELED},
               {"serialized", MPI_THREAD_SERIALIZED},
               {"multiple", MPI_THREAD_MULTIPLE}};
  if (!text || !text[0]) return MPI_THREAD_MULTIPLE;
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (strcmp(text, known[i].name) == 0) return known[i].level;
  fprintf(stderr, "saker: SAKER_MPI_THREADS=%s: give single, funneled, serialized or multiple\n", text);
  return -1;
}

int main(int argc, char **argv) {
  int code, provided, rank, level;
  if (sk_cli_without_mpi(argc, argv, &code)) return code;
  if ((level = wanted_level()) < 0) return SK_USAGE;
  signal(SIGXFSZ, SIG_IGN); /* a file-size limit is then an error of the write, with its message */
  SK_MPI(MPI_Init_thread(&argc, &argv, level, &provided));
  SK_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &rank));
  sk_base_init(rank, abort_job);
  sk_placement_threads(MPI_COMM_WORLD);
  sk_err e = {0};
  code = sk_verb_find(argv[1])->run(MPI_COMM_WORLD, argc - 1, argv + 1, &e);
  sk_log_file(NULL);
  if (code != SK_OK && rank == 0) fprintf(stderr, "saker: %s\n", e.msg);
  fflush(NULL);
  MPI_Finalize();
  return code;
}
