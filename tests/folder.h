/* folder.h: a folder for a test's files; include it where _GNU_SOURCE is defined. */
#ifndef SK_TEST_FOLDER_H
#define SK_TEST_FOLDER_H
#include "tests/tap.h"
#include "io/fsutil.h"
#include <stdlib.h>
#include <unistd.h>

static char test_folder[512];

/* Collective. All ranks go on in a new folder, $TMPDIR/saker-NAME-XXXXXX (or in /tmp). */
static inline void folder_enter(const char *name) {
  const char *tmp = getenv("TMPDIR");
  snprintf(test_folder, sizeof test_folder, "%s/saker-%s-XXXXXX", tmp && tmp[0] ? tmp : "/tmp", name);
  if (tap_rank == 0) SK_CHECK(mkdtemp(test_folder), "cannot make a temporary folder");
  SK_MPI(MPI_Bcast(test_folder, sizeof test_folder, MPI_CHAR, 0, MPI_COMM_WORLD));
  SK_CHECK(chdir(test_folder) == 0, "cannot enter %s", test_folder);
}

/* Collective. Removes it. */
static inline void folder_remove(void) {
  SK_MPI(MPI_Barrier(MPI_COMM_WORLD));
  if (tap_rank == 0) sk_fs_remove(test_folder);
}
#endif
