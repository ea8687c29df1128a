/* fuzz.h: what every fuzz target starts from; included once, by a file tests/fuzz/TARGET.c that defines
 *
 *   int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
 *
 * and returns 0. A crash, an SK_CHECK, a sanitizer's report, a hang and an allocation above the limit of run.sh are
 * findings; an error returned is not. Seeds lie in tests/fuzz/corpus/TARGET. For a target that needs MPI (files
 * opened by all ranks), define FUZZ_MPI first: there is one rank. */
#ifndef SK_FUZZ_H
#define SK_FUZZ_H
#include "src/base.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#ifdef FUZZ_MPI
#include <mpi.h>
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

int LLVMFuzzerInitialize(int *argc, char ***argv) {
#ifdef FUZZ_MPI
  MPI_Init(argc, argv);
#endif
  (void)argc, (void)argv;
  sk_base_init(1, abort); /* rank 0 would print what it is told */
  return 0;
}

/* The bytes with a NUL at the end: sk_free it. */
static inline char *fuzz_text(const uint8_t *data, size_t size) {
  char *text = sk_malloc(size + 1);
  if (size) memcpy(text, data, size);
  text[size] = 0;
  return text;
}

/* The bytes as a file in memory, of the same name every time. */
static inline const char *fuzz_file(const uint8_t *data, size_t size) {
  static char path[64];
  snprintf(path, sizeof path, "/dev/shm/saker-fuzz-%ld", (long)getpid());
  FILE *f = fopen(path, "wb");
  SK_CHECK(f && fwrite(data, 1, size, f) == size && fclose(f) == 0, "%s cannot be written", path);
  return path;
}
#endif
