/* tokens_check.c: `saker data check`. */
#include "io/tokens.h"
#include <stdio.h>
#include <string.h>

enum { PIECE = 1 << 20, SHOWN = 4 };

typedef struct tally {
  sk_tokens *t;
  int64_t read, bad, open_ends; /* tokens; outside the vocabulary; documents that do not end in eos_id */
  double said;                  /* when progress was last shown */
  char where[SHOWN][64];
} tally;

static void count_bad(tally *k, int64_t first, int64_t n, const int32_t *ids) {
  const uint32_t vocab = (uint32_t)sk_tokens_get_info(k->t)->vocab_size;
  for (int64_t i = 0; i < n; i++) {
    if ((uint32_t)ids[i] < vocab) continue;
    if (k->bad < SHOWN)
      snprintf(k->where[k->bad], sizeof k->where[0], "token %lld is %u", (long long)(first + i), (unsigned)ids[i]);
    k->bad++;
  }
}

/* start: of tokens first .. first+n. Token i ends its document when the next one starts another. */
static void count_ends(tally *k, int64_t first, int64_t n, const int32_t *ids, const int64_t *start, bool more) {
  const int64_t eos = sk_tokens_get_info(k->t)->eos_id;
  for (int64_t i = 0; i < n; i++) {
    bool end = i + 1 < n || more ? start[i + 1] == first + i + 1 : true;
    k->open_ends += end && eos >= 0 && ids[i] != eos;
  }
}

static void check_part(tally *k, int64_t lo, int64_t hi, sk_err *e) {
  const sk_tokens_info *x = sk_tokens_get_info(k->t);
  int32_t *ids = sk_malloc(PIECE * sizeof *ids);
  int64_t *start = sk_malloc((PIECE + 1) * sizeof *start);
  for (int64_t at = lo; at < hi && !e->code; at += PIECE) {
    int64_t n = hi - at < PIECE ? hi - at : PIECE;
    bool more = at + n < x->tokens;
    if (sk_tokens_read_raw(k->t, at, n, ids, e) != SK_OK) break;
    sk_tokens_doc_start(k->t, at, n + more, start);
    count_bad(k, at, n, ids);
    count_ends(k, at, n, ids, start, more);
    k->read += n;
    if (sk_base_rank() != 0 || sk_now() - k->said < 5) continue;
    k->said = sk_now();
    sk_say("  %.0f %%", 100 * (double)(at + n - lo) / (double)(hi - lo));
  }
  sk_free(start);
  sk_free(ids);
}

/* The places of this rank, as an error that the ranks agree on. */
static void judge(const tally *k, const char *path, sk_err *e) {
  if (!k->bad || e->code) return;
  char list[SHOWN * 66] = "";
  for (int64_t i = 0; i < k->bad && i < SHOWN; i++) {
    size_t at = strlen(list);
    snprintf(list + at, sizeof list - at, "%s%s", i ? ", " : "", k->where[i]);
  }
  sk_fail(e, SK_FAILED, "%s: %s%s; the vocabulary has only %lld ids (damaged, or built with another tokenizer)", path,
          list, k->bad > SHOWN ? ", ..." : "", (long long)sk_tokens_get_info(k->t)->vocab_size);
}

int sk_tokens_check(MPI_Comm comm, const char *path, sk_err *e) {
  int rank, size;
  tally k = {.said = sk_now()};
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &size);
  if (sk_tokens_open(comm, path, &k.t, e) != SK_OK) return e->code; /* checks the offsets, all of them */
  const sk_tokens_info *x = sk_tokens_get_info(k.t);
  int64_t pieces = (x->tokens + PIECE - 1) / PIECE;
  int64_t lo = pieces * rank / size * PIECE, hi = pieces * (rank + 1) / size * PIECE;
  check_part(&k, lo < x->tokens ? lo : x->tokens, hi < x->tokens ? hi : x->tokens, e);
  judge(&k, path, e);
  int64_t sum[3] = {k.read, k.bad, k.open_ends};
  SK_MPI(MPI_Allreduce(MPI_IN_PLACE, sum, 3, MPI_INT64_T, MPI_SUM, comm));
  if (sk_agree(comm, e) == SK_OK) {
    sk_say("%s: good: %lld tokens, all below %lld; %lld documents in order", path, (long long)sum[0],
           (long long)x->vocab_size, (long long)x->documents);
    if (sum[2]) sk_say("  note: %lld documents do not end in %lld", (long long)sum[2], (long long)x->eos_id);
  } else if (sum[1]) {
    size_t at = strlen(e->msg);
    snprintf(e->msg + at, sizeof e->msg - at, "\n%lld of %lld tokens are outside.", (long long)sum[1], (long long)x->tokens);
  }
  sk_tokens_close(k.t);
  return e->code;
}
