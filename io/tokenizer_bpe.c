/* Byte pair encoding: vocabulary, ranked merges, and their application to one piece: the pair of the lowest rank,
 * the leftmost of equals, is merged until none is left. Short pieces by looking through all pairs, long ones with a
 * heap over a linked list. Pieces repeat (Zipf), so most come out of a cache. */
#include "io/tokenizer_parts.h"
#include "io/utf8.h"
#include <string.h>
#include <xxhash.h>

enum {
  MAX_ENTRIES = 1 << 22,
  MAX_HOLES = 1 << 16, /* ids without a token, beyond as many as there are tokens */
  SHORT = 40,          /* bytes of a piece that is merged without a heap */
  CACHE = 1 << 16,     /* entries */
  KEY = 46, IDS = 18   /* of an entry of 128 bytes */
};
static const uint32_t NONE = UINT32_MAX;

typedef struct sk_pair {
  uint64_t key; /* left << 32 | right */
  uint32_t rank;
  uint32_t used;
} pair;

typedef struct sk_cached {
  uint64_t hash;
  uint8_t n_key, n_id;
  char key[KEY];
  int32_t id[IDS];
} cached;

void sk_ids_room(sk_ids *x, int64_t n) {
  if (x->n + n <= x->cap) return;
  x->cap = x->n + n + x->cap / 2 + 64;
  x->at = sk_realloc(x->at, (size_t)x->cap * sizeof *x->at);
}

/* ---- the byte alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 on ---- */

static bool printable(unsigned b) { return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174; }

static uint32_t byte_char[256];
static int16_t char_byte[324];

static void make_alphabet(void) {
  uint32_t next = 256;
  if (byte_char[0]) return;
  for (int i = 0; i < 324; i++) char_byte[i] = -1;
  for (unsigned b = 0; b < 256; b++) {
    uint32_t c = printable(b) ? b : next++;
    char_byte[c] = (int16_t)b;
    byte_char[b] = c;
  }
}

uint32_t sk_byte_char(unsigned char b) { return byte_char[b]; }
int sk_char_byte(uint32_t cp) { return cp < 324 ? char_byte[cp] : -1; }

/* ---- tokens ---- */

/* What a token's text stands for: bytes if all its characters are in the alphabet, else its own UTF-8. */
static void store(sk_bpe *b, struct sk_token *t, const char *text, size_t n) {
  if (b->blob_n + n > b->blob_cap) b->blob = sk_realloc(b->blob, b->blob_cap = 2 * b->blob_cap + n + 4096);
  char *out = b->blob + b->blob_n;
  size_t m = 0, len;
  t->bytes = true;
  for (size_t i = 0; i < n; i += len) {
    int byte = sk_char_byte(sk_utf8_get(text + i, &len));
    if (byte < 0) {
      memcpy(out, text, m = n);
      t->bytes = false;
      break;
    }
    out[m++] = (char)byte;
  }
  t->at = (uint32_t)b->blob_n;
  t->n = (uint32_t)m;
  t->used = true;
  b->blob_n += m;
}

/* Room for ids below n. */
static void grow(sk_bpe *b, int64_t n) {
  if (n <= b->vocab) return;
  b->token = sk_realloc(b->token, (size_t)n * sizeof *b->token);
  memset(b->token + b->vocab, 0, (size_t)(n - b->vocab) * sizeof *b->token);
  b->vocab = n;
}

static int read_vocab(sk_bpe *b, json_t *vocab, const char *where, sk_err *e) {
  const char *text;
  json_t *x;
  int64_t n = (int64_t)json_object_size(vocab), limit = 2 * n + MAX_HOLES;
  if (!json_is_object(vocab) || n < 1 || n > MAX_ENTRIES)
    return sk_fail(e, SK_FAILED, "%s: model.vocab is not an object of 1 to %d tokens", where, MAX_ENTRIES);
  json_object_foreach(vocab, text, x) {
    int64_t id = json_is_integer(x) ? json_integer_value(x) : -1;
    if (id < 0 || id >= limit)
      return sk_fail(e, SK_FAILED, "%s: model.vocab: the id of %.80s is not a number from 0 to %lld", where, text,
                     (long long)limit - 1);
    grow(b, id + 1 > b->vocab ? (id + 1 < 2 * b->vocab && 2 * b->vocab < limit ? 2 * b->vocab : id + 1) : b->vocab);
    if (b->token[id].used)
      return sk_fail(e, SK_FAILED, "%s: model.vocab: the id %lld is given twice, the second time to %.80s", where,
                     (long long)id, text);
    store(b, &b->token[id], text, strlen(text));
  }
  while (!b->token[b->vocab - 1].used) b->vocab--;
  for (unsigned c = 0; c < 256; c++) {
    char key[5] = "";
    sk_utf8_put(byte_char[c], key);
    x = json_object_get(vocab, key);
    b->byte_id[c] = x ? (int32_t)json_integer_value(x) : -1;
    bool never = c == 0xc0 || c == 0xc1 || c >= 0xf5; /* in UTF-8 */
    if (!x && !never)
      return sk_fail(e, SK_FAILED, "%s: model.vocab has no token for the byte 0x%02x (%s): text with it would be lost",
                     where, c, key);
  }
  return SK_OK;
}

/* ---- merges ---- */

static uint64_t mix(uint64_t key) {
  key *= 0x9e3779b97f4a7c15u;
  return key ^ key >> 29;
}

static pair *slot(const sk_bpe *b, uint64_t key) {
  uint64_t i = mix(key) & b->pair_mask;
  while (b->pair[i].used && b->pair[i].key != key) i = (i + 1) & b->pair_mask;
  return &b->pair[i];
}

static uint32_t rank_of(const sk_bpe *b, int32_t left, int32_t right) {
  const pair *p = slot(b, (uint64_t)(uint32_t)left << 32 | (uint32_t)right);
  return p->used ? p->rank : NONE;
}

/* "left right" or ["left", "right"]: the three ids. */
static int read_merge(json_t *vocab, const json_t *m, int64_t rank, int32_t id[3], const char *where, sk_err *e) {
  const char *left = json_string_value(json_array_get(m, 0)), *right = json_string_value(json_array_get(m, 1));
  const char *both = json_string_value(m), *space = both ? strchr(both, ' ') : NULL;
  if (json_array_size(m) != 2) left = right = NULL;
  if (space && !strchr(space + 1, ' ')) left = both, right = space + 1;
  if (!left || !right)
    return sk_fail(e, SK_FAILED, "%s: model.merges[%lld] is not a pair of tokens", where, (long long)rank);
  size_t n = space ? (size_t)(space - both) : strlen(left), k = strlen(right);
  char *text = sk_malloc(n + k + 1);
  for (int i = 0; i < 3; i++) {
    size_t from = i == 1 ? n : 0, to = i == 0 ? n : n + k;
    memcpy(text, left, n);
    memcpy(text + n, right, k);
    text[to] = 0;
    const json_t *x = json_object_get(vocab, text + from);
    if (!x) {
      sk_fail(e, SK_FAILED, "%s: model.merges[%lld]: %.80s is not in model.vocab", where, (long long)rank, text + from);
      break;
    }
    id[i] = (int32_t)json_integer_value(x);
  }
  sk_free(text);
  return e->code;
}

static int read_merges(sk_bpe *b, json_t *vocab, const json_t *merges, const char *where, sk_err *e) {
  b->n_merge = (int64_t)json_array_size(merges);
  if (!json_is_array(merges) || b->n_merge > MAX_ENTRIES)
    return sk_fail(e, SK_FAILED, "%s: model.merges is not a list of at most %d pairs", where, MAX_ENTRIES);
  uint64_t size = 64;
  while (size < 2 * (uint64_t)b->n_merge) size *= 2;
  b->pair = sk_calloc(size, sizeof *b->pair);
  b->pair_mask = size - 1;
  b->merged = sk_calloc((size_t)b->n_merge, sizeof *b->merged);
  for (int64_t r = 0; r < b->n_merge; r++) {
    int32_t id[3];
    if (read_merge(vocab, json_array_get(merges, (size_t)r), r, id, where, e) != SK_OK) return e->code;
    uint64_t key = (uint64_t)(uint32_t)id[0] << 32 | (uint32_t)id[1];
    *slot(b, key) = (pair){key, (uint32_t)r, 1}; /* of a pair given twice the last counts, as in `tokenizers` */
    b->merged[r] = id[2];
  }
  b->first = sk_malloc(65536 * sizeof *b->first);
  for (int i = 0; i < 65536; i++) b->first[i] = rank_of(b, b->byte_id[i >> 8], b->byte_id[i & 255]);
  return SK_OK;
}

/* ---- whole words, for ignore_merges ---- */

static void index_words(sk_bpe *b) {
  uint64_t size = 64;
  while (size < 2 * (uint64_t)b->vocab) size *= 2;
  b->word = sk_malloc(size * sizeof *b->word);
  memset(b->word, 0xff, size * sizeof *b->word);
  b->word_mask = size - 1;
  for (int64_t id = 0; id < b->vocab; id++) {
    const struct sk_token *t = &b->token[id];
    if (!t->used || !t->bytes) continue;
    uint64_t i = XXH3_64bits(b->blob + t->at, t->n) & b->word_mask;
    while (b->word[i] >= 0) i = (i + 1) & b->word_mask;
    b->word[i] = (int32_t)id;
  }
}

static int32_t find_word(const sk_bpe *b, const char *p, size_t n, uint64_t hash) {
  for (uint64_t i = hash & b->word_mask; b->word[i] >= 0; i = (i + 1) & b->word_mask) {
    const struct sk_token *t = &b->token[b->word[i]];
    if (t->n == n && memcmp(b->blob + t->at, p, n) == 0) return b->word[i];
  }
  return -1;
}

/* ---- reading ---- */

static int check_options(const json_t *m, const char *where, sk_err *e) {
  static const char *const empty[] = {"continuing_subword_prefix", "end_of_word_suffix"};
  const char *type = json_string_value(json_object_get(m, "type"));
  if (!json_is_object(m) || (type ? strcmp(type, "BPE") : !json_object_get(m, "merges")))
    return sk_fail(e, SK_FAILED, "%s: the model %.40s is not supported (only BPE)", where, type ? type : "without a type");
  const json_t *dropout = json_object_get(m, "dropout");
  if (dropout && !json_is_null(dropout) && json_number_value(dropout) != 0)
    return sk_fail(e, SK_FAILED, "%s: model.dropout is not supported", where);
  for (int i = 0; i < 2; i++) {
    const json_t *x = json_object_get(m, empty[i]);
    if (x && !json_is_null(x) && (!json_is_string(x) || json_string_length(x) > 0))
      return sk_fail(e, SK_FAILED, "%s: model.%s is not supported", where, empty[i]);
  }
  return SK_OK;
}

int sk_bpe_read(sk_bpe *b, const json_t *m, const char *where, sk_err *e) {
  make_alphabet();
  json_t *vocab = json_object_get(m, "vocab");
  if (check_options(m, where, e) != SK_OK || read_vocab(b, vocab, where, e) != SK_OK ||
      read_merges(b, vocab, json_object_get(m, "merges"), where, e) != SK_OK)
    return e->code;
  b->ignore_merges = json_is_true(json_object_get(m, "ignore_merges"));
  if (b->ignore_merges) index_words(b);
  b->cache = sk_calloc(CACHE, sizeof *b->cache);
  return SK_OK;
}

void sk_bpe_add(sk_bpe *b, const char *text, size_t n, int64_t id, bool special) {
  grow(b, id + 1);
  if (!b->token[id].used) store(b, &b->token[id], text, n);
  if (special) b->token[id].special = true;
}

void sk_bpe_free(sk_bpe *b) {
  sk_free(b->token);
  sk_free(b->blob);
  sk_free(b->merged);
  sk_free(b->pair);
  sk_free(b->first);
  sk_free(b->word);
  sk_free(b->cache);
  sk_free(b->work);
  sk_free(b->rank);
  sk_free(b->heap);
  sk_free(b->next);
  sk_free(b->prev);
}

/* ---- merging one piece ---- */

static void need_work(sk_bpe *b, size_t n) {
  if (n <= b->work_cap) return;
  size_t cap = b->work_cap = n + n / 2 + 256;
  b->work = sk_realloc(b->work, cap * sizeof *b->work);
  b->rank = sk_realloc(b->rank, cap * sizeof *b->rank);
  b->next = sk_realloc(b->next, cap * sizeof *b->next);
  b->prev = sk_realloc(b->prev, cap * sizeof *b->prev);
  b->heap = sk_realloc(b->heap, 3 * cap * sizeof *b->heap); /* n pairs at first, 2 more for each merge */
}

/* The ids of the bytes and the ranks of their pairs; the last rank is NONE. */
static void begin(sk_bpe *b, const unsigned char *p, size_t n) {
  need_work(b, n);
  for (size_t i = 0; i < n; i++) {
    b->work[i] = b->byte_id[p[i]];
    b->rank[i] = i + 1 < n ? b->first[p[i] << 8 | p[i + 1]] : NONE;
  }
}

static size_t merge_short(sk_bpe *b, size_t n) {
  int32_t *id = b->work;
  uint32_t *rank = b->rank;
  for (;;) {
    size_t at = 0;
    for (size_t i = 1; i + 1 < n; i++)
      if (rank[i] < rank[at]) at = i;
    if (n < 2 || rank[at] == NONE) return n;
    id[at] = b->merged[rank[at]];
    n--;
    memmove(id + at + 1, id + at + 2, (n - at - 1) * sizeof *id);
    memmove(rank + at + 1, rank + at + 2, (n - at - 1) * sizeof *rank);
    rank[at] = at + 1 < n ? rank_of(b, id[at], id[at + 1]) : NONE;
    if (at > 0) rank[at - 1] = rank_of(b, id[at - 1], id[at]);
  }
}

static void push(uint64_t *heap, size_t *n, uint64_t key) {
  size_t i = (*n)++;
  for (; i > 0 && heap[(i - 1) / 2] > key; i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
  heap[i] = key;
}

static uint64_t pop(uint64_t *heap, size_t *n) {
  uint64_t top = heap[0], key = heap[--*n];
  size_t i = 0, k;
  for (; (k = 2 * i + 1) < *n; i = k) {
    if (k + 1 < *n && heap[k + 1] < heap[k]) k++;
    if (heap[k] >= key) break;
    heap[i] = heap[k];
  }
  heap[i] = key;
  return top;
}

/* Heap keys are rank << 32 | place. One is out of date when the rank at its place is another by now. */
static size_t merge_long(sk_bpe *b, size_t n) {
  int32_t *id = b->work, *next = b->next, *prev = b->prev;
  uint32_t *rank = b->rank;
  size_t queued = 0;
  for (size_t i = 0; i < n; i++) {
    next[i] = (int32_t)i + 1;
    prev[i] = (int32_t)i - 1;
    if (rank[i] != NONE) push(b->heap, &queued, (uint64_t)rank[i] << 32 | i);
  }
  while (queued > 0) {
    uint64_t key = pop(b->heap, &queued);
    size_t at = (uint32_t)key;
    if (rank[at] != key >> 32) continue;
    size_t gone = (size_t)next[at], after = (size_t)next[gone];
    id[at] = b->merged[rank[at]];
    rank[gone] = NONE;
    next[at] = (int32_t)after;
    if (after < n) prev[after] = (int32_t)at;
    rank[at] = after < n ? rank_of(b, id[at], id[after]) : NONE;
    if (rank[at] != NONE) push(b->heap, &queued, (uint64_t)rank[at] << 32 | at);
    if (prev[at] < 0) continue;
    size_t before = (size_t)prev[at];
    rank[before] = rank_of(b, id[before], id[at]);
    if (rank[before] != NONE) push(b->heap, &queued, (uint64_t)rank[before] << 32 | before);
  }
  size_t m = 0;
  for (size_t i = 0; i < n; i = (size_t)next[i]) id[m++] = id[i];
  return m;
}

void sk_bpe_encode(sk_bpe *b, const char *p, size_t n, sk_ids *out) {
  if (b->ignore_merges) {
    int32_t id = find_word(b, p, n, XXH3_64bits(p, n));
    if (id >= 0) {
      sk_ids_room(out, 1);
      out->at[out->n++] = id;
      return;
    }
  }
  begin(b, (const unsigned char *)p, n);
  n = n <= SHORT ? merge_short(b, n) : merge_long(b, n);
  sk_ids_room(out, (int64_t)n);
  memcpy(out->at + out->n, b->work, n * sizeof *b->work);
  out->n += (int64_t)n;
}

/* ---- the cache: one entry for each hash, the latest stays ---- */

bool sk_bpe_cached(sk_bpe *b, const char *p, size_t n, uint64_t *hash, sk_ids *out) {
  if (n > KEY) return false;
  *hash = XXH3_64bits(p, n);
  const cached *c = &b->cache[*hash % CACHE];
  if (c->hash != *hash || c->n_key != n || memcmp(c->key, p, n) != 0) return false;
  sk_ids_room(out, IDS);
  memcpy(out->at + out->n, c->id, sizeof c->id);
  out->n += c->n_id;
  return true;
}

void sk_bpe_remember(sk_bpe *b, const char *p, size_t n, uint64_t hash, const sk_ids *out, int64_t from) {
  int64_t k = out->n - from;
  if (n > KEY || k > IDS) return;
  cached *c = &b->cache[hash % CACHE];
  c->hash = hash;
  c->n_key = (uint8_t)n;
  c->n_id = (uint8_t)k;
  memcpy(c->key, p, n);
  memcpy(c->id, out->at + from, (size_t)k * sizeof *c->id);
}
