#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/deck.h"
#include <libfyaml.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct sk_mistake {
  sk_mark mark;
  char *msg;
  int text; // the first mistake in the same text
};

/* ---- mistakes ---- */

enum { MOST_MISTAKES = 200, SHOWN_LINE = 100 };

void sk_mistake(sk_mistakes *bad, const sk_mark *mark, const char *fmt, ...) {
  if (!bad || bad->n++ >= MOST_MISTAKES) return; // further ones are only counted
  if (bad->n > bad->cap) {
    bad->cap = bad->cap ? 2 * bad->cap : 16;
    bad->item = sk_realloc(bad->item, (size_t)bad->cap * sizeof *bad->item);
  }
  char msg[1000];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(msg, sizeof msg, fmt, ap);
  va_end(ap);
  for (char *s = msg; *s; s++)
    if ((unsigned char)*s < ' ' || *s == 127) *s = '?'; // quoted input must not steer a terminal
  int text = 0, here = bad->n - 1;
  while (text < here && strcmp(bad->item[text].mark.where, mark->where) != 0) text++;
  bad->item[here] = (struct sk_mistake){*mark, sk_strdup(msg), text};
}

static bool continues(char c) { return ((unsigned char)c & 0xc0) == 0x80; }

// Length of the UTF-8 character at s (n > 0 bytes are left), 0 when it is none or a control code.
static size_t char_len(const unsigned char *s, size_t n) {
  if (s[0] < 0x80) return (s[0] >= ' ' && s[0] != 127) || strchr("\t\n\r", s[0] ? s[0] : 1) ? 1 : 0;
  size_t len = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
  if (s[0] < 0xc2 || s[0] > 0xf4 || len > n) return 0;
  for (size_t i = 1; i < len; i++)
    if ((s[i] & 0xc0) != 0x80) return 0;
  unsigned second = s[1];
  if ((s[0] == 0xe0 && second < 0xa0) || (s[0] == 0xed && second > 0x9f)) return 0;
  if ((s[0] == 0xf0 && second < 0x90) || (s[0] == 0xf4 && second > 0x8f)) return 0;
  return len;
}

// The source line and the caret below it; long lines are cut to a window around the caret.
static void show_line(FILE *out, const sk_mark *m) {
  size_t len = strcspn(m->line, "\r\n"), at = 0, from = 0;
  for (int col = 1; at < len && col < m->col; col++)
    do at++;
    while (at < len && continues(m->line[at]));
  if (at > SHOWN_LINE - 20) from = at - (SHOWN_LINE - 40);
  while (from < len && continues(m->line[from])) from++;
  if (len - from > SHOWN_LINE) len = from + SHOWN_LINE;
  while (len > from && continues(m->line[len])) len--;
  fputs("\n    ", out);
  for (size_t i = from, n; i < len; i += n) {
    const char *c = m->line + i;
    n = char_len((const unsigned char *)c, len - i);
    if (n) fwrite(c, 1, n, out);
    if (!n) fputc('?', out), n = 1;
  }
  fputs("\n    ", out);
  for (size_t i = from; i < at; i++)
    if (!continues(m->line[i])) fputc(m->line[i] == '\t' ? '\t' : ' ', out);
  fputc('^', out);
}

static char *render(const struct sk_mistake *k) {
  char *text = NULL;
  size_t size = 0;
  FILE *out = open_memstream(&text, &size);
  SK_CHECK(out, "out of memory while formatting a message");
  fputs(k->mark.where, out);
  if (k->mark.row > 0) fprintf(out, ":%d:%d", k->mark.row, k->mark.col);
  fprintf(out, ": error: %s", k->msg);
  if (k->mark.line) show_line(out, &k->mark);
  fclose(out);
  return text;
}

// By row and column inside one text; texts stay in the order of their first mistake.
static bool comes_later(const struct sk_mistake *a, const struct sk_mistake *b) {
  if (a->text != b->text) return a->text > b->text;
  return a->mark.row != b->mark.row ? a->mark.row > b->mark.row : a->mark.col > b->mark.col;
}

static void sort_by_place(struct sk_mistake *v, int n) {
  for (int i = 1; i < n; i++) {
    struct sk_mistake x = v[i];
    int j = i;
    for (; j > 0 && comes_later(&v[j - 1], &x); j--) v[j] = v[j - 1];
    v[j] = x;
  }
}

int sk_mistakes_fail(sk_mistakes *bad, sk_err *e) {
  int kept = bad->n < MOST_MISTAKES ? bad->n : MOST_MISTAKES, shown = 0;
  if (kept == 0) return SK_OK;
  sort_by_place(bad->item, kept);
  char all[sizeof e->msg] = "";
  size_t used = 0;
  for (; shown < kept; shown++) {
    char *one = render(&bad->item[shown]);
    size_t len = strlen(one);
    bool fits = used + len + 80 < sizeof all; // room for the last line
    if (fits) used += (size_t)sprintf(all + used, "%s%s", used ? "\n" : "", one);
    sk_free(one);
    if (!fits) break;
  }
  if (shown < bad->n) sprintf(all + used, "\n... and %d more mistakes", bad->n - shown);
  for (int i = 0; i < kept; i++) sk_free(bad->item[i].msg);
  sk_free(bad->item);
  *bad = (sk_mistakes){0};
  return sk_fail(e, SK_USAGE, "%s", all);
}

int sk_edit_distance(const char *a, const char *b) {
  enum { MOST = 100 };
  size_t n = strlen(a), m = strlen(b);
  if (n > MOST || m > MOST) return INT_MAX;
  int row[3][MOST + 1], *before = row[0], *last = row[1], *now = row[2];
  for (size_t j = 0; j <= m; j++) now[j] = (int)j;
  for (size_t i = 1; i <= n; i++) {
    int *t = before;
    before = last, last = now, now = t;
    now[0] = (int)i;
    for (size_t j = 1; j <= m; j++) {
      int d = last[j - 1] + (a[i - 1] != b[j - 1]);
      if (last[j] + 1 < d) d = last[j] + 1;
      if (now[j - 1] + 1 < d) d = now[j - 1] + 1;
      bool swap = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (swap && before[j - 2] + 1 < d) d = before[j - 2] + 1;
      now[j] = d;
    }
  }
  return now[m];
}

/* ---- nodes ---- */

sk_node *sk_node_new(sk_node_kind kind, const char *text, bool plain, const sk_mark *mark) {
  sk_node *n = sk_calloc(1, sizeof *n);
  n->kind = kind;
  n->plain = plain;
  if (text) n->text = sk_strdup(text);
  n->mark = *mark;
  return n;
}

void sk_node_free(sk_node *n) {
  while (n) {
    sk_node *next = n->next;
    sk_node_free(n->child); // as deep as SK_DECK_MAX_DEPTH
    sk_free(n->text);
    sk_free(n->key);
    sk_free(n);
    n = next;
  }
}

const sk_node *sk_node_get(const sk_node *map, const char *key) {
  for (const sk_node *c = map->child; c; c = c->next)
    if (strcmp(c->key, key) == 0) return c;
  return NULL;
}

bool sk_node_is_null(const sk_node *n) {
  return n->kind == SK_NODE_SCALAR && n->plain &&
         (!n->text[0] || !strcmp(n->text, "~") || !strcmp(n->text, "null"));
}

const char *sk_node_what(const sk_node *n) {
  if (n->kind == SK_NODE_LIST) return "a list";
  if (n->kind == SK_NODE_MAP) return "a mapping";
  return sk_node_is_null(n) ? "no value" : "text";
}

static const char *line_start(const char *text, const char *at) {
  while (at > text && at[-1] != '\n') at--;
  return at;
}

sk_mark sk_mark_at(const char *where, const char *text, size_t at) {
  sk_mark m = {where, line_start(text, text + at), 1, 1};
  for (const char *s = text; s < m.line; s++) m.row += *s == '\n';
  for (const char *s = m.line; s < text + at; s++) m.col += !continues(*s);
  return m;
}

/* ---- from libfyaml's events to nodes ---- */

typedef struct builder {
  struct fy_parser *fyp;
  sk_deck *deck;
  size_t size;
  sk_mistakes *bad;
  const char *line, *seen; // start of the line that holds `seen`, the last place asked for
  int nodes;
  bool stop; // a mistake after which reading on makes no sense
} builder;

static sk_mark place(const builder *b, size_t at) {
  sk_mark m = sk_mark_at(b->deck->where, b->deck->text, at < b->size ? at : b->size);
  if (!b->deck->rows) m.row = 0;
  return m;
}

static sk_mark mark_of(builder *b, struct fy_event *ev) {
  const struct fy_mark *m = fy_event_start_mark(ev);
  if (!m) return place(b, b->size);
  // libfyaml has counted rows and columns; the line's start is sought from the last place on, else
  // long lines would take quadratic time
  const char *text = b->deck->text, *at = text + (m->input_pos < b->size ? m->input_pos : b->size);
  if (!b->seen || at < b->seen) b->line = b->seen = line_start(text, at);
  for (; b->seen < at; b->seen++)
    if (*b->seen == '\n') b->line = b->seen + 1;
  return (sk_mark){b->deck->where, b->line, b->deck->rows ? m->line + 1 : 0, m->column + 1};
}

SK_PRINTF(3, 4) static void give_up(builder *b, const sk_mark *m, const char *fmt, ...) {
  char msg[300];
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(msg, sizeof msg, fmt, ap);
  va_end(ap);
  if (!b->stop) sk_mistake(b->bad, m, "%s", msg);
  b->stop = true;
}

// The parser's next event, or NULL at the end and after a syntax error, which is reported.
static struct fy_event *next_event(builder *b) {
  struct fy_event *ev = b->stop ? NULL : fy_parser_parse(b->fyp);
  if (ev || b->stop || !fy_parser_get_stream_error(b->fyp)) return ev;
  struct fy_diag *diag = fy_parser_get_diag(b->fyp);
  void *iter = NULL;
  struct fy_diag_error *first = fy_diag_errors_iterate(diag, &iter);
  size_t at = b->size;
  if (first && first->line >= 0) {
    const char *s = b->deck->text;
    for (int row = 1; row < first->line && (s = strchr(s, '\n')); row++) s++;
    if (s) at = (size_t)(s - b->deck->text);
  }
  sk_mark m = place(b, at);
  if (first && first->column > 0) m.col = first->column;
  give_up(b, &m, "YAML syntax: %s", first && first->msg ? first->msg : "not understood");
  fy_diag_unref(diag);
  return NULL;
}

// Tags, anchors and aliases would let a small text mean something else than it shows.
static bool refuse_extras(builder *b, struct fy_event *ev, const sk_mark *m) {
  struct fy_token *tag = NULL, *anchor = NULL;
  if (ev->type == FYET_ALIAS) {
    give_up(b, m, "aliases are not used here; quote the value when text is meant, as in \"*-\"");
    return true;
  }
  if (ev->type == FYET_SCALAR) tag = ev->scalar.tag, anchor = ev->scalar.anchor;
  if (ev->type == FYET_SEQUENCE_START)
    tag = ev->sequence_start.tag, anchor = ev->sequence_start.anchor;
  if (ev->type == FYET_MAPPING_START)
    tag = ev->mapping_start.tag, anchor = ev->mapping_start.anchor;
  if (tag || anchor)
    give_up(b, m, "%s are not used here; quote the value when text is meant",
            tag ? "tags (!)" : "anchors (&)");
  return tag || anchor;
}

static sk_node *scalar(builder *b, struct fy_event *ev, const sk_mark *m) {
  size_t len = 0;
  struct fy_token *tok = ev->scalar.value;
  const char *text = tok ? fy_token_get_text(tok, &len) : NULL;
  if (text && memchr(text, 0, len)) {
    give_up(b, m, "a NUL character in a value");
    return NULL;
  }
  char *copy = sk_strf("%.*s", (int)len, text ? text : "");
  sk_node *n = sk_node_new(SK_NODE_SCALAR, copy, fy_token_scalar_style(tok) == FYSS_PLAIN, m);
  sk_free(copy);
  return n;
}

static sk_node *build(builder *b, struct fy_event *ev, int depth);

// Reads one key's value; NULL when reading stopped.
static sk_node *pair(builder *b, struct fy_event *key_ev, int depth) {
  sk_mark at = mark_of(b, key_ev);
  if (key_ev->type != FYET_SCALAR) give_up(b, &at, "a key must be a word");
  sk_node *key = build(b, key_ev, depth);
  struct fy_event *ev = key ? next_event(b) : NULL;
  sk_node *value = ev ? build(b, ev, depth) : NULL;
  if (value) {
    value->key = key->text;
    value->key_mark = key->mark;
    key->text = NULL;
    // an empty value has no place of its own: point at its key
    if (value->kind == SK_NODE_SCALAR && value->plain && !value->text[0]) value->mark = key->mark;
  }
  sk_node_free(key);
  return value;
}

static void children(builder *b, sk_node *n, enum fy_event_type end, int depth) {
  sk_node **tail = &n->child;
  for (struct fy_event *ev; (ev = next_event(b));) {
    if (ev->type == end) {
      fy_parser_event_free(b->fyp, ev);
      return;
    }
    sk_node *c = n->kind == SK_NODE_MAP ? pair(b, ev, depth + 1) : build(b, ev, depth + 1);
    if (!c) return;
    if (n->kind == SK_NODE_MAP && n->n >= SK_DECK_MAX_KEYS)
      give_up(b, &c->mark, "more than %d keys in one mapping", SK_DECK_MAX_KEYS);
    const sk_node *twice = n->kind == SK_NODE_MAP && !b->stop ? sk_node_get(n, c->key) : NULL;
    if (twice) {
      sk_mistake(b->bad, &c->key_mark, "duplicate key \"%.60s\"; it stands already in line %d",
                 c->key, sk_mark_at("", b->deck->text, (size_t)(twice->key_mark.line -
                                                               b->deck->text)).row);
      sk_node_free(c);
      continue;
    }
    *tail = c;
    tail = &c->next;
    n->n++;
  }
}

// Makes the node that starts with ev, which is freed; NULL when reading stopped.
static sk_node *build(builder *b, struct fy_event *ev, int depth) {
  sk_mark m = mark_of(b, ev);
  sk_node *n = NULL;
  enum fy_event_type type = ev->type;
  if (depth > SK_DECK_MAX_DEPTH) give_up(b, &m, "nested deeper than %d levels", SK_DECK_MAX_DEPTH);
  if (++b->nodes > SK_DECK_MAX_NODES) give_up(b, &m, "more than %d values", SK_DECK_MAX_NODES);
  if (!b->stop && !refuse_extras(b, ev, &m)) {
    if (type == FYET_SCALAR) n = scalar(b, ev, &m);
    if (type == FYET_SEQUENCE_START) n = sk_node_new(SK_NODE_LIST, NULL, false, &m);
    if (type == FYET_MAPPING_START) n = sk_node_new(SK_NODE_MAP, NULL, false, &m);
  }
  fy_parser_event_free(b->fyp, ev);
  if (n && n->kind == SK_NODE_LIST) children(b, n, FYET_SEQUENCE_END, depth);
  if (n && n->kind == SK_NODE_MAP) children(b, n, FYET_MAPPING_END, depth);
  if (b->stop) {
    sk_node_free(n);
    n = NULL;
  }
  return n;
}

static bool is_text(builder *b) {
  const unsigned char *s = (const unsigned char *)b->deck->text;
  for (size_t at = 0, len; at < b->size; at += len) {
    len = char_len(s + at, b->size - at);
    if (len) continue;
    sk_mark m = place(b, at);
    give_up(b, &m, "byte 0x%02x is no text: a deck is UTF-8 without control characters", s[at]);
    return false;
  }
  return true;
}

static void read_document(builder *b) {
  bool seen = false;
  for (struct fy_event *ev; (ev = next_event(b));) {
    enum fy_event_type type = ev->type;
    if (type == FYET_DOCUMENT_START && seen) {
      sk_mark m = mark_of(b, ev);
      give_up(b, &m, "only one YAML document is expected");
    }
    if (type == FYET_DOCUMENT_START) seen = true;
    bool content = type == FYET_SCALAR || type == FYET_SEQUENCE_START ||
                   type == FYET_MAPPING_START || type == FYET_ALIAS;
    if (content)
      b->deck->root = build(b, ev, 1);
    else
      fy_parser_event_free(b->fyp, ev);
  }
}

static void discard(struct fy_diag *diag, void *user, const char *buf, size_t len) {
  (void)diag, (void)user, (void)buf, (void)len;
}

void sk_deck_parse(const char *text, size_t size, const char *where, bool rows, sk_deck *d,
                   sk_mistakes *bad) {
  *d = (sk_deck){.where = sk_strdup(where), .rows = rows};
  builder b = {.deck = d, .size = size, .bad = bad};
  if (size > SK_DECK_MAX_BYTES) {
    sk_mark m = {d->where, NULL, 0, 0};
    give_up(&b, &m, "larger than %d bytes", SK_DECK_MAX_BYTES);
    return;
  }
  d->text = memcpy(sk_malloc(size + 1), text, size);
  d->text[size] = 0;
  if (!is_text(&b)) return;
  struct fy_diag_cfg quiet;
  fy_diag_cfg_default(&quiet);
  quiet.fp = NULL;
  quiet.output_fn = discard;
  struct fy_diag *diag = fy_diag_create(&quiet);
  SK_CHECK(diag, "out of memory in the YAML parser");
  fy_diag_set_collect_errors(diag, true);
  struct fy_parse_cfg cfg = {.flags = FYPCF_QUIET | FYPCF_DEFAULT_VERSION_1_2, .diag = diag};
  b.fyp = fy_parser_create(&cfg);
  bool ready = b.fyp && fy_parser_set_string(b.fyp, d->text, size) == 0;
  SK_CHECK(ready, "out of memory in the YAML parser");
  read_document(&b);
  if (b.stop) {
    sk_node_free(d->root);
    d->root = NULL;
  }
  fy_parser_destroy(b.fyp);
  fy_diag_destroy(diag);
}

void sk_deck_free(sk_deck *d) {
  sk_node_free(d->root);
  sk_free(d->text);
  sk_free(d->where);
  *d = (sk_deck){0};
}
