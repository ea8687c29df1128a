/* tokenizer_parts.h: the stages of a tokenizer, for io/tokenizer*.c only.
 *
 *   text -> UTF-8 -> added tokens | normalizer -> added tokens | pre-tokenizer -> pieces -> BPE -> ids */
#ifndef SK_TOKENIZER_PARTS_H
#define SK_TOKENIZER_PARTS_H
#include "io/tokenizer.h"
#include <jansson.h>

/* ---- the byte alphabet of byte-level BPE (GPT-2): each byte is one printable character ---- */
uint32_t sk_byte_char(unsigned char b);
/* The byte of a character, -1 when it is not in the alphabet. */
int sk_char_byte(uint32_t cp);

/* ---- regular expressions (tokenizer_regex.c) ---- */
typedef struct sk_regex sk_regex;
/* pattern: in Oniguruma's syntax as `tokenizers` takes it, or literal text. Constructs that mean something else in
 * PCRE2 are translated or refused by name. */
sk_regex *sk_regex_new(const char *pattern, bool literal, const char *where, sk_err *e);
void sk_regex_free(sk_regex *r);
/* The next match at or after `from`, as find_iter of the regex libraries gives them (*last: the end of the match
 * before, SIZE_MAX at first). False: no more, or a limit was exceeded (e). */
bool sk_regex_next(sk_regex *r, const char *text, size_t n, size_t *from, size_t *last, size_t *begin, size_t *end,
                   sk_err *e);

/* ---- normalizer (tokenizer_norm.c) ---- */
typedef struct sk_norm sk_norm;
/* Of the JSON value `normalizer`; NULL with e->code 0 when there is nothing to do. */
sk_norm *sk_norm_new(const json_t *j, const char *where, sk_err *e);
void sk_norm_free(sk_norm *m);
/* The normal form of valid UTF-8, owned by the caller; NULL when it is the text itself (also for m == NULL). */
char *sk_norm_apply(const sk_norm *m, const char *text, size_t n, size_t *len, sk_err *e);

/* ---- pre-tokenizer (tokenizer_split.c) ---- */
typedef struct sk_pretok sk_pretok;
sk_pretok *sk_pretok_new(const json_t *j, const char *where, sk_err *e);
void sk_pretok_free(sk_pretok *p);
/* What a piece is given to: bytes of the text. */
typedef void (*sk_piece_fn)(void *to, const char *bytes, size_t n, sk_err *e);
/* The splits before the bytes are mapped (outer), and those that see the mapped characters (inner), of which there
 * may be none. */
void sk_pretok_outer(sk_pretok *p, const char *text, size_t n, sk_piece_fn piece, void *to, sk_err *e);
void sk_pretok_inner(sk_pretok *p, const char *bytes, size_t n, sk_piece_fn piece, void *to, sk_err *e);

/* ---- vocabulary and merges (tokenizer_bpe.c) ---- */
typedef struct sk_bpe {
  int64_t vocab;          /* largest id + 1, added tokens included */
  struct sk_token {
    uint32_t at, n;       /* its bytes in blob */
    bool used, special;
    bool bytes;           /* its text is in the byte alphabet */
  } *token;               /* [vocab] */
  char *blob;
  size_t blob_n, blob_cap;
  int32_t byte_id[256];   /* -1: only bytes that UTF-8 never has */
  bool ignore_merges;
  int64_t n_merge;
  int32_t *merged;        /* [n_merge] what merge r makes */
  struct sk_pair *pair;   /* hash table of (left, right) -> r */
  uint64_t pair_mask;
  uint32_t *first;        /* [256 * 256] the same for two bytes */
  int32_t *word;          /* ignore_merges: hash table of bytes -> id, -1 empty */
  uint64_t word_mask;
  struct sk_cached *cache;
  int32_t *work;          /* buffers for one piece */
  uint32_t *rank;
  uint64_t *heap;
  int32_t *next, *prev;
  size_t work_cap;
} sk_bpe;

/* Of the JSON value `model`: vocabulary, merges, options. */
int sk_bpe_read(sk_bpe *b, const json_t *model, const char *where, sk_err *e);
/* Gives the id a token that may be there already; id <= vocab. */
void sk_bpe_add(sk_bpe *b, const char *text, size_t n, int64_t id, bool special);
void sk_bpe_free(sk_bpe *b);
/* Appends the ids of one piece (n >= 1 bytes). */
void sk_bpe_encode(sk_bpe *b, const char *p, size_t n, sk_ids *out);
/* The cache of pieces: get appends the ids of a piece it knows; put remembers out->at[from ..]. */
bool sk_bpe_cached(sk_bpe *b, const char *p, size_t n, uint64_t *hash, sk_ids *out);
void sk_bpe_remember(sk_bpe *b, const char *p, size_t n, uint64_t hash, const sk_ids *out, int64_t from);

/* ---- added tokens (tokenizer_added.c) ---- */
typedef struct sk_added sk_added;
/* Of the JSON value `added_tokens`; they enter b as well. vocab: the model's. norm: for those that are sought in
 * normalized text. */
sk_added *sk_added_new(const json_t *j, const json_t *vocab, sk_bpe *b, const sk_norm *norm, const char *where,
                       sk_err *e);
void sk_added_free(sk_added *a);
bool sk_added_any(const sk_added *a, bool normalized);
/* Whether one could match across or beside a line's end. */
bool sk_added_cuttable(const sk_added *a);
/* Cuts text at the tokens: text between them goes to piece, ids to out. */
void sk_added_split(sk_added *a, bool normalized, const char *text, size_t n, sk_piece_fn piece, void *to, sk_ids *out,
                    sk_err *e);
#endif
