/* safetensors.c: hostile and damaged safetensors files and indices, given to `convert from-hf`: each is refused on
 * every rank with a message that names the file, and the tensor where one is to blame. Nothing is left behind. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/tap.h"
#include "io/safetensors.h"
#include "src/convert.h"
#include "tests/hf_folder.h"
#include <unistd.h>

static const char config[] =
    "{\"model_type\": \"falcon_h1\", \"vocab_size\": 6, \"hidden_size\": 4, \"intermediate_size\": 4,"
    " \"num_hidden_layers\": 1, \"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"head_dim\": 2,"
    " \"mamba_d_ssm\": 4, \"mamba_n_heads\": 2, \"mamba_d_head\": 2, \"mamba_d_state\": 2, \"rope_theta\": 1e4}";

static hf_tensor *tensor; /* the model's, F32 zeros, in the order of the registry */
static int n;
static char *good;        /* their header */
static int64_t bytes;     /* of their data */

static void draw(void) {
  sk_config c;
  sk_model m = {0};
  sk_err e = {0};
  SK_CHECK(sk_config_from_hf(config, "config", &c, &e) == SK_OK && sk_convert_model(&c, &m, &e) == SK_OK, "%s", e.msg);
  n = m.all.n;
  tensor = sk_calloc((size_t)n, sizeof *tensor);
  for (int i = 0; i < n; i++) {
    hf_tensor *t = &tensor[i];
    const sk_param *p = &m.all.p[i];
    snprintf(t->name, sizeof t->name, "%s", p->name);
    snprintf(t->dtype, sizeof t->dtype, "F32");
    t->rank = p->rank;
    memcpy(t->dim, p->dim, (size_t)p->rank * sizeof *p->dim);
    t->bytes = (size_t)(p->global_len * p->dim[0]) * 4;
    t->data = sk_calloc(t->bytes, 1);
    bytes += (int64_t)t->bytes;
  }
  good = hf_header(n, tensor);
  sk_model_free(&m);
  sk_config_free(&c);
}

static void meet(void) { SK_MPI(MPI_Barrier(MPI_COMM_WORLD)); }

/* A fresh folder h with config.json. */
static void fresh(void) {
  meet();
  if (tap_rank == 0) {
    sk_fs_remove("h");
    SK_CHECK(mkdir("h", 0777) == 0, "h cannot be made");
    hf_put("h/config.json", config, strlen(config));
  }
}

/* All of `words` (separated by '|') are in the message of every rank; nothing is left. */
static void refused(const char *what, const char *words) {
  sk_err e = {0};
  char *copy = sk_strdup(words), *rest = copy;
  meet();
  int code = sk_convert_from_hf(MPI_COMM_WORLD, "h", "ck", &e);
  bool named = code == SK_FAILED;
  for (const char *w; (w = strsep(&rest, "|")) != NULL;) named &= strstr(e.msg, w) != NULL;
  meet();
  tap_ok(named && access("ck", F_OK) != 0, "%s: %s%s", what, e.msg[0] ? e.msg : "accepted", named ? "" : " (not as expected)");
  meet();
  if (tap_rank == 0 && code == SK_OK) sk_fs_remove("ck");
  sk_free(copy);
}

static void file_of(const char *header, uint64_t length) {
  fresh();
  if (tap_rank == 0) hf_write_raw("h/model.safetensors", length, header, strlen(header), n, tensor);
}

/* The good header with its first `old` replaced. */
static char *replaced(const char *old, const char *new) {
  const char *at = strstr(good, old);
  SK_CHECK(at, "%s is not in the header", old);
  return sk_strf("%.*s%s%s", (int)(at - good), good, new, at + strlen(old));
}

static void header(const char *what, const char *old, const char *new, const char *words) {
  char *h = replaced(old, new);
  file_of(h, strlen(h));
  refused(what, words);
  sk_free(h);
}

#define EMBED "\"model.embed_tokens.weight\":{\"dtype\":\"F32\",\"shape\":[6,4],\"data_offsets\":[0,96]}"
#define NAME "h/model.safetensors|\"model.embed_tokens.weight\"|"
#define PUT(dtype, shape, at) "\"model.embed_tokens.weight\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" at "}"

static void test_tensors(void) {
  header("a shape too large", EMBED, PUT("\"F32\"", "[7,4]", "[0,96]"), NAME "need 112");
  header("a dtype too wide", EMBED, PUT("\"F64\"", "[6,4]", "[0,96]"), NAME "F64 need 192");
  header("overflow of the product", EMBED, PUT("\"F32\"", "[4611686018427387904,4]", "[0,96]"), NAME "no file can hold");
  header("overflow to the right size", EMBED, PUT("\"F32\"", "[4611686018427387910,4]", "[0,96]"), NAME "no file can hold");
  header("a negative size", EMBED, PUT("\"F32\"", "[-6,-4]", "[0,96]"), NAME "whole numbers");
  header("a real size", EMBED, PUT("\"F32\"", "[6.0,4]", "[0,96]"), NAME "whole numbers");
  header("a size beyond 64 bits", EMBED, PUT("\"F32\"", "[99999999999999999999,4]", "[0,96]"),
         "h/model.safetensors|not valid JSON");
  header("NaN as a size", EMBED, PUT("\"F32\"", "[NaN,4]", "[0,96]"), "h/model.safetensors|not valid JSON");
  header("a text as a size", EMBED, PUT("\"F32\"", "[\"6\",4]", "[0,96]"), NAME "whole numbers");
  header("nine dimensions", EMBED, PUT("\"F32\"", "[6,4,1,1,1,1,1,1,1]", "[0,96]"), NAME "dimensions");
  header("no shape", EMBED, PUT("\"F32\"", "null", "[0,96]"), NAME "no shape");
  header("an unknown dtype", EMBED, PUT("\"F33\"", "[6,4]", "[0,96]"), NAME "F33");
  header("a dtype that is no text", EMBED, PUT("32", "[6,4]", "[0,96]"), NAME "dtype");
  header("a dtype that weights cannot have", EMBED, PUT("\"I32\"", "[6,4]", "[0,96]"), "h/model.safetensors|embed_tokens|I32");
  header("half a byte", EMBED, PUT("\"F4\"", "[5]", "[0,96]"), NAME "no file can hold");
  header("the end before the beginning", EMBED, PUT("\"F32\"", "[6,4]", "[96,0]"), NAME "before it begins");
  header("an end behind the file", EMBED, PUT("\"F32\"", "[6,4]", "[0,9000000]"), NAME "9000000");
  header("a huge end", EMBED, PUT("\"F32\"", "[6,4]", "[0,9223372036854775807]"), NAME "truncated");
  header("a negative beginning", EMBED, PUT("\"F32\"", "[6,4]", "[-96,0]"), NAME "whole numbers");
  header("one offset", EMBED, PUT("\"F32\"", "[6,4]", "[96]"), NAME "two whole numbers");
  header("three offsets", EMBED, PUT("\"F32\"", "[6,4]", "[0,96,96]"), NAME "two whole numbers");
  header("no offsets", EMBED, PUT("\"F32\"", "[6,4]", "{}"), NAME "two whole numbers");
  header("an overlap", EMBED, PUT("\"F32\"", "[6,4]", "[4,100]"), "h/model.safetensors|byte 4|no tensor");
  header("the same place twice", "\"data_offsets\":[96,112]", "\"data_offsets\":[80,96]",
         "h/model.safetensors|input_layernorm|overlaps");
  header("a hole", EMBED ",", "", "h/model.safetensors|bytes 0 to 95");
  header("a tensor that is no object", EMBED, "\"model.embed_tokens.weight\":[]", NAME "object");
  header("one more key", EMBED, PUT("\"F32\",\"x\":1", "[6,4]", "[0,96]"), NAME "nothing else");
  header("a missing key", EMBED, "\"model.embed_tokens.weight\":{\"shape\":[6,4],\"data_offsets\":[0,96]}", NAME "dtype");
  header("a name twice", EMBED, EMBED "," EMBED, "h/model.safetensors|twice: \"model.embed_tokens.weight\"");
  header("a key twice", EMBED, PUT("\"F32\",\"dtype\":\"F32\"", "[6,4]", "[0,96]"), "h/model.safetensors|twice: \"dtype\"");
  header("the shape transposed", EMBED, PUT("\"F32\"", "[4,6]", "[0,96]"), "h/model.safetensors|embed_tokens|[4, 6]|[6, 4]");
  header("the conv in another order", "\"shape\":[8,1,4]", "\"shape\":[8,4,1]", "conv1d.weight|[8, 4, 1]|[8, 1, 4]");
  header("another name", "model.embed_tokens.weight", "model.embed.weight", "h|\"model.embed_tokens.weight\" is missing");
  header("a tensor too many", EMBED, "\"x\":{\"dtype\":\"F32\",\"shape\":[0,9],\"data_offsets\":[0,0]}," EMBED,
         "h/model.safetensors|\"x\" is not part");
}

static void test_headers(void) {
  const size_t len = strlen(good);
  header("metadata that are no texts", "{\"format\":\"pt\"}", "{\"format\":1}", "h/model.safetensors|format");
  header("metadata that are no object", "{\"format\":\"pt\"}", "7", "h/model.safetensors|__metadata__");
  file_of(good, len + 8);
  refused("the header reaches into the data", "h/model.safetensors|JSON");
  file_of(good, len - 1);
  refused("a header cut off", "h/model.safetensors|not valid JSON");
  file_of(good, 0);
  refused("an empty header", "h/model.safetensors|begin with '{'");
  file_of(good, UINT64_MAX);
  refused("a header of 2^64-1 bytes", "h/model.safetensors|header");
  file_of(good, (uint64_t)SK_ST_MAX_HEADER + 1);
  refused("a header above the format's limit", "h/model.safetensors|100000001");
  file_of(" {}", 3);
  refused("a space before the header", "h/model.safetensors|begin with '{'");
  file_of("[1, 2]", 6);
  refused("a header that is a list", "h/model.safetensors|begin with '{'");
  file_of("{\"a\": }", 7);
  refused("a header that is no JSON", "h/model.safetensors|not valid JSON|line 1");
  file_of("{\"a\\u0000b\": 1}", 15);
  refused("NUL in a name", "h/model.safetensors|not valid JSON");
  file_of("{\"\xff\xfe\": 1}", 9);
  refused("a name that is no UTF-8", "h/model.safetensors|not valid JSON");
  char *deep = sk_malloc(200001);
  memset(deep, '[', 200000);
  memcpy(deep, "{\"a\":", 5);
  deep[200000] = 0;
  file_of(deep, 200000);
  refused("200000 brackets", "h/model.safetensors|not valid JSON");
  sk_free(deep);
  file_of("{}", 2);
  refused("no tensors, but data", "h/model.safetensors|belong to no tensor");
}

static void cut_file(const char *what, int64_t size, const char *words) {
  file_of(good, strlen(good));
  if (tap_rank == 0) SK_CHECK(truncate("h/model.safetensors", size) == 0, "truncate");
  refused(what, words);
}

static void test_files(void) {
  const int64_t all = 8 + (int64_t)strlen(good) + bytes;
  cut_file("an empty file", 0, "h/model.safetensors|fewer than 8 bytes");
  cut_file("seven bytes", 7, "h/model.safetensors|fewer than 8 bytes");
  cut_file("the length alone", 8, "h/model.safetensors|truncated");
  cut_file("half a header", 100, "h/model.safetensors|truncated");
  cut_file("the last byte missing", all - 1, "h/model.safetensors|\"lm_head.weight\"|truncated");
  cut_file("a byte too many", all + 1, "h/model.safetensors|last 1 bytes belong to no tensor");
  fresh();
  refused("no weights", "h: has neither");
  fresh();
  if (tap_rank == 0) hf_put("h/pytorch_model.bin", "x", 1);
  refused("pickled weights", "h: has neither|pytorch_model.bin");
  fresh();
  if (tap_rank == 0) SK_CHECK(mkdir("h/model.safetensors", 0777) == 0, "mkdir");
  refused("a folder as file", "h/model.safetensors: not a regular file");
  fresh();
  if (tap_rank == 0) SK_CHECK(mkfifo("h/model.safetensors", 0666) == 0, "mkfifo");
  refused("a pipe as file", "h/model.safetensors: not a regular file");
  file_of(good, strlen(good));
  if (tap_rank == 0) hf_put("h/model.safetensors.index.json", "{}", 2);
  refused("both a file and an index", "h: has both");
  file_of(good, strlen(good));
  if (tap_rank == 0) unlink("h/config.json");
  refused("no config.json", "h/config.json");
}

/* Two files and an index, its text with `old` replaced. */
static void index_of(const char *old, const char *new) {
  fresh();
  if (tap_rank != 0) return;
  hf_write("h/a.safetensors", n / 2, tensor);
  hf_write("h/b.safetensors", n - n / 2, tensor + n / 2);
  char *text = sk_strdup("{\"metadata\":{},\"weight_map\":{");
  for (int i = 0; i < n; i++) {
    char *more = sk_strf("%s%s\"%s\":\"%s.safetensors\"", text, i ? "," : "", tensor[i].name, i < n / 2 ? "a" : "b");
    sk_free(text);
    text = more;
  }
  char *all = sk_strf("%s}}", text), *at = strstr(all, old);
  SK_CHECK(at, "%s is not in the index", old);
  char *changed = sk_strf("%.*s%s%s", (int)(at - all), all, new, at + strlen(old));
  hf_put("h/model.safetensors.index.json", changed, strlen(changed));
  sk_free(text);
  sk_free(all);
  sk_free(changed);
}

static void index_case(const char *what, const char *old, const char *new, const char *words) {
  index_of(old, new);
  refused(what, words);
}

#define IN_A "\"model.embed_tokens.weight\":\"a.safetensors\""
#define TO(file) "\"model.embed_tokens.weight\":\"" file "\""
#define INDEX "h/model.safetensors.index.json|\"model.embed_tokens.weight\"|"

static void test_index(void) {
  sk_err e = {0};
  index_of(IN_A, IN_A);
  meet();
  tap_ok(sk_convert_from_hf(MPI_COMM_WORLD, "h", "ck", &e) == SK_OK, "two files and an index are read %s", e.msg);
  meet();
  if (tap_rank == 0) sk_fs_remove("ck");
  index_case("a path upwards", IN_A, TO("../a.safetensors"), INDEX "../a.safetensors");
  index_case("an absolute path", IN_A, TO("/etc/a.safetensors"), INDEX "/etc/a.safetensors");
  index_case("a folder", IN_A, TO("x/a.safetensors"), INDEX "plain name");
  index_case("a hidden file", IN_A, TO(".a.safetensors"), INDEX "plain name");
  index_case("another kind of file", IN_A, TO("a.bin"), INDEX "a.bin");
  index_case("an empty name", IN_A, TO(""), INDEX "plain name");
  index_case("a file that is a number", IN_A, "\"model.embed_tokens.weight\":1", INDEX "not a text");
  index_case("a file that is not there", IN_A, TO("c.safetensors"), "h/c.safetensors");
  index_case("the wrong file", IN_A, TO("b.safetensors"), "h/a.safetensors|\"model.embed_tokens.weight\"|b.safetensors");
  index_case("a tensor left out", IN_A ",", "", "h/a.safetensors|\"model.embed_tokens.weight\"|does not name");
  index_case("a tensor that is nowhere", IN_A, IN_A ",\"y\":\"a.safetensors\"", "h/a.safetensors|\"y\"|lacks");
  index_case("a tensor twice", IN_A, IN_A "," IN_A, "h/model.safetensors.index.json|twice: \"model.embed_tokens.weight\"");
  index_case("no map", "weight_map", "weights", "h/model.safetensors.index.json|no weight_map");
  index_case("a map that is a list", "\"weight_map\":{", "\"weight_map\":[],\"x\":{", "h/model.safetensors.index.json|no weight_map");
  index_case("no JSON", "{\"metadata\"", "{metadata", "h/model.safetensors.index.json|not valid JSON");
  index_of(IN_A, IN_A);
  if (tap_rank == 0) {
    hf_write("h/b.safetensors", n - n / 2 + 1, tensor + n / 2 - 1);
  }
  refused("a tensor in two files", "h/b.safetensors|places in a.safetensors");
}

/* What the format allows is read: padding, any order, zero sizes, no dimensions. */
static void test_legal(void) {
  sk_err e = {0};
  sk_st_file f;
  static const char text[] = "{\"b\":{\"data_offsets\":[4,4],\"shape\":[3,0],\"dtype\":\"BF16\"},"
                             "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
                             "\"c\":{\"dtype\":\"F4\",\"shape\":[4],\"data_offsets\":[4,6]}}   ";
  bool ok = sk_st_parse(text, strlen(text), 6, "legal", &f, &e) == SK_OK && f.n == 3;
  tap_ok(ok && sk_st_find(&f, "a")->rank == 0 && sk_st_find(&f, "b")->end == 4 && !sk_st_find(&f, "d"),
         "scalars, empty tensors, sub-byte types and padding are read %s", e.msg);
  sk_st_free(&f);
  char *padded = sk_strf("%s     ", good);
  file_of(padded, strlen(padded));
  meet();
  tap_ok(sk_convert_from_hf(MPI_COMM_WORLD, "h", "ck", &e) == SK_OK, "a padded header is read %s", e.msg);
  meet();
  if (tap_rank == 0) sk_fs_remove("ck");
  sk_free(padded);
  char *tied = sk_strf("%.*s, \"tie_word_embeddings\": true}", (int)strlen(config) - 1, config);
  file_of(good, strlen(good));
  if (tap_rank == 0) hf_put("h/config.json", tied, strlen(tied));
  meet();
  tap_ok(sk_convert_from_hf(MPI_COMM_WORLD, "h", "ck", &e) == SK_OK, "a tied lm_head is left out %s", e.msg);
  meet();
  if (tap_rank == 0) sk_fs_remove("ck");
  sk_free(tied);
}

static void model_case(const char *what, const char *text, const char *words) {
  file_of(good, strlen(good));
  if (tap_rank == 0) hf_put("h/config.json", text, strlen(text));
  sk_err e = {0};
  meet();
  int code = sk_convert_from_hf(MPI_COMM_WORLD, "h", "ck", &e);
  tap_ok(code != SK_OK && strstr(e.msg, words) && access("ck", F_OK) != 0, "%s: %s", what, e.msg);
}

static void test_config(void) {
  model_case("another kind of model", "{\"model_type\": \"llama\", \"hidden_size\": 4}", "falcon_h1");
  model_case("a config.json that is no JSON", "{\"model_type\": ", "h/config.json");
  model_case("sizes that fit nothing", "{\"model_type\": \"falcon_h1\", \"hidden_size\": 4, \"mamba_d_ssm\": 5}", "mamba");
  char *more = sk_strf("%.*s, \"num_hidden_layers\": 2}", (int)strlen(config) - 1, config);
  char *at = strstr(more, "\"num_hidden_layers\": 1,");
  memset(at, ' ', strlen("\"num_hidden_layers\": 1,"));
  file_of(good, strlen(good));
  if (tap_rank == 0) hf_put("h/config.json", more, strlen(more));
  refused("a layer too few", "\"model.layers.1.|is missing");
  sk_free(more);
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  char here[] = "/tmp/saker-safetensors.XXXXXX";
  if (tap_rank == 0) SK_CHECK(mkdtemp(here), "no folder in /tmp");
  SK_MPI(MPI_Bcast(here, sizeof here, MPI_CHAR, 0, MPI_COMM_WORLD));
  SK_CHECK(chdir(here) == 0, "%s", here);
  draw();
  test_legal();
  test_tensors();
  test_headers();
  test_files();
  test_index();
  test_config();
  meet();
  if (tap_rank == 0 && !sk_fs_remove(here)) tap_diag("%s is left", here);
  hf_free(tensor, n);
  free(good);
  return tap_done();
}
