/* config_layers.c: from the pattern and the overrides to one struct per layer (design section 5). */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "src/config_read.h"
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { MOST_OVERRIDES = 1000, MOST_PATTERN = 20000 };

typedef struct override {
  const sk_node *node;
  bool *covers; // [n_layers]
} override;

typedef struct layers {
  sk_reader *r;
  int n;           // overrides
  override *item;
  unsigned *told;  // [n + 1]: checks reported already for the model's keys and for each override
} layers;

/* ---- pattern ---- */

// The layers in one pattern, or 0 after a mistake. layer (may be NULL) gets them, repeated.
static int64_t read_pattern(sk_reader *r, const char *s) {
  int64_t n = 0;
  if (strlen(s) > MOST_PATTERN) {
    sk_reader_mistake(r, "model.pattern", "model.pattern is longer than %d", MOST_PATTERN);
    return 0;
  }
  for (int i = 0; s[i]; i++) {
    if (strchr("P*M", s[i])) {
      n++;
    } else if (s[i] == 'G') {
      sk_reader_mistake(r, "model.pattern", "model.pattern: G (gated linear RNN) is not yet supported");
      return 0;
    } else if (s[i] != '-') {
      sk_reader_mistake(r, "model.pattern", "model.pattern: '%c' at place %d is none of P, *, M, -",
                        s[i], i + 1);
      return 0;
    } else if (i == 0 || s[i - 1] == '-') {
      sk_reader_mistake(r, "model.pattern",
                        "model.pattern: the - at place %d has no mixer (P, * or M) before it", i + 1);
      return 0;
    }
  }
  return n;
}

static void lay_out(sk_config *c) {
  int64_t i = -1;
  for (const char *s = c->pattern; i < c->n_layers; s = s[1] ? s + 1 : c->pattern) {
    if (*s == '-') c->layer[i].mlp = true;
    else if (++i < c->n_layers) c->layer[i] = (sk_layer_cfg){*s, false, c->model};
  }
}

// Allocates c->layer with the model's sizes in each; false after a mistake.
static bool make_layers(sk_reader *r) {
  sk_config *c = r->c;
  if (sk_reader_slot(r, "model.pattern")->bad || sk_reader_slot(r, "model.num_hidden_layers")->bad)
    return false;
  int64_t period = read_pattern(r, c->pattern), n = c->model.num_hidden_layers;
  if (period == 0) return false;
  if (n % period != 0) {
    int64_t below = n / period * period;
    char lower[40] = "";
    if (below) snprintf(lower, sizeof lower, "%lld or ", (long long)below);
    sk_reader_mistake(r, sk_reader_slot(r, "model.num_hidden_layers")->given
                             ? "model.num_hidden_layers" : "model.pattern",
                      "model.num_hidden_layers %lld is not a multiple of the %lld layers in the "
                      "pattern \"%.60s\"; multiples work, such as %s%lld",
                      (long long)n, (long long)period, c->pattern, lower, (long long)(below + period));
    return false;
  }
  c->n_layers = n;
  c->layer = sk_calloc((size_t)n, sizeof *c->layer);
  lay_out(c);
  return true;
}

/* ---- overrides ---- */

static bool number(const char **s, int64_t *v) {
  if (!isdigit((unsigned char)**s)) return false;
  for (*v = 0; isdigit((unsigned char)**s); (*s)++)
    if (*v < INT32_MAX) *v = 10 * *v + (**s - '0');
  return true;
}

// "0-3,7" into covers.
static void read_ranges(sk_reader *r, const sk_node *n, bool *covers) {
  const char *s = n->kind == SK_NODE_SCALAR ? n->text : "";
  int64_t from = 0, to, last = r->c->n_layers - 1;
  for (;; s++) {
    bool ok = number(&s, &from);
    to = from;
    if (ok && *s == '-') s++, ok = number(&s, &to);
    if (!ok || (*s && *s != ',')) {
      sk_mistake(&r->bad, &n->mark, "layers: a number, a range as 0-3 or a list as \"0,2,5-7\" is "
                                    "expected, not %.60s", n->kind == SK_NODE_SCALAR && *n->text
                                                               ? n->text : sk_node_what(n));
      return;
    }
    if (from > to || to > last) {
      sk_mistake(&r->bad, &n->mark, "layers: %lld-%lld is not within the layers 0-%lld",
                 (long long)from, (long long)to, (long long)last);
      return;
    }
    for (int64_t i = from; i <= to; i++) covers[i] = true;
    if (!*s) return;
  }
}

static void read_member(sk_reader *r, const sk_node *n, const bool *covers) {
  sk_config *c = r->c, one = {0};
  int k = sk_key_member("model.overrides", n->key);
  char *path = sk_strf("model.%s", n->key);
  if (k < 0 && sk_key_find(path) >= 0)
    sk_mistake(&r->bad, &n->key_mark, "%.60s is the same in all layers and cannot be overridden", path);
  else if (k < 0)
    sk_unknown_key(r, &n->key_mark, n->key, "model.overrides");
  else if (strcmp(n->key, "layers") != 0 && sk_key_read(&sk_keys[k], n, NULL, &one, &r->bad))
    for (int64_t i = 0; i < c->n_layers; i++) {
      if (!covers[i]) continue;
      one.model = c->layer[i].m;
      sk_key_read(&sk_keys[k], n, NULL, &one, NULL);
      c->layer[i].m = one.model;
    }
  sk_free(path);
}

static void read_override(sk_reader *r, override *o) {
  const sk_node *n = o->node;
  if (n->kind != SK_NODE_MAP) {
    sk_mistake(&r->bad, &n->mark, "model.overrides: each entry is a mapping of keys, not %s",
               sk_node_what(n));
    return;
  }
  const sk_node *which = sk_node_get(n, "layers");
  if (which)
    read_ranges(r, which, o->covers);
  else
    sk_mistake(&r->bad, &n->mark, "model.overrides: \"layers\" is missing: %s",
               sk_keys[sk_key_member("model.overrides", "layers")].help);
  for (const sk_node *m = n->child; m; m = m->next) read_member(r, m, o->covers);
}

static void read_overrides(layers *l) {
  sk_reader *r = l->r;
  const sk_node *list = sk_reader_slot(r, "model.overrides")->node;
  if (list->kind != SK_NODE_LIST || list->n > MOST_OVERRIDES) {
    sk_mark m = sk_reader_mark(r, "model.overrides");
    sk_mistake(&r->bad, &m, "model.overrides: a list of at most %d entries is expected, not %s",
               MOST_OVERRIDES, list->kind == SK_NODE_LIST ? "more" : sk_node_what(list));
    return;
  }
  l->item = sk_calloc((size_t)list->n, sizeof *l->item);
  for (const sk_node *n = list->child; n; n = n->next) {
    override *o = &l->item[l->n++];
    *o = (override){n, sk_calloc((size_t)r->c->n_layers, sizeof(bool))};
    read_override(r, o);
  }
}

/* ---- derived sizes and checks ---- */

static void derive(sk_model_cfg *m) {
  if (m->num_key_value_heads < 0) m->num_key_value_heads = m->num_attention_heads;
  if (m->head_dim < 0) m->head_dim = m->hidden_size / m->num_attention_heads;
  if (m->mamba_d_ssm < 0) m->mamba_d_ssm = m->mamba_expand * m->hidden_size;
  if (m->mamba_d_head < 0) m->mamba_d_head = m->mamba_d_ssm / m->mamba_n_heads;
  // 0 only where a check refuses it, or where no layer uses it
  if (m->head_dim < 1) m->head_dim = 1;
  if (m->mamba_d_head < 1) m->mamba_d_head = 1;
}

// Reports a check that fails in a layer: once for each override that is to blame, or for the model.
// keys: the names that take part, separated by spaces; the first one given is where it is shown.
SK_PRINTF(5, 6)
static void blame(layers *l, int64_t layer, unsigned check, const char *keys, const char *fmt, ...) {
  char msg[500], name[100], path[120];
  sk_mark mark = {l->r->name, NULL, 0, 0};
  int culprit = -1;
  bool sound = true, placed = false;
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(msg, sizeof msg, fmt, ap);
  va_end(ap);
  for (int used; sscanf(keys, "%99s%n", name, &used) == 1; keys += used) {
    snprintf(path, sizeof path, "model.%s", name);
    const sk_slot *s = sk_reader_slot(l->r, path);
    sound &= !s->bad;
    if (s->given && !placed) mark = s->node->mark, placed = true;
    for (int i = l->n - 1; i > culprit; i--)
      if (l->item[i].covers[layer] && l->item[i].node->kind == SK_NODE_MAP &&
          sk_node_get(l->item[i].node, name))
        culprit = i;
  }
  if (culprit >= 0) mark = l->item[culprit].node->mark;
  if (!sound || l->told[culprit + 1] & check) return;
  l->told[culprit + 1] |= check;
  if (culprit >= 0) sk_mistake(&l->r->bad, &mark, "layer %lld: %s", (long long)layer, msg);
  else sk_mistake(&l->r->bad, &mark, "%s", msg);
}

enum { HEAD_DIM = 1, HEAD_EVEN = 2, KV = 4, SSM = 8, GROUPS = 16 };

static void check_attention(layers *l, int64_t i, const sk_model_cfg *raw, const sk_model_cfg *m) {
  long long heads = m->num_attention_heads, kv = m->num_key_value_heads, hidden = m->hidden_size;
  if (raw->head_dim < 0 && hidden % heads)
    blame(l, i, HEAD_DIM, "num_attention_heads hidden_size head_dim",
          "hidden_size %lld is not a multiple of num_attention_heads %lld; change one or give head_dim",
          hidden, heads);
  else if (m->head_dim % 2)
    blame(l, i, HEAD_EVEN, "head_dim num_attention_heads hidden_size",
          "head_dim %lld is odd; the rotary embedding turns pairs", (long long)m->head_dim);
  if (heads % kv)
    blame(l, i, KV, "num_key_value_heads num_attention_heads",
          "num_attention_heads %lld is not a multiple of num_key_value_heads %lld", heads, kv);
}

static void check_ssm(layers *l, int64_t i, const sk_model_cfg *raw, const sk_model_cfg *m) {
  long long heads = m->mamba_n_heads, width = m->mamba_d_head, ds = m->mamba_d_ssm;
  if (raw->mamba_d_head < 0 && ds % heads)
    blame(l, i, SSM, "mamba_n_heads mamba_d_ssm mamba_d_head mamba_expand hidden_size",
          "mamba_d_ssm %lld is not a multiple of mamba_n_heads %lld", ds, heads);
  else if (heads * width != ds)
    blame(l, i, SSM, "mamba_d_head mamba_n_heads mamba_d_ssm mamba_expand hidden_size",
          "mamba_n_heads %lld x mamba_d_head %lld is %lld, not mamba_d_ssm %lld", heads, width,
          heads * width, ds);
  if (heads % m->mamba_n_groups)
    blame(l, i, GROUPS, "mamba_n_groups mamba_n_heads",
          "mamba_n_heads %lld is not a multiple of mamba_n_groups %lld", heads,
          (long long)m->mamba_n_groups);
}

void sk_layers_read(sk_reader *r) {
  sk_config *c = r->c;
  layers l = {.r = r};
  if (!make_layers(r)) {
    derive(&c->model);
    return;
  }
  int before = r->bad.n;
  read_overrides(&l);
  bool check = r->bad.n == before && !r->model_unsure;
  l.told = sk_calloc((size_t)l.n + 1, sizeof *l.told);
  derive(&c->model);
  for (int64_t i = 0; i < c->n_layers; i++) {
    sk_layer_cfg *layer = &c->layer[i];
    sk_model_cfg raw = layer->m;
    derive(&layer->m);
    if (check && layer->mixer != 'M') check_attention(&l, i, &raw, &layer->m);
    if (check && layer->mixer != '*') check_ssm(&l, i, &raw, &layer->m);
  }
  for (int i = 0; i < l.n; i++) sk_free(l.item[i].covers);
  sk_free(l.item);
  sk_free(l.told);
}

/* ---- the overrides of a resolved deck ---- */

// Where a layer's sizes differ from the model's: ", key: value" for each; "" when nowhere.
static char *differences(const sk_config *c, int64_t i) {
  char *text = sk_strdup("");
  sk_config one = {0};
  one.model = c->layer[i].m;
  for (int k = 0; k < sk_n_keys; k++) {
    if (!(sk_keys[k].flags & SK_KEY_LAYER)) continue;
    char *a = sk_key_text(&sk_keys[k], c), *b = sk_key_text(&sk_keys[k], &one);
    if (strcmp(a, b) != 0) {
      char *more = sk_strf("%s, %s: %s", text, sk_keys[k].path + strlen("model."), b);
      sk_free(text);
      text = more;
    }
    sk_free(a);
    sk_free(b);
  }
  return text;
}

// One entry for all layers from `first` on that differ in the same way; takes those out of diff.
static void put_override(FILE *out, char **diff, int64_t first, int64_t n) {
  char *mine = diff[first];
  const char *sep = "";
  fprintf(out, "{layers: \"");
  for (int64_t i = first; i < n; i++) {
    if (!diff[i] || strcmp(diff[i], mine) != 0) continue;
    int64_t from = i;
    for (; i < n && diff[i] && !strcmp(diff[i], mine); i++) {
      if (i != first) sk_free(diff[i]);
      diff[i] = NULL;
    }
    fprintf(out, "%s%lld", sep, (long long)from);
    if (i - from > 1) fprintf(out, "-%lld", (long long)i - 1);
    sep = ",";
  }
  fprintf(out, "\"%s}", mine);
  sk_free(mine);
}

char *sk_overrides_text(const sk_config *c) {
  char *text = NULL;
  size_t size = 0;
  FILE *out = open_memstream(&text, &size);
  SK_CHECK(out, "out of memory while writing a deck");
  char **diff = sk_calloc((size_t)c->n_layers, sizeof *diff);
  bool any = false;
  fputc('[', out);
  for (int64_t i = 0; i < c->n_layers; i++) diff[i] = differences(c, i);
  for (int64_t i = 0; i < c->n_layers; i++) {
    if (!diff[i]) continue;
    if (diff[i][0]) {
      if (any) fputs(", ", out);
      any = true;
      put_override(out, diff, i, c->n_layers);
    }
    sk_free(diff[i]);
    diff[i] = NULL;
  }
  sk_free(diff);
  fputc(']', out);
  fclose(out);
  return text;
}
