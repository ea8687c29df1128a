#include "src/convert.h"
#include "src/progress.h"

enum { PIECE = 4 << 20 }; /* elements */

const char sk_convert_dtypes[] = "source-dtypes.json";
const char *const sk_convert_sides[] = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",      "vocab.json", "merges.txt",
    "tokenizer.model", "chat_template.jinja",  "chat_template.json",      "generation_config.json", NULL};

int sk_convert_model(const sk_config *cfg, sk_model *m, sk_err *e) {
  sk_grid one;
  const sk_chunk all = {0, cfg->n_layers, true, true};
  sk_grid_pretend(&one, (const int[SK_NAXES]){1, 1, 1, 1}, 0);
  return sk_model_create(m, cfg, &one, 1, &all, 1, e);
}

int64_t sk_convert_rows(const sk_param *p) {
  int64_t n = PIECE / p->global_len;
  return n < 1 ? 1 : n < p->dim[0] ? n : p->dim[0];
}

void sk_convert_tick(sk_convert_progress *p, int64_t elements) {
  double now = sk_now(), share;
  p->done += elements;
  if (p->last == 0) p->last = p->begin;
  if (now - p->last < 10) return;
  p->last = now;
  share = (double)p->done * p->ranks / (double)p->all; /* the ranks' parts are alike */
  if (share < 1)
    sk_say("converting: %2.0f %% of %s weights, %s left", 100 * share, sk_si((double)p->all),
           sk_duration((now - p->begin) * (1 - share) / share));
}
