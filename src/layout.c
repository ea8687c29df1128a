#include "src/layout.h"
#include "src/device.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- which grids work ---- */

typedef struct reason {
  char text[400];
} reason;

SK_PRINTF(2, 3)
static bool no(reason *why, const char *fmt, ...) {
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(why->text, sizeof why->text, fmt, ap);
  va_end(ap);
  return false;
}

typedef long long ll;

static bool tp_fits(const sk_config *c, int tp, reason *why) {
  if (c->model.vocab_size < tp)
    return no(why, "model.vocab_size %lld has fewer rows than parallel.tp %d", (ll)c->model.vocab_size, tp);
  for (int64_t i = 0; i < c->n_layers; i++) {
    const sk_layer_cfg *l = &c->layer[i];
    if (l->mixer != 'M' && l->m.num_attention_heads % tp)
      return no(why, "layer %lld: num_attention_heads %lld is not a multiple of parallel.tp %d", (ll)i,
                (ll)l->m.num_attention_heads, tp);
    if (l->mixer != '*' && l->m.mamba_n_heads % tp)
      return no(why, "layer %lld: mamba_n_heads %lld is not a multiple of parallel.tp %d", (ll)i,
                (ll)l->m.mamba_n_heads, tp);
    if (l->mixer != '*' && !sk_mamba_fits(&l->m, tp))
      return no(why, "layer %lld: with parallel.tp %d a rank's %lld SSM heads lie in unequal parts of the %lld "
                "mamba_n_groups", (ll)i, tp, (ll)l->m.mamba_n_heads / tp, (ll)l->m.mamba_n_groups);
    if (l->mlp && l->m.intermediate_size % tp)
      return no(why, "layer %lld: intermediate_size %lld is not a multiple of parallel.tp %d", (ll)i,
                (ll)l->m.intermediate_size, tp);
  }
  return true;
}

static bool cp_fits(const sk_config *c, int cp, int tp, reason *why) {
  int64_t T = c->data.sequence, segments = cp > 1 ? 2 * cp : 1;
  if (T % segments)
    return no(why, "data.sequence %lld is not a multiple of 2 x parallel.cp = %lld", (ll)T, (ll)segments);
  for (int64_t i = 0; cp > 1 && i < c->n_layers; i++)
    if (c->layer[i].mixer != '*' && T / segments < c->layer[i].m.mamba_d_conv - 1)
      return no(why, "data.sequence %lld in %lld segments (2 x parallel.cp) of %lld tokens is shorter than "
                "mamba_d_conv - 1 = %lld", (ll)T, (ll)segments, (ll)(T / segments),
                (ll)c->layer[i].m.mamba_d_conv - 1);
  if (T / cp % tp)
    return no(why, "data.sequence / parallel.cp = %lld tokens cannot be shared out evenly over parallel.tp %d",
              (ll)(T / cp), tp);
  return true;
}

static bool pp_fits(const sk_config *c, int pp, int64_t micro, reason *why) {
  sk_err e = {0};
  int64_t v = c->parallel.virtual_stages, parts = pp * v;
  if (parts > c->n_layers)
    return no(why, "parallel.pp %d x virtual_stages %lld = %lld stages for %lld layers", pp, (ll)v, (ll)parts,
              (ll)c->n_layers);
  if (pp == 1 && v > 1)
    return no(why, "parallel.virtual_stages %lld needs more than one pipeline stage", (ll)v);
  if (sk_schedule_check(c->parallel.schedule, pp, micro, (int)v, &e) != SK_OK) return no(why, "%s", e.msg);
  return true;
}

/* Whether the grid works apart from the batch, which has its own message. */
static bool grid_fits(const sk_config *c, const int n[SK_NAXES], reason *why) {
  int64_t micro = c->train.global_batch / c->train.micro_batch / n[SK_DP];
  return tp_fits(c, n[SK_TP], why) && cp_fits(c, n[SK_CP], n[SK_TP], why) &&
         pp_fits(c, n[SK_PP], micro > 0 ? micro : 1, why);
}

static bool batch_fits(const sk_config *c, int dp) {
  return c->train.global_batch % (c->train.micro_batch * dp) == 0;
}

/* ---- what would work instead ---- */

enum { SHOWN = 4 };

typedef struct grids {
  int n;
  double far[SHOWN];
  int grid[SHOWN][SK_NAXES];
} grids;

static void keep_nearest(grids *g, const int n[SK_NAXES], double far) {
  int at = g->n < SHOWN ? g->n++ : SHOWN;
  while (at > 0 && g->far[at - 1] > far) {
    if (at < SHOWN) {
      g->far[at] = g->far[at - 1];
      memcpy(g->grid[at], g->grid[at - 1], sizeof g->grid[at]);
    }
    at--;
  }
  if (at == SHOWN) return;
  g->far[at] = far;
  memcpy(g->grid[at], n, sizeof g->grid[at]);
}

/* All grids of `ranks` ranks that work, the nearest to the deck's tp, cp and pp first. */
static void find_grids(const sk_config *c, int ranks, grids *g) {
  const double want[3] = {log2((double)c->parallel.tp), log2((double)c->parallel.cp),
                          log2((double)c->parallel.pp)};
  reason why;
  for (int tp = 1; tp <= ranks; tp++) {
    if (ranks % tp || !tp_fits(c, tp, &why)) continue;
    for (int cp = 1; cp <= ranks / tp; cp++) {
      if (ranks / tp % cp || !cp_fits(c, cp, tp, &why)) continue;
      for (int pp = 1; pp <= ranks / tp / cp; pp++) {
        if (ranks / tp / cp % pp || pp > c->n_layers) continue;
        const int n[SK_NAXES] = {[SK_PP] = pp, [SK_DP] = ranks / tp / cp / pp, [SK_CP] = cp, [SK_TP] = tp};
        if (!batch_fits(c, n[SK_DP]) || !grid_fits(c, n, &why)) continue;
        keep_nearest(g, n, fabs(log2(tp) - want[0]) + fabs(log2(cp) - want[1]) + fabs(log2(pp) - want[2]));
      }
    }
  }
}

static void append(char *s, size_t cap, const char *fmt, ...) SK_PRINTF(3, 4);
static void append(char *s, size_t cap, const char *fmt, ...) {
  size_t n = strlen(s);
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(s + n, cap - n, fmt, ap);
  va_end(ap);
}

/* "Grids that work on 8 ranks: tp 2 x cp 1 x pp 2 x dp 2, ..." or other numbers of ranks. */
static void suggest(const sk_config *c, int ranks, char *s, size_t cap) {
  grids g = {0};
  find_grids(c, ranks, &g);
  if (g.n) append(s, cap, "Grids that work on %d rank%s: ", ranks, ranks == 1 ? "" : "s");
  for (int i = 0; i < g.n; i++)
    append(s, cap, "%stp %d x cp %d x pp %d x dp %d", i ? ", " : "", g.grid[i][SK_TP], g.grid[i][SK_CP],
           g.grid[i][SK_PP], g.grid[i][SK_DP]);
  if (g.n) append(s, cap, ".");
  int64_t unit = c->parallel.tp * c->parallel.cp * c->parallel.pp;
  reason why;
  int found = 0;
  for (int64_t dp = 1; unit < 1 << 20 && dp <= 4096 && found < SHOWN; dp++) {
    const int n[SK_NAXES] = {(int)c->parallel.pp, (int)dp, (int)c->parallel.cp, (int)c->parallel.tp};
    if (!batch_fits(c, (int)dp) || !grid_fits(c, n, &why)) continue;
    append(s, cap, "%s%lld", found++ ? ", " : g.n ? "\nOr with this deck's tp, cp and pp on so many ranks: "
                                                   : "With this deck's tp, cp and pp it works on so many ranks: ",
           (ll)(unit * dp));
  }
  if (found) append(s, cap, ".");
  if (!found && !g.n) append(s, cap, "No grid of %d ranks works with this model, sequence and batch.", ranks);
}

static int wrong_batch(const sk_config *c, int dp, int ranks, sk_err *e) {
  const int64_t gb = c->train.global_batch, unit = c->train.micro_batch * dp;
  char near[128] = "", other[900] = "";
  if (gb > unit) append(near, sizeof near, "%lld or ", (ll)(gb / unit * unit));
  append(near, sizeof near, "%lld", (ll)((gb / unit + 1) * unit));
  suggest(c, ranks, other, sizeof other);
  return sk_fail(e, SK_USAGE,
                 "train.global_batch: %lld is not a multiple of dp x micro_batch = %d x %lld = %lld.\n"
                 "With dp %d the nearest that %s %s.\n%s", (ll)gb, dp, (ll)c->train.micro_batch, (ll)unit, dp,
                 gb > unit ? "work are" : "works is", near, other);
}

int sk_layout_grid(const sk_config *c, int ranks, int n[SK_NAXES], sk_err *e) {
  const int64_t tp = c->parallel.tp, cp = c->parallel.cp, pp = c->parallel.pp;
  char other[900] = "";
  reason why = {""};
  int64_t model = tp * cp <= ranks ? tp * cp * pp : ranks + 1; /* no overflow: each is at most 65536 */
  /* What no grid can cure. */
  if (sk_schedule_check(c->parallel.schedule, 2, 2, (int)c->parallel.virtual_stages, e) != SK_OK) return e->code;
  n[SK_TP] = (int)tp, n[SK_CP] = (int)cp, n[SK_PP] = (int)pp;
  n[SK_DP] = model <= ranks ? (int)(ranks / model) : 1;
  if (model > ranks || ranks % model)
    no(&why, "%d rank%s cannot be shared out: tp %lld x cp %lld x pp %lld needs a multiple of %lld", ranks,
       ranks == 1 ? "" : "s", (ll)tp, (ll)cp, (ll)pp, (ll)(tp * cp * pp));
  else if (grid_fits(c, n, &why))
    return batch_fits(c, n[SK_DP]) ? SK_OK : wrong_batch(c, n[SK_DP], ranks, e);
  suggest(c, ranks, other, sizeof other);
  size_t len = strlen(why.text);
  if (len && why.text[len - 1] == '.') why.text[len - 1] = 0;
  return sk_fail(e, SK_USAGE, "parallel: %s.\n%s", why.text, other);
}

/* ---- the dry run's tables ---- */

static void print_layers(const sk_config *c) {
  sk_say("\nLayers (%lld, pattern %s)", (ll)c->n_layers, c->pattern);
  for (int64_t i = 0, j; i < c->n_layers; i = j) {
    const sk_layer_cfg *a = &c->layer[i];
    for (j = i + 1; j < c->n_layers && memcmp(a, &c->layer[j], sizeof *a) == 0; j++) {}
    char what[256] = "";
    if (a->mixer != 'M')
      append(what, sizeof what, "attention %lld heads, %lld kv", (ll)a->m.num_attention_heads,
             (ll)a->m.num_key_value_heads);
    if (a->mixer == 'P') append(what, sizeof what, " | ");
    if (a->mixer != '*')
      append(what, sizeof what, "mamba %lld heads, state %lld", (ll)a->m.mamba_n_heads, (ll)a->m.mamba_d_state);
    if (a->mlp) append(what, sizeof what, " + mlp %lld", (ll)a->m.intermediate_size);
    sk_say("  %4lld..%-4lld %c%c  %s", (ll)i, (ll)j - 1, a->mixer, a->mlp ? '-' : ' ', what);
  }
}

static void print_params(const sk_config *c, const sk_registry *r) {
  sk_say("\nParameters (%s in %d tensors)", sk_si((double)r->count), r->n);
  for (int i = 0; i < r->n; i++) {
    bool shown = strncmp(r->p[i].name, "model.layers.", 13) != 0 ||
                 strncmp(r->p[i].name, "model.layers.0.", 15) == 0;
    char shape[64] = "";
    for (int k = 0; k < r->p[i].rank; k++)
      append(shape, sizeof shape, k ? " x %lld" : "%lld", (ll)r->p[i].dim[k]);
    if (shown) sk_say("  %-52s %-20s %12lld", r->p[i].name, shape, (ll)r->p[i].count);
  }
  if (c->n_layers > 1) sk_say("  (layers 1 to %lld not listed)", (ll)c->n_layers - 1);
  sk_say("  all %lld", (ll)r->count);
}

static void print_arithmetic(const sk_config *c, const int n[SK_NAXES]) {
  static const char *const kind[] = {"1f1b", "interleaved", "zb-h1"};
  double flops = sk_model_flops(c, c->data.sequence);
  double step = (double)c->train.global_batch * (double)c->data.sequence;
  sk_say("\nArithmetic: %sFLOP forward per token, %sFLOP per step of %s tokens (causal half counted)",
         sk_si(flops), sk_si(3 * flops * step), sk_si(step));
  sk_say("\nGrid: tp %d x cp %d x pp %d x dp %d; %lld micro-batches of %lld x %lld tokens per rank and step",
         n[SK_TP], n[SK_CP], n[SK_PP], n[SK_DP], (ll)(c->train.global_batch / n[SK_DP] / c->train.micro_batch),
         (ll)c->train.micro_batch, (ll)(c->data.sequence / n[SK_CP]));
  if (n[SK_PP] > 1)
    sk_say("Pipeline: %s, %lld virtual stage%s", kind[c->parallel.schedule], (ll)c->parallel.virtual_stages,
           c->parallel.virtual_stages == 1 ? "" : "s");
}

/* All ranks when they are few; else one rank for every stage and shard (dp = cp = 0), at most 64. */
static int pick_ranks(const int n[SK_NAXES], int ranks, int *list) {
  int count = 0;
  for (int r = 0; r < ranks && count < 64; r++) {
    int cp = r / n[SK_TP] % n[SK_CP], dp = r / n[SK_TP] / n[SK_CP] % n[SK_DP];
    if (ranks <= 16 || (cp == 0 && dp == 0)) list[count++] = r;
  }
  return count;
}

static void print_rank(const int n[SK_NAXES], int r, int64_t params, const char *layers, double bytes) {
  int tp = r % n[SK_TP], cp = r / n[SK_TP] % n[SK_CP], dp = r / n[SK_TP] / n[SK_CP] % n[SK_DP];
  int pp = r / n[SK_TP] / n[SK_CP] / n[SK_DP];
  sk_say("  %5d  %3d %3d %3d %3d  %-34s %14lld  %10s", r, tp, cp, pp, dp, layers, (ll)params, sk_bytes(bytes));
}

/* copy: weights, m and v of a rank's slices, for saving behind training. */
static void print_parts(const size_t parts[SK_PARTS], int rank, double copy) {
  double sum = 0;
  sk_say("\nMemory by part, on the rank that needs most (%d)", rank);
  for (int i = 0; i < SK_PARTS; i++) {
    sum += (double)parts[i];
    if (parts[i]) sk_say("  %-16s %12s", sk_part_name[i], sk_bytes((double)parts[i]));
  }
  sk_say("  %-16s %12s", "all", sk_bytes(sum));
  if (copy > 0) sk_say("  and of the host's memory about %s for a copy to be saved while training goes on", sk_bytes(copy));
}

static int print_ranks(const sk_config *c, const sk_ops *op, const int n[SK_NAXES], int ranks, sk_err *e) {
  int list[64], count = pick_ranks(n, ranks, list), worst = 0;
  size_t most[SK_PARTS] = {0};
  double highest = -1;
  sk_say("\nRanks on the %s%s", op->name, count < ranks ? " (one for every stage and shard)" : "");
  sk_say("  %5s  %3s %3s %3s %3s  %-34s %14s  %10s", "rank", "tp", "cp", "pp", "dp", "layers", "parameters", "memory");
  for (int i = 0; i < count && !e->code; i++) {
    size_t parts[SK_PARTS] = {0};
    int64_t params;
    char layers[160];
    double sum = 0;
    if (sk_engine_plan(c, op, n, list[i], parts, &params, layers, sizeof layers, e) != SK_OK) break;
    for (int k = 0; k < SK_PARTS; k++) sum += (double)parts[k];
    print_rank(n, list[i], params, layers, sum);
    if (sum <= highest) continue;
    highest = sum, worst = list[i];
    memcpy(most, parts, sizeof most);
  }
  int slices = sk_device_act(op, c) == SK_F32 ? 2 : 3; /* in the optimizer's part: m, v and perhaps the master */
  if (!e->code) print_parts(most, worst, c->checkpoint.async ? 3.0 / slices * (double)most[SK_PART_OPTIM] : 0);
  return e->code;
}

int sk_layout_print(const sk_config *c, const sk_ops *op, int ranks, sk_err *e) {
  int n[SK_NAXES];
  sk_model m = {0};
  sk_grid one;
  if (sk_layout_grid(c, ranks, n, e) != SK_OK) return e->code;
  sk_grid_pretend(&one, (const int[SK_NAXES]){1, 1, 1, 1}, 0);
  const sk_chunk all = {0, c->n_layers, true, true};
  if (sk_model_create(&m, c, &one, 1, &all, c->data.sequence, e) == SK_OK) {
    print_layers(c);
    print_params(c, &m.all);
    print_arithmetic(c, n);
    print_ranks(c, op, n, ranks, e);
  }
  sk_model_free(&m);
  return e->code;
}
