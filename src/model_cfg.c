/* model_cfg.c: Hugging Face's config.json as values for the model's keys. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "src/config_read.h"
#include <ctype.h>
#include <jansson.h>
#include <string.h>

// As many bytes as before, so that places in the text stay right.
void sk_hf_mask_infinity(char *s) {
  for (bool quoted = false; *s; s++) {
    if (*s == '\\' && quoted && s[1]) s++;
    else if (*s == '"') quoted = !quoted;
    else if (!quoted && !strncmp(s, "Infinity", 8)) memcpy(s, "null    ", 8);
  }
}

static const char *after_string(const char *s) {
  for (s++; *s && *s != '"'; s++)
    if (*s == '\\' && s[1]) s++;
  return *s ? s + 1 : s;
}

// Where the value of a key of the outermost object starts. The text is known to be valid JSON.
static size_t find_value(const char *text, const char *key) {
  size_t len = strlen(key);
  int depth = 0;
  for (const char *s = text; *s;) {
    if (*s != '"') {
      depth += (*s == '{' || *s == '[') - (*s == '}' || *s == ']');
      s++;
      continue;
    }
    const char *end = after_string(s), *colon = end + strspn(end, " \t\r\n");
    bool same = depth == 1 && *colon == ':' && (size_t)(end - s) == len + 2;
    if (same && !strncmp(s + 1, key, len))
      return (size_t)(colon + 1 + strspn(colon + 1, " \t\r\n") - text);
    s = end;
  }
  return 0;
}

enum { MOST_DEPTH = 4 }; // deeper values belong to no key of ours

static sk_node *node_of(const json_t *j, const sk_mark *m, int depth);

static void append(sk_node *parent, sk_node ***tail, sk_node *n) {
  **tail = n;
  *tail = &n->next;
  parent->n++;
}

static sk_node *object_node(const json_t *j, const sk_mark *m, int depth) {
  // transformers 5 writes {"__float__": "Infinity"}
  const json_t *tagged = json_object_get(j, "__float__");
  if (tagged && json_is_string(tagged) && !strcmp(json_string_value(tagged), "Infinity"))
    return sk_node_new(SK_NODE_SCALAR, "null", true, m);
  sk_node *n = sk_node_new(SK_NODE_MAP, NULL, false, m), **tail = &n->child;
  const char *key;
  json_t *v;
  json_object_foreach((json_t *)(uintptr_t)j, key, v) {
    sk_node *c = node_of(v, m, depth + 1);
    c->key = sk_strdup(key);
    c->key_mark = *m;
    append(n, &tail, c);
  }
  return n;
}

static sk_node *node_of(const json_t *j, const sk_mark *m, int depth) {
  char number[40];
  switch (depth > MOST_DEPTH ? JSON_NULL : json_typeof(j)) {
    case JSON_OBJECT: return object_node(j, m, depth);
    case JSON_ARRAY: {
      sk_node *n = sk_node_new(SK_NODE_LIST, NULL, false, m), **tail = &n->child;
      for (size_t i = 0; i < json_array_size(j); i++)
        append(n, &tail, node_of(json_array_get(j, i), m, depth + 1));
      return n;
    }
    case JSON_STRING: return sk_node_new(SK_NODE_SCALAR, json_string_value(j), false, m);
    case JSON_INTEGER:
      snprintf(number, sizeof number, "%lld", (long long)json_integer_value(j));
      return sk_node_new(SK_NODE_SCALAR, number, true, m);
    case JSON_REAL:
      snprintf(number, sizeof number, "%.17g", json_real_value(j));
      return sk_node_new(SK_NODE_SCALAR, number, true, m);
    case JSON_TRUE: return sk_node_new(SK_NODE_SCALAR, "true", true, m);
    case JSON_FALSE: return sk_node_new(SK_NODE_SCALAR, "false", true, m);
    default: return sk_node_new(SK_NODE_SCALAR, "null", true, m);
  }
}

// The deck's own keys of the model section are no keys of config.json.
static bool is_hf_key(const char *path) {
  return strcmp(path, "model.hf_config") && strcmp(path, "model.pattern") &&
         strcmp(path, "model.overrides");
}

static void fill_one(sk_reader *r, const sk_node *n, const char *path) {
  int k = sk_key_find(path);
  if (k < 0 || !is_hf_key(path) || r->slot[k].given) return;
  // several end-of-text ids: the first one ends a document
  bool ids = !strcmp(path, "model.eos_token_id") && n->kind == SK_NODE_LIST && n->child;
  const sk_node *v = ids ? n->child : n;
  // null says "the default" where it has no meaning of its own
  bool null_means = sk_keys[k].flags & SK_KEY_NULLABLE || sk_keys[k].type == SK_KEY_NULL;
  if (sk_node_is_null(v) && !null_means) return;
  r->slot[k].node = v;
  r->slot[k].source = r->hf;
  r->slot[k].given = true;
}

// Keys that the table does not know are left alone: hf_json keeps them.
static void fill_slots(sk_reader *r, const sk_node *map, const char *section) {
  for (const sk_node *n = map->child; n; n = n->next) {
    char *path = sk_strf("%s.%s", section, n->key);
    if (n->kind == SK_NODE_MAP && sk_key_is_section(path))
      fill_slots(r, n, path);
    else if (!strchr(n->key, '.'))
      fill_one(r, n, path);
    sk_free(path);
  }
}

static size_t offset_of(const char *text, int row, int col) {
  const char *s = text;
  for (; row > 1 && (s = strchr(s, '\n')); row--) s++;
  if (!s) return strlen(text);
  for (; col > 1 && *s && *s != '\n'; col--) s++;
  return (size_t)(s - text);
}

void sk_hf_read(sk_reader *r, const char *where) {
  char *text = r->hf_text = sk_strdup(r->c->hf_json);
  json_error_t why;
  r->hf_name = sk_strdup(where);
  sk_hf_mask_infinity(text);
  json_t *j = json_loads(text, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
  if (!j) {
    sk_mark m = sk_mark_at(r->hf_name, text, offset_of(text, why.line, why.column));
    sk_mistake(&r->bad, &m, "JSON syntax: %s", why.text);
  } else if (!json_is_object(j)) {
    sk_mark m = sk_mark_at(r->hf_name, text, 0);
    sk_mistake(&r->bad, &m, "a config.json is a JSON object");
  }
  r->model_unsure = !j || !json_is_object(j);
  if (!r->model_unsure) {
    sk_mark top = {r->hf_name, NULL, 0, 0};
    r->hf = node_of(j, &top, 0);
    for (sk_node *n = r->hf->child; n; n = n->next) {
      char *path = sk_strf("model.%s", n->key);
      if (sk_key_find(path) >= 0 || sk_key_is_section(path)) {
        n->mark = sk_mark_at(r->hf_name, text, find_value(text, n->key));
        for (sk_node *c = n->child; c; c = c->next) c->mark = n->mark;
      }
      sk_free(path);
    }
    fill_slots(r, r->hf, "model");
  }
  json_decref(j);
}
