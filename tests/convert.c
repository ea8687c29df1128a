/* convert.c: Hugging Face's folders to checkpoints and back: every reference model's weights in every dtype byte
 * for byte, one file or several, values in the checkpoint, config.json, side files, rounding, refusals. Rank 0
 * writes and reads the folders (hf_folder.h) for all. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/tap.h"
#include "io/safetensors.h"
#include "src/convert.h"
#include "src/hf_json.h"
#include "tests/hf_folder.h"
#include <dirent.h>
#include <hdf5.h>
#include <unistd.h>

static const char *const dtype_name[] = {"F32", "BF16", "F16"};

static void meet(void) { SK_MPI(MPI_Barrier(MPI_COMM_WORLD)); }

/* ---- a reference file as tensors ---- */

typedef struct model {
  char *config;
  int n;
  hf_tensor *t; /* F32 */
} model;

static herr_t take_dataset(hid_t group, const char *name, const H5O_info_t *info, void *arg) {
  model *m = arg;
  if (info->type != H5O_TYPE_DATASET) return 0;
  m->t = sk_realloc(m->t, (size_t)(m->n + 1) * sizeof *m->t);
  hf_tensor *t = &m->t[m->n++];
  *t = (hf_tensor){.dtype = "F32"};
  snprintf(t->name, sizeof t->name, "%s", name);
  hid_t d = H5Dopen2(group, name, H5P_DEFAULT), s = H5Dget_space(d);
  hsize_t dim[4];
  t->rank = H5Sget_simple_extent_dims(s, dim, NULL);
  for (int i = 0; i < t->rank; i++) t->dim[i] = (int64_t)dim[i];
  t->bytes = (size_t)H5Sget_simple_extent_npoints(s) * 4;
  t->data = sk_malloc(t->bytes);
  SK_CHECK(H5Dread(d, H5T_IEEE_F32LE, H5S_ALL, H5S_ALL, H5P_DEFAULT, t->data) >= 0, "%s cannot be read", name);
  H5Sclose(s);
  H5Dclose(d);
  return 0;
}

static model load(const char *path) {
  model m = {0};
  hid_t f = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT), a = H5Aopen(f, "config_json", H5P_DEFAULT);
  hid_t type = H5Aget_type(a);
  char *text = NULL;
  SK_CHECK(f >= 0 && a >= 0 && H5Aread(a, type, &text) >= 0, "%s: no config_json", path);
  m.config = sk_strdup(text);
  H5free_memory(text);
  H5Tclose(type);
  H5Aclose(a);
  hid_t g = H5Gopen2(f, "params", H5P_DEFAULT);
  H5Ovisit(g, H5_INDEX_NAME, H5_ITER_NATIVE, take_dataset, &m);
  H5Gclose(g);
  H5Fclose(f);
  return m;
}

/* The same tensors in another dtype. 16 bits are taken as they come: every pattern must survive, numbers
 * below the smallest normal one and NaN included. */
static hf_tensor *in_dtype(const model *m, int dtype) {
  hf_tensor *t = sk_calloc((size_t)m->n, sizeof *t);
  for (int i = 0; i < m->n; i++) {
    size_t n = m->t[i].bytes / 4;
    t[i] = m->t[i];
    snprintf(t[i].dtype, sizeof t[i].dtype, "%s", dtype_name[dtype]);
    t[i].bytes = dtype ? 2 * n : 4 * n;
    t[i].data = sk_malloc(t[i].bytes);
    for (size_t k = 0; k < n && dtype; k++)
      memcpy(t[i].data + 2 * k, m->t[i].data + 4 * k + (dtype == SK_ST_BF16 ? 2 : 1), 2);
    if (!dtype) memcpy(t[i].data, m->t[i].data, t[i].bytes);
  }
  static const uint32_t odd32[] = {0x7f800001, 0xffc12345, 0x80000000, 0x00000001, 0x7f800000, 0xff800000};
  static const uint16_t odd16[] = {0x7f81, 0xffc1, 0x8000, 0x0001, 0x7f80, 0xff80, 0x7c00, 0xfc00, 0x7c01, 0x03ff, 0x7e00};
  if (dtype) memcpy(t[0].data, odd16, sizeof odd16);
  else memcpy(t[0].data, odd32, sizeof odd32);
  return t;
}

static void write_folder(const char *dir, const char *config, int n, const hf_tensor *t, int files) {
  sk_err e = {0};
  SK_CHECK(sk_fs_mkdirs(dir, &e) == SK_OK, "%s", e.msg);
  hf_put(str("%s/config.json", dir), config, strlen(config));
  if (files == 1) {
    hf_write(str("%s/model.safetensors", dir), n, t);
    return;
  }
  json_t *map = json_object();
  for (int k = 0; k < files; k++) {
    int first = n * k / files, last = n * (k + 1) / files;
    hf_write(str("%s/part-%d.safetensors", dir, k), last - first, t + first);
    for (int i = first; i < last; i++) json_object_set_new(map, t[i].name, json_string(str("part-%d.safetensors", k)));
  }
  json_t *o = json_pack("{s:{}, s:o}", "metadata", "weight_map", map);
  char *text = json_dumps(o, 0);
  hf_put(str("%s/model.safetensors.index.json", dir), text, strlen(text));
  free(text);
  json_decref(o);
}

/* ---- round trips ---- */

static double value_of(const hf_tensor *t, size_t i) {
  uint32_t u = 0;
  float f;
  if (strcmp(t->dtype, "F32") == 0) memcpy(&u, t->data + 4 * i, 4);
  else memcpy(&u, t->data + 2 * i, 2);
  if (strcmp(t->dtype, "F16") == 0) {
    int exp = u >> 10 & 31, man = u & 1023;
    double x = exp == 31 ? (man ? NAN : INFINITY) : exp ? ldexp(1024 + man, exp - 25) : ldexp(man, -24);
    return u & 0x8000 ? -x : x;
  }
  if (strcmp(t->dtype, "BF16") == 0) u <<= 16;
  memcpy(&f, &u, 4);
  return (double)f;
}

/* Values in the checkpoint that differ from the tensors', by an independent reading of both. */
static int64_t wrong_values(const char *ckpt, int n, const hf_tensor *t) {
  hid_t f = H5Fopen(str("%s/model.h5", ckpt), H5F_ACC_RDONLY, H5P_DEFAULT);
  int64_t wrong = 0;
  for (int i = 0; i < n; i++) {
    hid_t d = H5Dopen2(f, str("params/%s", t[i].name), H5P_DEFAULT), s = H5Dget_space(d);
    size_t count = (size_t)H5Sget_simple_extent_npoints(s);
    float *x = sk_malloc(count * sizeof *x);
    SK_CHECK(H5Dread(d, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, x) >= 0, "%s", t[i].name);
    for (size_t k = 0; k < count; k++) {
      double want = value_of(&t[i], k);
      wrong += isnan(want) ? !isnan(x[k]) : (double)x[k] != want;
    }
    sk_free(x);
    H5Sclose(s);
    H5Dclose(d);
  }
  H5Fclose(f);
  return wrong;
}

typedef struct result {
  int n, same, files;
  int64_t wrong;
} result;

/* in -> dir/ck -> dir/out on all ranks. */
static void round_trip(const char *dir, int n, const hf_tensor *t, int64_t shard_bytes, const char *what) {
  sk_err e = {0};
  result r = {0};
  char *in = sk_strf("%s/in", dir), *ck = sk_strf("%s/ck", dir), *out = sk_strf("%s/out", dir);
  const sk_to_hf_opts o = {.from = ck, .out = out, .dtype = -1, .shard_bytes = shard_bytes};
  meet();
  if (sk_convert_from_hf(MPI_COMM_WORLD, in, ck, &e) == SK_OK) sk_convert_to_hf(MPI_COMM_WORLD, &o, &e);
  if (!e.code && tap_rank == 0) {
    hf_tensor *back;
    r.n = hf_read(out, &back, &r.files);
    r.same = hf_count_same(n, t, r.n, back);
    r.wrong = wrong_values(ck, n, t);
    hf_free(back, r.n);
  }
  SK_MPI(MPI_Bcast(&r, (int)sizeof r, MPI_BYTE, 0, MPI_COMM_WORLD));
  SK_MPI(MPI_Bcast(&n, 1, MPI_INT, 0, MPI_COMM_WORLD));
  tap_ok(!e.code && n > 0 && r.n == n && r.same == n && r.wrong == 0,
         "%s: %d of %d tensors byte for byte in %d files, %lld other values in the checkpoint %s", what, r.same, n,
         r.files, (long long)r.wrong, e.msg);
  if (shard_bytes < 1 << 20) tap_ok(r.files > 3, "%s: cut into %d files", what, r.files);
  meet();
  sk_free(in);
  sk_free(ck);
  sk_free(out);
}

static void one_model(const char *path, const char *name) {
  model m = {0};
  if (tap_rank == 0) m = load(path);
  for (int dtype = 0; dtype < 3; dtype++) {
    char *dir = sk_strf("%s-%s", name, dtype_name[dtype]);
    hf_tensor *t = tap_rank == 0 ? in_dtype(&m, dtype) : NULL;
    if (tap_rank == 0) write_folder(str("%s/in", dir), m.config, m.n, t, 1);
    round_trip(dir, m.n, t, INT64_MAX, dir);
    hf_free(t, m.n);
    sk_free(dir);
  }
  hf_free(m.t, m.n);
  sk_free(m.config);
}

/* Several files in and out, dtypes mixed. */
static void sharded(const char *path) {
  model m = {0};
  if (tap_rank == 0) {
    m = load(path);
    for (int i = 0; i < m.n; i += 3) { // some in 16 bits
      hf_tensor *t = &m.t[i];
      snprintf(t->dtype, sizeof t->dtype, "%s", i % 2 ? "BF16" : "F16");
      t->bytes /= 2;
      for (size_t k = 0; k < t->bytes; k += 2) memmove(t->data + k, t->data + 2 * k + 2, 2);
    }
    write_folder("sharded/in", m.config, m.n, m.t, 4);
  }
  round_trip("sharded", m.n, m.t, 20000, "sharded, mixed dtypes");
  hf_free(m.t, m.n);
  sk_free(m.config);
}

static void all_models(void) {
  const char *dir = getenv("SAKER_GOLDEN_DIR");
  char **name;
  int64_t n, found = 0;
  sk_err e = {0};
  SK_CHECK(dir && sk_fs_list(dir, &name, &n, &e) == SK_OK, "SAKER_GOLDEN_DIR must name the reference files: %s", e.msg);
  for (int64_t i = 0; i < n; i++) {
    const char *dot = strrchr(name[i], '.');
    if (!dot || strcmp(dot, ".h5") != 0) continue;
    char *path = sk_strf("%s/%s", dir, name[i]), *base = sk_strf("%.*s", (int)(dot - name[i]), name[i]);
    one_model(path, base);
    if (found++ == 0) sharded(path);
    sk_free(path);
    sk_free(base);
  }
  tap_ok(found > 0, "%lld reference files in %s", (long long)found, dir);
  sk_fs_free_names(name, n);
}

/* ---- a small model of our own for everything else ---- */

static const char small[] =
    "{\n \"architectures\": [\"FalconH1ForCausalLM\"], \"model_type\": \"falcon_h1\", \"vocab_size\": %d,\n"
    " \"hidden_size\": 16, \"intermediate_size\": 24, \"num_hidden_layers\": 2, \"num_attention_heads\": 4,\n"
    " \"num_key_value_heads\": 2, \"head_dim\": 4, \"mamba_d_ssm\": 32, \"mamba_n_heads\": 4, \"mamba_d_head\": 8,\n"
    " \"mamba_d_state\": 8, \"mamba_chunk_size\": 8, \"rope_theta\": 1e11, \"eos_token_id\": [2, 5],\n"
    " \"time_step_limit\": [0.0, Infinity], \"unknown\": {\"kept\": [1, \"two\"]}%s\n}\n";

static char *sized_config(int vocab, const char *more) { return sk_strf(small, vocab, more); }
static char *small_config(const char *more) { return sized_config(300, more); }

/* F32 tensors of the model that the text describes; hf_free frees them. */
static hf_tensor *draw(const char *config, int *n) {
  sk_config c;
  sk_model m = {0};
  sk_err e = {0};
  SK_CHECK(sk_config_from_hf(config, "small", &c, &e) == SK_OK && sk_convert_model(&c, &m, &e) == SK_OK, "%s", e.msg);
  hf_tensor *t = sk_calloc((size_t)m.all.n, sizeof *t);
  *n = m.all.n;
  for (int i = 0; i < *n; i++) {
    const sk_param *p = &m.all.p[i];
    int64_t count = p->global_len * p->dim[0];
    snprintf(t[i].name, sizeof t[i].name, "%s", p->name);
    snprintf(t[i].dtype, sizeof t[i].dtype, "F32");
    t[i].rank = p->rank;
    memcpy(t[i].dim, p->dim, (size_t)p->rank * sizeof *p->dim);
    t[i].bytes = (size_t)count * 4;
    t[i].data = sk_malloc(t[i].bytes);
    for (int64_t k = 0; k < count; k++) {
      float x = (float)sk_uniform(sk_hash_str(1, p->name), (uint64_t)k);
      memcpy(t[i].data + 4 * k, &x, 4);
    }
  }
  sk_model_free(&m);
  sk_config_free(&c);
  return t;
}

static int from(const char *in, const char *out, sk_err *e) {
  *e = (sk_err){0};
  meet();
  return sk_convert_from_hf(MPI_COMM_WORLD, in, out, e);
}

static int to(const char *in, const char *out, int dtype, sk_err *e) {
  const sk_to_hf_opts o = {.from = in, .out = out, .dtype = dtype, .shard_bytes = INT64_MAX};
  *e = (sk_err){0};
  meet();
  int code = sk_convert_to_hf(MPI_COMM_WORLD, &o, e);
  meet();
  return code;
}

static char *config_of(const char *dir) {
  size_t n;
  return hf_get(str("%s/config.json", dir), &n);
}

static void test_config(void) {
  sk_err e;
  char *config = small_config(", \"dtype\": \"bfloat16\""), *half = NULL;
  int n;
  hf_tensor *t = draw(config, &n);
  if (tap_rank == 0) write_folder("config/in", config, n, t, 1);
  int code = from("config/in", "config/ck", &e);
  if (!code) code = to("config/ck", "config/out", -1, &e);
  tap_ok(!code && hf_same_file("config/in/config.json", "config/out/config.json"),
         "config.json comes back as it was %s", e.msg);
  tap_ok(sk_fs_size("config/out/model.safetensors") < sk_fs_size("config/in/model.safetensors") * 6 / 10,
         "the dtype that config.json names is written");
  code = to("config/ck", "config/half", SK_ST_F16, &e);
  if (!code) half = config_of("config/half");
  tap_ok(half && strstr(half, "\"dtype\": \"float16\"") && strstr(half, "\"kept\"") && strstr(half, "\"__float__\"") &&
         !strstr(half, "torch_dtype") && strstr(half, "2,\n    5"),
         "--dtype goes into config.json, which keeps all else %s", e.msg);
  tap_ok(to("config/ck", "config/out", -1, &e) == SK_FAILED && strstr(e.msg, "config/out: cannot be created"),
         "to-hf refuses a folder that exists: %s", e.msg);
  tap_ok(from("config/in", "config/ck", &e) == SK_FAILED && strstr(e.msg, "config/ck: cannot be created"),
         "from-hf refuses a folder that exists: %s", e.msg);
  hf_free(t, n);
  sk_free(config);
  sk_free(half);
}

/* sk_hf_json: a changed key is set in both places, what is unknown stays. */
static void test_hf_json(void) {
  sk_err e = {0};
  sk_config c;
  char *text = small_config(", \"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 1e11}");
  SK_CHECK(sk_config_from_hf(text, "small", &c, &e) == SK_OK, "%s", e.msg);
  char *same = sk_hf_json(&c, text);
  c.model.rope_theta = 5e6;
  c.model.mamba_norm_before_gate = false;
  char *other = sk_hf_json(&c, text), *fresh = sk_hf_json(&c, NULL);
  json_t *o = json_loads(other, 0, NULL), *f = json_loads(fresh, 0, NULL);
  json_t *rope = json_object_get(o, "rope_parameters");
  tap_ok(strcmp(same, text) == 0, "a config.json that says what the model is stays as it is");
  tap_ok(json_real_value(json_object_get(o, "rope_theta")) == 5e6 &&
         json_real_value(json_object_get(rope, "rope_theta")) == 5e6 &&
         json_is_false(json_object_get(o, "mamba_norm_before_gate")) && json_object_get(o, "unknown") &&
         json_array_size(json_object_get(o, "eos_token_id")) == 2, "what a deck overrides is set, the rest is kept");
  sk_config d;
  tap_ok(sk_config_from_hf(fresh, "fresh", &d, &e) == SK_OK && memcmp(&d.model, &c.model, sizeof d.model) == 0 &&
         strstr(fresh, "__float__") && json_object_get(f, "architectures"), "a fresh one describes the model %s", e.msg);
  sk_config_free(&d);
  sk_config_free(&c);
  json_decref(o);
  json_decref(f);
  sk_free(same);
  sk_free(other);
  sk_free(fresh);
  sk_free(text);
}

static void test_sides(void) {
  sk_err e;
  static const char *const name[] = {"tokenizer.json", "special_tokens_map.json", "generation_config.json"};
  char *config = small_config("");
  int n;
  hf_tensor *t = draw(config, &n);
  if (tap_rank == 0) {
    write_folder("sides/in", config, n, t, 1);
    for (int i = 0; i < 3; i++) hf_put(str("sides/in/%s", name[i]), "{\"x\": \"\xc3\xa9\"}\n", (size_t)(9 + i));
    hf_put("sides/in/README.md", "no", 2);
  }
  bool good = from("sides/in", "sides/ck", &e) == SK_OK && to("sides/ck", "sides/out", -1, &e) == SK_OK;
  for (int i = 0; i < 3 && good; i++)
    good = hf_same_file(str("sides/in/%s", name[i]), str("sides/ck/%s", name[i])) &&
           hf_same_file(str("sides/in/%s", name[i]), str("sides/out/%s", name[i]));
  tap_ok(good && sk_fs_size("sides/out/README.md") < 0 && sk_fs_size(str("sides/out/%s", sk_convert_dtypes)) < 0,
         "the tokenizer's files go along %s", e.msg);
  meet();
  if (tap_rank == 0) hf_put("sides/ck/tokenizer.json", "{\"x\": \"\xc3\xa8\"}\n", 9);
  tap_ok(to("sides/ck", "sides/again", -1, &e) == SK_FAILED && strstr(e.msg, "sides/ck/tokenizer.json: damaged"),
         "a changed one is noticed: %s", e.msg);
  hf_free(t, n);
  sk_free(config);
}

/* A checkpoint of a stranger's, with files along that have our names: they are not exported. */
static void test_foreign_sides(void) {
  sk_err e = {0};
  sk_config c;
  char *config = small_config("");
  int n;
  hf_tensor *t = draw(config, &n);
  SK_CHECK(sk_config_from_hf(config, "small", &c, &e) == SK_OK, "%s", e.msg);
  sk_dset *d = sk_calloc((size_t)n, sizeof *d);
  sk_slab *s = sk_calloc((size_t)n, sizeof *s);
  for (int i = 0; i < n; i++) {
    d[i] = (sk_dset){.name = sk_strf("params/%s", t[i].name), .rank = t[i].rank};
    memcpy(d[i].dim, t[i].dim, sizeof d[i].dim);
    s[i] = (sk_slab){.dset = i, .data = (float *)(void *)t[i].data};
    memcpy(s[i].count, t[i].dim, sizeof s[i].count);
  }
  sk_ckpt_meta meta = {.grid = {1, 1, 1, 1}, .deck = c.resolved, .hf_json = config};
  if (tap_rank == 0) {
    sk_ckpt_side_add(&meta, "config.json", "evil", 4);
    sk_ckpt_side_add(&meta, "model.safetensors", "evil", 4);
    sk_ckpt_side_add(&meta, "tokenizer.json", "good", 4);
  }
  const sk_ckpt_file f = {"model.h5", n, tap_rank == 0 ? n : 0, d, s, NULL, NULL};
  SK_CHECK(sk_ckpt_save_as(MPI_COMM_WORLD, "foreign/ck", &meta, 1, &f, NULL, &e) == SK_OK, "%s", e.msg);
  int code = to("foreign/ck", "foreign/out", -1, &e);
  tap_ok(!code && sk_fs_size("foreign/out/config.json") > 100 && sk_fs_size("foreign/out/model.safetensors") > 100 &&
         sk_fs_size("foreign/out/tokenizer.json") == 4, "files along cannot take the place of the model's %s", e.msg);
  meta.deck = meta.hf_json = NULL;
  sk_ckpt_meta_free(&meta);
  for (int i = 0; i < n; i++) sk_free((char *)(uintptr_t)d[i].name);
  sk_free(d);
  sk_free(s);
  hf_free(t, n);
  sk_config_free(&c);
  sk_free(config);
}

/* The same bytes from one rank and from all, of a model with tensors of several pieces. */
static void test_ranks(void) {
  sk_err e, alone = {0};
  char *config = sized_config(290001, ", \"torch_dtype\": \"float32\"");
  int n, files, same = 0;
  hf_tensor *t = draw(config, &n);
  if (tap_rank == 0) write_folder("ranks/in", config, n, t, 3);
  from("ranks/in", "ranks/all", &e);
  if (!e.code) to("ranks/all", "ranks/hf-all", -1, &e);
  const sk_to_hf_opts o = {.from = "ranks/one", .out = "ranks/hf-one", .dtype = -1, .shard_bytes = INT64_MAX};
  if (tap_rank == 0 && sk_convert_from_hf(MPI_COMM_SELF, "ranks/in", "ranks/one", &alone) == SK_OK)
    sk_convert_to_hf(MPI_COMM_SELF, &o, &alone);
  meet();
  tap_ok(!e.code && !alone.code && hf_same_file("ranks/all/model.h5", "ranks/one/model.h5") &&
         hf_same_file("ranks/all/manifest.json", "ranks/one/manifest.json") &&
         hf_same_file("ranks/hf-all/model.safetensors", "ranks/hf-one/model.safetensors"),
         "one rank and %d write the same bytes %s%s", tap_size, e.msg, alone.msg);
  if (tap_rank == 0 && !e.code) {
    hf_tensor *back;
    int m = hf_read("ranks/hf-all", &back, &files);
    same = hf_count_same(n, t, m, back);
    hf_free(back, m);
  }
  SK_MPI(MPI_Bcast(&same, 1, MPI_INT, 0, MPI_COMM_WORLD));
  tap_ok(same == n, "%d of %d tensors byte for byte, of several pieces", same, n);
  sk_err v = {0};
  tap_ok(sk_ckpt_verify(MPI_COMM_WORLD, "ranks/all", &v) == SK_OK, "the checkpoint verifies %s", v.msg);
  hf_free(t, n);
  sk_free(config);
}

/* ---- rounding ---- */

/* To nearest, ties to even, with `man` bits after the leading one and exponents from `low`. */
static double rounded(double x, int man, int low, double most) {
  int exp;
  if (x == 0 || !isfinite(x)) return x;
  frexp(x, &exp);
  if (exp - 1 < low) exp = low + 1;
  double unit = ldexp(1, exp - 1 - man), y = nearbyint(x / unit) * unit;
  return fabs(y) > most ? copysign(INFINITY, x) : y;
}

static void test_rounding(void) {
  int64_t wrong[2] = {0};
  enum { N = 200000 };
  for (int64_t i = 0; i < N; i++) {
    uint32_t u = (uint32_t)sk_rand(7, (uint64_t)i);
    if (i % 3 == 0) u &= 0xffffe000u | (i % 2 ? 0x1000u : 0); // ties
    if (i % 5 == 0) u = (u & 0x807fffff) | (uint32_t)(0x66 + i % 0x2c) << 23; // around fp16's range
    float x, y;
    memcpy(&x, &u, 4);
    for (int d = 1; d < 3; d++) {
      uint16_t h;
      int64_t over = sk_st_encode((sk_st_dtype)d, &x, 1, &h);
      sk_st_decode((sk_st_dtype)d, &h, 1, &y);
      double want = d == SK_ST_BF16 ? rounded((double)x, 7, -126, 0x1.fep127) : rounded((double)x, 10, -14, 65504);
      bool same = isnan(x) ? isnan(y) : (double)y == want && !signbit(y) == !signbit(x);
      wrong[d - 1] += !same || (over == 0) != (isfinite(x) && isinf(want));
    }
  }
  tap_ok(wrong[0] == 0, "bf16: %d numbers rounded to nearest even, %lld wrong", N, (long long)wrong[0]);
  tap_ok(wrong[1] == 0, "fp16: %d numbers rounded to nearest even, %lld wrong", N, (long long)wrong[1]);
}

/* ---- what cannot be exported ---- */

static void test_overflow(void) {
  sk_err e;
  char *config = small_config("");
  int n;
  hf_tensor *t = draw(config, &n);
  const float large = 70000;
  memcpy(t[n - 2].data + 12, &large, 4);
  if (tap_rank == 0) write_folder("large/in", config, n, t, 1);
  SK_CHECK(from("large/in", "large/ck", &e) == SK_OK, "%s", e.msg);
  tap_ok(to("large/ck", "large/out", SK_ST_F16, &e) == SK_FAILED && strstr(e.msg, t[n - 2].name) &&
         strstr(e.msg, "70000") && access("large/out", F_OK) != 0, "fp16 cannot hold it: %s", e.msg);
  tap_ok(to("large/ck", "large/out", SK_ST_BF16, &e) == SK_OK, "bf16 can %s", e.msg);
  hf_free(t, n);
  sk_free(config);
}

static void other_model(const char *dir, const char *keys, const char *word) {
  sk_err e = {0};
  char *deck = sk_strf("model: {vocab_size: 8, hidden_size: 8, num_attention_heads: 2, num_key_value_heads: 1, "
                       "intermediate_size: 8, mamba_d_ssm: 8, mamba_n_heads: 2, num_hidden_layers: 2, %s}\n", keys);
  float zero[8] = {0};
  const sk_dset d = {"params/model.final_layernorm.weight", 1, {8}, {0}};
  const sk_slab s = {.count = {8}, .data = zero};
  const sk_ckpt_meta meta = {.grid = {1, 1, 1, 1}, .deck = deck};
  const sk_ckpt_file f = {"model.h5", 1, tap_rank == 0, &d, &s, NULL, NULL};
  SK_CHECK(sk_ckpt_save_as(MPI_COMM_WORLD, dir, &meta, 1, &f, NULL, &e) == SK_OK, "%s", e.msg);
  tap_ok(to(dir, "other/out", -1, &e) == SK_FAILED && strstr(e.msg, word), "%s: %s", keys, e.msg);
  sk_free(deck);
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  char here[] = "/tmp/saker-convert.XXXXXX";
  if (tap_rank == 0) SK_CHECK(mkdtemp(here), "no folder in /tmp");
  SK_MPI(MPI_Bcast(here, sizeof here, MPI_CHAR, 0, MPI_COMM_WORLD));
  SK_CHECK(chdir(here) == 0, "%s", here);
  test_rounding();
  test_config();
  test_hf_json();
  test_sides();
  test_foreign_sides();
  test_ranks();
  test_overflow();
  other_model("other/pattern", "pattern: M", "model.pattern is M");
  other_model("other/overrides", "overrides: [{layers: 1, num_attention_heads: 1}]", "layer 1 has other sizes");
  all_models();
  meet();
  if (tap_rank == 0 && !sk_fs_remove(here)) tap_diag("%s is left", here);
  return tap_done();
}
