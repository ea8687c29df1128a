/* tokenizer.h: text to token ids and back. Two kinds: the built-in `bytes` (id = byte, 256 ends a document),
 * and byte-level BPE as Hugging Face's `tokenizers` reads it from a tokenizer.json; the ids are the same as
 * its encode(text, add_special_tokens=False). What a file asks for beyond that is refused by name.
 *
 * Understood: model BPE (ignore_merges; no dropout, prefix or suffix; byte_fallback and unk_token are without
 * effect as every byte must be in the vocabulary); normalizer null, NFC, NFD, NFKC, NFKD, Sequence; pre_tokenizer
 * ByteLevel, Split, Digits, Punctuation, Sequence, with exactly one ByteLevel; decoder ByteLevel; added tokens with
 * single_word, lstrip, rstrip, normalized, special. post_processor, truncation and padding are not used.
 *
 * Text that is not UTF-8 is read as Python's decode(errors="replace") does: U+FFFD for each ill-formed part.
 * Files are data from strangers: ids, sizes and depth are bounded; a regex has a limit of steps per match.
 * A tokenizer holds buffers: one thread at a time. */
#ifndef SK_TOKENIZER_H
#define SK_TOKENIZER_H
#include "src/agree.h"

typedef struct sk_tokenizer sk_tokenizer;

typedef struct sk_ids {
  int32_t *at; /* owned; free with sk_free */
  int64_t n, cap;
} sk_ids;

/* Makes room for n more ids. */
void sk_ids_room(sk_ids *x, int64_t n);

enum { SK_TOKENIZER_MAX_FILE = 128 << 20 };

/* Not collective. json[n] is a tokenizer.json; where: its name in messages. eos: the token that ends a document,
 * or NULL to take the one that is usual (`<|end_of_text|>`, `<|endoftext|>`, `</s>`, ...); none: id -1. */
int sk_tokenizer_parse(const char *json, size_t n, const char *where, const char *eos, sk_tokenizer **t,
                       sk_err *e);
/* Collective over comm. path: "bytes" or a tokenizer.json, read by rank 0. Without eos, the eos_token of a
 * tokenizer_config.json beside the file counts first. */
int sk_tokenizer_open(MPI_Comm comm, const char *path, const char *eos, sk_tokenizer **t, sk_err *e);
void sk_tokenizer_close(sk_tokenizer *t);

/* Ids are below the vocabulary's size: the largest id + 1. */
int64_t sk_tokenizer_vocab(const sk_tokenizer *t);
/* The id that ends a document; -1 where none is known. */
int64_t sk_tokenizer_eos(const sk_tokenizer *t);
/* "bytes" or the path; XXH3-128 of the file in hex ("" of bytes); the file's text (*n = 0, NULL of bytes). */
const char *sk_tokenizer_name(const sk_tokenizer *t);
const char *sk_tokenizer_hash(const sk_tokenizer *t);
const char *sk_tokenizer_json(const sk_tokenizer *t, size_t *n);

/* Not collective. Appends the ids of text[n] to out. Fails when the regex exceeds its limits on it. */
int sk_tokenizer_encode(sk_tokenizer *t, const char *text, size_t n, sk_ids *out, sk_err *e);

/* Whether long text may be tokenized in parts: there are such places as the next two functions find. */
bool sk_tokenizer_cuttable(const sk_tokenizer *t);
/* The first place p in from .. n-1 where text may be cut: encoding [0, p) and [p, n) apart gives the same ids as
 * encoding it whole. n where there is none. */
size_t sk_tokenizer_cut(const sk_tokenizer *t, const char *text, size_t from, size_t n);
/* The last such place, 0 where there is none. */
size_t sk_tokenizer_last_cut(const sk_tokenizer *t, const char *text, size_t n);

/* The bytes that an id stands for (borrowed); *n = 0 for ids without a token. Not always whole characters. */
const char *sk_tokenizer_bytes_of(const sk_tokenizer *t, int64_t id, size_t *n);
/* Whether the id is a special token, which decoded text leaves out. */
bool sk_tokenizer_special(const sk_tokenizer *t, int64_t id);

/* Decoding as tokens come: start with {0}. push calls write with the bytes of whole characters as soon as they are
 * complete and keeps the rest; ill-formed bytes become U+FFFD. Special tokens are left out. finish writes what
 * was kept. */
typedef struct sk_detok {
  void (*write)(void *to, const char *bytes, size_t n);
  void *to;
  char held[4];
  size_t n;
} sk_detok;
void sk_detok_push(sk_detok *d, const sk_tokenizer *t, int64_t id);
void sk_detok_finish(sk_detok *d);
#endif
