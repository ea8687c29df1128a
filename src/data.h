/* data.h: which tokens every step trains on. A sample is a window of T inputs and the T labels that
 * follow them. The order of samples is a pure function of (seed, sample index), so that a restart
 * needs one number and every process grid sees the same batches.
 *
 * Training: sample s belongs to the set that slot s mod 65536 of a table names (the table spreads the
 * weights evenly); within a set the windows are visited in an order shuffled anew in every epoch by a
 * small Feistel permutation. Validation: the same samples in every evaluation, as many as the deck says or
 * there are; the sets are mixed by their weights, and the samples of each lie evenly over it. */
#ifndef SK_DATA_H
#define SK_DATA_H
#include "src/config.h"

typedef struct sk_data sk_data;

/* Collective over comm. Opens the deck's training (train = true) or validation sets (without any: what data.holdout
 * keeps of the training sets), checks them
 * against the model's vocabulary and the sequence length. On failure *d is NULL. */
int sk_data_open(MPI_Comm comm, const sk_config *c, bool train, sk_data **d, sk_err *e);
void sk_data_close(sk_data *d);

/* What the ids mean: the XXH3-128 of a tokenizer.json, "bytes", or "unknown" (imported without a tokenizer). All sets
 * have the same, as far as it is known. */
const char *sk_data_tokenizer(const sk_data *d);
/* Not collective. The tokenizer.json in the data sets (owned by the caller, *n bytes) and the id that ends a document.
 * NULL where none has one, or on failure. */
char *sk_data_tokenizer_json(const sk_data *d, size_t *n, int64_t *eos, sk_err *e);

/* Windows in one pass over everything; of validation sets: in one evaluation. */
int64_t sk_data_windows(const sk_data *d);
int64_t sk_data_tokens(const sk_data *d);

/* Not collective, O(1). Sample s: ids[T], label[T] (-1: not counted), start[T] (where the token's
 * document begins in this window). s >= 0; validation needs s < sk_data_windows. */
int sk_data_sample(sk_data *d, int64_t s, int32_t *ids, int32_t *label, int32_t *start, sk_err *e);

/* The set and window of sample s (for tests and messages). */
void sk_data_locate(const sk_data *d, int64_t s, int *set, int64_t *window);

/* Position i of a shuffled order of 0 .. n-1: a permutation for every key. */
int64_t sk_permute(uint64_t key, int64_t n, int64_t i);
#endif
