/* Added tokens: sought in the text before (or, when `normalized`, after) normalization and cut out of it whole: the
 * leftmost, of those the longest. A trie with children as linked lists, so that its size is that of the tokens. */
#include "io/tokenizer_parts.h"
#include "io/utf8.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_ADDED = 1 << 20 };

typedef struct node {
  uint32_t child, sibling; /* 0: none */
  int32_t token;           /* that ends here; -1: none */
  unsigned char byte;
} node;

typedef struct trie {
  node *at; /* at[0] is the root */
  uint32_t n, cap;
  uint32_t start[256]; /* the root's children by byte */
} trie;

typedef struct added {
  int32_t id;
  bool single_word, lstrip, rstrip;
} added;

struct sk_added {
  int32_t n;
  added *token;
  trie part[2]; /* sought in the text as it is, and in normalized text */
  bool cuttable;
  sk_regex *word; /* one character of a word; where a token asks for it */
};

/* ---- the trie ---- */

static uint32_t child_of(const trie *t, uint32_t at, unsigned char byte) {
  if (at == 0) return t->start[byte];
  uint32_t c = t->at[at].child;
  while (c && t->at[c].byte != byte) c = t->at[c].sibling;
  return c;
}

static void insert(trie *t, const char *text, size_t n, int32_t token) {
  uint32_t at = 0;
  for (size_t i = 0; i < n; i++) {
    unsigned char byte = (unsigned char)text[i];
    uint32_t c = child_of(t, at, byte);
    if (!c) {
      if (t->n == t->cap) t->at = sk_realloc(t->at, (t->cap = 2 * t->cap + 64) * sizeof *t->at);
      c = t->n++;
      t->at[c] = (node){.sibling = t->at[at].child, .token = -1, .byte = byte};
      t->at[at].child = c;
      if (at == 0) t->start[byte] = c;
    }
    at = c;
  }
  if (t->at[at].token < 0) t->at[at].token = token; /* of two alike the first counts */
}

/* The longest token at text; its length, 0 where there is none. */
static size_t longest(const trie *t, const char *text, size_t n, int32_t *token) {
  size_t best = 0;
  uint32_t at = t->start[(unsigned char)text[0]];
  for (size_t i = 1; at; i++) {
    if (t->at[at].token >= 0) best = i, *token = t->at[at].token;
    at = i < n ? child_of(t, at, (unsigned char)text[i]) : 0;
  }
  return best;
}

/* ---- reading ---- */

/* The id that `tokenizers` gives a token that the model's vocabulary does not have. */
static int64_t next_id(int64_t entries, int64_t largest_added) {
  return largest_added >= entries ? largest_added + 1 : entries;
}

static int read_id(const json_t *x, const json_t *vocab, const sk_bpe *b, const char *text, int64_t largest, int64_t *id,
                   const char *where, sk_err *e) {
  const json_t *given = json_object_get(x, "id"), *have = json_object_get(vocab, text);
  int64_t want = have ? json_integer_value(have) : next_id((int64_t)json_object_size(vocab), largest);
  *id = json_is_integer(given) ? json_integer_value(given) : -1;
  if (*id != want)
    return sk_fail(e, SK_FAILED, "%s: added_tokens: %.80s has the id %lld; %s %lld", where, text, (long long)*id,
                   have ? "in model.vocab it is" : "the next free one is", (long long)want);
  if (!have && (want > b->vocab || (want < b->vocab && b->token[want].used)))
    return sk_fail(e, SK_FAILED, "%s: added_tokens: the id %lld of %.80s is that of another token, or ids before it are "
                   "missing", where, (long long)want, text);
  return SK_OK;
}

static bool flag(const json_t *x, const char *key) { return json_is_true(json_object_get(x, key)); }

/* Special tokens come first, which matters where two are alike after normalization. */
static void put_in_trie(sk_added *a, const json_t *j, bool special, const sk_norm *norm, sk_err *e) {
  for (int32_t i = 0; i < a->n && !e->code; i++) {
    const json_t *x = json_array_get(j, (size_t)i);
    const char *text = json_string_value(json_object_get(x, "content"));
    size_t n = strlen(text), m = n;
    bool normalized = flag(x, "normalized");
    if (n == 0 || flag(x, "special") != special) continue;
    char *other = normalized ? sk_norm_apply(norm, text, n, &m, e) : NULL;
    if (!e->code && m > 0) insert(&a->part[normalized], other ? other : text, m, i);
    free(other);
  }
}

static void read_one(sk_added *a, int32_t i, const json_t *x, const json_t *vocab, sk_bpe *b, int64_t *largest,
                     const char *where, sk_err *e) {
  const char *text = json_string_value(json_object_get(x, "content"));
  int64_t id;
  if (!text) {
    sk_fail(e, SK_FAILED, "%s: added_tokens[%d] has no \"content\"", where, (int)i);
    return;
  }
  if (read_id(x, vocab, b, text, *largest, &id, where, e) != SK_OK || !text[0]) return;
  sk_bpe_add(b, text, strlen(text), id, flag(x, "special"));
  if (id > *largest) *largest = id;
  added *t = &a->token[i];
  *t = (added){(int32_t)id, flag(x, "single_word"), flag(x, "lstrip"), flag(x, "rstrip")};
  if (t->lstrip || strchr(text, '\n')) a->cuttable = false;
  if (t->single_word && !a->word)
    a->word = sk_regex_new("[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}]", false, where, e);
}

sk_added *sk_added_new(const json_t *j, const json_t *vocab, sk_bpe *b, const sk_norm *norm, const char *where,
                       sk_err *e) {
  sk_added *a = sk_calloc(1, sizeof *a);
  int64_t largest = -1;
  if (j && !json_is_null(j) && (!json_is_array(j) || json_array_size(j) > MAX_ADDED))
    sk_fail(e, SK_FAILED, "%s: added_tokens is not a list of at most %d tokens", where, MAX_ADDED);
  a->cuttable = true;
  a->n = e->code ? 0 : (int32_t)json_array_size(j);
  a->token = sk_calloc((size_t)a->n, sizeof *a->token);
  for (int i = 0; i < 2; i++) {
    a->part[i].at = sk_calloc(1, sizeof *a->part[i].at);
    a->part[i].at[0].token = -1;
    a->part[i].n = a->part[i].cap = 1;
  }
  for (int32_t i = 0; i < a->n && !e->code; i++)
    read_one(a, i, json_array_get(j, (size_t)i), vocab, b, &largest, where, e);
  if (!e->code) put_in_trie(a, j, true, norm, e);
  if (!e->code) put_in_trie(a, j, false, norm, e);
  if (!e->code) return a;
  sk_added_free(a);
  return NULL;
}

void sk_added_free(sk_added *a) {
  if (!a) return;
  sk_free(a->part[0].at);
  sk_free(a->part[1].at);
  sk_free(a->token);
  sk_regex_free(a->word);
  sk_free(a);
}

bool sk_added_any(const sk_added *a, bool normalized) { return a->part[normalized].n > 1; }
bool sk_added_cuttable(const sk_added *a) { return a->cuttable; }

/* ---- splitting ---- */

/* The character that ends before text + at. */
static size_t char_before(const char *text, size_t at) {
  do at--;
  while ((text[at] & 0xc0) == 0x80);
  return at;
}

static bool is_word(sk_added *a, const char *text, sk_err *e) {
  size_t len, from = 0, last = SIZE_MAX, begin, end;
  sk_utf8_get(text, &len);
  return sk_regex_next(a->word, text, len, &from, &last, &begin, &end, e);
}

static bool is_space(const char *text, size_t *len) { return sk_utf8_space(sk_utf8_get(text, len)); }

/* A token as a word of its own: no letter, digit or the like beside it. */
static bool stands_alone(sk_added *a, const char *text, size_t n, size_t begin, size_t end, sk_err *e) {
  return !(begin > 0 && is_word(a, text + char_before(text, begin), e)) && !(end < n && is_word(a, text + end, e));
}

/* The matches and their order are those of `tokenizers`, odd cases included: a match inside of space that the token
 * before has taken counts as well. */
void sk_added_split(sk_added *a, bool normalized, const char *text, size_t n, sk_piece_fn piece, void *to, sk_ids *out,
                    sk_err *e) {
  const trie *t = &a->part[normalized];
  size_t done = 0, len;
  for (size_t i = 0; i < n && !e->code; i += len) {
    int32_t which = -1;
    len = 1;
    if (!t->start[(unsigned char)text[i]]) continue;
    size_t found = longest(t, text + i, n - i, &which);
    if (!found) continue;
    len = found;
    size_t begin = i, end = i + found, k;
    const added *token = &a->token[which];
    if (token->single_word && !stands_alone(a, text, n, begin, end, e)) continue;
    while (token->lstrip && begin > done && is_space(text + char_before(text, begin), &k))
      begin = char_before(text, begin);
    while (token->rstrip && end < n && is_space(text + end, &k)) end += k;
    if (begin > done) piece(to, text + done, begin - done, e);
    sk_ids_room(out, 1);
    out->at[out->n++] = token->id;
    done = end;
  }
  if (done < n && !e->code) piece(to, text + done, n - done, e);
}
