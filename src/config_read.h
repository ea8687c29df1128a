/* config_read.h: what the parts of the deck reader share (config.c, config_list.c, config_layers.c,
 * model_cfg.c). Not for others. Nothing here is collective. */
#ifndef SK_CONFIG_READ_H
#define SK_CONFIG_READ_H
#include "src/config.h"
#include "src/keys.h"

/* The value in force for one key of the table. */
typedef struct sk_slot {
  const sk_node *node;   /* NULL: required and not given */
  const sk_node *dflt;   /* NULL: required */
  const sk_node *source; /* the text it came from */
  const char *folder;    /* what relative paths start from */
  bool given;            /* not the default */
  bool bad;              /* a mistake was reported */
} sk_slot;

typedef struct sk_reader {
  sk_config *c;
  sk_mistakes bad;
  sk_slot *slot;     /* [sk_n_keys] */
  const char *name;  /* of the deck, for mistakes that have no line */
  int n_decks;       /* parsed texts: defaults, deck, --set */
  sk_deck *decks;
  sk_node *hf;       /* config.json as nodes, with their texts' owners below */
  char *hf_name, *hf_text;
  bool broken;       /* the deck is no mapping: nothing in it can be checked */
  bool model_unsure; /* config.json could not be read: do not check sizes against defaults */
} sk_reader;

/* Where key `path` got its value; the deck as a whole when nowhere. */
sk_mark sk_reader_mark(const sk_reader *r, const char *path);
const sk_slot *sk_reader_slot(const sk_reader *r, const char *path);
SK_PRINTF(3, 4) void sk_reader_mistake(sk_reader *r, const char *path, const char *fmt, ...);

/* config_list.c: data.train, data.valid and optimizer.groups, and any list as YAML (owned text). */
void sk_lists_read(sk_reader *r);
char *sk_list_text(const sk_key *k, const sk_config *c);
/* Reports a key that is not in the table; list: whose member it should be, or NULL. */
void sk_unknown_key(sk_reader *r, const sk_mark *mark, const char *path, const char *list);

/* config_layers.c: pattern, overrides, derived sizes and their checks: fills c->layer. */
void sk_layers_read(sk_reader *r);
char *sk_overrides_text(const sk_config *c);

/* model_cfg.c: config.json as a mapping of nodes under r->hf, and into the slots that are still at
 * their default. c->hf_json must hold the text. where is copied. */
void sk_hf_read(sk_reader *r, const char *where);
/* Python writes a bare Infinity, which is no JSON: becomes null, which means the same here, in place. */
void sk_hf_mask_infinity(char *text);
#endif
