/* hf_json.h: the model part of a deck as Hugging Face's config.json. */
#ifndef SK_HF_JSON_H
#define SK_HF_JSON_H
#include "src/config.h"

/* JSON text (owned by the caller): the hf_config that the deck named, unknown keys kept, with every
 * model key set to its value in effect; without one, a fresh object. Per-layer overrides and patterns
 * have no place in it. */
char *sk_hf_json(const sk_config *c);
#endif
