/* main.c: starts MPI, runs a verb, and prints the one error that all ranks agree on. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "src/verbs.h"
#include <signal.h>
#include <stdio.h>

static void abort_job(void) { MPI_Abort(MPI_COMM_WORLD, SK_FAILED); }

int main(int argc, char **argv) {
  int code, provided, rank;
  if (sk_cli_without_mpi(argc, argv, &code)) return code;
  signal(SIGXFSZ, SIG_IGN); /* a file-size limit is then an error of the write, with its message */
  SK_MPI(MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &provided));
  SK_MPI(MPI_Comm_rank(MPI_COMM_WORLD, &rank));
  sk_base_init(rank, abort_job);
  sk_err e = {0};
  code = sk_verb_find(argv[1])->run(MPI_COMM_WORLD, argc - 1, argv + 1, &e);
  sk_log_file(NULL);
  if (code != SK_OK && rank == 0) fprintf(stderr, "saker: %s\n", e.msg);
  fflush(NULL);
  MPI_Finalize();
  return code;
}
