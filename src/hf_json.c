#include "src/hf_json.h"
#include <jansson.h>
#include <math.h>
#include <stdlib.h>

static json_t *reals(const double *x, int n) {
  json_t *a = json_array();
  for (int i = 0; i < n; i++) json_array_append_new(a, isfinite(x[i]) ? json_real(x[i]) : json_null());
  return a;
}

static void set_ints(json_t *o, const sk_model_cfg *m) {
  const struct {
    const char *key;
    int64_t value;
  } key[] = {
      {"vocab_size", m->vocab_size},
      {"hidden_size", m->hidden_size},
      {"intermediate_size", m->intermediate_size},
      {"num_hidden_layers", m->num_hidden_layers},
      {"num_attention_heads", m->num_attention_heads},
      {"num_key_value_heads", m->num_key_value_heads},
      {"head_dim", m->head_dim},
      {"mamba_d_ssm", m->mamba_d_ssm},
      {"mamba_n_heads", m->mamba_n_heads},
      {"mamba_d_head", m->mamba_d_head},
      {"mamba_n_groups", m->mamba_n_groups},
      {"mamba_d_state", m->mamba_d_state},
      {"mamba_d_conv", m->mamba_d_conv},
      {"mamba_expand", m->mamba_expand},
      {"mamba_chunk_size", m->mamba_chunk_size},
      {"max_position_embeddings", m->max_position_embeddings},
      {"pad_token_id", m->pad_token_id},
      {"bos_token_id", m->bos_token_id},
      {"eos_token_id", m->eos_token_id},
  };
  for (size_t i = 0; i < sizeof key / sizeof key[0]; i++)
    json_object_set_new(o, key[i].key, key[i].value < 0 ? json_null() : json_integer(key[i].value));
}

static void set_bools(json_t *o, const sk_model_cfg *m) {
  const struct {
    const char *key;
    bool value;
  } key[] = {
      {"tie_word_embeddings", m->tie_word_embeddings},
      {"attention_bias", m->attention_bias},
      {"mlp_bias", m->mlp_bias},
      {"mamba_conv_bias", m->mamba_conv_bias},
      {"mamba_proj_bias", m->mamba_proj_bias},
      {"projectors_bias", m->projectors_bias},
      {"mamba_rms_norm", m->mamba_rms_norm},
      {"mamba_norm_before_gate", m->mamba_norm_before_gate},
  };
  for (size_t i = 0; i < sizeof key / sizeof key[0]; i++)
    json_object_set_new(o, key[i].key, json_boolean(key[i].value));
}

static void set_reals(json_t *o, const sk_model_cfg *m) {
  const struct {
    const char *key;
    double value;
  } key[] = {
      {"initializer_range", m->initializer_range},
      {"rms_norm_eps", m->rms_norm_eps},
      {"rope_theta", m->rope_theta},
      {"embedding_multiplier", m->embedding_multiplier},
      {"lm_head_multiplier", m->lm_head_multiplier},
      {"key_multiplier", m->key_multiplier},
      {"attention_in_multiplier", m->attention_in_multiplier},
      {"attention_out_multiplier", m->attention_out_multiplier},
      {"ssm_in_multiplier", m->ssm_in_multiplier},
      {"ssm_out_multiplier", m->ssm_out_multiplier},
  };
  for (size_t i = 0; i < sizeof key / sizeof key[0]; i++)
    json_object_set_new(o, key[i].key, json_real(key[i].value));
  json_object_set_new(o, "mlp_multipliers", reals(m->mlp_multipliers, 2));
  json_object_set_new(o, "ssm_multipliers", reals(m->ssm_multipliers, 5));
  json_object_set_new(o, "time_step_limit", reals(m->time_step_limit, 2));
}

char *sk_hf_json(const sk_config *c) {
  json_t *o = c->hf_json ? json_loads(c->hf_json, JSON_REJECT_DUPLICATES, NULL) : NULL;
  if (!o) {
    o = json_object();
    json_object_set_new(o, "architectures", json_pack("[s]", "FalconH1ForCausalLM"));
  }
  json_object_set_new(o, "model_type", json_string("falcon_h1"));
  json_object_set_new(o, "hidden_act", json_string("silu"));
  set_ints(o, &c->model);
  set_bools(o, &c->model);
  set_reals(o, &c->model);
  char *text = json_dumps(o, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(17)), *copy;
  SK_CHECK(text, "the model's config.json cannot be written as text");
  copy = sk_strdup(text);
  free(text);
  json_decref(o);
  return copy;
}
