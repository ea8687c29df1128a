#include "src/agree.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

void sk_mpi_check(int rc, const char *what, const char *file, int line) {
  if (rc == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int n = 0;
  MPI_Error_string(rc, text, &n);
  sk_die(file, line, "%s: %.*s", what, n, text);
}

int sk_agree(MPI_Comm comm, sk_err *e) {
  int rank, size;
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &size);
  int mine = e->code ? rank : size, first;
  SK_MPI(MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, comm));
  if (first == size) return SK_OK;
  SK_MPI(MPI_Bcast(e, (int)sizeof *e, MPI_BYTE, first, comm));
  return e->code;
}

static int read_all(const char *path, size_t max, char **text, size_t *size, sk_err *e) {
  FILE *f = fopen(path, "rb");
  if (!f) return sk_fail(e, SK_FAILED, "%s: cannot be opened: %s", path, strerror(errno));
  size_t cap = 1 << 16, n = 0;
  char *buf = sk_malloc(cap + 1);
  for (;;) {
    n += fread(buf + n, 1, cap - n, f);
    if (n < cap || n > max) break;
    buf = sk_realloc(buf, (cap *= 2) + 1);
  }
  int bad = ferror(f) ? errno : 0;
  fclose(f);
  if (bad) sk_fail(e, SK_FAILED, "%s: cannot be read: %s", path, strerror(bad));
  if (n > max) sk_fail(e, SK_FAILED, "%s: larger than the %zu bytes allowed here", path, max);
  if (e->code) return sk_free(buf), e->code;
  buf[n] = 0;
  *text = buf;
  *size = n;
  return SK_OK;
}

int sk_bcast_file(MPI_Comm comm, const char *path, size_t max, char **text, sk_err *e) {
  int rank;
  size_t n = 0;
  *text = NULL;
  MPI_Comm_rank(comm, &rank);
  if (rank == 0) read_all(path, max, text, &n, e);
  if (sk_agree(comm, e)) return e->code;
  uint64_t size = n;
  SK_MPI(MPI_Bcast(&size, 1, MPI_UINT64_T, 0, comm));
  if (rank != 0) *text = sk_malloc(size + 1);
  SK_CHECK(size < INT32_MAX, "%s: %llu bytes cannot be broadcast", path, (unsigned long long)size);
  SK_MPI(MPI_Bcast(*text, (int)size + 1, MPI_BYTE, 0, comm));
  return SK_OK;
}
