/* verbs.h: the command line: saker VERB [options]. */
#ifndef SK_VERBS_H
#define SK_VERBS_H
#include "src/agree.h"

typedef struct sk_verb {
  const char *name, *usage, *about;
  const char *help; /* options, one per line */
  /* Collective over comm. argv[0] is the verb's name. Returns the exit code, e filled in on failure. */
  int (*run)(MPI_Comm comm, int argc, char **argv, sk_err *e);
} sk_verb;

extern const sk_verb sk_verbs[]; /* ended by a NULL name */
const sk_verb *sk_verb_find(const char *name);

/* Answers what needs no MPI: --version, --help, help VERB, VERB --help, no or an unknown verb,
 * train --help-keys and --print-defaults. Returns true with the exit code when that was all. */
bool sk_cli_without_mpi(int argc, char **argv, int *code);
#endif
