/* keys.h: the one table of deck keys. What a key is called, what it may hold, what it is when it is
 * not given, and one line of help; reading, range errors, the resolved deck, --help-keys and
 * --print-defaults are loops over it. Not collective. */
#ifndef SK_KEYS_H
#define SK_KEYS_H
#include "io/deck.h"

typedef enum {
  SK_KEY_INT,    /* int64_t */
  SK_KEY_FLOAT,  /* double */
  SK_KEY_FLOATS, /* double[count] */
  SK_KEY_BOOL,   /* bool */
  SK_KEY_CHOICE, /* int: the place in `range` */
  SK_KEY_TEXT,   /* char *, owned */
  SK_KEY_PATH,   /* char *, owned; relative ones are joined to the folder they are read from */
  SK_KEY_NULL,   /* only null is possible */
  SK_KEY_LIST    /* a list of mappings: read by config_list.c and model_cfg.c */
} sk_key_type;

enum {
  SK_KEY_NULLABLE = 1, /* null is allowed: stored as -1, or NULL for texts */
  SK_KEY_LAYER = 2,    /* may stand in model.overrides */
  SK_KEY_RESTART = 4,  /* may change on a restart */
  SK_KEY_IGNORED = 8   /* read for the sake of Hugging Face's files; nothing depends on it */
};

typedef struct sk_key {
  const char *path; /* "train.steps"; members of a list's mappings: "data.train[].path" */
  sk_key_type type;
  int count;           /* SK_KEY_FLOATS: how many */
  const char *unit;    /* sk_quantity's units, or just words for the help; NULL: none */
  const char *dflt;    /* as YAML; NULL: must be given */
  const char *range;   /* numbers: an interval as "[0,1)"; choices: "a|b|c"; NULL: any */
  const char *only;    /* the one value that this version can do yet; NULL: all of them */
  int flags;
  ptrdiff_t offset;    /* in sk_config, or in the list's element; -1: not stored */
  const char *help;
} sk_key;

extern const sk_key sk_keys[];
extern const int sk_n_keys;

/* The key with this path as a user may write it, or -1. Members of lists are not found by it, as
 * they have no path of their own. sk_key_member finds "path" under "data.train[]". */
int sk_key_find(const char *path);
int sk_key_member(const char *list, const char *name);
/* Whether keys stand below `path`. */
bool sk_key_is_section(const char *path);
/* The known key (or section, or member of `list` when not NULL) that a wrong path is near to. */
const char *sk_key_nearest(const char *path, const char *list);

/* Reads node into the key's place in *base, or says in bad (which may be NULL) what is wrong and
 * leaves the place alone. folder: what relative paths start from. */
bool sk_key_read(const sk_key *k, const sk_node *n, const char *folder, void *base,
                 sk_mistakes *bad);
/* The value as canonical YAML: reading it again gives the same value. The caller owns the text. Keys
 * that are not stored give their default. */
char *sk_key_text(const sk_key *k, const void *base);
/* s as a quoted YAML scalar; owned by the caller. */
char *sk_quote(const char *s);

/* A whole number, with a unit where one is allowed: NULL takes digits only; "bytes" takes kB, MB, GB,
 * TB and KiB, MiB, GiB, TiB; "time" (in seconds) takes [D-]H:MM:SS; counts of anything else ("tokens",
 * "steps", ...) take k, M, G, T and Ki, Mi, Gi, Ti. False: not understood, or over INT64_MAX. */
bool sk_quantity(const char *text, const char *unit, int64_t *value);

/* A deck with value(key, base) for every key, in the table's order. `value` returns an owned text that
 * is printed behind "key:" (it may begin a new line), or NULL to leave the key out. */
char *sk_keys_deck(char *(*value)(const sk_key *, const void *), const void *base);
/* Every key with its default as a deck, in the table's order; the caller owns the text. With help,
 * each line carries the key's help and required keys show an example. */
char *sk_keys_defaults(bool help);
#endif
