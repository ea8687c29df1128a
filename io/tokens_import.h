/* tokens_import.h: token files of Megatron, nanoGPT and llm.c: what their headers say, and the import.
 *
 *   megatron  PREFIX.bin and PREFIX.idx (magic MMIDIDX, version 1): sequences, and which of them make a document
 *   nanogpt   uint16 tokens without header; 50256 ends a document
 *   llmc      256 int32 of header (magic 20240520 version 1: uint16, GPT-2; 20240801 version 7: uint32, Llama 3), then
 *             tokens; end-of-text before each document; several files are one stream
 *
 * Every header field and size is checked. */
#ifndef SK_TOKENS_IMPORT_H
#define SK_TOKENS_IMPORT_H
#include "src/agree.h"

typedef struct sk_import_opts {
  const char *from; /* "megatron", "nanogpt" or "llmc" */
  const char *out;
  const char *tokenizer; /* "bytes" or a tokenizer.json; NULL: not known */
  int64_t vocab;         /* 0: of the tokenizer, of the format, or the largest id + 1 */
  int64_t eos;           /* -1: of the tokenizer, or of the format */
  int n_path;
  char *const *path;     /* files, prefixes of Megatron's, globs; their order counts */
} sk_import_opts;

/* Collective over comm. Writes o->out with all tokens and documents; the same file on every number of ranks. */
int sk_tokens_import(MPI_Comm comm, const sk_import_opts *o, sk_err *e);

/* ---- for tokens_import.c and the tests ---- */

typedef struct sk_import_part {
  char bin[1024], idx[1024]; /* idx "": none */
  int64_t at;                /* byte of the first token */
  int64_t n, first;          /* tokens, and those of the parts before */
  int64_t seqs, docs;        /* of the .idx: sequences, entries of the document index */
  int width;                 /* bytes of a token */
  bool sign;
  bool fresh;                /* a document begins here whatever the tokens */
} sk_import_part;

typedef struct sk_import {
  int n;
  sk_import_part *part;
  int64_t tokens;
  bool counted;        /* documents come from an index: docs with tokens, and empty ones */
  int64_t docs, empty;
  int64_t vocab, eos;  /* that the format is known for; 0 and -1: none */
} sk_import;

/* Not collective. Opens and checks what o names. Close it in any case. */
int sk_import_open(sk_import *in, const sk_import_opts *o, sk_err *e);
/* Collective: rank 0's on every rank. */
void sk_import_share(MPI_Comm comm, sk_import *in);
void sk_import_close(sk_import *in);
/* Not collective. Goes through the .idx of a part, checks all of it and calls `document` with the first token (in the
 * whole) of every document that has tokens. Returns the number of empty ones, -1 on failure. */
int64_t sk_import_documents(const sk_import_part *p, void (*document)(void *to, int64_t start, sk_err *e), void *to,
                            sk_err *e);
/* Not collective. Reads exactly n bytes. */
int sk_import_read(int fd, const char *path, int64_t at, void *data, size_t n, sk_err *e);
#endif
