#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "src/bench.h"
#include "src/device.h"
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <commit.h> // made by make

typedef struct options {
  const char *what, *deck, *json, *folder;
  char **set, **names;
  int n_set, n_names;
  int64_t repeat, warmup;
  bool no_overlap, brief;
} options;

static const struct {
  const char *name;
  int (*run)(sk_bench *b, sk_err *e); /* NULL: io, which has an argument more */
} bench[] = {{"ops", sk_bench_ops}, {"layer", sk_bench_layer}, {"step", sk_bench_step}, {"comm", sk_bench_comm}, {"io", NULL}};

enum { O_SET = 256, O_JSON, O_REPEAT, O_WARMUP, O_FOLDER, O_NO_OVERLAP, O_BRIEF };

static int usage(sk_err *e, const char *what) {
  return sk_fail(e, SK_USAGE, "saker bench: %s\nTry: saker help bench", what);
}

static int number(const char *text, int64_t least, int64_t *out, sk_err *e) {
  char *end;
  long long x = strtoll(text, &end, 10);
  if (*end || end == text || x < least || x > 1000000)
    return sk_fail(e, SK_USAGE, "saker bench: '%s': give a number from %lld to 1000000", text, (long long)least);
  *out = x;
  return SK_OK;
}

static int parse(int argc, char **argv, options *o, sk_err *e) {
  static const struct option opts[] = {{"input", 1, 0, 'i'},          {"set", 1, 0, O_SET},
                                       {"json", 1, 0, O_JSON},        {"repeat", 1, 0, O_REPEAT},
                                       {"warmup", 1, 0, O_WARMUP},    {"folder", 1, 0, O_FOLDER},
                                       {"no-overlap", 0, 0, O_NO_OVERLAP}, {"brief", 0, 0, O_BRIEF},
                                       {0}};
  int code;
  while (!e->code && (code = getopt_long(argc, argv, ":i:", opts, NULL)) != -1) {
    switch (code) {
      case 'i': o->deck = optarg; break;
      case O_SET: o->set[o->n_set++] = optarg; break;
      case O_JSON: o->json = optarg; break;
      case O_FOLDER: o->folder = optarg; break;
      case O_NO_OVERLAP: o->no_overlap = true; break;
      case O_BRIEF: o->brief = true; break;
      case O_REPEAT: number(optarg, 1, &o->repeat, e); break;
      case O_WARMUP: number(optarg, 0, &o->warmup, e); break;
      default:
        sk_fail(e, SK_USAGE, "saker bench: option '%s' %s\nTry: saker help bench", argv[optind - 1],
                code == ':' ? "needs a value" : "is unknown");
    }
  }
  if (strcmp(o->what, "ops") == 0) o->names = argv + optind, o->n_names = argc - optind;
  else if (!e->code && optind < argc) sk_fail(e, SK_USAGE, "saker bench: unexpected '%s'", argv[optind]);
  bool model = strcmp(o->what, "comm") != 0;
  if (!e->code && model && !o->deck) usage(e, "no deck: give -i DECK (for example input/bench.yaml)");
  return e->code;
}

/* The command line as one text, to be found again in the results. */
static char *command_text(int argc, char **argv) {
  char *text = sk_strdup("saker bench");
  for (int i = 1; i < argc; i++) {
    bool quote = strpbrk(argv[i], " '\"{}[]*") != NULL;
    char *more = sk_strf("%s %s%s%s", text, quote ? "'" : "", argv[i], quote ? "'" : "");
    sk_free(text);
    text = more;
  }
  return text;
}

/* The model's name: hf_config's file, or the deck's, without folder and suffix. */
static char *model_name(const options *o) {
  const char *from = o->deck ? o->deck : "";
  for (int i = 0; i < o->n_set; i++)
    if (strncmp(o->set[i], "model.hf_config=", 16) == 0) from = o->set[i] + 16;
  const char *slash = strrchr(from, '/');
  char *name = sk_strdup(slash ? slash + 1 : from), *dot = strrchr(name, '.');
  if (dot) *dot = 0;
  return name;
}

/* What MPI has granted: it may cost something. */
static const char *thread_level(void) {
  int level;
  SK_MPI(MPI_Query_thread(&level));
  return level == MPI_THREAD_MULTIPLE     ? "multiple"
         : level == MPI_THREAD_SERIALIZED ? "serialized"
         : level == MPI_THREAD_FUNNELED   ? "funneled"
                                          : "single";
}

json_t *sk_bench_result(sk_bench *b, const char *what, const char *device) {
  json_t *o = json_pack("{s:s, s:s, s:i, s:s, s:s, s:s}", "bench", what, "device", device, "ranks", b->ranks, "commit",
                        SK_COMMIT, "command", b->command, "mpi_threads", thread_level());
  SK_CHECK(o, "a result cannot be made");
  if (b->results) json_array_append_new(b->results, o);
  return o;
}

static double run_many(sk_stream *st, const sk_ops *op, int64_t calls, void (*run)(void *), void *arg) {
  op->sync(st);
  double begin = sk_now();
  for (int64_t i = 0; i < calls; i++) run(arg);
  op->sync(st);
  return (sk_now() - begin) / (double)calls;
}

double sk_bench_time(const sk_bench *b, sk_stream *st, void (*run)(void *arg), void *arg) {
  for (int64_t i = 0; i < b->warmup; i++) run(arg);
  double once = run_many(st, b->op, 1, run, arg), *each = sk_calloc((size_t)b->repeat, sizeof *each);
  int64_t calls = once > 0 ? (int64_t)(b->sample / once) : 1;
  if (calls < 1) calls = 1;
  for (int64_t i = 0; i < b->repeat; i++) each[i] = run_many(st, b->op, calls, run, arg);
  sk_sort(each, b->repeat);
  double median = each[b->repeat / 2];
  sk_free(each);
  return median;
}

void sk_bench_rounds(const sk_bench *b, sk_stream *st, double sample, sk_bench_way *way, int n) {
  sk_bench once = *b;
  once.repeat = once.warmup = 1;
  once.sample = sample;
  int64_t rounds = 5 * b->repeat;
  double *s = sk_calloc((size_t)(n * rounds), sizeof *s); /* [way][round] */
  for (int64_t round = 0; round < rounds; round++) {
    for (int j = 0; j < n; j++) {
      int i = (int)((j + round) % n);
      s[i * rounds + round] = sk_bench_time(&once, st, way[i].run, way[i].arg);
    }
  }
  for (int i = 0; i < n; i++) {
    sk_sort(s + i * rounds, rounds);
    way[i].s = s[i * rounds + rounds / 2];
  }
  sk_free(s);
}

void sk_bench_random(float *x, int64_t n, uint64_t key, double scale) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < n; i++) x[i] = (float)(scale * sk_normal(key, (uint64_t)i));
}

static int write_json(const sk_bench *b, const char *path, sk_err *e) {
  if (b->rank != 0) return SK_OK;
  bool out = strcmp(path, "-") == 0;
  int rc = out ? json_dumpf(b->results, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(9))
               : json_dump_file(b->results, path, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
  if (out) printf("\n");
  if (rc != 0) return sk_fail(e, SK_FAILED, "%s: the results cannot be written", path);
  return SK_OK;
}

/* The deck's device. */
static int choose_device(sk_bench *b, sk_err *e) {
  const sk_ops *op = b->cfg ? sk_device_choose(b->comm, b->cfg->run.device, false, false, e) : b->op;
  if (!op) return e->code;
  b->op = op;
  b->comms = sk_device_comm(op);
  return SK_OK;
}

static int run_bench(sk_bench *b, const options *o, sk_err *e) {
  if (choose_device(b, e) != SK_OK) return e->code;
  for (size_t i = 0; i < sizeof bench / sizeof *bench; i++)
    if (strcmp(o->what, bench[i].name) == 0 && bench[i].run) return bench[i].run(b, e);
  return sk_bench_io(b, o->folder, e);
}

int sk_bench_run(MPI_Comm comm, int argc, char **argv, sk_err *e) {
  const char *what = argc > 1 ? argv[1] : "";
  bool known = false;
  for (size_t i = 0; i < sizeof bench / sizeof *bench; i++) known |= strcmp(what, bench[i].name) == 0;
  if (!known) return usage(e, "give ops, layer, step, comm or io");
  options o = {.what = what, .repeat = 7, .warmup = 2, .folder = "."};
  o.set = sk_calloc((size_t)argc, sizeof *o.set);
  char *command = command_text(argc, argv), *name = NULL;
  sk_config cfg = {0};
  sk_bench b = {.comm = comm, .sample = 0.02, .command = command, .op = &sk_cpu_ops, .comms = &sk_comm_mpi};
  MPI_Comm_rank(comm, &b.rank);
  MPI_Comm_size(comm, &b.ranks);
  if (parse(argc - 1, argv + 1, &o, e) == SK_OK &&
      (!o.deck || sk_config_read(comm, o.deck, o.n_set, o.set, &cfg, e) == SK_OK)) {
    name = model_name(&o);
    b.model = name, b.cfg = o.deck ? &cfg : NULL, b.repeat = o.repeat, b.warmup = o.warmup, b.no_overlap = o.no_overlap, b.brief = o.brief;
    b.names = o.names, b.n_names = o.n_names;
    b.results = b.rank == 0 ? json_array() : NULL;
    if (run_bench(&b, &o, e) == SK_OK && o.json) write_json(&b, o.json, e);
    json_decref(b.results);
    sk_agree(comm, e);
  }
  sk_config_free(&cfg);
  sk_free(command);
  sk_free(name);
  sk_free(o.set);
  return e->code;
}
