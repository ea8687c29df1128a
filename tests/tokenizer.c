/* tokenizer.c: byte-level BPE against the ids that PyPI's `tokenizers` gave for tests/ref/tokenizer (made by
 * tests/tokenizer_compare.py --fixture; `make check-tokenizer` compares with the library itself), decoding piece by piece,
 * places where text may be cut, and everything that a tokenizer.json is refused for. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/tap.h"
#include "io/tokenizer.h"
#include "io/utf8.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static char *file(const char *name) {
  const char *top = getenv("SAKER_SRCDIR");
  char *path = sk_strf("%s/tests/ref/tokenizer/%s", top ? top : ".", name), *text = NULL;
  sk_err e = {0};
  SK_CHECK(sk_bcast_file(MPI_COMM_WORLD, path, 1 << 20, &text, &e) == SK_OK, "%s", e.msg);
  sk_free(path);
  return text;
}

static sk_tokenizer *load(const char *name) {
  sk_tokenizer *t = NULL;
  sk_err e = {0};
  char *text = file(name);
  SK_CHECK(sk_tokenizer_parse(text, strlen(text), name, NULL, &t, &e) == SK_OK, "%s", e.msg);
  sk_free(text);
  return t;
}

static char *unhex(const char *hex, size_t *n) {
  *n = strlen(hex) / 2;
  char *out = sk_malloc(*n);
  for (size_t i = 0; i < *n; i++) out[i] = (char)strtol((char[]){hex[2 * i], hex[2 * i + 1], 0}, NULL, 16);
  return out;
}

/* ---- ids and text ---- */

static bool same_ids(const sk_ids *got, const json_t *want) {
  bool same = got->n == (int64_t)json_array_size(want);
  for (int64_t i = 0; same && i < got->n; i++) same = got->at[i] == json_integer_value(json_array_get(want, (size_t)i));
  return same;
}

typedef struct written {
  char text[1 << 16];
  size_t n;
  bool whole; /* every write had whole characters only */
} written;

static void take(void *to, const char *bytes, size_t n) {
  written *w = to;
  SK_CHECK(w->n + n < sizeof w->text, "the test's buffer is too small");
  memcpy(w->text + w->n, bytes, n);
  w->n += n;
  w->whole = w->whole && n > 0 && sk_utf8_valid(bytes, n) == n;
}

static bool decodes(const sk_tokenizer *t, const sk_ids *ids, const char *hex) {
  static written w;
  size_t n;
  w = (written){.whole = true};
  sk_detok d = {.write = take, .to = &w};
  for (int64_t i = 0; i < ids->n; i++) sk_detok_push(&d, t, ids->at[i]);
  sk_detok_finish(&d);
  char *want = unhex(hex, &n);
  bool same = w.whole && n == w.n && memcmp(w.text, want, n) == 0;
  sk_free(want);
  return same;
}

static void expected(const char *style, const json_t *cases) {
  char *name = sk_strf("%s.json", style);
  sk_tokenizer *t = load(name);
  size_t i, bad = 0, texts = 0, badly = 0;
  json_t *x;
  sk_ids ids = {0};
  for (int again = 0; again < 2; again++) /* the second time out of the cache */
    json_array_foreach(cases, i, x) {
      sk_err e = {0};
      size_t n;
      char *text = unhex(json_string_value(json_object_get(x, "hex")), &n);
      const char *decoded = json_string_value(json_object_get(x, "decoded"));
      ids.n = 0;
      bool ok = sk_tokenizer_encode(t, text, n, &ids, &e) == SK_OK && same_ids(&ids, json_object_get(x, "ids"));
      if (!ok && !bad++) tap_diag("%s: text %zu: %s%.*s", style, i, e.msg, (int)n, text);
      if (decoded) texts++, badly += !decodes(t, &ids, decoded);
      sk_free(text);
    }
  tap_ok(bad == 0 && json_array_size(cases) > 40, "%s: the ids of %zu texts, twice", style, json_array_size(cases));
  tap_ok(badly == 0 && texts > 5, "%s: %zu texts decoded token by token, whole characters at a time", style, texts);
  sk_free(ids.at);
  sk_tokenizer_close(t);
  sk_free(name);
}

/* Encoding part by part, cut wherever it is allowed, gives the ids of the whole. */
static void cuts(const char *name, bool cuttable) {
  sk_tokenizer *t = load(name);
  char *text = file("../../../README.md");
  size_t n = strlen(text), parts = 0;
  sk_ids whole = {0}, apart = {0};
  sk_err e = {0};
  sk_tokenizer_encode(t, text, n, &whole, &e);
  for (size_t at = 0, end; at < n; at = end, parts++) {
    end = sk_tokenizer_cut(t, text, at + 1, n);
    sk_tokenizer_encode(t, text + at, end - at, &apart, &e);
  }
  bool same = !e.code && whole.n == apart.n && memcmp(whole.at, apart.at, (size_t)whole.n * sizeof *whole.at) == 0;
  size_t last = sk_tokenizer_last_cut(t, text, n);
  tap_ok(same && sk_tokenizer_cuttable(t) == cuttable && (cuttable ? parts > 50 && last > n / 2 : parts == 1 && last == 0),
         "%s: %zu parts give the ids of the whole", name, parts);
  sk_free(whole.at);
  sk_free(apart.at);
  sk_free(text);
  sk_tokenizer_close(t);
}

/* ---- what is refused ---- */

/* A small tokenizer.json, to be spoilt: 256 bytes, two merges, one added token. */
static json_t *small(void) {
  json_t *vocab = json_object();
  for (unsigned b = 0, next = 256; b < 256; b++) {
    bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    char key[5] = "";
    sk_utf8_put(printable ? b : next++, key);
    json_object_set_new(vocab, key, json_integer(b));
  }
  json_object_set_new(vocab, "th", json_integer(256));
  json_object_set_new(vocab, "the", json_integer(257));
  json_t *j = json_pack(
      "{s:[{s:i,s:s,s:b,s:b,s:b,s:b,s:b}],s:n,s:{s:s,s:b,s:b,s:b},s:{s:s},s:{s:s,s:o,s:[s,[s,s]]}}", "added_tokens", "id", 258,
      "content", "</s>", "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 1, "normalizer", "pre_tokenizer",
      "type", "ByteLevel", "add_prefix_space", 0, "use_regex", 1, "trim_offsets", 1, "decoder", "type", "ByteLevel", "model",
      "type", "BPE", "vocab", vocab, "merges", "t h", "th", "e");
  SK_CHECK(j, "json_pack");
  return j;
}

/* Puts the JSON `value` at a path like "model.vocab.x" or "added_tokens.0.id". */
static void put(json_t *j, const char *path, const char *value) {
  char part[64];
  size_t n = strcspn(path, ".");
  snprintf(part, sizeof part, "%.*s", (int)n, path);
  json_t *next = json_is_array(j) ? json_array_get(j, (size_t)atoi(part)) : json_object_get(j, part);
  if (path[n]) {
    put(next, path + n + 1, value);
    return;
  }
  json_t *x = json_loads(value, JSON_DECODE_ANY, NULL);
  SK_CHECK(x, "bad JSON in the test: %s", value);
  if (!json_is_array(j)) json_object_set_new(j, part, x);
  else if (next) json_array_set_new(j, (size_t)atoi(part), x);
  else json_array_append_new(j, x);
}

/* One message, of one line, that has the file's name and `says`. */
static bool told(const sk_err *e, const char *says) {
  bool ok = e->code != SK_OK && strstr(e->msg, says) && strncmp(e->msg, "x.json:", 7) == 0;
  if (!ok) tap_diag("code %d, '%s' wanted: %s", e->code, says, e->msg);
  return ok;
}

static bool refused(const char *path, const char *value, const char *says) {
  json_t *j = small();
  sk_tokenizer *t = NULL;
  sk_err e = {0};
  if (path) put(j, path, value);
  char *text = json_dumps(j, JSON_COMPACT);
  sk_tokenizer_parse(text, strlen(text), "x.json", NULL, &t, &e);
  bool ok = says ? told(&e, says) && !t : e.code == SK_OK && t;
  if (!says && !ok) tap_diag("%s", e.msg);
  sk_tokenizer_close(t);
  free(text);
  json_decref(j);
  return ok;
}

static void refusals(void) {
  static const char *const c[][3] = {
      {NULL, NULL, NULL},
      {"model.byte_fallback", "true", NULL},
      {"model.vocab.hole", "300", "</s> has the id 258; the next free one is 259"},
      {"model.vocab.hole", "259", "</s> has the id 258; the next free one is 259"},
      {"model.vocab.th", "257", "the id 257 is given twice"},
      {"model.vocab.huge", "4000000000", "the id of huge is not a number from 0 to"},
      {"model.vocab.huge", "1000000000000000000000.0", "the id of huge is not a number"},
      {"model.vocab.neg", "-1", "the id of neg is not a number"},
      {"model.vocab.far", "90000", "the id of far is not a number from 0 to 66053"},
      {"model.vocab", "{\"a\": 0}", "no token for the byte 0x00"},
      {"model.vocab", "{}", "not an object of 1 to"},
      {"model.vocab", "[1]", "not an object of 1 to"},
      {"model.merges", "{}", "model.merges is not a list"},
      {"model.merges.2", "\"t zz\"", "model.merges[2]: zz is not in model.vocab"},
      {"model.merges.2", "\"h e\"", "model.merges[2]: he is not in model.vocab"},
      {"model.merges.2", "\"the\"", "model.merges[2] is not a pair"},
      {"model.merges.2", "\"t h e\"", "model.merges[2] is not a pair"},
      {"model.merges.2", "[\"t\", 7]", "model.merges[2] is not a pair"},
      {"model.merges.2", "7", "model.merges[2] is not a pair"},
      {"model.type", "\"Unigram\"", "the model Unigram is not supported"},
      {"model.dropout", "0.1", "model.dropout is not supported"},
      {"model.end_of_word_suffix", "\"</w>\"", "model.end_of_word_suffix is not supported"},
      {"model.continuing_subword_prefix", "\"##\"", "model.continuing_subword_prefix is not supported"},
      {"model", "7", "the model without a type is not supported"},
      {"normalizer", "{\"type\": \"Lowercase\"}", "the normalizer Lowercase is not supported"},
      {"normalizer", "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFC\"}, {\"type\": \"Prepend\"}]}",
       "the normalizer Prepend is not supported"},
      {"pre_tokenizer", "null", "has no ByteLevel"},
      {"pre_tokenizer", "{\"type\": \"Metaspace\"}", "the pre-tokenizer Metaspace is not supported"},
      {"pre_tokenizer", "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"ByteLevel\"}, {\"type\": \"ByteLevel\"}]}",
       "ByteLevel twice"},
      {"pre_tokenizer", "{\"type\": \"Split\", \"pattern\": {}, \"behavior\": \"Isolated\"}", "Split has no pattern"},
      {"pre_tokenizer", "{\"type\": \"Split\", \"pattern\": {\"String\": \"x\"}, \"behavior\": \"Odd\"}", "behavior Odd is not known"},
      {"decoder", "null", "the decoder is missing"},
      {"decoder", "{\"type\": \"WordPiece\"}", "the decoder WordPiece is not supported"},
      {"added_tokens", "7", "added_tokens is not a list"},
      {"added_tokens.0.content", "7", "added_tokens[0] has no \"content\""},
      {"added_tokens.0.id", "300", "</s> has the id 300; the next free one is 258"},
      {"added_tokens.0.id", "5", "</s> has the id 5; the next free one is 258"},
      {"added_tokens.0.content", "\"th\"", "th has the id 258; in model.vocab it is 256"}};
  for (size_t i = 0; i < sizeof c / sizeof *c; i++)
    tap_ok(refused(c[i][0], c[i][1], c[i][2]), "%s: %s", c[i][0] ? c[i][0] : "as it is", c[i][2] ? c[i][2] : "accepted");
}

static void regexes(void) {
  static const char *const c[][2] = {
      {"\\\\p{Han}+|\\\\s", NULL},       {"[^\\\\r\\\\n\\\\p{L}]?+a{2,3}(?i:x)$", NULL}, {"^\\\\u4e00|\\\\x{1F600}", NULL},
      {"\\\\w+", "`\\w`"},               {"\\\\bx", "`\\b`"},            {"(?<n>x)", "`(?<n`"},
      {"(?i)x", "`(?i)`"},               {"(x)\\\\1", "`\\1`"},          {"[[:alpha:]]", "`[:`"},
      {"[a&&b]", "`&&`"},                {"a{1,2}+", "`{1,2}+`"},        {"a{,3}", "`{,`"},
      {"\\\\p{^L}", "`\\p{^L}`"},        {"\\\\p{Klingon}", "unknown"},  {"(a", "`(`"},
      {"a)", "`)`"},                     {"[a", "`[a`"},                 {"", "1 to 8192"},
      {"\\\\xff", "`\\xff`"},            {"a**", "`*`"},                 {"(?<=a+)b", "lookbehind"},
      {"\\\\", "is not supported"}};
  for (size_t i = 0; i < sizeof c / sizeof *c; i++) {
    char *split = sk_strf("{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"behavior\": \"Isolated\", "
                          "\"pattern\": {\"Regex\": \"%s\"}}, {\"type\": \"ByteLevel\"}]}", c[i][0]);
    tap_ok(refused("pre_tokenizer", split, c[i][1]), "regex %s: %s", c[i][0], c[i][1] ? c[i][1] : "accepted");
    sk_free(split);
  }
}

/* Texts that are no tokenizer at all, and a regex that backtracks without end. */
static void hostile(void) {
  sk_tokenizer *t = NULL;
  sk_err e = {0};
  char *deep = sk_malloc(100001);
  memset(deep, '[', 100000);
  deep[100000] = 0;
  const char *const bad[][2] = {{"", "not a tokenizer.json"}, {"{\"a\": 1, \"a\": 2}", "duplicate object key"}, {deep, "depth"},
                                {"7", "not a tokenizer.json"}, {"{\"model\": \"\xff\"}", "not a tokenizer.json"}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    e = (sk_err){0};
    sk_tokenizer_parse(bad[i][0], strlen(bad[i][0]), "x.json", NULL, &t, &e);
    tap_ok(told(&e, bad[i][1]) && !t, "%s", bad[i][1]);
  }
  sk_free(deep);
  json_t *j = small();
  put(j, "pre_tokenizer", "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"behavior\": \"Isolated\", "
      "\"pattern\": {\"Regex\": \"(x+x+)+[yz]\"}}, {\"type\": \"ByteLevel\"}]}");
  char *text = json_dumps(j, 0), many[5000];
  memset(many, 'x', sizeof many);
  sk_ids ids = {0};
  e = (sk_err){0};
  SK_CHECK(sk_tokenizer_parse(text, strlen(text), "x.json", NULL, &t, &e) == SK_OK, "%s", e.msg);
  double begin = sk_now();
  sk_tokenizer_encode(t, many, sizeof many, &ids, &e);
  tap_ok(told(&e, "its regex is too costly") && sk_now() - begin < 30, "(x+x+)+[yz] on 5000 x: given up after a limit of steps");
  sk_tokenizer_close(t);
  e = (sk_err){0};
  sk_tokenizer_parse(text, strlen(text), "x.json", "<eot>", &t, &e);
  tap_ok(told(&e, "no token <eot>"), "an end of document that is not in the vocabulary");
  sk_free(ids.at);
  free(text);
  json_decref(j);
}

static void built_in(void) {
  sk_tokenizer *t = NULL;
  sk_err e = {0};
  sk_ids ids = {0};
  SK_CHECK(sk_tokenizer_open(MPI_COMM_WORLD, "bytes", NULL, &t, &e) == SK_OK, "%s", e.msg);
  sk_tokenizer_encode(t, "a\xff\0", 3, &ids, &e);
  tap_ok(ids.n == 3 && ids.at[0] == 'a' && ids.at[1] == 255 && ids.at[2] == 0 && sk_tokenizer_vocab(t) == 257 &&
             sk_tokenizer_eos(t) == 256, "bytes: ids are bytes, 256 ends a document");
  sk_tokenizer_close(t);
  sk_free(ids.at);
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  char *text = file("expected.json");
  json_t *all = json_loads(text, 0, NULL), *cases;
  const char *style;
  SK_CHECK(json_object_size(all) == 5, "expected.json");
  json_object_foreach(all, style, cases) expected(style, cases);
  cuts("gpt2.json", true);
  cuts("llama3.json", false); /* its added tokens strip what is before them */
  json_decref(all);
  sk_free(text);
  refusals();
  regexes();
  hostile();
  built_in();
  return tap_done();
}
