/* config.c: decks, good and bad, by the collective reader; every rank must see the same. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/deck.h"
#include "src/config.h"
#include "src/keys.h"
#include "tests/tap.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[400]; // where rank 0 writes the decks
static sk_config c;
static sk_err e;

static const char *at(const char *name) {
  static char path[4][500];
  static int i;
  i = (i + 1) % 4;
  snprintf(path[i], sizeof path[i], "%s/%s", folder, name);
  return path[i];
}

static void put_bytes(const char *name, const void *bytes, size_t n) {
  if (tap_rank != 0) return;
  FILE *f = fopen(at(name), "wb");
  SK_CHECK(f && fwrite(bytes, 1, n, f) == n && fclose(f) == 0, "%s cannot be written", at(name));
}

static void put(const char *name, const char *text) { put_bytes(name, text, strlen(text)); }

// Reads with up to three --set; the result is in c and e.
static int get(const char *name, const char *a, const char *b, const char *d) {
  char *sets[3];
  int n = 0;
  for (const char *s[] = {a, b, d}; n < 3 && s[n]; n++) sets[n] = sk_strdup(s[n]);
  sk_config_free(&c);
  memset(&e, 0, sizeof e);
  int code = sk_config_read(MPI_COMM_WORLD, at(name), n, sets, &c, &e);
  while (n > 0) sk_free(sets[--n]);
  return code;
}

static bool has(const char *part) {
  bool yes = strstr(e.msg, part) != NULL;
  if (!yes) tap_diag("\"%s\" is not in: %s", part, e.msg);
  return yes;
}

static int count(const char *part) {
  int n = 0;
  for (const char *s = e.msg; (s = strstr(s, part)); s++) n++;
  return n;
}

// Refused as a usage error with this in the message, and c left empty.
static bool refused(const char *set, const char *part) {
  int code = get("good.yaml", set, NULL, NULL);
  return has(part) && code == SK_USAGE && !c.resolved && !c.layer && !c.run.dir;
}

static const char good[] =
    "run: {dir: runs/a}\n"
    "model: {hidden_size: 64, num_attention_heads: 4, num_key_value_heads: 2, mamba_d_ssm: 128,\n"
    "        mamba_n_heads: 8, num_hidden_layers: 6}\n"
    "data: {train: [{path: a.h5, weight: 0.7}, {path: /abs/b.h5}]}\n"
    "train: {steps: 100, global_batch: 12, micro_batch: 3}\n";

static void mistakes(void) {
  put("five.yaml", "run: {dir: runs/a, sede: 3}\n"
                   "model: {hidden_size: 64.5}\n"
                   "data: {train: [{path: a.h5, weight: 0}]}\n"
                   "train:\n"
                   "  steps: 10\n"
                   "  steps: 20\n"
                   "  dtype: bf61\n");
  int code = get("five.yaml", NULL, NULL, NULL);
  tap_ok(code == SK_USAGE && count(": error: ") == 5, "five mistakes, five messages, exit code 2");
  tap_ok(has("five.yaml:1:20: error: unknown key \"run.sede\"; did you mean \"run.seed\"?") &&
             has("five.yaml:2:22: error: model.hidden_size: an integer is expected") &&
             has("five.yaml:3:37: error: data.train[].weight: 0 is out of range: it must be above 0") &&
             has("five.yaml:6:3: error: duplicate key \"steps\"; it stands already in line 5") &&
             has("five.yaml:7:10: error: train.dtype: \"bf61\" is not among fp32|bf16; did you mean"),
         "each is named with file, line, column and the cure");
  tap_ok(has("    model: {hidden_size: 64.5}\n                         ^") &&
             has("      dtype: bf61\n             ^"), "the line is shown with a caret below the place");
  tap_ok(strstr(e.msg, "yaml:1:") < strstr(e.msg, "yaml:2:") &&
             strstr(e.msg, "yaml:3:") < strstr(e.msg, "yaml:6:"), "messages are in the deck's order");
  put("utf8.yaml", "run: {dir: \"\xc3\xbc\xc3\xbc\", sede: 3}\n");
  get("utf8.yaml", NULL, NULL, NULL);
  tap_ok(has(":1:18: error: unknown key \"run.sede\"") &&
             has("\n                     ^"), "columns count characters, not bytes");
  put("syntax.yaml", "run: {dir: a\ntrain: 3\n");
  tap_ok(get("syntax.yaml", NULL, NULL, NULL) == SK_USAGE && has("syntax.yaml:") &&
             has("YAML syntax") && count(": error: ") == 1, "a syntax error is located");
  tap_ok(get("nowhere.yaml", NULL, NULL, NULL) == SK_USAGE && has("nowhere.yaml"),
         "a missing deck is named, exit code 2");
}

static void values(void) {
  put("good.yaml", good);
  int code = get("good.yaml", NULL, NULL, NULL);
  tap_ok(!code && c.train.steps == 100 && c.train.global_batch == 12 && c.train.micro_batch == 3 &&
             c.run.seed == 1234 && c.optimizer.betas[1] == 0.95 && c.data.n_valid == 0 &&
             c.optimizer.schedule.kind == SK_LR_CONSTANT && c.optimizer.schedule.power == 0.25,
         "given values and defaults arrive");
  tap_ok(!code && !strcmp(c.data.train[0].path, at("a.h5")) && c.data.train[0].weight == 0.7 &&
             !strcmp(c.data.train[1].path, "/abs/b.h5") && c.data.train[1].weight == 1,
         "data paths are relative to the deck");
  char cwd[400] = "";
  if (tap_rank == 0) SK_CHECK(getcwd(cwd, sizeof cwd), "no working directory");
  MPI_Bcast(cwd, sizeof cwd, MPI_BYTE, 0, MPI_COMM_WORLD);
  char *here = sk_strf("%s/z.h5", cwd);
  code = get("good.yaml", "data.valid=[{path: z.h5}]", "train.steps=7", "train.steps=8");
  tap_ok(!code && !strcmp(c.data.valid[0].path, here) && c.train.steps == 8,
         "--set: paths are relative to the working directory, the last one wins");
  sk_free(here);
  code = get("good.yaml", "optimizer.schedule={kind: cosine, warmup: 5}",
             "optimizer.schedule.min_lr=1e-5", NULL);
  tap_ok(!code && c.optimizer.schedule.kind == SK_LR_COSINE && c.optimizer.schedule.warmup == 5 &&
             c.optimizer.schedule.min_lr == 1e-5, "--set of a whole section, then of a key in it");
  code = get("good.yaml", "train={steps: 9}", NULL, NULL);
  tap_ok(!code && c.train.steps == 9 && c.train.global_batch == 8,
         "--set of a section replaces all of it");
  tap_ok(refused("train.stepz=5", "--set train.stepz: error: unknown key \"train.stepz\"; "
                                  "did you mean \"train.steps\"?") &&
             refused("=5", "the key before \"=\" is missing") &&
             refused("lr=5", "did you mean \"optimizer.lr\"?") &&
             refused("train.steps", "--set train.steps: error: \"=VALUE\" is missing") &&
             refused("train.steps=", "--set train.steps: error: train.steps: an integer") &&
             refused("train.steps=[1", "--set train.steps: error: YAML syntax") &&
             refused("train.steps=\"5\"", "not the text \"5\""), "mistakes in --set are located");
}

static void quantities(void) {
  struct {
    const char *text, *unit;
    int64_t want; // -1: refused
  } q[] = {{"2M", "tokens", 2000000},    {"4Ki", "tokens", 4096},      {"512MiB", "bytes", 512 << 20},
           {"3kB", "bytes", 3000},       {"1:30:00", "time", 5400},    {"2-00:00:01", "time", 172801},
           {"90", "time", 90},           {"05:30", "time", 330},       {"12", NULL, 12},
           {"2M", NULL, -1},             {"2MB", "tokens", -1},        {"1:60:00", "time", -1},
           {"9223372036854775807", NULL, INT64_MAX},                   {"9223372036854775808", NULL, -1},
           {"9000000000000G", "steps", -1}, {"", "time", -1},          {"1::2", "time", -1},
           {"1.5", "steps", -1},         {"0x10", NULL, -1},           {" 1", NULL, -1}};
  int wrong = 0;
  for (size_t i = 0; i < sizeof q / sizeof *q; i++) {
    int64_t v = -1;
    bool ok = sk_quantity(q[i].text, q[i].unit, &v);
    bool right = q[i].want < 0 ? !ok : ok && v == q[i].want;
    if (!right) tap_diag("\"%s\" gives %lld", q[i].text, (long long)v);
    wrong += !right;
  }
  tap_ok(wrong == 0, "quantities with units: tokens, bytes, time; overflow and junk are refused");
  int code = get("good.yaml", "train.steps=2k", "data.sequence=4Ki", NULL);
  tap_ok(!code && c.train.steps == 2000 && c.data.sequence == 4096, "units in a deck");
}

static void ranges(void) {
  tap_ok(refused("optimizer.betas=[0.9, 1]", "it must be at least 0 and below 1") &&
             refused("optimizer.lr=-1", "optimizer.lr: -1 is out of range") &&
             refused("optimizer.eps=.inf", "out of range") && refused("optimizer.lr=nan", "a number") &&
             refused("run.seed=99999999999999999999", "it must be at least 0 and less than 2^63") &&
             refused("train.eval_every=0", "0 is out of range: it must be at least 1\n") &&
             refused("optimizer.lr=1e400", "it must be at least 0 and finite") &&
             refused("data.train=a.h5", "a list as [{path: a.h5, weight: 0.7}, ...] is expected, not text") &&
             refused("model.mamba_d_conv=17", "it must be from 1 to 16") &&
             refused("train.on_nan=ignore", "stop|skip") && refused("data.train=[]", "must be given") &&
             refused("data.train=[{weight: 1}]", "\"path\" is missing") &&
             refused("model.tie_word_embeddings=yes", "true or false"),
         "ranges, choices and types");
  tap_ok(refused("train.global_batch=10", "not a multiple of train.micro_batch 3; 9 and 12 are") &&
             refused("model.num_key_value_heads=3", "not a multiple of num_key_value_heads 3") &&
             refused("model.mamba_d_head=8", "8 x mamba_d_head 8 is 64, not mamba_d_ssm 128") &&
             refused("model.mamba_n_groups=3", "not a multiple of mamba_n_groups 3") &&
             refused("model.num_attention_heads=6", "not a multiple of num_attention_heads 6") &&
             refused("model.head_dim=15", "head_dim 15 is odd") &&
             refused("optimizer.schedule.min_lr=1", "above optimizer.lr") &&
             refused("model.pad_token_id=128000", "no row of the embedding") &&
             get("good.yaml", "run.device=cpu", "parallel.transport=ipc", NULL) == SK_USAGE && strstr(e.msg, "run.device is cpu") && refused("parallel.transport=tcp", "ipc"),
         "checks over several keys");
  int code = get("good.yaml", "model.head_dim=10", "model.mamba_d_ssm=null", NULL);
  tap_ok(!code && c.model.head_dim == 10 && c.model.mamba_d_ssm == 128 && c.model.mamba_d_head == 16 &&
             c.layer[5].m.mamba_d_head == 16, "null sizes are derived");
  tap_ok(refused("log.prometheus=p", "not yet") &&
             get("good.yaml", "parallel={tp: 2, schedule: 1f1b, transport: auto}", "checkpoint={async: false, files: 2}", NULL) == 0 &&
             !c.checkpoint.async && c.checkpoint.files == 2 &&
             c.parallel.tp == 2, "what is planned says \"not yet\"");
}

static void patterns(void) {
  int code = get("good.yaml", "model.pattern=\"M-*P-\"", NULL, NULL);
  bool ok = !code && c.n_layers == 6;
  for (int i = 0; ok && i < 6; i++)
    ok = c.layer[i].mixer == "M*P"[i % 3] && c.layer[i].mlp == (i % 3 != 1);
  tap_ok(ok, "a pattern is repeated over the layers");
  tap_ok(refused("model.pattern=PG", "G (gated linear RNN) is not yet supported") &&
             refused("model.pattern=\"-P\"", "no mixer") && refused("model.pattern=P--", "place 3") &&
             refused("model.pattern=PX", "'X' at place 2") && refused("model.pattern=\"\"", "empty") &&
             refused("model.pattern=*-", "quote the value"), "patterns that mean nothing");
  tap_ok(refused("model.pattern=P-M-M-M-", "6 is not a multiple of the 4 layers in the pattern") &&
             has("4 or 8"), "a remainder is refused and says which counts work");
  code = get("good.yaml", "model.pattern=M", "model.num_attention_heads=7", NULL);
  tap_ok(!code && c.layer[0].mixer == 'M', "attention sizes do not matter without attention");
}

static void overrides(void) {
  const char *set = "model.overrides=[{layers: 0-3, num_attention_heads: 2, mamba_n_heads: 16}, "
                    "{layers: \"3,5\", intermediate_size: 96}, {layers: 4, num_key_value_heads: null}]";
  int code = get("good.yaml", set, NULL, NULL);
  const sk_layer_cfg *l = c.layer;
  tap_ok(!code && l[0].m.num_attention_heads == 2 && l[0].m.head_dim == 32 &&
             l[0].m.mamba_d_head == 8 && l[4].m.mamba_d_head == 16 && l[4].m.num_key_value_heads == 4 &&
             l[3].m.mamba_n_heads == 16 && l[3].m.intermediate_size == 96 &&
             l[5].m.intermediate_size == 96 && l[4].m.intermediate_size == 14336 &&
             c.model.num_attention_heads == 4, "overrides per layer, with their derived sizes");
  char *first = sk_strdup(code ? "" : c.resolved);
  if (tap_rank == 0 && !code) put("resolved.yaml", first);
  code = get("resolved.yaml", NULL, NULL, NULL);
  tap_ok(!code && !strcmp(first, c.resolved) && c.layer[0].m.head_dim == 32 &&
             c.layer[4].m.num_key_value_heads == 4, "a resolved deck resolves to itself, overrides too");
  sk_free(first);
  tap_ok(refused("model.overrides=[{layers: 0, hidden_size: 32}]", "same in all layers") &&
             refused("model.overrides=[{layers: 0, hed_dim: 32}]", "did you mean \"head_dim\"?") &&
             refused("model.overrides=[{layers: 4-6, head_dim: 32}]", "not within the layers 0-5") &&
             refused("model.overrides=[{layers: 3-1}]", "not within") &&
             refused("model.overrides=[{layers: x}]", "a range as 0-3") &&
             refused("model.overrides=[{head_dim: 32}]", "\"layers\" is missing") &&
             refused("model.overrides=[{layers: 1-2, mamba_n_heads: 3}]", "layer 1: mamba_d_ssm 128") &&
             refused("model.overrides=3", "a list"), "overrides that do not fit");
}

static const char hf4[] =
    "{\"architectures\": [\"FalconH1ForCausalLM\"], \"model_type\": \"falcon_h1\", \"hidden_size\": 32,\n"
    " \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": null,\n"
    " \"head_dim\": 8, \"mamba_d_ssm\": null, \"mamba_n_heads\": 8, \"mamba_d_head\": \"auto\",\n"
    " \"vocab_size\": 67, \"eos_token_id\": [11, 12], \"bos_token_id\": null, \"rope_scaling\": null,\n"
    " \"embedding_multiplier\": 1.5, \"lm_head_multiplier\": 2.5, \"key_multiplier\": 3.5,\n"
    " \"attention_in_multiplier\": 4.5, \"attention_out_multiplier\": 5.5, \"ssm_in_multiplier\": 6.5,\n"
    " \"ssm_out_multiplier\": 7.5, \"mlp_multipliers\": [8.5, 9.5], \"pattern\": \"a key of others\",\n"
    " \"ssm_multipliers\": [0.3535533905932738, 11.5, 12.5, 13.5, 14.5], \"rope_theta\": 1e11,\n"
    " \"time_step_limit\": [0.0, Infinity], \"attn_layer_indices\": null, \"transformers_version\": \"4\"}";

static int get_hf(const char *json) {
  sk_config_free(&c);
  memset(&e, 0, sizeof e);
  return sk_config_from_hf(json, "h.json", &c, &e);
}

static void hf(void) {
  int code = get_hf(hf4);
  const sk_model_cfg *m = &c.model;
  tap_ok(!code && m->hidden_size == 32 && m->vocab_size == 67 && m->num_key_value_heads == 4 &&
             m->mamba_d_ssm == 64 && m->mamba_d_head == 8 && m->eos_token_id == 11 &&
             m->bos_token_id == -1 && m->intermediate_size == 14336 && m->rope_theta == 1e11 &&
             isinf(m->time_step_limit[1]) && c.n_layers == 2 && c.layer[1].mixer == 'P' &&
             c.layer[1].mlp, "config.json as transformers 4 writes it");
  tap_ok(!code && m->embedding_multiplier == 1.5 && m->lm_head_multiplier == 2.5 &&
             m->key_multiplier == 3.5 && m->attention_in_multiplier == 4.5 &&
             m->attention_out_multiplier == 5.5 && m->ssm_in_multiplier == 6.5 &&
             m->ssm_out_multiplier == 7.5 && m->mlp_multipliers[0] == 8.5 &&
             m->mlp_multipliers[1] == 9.5 && m->ssm_multipliers[0] == 0.3535533905932738 &&
             m->ssm_multipliers[1] == 11.5 && m->ssm_multipliers[2] == 12.5 &&
             m->ssm_multipliers[3] == 13.5 && m->ssm_multipliers[4] == 14.5, "all 14 multipliers");
  tap_ok(!code && strstr(c.hf_json, "transformers_version"), "unknown keys are kept in hf_json");
  code = get_hf("{\"rope_parameters\": {\"rope_theta\": 5.0, \"rope_type\": \"default\"},"
                " \"time_step_limit\": [0.5, {\"__float__\": \"Infinity\"}]}");
  tap_ok(!code && c.model.rope_theta == 5 && c.model.time_step_limit[0] == 0.5 &&
             isinf(c.model.time_step_limit[1]), "config.json as transformers 5 writes it");
  code = get_hf("{\"hidden_act\": \"gelu\", \"rope_scaling\": {\"factor\": 2},\n"
                " \"sliding_window\": 4, \"attention_dropout\": 0.1, \"vocab_size\": \"x\",\n"
                " \"model_type\": \"llama\", \"mlp_multipliers\": [1]}");
  tap_ok(code == SK_USAGE && count(": error: ") == 7 && has("h.json:1:16: error: model.hidden_act") &&
             has("h.json:2:20: error: model.sliding_window is not supported") && has("\"llama\""),
         "what another model would mean is refused, all in one pass");
  put("hf.json", hf4);
  put("hf.yaml", "model: {hf_config: ./hf.json, vocab_size: 300}\ndata: {train: [{path: a.h5}]}\n");
  code = get("hf.yaml", "model.num_hidden_layers=4", NULL, NULL);
  tap_ok(!code && c.model.hidden_size == 32 && c.model.vocab_size == 300 && c.n_layers == 4 &&
             c.hf_json, "hf_config is relative to the deck, and deck and --set override it");
  char *first = sk_strdup(code ? "" : c.resolved);
  put("resolved.yaml", first);
  code = get("resolved.yaml", NULL, NULL, NULL);
  tap_ok(!code && !strcmp(first, c.resolved) && c.model.ssm_multipliers[0] == 0.3535533905932738 &&
             isinf(c.model.time_step_limit[1]), "a resolved deck needs no config.json any more");
  sk_free(first);
  put("bad.json", "{\"hidden_size\": 32,\n \"hidden_size\": 64}");
  tap_ok(get("hf.yaml", "model.hf_config=nowhere.json", "train.steps=x", NULL) == SK_USAGE &&
             has("nowhere.json: cannot be opened") && has("train.steps"),
         "a missing config.json is one mistake among others");
  put("hf.yaml", "model: {hf_config: bad.json}\ndata: {train: [{path: a.h5}]}\n");
  tap_ok(get("hf.yaml", NULL, NULL, NULL) == SK_USAGE && has("bad.json:2:") && has("duplicate"),
         "errors in config.json are located");
}

static void restart(void) {
  get("good.yaml", NULL, NULL, NULL);
  char *old = sk_strdup(c.resolved);
  int code = get("good.yaml", "train={steps: 200, global_batch: 12, micro_batch: 6, eval_every: 5}",
                 "parallel.tp=2", "run.dir=elsewhere");
  int same = code ? code : sk_config_restart_diff(old, c.resolved, &e);
  tap_ok(same == SK_OK, "a restart may change steps, micro_batch, evaluation, grid, run.dir");
  code = get("good.yaml", "optimizer.lr=1e-3", "model.overrides=[{layers: 1, head_dim: 32}]",
             "data.train=[{path: /c.h5}]");
  int diff = code ? SK_OK : sk_config_restart_diff(old, c.resolved, &e);
  tap_ok(diff == SK_USAGE && has("optimizer.lr: 0.0003 -> 0.001") &&
             has("model.overrides: [] -> [{layers: \"1\", head_dim: 32}]") && has("data.train: ") &&
             has("/c.h5") && count(" -> ") == 3, "a restart refuses the rest with a diff");
  memset(&e, 0, sizeof e);
  tap_ok(sk_config_restart_diff("junk: [", c.resolved ? c.resolved : "", &e) == SK_USAGE &&
             has("the checkpoint's deck"), "a damaged old deck is named");
  sk_free(old);
}

static void defaults(void) {
  fflush(stdout);
  if (tap_rank == 0) {
    int keep = dup(1);
    SK_CHECK(keep >= 0 && freopen(at("defaults.yaml"), "w", stdout), "stdout cannot be turned away");
    sk_config_print_defaults();
    fflush(stdout);
    dup2(keep, 1);
    close(keep);
  }
  MPI_Barrier(MPI_COMM_WORLD);
  int code = get("defaults.yaml", NULL, NULL, NULL);
  tap_ok(!code && c.model.hidden_size == 4096 && c.checkpoint.keep == 2 && c.data.n_train == 1,
         "--print-defaults is a deck that can be read");
  if (code) tap_diag("%s", e.msg);
}

static void hostile(void) {
  size_t n = 3 << 20;
  char *big = sk_malloc(n);
  memset(big, '[', n);
  put_bytes("deep.yaml", big, 1 << 18);
  tap_ok(get("deep.yaml", NULL, NULL, NULL) == SK_USAGE && has("nested deeper than 16"), "deep nesting");
  memset(big, 'a', n);
  put_bytes("huge.yaml", big, n);
  tap_ok(get("huge.yaml", NULL, NULL, NULL) == SK_USAGE && has("huge.yaml: larger than"), "a huge file");
  for (size_t i = 0; i < 5000; i++) big[i] = (char)sk_rand(7, i);
  put_bytes("junk.yaml", big, 5000);
  tap_ok(get("junk.yaml", NULL, NULL, NULL) == SK_USAGE && has("is no text"), "binary junk");
  char nul[sizeof good + 12];
  memcpy(nul, good, sizeof good); // with its NUL
  memcpy(nul + sizeof good, "sed: {a: 1}", 12);
  put_bytes("nul.yaml", nul, sizeof nul - 1);
  tap_ok(get("nul.yaml", NULL, NULL, NULL) == SK_USAGE && has("nul.yaml:6:1: error: byte 0x00"),
         "a NUL byte does not end a deck early");
  put("extras.yaml", "run: &a {dir: x}\n");
  bool anchor = get("extras.yaml", NULL, NULL, NULL) == SK_USAGE && has("anchors");
  put("extras.yaml", "run: {dir: x}\n---\nrun: {dir: y}\n");
  tap_ok(anchor && get("extras.yaml", NULL, NULL, NULL) == SK_USAGE && has("only one YAML document"),
         "anchors and further documents are refused");
  size_t used = 0;
  for (int i = 0; i < 900; i++) used += (size_t)sprintf(big + used, "k%d: \"\\e[2J%060d\"\n", i, i);
  put_bytes("many.yaml", big, used);
  tap_ok(get("many.yaml", NULL, NULL, NULL) == SK_USAGE && has("more mistakes") &&
             strlen(e.msg) < sizeof e.msg - 1 && !strchr(e.msg, '\033'),
         "hundreds of mistakes are counted, and none steers the terminal");
  sk_free(big);
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  const char *tmp = getenv("TMPDIR");
  snprintf(folder, sizeof folder, "%s/saker-config-XXXXXX", tmp && *tmp ? tmp : "/tmp");
  char real[PATH_MAX];
  if (tap_rank == 0)
    SK_CHECK(mkdtemp(folder) && realpath(folder, real), "%s cannot be made", folder);
  if (tap_rank == 0) snprintf(folder, sizeof folder, "%.399s", real);
  MPI_Bcast(folder, sizeof folder, MPI_BYTE, 0, MPI_COMM_WORLD);
  mistakes();
  values();
  quantities();
  ranges();
  patterns();
  overrides();
  hf();
  restart();
  hostile();
  defaults();
  sk_config_free(&c);
  static const char *const made[] = {
      "five.yaml", "utf8.yaml", "syntax.yaml", "good.yaml", "resolved.yaml", "hf.json", "hf.yaml",
      "bad.json",  "defaults.yaml", "deep.yaml", "huge.yaml", "junk.yaml", "nul.yaml", "extras.yaml",
      "many.yaml"};
  for (size_t i = 0; tap_rank == 0 && i < sizeof made / sizeof *made; i++) remove(at(made[i]));
  if (tap_rank == 0) rmdir(folder);
  return tap_done();
}
