#include "src/hf_json.h"
#include "src/config_read.h"
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- text and object ---- */

/* transformers 5 writes an infinity so, reads it so, and refuses null. */
static json_t *real_or_infinity(double x) {
  return isfinite(x) ? json_real(x) : json_pack("{s:s}", "__float__", "Infinity");
}

/* NULL when it is no JSON. *repaired: a null stood for the infinite time_step_limit. */
static json_t *load(const char *text, bool *repaired) {
  char *copy = sk_strdup(text);
  sk_hf_mask_infinity(copy);
  json_t *o = json_loads(copy, JSON_REJECT_DUPLICATES, NULL), *limit = json_object_get(o, "time_step_limit");
  sk_free(copy);
  bool null = json_is_null(json_array_get(limit, 1));
  if (null) json_array_set_new(limit, 1, real_or_infinity(INFINITY));
  *repaired = null && !strstr(text, "Infinity");
  return o;
}

static char *dump(json_t *o) {
  char *text = json_dumps(o, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
  SK_CHECK(text, "the model's config.json cannot be written as text");
  char *copy = sk_strf("%s\n", text);
  free(text);
  json_decref(o);
  return copy;
}

/* ---- keys ---- */

#define INT(key) {#key, offsetof(sk_model_cfg, key), 0}
#define BOOL(key) {#key, offsetof(sk_model_cfg, key), -1}
#define REALS(key, n) {#key, offsetof(sk_model_cfg, key), n}

static const struct key {
  const char *name;
  size_t at;
  int n; /* reals; 0: an integer, -1: a bool; 1 is a number, more a list */
} keys[] = {
    INT(vocab_size), INT(hidden_size), INT(intermediate_size), INT(num_hidden_layers), INT(num_attention_heads),
    INT(num_key_value_heads), INT(head_dim), INT(mamba_d_ssm), INT(mamba_n_heads), INT(mamba_d_head),
    INT(mamba_n_groups), INT(mamba_d_state), INT(mamba_d_conv), INT(mamba_expand), INT(mamba_chunk_size),
    INT(max_position_embeddings), INT(pad_token_id), INT(bos_token_id), INT(eos_token_id),
    BOOL(tie_word_embeddings), BOOL(attention_bias), BOOL(mlp_bias), BOOL(mamba_conv_bias), BOOL(mamba_proj_bias),
    BOOL(projectors_bias), BOOL(mamba_rms_norm), BOOL(mamba_norm_before_gate),
    REALS(initializer_range, 1), REALS(rms_norm_eps, 1), REALS(rope_theta, 1), REALS(embedding_multiplier, 1),
    REALS(lm_head_multiplier, 1), REALS(key_multiplier, 1), REALS(attention_in_multiplier, 1),
    REALS(attention_out_multiplier, 1), REALS(ssm_in_multiplier, 1), REALS(ssm_out_multiplier, 1),
    REALS(mlp_multipliers, 2), REALS(ssm_multipliers, 5), REALS(time_step_limit, 2)};

static json_t *value_of(const struct key *k, const sk_model_cfg *m) {
  const char *p = (const char *)m + k->at;
  if (k->n < 0) return json_boolean(*(const bool *)p);
  if (k->n == 0) {
    int64_t x;
    memcpy(&x, p, sizeof x);
    return x < 0 ? json_null() : json_integer(x);
  }
  double x[5];
  memcpy(x, p, (size_t)k->n * sizeof *x);
  if (k->n == 1) return json_real(x[0]);
  json_t *a = json_array();
  for (int i = 0; i < k->n; i++) json_array_append_new(a, real_or_infinity(x[i]));
  return a;
}

static bool same(const struct key *k, const sk_model_cfg *a, const sk_model_cfg *b) {
  size_t size = k->n < 0 ? sizeof(bool) : k->n == 0 ? sizeof(int64_t) : (size_t)k->n * sizeof(double);
  return memcmp((const char *)a + k->at, (const char *)b + k->at, size) == 0;
}

/* Sets what differs from `old` (NULL: everything); whether anything did. */
static bool set_keys(json_t *o, const sk_model_cfg *m, const sk_model_cfg *old) {
  bool any = false;
  for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
    if (old && same(&keys[i], m, old)) continue;
    any = true;
    json_object_set_new(o, keys[i].name, value_of(&keys[i], m));
    if (strcmp(keys[i].name, "rope_theta") != 0) continue;
    json_t *rope = json_object_get(o, "rope_parameters"); /* the name since transformers 5 */
    if (rope) json_object_set_new(rope, "rope_theta", value_of(&keys[i], m));
  }
  return any;
}

static char *fresh(const sk_config *c) {
  json_t *o = json_pack("{s:[s], s:s, s:s, s:{s:s}}", "architectures", "FalconH1ForCausalLM", "model_type",
                        "falcon_h1", "hidden_act", "silu", "rope_parameters", "rope_type", "default");
  set_keys(o, &c->model, NULL);
  return dump(o);
}

char *sk_hf_json(const sk_config *c, const char *base) {
  sk_config old = {0};
  sk_err e = {0};
  bool repaired;
  json_t *o = base ? load(base, &repaired) : NULL;
  if (!o || sk_config_from_hf(base, "config.json", &old, &e) != SK_OK) {
    json_decref(o);
    return fresh(c);
  }
  bool changed = set_keys(o, &c->model, &old.model) || repaired;
  sk_config_free(&old);
  if (changed) return dump(o);
  json_decref(o);
  return sk_strdup(base);
}

/* ---- dtype ---- */

/* transformers before 4.56 wrote and read torch_dtype, and all later ones still read it. */
static const char *dtype_key(const json_t *o) {
  return json_is_string(json_object_get(o, "dtype")) ? "dtype" : "torch_dtype";
}

char *sk_hf_json_dtype(const char *json) {
  bool repaired;
  json_t *o = load(json, &repaired);
  const char *name = json_string_value(json_object_get(o, dtype_key(o)));
  char *copy = name ? sk_strdup(strncmp(name, "torch.", 6) == 0 ? name + 6 : name) : NULL;
  json_decref(o);
  return copy;
}

char *sk_hf_json_with_dtype(const char *json, const char *dtype) {
  bool repaired;
  json_t *o = load(json, &repaired);
  json_object_set_new(o, dtype_key(o), json_string(dtype));
  return dump(o);
}

bool sk_hf_json_has(const char *json, const char *key) {
  bool repaired;
  json_t *o = load(json, &repaired);
  bool has = json_object_get(o, key) != NULL;
  json_decref(o);
  return has;
}
