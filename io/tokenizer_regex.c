/* Regular expressions by PCRE2, as Oniguruma (which `tokenizers` uses) understands them.
 *
 * The two agree on what the usual patterns need, except where this file translates: \s (PCRE2 counts U+180E in),
 * \v, \u, script names, ^ and $. Whatever else could mean something else is refused.
 *
 * Time: a pattern whose alternatives have at most two unbounded repeats, none of a group, and nothing that could
 * fail after the second one, needs time linear in the text per start and is compiled by the JIT. Any other is
 * interpreted, where PCRE2 counts the steps and gives up after MAX_STEPS. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "io/tokenizer_parts.h"
#include "io/utf8.h"
#include <pcre2.h>
#include <string.h>

enum { MAX_PATTERN = 8192, GROWTH = 16, MAX_STEPS = 1000000 };

struct sk_regex {
  pcre2_code *code;
  pcre2_match_data *data;
  pcre2_match_context *limits;
  bool jit;
  char *where;
};

/* ---- translation ---- */

typedef struct parser {
  const char *p, *where, *whole;
  char *out;
  int depth;
  int repeats;       /* unbounded ones of this alternative */
  bool atom, group;  /* whether a repeat may follow; the atom was a group */
  bool tail, slow;   /* something that may fail came after the second repeat; not linear */
  sk_err *e;
} parser;

static void put(parser *s, const char *text) {
  size_t n = strlen(text);
  memcpy(s->out, text, n);
  s->out += n;
}

static void refuse(parser *s, const char *at, int n) {
  sk_fail(s->e, SK_FAILED, "%s: the regex %.200s has `%.*s`, which is not supported", s->where, s->whole, n, at);
}

static bool is_alnum(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* \p{NAME} and \P{NAME}: general categories and some properties as they are, anything else is a script's name. */
static void property(parser *s) {
  static const char *const binary[] = {"Alphabetic", "Lowercase", "Uppercase", "White_Space", "Emoji"};
  const char *name = s->p + 3, *end = s->p[2] == '{' ? strchr(name, '}') : NULL;
  size_t n = end ? (size_t)(end - name) : 0;
  if (n < 1 || n > 30) {
    refuse(s, s->p, 3);
    return;
  }
  for (size_t i = 0; i < n; i++)
    if (!is_alnum(name[i]) && name[i] != '_') {
      refuse(s, s->p, (int)n + 4);
      return;
    }
  char text[48];
  bool script = n > 2;
  for (size_t i = 0; i < sizeof binary / sizeof *binary; i++)
    if (strlen(binary[i]) == n && strncmp(binary[i], name, n) == 0) script = false;
  snprintf(text, sizeof text, "\\%c{%s%.*s}", s->p[1], script ? "sc:" : "", (int)n, name);
  put(s, text);
  s->p = end + 1;
}

/* \uHHHH, \xHH (below 80: above they are bytes to Oniguruma) and \x{H...}. */
static void code_point(parser *s) {
  const char *at = s->p;
  unsigned cp = 0;
  int n = 0, want = at[1] == 'u' ? 4 : 2;
  bool braces = at[1] == 'x' && at[2] == '{';
  s->p += 2 + braces;
  for (; (braces ? n < 7 : n < want); n++, s->p++) {
    char c = *s->p;
    int v = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    if (v < 0) break;
    cp = cp * 16 + (unsigned)v;
  }
  bool ok = braces ? n > 0 && *s->p == '}' : n == want;
  if (!ok || cp > 0x10ffff || (at[1] == 'x' && !braces && cp > 0x7f)) {
    refuse(s, at, 4);
    return;
  }
  s->p += braces;
  char text[16];
  snprintf(text, sizeof text, "\\x{%x}", cp);
  put(s, text);
}

static void escape(parser *s) {
  char c = s->p[1];
  if (c == 'p' || c == 'P') {
    property(s);
    return;
  }
  if (c == 'u' || c == 'x') {
    code_point(s);
    return;
  }
  if (c == 's') put(s, "\\p{White_Space}");
  else if (c == 'S') put(s, "\\P{White_Space}");
  else if (c == 'd') put(s, "\\p{Nd}");
  else if (c == 'D') put(s, "\\P{Nd}");
  else if (c == 'v') put(s, "\\x{b}");
  else if (c && strchr("rntfae", c)) put(s, (char[]){'\\', c, 0});
  else if (c > ' ' && c < 127 && !is_alnum(c)) put(s, (char[]){'\\', c, 0});
  else if (c == ' ') put(s, " ");
  else {
    refuse(s, s->p, 2);
    return;
  }
  s->p += 2;
}

static void class(parser *s) {
  put(s, "[");
  s->p++;
  if (*s->p == '^') put(s, "^"), s->p++;
  if (*s->p == ']') refuse(s, s->p - 1, 2);
  while (*s->p && *s->p != ']' && !s->e->code) {
    if (*s->p == '\\') escape(s);
    else if (*s->p == '[' || (s->p[0] == '&' && s->p[1] == '&')) refuse(s, s->p, 2);
    else *s->out++ = *s->p++;
  }
  if (!*s->p) refuse(s, s->whole, 20);
  put(s, "]");
  s->p++;
}

static void open_group(parser *s) {
  static const char *const known[] = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
  s->depth++;
  s->atom = false;
  if (s->p[1] != '?') {
    put(s, "(");
    s->p++;
    return;
  }
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (strncmp(s->p, known[i], strlen(known[i])) == 0) {
      put(s, known[i]);
      s->p += strlen(known[i]);
      return;
    }
  refuse(s, s->p, 4);
}

/* A repeat behind an atom. Lazy and possessive forms only after *, + and ?. */
static void repeat(parser *s) {
  bool unbounded = *s->p == '*' || *s->p == '+', optional = *s->p == '*' || *s->p == '?';
  const char *at = s->p;
  if (!s->atom) {
    refuse(s, at, 1);
    return;
  }
  if (*s->p == '{') {
    const char *end = s->p + 1 + strspn(s->p + 1, "0123456789");
    optional = s->p[1] == '0';
    if (end == s->p + 1) refuse(s, at, 2);
    if (*end == ',') end += 1 + strspn(end + 1, "0123456789"), unbounded = end[-1] == ',';
    if (*end != '}' || end[1] == '+' || end[1] == '?' || end[1] == '*') refuse(s, at, (int)(end - at) + 2);
    if (s->e->code) return;
    memcpy(s->out, s->p, (size_t)(end + 1 - s->p));
    s->out += end + 1 - s->p;
    s->p = end + 1;
  } else {
    *s->out++ = *s->p++;
    if (*s->p == '+' || *s->p == '?') *s->out++ = *s->p++;
  }
  if (unbounded && ++s->repeats > 2) s->slow = true;
  if (s->group && *at != '?') s->slow = true;
  if (optional && !unbounded) s->tail = false;
  s->atom = false;
}

static void atom(parser *s, bool group) {
  s->slow = s->slow || s->tail; /* the atom before was no optional end */
  s->atom = true;
  s->group = group;
  s->tail = s->repeats >= 2;
}

static void one(parser *s) {
  char c = *s->p;
  if (c == '(') {
    open_group(s);
  } else if (c == ')' || c == '|') {
    if (c == ')' && s->depth-- == 0) refuse(s, s->p, 1);
    *s->out++ = *s->p++;
    s->atom = false;
    if (c == ')') atom(s, true);
    if (c == '|' && s->depth == 0) s->slow = s->slow || s->tail, s->repeats = 0, s->tail = false;
  } else if (c == '*' || c == '+' || c == '?' || c == '{') {
    repeat(s);
  } else {
    atom(s, false);
    if (c == '[') class(s);
    else if (c == '\\') escape(s);
    else if (c == '^') put(s, "(?:\\A|(?<=\\n)(?!\\z))"), s->p++;
    else if (c == '$') put(s, "(?=\\n|\\z)"), s->p++;
    else *s->out++ = *s->p++;
    while ((*s->p & 0xc0) == 0x80) *s->out++ = *s->p++; /* the rest of a character */
  }
}

/* The pattern in PCRE2's syntax, owned by the caller. */
static char *translate(const char *pattern, const char *where, bool *linear, sk_err *e) {
  char *out = sk_calloc(strlen(pattern) + 2, GROWTH + 8);
  parser s = {.p = pattern, .whole = pattern, .where = where, .out = out, .e = e};
  while (*s.p && !e->code) one(&s);
  if (s.depth > 0) refuse(&s, "(", 1);
  *linear = !s.slow && !s.tail;
  return out;
}

/* ---- compilation ---- */

sk_regex *sk_regex_new(const char *pattern, bool literal, const char *where, sk_err *e) {
  if (!pattern[0] || strlen(pattern) > MAX_PATTERN) {
    sk_fail(e, SK_FAILED, "%s: a pattern of %zu bytes; 1 to %d are possible", where, strlen(pattern), MAX_PATTERN);
    return NULL;
  }
  bool linear = true;
  char *text = literal ? sk_strdup(pattern) : translate(pattern, where, &linear, e);
  int error = 0;
  PCRE2_SIZE at = 0;
  sk_regex *r = sk_calloc(1, sizeof *r);
  pcre2_compile_context *c = pcre2_compile_context_create(NULL);
  pcre2_set_newline(c, PCRE2_NEWLINE_LF);
  r->where = sk_strdup(where);
  if (!e->code) {
    uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C);
    r->code = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED, options, &error, &at, c);
    if (!r->code) {
      PCRE2_UCHAR why[128] = "";
      pcre2_get_error_message(error, why, sizeof why);
      sk_fail(e, SK_FAILED, "%s: the regex %.200s: %s", where, pattern, (char *)why);
    }
  }
  pcre2_compile_context_free(c);
  sk_free(text);
  if (e->code) {
    sk_regex_free(r);
    return NULL;
  }
  r->jit = linear && pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE) == 0;
  r->data = pcre2_match_data_create(1, NULL);
  r->limits = pcre2_match_context_create(NULL);
  pcre2_set_match_limit(r->limits, MAX_STEPS);
  return r;
}

void sk_regex_free(sk_regex *r) {
  if (!r) return;
  pcre2_match_context_free(r->limits);
  pcre2_match_data_free(r->data);
  pcre2_code_free(r->code);
  sk_free(r->where);
  sk_free(r);
}

/* ---- matching ---- */

static bool find(sk_regex *r, const char *text, size_t n, size_t from, sk_err *e) {
  int rc = r->jit ? pcre2_jit_match(r->code, (PCRE2_SPTR)text, n, from, 0, r->data, NULL)
                  : PCRE2_ERROR_JIT_STACKLIMIT;
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
    rc = pcre2_match(r->code, (PCRE2_SPTR)text, n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, r->data, r->limits);
  if (rc >= 0) return true;
  if (rc == PCRE2_ERROR_NOMATCH) return false;
  PCRE2_UCHAR why[128] = "";
  pcre2_get_error_message(rc, why, sizeof why);
  sk_fail(e, SK_FAILED, "%s: its regex is too costly on this text (%s). Simplify the regex of the pre-tokenizer, or "
          "leave out the text that begins %.40s", r->where, (char *)why, text + from);
  return false;
}

bool sk_regex_next(sk_regex *r, const char *text, size_t n, size_t *from, size_t *last, size_t *begin, size_t *end,
                   sk_err *e) {
  while (*from <= n && find(r, text, n, *from, e)) {
    const PCRE2_SIZE *v = pcre2_get_ovector_pointer(r->data);
    *begin = v[0];
    *end = v[1];
    if (*begin < *end || *end != *last) {
      *from = *last = *end;
      return true;
    }
    size_t len = 1; /* an empty match right behind the last one: try one character further on */
    if (*from < n) sk_utf8_get(text + *from, &len);
    *from += len;
  }
  return false;
}
