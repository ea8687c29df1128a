#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "src/verbs.h"
#include "io/ckpt.h"
#include "io/deck.h"
#include "io/tokens.h"
#include "io/tokens_import.h"
#include "io/safetensors.h"
#include "kernels/cudnn.h"
#include "src/bench.h"
#include "src/convert.h"
#include "src/eval.h"
#include "src/generate.h"
#include "src/info.h"
#include "src/stop.h"
#include "src/train.h"
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Long options only differ in what they set, so one table per verb drives getopt_long. */
static int usage_error(sk_err *e, const char *verb, const char *fmt, const char *what) {
  char *msg = sk_strf(fmt, what ? what : "");
  sk_fail(e, SK_USAGE, "%s: %s\nTry: saker help %s", verb, msg, verb);
  sk_free(msg);
  return SK_USAGE;
}

static int parse_int(const char *s, int64_t lo, int64_t hi, int64_t *out) {
  char *end;
  errno = 0;
  long long x = strtoll(s, &end, 10);
  if (errno || end == s || *end || x < lo || x > hi) return -1;
  *out = x;
  return 0;
}

static int parse_real(const char *s, double lo, double hi, double *out) {
  char *end;
  double x = strtod(s, &end);
  if (end == s || *end || !(x >= lo && x <= hi)) return -1;
  *out = x;
  return 0;
}

/* getopt's own message is off: this one names the verb. */
static int bad_option(sk_err *e, char **argv, int code) {
  const char *arg = argv[optind - 1];
  return usage_error(e, argv[0], code == ':' ? "option '%s' needs a value" : "unknown option '%s'", arg);
}

enum { O_SET = 256, O_RESTART, O_MAX_TIME, O_CHECK, O_DRY_RUN, O_RANKS, O_TOKENIZER, O_FROM, O_PROMPT,
       O_TOKENS, O_TEMPERATURE, O_SEED, O_DTYPE, O_SHARD_SIZE, O_EOS, O_VOCAB };

static int train_option(int code, sk_train_opts *o, char **set, sk_err *e) {
  int64_t n = 0;
  switch (code) {
    case 'i': o->deck = optarg; return SK_OK;
    case O_SET: set[o->n_set++] = optarg; return SK_OK;
    case O_RESTART: o->restart = optarg; return SK_OK;
    case O_CHECK: o->check = true; return SK_OK;
    case O_DRY_RUN: o->dry_run = true; return SK_OK;
    case O_MAX_TIME:
      o->max_time = sk_parse_duration(optarg);
      if (o->max_time > 0) return SK_OK;
      return usage_error(e, "train", "--max-time %s: give [D-]HH:MM:SS, MM:SS or seconds", optarg);
    default:
      if (parse_int(optarg, 1, 1 << 24, &n) != 0)
        return usage_error(e, "train", "--ranks %s: give a number from 1", optarg);
      o->ranks = (int)n;
      return SK_OK;
  }
}

static int run_train(MPI_Comm comm, int argc, char **argv, sk_err *e) {
  static const struct option opts[] = {
      {"input", 1, 0, 'i'},        {"set", 1, 0, O_SET},         {"restart", 1, 0, O_RESTART},
      {"max-time", 1, 0, O_MAX_TIME}, {"check", 0, 0, O_CHECK},  {"dry-run", 0, 0, O_DRY_RUN},
      {"ranks", 1, 0, O_RANKS},    {0}};
  char **set = sk_calloc((size_t)argc, sizeof *set);
  sk_train_opts o = {.restart = "auto", .set = set};
  int code;
  while (!e->code && (code = getopt_long(argc, argv, ":i:", opts, NULL)) != -1)
    if (code == '?' || code == ':') bad_option(e, argv, code);
    else train_option(code, &o, set, e);
  if (!e->code && optind < argc)
    usage_error(e, "train", o.deck ? "unexpected '%s'" : "a deck is given with -i: -i %s", argv[optind]);
  if (!e->code && !o.deck) usage_error(e, "train", "no deck: give -i DECK%s", NULL);
  if (!e->code) sk_train_run(comm, &o, e);
  sk_free(set);
  return e->code;
}

static int data_build(MPI_Comm comm, int argc, char **argv, sk_err *e) {
  static const struct option opts[] = {{"tokenizer", 1, 0, O_TOKENIZER}, {"output", 1, 0, 'o'},
                                       {"eos", 1, 0, O_EOS}, {0}};
  const char *tokenizer = "bytes", *eos = NULL, *out = NULL;
  int code;
  while (!e->code && (code = getopt_long(argc, argv, ":o:", opts, NULL)) != -1) {
    if (code == 'o') out = optarg;
    else if (code == O_TOKENIZER) tokenizer = optarg;
    else if (code == O_EOS) eos = optarg;
    else bad_option(e, argv, code);
  }
  if (!e->code && !out) usage_error(e, "data", "build: no output: give -o OUT.h5%s", NULL);
  if (!e->code && optind >= argc) usage_error(e, "data", "build: no text: name files or folders%s", NULL);
  if (e->code) return e->code;
  return sk_tokens_build(comm, tokenizer, eos, out, argc - optind, argv + optind, e);
}

static int import_option(int code, sk_import_opts *o, sk_err *e) {
  switch (code) {
    case 'o': o->out = optarg; return SK_OK;
    case O_FROM: o->from = optarg; return SK_OK;
    case O_TOKENIZER: o->tokenizer = optarg; return SK_OK;
    case O_EOS:
      if (parse_int(optarg, 0, INT32_MAX, &o->eos) == 0) return SK_OK;
      return usage_error(e, "data", "import: --eos %s: give an id", optarg);
    default:
      if (parse_int(optarg, 1, INT32_MAX, &o->vocab) == 0) return SK_OK;
      return usage_error(e, "data", "import: --vocab %s: give a number from 1", optarg);
  }
}

static int data_import(MPI_Comm comm, int argc, char **argv, sk_err *e) {
  static const struct option opts[] = {{"from", 1, 0, O_FROM},   {"tokenizer", 1, 0, O_TOKENIZER}, {"output", 1, 0, 'o'},
                                       {"vocab", 1, 0, O_VOCAB}, {"eos", 1, 0, O_EOS},             {0}};
  sk_import_opts o = {.eos = -1};
  int code;
  while (!e->code && (code = getopt_long(argc, argv, ":o:", opts, NULL)) != -1)
    if (code == '?' || code == ':') bad_option(e, argv, code);
    else import_option(code, &o, e);
  const char *f = o.from ? o.from : "";
  if (!e->code && strcmp(f, "megatron") != 0 && strcmp(f, "nanogpt") != 0 && strcmp(f, "llmc") != 0)
    usage_error(e, "data", "import: --from '%s': give megatron, nanogpt or llmc", f);
  if (!e->code && !o.out) usage_error(e, "data", "import: no output: give -o OUT.h5%s", NULL);
  if (!e->code && optind >= argc) usage_error(e, "data", "import: nothing to import: name files%s", NULL);
  if (e->code) return e->code;
  o.n_path = argc - optind;
  o.path = argv + optind;
  return sk_tokens_import(comm, &o, e);
}

static int data_info(MPI_Comm comm, int argc, char **argv, sk_err *e) {
  if (argc != 2) return usage_error(e, "data", "info: give one FILE.h5%s", NULL);
  if (sk_base_rank() == 0) sk_tokens_print_info(argv[1], e);
  return sk_agree(comm, e);
}

static int data_check(MPI_Comm comm, int argc, char **argv, sk_err *e) {
  if (argc != 2) return usage_error(e, "data", "check: give one FILE.h5%s", NULL);
  return sk_tokens_check(comm, argv[1], e);
}

static int run_data(MPI_Comm comm, int argc, char **argv, sk_err *e) {
  const char *what = argc > 1 ? argv[1] : "";
  if (strcmp(what, "build") == 0) return data_build(comm, argc - 1, argv + 1, e);
  if (strcmp(what, "import") == 0) return data_import(comm, argc - 1, argv + 1, e);
  if (strcmp(what, "info") == 0) return data_info(comm, argc - 1, argv + 1, e);
  if (strcmp(what, "check") == 0) return data_check(comm, argc - 1, argv + 1, e);
  return what[0] ? usage_error(e, "data", "'%s' is not known: give build, import, info or check", what)
                 : usage_error(e, "data", "give build, import, info or check%s", NULL);
}

/* "5GB", "512MiB", "1000": from 1 byte to 2^60. */
static int parse_bytes(const char *s, int64_t *out) {
  static const char units[] = "kMGT";
  char *end;
  double x = strtod(s, &end);
  const char *unit = *end == 'K' ? units : *end ? strchr(units, *end) : NULL;
  if (unit) x *= pow(end[1] == 'i' ? 1024 : 1000, (double)(unit - units + 1));
  if (unit) end += end[1] == 'i' ? 2 : 1;
  if (*end == 'B') end++;
  if (end == s || *end || !(x >= 1 && x <= 0x1p60)) return -1;
  *out = (int64_t)x;
  return 0;
}

static int find_choice(const char *const *name, const char *what) {
  for (int i = 0; name[i]; i++)
    if (strcmp(name[i], what) == 0) return i;
  return -1;
}

/* "folder/" is "folder"; "/" stays. */
static char *without_slashes(char *path) {
  for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--) path[n - 1] = 0;
  return path;
}

static int run_convert(MPI_Comm comm, int argc, char **argv, sk_err *e) {
  static const struct option opts[] = {
      {"output", 1, 0, 'o'}, {"dtype", 1, 0, O_DTYPE}, {"shard-size", 1, 0, O_SHARD_SIZE}, {0}};
  static const char *const dtypes[] = {"fp32", "bf16", "fp16", NULL}, *const what[] = {"from-hf", "to-hf", NULL};
  sk_to_hf_opts o = {.dtype = -1, .shard_bytes = 5000000000};
  bool to_only = false;
  int code;
  while (!e->code && (code = getopt_long(argc, argv, ":o:", opts, NULL)) != -1) {
    if (code == 'o') o.out = without_slashes(optarg);
    else if (code == O_DTYPE && (o.dtype = find_choice(dtypes, optarg)) < 0)
      usage_error(e, "convert", "--dtype %s: give bf16, fp16 or fp32", optarg);
    else if (code == O_SHARD_SIZE && parse_bytes(optarg, &o.shard_bytes) != 0)
      usage_error(e, "convert", "--shard-size %s: give bytes, such as 5GB or 512MiB", optarg);
    else if (code == '?' || code == ':') bad_option(e, argv, code);
    to_only |= code == O_DTYPE || code == O_SHARD_SIZE;
  }
  if (e->code) return e->code;
  int dir = optind < argc ? find_choice(what, argv[optind]) : -1;
  if (dir < 0) return usage_error(e, "convert", "give from-hf or to-hf first%s", NULL);
  if (optind + 2 != argc) return usage_error(e, "convert", "%s: give one folder", what[dir]);
  if (!o.out) return usage_error(e, "convert", "%s: no output: give -o FOLDER", what[dir]);
  if (dir == 0 && to_only) return usage_error(e, "convert", "--dtype and --shard-size are options of to-hf%s", NULL);
  o.from = without_slashes(argv[optind + 1]);
  return dir == 0 ? sk_convert_from_hf(comm, o.from, o.out, e) : sk_convert_to_hf(comm, &o, e);
}

static int generate_option(int code, sk_generate_opts *o, sk_err *e) {
  switch (code) {
    case O_FROM: o->from = optarg; return SK_OK;
    case O_PROMPT: o->prompt = optarg; return SK_OK;
    case O_TOKENIZER: o->tokenizer = optarg; return SK_OK;
    case O_TOKENS:
      if (parse_int(optarg, 1, 1 << 28, &o->tokens) == 0) return SK_OK;
      return usage_error(e, "generate", "--tokens %s: give a number from 1", optarg);
    case O_SEED:
      if (parse_int(optarg, 0, INT64_MAX, &o->seed) == 0) return SK_OK;
      return usage_error(e, "generate", "--seed %s: give a number from 0", optarg);
    default:
      if (parse_real(optarg, 0, 100, &o->temperature) == 0) return SK_OK;
      return usage_error(e, "generate", "--temperature %s: give a number from 0 to 100", optarg);
  }
}

static int run_generate(MPI_Comm comm, int argc, char **argv, sk_err *e) {
  static const struct option opts[] = {{"from", 1, 0, O_FROM},     {"prompt", 1, 0, O_PROMPT},
                                       {"tokens", 1, 0, O_TOKENS}, {"temperature", 1, 0, O_TEMPERATURE},
                                       {"seed", 1, 0, O_SEED},     {"tokenizer", 1, 0, O_TOKENIZER}, {0}};
  sk_generate_opts o = {.tokens = 200, .seed = 1, .temperature = 0.8};
  int code;
  while (!e->code && (code = getopt_long(argc, argv, ":", opts, NULL)) != -1)
    if (code == '?' || code == ':') bad_option(e, argv, code);
    else generate_option(code, &o, e);
  if (!e->code && optind < argc) usage_error(e, "generate", "unexpected '%s'", argv[optind]);
  if (!e->code && !o.from) usage_error(e, "generate", "no checkpoint: give --from CHECKPOINT_DIR%s", NULL);
  if (!e->code && !o.prompt) usage_error(e, "generate", "no prompt: give --prompt TEXT%s", NULL);
  if (e->code) return e->code;
  return sk_generate(comm, &o, e);
}

static int run_verify(MPI_Comm comm, int argc, char **argv, sk_err *e) {
  if (argc != 2) return usage_error(e, "verify", "give one CHECKPOINT_DIR%s", NULL);
  return sk_ckpt_verify(comm, argv[1], e);
}

const sk_verb sk_verbs[] = {
    {"train", "train -i DECK [options]", "train a model as a deck says, or go on with a run",
     "  -i DECK             the deck (YAML)\n"
     "  --set key=value     override a key; value is YAML and replaces the whole value; repeatable\n"
     "  --restart HOW       auto (default): continue from the newest whole checkpoint of run.dir, if any;\n"
     "                      none: start afresh; or the folder of a checkpoint\n"
     "  --max-time TIME     stop in good order before [D-]HH:MM:SS have passed; so do SIGUSR1, SIGTERM, the end\n"
     "                      of a Slurm job (SLURM_JOB_END_TIME) and a file STOP in run.dir\n"
     "  --check             check deck, grid and data, then stop\n"
     "  --dry-run           --check, and print layers, parameters and memory by part\n"
     "  --ranks N           for --check and --dry-run: pretend there are N ranks\n"
     "  --help-keys [PREFIX] every key of a deck, with type, default and range\n"
     "  --print-defaults    a deck of all defaults\n",
     run_train},
    {"data", "data build --tokenizer NAME -o OUT.h5 TEXT... | data import --from FORMAT -o OUT.h5 PATH... |\n"
     "             data info|check FILE.h5",
     "make token data from text or from other programs' tokens, show or check what a data set holds",
     "  build TEXT...       text files, folders, globs; .jsonl files with \"text\"; .gz and .zst of these\n"
     "    --tokenizer NAME  bytes: one token per byte, 256 ends a document (default), or the tokenizer.json of a\n"
     "                      byte-level BPE\n"
     "    --eos TOKEN       the token that ends a document (default: eos_token of a tokenizer_config.json beside\n"
     "                      the file, else <|end_of_text|>, <|endoftext|> or another usual one)\n"
     "    -o OUT.h5         the data set\n"
     "  import PATH...      token files: documents are kept\n"
     "    --from FORMAT     megatron (PREFIX of .bin and .idx), nanogpt (*.bin) or llmc (*.bin, in order)\n"
     "    --tokenizer NAME  what the ids were made with: a tokenizer.json is kept in the data set\n"
     "    --vocab N         ids are below N (default: of the tokenizer or the format, else the largest + 1)\n"
     "    --eos ID          the id that ends a document (default: of the tokenizer or the format)\n"
     "    -o OUT.h5         the data set\n"
     "  info FILE.h5        counts, documents, samples\n"
     "  check FILE.h5       every token and every document offset, by all ranks\n",
     run_data},
    {"convert", "convert from-hf HF_DIR -o CHECKPOINT_DIR | convert to-hf CHECKPOINT_DIR -o HF_DIR [options]",
     "exchange weights with Hugging Face's transformers",
     "  from-hf HF_DIR      config.json and safetensors, in one file or several, become a checkpoint to train\n"
     "                      from (train.init, --restart) or to generate with; tokenizer files go along\n"
     "  to-hf CHECKPOINT    a checkpoint becomes a folder that transformers loads\n"
     "    --dtype DTYPE     bf16, fp16 or fp32; else what config.json names, else what came in, else fp32\n"
     "    --shard-size SIZE weights in files of at most so much (5GB)\n"
     "  -o FOLDER           the result, which must not exist\n",
     run_convert},
    {"generate", "generate --from CHECKPOINT_DIR --prompt TEXT [options]", "write text from a checkpoint",
     "  --from DIR          a checkpoint folder\n"
     "  --prompt TEXT       what to continue\n"
     "  --tokenizer NAME    bytes or a tokenizer.json (default: the one in the checkpoint)\n"
     "  --tokens N          how many tokens at most (200)\n"
     "  --temperature T     0: the likeliest token always (0.8)\n"
     "  --seed S            another seed, another text (1)\n",
     run_generate},
    {"eval", "eval -i DECK --from CHECKPOINT_DIR [options]", "the loss of a checkpoint on the deck's validation data",
     "  -i DECK             the deck: model, data.valid, sequence, eval_batches, grid\n"
     "  --from DIR          a checkpoint folder of the same model\n"
     "  --set key=value     override a key of the deck; repeatable\n",
     sk_eval_run},
    {"info", "info PATH [--sequence T]", "show what a checkpoint, data set, deck or config.json holds",
     "  PATH                a checkpoint's folder, a data set (.h5), a deck, or a Hugging Face config.json\n"
     "  --sequence T        tokens per sequence for the FLOP table (the deck's; config.json: 4096)\n",
     sk_info_run},
    {"bench", "bench ops|layer|step|io -i DECK [options] [OP...] | bench comm [options]", "measure ops, steps, exchanges, files",
     "  ops                 every op at the shapes of the deck's first layer, beside the machine's ceilings and, in a\n"
     "                      build with it, cuDNN's attention; OP...: only these of gemm, attention, ssd, conv1d,\n"
     "                      gate, rmsnorm, swiglu, loss, adamw\n"
     "  layer               the deck's first layer, forward and forward with backward\n"
     "  step                whole training steps on random tokens; on any grid (mpirun -np N)\n"
     "  comm                each exchange between ranks by size, and each transport of the pipeline; on GPUs where\n"
     "                      there are any (or -i DECK with run.device)\n"
     "  io                  checkpoints of the deck's model, beside plain copies and plain writes of as many bytes\n"
     "  -i DECK             model, batch, sequence and grid; no data is read (input/bench.yaml)\n"
     "  --set key=value     override a key of the deck; repeatable\n"
     "  --repeat N          measurements, of which the median counts (comm: the best) (7)\n"
     "  --warmup N          unmeasured calls before (2)\n"
     "  --no-overlap        step: every exchange between ranks is waited for at once; the same bits, slower\n"
     "  --brief             step: its time alone, not what it is made of: in a fourth of the time\n"
     "  --folder DIR        io: where the files go (.)\n"
     "  --json FILE         the results as a list of objects; -: to the screen\n",
     sk_bench_run},
    {"verify", "verify CHECKPOINT_DIR", "check every checksum of a checkpoint", "", run_verify},
    {0},
};

const sk_verb *sk_verb_find(const char *name) {
  for (const sk_verb *v = sk_verbs; v->name; v++)
    if (strcmp(v->name, name) == 0) return v;
  return NULL;
}

static void print_help(void) {
  printf("Usage: saker VERB [options]      (under mpirun -np N: on N ranks)\n\n");
  for (const sk_verb *v = sk_verbs; v->name; v++) printf("  %-10s %s\n", v->name, v->about);
  printf("\n  saker help VERB    the options of a verb\n  saker --version\n\n"
         "Exit codes: 0 done, 1 failed, 2 wrong usage or deck.\n");
}

static int unknown_verb(const char *name) {
  const sk_verb *near = NULL;
  int best = 3;
  for (const sk_verb *v = sk_verbs; v->name; v++) {
    int d = sk_edit_distance(name, v->name);
    if (d < best) best = d, near = v;
  }
  fprintf(stderr, "saker: unknown %s '%s'%s%s%s\nTry: saker --help\n", name[0] == '-' ? "option" : "verb", name,
          near ? "; did you mean '" : "", near ? near->name : "", near ? "'?" : "");
  return SK_USAGE;
}

static int verb_help(const char *name) {
  const sk_verb *v = sk_verb_find(name);
  if (!v) return unknown_verb(name);
  printf("Usage: saker %s\n\n%s.\n%s%s", v->usage, v->about, v->help[0] ? "\n" : "", v->help);
  return SK_OK;
}

/* train's two questions about keys. */
static bool key_help(int argc, char **argv, int *code) {
  for (int i = 2; i < argc; i++) {
    if (strcmp(argv[i], "--print-defaults") == 0) return sk_config_print_defaults(), true;
    if (strcmp(argv[i], "--help-keys") == 0) {
      const char *prefix = i + 1 < argc && argv[i + 1][0] != '-' ? argv[i + 1] : NULL;
      *code = sk_config_help_keys(prefix) ? SK_OK : SK_USAGE;
      return true;
    }
  }
  return false;
}

static void print_version(void) {
  printf("saker %s\n\nBuilt ", PACKAGE_VERSION);
  if (!sk_cuda) printf("without CUDA\n");
  else if (!sk_cudnn_built) printf("with %s, without cuDNN\n", sk_cuda_built);
  else printf("with %s and cuDNN %s (libcudnn.so.9 is loaded where it is found)\n", sk_cuda_built, sk_cudnn_built);
}

bool sk_cli_without_mpi(int argc, char **argv, int *code) {
  const char *first = argc > 1 ? argv[1] : "--help";
  *code = SK_OK;
  if (strcmp(first, "--version") == 0) return print_version(), true;
  if (strcmp(first, "--help") == 0 || strcmp(first, "-h") == 0 || strcmp(first, "help") == 0) {
    if (strcmp(first, "help") == 0 && argc > 2) *code = verb_help(argv[2]);
    else print_help();
    if (argc == 1) *code = SK_USAGE;
    return true;
  }
  if (!sk_verb_find(first)) return *code = unknown_verb(first), true;
  for (int i = 2; i < argc; i++)
    if (strcmp(argv[i], "--help") == 0) return *code = verb_help(first), true;
  return strcmp(first, "train") == 0 && key_help(argc, argv, code);
}
