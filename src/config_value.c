/* config_value.c: one value of a deck, from text to its typed place and back. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "src/keys.h"
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_FLOATS = 5 };

typedef union value {
  int64_t i;
  double d[MOST_FLOATS];
  bool b;
  int choice;
  char *s;
} value;

/* ---- numbers with units ---- */

static bool digits(const char **s, int64_t *v) {
  if (!isdigit((unsigned char)**s)) return false;
  for (*v = 0; isdigit((unsigned char)**s); (*s)++)
    if (__builtin_mul_overflow(*v, 10, v) || __builtin_add_overflow(*v, **s - '0', v)) return false;
  return true;
}

// [D-]H:MM:SS, MM:SS or seconds
static bool time_of_day(const char *s, int64_t *seconds) {
  int64_t v, total = 0;
  int colons = 0;
  bool days = false;
  for (;; s++) {
    if (!digits(&s, &v) || (colons > 0 && v > 59)) return false;
    if (__builtin_mul_overflow(total, *s == '-' || colons == 0 ? 1 : 60, &total)) return false;
    if (*s == '-') {
      if (days || colons || __builtin_mul_overflow(v, 24, &total)) return false;
      days = true;
      continue;
    }
    if (__builtin_add_overflow(total, v, &total)) return false;
    if (!*s) break;
    if (*s != ':' || ++colons > 2) return false;
  }
  *seconds = total;
  return !days || colons == 2;
}

bool sk_quantity(const char *text, const char *unit, int64_t *out) {
  if (unit && !strcmp(unit, "time")) return time_of_day(text, out);
  bool minus = *text == '-';
  int64_t v;
  text += minus || *text == '+';
  if (!digits(&text, &v)) return false;
  static const char scale[] = "kMGT";
  const char *at = unit && *text ? strchr(scale, *text == 'K' ? 'k' : *text) : NULL;
  if (at && (*text != 'K' || text[1] == 'i')) { // k is a thousand, Ki is 1024
    bool binary = text[1] == 'i';
    for (const char *p = scale; p <= at; p++)
      if (__builtin_mul_overflow(v, binary ? 1024 : 1000, &v)) return false;
    text += binary ? 2 : 1;
  }
  if (unit && !strcmp(unit, "bytes") && *text == 'B') text++;
  *out = minus ? -v : v;
  return !*text;
}

static bool real(const char *s, double *v) {
  const char *t = s + (*s == '-' || *s == '+');
  if (!strcmp(t, ".inf") || !strcmp(t, "inf")) {
    *v = *s == '-' ? -INFINITY : INFINITY;
    return true;
  }
  if (strspn(t, "0123456789.eE+-") != strlen(t) || !strpbrk(t, "0123456789")) return false;
  char *end;
  *v = strtod(s, &end); // infinite where double's range ends
  return !*end;
}

/* ---- ranges ---- */

typedef struct interval {
  char open, close; // as written: [ or (, ] or )
  double lo, hi;
} interval;

static interval range_of(const char *text) {
  interval r = {'(', ')', -INFINITY, INFINITY};
  char lo[32], hi[32];
  if (!text) return r;
  bool ok = sscanf(text, "%c%31[^,],%31[^])]%c", &r.open, lo, hi, &r.close) == 4;
  SK_CHECK(ok && real(lo, &r.lo) && real(hi, &r.hi), "the key table has a bad range \"%s\"", text);
  return r;
}

static bool inside(const interval *r, double x) {
  return (r->open == '[' ? x >= r->lo : x > r->lo) && (r->close == ']' ? x <= r->hi : x < r->hi);
}

// "from 1 to 65536", "at least 0 and below 1", "above 0", "at least 0 and finite"
static void out_of_range(const sk_key *k, const sk_node *n, sk_mistakes *bad) {
  interval r = range_of(k->range);
  char lo[60] = "", hi[60] = "";
  bool below = isfinite(r.lo), above = isfinite(r.hi), whole = r.open == '[' && r.close == ']';
  bool endless = strstr(n->text, "inf") || isinf(strtod(n->text, NULL)); // as 1e400 is
  if (below && above && whole)
    snprintf(lo, sizeof lo, "from %.15g to %.15g", r.lo, r.hi);
  else if (below)
    snprintf(lo, sizeof lo, "%s %.15g", r.open == '[' ? "at least" : "above", r.lo);
  if (above && !(below && whole))
    snprintf(hi, sizeof hi, "%s %.15g", r.close == ']' ? "at most" : "below", r.hi);
  else if (!above && k->type == SK_KEY_INT && n->text[0] != '-' && strlen(n->text) > 18)
    snprintf(hi, sizeof hi, "less than 2^63");
  else if (!above && (endless || !below))
    snprintf(hi, sizeof hi, "finite");
  sk_mistake(bad, &n->mark, "%s: %.60s is out of range: it must be %s%s%s", k->path, n->text, lo,
             lo[0] && hi[0] ? " and " : "", hi);
}

static bool wrong_type(const sk_key *k, const sk_node *n, const char *expected, sk_mistakes *bad) {
  if (n->kind == SK_NODE_SCALAR && !sk_node_is_null(n))
    sk_mistake(bad, &n->mark, "%s: %s is expected, not %s\"%.60s\"", k->path, expected,
               n->plain ? "" : "the text ", n->text);
  else
    sk_mistake(bad, &n->mark, "%s: %s is expected, not %s", k->path, expected, sk_node_what(n));
  return false;
}

/* ---- reading ---- */

static bool plain_word(const sk_node *n) { return n->kind == SK_NODE_SCALAR && n->plain; }

static bool read_int(const sk_key *k, const sk_node *n, int64_t *v, sk_mistakes *bad) {
  if (!plain_word(n) || !sk_quantity(n->text, k->unit, v)) {
    bool huge = plain_word(n) && strspn(n->text, "-0123456789") == strlen(n->text) && n->text[0];
    if (huge) return out_of_range(k, n, bad), false;
    bool plain = !k->unit;
    return wrong_type(k, n, plain ? "an integer" : "an integer (k, M, G may follow)", bad);
  }
  interval r = range_of(k->range);
  if (inside(&r, (double)*v)) return true;
  out_of_range(k, n, bad);
  return false;
}

static bool read_real(const sk_key *k, const sk_node *n, double *v, sk_mistakes *bad) {
  interval r = range_of(k->range);
  bool endless = r.close == ']' && isinf(r.hi);
  if (endless && sk_node_is_null(n)) {
    *v = INFINITY;
    return true;
  }
  if (!plain_word(n) || !real(n->text, v)) return wrong_type(k, n, "a number", bad);
  if (inside(&r, *v) && (isfinite(*v) || endless)) return true;
  out_of_range(k, n, bad);
  return false;
}

static bool read_reals(const sk_key *k, const sk_node *n, double *v, sk_mistakes *bad) {
  char expected[40];
  snprintf(expected, sizeof expected, "a list of %d numbers", k->count);
  if (n->kind != SK_NODE_LIST) return wrong_type(k, n, expected, bad);
  if (n->n != k->count) {
    sk_mistake(bad, &n->mark, "%s: %s is expected, not of %d", k->path, expected, n->n);
    return false;
  }
  bool ok = true;
  for (const sk_node *c = n->child; c; c = c->next) ok &= read_real(k, c, v++, bad);
  return ok;
}

static bool read_choice(const sk_key *k, const sk_node *n, int *v, sk_mistakes *bad) {
  char all[200], near[60] = "";
  snprintf(all, sizeof all, "%s", k->range);
  if (n->kind != SK_NODE_SCALAR) return wrong_type(k, n, all, bad);
  int least = 2, i = 0;
  char *save = NULL;
  for (char *c = strtok_r(all, "|", &save); c; c = strtok_r(NULL, "|", &save), i++) {
    int d = sk_edit_distance(c, n->text);
    if (d == 0) {
      *v = i;
      return true;
    }
    if (d > least || (size_t)d >= strlen(c)) continue;
    least = d - 1;
    snprintf(near, sizeof near, "; did you mean \"%s\"?", c);
  }
  if (i == 1) // only one choice: the others belong to other models
    sk_mistake(bad, &n->mark, "%s: \"%.60s\" is not supported; it must be %s", k->path, n->text,
               k->range);
  else
    sk_mistake(bad, &n->mark, "%s: \"%.60s\" is not among %s%s", k->path, n->text, k->range, near);
  return false;
}

static bool read_bool(const sk_key *k, const sk_node *n, bool *v, sk_mistakes *bad) {
  bool yes = plain_word(n) && !strcmp(n->text, "true");
  if (!yes && !(plain_word(n) && !strcmp(n->text, "false")))
    return wrong_type(k, n, "true or false", bad);
  *v = yes;
  return true;
}

static bool read_text(const sk_key *k, const sk_node *n, const char *folder, char **v,
                      sk_mistakes *bad) {
  if (n->kind != SK_NODE_SCALAR || sk_node_is_null(n))
    return wrong_type(k, n, k->type == SK_KEY_PATH ? "a path" : "text", bad);
  bool may_be_empty = k->dflt && !strcmp(k->dflt, "\"\"");
  if (!n->text[0] && !may_be_empty) {
    sk_mistake(bad, &n->mark, "%s must not be empty", k->path);
    return false;
  }
  const char *s = n->text;
  bool relative = k->type == SK_KEY_PATH && folder && s[0] != '/';
  while (relative && !strncmp(s, "./", 2)) s += 2;
  *v = relative ? sk_strf("%s/%s", strcmp(folder, "/") ? folder : "", s) : sk_strdup(s);
  return true;
}

static bool read_value(const sk_key *k, const sk_node *n, const char *folder, value *v,
                       sk_mistakes *bad) {
  bool null = sk_node_is_null(n) || (k->dflt && !strcmp(k->dflt, "auto") && k->type == SK_KEY_INT &&
                                     n->kind == SK_NODE_SCALAR && !strcmp(n->text, "auto"));
  if (null && k->flags & SK_KEY_NULLABLE) {
    if (k->type == SK_KEY_INT) v->i = -1;
    else v->s = NULL;
    return true;
  }
  switch (k->type) {
    case SK_KEY_INT: return read_int(k, n, &v->i, bad);
    case SK_KEY_FLOAT: return read_real(k, n, v->d, bad);
    case SK_KEY_FLOATS: return read_reals(k, n, v->d, bad);
    case SK_KEY_BOOL: return read_bool(k, n, &v->b, bad);
    case SK_KEY_CHOICE: return read_choice(k, n, &v->choice, bad);
    case SK_KEY_TEXT:
    case SK_KEY_PATH: return read_text(k, n, folder, &v->s, bad);
    case SK_KEY_NULL:
      if (!null) sk_mistake(bad, &n->mark, "%s is not supported; it must be null", k->path);
      return null;
    case SK_KEY_LIST: break;
  }
  sk_die(__FILE__, __LINE__, "%s is a list", k->path);
}

/* ---- writing ---- */

char *sk_quote(const char *s) {
  char *out = sk_malloc(4 * strlen(s) + 3), *o = out;
  *o++ = '"';
  for (; *s; s++) {
    unsigned char c = (unsigned char)*s;
    if (c == '"' || c == '\\') *o++ = '\\';
    if (c < ' ' || c == 127) o += sprintf(o, "\\x%02x", c);
    else *o++ = *s;
  }
  *o++ = '"';
  *o = 0;
  return out;
}

// The shortest decimal number that reads back as x.
static char *real_text(double x) {
  if (isinf(x)) return sk_strdup(x < 0 ? "-.inf" : ".inf");
  char s[40];
  for (int p = 15; p <= 17; p++) {
    snprintf(s, sizeof s, "%.*g", p, x);
    if (strtod(s, NULL) == x) break;
  }
  return sk_strdup(s);
}

static char *reals_text(const double *d, int n) {
  char *all = sk_strdup("[");
  for (int i = 0; i < n; i++) {
    char *one = real_text(d[i]), *more = sk_strf("%s%s%s", all, i ? ", " : "", one);
    sk_free(all);
    sk_free(one);
    all = more;
  }
  char *done = sk_strf("%s]", all);
  sk_free(all);
  return done;
}

static char *choice_text(const char *choices, int i) {
  for (; i > 0; i--) choices = strchr(choices, '|') + 1;
  return sk_strf("%.*s", (int)strcspn(choices, "|"), choices);
}

static char *value_text(const sk_key *k, const value *v) {
  switch (k->type) {
    case SK_KEY_INT:
      if (k->flags & SK_KEY_NULLABLE && v->i < 0) return sk_strdup("null");
      return sk_strf("%lld", (long long)v->i);
    case SK_KEY_FLOAT: return real_text(v->d[0]);
    case SK_KEY_FLOATS: return reals_text(v->d, k->count);
    case SK_KEY_BOOL: return sk_strdup(v->b ? "true" : "false");
    case SK_KEY_CHOICE: return choice_text(k->range, v->choice);
    case SK_KEY_TEXT:
    case SK_KEY_PATH: return v->s ? sk_quote(v->s) : sk_strdup("null");
    case SK_KEY_NULL: return sk_strdup("null");
    case SK_KEY_LIST: break;
  }
  sk_die(__FILE__, __LINE__, "%s is a list", k->path);
}

static size_t value_size(const sk_key *k) {
  switch (k->type) {
    case SK_KEY_INT: return sizeof(int64_t);
    case SK_KEY_FLOAT:
    case SK_KEY_FLOATS: return (size_t)k->count * sizeof(double);
    case SK_KEY_BOOL: return sizeof(bool);
    case SK_KEY_CHOICE: return sizeof(int);
    case SK_KEY_TEXT:
    case SK_KEY_PATH: return sizeof(char *);
    default: return 0;
  }
}

char *sk_key_text(const sk_key *k, const void *base) {
  if (k->offset < 0) return sk_strdup(k->dflt);
  value v = {0};
  memcpy(&v, (const char *)base + k->offset, value_size(k));
  return value_text(k, &v);
}

// Values that are planned are told from values that are wrong.
static bool works_yet(const sk_key *k, const sk_node *n, const value *v, sk_mistakes *bad) {
  if (!k->only) return true;
  char *text = value_text(k, v);
  bool yes = !strcmp(text, k->only);
  if (!yes)
    sk_mistake(bad, &n->mark, "%s: %.60s is not yet supported; for now it must be %s", k->path, text,
               k->only);
  sk_free(text);
  return yes;
}

bool sk_key_read(const sk_key *k, const sk_node *n, const char *folder, void *base,
                 sk_mistakes *bad) {
  value v = {0};
  if (!read_value(k, n, folder, &v, bad)) return false;
  bool text = k->type == SK_KEY_TEXT || k->type == SK_KEY_PATH, ok = works_yet(k, n, &v, bad);
  if (ok && k->offset >= 0) {
    char *place = (char *)base + k->offset;
    if (text) sk_free(*(char **)place);
    memcpy(place, &v, value_size(k));
  } else if (text) {
    sk_free(v.s);
  }
  return ok;
}
