/* `saker data info`: counts, a histogram of the documents' lengths, and samples as text. */
#include "io/fsutil.h"
#include "io/tokenizer.h"
#include "io/tokens.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SHOWN = 160 /* tokens of a sample */, BAR = 40 /* characters */ };

static int ascending(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return x < y ? -1 : x > y;
}

/* How many documents have 1, 2-3, 4-7, ... tokens; len[n] ascends. */
static void print_histogram(const int64_t *len, int64_t n) {
  int64_t count[64] = {0}, most = 1;
  for (int64_t i = 0; i < n; i++) {
    int bin = 0;
    while (len[i] >> (bin + 1)) bin++;
    if (++count[bin] > most) most = count[bin];
  }
  sk_say("  tokens in a document      documents");
  for (int bin = 0; bin < 63; bin++) {
    int64_t lo = (int64_t)1 << bin, hi = lo + (lo - 1);
    if (hi < len[0] || lo > len[n - 1]) continue;
    int width = (int)((double)count[bin] / (double)most * BAR + 0.5);
    if (count[bin] > 0 && width == 0) width = 1;
    char bar[BAR + 1] = "";
    memset(bar, '#', (size_t)width);
    sk_say("  %10lld - %-10lld %11lld  %s", (long long)lo, (long long)hi, (long long)count[bin],
           bar);
  }
}

/* A line of text that is built up, with control characters made visible. */
typedef struct line {
  char *text;
  size_t n;
} line;

static void show(void *to, const char *bytes, size_t n) {
  line *l = to;
  l->text = sk_realloc(l->text, l->n + 4 * n + 1);
  for (size_t i = 0; i < n; i++) {
    unsigned char c = (unsigned char)bytes[i];
    if (c == '\n')
      l->n += (size_t)sprintf(l->text + l->n, "\\n");
    else if (c < 32 || c == 127)
      l->n += (size_t)sprintf(l->text + l->n, "\\x%02x", c);
    else
      l->text[l->n++] = (char)c;
  }
  l->text[l->n] = 0;
}

static void print_sample(sk_tokens *t, const sk_tokenizer *tok, int64_t d, sk_err *e) {
  int32_t ids[SHOWN];
  const sk_tokens_info *x = sk_tokens_get_info(t);
  int64_t all = sk_tokens_doc_length(t, d), n = all < SHOWN ? all : SHOWN;
  line l = {0};
  sk_detok decoder = {.write = show, .to = &l};
  if (sk_tokens_read(t, sk_tokens_doc_first(t, d), n, ids, e) != SK_OK) return;
  show(&l, "", 0);
  for (int64_t i = 0; i < n; i++) {
    char text[16] = "";
    if (ids[i] == x->eos_id) show(&l, "<end>", 5);
    else if (tok) sk_detok_push(&decoder, tok, ids[i]);
    else show(&l, text, (size_t)snprintf(text, sizeof text, "%s%d", i ? " " : "", (int)ids[i]));
  }
  sk_detok_finish(&decoder);
  sk_say("  document %lld: %s%s", (long long)d, l.text, n < all ? " ..." : "");
  sk_free(l.text);
}

static void print_counts(sk_tokens *t, const char *path) {
  const sk_tokens_info *x = sk_tokens_get_info(t);
  int64_t *len = sk_malloc((size_t)x->documents * sizeof *len);
  for (int64_t i = 0; i < x->documents; i++) len[i] = sk_tokens_doc_length(t, i);
  qsort(len, (size_t)x->documents, sizeof *len, ascending);
  sk_say("%s", path);
  sk_say("  tokens       %lld (%s), uint%d", (long long)x->tokens, sk_si((double)x->tokens),
         8 * x->width);
  sk_say("  documents    %lld", (long long)x->documents);
  sk_say("  length       shortest %lld, median %lld, mean %.1f, longest %lld tokens",
         (long long)len[0], (long long)len[x->documents / 2],
         (double)x->tokens / (double)x->documents, (long long)len[x->documents - 1]);
  if (x->eos_id >= 0)
    sk_say("  vocabulary   %lld ids, %lld ends a document", (long long)x->vocab_size,
           (long long)x->eos_id);
  else
    sk_say("  vocabulary   %lld ids, none ends a document", (long long)x->vocab_size);
  sk_say("  tokenizer    %s%s%s", x->tokenizer, x->hash[0] ? ", xxh3 " : "", x->hash);
  sk_say("  source       %s", x->source);
  sk_say("  created by   %s", x->created_by);
  print_histogram(len, x->documents);
  sk_free(len);
}

/* The tokenizer that the data set names; NULL where it is not known. */
static sk_tokenizer *find_tokenizer(sk_tokens *t, sk_err *e) {
  const char *name = sk_tokens_get_info(t)->tokenizer;
  sk_tokenizer *tok = NULL;
  size_t n;
  if (strcmp(name, "bytes") == 0) {
    sk_tokenizer_open(MPI_COMM_SELF, name, NULL, &tok, e);
    return tok;
  }
  char *json = sk_tokens_tokenizer(t, &n, e);
  if (json) sk_tokenizer_parse(json, n, name, NULL, &tok, e);
  sk_free(json);
  return tok;
}

int sk_tokens_print_info(const char *path, sk_err *e) {
  sk_tokens *t;
  if (sk_tokens_open(MPI_COMM_SELF, path, &t, e) != SK_OK) return e->code;
  int64_t n = sk_tokens_get_info(t)->documents, shown[3] = {0, n / 2, n - 1};
  print_counts(t, path);
  sk_tokenizer *tok = find_tokenizer(t, e);
  if (!tok && !e->code) sk_say("  (the data set does not hold its tokenizer: samples are ids)");
  for (int i = 0; i < 3 && !e->code; i++)
    if (i == 0 || shown[i] != shown[i - 1]) print_sample(t, tok, shown[i], e);
  sk_tokenizer_close(tok);
  sk_tokens_close(t);
  return e->code;
}
