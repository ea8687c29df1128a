/* config.h: what a deck says, typed. One static table of keys (keys.c) drives parsing, ranges, help,
 * defaults, the manual and completion. All structs here are plain data owned by sk_config. */
#ifndef SK_CONFIG_H
#define SK_CONFIG_H
#include "src/agree.h"

/* Model sizes and multipliers: exactly the keys of Hugging Face's config.json (spec section 1.1). */
typedef struct sk_model_cfg {
  int64_t vocab_size, hidden_size, intermediate_size, num_hidden_layers;
  int64_t num_attention_heads, num_key_value_heads, head_dim;
  int64_t mamba_d_ssm, mamba_n_heads, mamba_d_head, mamba_n_groups, mamba_d_state, mamba_d_conv;
  int64_t mamba_expand, mamba_chunk_size;
  int64_t pad_token_id, bos_token_id, eos_token_id; /* -1: null */
  int64_t max_position_embeddings;
  bool tie_word_embeddings, attention_bias, mlp_bias;
  bool mamba_conv_bias, mamba_proj_bias, projectors_bias, mamba_rms_norm, mamba_norm_before_gate;
  double initializer_range, rms_norm_eps, rope_theta;
  double time_step_limit[2]; /* second may be INFINITY */
  double embedding_multiplier, lm_head_multiplier, key_multiplier;
  double attention_in_multiplier, attention_out_multiplier, ssm_in_multiplier, ssm_out_multiplier;
  double mlp_multipliers[2]; /* gate, down */
  double ssm_multipliers[5]; /* z, x, B, C, dt */
} sk_model_cfg;

/* One layer after pattern and overrides: a mixer ('P', '*' or 'M') and maybe an MLP. */
typedef struct sk_layer_cfg {
  char mixer;
  bool mlp;
  sk_model_cfg m; /* the model's keys with this layer's overrides applied */
} sk_layer_cfg;

typedef struct sk_data_entry {
  char *path; /* already resolved against the deck's folder (or the working directory for --set) */
  double weight;
} sk_data_entry;

typedef struct sk_param_group {
  char *match; /* fnmatch(3) pattern over HF parameter names */
  double lr_mult, wd_mult;
} sk_param_group;

enum { SK_DTYPE_FP32, SK_DTYPE_BF16 };                             /* train.dtype */
enum { SK_DEVICE_AUTO, SK_DEVICE_CPU, SK_DEVICE_CUDA };            /* run.device */
enum { SK_DOCS_ISOLATE, SK_DOCS_CONCATENATE };                     /* data.documents */
enum { SK_RECOMPUTE_NONE, SK_RECOMPUTE_SELECTIVE, SK_RECOMPUTE_FULL };
enum { SK_LR_CONSTANT, SK_LR_COSINE, SK_LR_WSD, SK_LR_POWER };     /* optimizer.schedule.kind */
enum { SK_NAN_STOP, SK_NAN_SKIP, SK_NAN_RERUN, SK_NAN_ROLLBACK };  /* train.on_nan */

typedef struct sk_config {
  struct { char *dir; int64_t seed; int device; } run;
  sk_model_cfg model;
  char *pattern; /* e.g. "P-" */
  int64_t n_layers;
  sk_layer_cfg *layer; /* [n_layers] */
  struct {
    int n_train, n_valid;
    sk_data_entry *train, *valid;
    int64_t sequence;
    int documents;
    double holdout; /* share of every training set that is kept for validation */
  } data;
  struct {
    int64_t steps, global_batch, micro_batch, eval_every, eval_batches; /* sequences; steps */
    int dtype, recompute, on_nan;
    double spike; /* standard deviations, 0: off */
    char *init; /* checkpoint folder or NULL */
  } train;
  struct {
    double lr, betas[2], eps, weight_decay, clip;
    struct { int kind; int64_t warmup, decay; double min_lr, power; } schedule;
    int n_groups;
    sk_param_group *groups;
  } optimizer;
  struct { int64_t tp, cp, pp, virtual_stages; int schedule, transport; } parallel; /* SK_SCHED_... (schedule.h),
                                                     SK_TRANSPORT_... (transport.h) */
  struct { int64_t every, keep, keep_every, files; bool async; } checkpoint;
  struct { int64_t every; bool tensorboard; char *trace; } log;
  struct { double step, other, straggler; int64_t replicas; } watch;
  char *resolved; /* canonical YAML of every key's value, data paths absolute; owned */
  char *hf_json;  /* HF config.json text as given (unknown keys kept), or NULL; owned */
} sk_config;

/* Collective over comm. Rank 0 reads deck and hf_config and broadcasts. sets: n_set strings
 * "a.b=VALUE" applied in order. Reports all mistakes in one pass: each as file:line:column, the line,
 * a caret and the nearest known key. On error, also for a deck that cannot be read, returns SK_USAGE on all
 * ranks with e filled in, and *c is empty. sk_config_free releases what *c owns. */
int sk_config_read(MPI_Comm comm, const char *deck, int n_set, char *const *sets, sk_config *c,
                   sk_err *e);
void sk_config_free(sk_config *c);

/* Not collective. The model part alone from the text of an HF config.json (all layers "P-"). `where`
 * names the text in messages. */
int sk_config_from_hf(const char *json, const char *where, sk_config *c, sk_err *e);

/* Not collective. A resolved deck (of a checkpoint) as a config; that of a converted model has a model section
 * only, and other keys then have their defaults. `where` names it in messages. */
int sk_config_from_resolved(const char *resolved, const char *where, sk_config *c, sk_err *e);

/* Not collective. Lists what differs between two resolved decks and may not change on a restart
 * (design section 2, restart contract): SK_OK, or SK_USAGE with the diff in e. */
int sk_config_restart_diff(const char *old_resolved, const char *new_resolved, sk_err *e);

/* Not collective. The same for the model's keys alone: whether the weights of one deck's run are those of the
 * other's model. */
int sk_config_model_diff(const char *old_resolved, const char *new_resolved, sk_err *e);

/* --help-keys [PREFIX] and --print-defaults, to stdout. prefix may be NULL; false: no key begins with it. */
bool sk_config_help_keys(const char *prefix);
void sk_config_print_defaults(void);
#endif
