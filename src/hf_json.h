/* hf_json.h: the model part of a deck as Hugging Face's config.json, in the form that transformers reads. */
#ifndef SK_HF_JSON_H
#define SK_HF_JSON_H
#include "src/config.h"

/* JSON text (owned by the caller). base: a config.json to start from, NULL: none. Where base already says what
 * the model is, it is returned as it is; keys that differ are set, all others, unknown ones too, are kept.
 * Per-layer overrides and patterns have no place in it. */
char *sk_hf_json(const sk_config *c, const char *base);

/* The dtype that a config.json names ("bfloat16"), owned by the caller; NULL: none. */
char *sk_hf_json_dtype(const char *json);
/* The same config.json with another dtype (owned by the caller). */
char *sk_hf_json_with_dtype(const char *json, const char *dtype);
/* Whether the text has a key (of the outermost object). */
bool sk_hf_json_has(const char *json, const char *key);
#endif
