/* tokens_write.h: a new token data set, written by all ranks. */
#ifndef SK_TOKENS_WRITE_H
#define SK_TOKENS_WRITE_H
#include "src/agree.h"

enum { SK_TOKENS_CHUNK = 1 << 20 }; /* tokens */

typedef struct sk_tokens_meta {
  int64_t tokens, documents, vocab_size, eos_id;
  const char *tokenizer, *hash; /* hash "": no file */
  const char *json;             /* the tokenizer.json, kept in the data set; NULL: none */
  size_t json_n;
  char *source;                 /* of sk_tokens_source */
} sk_tokens_meta;

typedef struct sk_tokens_writer {
  MPI_Comm comm;
  char *out, *tmp;
  int width; /* bytes per token: 2 or 4 */
  int64_t file, data, documents; /* HDF5's ids; < 0: not open */
} sk_tokens_writer;

/* 2 where ids below vocab fit into 16 bits, else 4. */
int sk_tokens_width(int64_t vocab);

/* Words in one line that fits the attribute `source`; cut between characters when they are long. Owned by the caller. */
char *sk_tokens_source(int n, char *const *word);

/* Collective over comm. Rank 0 makes OUT.tmp with all metadata and its space on the disk; then all open it. */
int sk_tokens_writer_open(sk_tokens_writer *w, MPI_Comm comm, const char *out, const sk_tokens_meta *m, sk_err *e);
/* Not collective. ids: uint16_t or uint32_t as the width says; start: where documents begin. */
void sk_tokens_put(sk_tokens_writer *w, int64_t at, int64_t n, const void *ids, sk_err *e);
void sk_tokens_put_docs(sk_tokens_writer *w, int64_t at, int64_t n, const uint64_t *start, sk_err *e);
/* Collective. Closes, syncs and renames to OUT; after an error on any rank OUT.tmp is removed and OUT is as before. */
int sk_tokens_writer_close(sk_tokens_writer *w, sk_err *e);
#endif
