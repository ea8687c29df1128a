/* The index of a model in several files. No name that is accepted leaves the folder. */
#include "tests/fuzz/fuzz.h"
#include "io/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  char *text = fuzz_text(data, size);
  sk_st_index x;
  sk_err e = {0};
  if (sk_st_index_parse(text, size, "index", &x, &e) == SK_OK) {
    for (int i = 0; i < x.n; i++) {
      SK_CHECK(x.file_of[i] >= 0 && x.file_of[i] < x.n_file, "%s has no file", x.name[i]);
      SK_CHECK(!strchr(x.file[x.file_of[i]], '/') && x.file[x.file_of[i]][0] != '.', "%s", x.file[x.file_of[i]]);
    }
    sk_st_index_free(&x);
  }
  sk_free(text);
  return 0;
}
