/* Megatron's .idx with its .bin, and the files of nanoGPT and llm.c. The first byte chooses; of Megatron's pair the second
 * and third give the length of the .bin, which comes first. Documents ascend and lie in the tokens. */
#include "tests/fuzz/fuzz.h"
#include "io/tokens_import.h"

static void document(void *to, int64_t start, sk_err *e) {
  int64_t *last = to;
  (void)e;
  SK_CHECK(start > *last, "document %lld after %lld", (long long)start, (long long)*last);
  *last = start;
}

static void write_part(const char *path, const uint8_t *data, size_t n) {
  FILE *f = fopen(path, "wb");
  SK_CHECK(f && fwrite(data, 1, n, f) == n && fclose(f) == 0, "%s cannot be written", path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static const char *const from[] = {"megatron", "nanogpt", "llmc"};
  static char base[64], bin[80], idx[80];
  sk_import in = {0};
  sk_err e = {0};
  if (size < 3) return 0;
  size_t n = (size_t)(data[1] | data[2] << 8);
  int kind = data[0] % 3;
  if (n > size - 3) n = size - 3;
  snprintf(base, sizeof base, "/dev/shm/saker-fuzz-%ld", (long)getpid());
  snprintf(bin, sizeof bin, "%s.bin", base);
  snprintf(idx, sizeof idx, "%s.idx", base);
  if (kind == 0) write_part(idx, data + 3 + n, size - 3 - n);
  write_part(bin, data + 3, kind == 0 ? n : size - 3);
  char *path = kind == 0 ? base : bin;
  sk_import_opts o = {.from = from[kind], .eos = -1, .n_path = 1, .path = &path};
  if (sk_import_open(&in, &o, &e) == SK_OK) {
    int64_t last = -1;
    SK_CHECK(in.tokens > 0 && in.tokens * in.part[0].width + in.part[0].at == (kind == 0 ? (int64_t)n : (int64_t)size - 3),
             "%lld tokens", (long long)in.tokens);
    if (in.counted) SK_CHECK(sk_import_documents(&in.part[0], document, &last, &e) == in.empty && last < in.tokens, "documents");
  }
  sk_import_close(&in);
  return 0;
}
