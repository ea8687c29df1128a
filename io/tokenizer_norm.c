/* The normal forms of Unicode (annex 15) by utf8proc. Most text is in form C already, which a bit per code point
 * shows: those that are starters, equal to their own form C, and never the second half of a composition. */
#include "io/tokenizer_parts.h"
#include "io/utf8.h"
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { MAX_FORMS = 8, CODES = 0x110000 };

struct sk_norm {
  int n;
  int form[MAX_FORMS]; /* utf8proc's options */
  uint8_t *inert;      /* [CODES / 8] for form C */
};

static void set(uint8_t *bits, uint32_t cp, bool on) {
  if (on) bits[cp / 8] |= (uint8_t)(1 << cp % 8);
  else bits[cp / 8] &= (uint8_t)~(1 << cp % 8);
}

/* Whether composing the decomposition gives the character back. */
static bool composes_back(utf8proc_int32_t cp, const utf8proc_int32_t *part, utf8proc_ssize_t n) {
  utf8proc_int32_t copy[32];
  memcpy(copy, part, (size_t)n * sizeof *part);
  return utf8proc_normalize_utf32(copy, n, UTF8PROC_STABLE | UTF8PROC_COMPOSE) == 1 && copy[0] == cp;
}

static uint8_t *find_inert(void) {
  uint8_t *bits = sk_malloc(CODES / 8);
  memset(bits, 0xff, CODES / 8);
  for (utf8proc_int32_t cp = 0x80; cp < CODES; cp++) {
    utf8proc_int32_t part[32];
    int last = 0;
    const utf8proc_property_t *p = utf8proc_get_property(cp);
    if (p->combining_class) set(bits, (uint32_t)cp, false);
    if (p->decomp_seqindex == UINT16_MAX && !(cp >= 0xac00 && cp < 0xd7a4)) continue;
    utf8proc_ssize_t n = utf8proc_decompose_char(cp, part, 32, UTF8PROC_DECOMPOSE | UTF8PROC_STABLE, &last);
    if (n < 1 || (n == 1 && part[0] == cp)) continue;
    if (!composes_back(cp, part, n)) set(bits, (uint32_t)cp, false);
    for (utf8proc_ssize_t i = 1; i < n; i++) set(bits, (uint32_t)part[i], false);
  }
  return bits;
}

static void add(sk_norm *m, const json_t *j, int depth, const char *where, sk_err *e) {
  static const struct {
    const char *name;
    int form;
  } known[] = {{"NFC", UTF8PROC_COMPOSE}, {"NFD", UTF8PROC_DECOMPOSE},
               {"NFKC", UTF8PROC_COMPOSE | UTF8PROC_COMPAT}, {"NFKD", UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT}};
  const char *type = json_string_value(json_object_get(j, "type"));
  if (type && !strcmp(type, "Sequence") && depth < 4) {
    const json_t *list = json_object_get(j, "normalizers"), *x;
    size_t i;
    if (!json_is_array(list)) sk_fail(e, SK_FAILED, "%s: normalizer Sequence has no list", where);
    json_array_foreach(list, i, x) add(m, x, depth + 1, where, e);
    return;
  }
  for (size_t i = 0; type && i < sizeof known / sizeof *known && m->n < MAX_FORMS; i++)
    if (!strcmp(type, known[i].name)) {
      m->form[m->n++] = known[i].form | (int)UTF8PROC_STABLE;
      return;
    }
  sk_fail(e, SK_FAILED, "%s: the normalizer %.60s is not supported (only NFC, NFD, NFKC, NFKD)", where,
          type ? type : "without a type");
}

sk_norm *sk_norm_new(const json_t *j, const char *where, sk_err *e) {
  if (!j || json_is_null(j)) return NULL;
  sk_norm *m = sk_calloc(1, sizeof *m);
  add(m, j, 0, where, e);
  if (e->code || m->n == 0) {
    sk_norm_free(m);
    return NULL;
  }
  if (m->n == 1 && m->form[0] == (UTF8PROC_COMPOSE | UTF8PROC_STABLE)) m->inert = find_inert();
  return m;
}

void sk_norm_free(sk_norm *m) {
  if (!m) return;
  sk_free(m->inert);
  sk_free(m);
}

/* ASCII is in every form. */
static bool is_normal(const sk_norm *m, const char *text, size_t n) {
  for (size_t i = 0, len; i < n; i += len) {
    len = 1;
    if ((unsigned char)text[i] < 0x80) continue;
    if (!m->inert) return false;
    uint32_t cp = sk_utf8_get(text + i, &len);
    if (!(m->inert[cp / 8] >> cp % 8 & 1)) return false;
  }
  return true;
}

char *sk_norm_apply(const sk_norm *m, const char *text, size_t n, size_t *len, sk_err *e) {
  if (!m || is_normal(m, text, n)) return NULL;
  char *now = NULL;
  for (int i = 0; i < m->n; i++) {
    utf8proc_uint8_t *next = NULL;
    utf8proc_ssize_t k = utf8proc_map((const utf8proc_uint8_t *)(now ? now : text), (utf8proc_ssize_t)n, &next,
                                      (utf8proc_option_t)m->form[i]);
    free(now);
    now = (char *)next;
    if (k < 0) {
      sk_fail(e, SK_FAILED, "text of %zu bytes cannot be normalized: %s", n, utf8proc_errmsg(k));
      return NULL;
    }
    n = (size_t)k;
  }
  *len = n;
  return now;
}
