/* The pre-tokenizer: a list of splits with the mapping of bytes to characters (ByteLevel) somewhere in it. Splits
 * before it see the text; those behind it see one character per byte. Pieces are handed on depth first, so each
 * split needs at most one buffer. */
#include "io/tokenizer_parts.h"
#include "io/utf8.h"
#include <string.h>

enum { MAX_STEPS = 16 };

typedef enum { ISOLATED, REMOVED, CONTIGUOUS, WITH_PREVIOUS, WITH_NEXT } behavior;

typedef struct step {
  bool prefix; /* put a space before a piece that has none; no split */
  sk_regex *regex;
  behavior how;
  bool invert;
  char *buf; /* prefix: the piece; inner splits: its characters */
  size_t cap;
} step;

struct sk_pretok {
  int n, map; /* the first `map` steps are outer ones; map < 0: no ByteLevel seen yet */
  step step[MAX_STEPS];
};

static const char gpt2[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* What the pre-tokenizer Punctuation of `tokenizers` takes for punctuation: ASCII's, and the categories P of Unicode 8,
 * whatever the version of the regex library. Found by asking it (0.23.3) for every code point. */
static const char punctuation[] =
    "["
    "\\x{21}-\\x{2f}\\x{3a}-\\x{40}\\x{5b}-\\x{60}\\x{7b}-\\x{7e}\\x{a1}\\x{a7}\\x{ab}\\x{b6}-\\x{b7}\\x{bb}"
    "\\x{bf}\\x{37e}\\x{387}\\x{55a}-\\x{55f}\\x{589}-\\x{58a}\\x{5be}\\x{5c0}\\x{5c3}\\x{5c6}"
    "\\x{5f3}-\\x{5f4}\\x{609}-\\x{60a}\\x{60c}-\\x{60d}\\x{61b}\\x{61e}-\\x{61f}\\x{66a}-\\x{66d}\\x{6d4}"
    "\\x{700}-\\x{70d}\\x{7f7}-\\x{7f9}\\x{830}-\\x{83e}\\x{85e}\\x{964}-\\x{965}\\x{970}\\x{af0}\\x{df4}"
    "\\x{e4f}\\x{e5a}-\\x{e5b}\\x{f04}-\\x{f12}\\x{f14}\\x{f3a}-\\x{f3d}\\x{f85}\\x{fd0}-\\x{fd4}"
    "\\x{fd9}-\\x{fda}\\x{104a}-\\x{104f}\\x{10fb}\\x{1360}-\\x{1368}\\x{1400}\\x{166d}-\\x{166e}"
    "\\x{169b}-\\x{169c}\\x{16eb}-\\x{16ed}\\x{1735}-\\x{1736}\\x{17d4}-\\x{17d6}\\x{17d8}-\\x{17da}"
    "\\x{1800}-\\x{180a}\\x{1944}-\\x{1945}\\x{1a1e}-\\x{1a1f}\\x{1aa0}-\\x{1aa6}\\x{1aa8}-\\x{1aad}"
    "\\x{1b5a}-\\x{1b60}\\x{1bfc}-\\x{1bff}\\x{1c3b}-\\x{1c3f}\\x{1c7e}-\\x{1c7f}\\x{1cc0}-\\x{1cc7}\\x{1cd3}"
    "\\x{2010}-\\x{2027}\\x{2030}-\\x{2043}\\x{2045}-\\x{2051}\\x{2053}-\\x{205e}\\x{207d}-\\x{207e}"
    "\\x{208d}-\\x{208e}\\x{2308}-\\x{230b}\\x{2329}-\\x{232a}\\x{2768}-\\x{2775}\\x{27c5}-\\x{27c6}"
    "\\x{27e6}-\\x{27ef}\\x{2983}-\\x{2998}\\x{29d8}-\\x{29db}\\x{29fc}-\\x{29fd}\\x{2cf9}-\\x{2cfc}"
    "\\x{2cfe}-\\x{2cff}\\x{2d70}\\x{2e00}-\\x{2e2e}\\x{2e30}-\\x{2e42}\\x{3001}-\\x{3003}\\x{3008}-\\x{3011}"
    "\\x{3014}-\\x{301f}\\x{3030}\\x{303d}\\x{30a0}\\x{30fb}\\x{a4fe}-\\x{a4ff}\\x{a60d}-\\x{a60f}\\x{a673}"
    "\\x{a67e}\\x{a6f2}-\\x{a6f7}\\x{a874}-\\x{a877}\\x{a8ce}-\\x{a8cf}\\x{a8f8}-\\x{a8fa}\\x{a8fc}"
    "\\x{a92e}-\\x{a92f}\\x{a95f}\\x{a9c1}-\\x{a9cd}\\x{a9de}-\\x{a9df}\\x{aa5c}-\\x{aa5f}\\x{aade}-\\x{aadf}"
    "\\x{aaf0}-\\x{aaf1}\\x{abeb}\\x{fd3e}-\\x{fd3f}\\x{fe10}-\\x{fe19}\\x{fe30}-\\x{fe52}\\x{fe54}-\\x{fe61}"
    "\\x{fe63}\\x{fe68}\\x{fe6a}-\\x{fe6b}\\x{ff01}-\\x{ff03}\\x{ff05}-\\x{ff0a}\\x{ff0c}-\\x{ff0f}"
    "\\x{ff1a}-\\x{ff1b}\\x{ff1f}-\\x{ff20}\\x{ff3b}-\\x{ff3d}\\x{ff3f}\\x{ff5b}\\x{ff5d}\\x{ff5f}-\\x{ff65}"
    "\\x{10100}-\\x{10102}\\x{1039f}\\x{103d0}\\x{1056f}\\x{10857}\\x{1091f}\\x{1093f}\\x{10a50}-\\x{10a58}"
    "\\x{10a7f}\\x{10af0}-\\x{10af6}\\x{10b39}-\\x{10b3f}\\x{10b99}-\\x{10b9c}\\x{11047}-\\x{1104d}"
    "\\x{110bb}-\\x{110bc}\\x{110be}-\\x{110c1}\\x{11140}-\\x{11143}\\x{11174}-\\x{11175}\\x{111c5}-\\x{111c9}"
    "\\x{111cd}\\x{111db}\\x{111dd}-\\x{111df}\\x{11238}-\\x{1123d}\\x{112a9}\\x{114c6}\\x{115c1}-\\x{115d7}"
    "\\x{11641}-\\x{11643}\\x{1173c}-\\x{1173e}\\x{12470}-\\x{12474}\\x{16a6e}-\\x{16a6f}\\x{16af5}"
    "\\x{16b37}-\\x{16b3b}\\x{16b44}\\x{1bc9f}\\x{1da87}-\\x{1da8b}"
    "]";

/* ---- reading ---- */

static step *add(sk_pretok *p, const char *where, sk_err *e) {
  if (p->n == MAX_STEPS) {
    sk_fail(e, SK_FAILED, "%s: more than %d pre-tokenizers", where, MAX_STEPS);
    return NULL;
  }
  return &p->step[p->n++];
}

static void add_split(sk_pretok *p, const char *pattern, bool literal, behavior how, bool invert, const char *where,
                      sk_err *e) {
  step *s = add(p, where, e);
  if (!s) return;
  s->how = how;
  s->invert = invert;
  s->regex = sk_regex_new(pattern, literal, where, e);
}

static bool flag(const json_t *j, const char *key, bool otherwise) {
  const json_t *x = json_object_get(j, key);
  return x ? json_is_true(x) : otherwise;
}

static behavior read_behavior(const json_t *j, const char *where, sk_err *e) {
  static const char *const name[] = {"Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext"};
  const char *s = json_string_value(json_object_get(j, "behavior"));
  for (int i = 0; s && i < 5; i++)
    if (!strcmp(s, name[i])) return (behavior)i;
  sk_fail(e, SK_FAILED, "%s: the pre-tokenizer's behavior %.40s is not known", where, s ? s : "is missing or");
  return ISOLATED;
}

static void byte_level(sk_pretok *p, const json_t *j, const char *where, sk_err *e) {
  if (p->map >= 0) sk_fail(e, SK_FAILED, "%s: ByteLevel twice in the pre-tokenizer is not supported", where);
  if (!e->code && flag(j, "add_prefix_space", true)) {
    step *s = add(p, where, e);
    if (s) s->prefix = true;
  }
  if (!e->code && flag(j, "use_regex", true)) add_split(p, gpt2, false, ISOLATED, false, where, e);
  p->map = p->n;
}

static void split(sk_pretok *p, const json_t *j, const char *where, sk_err *e) {
  const json_t *pattern = json_object_get(j, "pattern");
  const char *regex = json_string_value(json_object_get(pattern, "Regex"));
  const char *text = json_string_value(json_object_get(pattern, "String"));
  if (!regex && !text) sk_fail(e, SK_FAILED, "%s: Split has no pattern {\"Regex\"} or {\"String\"}", where);
  behavior how = read_behavior(j, where, e);
  if (!e->code) add_split(p, regex ? regex : text, !regex, how, flag(j, "invert", false), where, e);
}

static void read_one(sk_pretok *p, const json_t *j, int depth, const char *where, sk_err *e) {
  const char *type = json_string_value(json_object_get(j, "type"));
  if (!type) type = "without a type";
  if (!strcmp(type, "Sequence") && depth < 4) {
    const json_t *list = json_object_get(j, "pretokenizers"), *x;
    size_t i;
    if (!json_is_array(list)) sk_fail(e, SK_FAILED, "%s: pre-tokenizer Sequence has no list", where);
    json_array_foreach(list, i, x) if (!e->code) read_one(p, x, depth + 1, where, e);
  } else if (!strcmp(type, "ByteLevel")) {
    byte_level(p, j, where, e);
  } else if (!strcmp(type, "Split")) {
    split(p, j, where, e);
  } else if (!strcmp(type, "Digits")) {
    add_split(p, "\\p{N}", false, flag(j, "individual_digits", false) ? ISOLATED : CONTIGUOUS, false, where, e);
  } else if (!strcmp(type, "Punctuation")) {
    behavior how = json_object_get(j, "behavior") ? read_behavior(j, where, e) : ISOLATED;
    add_split(p, punctuation, false, how, false, where, e);
  } else {
    sk_fail(e, SK_FAILED, "%s: the pre-tokenizer %.60s is not supported (only ByteLevel, Split, Digits, Punctuation, "
            "Sequence)", where, type);
  }
}

sk_pretok *sk_pretok_new(const json_t *j, const char *where, sk_err *e) {
  sk_pretok *p = sk_calloc(1, sizeof *p);
  p->map = -1;
  if (json_is_object(j)) read_one(p, j, 0, where, e);
  if (!e->code && p->map < 0)
    sk_fail(e, SK_FAILED, "%s: its pre-tokenizer has no ByteLevel: only byte-level BPE is supported", where);
  if (!e->code) return p;
  sk_pretok_free(p);
  return NULL;
}

void sk_pretok_free(sk_pretok *p) {
  if (!p) return;
  for (int i = 0; i < p->n; i++) {
    sk_regex_free(p->step[i].regex);
    sk_free(p->step[i].buf);
  }
  sk_free(p);
}

/* ---- splitting ---- */

typedef struct walk {
  sk_pretok *p;
  int end; /* steps before this one are gone through */
  bool mapped;
  sk_piece_fn piece;
  void *to;
  sk_err *e;
} walk;

static void go(const walk *w, int k, const char *text, size_t n);

static char *room(step *s, size_t n) {
  if (n > s->cap) s->buf = sk_realloc(s->buf, s->cap = n + n / 2 + 64);
  return s->buf;
}

/* The ranges that matches and what lies between them become: a range is kept back until it is known whether the next
 * one joins it. Offsets are those of the subject; next: from where to count bytes when it is mapped. */
typedef struct ranges {
  const walk *w;
  int k;
  const step *s;
  const char *text, *subject;
  bool any, was_match;
  size_t begin, end; /* kept back */
  size_t chars, bytes;
} ranges;

/* The byte of the piece that a place of the mapped subject stands for. */
static size_t byte_at(ranges *r, size_t at) {
  for (; r->chars < at; r->chars++) r->bytes += (r->subject[r->chars] & 0xc0) != 0x80;
  return r->bytes;
}

static void hand_on(ranges *r) {
  size_t begin = r->begin, end = r->end;
  if (r->w->mapped) begin = byte_at(r, begin), end = byte_at(r, end);
  if (end > begin) go(r->w, r->k + 1, r->text + begin, end - begin);
}

static void range(ranges *r, size_t begin, size_t end, bool match) {
  match = match != r->s->invert;
  bool join = r->any && ((r->s->how == CONTIGUOUS && match == r->was_match) ||
                         (r->s->how == WITH_PREVIOUS && match && !r->was_match) ||
                         (r->s->how == WITH_NEXT && !match && r->was_match));
  bool drop = r->s->how == REMOVED && match;
  if (!join && r->any) hand_on(r);
  if (!join) r->begin = begin;
  r->end = drop ? begin : end;
  r->any = true;
  r->was_match = match;
}

/* One character for each byte. */
static size_t map_bytes(step *s, const char *text, size_t n) {
  char *out = room(s, 2 * n);
  size_t m = 0;
  for (size_t i = 0; i < n; i++) m += sk_utf8_put(sk_byte_char((unsigned char)text[i]), out + m);
  return m;
}

static void go(const walk *w, int k, const char *text, size_t n) {
  if (n == 0 || w->e->code) return;
  if (k == w->end) {
    w->piece(w->to, text, n, w->e);
    return;
  }
  step *s = &w->p->step[k];
  if (s->prefix) {
    if (text[0] == ' ') {
      go(w, k + 1, text, n);
      return;
    }
    char *buf = room(s, n + 1);
    buf[0] = ' ';
    memcpy(buf + 1, text, n);
    go(w, k + 1, buf, n + 1);
    return;
  }
  ranges r = {.w = w, .k = k, .s = s, .text = text, .subject = text};
  if (w->mapped) {
    n = map_bytes(s, text, n);
    r.subject = s->buf;
  }
  size_t from = 0, last = SIZE_MAX, begin, end, done = 0;
  while (sk_regex_next(s->regex, r.subject, n, &from, &last, &begin, &end, w->e)) {
    if (done != begin) range(&r, done, begin, false);
    range(&r, begin, end, true);
    done = end;
  }
  if (done != n) range(&r, done, n, false);
  if (r.any && !w->e->code) hand_on(&r);
}

void sk_pretok_outer(sk_pretok *p, const char *text, size_t n, sk_piece_fn piece, void *to, sk_err *e) {
  go(&(walk){p, p->map, false, piece, to, e}, 0, text, n);
}

void sk_pretok_inner(sk_pretok *p, const char *bytes, size_t n, sk_piece_fn piece, void *to, sk_err *e) {
  go(&(walk){p, p->n, true, piece, to, e}, p->map, bytes, n);
}
