/* tokens.h: token data sets (*.h5, design section 8): build from text, import, open, read windows, info.
 *   /data       rank 1, uint16 (vocabulary <= 65536) or uint32, chunked 1 Mi
 *   /documents  uint64 start offsets, first 0, strictly ascending
 *   /tokenizer.json  uint8, the file that the tokenizer was read from, where there was one
 *   attributes  format="saker-tokens", version, vocab_size, eos_id, tokenizer, tokenizer_xxh3, tokens,
 *               source, created_by */
#ifndef SK_TOKENS_H
#define SK_TOKENS_H
#include "src/agree.h"

typedef struct sk_tokens sk_tokens; /* an open data set; reading is not collective */

typedef struct sk_tokens_info {
  int64_t tokens, documents, vocab_size, eos_id;
  int width; /* bytes per token: 2 or 4 */
  char tokenizer[256], hash[64], source[1024], created_by[128];
} sk_tokens_info;

/* Collective over comm: every rank opens the file read-only and checks it (format, version, types,
 * shapes, that /data is as long as it says and the file not truncated). */
int sk_tokens_open(MPI_Comm comm, const char *path, sk_tokens **t, sk_err *e);
void sk_tokens_close(sk_tokens *t);
const sk_tokens_info *sk_tokens_get_info(const sk_tokens *t);

/* Not collective. ids[count] = data[first .. first+count-1]; count + first <= tokens. A token outside
 * the vocabulary is an error that names file and offset. */
int sk_tokens_read(sk_tokens *t, int64_t first, int64_t count, int32_t *ids, sk_err *e);
/* The same without a look at the vocabulary. */
int sk_tokens_read_raw(sk_tokens *t, int64_t first, int64_t count, int32_t *ids, sk_err *e);

/* Not collective, in memory. start[i] = offset (in the data set) at which the document of token first+i
 * begins, for i < count. */
void sk_tokens_doc_start(const sk_tokens *t, int64_t first, int64_t count, int64_t *start);

/* Not collective, in memory. The length of document d in tokens. */
int64_t sk_tokens_doc_length(const sk_tokens *t, int64_t d);
/* ... and where it starts. */
int64_t sk_tokens_doc_first(const sk_tokens *t, int64_t d);

/* Not collective. The tokenizer.json in the data set, checked against the hash; owned by the caller, *n its length. NULL
 * where there is none (e->code 0) or it is damaged. */
char *sk_tokens_tokenizer(sk_tokens *t, size_t *n, sk_err *e);

/* Collective over comm. Tokenizes texts into `out`; the contents are identical for every number of ranks.
 * tokenizer: "bytes" (id = byte, 256 ends a document) or a tokenizer.json; eos: the token that ends a document, NULL
 * for the usual one (io/tokenizer.h). Texts: files, folders taken recursively in name order, globs; .gz and .zst are
 * unpacked. A file is one document, a .jsonl file one for each line with "text". Progress on rank 0. Written as
 * out.tmp, synced and renamed; an existing `out` is replaced only when complete. */
int sk_tokens_build(MPI_Comm comm, const char *tokenizer, const char *eos, const char *out, int n_text,
                    char *const *text, sk_err *e);

/* Collective over comm. `saker data check`: every token is inside the vocabulary and every document offset is in
 * order, each rank a part of the file; SK_FAILED with the first places that are wrong. Progress and a summary on
 * rank 0; a document that does not end in eos_id is told but is no error. */
int sk_tokens_check(MPI_Comm comm, const char *path, sk_err *e);

/* Not collective (call on one rank): prints what the file holds, with samples of decoded text. */
int sk_tokens_print_info(const char *path, sk_err *e);
#endif
