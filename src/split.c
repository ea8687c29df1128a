#include "src/split.h"
#include "src/model.h"

static double embed_cost(const sk_config *c) { return 2.0 * (double)c->model.hidden_size; }

static double head_cost(const sk_config *c) {
  return 2.0 * (double)(c->model.vocab_size * c->model.hidden_size);
}

double sk_split_cost(const sk_config *c, int parts, const int64_t *first, int i) {
  double sum = (i == 0 ? embed_cost(c) : 0) + (i == parts - 1 ? head_cost(c) : 0);
  for (int64_t l = first[i]; l < first[i + 1]; l++) sum += sk_layer_flops(&c->layer[l], c->data.sequence);
  return sum;
}

/* Takes as many layers into each part as the limit allows; false when they do not all fit. */
static bool fill(const sk_config *c, int parts, double limit, int64_t *first) {
  int64_t at = 0;
  for (int i = 0; i < parts; i++) {
    double sum = (i == 0 ? embed_cost(c) : 0) + (i == parts - 1 ? head_cost(c) : 0);
    int64_t left = c->n_layers - (parts - 1 - i); /* every later part needs a layer */
    first[i] = at;
    for (; at < left; at++) {
      double more = sk_layer_flops(&c->layer[at], c->data.sequence);
      if (at > first[i] && sum + more > limit) break;
      sum += more;
    }
    if (sum > limit) return false;
  }
  first[parts] = at;
  return at == c->n_layers;
}

void sk_split_layers(const sk_config *c, int parts, int64_t *first) {
  double lo = 0, hi = embed_cost(c) + head_cost(c);
  for (int64_t i = 0; i < c->n_layers; i++) hi += sk_layer_flops(&c->layer[i], c->data.sequence);
  SK_CHECK(parts >= 1 && parts <= c->n_layers, "%d parts of %lld layers", parts, (long long)c->n_layers);
  for (int k = 0; k < 60; k++) {
    double mid = (lo + hi) / 2;
    if (fill(c, parts, mid, first)) hi = mid;
    else lo = mid;
  }
  SK_CHECK(fill(c, parts, hi, first), "no cut of %lld layers into %d parts", (long long)c->n_layers, parts);
}
