/* A safetensors file. What is accepted lies inside of the data and covers them. */
#include "tests/fuzz/fuzz.h"
#include "io/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  sk_st_file f;
  sk_err e = {0};
  if (sk_st_open(fuzz_file(data, size), &f, &e) != SK_OK) return 0;
  int64_t covered = 0;
  for (int i = 0; i < f.n; i++) {
    const sk_st_tensor *t = &f.tensor[i];
    SK_CHECK(t->begin >= 0 && t->begin <= t->end && f.data + t->end <= (int64_t)size, "%s leaves the file", t->name);
    SK_CHECK(sk_st_find(&f, t->name) == t, "%s is not found", t->name);
    covered += t->end - t->begin;
  }
  SK_CHECK(f.data + covered == (int64_t)size, "a hole");
  sk_st_free(&f);
  return 0;
}
