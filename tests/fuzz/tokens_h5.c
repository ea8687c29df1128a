/* A token data set: opening, windows, documents, the tokenizer in it. */
#define FUZZ_MPI
#include "tests/fuzz/fuzz.h"
#include "io/tokens.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  sk_tokens *t = NULL;
  sk_err e = {0};
  if (sk_tokens_open(MPI_COMM_SELF, fuzz_file(data, size), &t, &e) != SK_OK) return 0;
  const sk_tokens_info *x = sk_tokens_get_info(t);
  enum { SOME = 64 };
  int32_t ids[SOME];
  int64_t start[SOME], n = x->tokens < SOME ? x->tokens : SOME;
  size_t len;
  for (int64_t at = 0; at <= x->tokens - n; at += x->tokens - n > 0 ? x->tokens - n : 1) {
    sk_err bad = {0};
    sk_tokens_doc_start(t, at, n, start);
    for (int64_t i = 0; i < n; i++) SK_CHECK(start[i] >= 0 && start[i] <= at + i, "start %lld", (long long)start[i]);
    if (sk_tokens_read(t, at, n, ids, &bad) != SK_OK) break;
    for (int64_t i = 0; i < n; i++) SK_CHECK(ids[i] >= 0 && ids[i] < x->vocab_size, "id %d", ids[i]);
  }
  for (int64_t d = 0; d < x->documents; d++) SK_CHECK(sk_tokens_doc_length(t, d) > 0, "an empty document");
  sk_free(sk_tokens_tokenizer(t, &len, &e));
  sk_tokens_close(t);
  return 0;
}
