/* eval.h: the loss of a model over validation data. */
#ifndef SK_EVAL_H
#define SK_EVAL_H
#include "src/data.h"
#include "src/engine.h"

/* Collective over the grid's world. Mean loss over the counted tokens of one evaluation (as many windows as
 * sk_data_windows says, shared out over dp), and their number. The engine is open for training. */
int sk_eval_loss(sk_engine *g, sk_data *valid, double *loss, int64_t *tokens, sk_err *e);

/* Collective. `saker eval`: the whole verb; argv[0] is its name. */
int sk_eval_run(MPI_Comm comm, int argc, char **argv, sk_err *e);
#endif
