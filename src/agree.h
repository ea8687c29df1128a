/* agree.h: collective agreement on errors. Part of the base (with MPI): io/ and src/ may use it. */
#ifndef SK_AGREE_H
#define SK_AGREE_H
#include "src/base.h"
#include <mpi.h>

/* Collective over comm. If any rank's e->code is not 0, every rank gets the error of the lowest such
 * rank; returns the agreed code. Call it before anything that communicates or writes, so that one
 * rank's error never leaves the others waiting. */
int sk_agree(MPI_Comm comm, sk_err *e);

/* Aborts the job with the MPI error's text when an MPI call failed. */
#define SK_MPI(call) sk_mpi_check((call), #call, __FILE__, __LINE__)
void sk_mpi_check(int rc, const char *what, const char *file, int line);

/* Collective over comm: root's file text (NUL-terminated, owned by the caller) on every rank; only
 * root touches the file system. On failure all ranks get the same error. max_bytes bounds the size. */
int sk_bcast_file(MPI_Comm comm, const char *path, size_t max_bytes, char **text, sk_err *e);
#endif
