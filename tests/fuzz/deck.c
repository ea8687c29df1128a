/* A deck: YAML, every key, lists, overrides and the checks over several keys. What reads is written again, and
 * that must read. */
#include "tests/fuzz/fuzz.h"
#include "src/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char *text = fuzz_text(data, size);
  sk_config c, again;
  sk_err e = {0};
  if (sk_config_from_resolved(text, "deck", &c, &e) == SK_OK) {
    if (c.data.n_train > 0)
      SK_CHECK(sk_config_from_resolved(c.resolved, "resolved", &again, &e) == SK_OK, "%s\n%s", e.msg, c.resolved);
    if (c.data.n_train > 0) sk_config_free(&again);
    sk_config_free(&c);
  }
  sk_free(text);
  return 0;
}
