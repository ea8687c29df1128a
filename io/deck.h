/* deck.h: YAML 1.2 text as a tree that remembers where everything stands, and the list of mistakes
 * found in it. Knows no key. Nothing here is collective. */
#ifndef SK_DECK_H
#define SK_DECK_H
#include "src/base.h"

enum {
  SK_DECK_MAX_BYTES = 1 << 20, /* text */
  SK_DECK_MAX_DEPTH = 16,      /* nesting */
  SK_DECK_MAX_KEYS = 1000,     /* in one mapping */
  SK_DECK_MAX_NODES = 100000   /* in all */
};

/* A place in a text. */
typedef struct sk_mark {
  const char *where; /* the file's name, or `--set a.b` */
  const char *line;  /* start of the source line, ended by a newline or NUL; NULL: not shown */
  int row, col;      /* from 1, in characters; row 0: `where` alone names the place */
} sk_mark;

typedef enum { SK_NODE_SCALAR, SK_NODE_LIST, SK_NODE_MAP } sk_node_kind;

typedef struct sk_node {
  sk_node_kind kind;
  bool plain;            /* scalars: written without quotes */
  int n;                 /* lists and maps: how many children */
  char *text;            /* scalars: never NULL; "" and plain is YAML's empty value */
  char *key;             /* children of maps */
  sk_mark mark, key_mark;
  struct sk_node *child; /* first child, then along next, in the order of the text */
  struct sk_node *next;
} sk_node;

/* Everything that is wrong, to be reported in one pass. Start with {0}. */
typedef struct sk_mistakes {
  int n, cap;
  struct sk_mistake *item;
} sk_mistakes;

/* A parsed text: owns its nodes and everything that marks point to. */
typedef struct sk_deck {
  char *text, *where;
  bool rows; /* whether marks name row and column */
  sk_node *root; /* NULL: no content, or it could not be parsed */
} sk_deck;

/* Parses size bytes. Syntax errors, duplicate keys, several documents, tags, anchors and aliases,
 * bytes that are no UTF-8 text and anything over the limits above become mistakes; root is then
 * NULL, except after duplicate keys (the first stands). rows: whether messages give row and column
 * (false for `--set`). Call sk_deck_free in any case, but not before the mistakes are rendered. */
void sk_deck_parse(const char *text, size_t size, const char *where, bool rows, sk_deck *d,
                   sk_mistakes *bad);
void sk_deck_free(sk_deck *d);

/* A node without place, to be built by hand; sk_node_free frees a node and all below it. */
sk_node *sk_node_new(sk_node_kind kind, const char *text, bool plain, const sk_mark *mark);
void sk_node_free(sk_node *n);
/* The value of a key of a map, or NULL. */
const sk_node *sk_node_get(const sk_node *map, const char *key);
/* YAML's null: an empty or plain null or ~. */
bool sk_node_is_null(const sk_node *n);
/* "text", "a list" or "a mapping", for messages. */
const char *sk_node_what(const sk_node *n);

/* The place of the byte at offset `at` of a NUL-terminated text. */
sk_mark sk_mark_at(const char *where, const char *text, size_t at);

/* Adds one mistake; mark is copied, its texts are not. bad may be NULL: nothing happens. */
void sk_mistake(sk_mistakes *bad, const sk_mark *mark, const char *fmt, ...) SK_PRINTF(3, 4);
/* Writes all mistakes, ordered by place, into e as SK_USAGE:
 *     deck.yaml:3:7: error: message
 *         lr: abc
 *             ^
 * Returns SK_OK when there are none. Empties the list. */
int sk_mistakes_fail(sk_mistakes *bad, sk_err *e);

/* Damerau-Levenshtein distance (adjacent swaps count one); INT_MAX when a text is over 100 bytes. */
int sk_edit_distance(const char *a, const char *b);
#endif
