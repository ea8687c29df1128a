#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "src/keys.h"
#include "src/config.h"
#include <limits.h>
#include <stdio.h>
#include <string.h>

#define AT(field) offsetof(sk_config, field)
#define NOWHERE (-1)
#define RESTART SK_KEY_RESTART
#define NULLABLE SK_KEY_NULLABLE
#define LAYER SK_KEY_LAYER

// Rows by type: path, default, range, flags, place, help; the others add what only they need.
#define INT(p, d, r, f, at, h) {p, SK_KEY_INT, 1, NULL, d, r, NULL, f, at, h}
#define COUNT(p, u, d, r, f, at, h) {p, SK_KEY_INT, 1, u, d, r, NULL, f, at, h}
#define FLOAT(p, d, r, f, at, h) {p, SK_KEY_FLOAT, 1, NULL, d, r, NULL, f, at, h}
#define FLOATS(p, n, d, r, f, at, h) {p, SK_KEY_FLOATS, n, NULL, d, r, NULL, f, at, h}
#define BOOL(p, d, f, at, h) {p, SK_KEY_BOOL, 1, NULL, d, NULL, NULL, f, at, h}
#define CHOICE(p, d, r, f, at, h) {p, SK_KEY_CHOICE, 1, NULL, d, r, NULL, f, at, h}
#define TEXT(p, d, f, at, h) {p, SK_KEY_TEXT, 1, NULL, d, NULL, NULL, f, at, h}
#define PATH(p, d, f, at, h) {p, SK_KEY_PATH, 1, NULL, d, NULL, NULL, f, at, h}
#define LIST(p, d, f, h) {p, SK_KEY_LIST, 1, NULL, d, NULL, NULL, f, NOWHERE, h}
// Planned values are in the range already; `only` is what works today.
#define LATER(p, t, d, r, f, at, h) {p, t, 1, NULL, d, r, d, f, at, h}

#define MODEL_INT(name, d, r, f, h) INT("model." #name, d, r, f, AT(model.name), h)
#define MODEL_FLOAT(name, d, r, f, h) FLOAT("model." #name, d, r, f, AT(model.name), h)
#define MODEL_BOOL(name, d, f, h) BOOL("model." #name, d, f, AT(model.name), h)
#define MULTIPLIER(name, h) MODEL_FLOAT(name, "1", NULL, 0, h)

#define ENTRY(field) offsetof(sk_data_entry, field)
#define GROUP(field) offsetof(sk_param_group, field)

const sk_key sk_keys[] = {
    TEXT("run.dir", "runs/saker", RESTART, AT(run.dir),
         "run folder, relative to the working directory"),
    INT("run.seed", "1234", "[0,inf)", 0, AT(run.seed), "initial weights and data order follow from it"),
    CHOICE("run.device", "auto", "auto|cpu|cuda", RESTART, AT(run.device),
           "auto: CUDA where there is a GPU and the build has it"),

    PATH("model.hf_config", "null", NULLABLE, NOWHERE,
         "Hugging Face config.json of a falcon_h1 model; the keys below override it"),
    TEXT("model.pattern", "\"P-\"", 0, AT(pattern),
         "mixers P (attention and SSM), * (attention), M (SSM), each perhaps followed by - (MLP)"),
    LIST("model.overrides", "[]", 0, "per-layer sizes: {layers: 0-3, num_attention_heads: 4, ...}"),
    TEXT("model.overrides[].layers", NULL, 0, NOWHERE, "which layers, from 0: 3 or 0-3 or 0,2,5-7"),
    CHOICE("model.model_type", "falcon_h1", "falcon_h1", 0, NOWHERE, "the kind of model"),
    MODEL_INT(vocab_size, "128000", "[1,2147483647]", 0, "rows of the embedding"),
    MODEL_BOOL(tie_word_embeddings, "false", 0, "the output layer shares the embedding"),
    MODEL_INT(hidden_size, "4096", "[1,1048576]", 0, "width of the residual stream"),
    MODEL_INT(intermediate_size, "14336", "[1,16777216]", LAYER, "width of the MLP"),
    MODEL_INT(num_hidden_layers, "32", "[1,10000]", 0, "layers: a mixer and at most one MLP each"),
    MODEL_INT(num_attention_heads, "32", "[1,65536]", LAYER, "query heads"),
    MODEL_INT(num_key_value_heads, "8", "[1,65536]", LAYER | NULLABLE,
              "key and value heads; null: as many as query heads"),
    MODEL_INT(head_dim, "null", "[1,65536]", LAYER | NULLABLE,
              "width of an attention head; null: hidden_size / num_attention_heads"),
    CHOICE("model.hidden_act", "silu", "silu", 0, NOWHERE, "activation"),
    MODEL_FLOAT(initializer_range, "0.02", "[0,inf)", 0, "standard deviation of initial weights"),
    MODEL_FLOAT(rms_norm_eps, "1e-5", "[0,1]", 0, "epsilon of every RMSNorm"),
    MODEL_INT(pad_token_id, "0", "[0,2147483647]", NULLABLE, "its embedding gets no gradient"),
    MODEL_INT(bos_token_id, "1", "[0,2147483647]", NULLABLE, "begins a text"),
    MODEL_INT(eos_token_id, "2", "[0,2147483647]", NULLABLE, "ends a text"),
    MODEL_INT(max_position_embeddings, "8192", "[1,2147483647]", 0, "longest sequence meant"),
    LATER("model.attention_dropout", SK_KEY_FLOAT, "0", "[0,1)", 0, NOWHERE, "dropout"),
    MODEL_BOOL(attention_bias, "false", 0, "biases of q, k, v and o"),
    MODEL_BOOL(mlp_bias, "false", 0, "biases of the MLP"),
    MODEL_INT(mamba_d_ssm, "1024", "[1,16777216]", LAYER | NULLABLE,
              "width of the SSM; null: mamba_expand * hidden_size"),
    MODEL_INT(mamba_n_heads, "128", "[1,65536]", LAYER, "SSM heads"),
    MODEL_INT(mamba_d_head, "auto", "[1,65536]", LAYER | NULLABLE,
              "width of an SSM head; auto: mamba_d_ssm / mamba_n_heads"),
    MODEL_INT(mamba_n_groups, "1", "[1,65536]", LAYER, "groups of heads that share B and C"),
    MODEL_INT(mamba_d_state, "256", "[1,65536]", LAYER, "width of the SSM state"),
    MODEL_INT(mamba_d_conv, "4", "[1,16]", LAYER, "taps of the convolution"),
    MODEL_INT(mamba_expand, "2", "[1,1024]", LAYER, "used when mamba_d_ssm is null"),
    MODEL_INT(mamba_chunk_size, "256", "[1,65536]", LAYER, "chunk of the scan; changes only rounding"),
    MODEL_BOOL(mamba_conv_bias, "true", LAYER, "bias of the convolution"),
    MODEL_BOOL(mamba_proj_bias, "false", LAYER, "bias of mamba.in_proj"),
    MODEL_BOOL(projectors_bias, "false", 0, "bias of mamba.out_proj"),
    MODEL_BOOL(mamba_rms_norm, "false", LAYER, "gated RMSNorm after the scan"),
    MODEL_BOOL(mamba_norm_before_gate, "true", LAYER, "order inside the gated norm"),
    FLOAT("model.time_step_min", "0.001", "[0,inf)", SK_KEY_IGNORED, NOWHERE, "read and ignored"),
    FLOAT("model.time_step_max", "0.1", "[0,inf)", SK_KEY_IGNORED, NOWHERE, "read and ignored"),
    FLOATS("model.time_step_limit", 2, "[0, .inf]", "[0,inf]", 0, AT(model.time_step_limit),
           "lowest and highest time step; null: infinity"),
    MODEL_FLOAT(rope_theta, "100000", "(0,inf)", 0, "base of the rotary embedding"),
    CHOICE("model.rope_parameters.rope_type", "default", "default", 0, NOWHERE,
           "rope_parameters.rope_theta is taken too"),
    {"model.rope_scaling", SK_KEY_NULL, 1, NULL, "null", NULL, NULL, 0, NOWHERE, "RoPE scaling"},
    {"model.sliding_window", SK_KEY_NULL, 1, NULL, "null", NULL, NULL, 0, NOWHERE, "local attention"},
    MULTIPLIER(embedding_multiplier, "scales the embedding"),
    MULTIPLIER(lm_head_multiplier, "scales the logits"),
    MULTIPLIER(key_multiplier, "scales the keys"),
    MULTIPLIER(attention_in_multiplier, "scales the input of attention"),
    MULTIPLIER(attention_out_multiplier, "scales the output of attention"),
    MULTIPLIER(ssm_in_multiplier, "scales the input of the SSM"),
    MULTIPLIER(ssm_out_multiplier, "scales the output of the SSM"),
    FLOATS("model.mlp_multipliers", 2, "[1, 1]", NULL, 0, AT(model.mlp_multipliers), "gate, down"),
    FLOATS("model.ssm_multipliers", 5, "[1, 1, 1, 1, 1]", NULL, 0, AT(model.ssm_multipliers),
           "z, x, B, C, dt"),
    INT("model.num_logits_to_keep", "1", "[0,inf)", SK_KEY_IGNORED, NOWHERE, "read and ignored"),

    LIST("data.train", NULL, 0, "training data: [{path: a.h5, weight: 0.7}, ...]"),
    PATH("data.train[].path", NULL, 0, ENTRY(path), "token file, relative to the deck"),
    FLOAT("data.train[].weight", "1", "(0,inf)", 0, ENTRY(weight), "share of the sequences"),
    LIST("data.valid", "[]", 0, "validation data: [{path: v.h5, weight: 1}, ...]; none: no evaluation"),
    PATH("data.valid[].path", NULL, 0, ENTRY(path), "token file, relative to the deck"),
    FLOAT("data.valid[].weight", "1", "(0,inf)", 0, ENTRY(weight), "share of an evaluation"),
    FLOAT("data.holdout", "0", "[0,0.5]", 0, AT(data.holdout),
          "without data.valid: share of every training set, its end, that is kept for validation"),
    COUNT("data.sequence", "tokens", "2048", "[1,1073741824]", 0, AT(data.sequence),
          "length of a training sequence"),
    CHOICE("data.documents", "isolate", "isolate|concatenate", 0, AT(data.documents),
           "whether attention and SSM state cross the ends of documents"),

    COUNT("train.steps", "steps", "1000", "[0,1000000000000]", RESTART, AT(train.steps),
          "total since step 0; 0 only saves the initial weights"),
    COUNT("train.global_batch", "sequences", "8", "[1,1073741824]", 0, AT(train.global_batch),
          "sequences in one step, over all ranks"),
    COUNT("train.micro_batch", "sequences", "1", "[1,1048576]", RESTART, AT(train.micro_batch),
          "sequences that a rank computes at a time"),
    CHOICE("train.dtype", "bf16", "fp32|bf16", 0, AT(train.dtype), "compute type; weights are fp32"),
    CHOICE("train.recompute", "none", "none|selective|full", RESTART, AT(train.recompute),
           "in backward compute again: nothing, what is cheap, or whole layers; same bits"),
    COUNT("train.eval_every", "steps", "100", "[1,inf)", RESTART, AT(train.eval_every),
          "steps between evaluations"),
    COUNT("train.eval_batches", "global batches", "10", "[1,1073741824]", RESTART, AT(train.eval_batches),
          "size of an evaluation, at most all validation data"),
    CHOICE("train.on_nan", "stop", "stop|skip|rerun|rollback", RESTART, AT(train.on_nan),
           "when loss or gradient is not finite: stop, leave the step out, compute it again (hardware or data?), or "
           "go back to the latest checkpoint and on behind the batch"),
    FLOAT("train.spike", "0", "[0,inf)", RESTART, AT(train.spike),
          "a loss so many standard deviations above the mean of the last 64 is treated like one that is not finite; "
          "0: none is"),
    PATH("train.init", "null", NULLABLE, AT(train.init),
         "checkpoint folder whose weights are the initial ones"),

    FLOAT("optimizer.lr", "3e-4", "[0,inf)", 0, AT(optimizer.lr), "peak learning rate"),
    FLOATS("optimizer.betas", 2, "[0.9, 0.95]", "[0,1)", 0, AT(optimizer.betas), "AdamW's averages"),
    FLOAT("optimizer.eps", "1e-8", "(0,inf)", 0, AT(optimizer.eps), "AdamW's epsilon"),
    FLOAT("optimizer.weight_decay", "0.1", "[0,inf)", 0, AT(optimizer.weight_decay),
          "decoupled; matrices only"),
    FLOAT("optimizer.clip", "1", "[0,inf)", 0, AT(optimizer.clip), "largest gradient norm; 0: no limit"),
    CHOICE("optimizer.schedule.kind", "constant", "constant|cosine|wsd|power", 0,
           AT(optimizer.schedule.kind), "how the learning rate goes after the warmup"),
    COUNT("optimizer.schedule.warmup", "steps", "0", "[0,inf)", 0, AT(optimizer.schedule.warmup),
          "linear rise from 0"),
    COUNT("optimizer.schedule.decay", "steps", "0", "[0,inf)", 0, AT(optimizer.schedule.decay),
          "wsd: length of the fall at the end"),
    FLOAT("optimizer.schedule.min_lr", "0", "[0,inf)", 0, AT(optimizer.schedule.min_lr),
          "where cosine, wsd and power end"),
    FLOAT("optimizer.schedule.power", "0.25", "(0,inf)", 0, AT(optimizer.schedule.power),
          "power: the exponent"),
    LIST("optimizer.groups", "[]", 0, "exceptions: [{match: \"*.mamba.dt_bias\", lr_mult: 0.5}, ...]"),
    TEXT("optimizer.groups[].match", NULL, 0, GROUP(match), "shell pattern over parameter names"),
    FLOAT("optimizer.groups[].lr_mult", "1", "[0,inf)", 0, GROUP(lr_mult), "factor on the rate"),
    FLOAT("optimizer.groups[].wd_mult", "1", "[0,inf)", 0, GROUP(wd_mult), "factor on the decay"),

    INT("parallel.tp", "1", "[1,65536]", RESTART, AT(parallel.tp), "tensor parallel ranks"),
    INT("parallel.cp", "1", "[1,65536]", RESTART, AT(parallel.cp), "context parallel ranks"),
    INT("parallel.pp", "1", "[1,65536]", RESTART, AT(parallel.pp),
        "pipeline stages; data parallel is ranks / (tp * cp * pp)"),
    CHOICE("parallel.schedule", "1f1b", "1f1b|interleaved|zb-h1", RESTART, AT(parallel.schedule),
           "pipeline schedule"),
    INT("parallel.virtual_stages", "1", "[1,1024]", RESTART, AT(parallel.virtual_stages),
        "parts of the model per stage (interleaved: at least 2)"),
    CHOICE("parallel.transport", "auto", "auto|ipc|mpi|nccl", RESTART, AT(parallel.transport),
           "what carries messages between the pipeline's GPUs; auto: for each neighbour the fastest that works"),

    COUNT("checkpoint.every", "steps", "200", "[1,inf)", RESTART, AT(checkpoint.every),
          "steps between checkpoints; one more at the end and at a stop"),
    INT("checkpoint.keep", "2", "[2,1000000]", RESTART, AT(checkpoint.keep), "newest ones kept"),
    COUNT("checkpoint.keep_every", "steps", "0", "[0,inf)", RESTART, AT(checkpoint.keep_every),
          "those at multiples of it are kept for good; 0: none"),
    BOOL("checkpoint.async", "true", RESTART, AT(checkpoint.async),
         "write while training goes on, from a copy in the host's memory"),
    INT("checkpoint.files", "1", "[1,1024]", RESTART, AT(checkpoint.files),
        "files for the weights, and as many for the optimizer's state; at most one per parameter"),

    COUNT("log.every", "steps", "1", "[1,inf)", RESTART, AT(log.every), "steps between lines"),
    BOOL("log.tensorboard", "false", RESTART, AT(log.tensorboard), "write event files for TensorBoard"),
    LATER("log.prometheus", SK_KEY_TEXT, "\"\"", NULL, RESTART, NOWHERE, "metrics file to keep fresh"),
    TEXT("log.trace", "\"\"", RESTART, AT(log.trace),
         "steps, as 10 or 10-12, whose time line goes to trace.json (Chrome's format)"),

    FLOAT("watch.step", "10", "[0,inf)", RESTART, AT(watch.step),
          "s; a rank that makes no progress for this long and 3 steps is named and the job ended; 0: no watchdog"),
    FLOAT("watch.other", "1800", "[0,inf)", RESTART, AT(watch.other),
          "s; the same where files are read or written, and before the second step; 0: no limit"),
    COUNT("watch.replicas", "steps", "100", "[0,inf)", RESTART, AT(watch.replicas),
          "steps between comparisons of the weights of data parallel ranks; 0: none"),
    FLOAT("watch.straggler", "1.5", "[0,inf)", RESTART, AT(watch.straggler),
          "a rank that computes for this many times the median of its peers is reported; 0: none"),
};
const int sk_n_keys = (int)(sizeof sk_keys / sizeof *sk_keys);

int sk_key_find(const char *path) {
  if (strchr(path, '[')) return -1; // a member of a list
  if (!strcmp(path, "model.rope_parameters.rope_theta")) path = "model.rope_theta";
  for (int i = 0; i < sk_n_keys; i++)
    if (!strcmp(sk_keys[i].path, path)) return i;
  return -1;
}

int sk_key_member(const char *list, const char *name) {
  size_t n = strlen(list);
  for (int i = 0; i < sk_n_keys; i++)
    if (!strncmp(sk_keys[i].path, list, n) && !strncmp(sk_keys[i].path + n, "[].", 3) &&
        !strcmp(sk_keys[i].path + n + 3, name))
      return i;
  // a layer's sizes are the model's keys
  if (strcmp(list, "model.overrides") != 0) return -1;
  char path[100];
  if (snprintf(path, sizeof path, "model.%s", name) >= (int)sizeof path) return -1;
  int k = sk_key_find(path);
  return k >= 0 && sk_keys[k].flags & SK_KEY_LAYER ? k : -1;
}

bool sk_key_is_section(const char *path) {
  size_t n = strlen(path);
  for (int i = 0; i < sk_n_keys; i++)
    if (!strncmp(sk_keys[i].path, path, n) && sk_keys[i].path[n] == '.' && !strchr(path, '['))
      return true;
  return false;
}

static const char *leaf(const char *path) {
  const char *dot = strrchr(path, '.');
  return dot ? dot + 1 : path;
}

// How far a wrong path is from a known one; the section counts as one step, however wrong it is.
static int distance(const char *wrong, const char *known) {
  int d = sk_edit_distance(wrong, known), l = sk_edit_distance(leaf(wrong), leaf(known));
  return l < d - 1 ? l + 1 : d;
}

const char *sk_key_nearest(const char *path, const char *list) {
  static char best[100];
  int len = (int)strlen(leaf(path)), least = len / 3 > 2 ? len / 3 : 2;
  if (least >= len) least = len - 1;
  best[0] = 0;
  for (int i = 0; i < sk_n_keys; i++) {
    const char *known = sk_keys[i].path;
    if (list) {
      if (sk_key_member(list, leaf(known)) != i) continue;
      int d = sk_edit_distance(path, leaf(known));
      if (d <= least) least = d - 1, snprintf(best, sizeof best, "%s", leaf(known));
      continue;
    }
    if (strchr(known, '[')) continue;
    int d = distance(path, known);
    if (d <= least) least = d - 1, snprintf(best, sizeof best, "%s", known);
    for (const char *dot = strchr(known, '.'); dot; dot = strchr(dot + 1, '.')) {
      char section[100];
      snprintf(section, sizeof section, "%.*s", (int)(dot - known), known);
      d = distance(path, section);
      if (d <= least) least = d - 1, snprintf(best, sizeof best, "%s", section);
    }
  }
  return best[0] ? best : NULL;
}

// The type as the help names it; `room` takes what must be put together.
static const char *type_name(const sk_key *k, char *room, size_t size) {
  switch (k->type) {
    case SK_KEY_INT: snprintf(room, size, "%s", k->unit ? k->unit : "integer"); return room;
    case SK_KEY_FLOAT: return "number";
    case SK_KEY_FLOATS: snprintf(room, size, "%d numbers", k->count); return room;
    case SK_KEY_BOOL: return "true|false";
    case SK_KEY_CHOICE: return k->range;
    case SK_KEY_TEXT: return "text";
    case SK_KEY_PATH: return "path";
    case SK_KEY_NULL: return "null";
    case SK_KEY_LIST: return "list";
  }
  return "";
}

bool sk_config_help_keys(const char *prefix) {
  int shown = 0;
  for (int i = 0; i < sk_n_keys; i++) {
    const sk_key *k = &sk_keys[i];
    if (prefix && strncmp(k->path, prefix, strlen(prefix)) != 0) continue;
    if (!shown++) printf("%-33s %-26s %-15s %-16s %s\n", "key", "type", "default", "range", "meaning");
    char room[40];
    const char *range = k->range && k->type != SK_KEY_CHOICE ? k->range : "";
    printf("%-33s %-26s %-15s %-16s %s", k->path, type_name(k, room, sizeof room),
           k->dflt ? k->dflt : "(required)", range, k->help);
    printf(k->only ? " (only %s as yet)\n" : "\n", k->only);
  }
  if (shown) return true;
  const char *near = sk_key_nearest(prefix, NULL);
  fprintf(stderr, "saker: no key begins with \"%s\"", prefix);
  fprintf(stderr, near ? "; did you mean \"%s\"?\n" : "\n", near);
  return false;
}

// Prints the headings of the sections that `path` enters after `before`; returns its indentation.
static int headings(FILE *out, const char *before, const char *path) {
  int depth = 0;
  for (const char *dot = strchr(path, '.'); dot; dot = strchr(dot + 1, '.'), depth++) {
    const char *from = dot;
    while (from > path && from[-1] != '.') from--;
    if (strncmp(before, path, (size_t)(dot - path) + 1) != 0)
      fprintf(out, "%*s%.*s:\n", 2 * depth, "", (int)(dot - from), from);
  }
  return 2 * depth;
}

char *sk_keys_deck(char *(*value)(const sk_key *, const void *), const void *base) {
  char *text = NULL;
  size_t size = 0;
  FILE *out = open_memstream(&text, &size);
  SK_CHECK(out, "out of memory while writing a deck");
  const char *before = "";
  for (int i = 0; i < sk_n_keys; i++) {
    const sk_key *k = &sk_keys[i];
    char *v = strchr(k->path, '[') ? NULL : value(k, base);
    if (!v) continue;
    int indent = headings(out, before, k->path);
    fprintf(out, "%*s%s:%s%s\n", indent, "", leaf(k->path), v[0] == '\n' ? "" : " ", v);
    before = k->path;
    sk_free(v);
  }
  fclose(out);
  return text;
}

static char *default_value(const sk_key *k, const void *with_help) {
  if (!with_help) return k->dflt ? sk_strdup(k->dflt) : NULL;
  const char *shown = k->dflt ? k->dflt : "[{path: tokens.h5, weight: 1}]";
  return sk_strf("%-*s # %s%s", 42 - (int)strlen(leaf(k->path)), shown, k->dflt ? "" : "required: ",
                 k->help);
}

char *sk_keys_defaults(bool help) { return sk_keys_deck(default_value, help ? "" : NULL); }

void sk_config_print_defaults(void) {
  char *text = sk_keys_defaults(true);
  fputs(text, stdout);
  sk_free(text);
}
