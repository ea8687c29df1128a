/* A tokenizer.json, and a text behind its first NUL. What is accepted gives ids of its vocabulary, the same for a text in
 * parts as for the whole, and decodes to UTF-8. */
#include "tests/fuzz/fuzz.h"
#include "io/tokenizer.h"
#include "io/utf8.h"

static void check_utf8(void *to, const char *bytes, size_t n) {
  (void)to;
  SK_CHECK(sk_utf8_valid(bytes, n) == n, "decoded bytes are not UTF-8");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  sk_tokenizer *t = NULL;
  sk_err e = {0};
  const uint8_t *end = memchr(data, 0, size);
  size_t n = end ? (size_t)(end - data) : size, at = 0;
  if (sk_tokenizer_parse((const char *)data, n, "fuzz", NULL, &t, &e) != SK_OK) return 0;
  const char *text = end ? (const char *)end + 1 : "The end.\n\xe4\xb8\xad 12345 </s>\n";
  size_t m = end ? size - n - 1 : strlen(text);
  sk_ids ids = {0};
  sk_detok d = {.write = check_utf8};
  sk_tokenizer_encode(t, text, m, &ids, &e);
  for (int64_t i = 0; i < ids.n; i++) {
    SK_CHECK(ids.at[i] >= 0 && ids.at[i] < sk_tokenizer_vocab(t), "id %d", ids.at[i]);
    sk_detok_push(&d, t, ids.at[i]);
  }
  sk_detok_finish(&d);
  while (at < m) {
    size_t next = sk_tokenizer_cut(t, text, at + 1, m);
    SK_CHECK(next > at && next <= m, "a cut at %zu of %zu", next, m);
    at = next;
  }
  SK_CHECK(sk_tokenizer_last_cut(t, text, m) <= m, "the last cut is outside");
  sk_free(ids.at);
  sk_tokenizer_close(t);
  return 0;
}
