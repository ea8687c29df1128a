/* config_list.c: the keys whose values are lists of mappings. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "src/config_read.h"
#include <stdio.h>
#include <string.h>

enum { MOST_ENTRIES = 10000 };

// The part of a member's path behind "list[].", or NULL when it is no member of that list.
static const char *member_of(const sk_key *k, const char *list) {
  size_t n = strlen(list);
  if (strncmp(k->path, list, n) != 0 || strncmp(k->path + n, "[].", 3) != 0) return NULL;
  return k->path + n + 3;
}

static void read_entry(sk_reader *r, const char *list, const sk_node *map, const char *folder,
                       void *entry) {
  if (map->kind != SK_NODE_MAP) {
    sk_mistake(&r->bad, &map->mark, "%s: each entry is a mapping of keys, not %s", list,
               sk_node_what(map));
    return;
  }
  for (const sk_node *n = map->child; n; n = n->next)
    if (sk_key_member(list, n->key) < 0) sk_unknown_key(r, &n->key_mark, n->key, list);
  for (int i = 0; i < sk_n_keys; i++) {
    const sk_key *k = &sk_keys[i];
    const char *name = member_of(k, list);
    const sk_node *given = name ? sk_node_get(map, name) : NULL;
    if (name && !given && !k->dflt)
      sk_mistake(&r->bad, &map->mark, "%s: \"%s\" is missing: %s", list, name, k->help);
    if (!name || (!given && !k->dflt)) continue;
    sk_node *dflt = given ? NULL : sk_node_new(SK_NODE_SCALAR, k->dflt, true, &map->mark);
    sk_key_read(k, given ? given : dflt, folder, entry, &r->bad);
    sk_node_free(dflt);
  }
}

// Fills *entries, an array of *n elements of `size` bytes.
static void read_list(sk_reader *r, const char *path, size_t size, bool required, void *entries,
                      int *n) {
  const sk_slot *s = sk_reader_slot(r, path);
  const sk_node *list = s->node;
  sk_mark top = sk_reader_mark(r, path);
  if (!list || (required && list->kind == SK_NODE_LIST && list->n == 0)) {
    sk_mistake(&r->bad, &top, "%s must be given: %s", path, sk_keys[sk_key_find(path)].help);
    return;
  }
  if (list->kind != SK_NODE_LIST) {
    const char *form = strchr(sk_keys[sk_key_find(path)].help, '[');
    sk_mistake(&r->bad, &top, "%s: a list%s%s is expected, not %s", path, form ? " as " : "", form ? form : "",
               sk_node_what(list));
    return;
  }
  if (list->n > MOST_ENTRIES) {
    sk_mistake(&r->bad, &top, "%s: a list of at most %d entries is expected", path, MOST_ENTRIES);
    return;
  }
  char *all = sk_calloc((size_t)list->n, size);
  *n = list->n;
  *(void **)entries = all;
  for (const sk_node *c = list->child; c; c = c->next, all += size)
    read_entry(r, path, c, s->folder, all);
}

void sk_lists_read(sk_reader *r) {
  sk_config *c = r->c;
  read_list(r, "data.train", sizeof(sk_data_entry), true, &c->data.train, &c->data.n_train);
  read_list(r, "data.valid", sizeof(sk_data_entry), false, &c->data.valid, &c->data.n_valid);
  read_list(r, "optimizer.groups", sizeof(sk_param_group), false, &c->optimizer.groups,
            &c->optimizer.n_groups);
}

static char *entries_text(const char *list, const void *entries, size_t size, int n) {
  char *text = NULL;
  size_t bytes = 0;
  FILE *out = open_memstream(&text, &bytes);
  SK_CHECK(out, "out of memory while writing a deck");
  fputc('[', out);
  for (int e = 0; e < n; e++) {
    const char *sep = e ? ", {" : "{";
    for (int i = 0; i < sk_n_keys; i++) {
      const char *name = member_of(&sk_keys[i], list);
      if (!name) continue;
      char *v = sk_key_text(&sk_keys[i], (const char *)entries + (size_t)e * size);
      fprintf(out, "%s%s: %s", sep, name, v);
      sk_free(v);
      sep = ", ";
    }
    fputc('}', out);
  }
  fputc(']', out);
  fclose(out);
  return text;
}

char *sk_list_text(const sk_key *k, const sk_config *c) {
  if (!strcmp(k->path, "data.train"))
    return entries_text(k->path, c->data.train, sizeof *c->data.train, c->data.n_train);
  if (!strcmp(k->path, "data.valid"))
    return entries_text(k->path, c->data.valid, sizeof *c->data.valid, c->data.n_valid);
  if (!strcmp(k->path, "optimizer.groups"))
    return entries_text(k->path, c->optimizer.groups, sizeof *c->optimizer.groups,
                        c->optimizer.n_groups);
  return sk_overrides_text(c);
}
