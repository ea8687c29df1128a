#include "src/timer.h"

static const char *const label[SK_T_COUNT] = {
    [SK_T_OTHER] = "other",
    [SK_T_DATA] = "data",
    [SK_T_EMBED] = "embedding",
    [SK_T_NORM] = "norms",
    [SK_T_ATTENTION] = "attention",
    [SK_T_MAMBA] = "mamba",
    [SK_T_MLP] = "mlp",
    [SK_T_HEAD] = "head and loss",
    [SK_T_BACKWARD + SK_T_EMBED] = "embedding backward",
    [SK_T_BACKWARD + SK_T_NORM] = "norms backward",
    [SK_T_BACKWARD + SK_T_ATTENTION] = "attention backward",
    [SK_T_BACKWARD + SK_T_MAMBA] = "mamba backward",
    [SK_T_BACKWARD + SK_T_MLP] = "mlp backward",
    [SK_T_BACKWARD + SK_T_HEAD] = "head backward",
    [SK_T_TP] = "tp exchange",
    [SK_T_CP] = "cp exchange",
    [SK_T_PP] = "pipeline exchange",
    [SK_T_REDUCE] = "gradient reduce",
    [SK_T_OPTIMIZER] = "optimizer",
    [SK_T_GATHER] = "weight gather",
    [SK_T_WAIT] = "agreement, waiting",
    [SK_T_EVAL] = "evaluation",
    [SK_T_CHECKPOINT] = "checkpoint",
    [SK_T_METRICS] = "metrics",
};

const char *sk_timer_label(int section) {
  return section >= 0 && section < SK_T_COUNT && label[section] ? label[section] : "";
}

void sk_timer_start(sk_timer *t) {
  *t = (sk_timer){.since = sk_now(), .beat = t->beat, .range = t->range};
  t->calls[SK_T_OTHER] = 1;
}

static void charge(sk_timer *t) {
  double now = sk_now();
  t->total[t->stack[t->depth]] += now - t->since;
  t->since = now;
}

static void beat(sk_timer *t) {
  if (!t->beat) return;
  atomic_store_explicit(&t->beat->section, t->stack[t->depth], memory_order_relaxed);
  atomic_fetch_add_explicit(&t->beat->count, 1, memory_order_release);
}

void sk_timer_begin(sk_timer *t, int section) {
  if (!t) return;
  charge(t);
  SK_CHECK(t->depth + 1 < (int)(sizeof t->stack / sizeof t->stack[0]), "timer sections nest too deep");
  t->stack[++t->depth] = section;
  t->began[t->depth] = t->since;
  t->calls[section]++;
  beat(t);
  if (t->range) t->range(label[section]);
}

void sk_timer_end(sk_timer *t) {
  if (!t) return;
  charge(t);
  if (t->span && t->n_spans < t->cap)
    t->span[t->n_spans++] = (sk_span){t->began[t->depth], t->since, t->stack[t->depth]};
  t->depth--;
  beat(t);
  if (t->range) t->range(NULL);
}

const char *sk_timer_name(int section) { return label[section]; }

double sk_timer_seconds(const sk_timer *t, int section) { return t->total[section]; }

void sk_timer_print(sk_timer *t, MPI_Comm comm) {
  charge(t);
  int size;
  SK_MPI(MPI_Comm_size(comm, &size));
  double lo[SK_T_COUNT], hi[SK_T_COUNT], sum[SK_T_COUNT], all = 0;
  SK_MPI(MPI_Allreduce(t->total, lo, SK_T_COUNT, MPI_DOUBLE, MPI_MIN, comm));
  SK_MPI(MPI_Allreduce(t->total, hi, SK_T_COUNT, MPI_DOUBLE, MPI_MAX, comm));
  SK_MPI(MPI_Allreduce(t->total, sum, SK_T_COUNT, MPI_DOUBLE, MPI_SUM, comm));
  for (int i = 0; i < SK_T_COUNT; i++) all += sum[i];
  sk_say("\nWhere the time went (seconds; minimum, average, maximum over %d rank%s)", size,
         size == 1 ? "" : "s");
  sk_say("  %-20s %10s %9s %9s %9s %6s", "section", "calls", "min", "avg", "max", "%");
  for (int i = 0; i < SK_T_COUNT; i++)
    if (label[i] && t->calls[i])
      sk_say("  %-20s %10lld %9.3f %9.3f %9.3f %6.1f", label[i], (long long)t->calls[i], lo[i],
             sum[i] / size, hi[i], 100 * sum[i] / all);
  sk_say("  %-20s %10s %9s %9.3f %9s %6.1f", "all", "", "", all / size, "", 100.0);
}
