/* A Hugging Face config.json: as a model, and written again with another dtype, which must read as the same model. */
#include "tests/fuzz/fuzz.h"
#include "src/config.h"
#include "src/hf_json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char *text = fuzz_text(data, size);
  sk_config c, again;
  sk_err e = {0};
  if (sk_config_from_hf(text, "config.json", &c, &e) == SK_OK) {
    char *same = sk_hf_json(&c, text), *other = sk_hf_json_with_dtype(text, "float16"), *named = sk_hf_json_dtype(other);
    char *fresh = sk_hf_json(&c, NULL);
    SK_CHECK(strcmp(named, "float16") == 0, "%s", other);
    const char *texts[] = {same, other, fresh};
    for (int i = 0; i < 3; i++) {
      SK_CHECK(sk_config_from_hf(texts[i], "again", &again, &e) == SK_OK, "%s\n%s", e.msg, texts[i]);
      SK_CHECK(memcmp(&c.model, &again.model, sizeof c.model) == 0, "another model\n%s\n%s", text, texts[i]);
      sk_config_free(&again);
    }
    sk_free(same);
    sk_free(other);
    sk_free(named);
    sk_free(fresh);
    sk_config_free(&c);
  }
  sk_free(text);
  return 0;
}
