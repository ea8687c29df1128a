/* schedule.c: pipeline schedules, without communication. Of each pipeline every table is walked
 * alone (walk), what neighbours send and receive is compared (pairs), and the whole is simulated
 * (schedule_sim.h). By default small pipelines and a seeded sample. SAKER_LONG=1: every one with at
 * most 64 stages, 256 micro-batches and 4 virtual stages, and a few of up to 4096 stages
 * (`make check-long`; two minutes, 1 GB). */
#include "src/schedule.h"
#include "tests/schedule_sim.h"
#include "tests/tap.h"
#include <stdlib.h>
#include <string.h>

enum { COMPLETE, ORDER, RINGS, PAIRS, MEMORY, FLOW, BUBBLE, NCHECKS };
static const char *const check_name[NCHECKS] = {
    "every forward, backward and weight gradient once, after what it needs",
    "the micro-batches of a chunk in index order, above all their weight gradients",
    "receives and sends within the rings, posting never waits",
    "every send has its one receive: same peers, order and tag",
    "live activations are as stated and as the formula says",
    "no deadlock when a send ends only after its receive was posted",
    "the bubble is the formula's",
};
static const char *const kind_name[SK_NSCHEDS] = {"1f1b", "interleaved", "zb-h1"};

typedef struct pipe {
  int kind, p, m, v;
} pipe;

typedef struct letter {
  int64_t border; /* the upper part's number: from border - 1 to border or back */
  int micro, tag;
} letter;

typedef struct mail { /* what one stage receives and sends, in order */
  int64_t nin[SK_NMSGS], nout[SK_NMSGS];
  letter *in[SK_NMSGS], *out[SK_NMSGS]; /* [m * v] */
} mail;

// The verdicts since the last report.
static struct {
  int64_t pipes, tables, actions;
  bool bad[NCHECKS];
  char first[NCHECKS][200];
} seen;
static pipe now;
static int now_stage;
static void (*spoil)(sk_schedule *s); // damages a table before it is looked at, or NULL

SK_PRINTF(3, 4) static bool hold(int check, bool ok, const char *fmt, ...) {
  if (ok || seen.bad[check]) return ok;
  seen.bad[check] = true;
  int n = snprintf(seen.first[check], sizeof seen.first[check], "%s p %d s %d m %d v %d: ",
                   kind_name[now.kind], now.p, now_stage, now.m, now.v);
  va_list ap;
  va_start(ap, fmt);
  vsnprintf(seen.first[check] + n, sizeof seen.first[check] - (size_t)n, fmt, ap);
  va_end(ap);
  return false;
}

static int least(int64_t a, int64_t b) { return (int)(a < b ? a : b); }

// ---- one table alone ----

typedef struct walker {
  const sk_schedule *s;
  mail *box;
  uint8_t *done;        /* [m * v] bit op */
  int *next[3], *alive; /* [v] */
  int64_t taken[SK_NMSGS];
  int live, top_live, *top_alive, queued, top_queued;
} walker;

static bool walk_message(walker *w, const sk_action *a) {
  const bool recv = a->op == SK_DO_RECV, lower = recv == (a->msg == SK_MSG_X);
  const int64_t part = (int64_t)a->chunk * now.p + now_stage, border = lower ? part : part + 1;
  int64_t *n = recv ? &w->box->nin[a->msg] : &w->box->nout[a->msg];
  letter *list = recv ? w->box->in[a->msg] : w->box->out[a->msg];
  const int peer = (now_stage + (lower ? now.p - 1 : 1)) % now.p;
  bool ok = hold(PAIRS, border > 0 && border < (int64_t)now.p * now.v, "no such message");
  ok = hold(PAIRS, now.p > 1 && a->peer == peer, "peer %d", a->peer) && ok;
  ok = hold(PAIRS, a->tag >= 0 && a->tag < 32768 && a->tag % 2 == a->msg, "tag %d", a->tag) && ok;
  if (!hold(PAIRS, *n < (int64_t)now.m * now.v, "too many messages") || !ok) return false;
  list[(*n)++] = (letter){border, a->micro, a->tag};
  if (recv)
    return hold(RINGS, *n - w->taken[a->msg] <= w->s->recv_buffers[a->msg],
                "a receive is posted into a buffer that is not read yet");
  const sk_action *by = a - 1; // exists: a send is never first, see walk
  return hold(RINGS, by->out && by->msg == a->msg && by->micro == a->micro && by->chunk == a->chunk,
              "a send is not right after its action");
}

static bool walk_compute(walker *w, const sk_action *a) {
  const bool split = now.kind == SK_SCHED_ZB_H1, forward = a->op == SK_DO_FORWARD;
  const int64_t part = (int64_t)a->chunk * now.p + now_stage, last = (int64_t)now.p * now.v - 1;
  uint8_t *done = &w->done[(int64_t)a->micro * now.v + a->chunk];
  const int before[3] = {0, 1, 3};
  bool ok = hold(COMPLETE, *done == before[a->op] && (split || a->op != SK_DO_WEIGHTS),
                 "op %d of micro-batch %d after %d", a->op, a->micro, *done);
  *done |= (uint8_t)(1 << a->op);
  ok = hold(ORDER, a->micro == w->next[a->op][a->chunk]++, "op %d of micro-batch %d", a->op,
            a->micro) && ok;
  if (a->op == (split ? SK_DO_WEIGHTS : SK_DO_BACKWARD)) w->live--, w->alive[a->chunk]--;
  if (split && a->op == SK_DO_BACKWARD && ++w->queued > w->top_queued) w->top_queued = w->queued;
  if (a->op == SK_DO_WEIGHTS) {
    w->queued--;
    return ok;
  }
  const bool in = now.p > 1 && part != (forward ? 0 : last);
  const bool out = now.p > 1 && part != (forward ? last : 0);
  ok = hold(COMPLETE, a->in == in && a->out == out && a->msg == (forward ? SK_MSG_X : SK_MSG_DX),
            "in, out or msg of op %d", a->op) && ok;
  if (in) { // the oldest receive must be this one's
    int64_t k = w->taken[a->msg]++;
    ok = hold(RINGS, k < w->box->nin[a->msg] && w->box->in[a->msg][k].micro == a->micro &&
              w->box->in[a->msg][k].border == part + !forward, "op %d has no receive", a->op) && ok;
  }
  if (now.p == 1 && part != (forward ? 0 : last))
    ok = hold(COMPLETE, a > w->s->at && a[-1].op == a->op && a[-1].micro == a->micro &&
              a[-1].chunk == a->chunk + (forward ? -1 : 1), "not after its input's action") && ok;
  if (forward) {
    if (++w->live > w->top_live) w->top_live = w->live;
    if (++w->alive[a->chunk] > w->top_alive[a->chunk]) w->top_alive[a->chunk] = w->alive[a->chunk];
  }
  return ok;
}

static void walk_memory(const walker *w) {
  const sk_schedule *s = w->s;
  const int64_t p = now.p, m = now.m, v = now.v, all = m * v;
  int64_t live = now.kind == SK_SCHED_1F1B ? least(m, p - now_stage) : least(m, p);
  if (now.kind == SK_SCHED_INTERLEAVED) live = least(all, (v + 1) * p - 2 * now_stage - 1);
  hold(MEMORY, s->live == w->top_live && s->live == live, "live %d, stated %d, formula %d",
       w->top_live, s->live, (int)live);
  int sum = 0;
  for (int c = 0; c < v; c++) {
    hold(MEMORY, s->live_of[c] == w->top_alive[c] && s->live_of[c] <= m, "chunk %d", c);
    sum += s->live_of[c];
  }
  hold(MEMORY, sum >= s->live && (v > 1 || sum == s->live), "sum over chunks %d", sum);
  const int queued = now.kind == SK_SCHED_ZB_H1 ? least(m, now_stage + 1) : 0;
  hold(MEMORY, s->queued == w->top_queued && s->queued == queued, "queue %d, stated %d, formula %d",
       w->top_queued, s->queued, queued);
  for (int msg = 0; msg < SK_NMSGS; msg++)
    hold(RINGS, s->recv_buffers[msg] == least(2, w->box->nin[msg]) &&
         s->send_buffers[msg] == least(2, w->box->nout[msg]), "ring lengths of kind %d", msg);
}

/* Checks one table and packs it for the simulator. Returns whether it may be simulated. */
static bool walk(const sk_schedule *s, stage *st, mail *box) {
  const int64_t v = now.v, all = (int64_t)now.m * v;
  walker w = {.s = s, .box = box};
  uint8_t *done = w.done = sk_calloc((size_t)all, 1);
  int *counts = sk_calloc((size_t)v * 5, sizeof(int));
  for (int op = 0; op < 3; op++) w.next[op] = counts + op * v;
  w.alive = counts + 3 * v;
  w.top_alive = counts + 4 * v;
  for (int msg = 0; msg < SK_NMSGS; msg++) box->nin[msg] = box->nout[msg] = 0;
  *st = (stage){.code = sk_malloc((size_t)s->n), .n = s->n};
  bool ok = hold(COMPLETE, s->n > 0 && s->at[0].op != SK_DO_SEND, "starts with a send");
  for (int64_t i = 0; i < s->n && ok; i++) {
    const sk_action *a = &s->at[i];
    ok = hold(COMPLETE, a->op <= SK_DO_SEND && a->msg < SK_NMSGS && a->micro >= 0 &&
              a->micro < now.m && a->chunk >= 0 && a->chunk < v, "action %d is nonsense", (int)i);
    if (!ok) break;
    ok = a->op >= SK_DO_RECV ? walk_message(&w, a) : walk_compute(&w, a);
    if (i + 1 < s->n && a->op < SK_DO_WEIGHTS && a->out)
      ok = hold(RINGS, a[1].op == SK_DO_SEND, "an output is not sent at once") && ok;
    st->code[i] = (uint8_t)(a->op | a->msg << 3 | a->in << 4 | a->out << 5);
  }
  const int full = now.kind == SK_SCHED_ZB_H1 ? 7 : 3;
  for (int64_t i = 0; i < all && ok; i++) ok = hold(COMPLETE, done[i] == full, "incomplete");
  for (int msg = 0; msg < SK_NMSGS; msg++) {
    ok = hold(RINGS, w.taken[msg] == box->nin[msg], "a receive is never read") && ok;
    st->in[msg].n = box->nin[msg];
    st->sends[msg] = s->send_buffers[msg];
  }
  if (ok) walk_memory(&w);
  sk_free(done);
  sk_free(counts);
  return ok;
}

static bool pairs(const mail *from, const mail *to, int msg) {
  bool ok = hold(PAIRS, from->nout[msg] == to->nin[msg], "%d sent, %d received",
                 (int)from->nout[msg], (int)to->nin[msg]);
  for (int64_t k = 0; ok && k < to->nin[msg]; k++) {
    const letter *a = &from->out[msg][k], *b = &to->in[msg][k];
    ok = hold(PAIRS, a->border == b->border && a->micro == b->micro && a->tag == b->tag,
              "message %d of kind %d", (int)k, msg);
  }
  return ok;
}

// ---- all tables together ----

// The step's idle time by the header's formulas. t is of one chunk, v times that of a stage.
static int64_t bubble(times t) {
  const int64_t p = now.p, m = now.m;
  if (now.kind == SK_SCHED_ZB_H1)
    return (p - 1) * (t.t[0] + t.t[1]) - (least(m, p) - 1) * t.t[2];
  return (p - 1) * (now.v * t.t[0] + now.v * t.t[1]) / now.v;
}

static void simulate(stage *st) {
  const times set[SK_NSCHEDS][3] = {
      [SK_SCHED_1F1B] = {{.t = {1, 2, 0}}, {.t = {1, 1, 0}}, {.t = {3, 2, 0}}},
      [SK_SCHED_INTERLEAVED] = {{.t = {1, 2, 0}}, {.t = {1, 1, 0}}, {.t = {3, 4, 0}}},
      [SK_SCHED_ZB_H1] = {{.t = {1, 1, 1}}, {.t = {4, 5, 3}}, {.t = {3, 2, 2}}},
  };
  for (int i = 0; i < 3; i++) {
    const times t = set[now.kind][i];
    const int64_t busy = (int64_t)now.m * now.v * (t.t[0] + t.t[1] + t.t[2]);
    const int64_t end = run(now.p, st, t);
    if (!hold(FLOW, end >= 0, "stuck")) return;
    hold(BUBBLE, end - busy == bubble(t), "times %d %d %d: bubble %lld, formula %lld", t.t[0],
         t.t[1], t.t[2], (long long)(end - busy), (long long)bubble(t));
  }
  hold(FLOW, run(now.p, st, (times){.t = {1, 2, 1}, .at_once = true}) >= 0, "stuck when sends are waited for at once");
}

static mail new_mail(void) {
  mail box = {0};
  for (int i = 0; i < 2 * SK_NMSGS; i++)
    (i < SK_NMSGS ? box.in : box.out)[i % SK_NMSGS] =
        sk_malloc((size_t)now.m * (size_t)now.v * sizeof(letter));
  return box;
}

static void free_mail(mail *box) {
  for (int msg = 0; msg < SK_NMSGS; msg++) {
    sk_free(box->in[msg]);
    sk_free(box->out[msg]);
  }
}

/* Makes and checks every table of a pipeline. Returns its stages; they must not be run where
 * seen.bad[FLOW] is set. */
static stage *tables(pipe what) {
  now = what;
  stage *st = sk_calloc((size_t)now.p, sizeof *st);
  mail first = new_mail(), box[2] = {new_mail(), new_mail()};
  bool ok = true;
  for (int s = 0; s < now.p; s++) {
    sk_schedule table;
    sk_err e = {0};
    now_stage = s;
    int rc = sk_schedule_create(&table, now.kind, now.p, s, now.m, now.v, &e);
    SK_CHECK(rc == SK_OK, "%s", e.msg);
    if (spoil) spoil(&table);
    mail *mine = s == 0 ? &first : &box[s % 2], *below = s == 1 ? &first : &box[(s + 1) % 2];
    ok = walk(&table, &st[s], mine) && ok;
    if (ok && s > 0) ok = pairs(below, mine, SK_MSG_X) && pairs(mine, below, SK_MSG_DX);
    if (ok && s == now.p - 1) ok = pairs(mine, &first, SK_MSG_X) && pairs(&first, mine, SK_MSG_DX);
    for (int k = 0; k < SK_NMSGS; k++) {
      channel *c = &st[s].in[k];
      c->post = sk_malloc((size_t)c->n * 2 * sizeof *c->post);
      c->send = c->post + c->n;
    }
    seen.tables++;
    seen.actions += table.n;
    sk_schedule_destroy(&table);
  }
  seen.pipes++;
  free_mail(&first);
  free_mail(&box[0]);
  free_mail(&box[1]);
  hold(FLOW, ok, "the tables are wrong, not run");
  hold(BUBBLE, ok, "the tables are wrong, not run");
  return st;
}

static void free_stages(stage *st) {
  for (int s = 0; s < now.p; s++) {
    sk_free(st[s].code);
    for (int k = 0; k < SK_NMSGS; k++) sk_free(st[s].in[k].post);
  }
  sk_free(st);
}

static void check(pipe what) {
  stage *st = tables(what);
  if (!seen.bad[FLOW]) simulate(st);
  free_stages(st);
}

static void report(const char *kind, const char *which) {
  tap_diag("%s, %s: %lld pipelines, %lld tables, %lld actions", kind, which, (long long)seen.pipes,
           (long long)seen.tables, (long long)seen.actions);
  for (int i = 0; i < NCHECKS; i++)
    if (!tap_ok(!seen.bad[i] && seen.pipes > 0, "%s, %s: %s", kind, which, check_name[i]))
      tap_diag("%s", seen.first[i]);
  memset(&seen, 0, sizeof seen);
}

// Every pipeline of a kind up to these sizes.
static void all_of(int kind, int stages, int micro, int virtual_stages) {
  const bool il = kind == SK_SCHED_INTERLEAVED;
  for (int p = 1; p <= stages; p++)
    for (int m = il ? p : 1; m <= micro; m += il ? p : 1)
      for (int v = il ? 2 : 1; v <= (il ? virtual_stages : 1); v++) check((pipe){kind, p, m, v});
}

// The i-th of a seeded sample over the same sizes.
static pipe sample(int kind, uint64_t i) {
  pipe x = {kind, 1 + (int)(sk_rand(7, 3 * i) % 64), 1 + (int)(sk_rand(7, 3 * i + 1) % 256), 1};
  if (kind != SK_SCHED_INTERLEAVED) return x;
  x.m = (x.m + x.p - 1) / x.p * x.p;
  x.v = 2 + (int)(sk_rand(7, 3 * i + 2) % 3);
  return x;
}

static void sweep(int kind, bool all) {
  const bool il = kind == SK_SCHED_INTERLEAVED;
  const char *name = kind_name[kind];
  all_of(kind, 8, 20, 4);
  for (uint64_t i = 0; i < 40; i++) check(sample(kind, i));
  check((pipe){kind, il ? 256 : 2048, il ? 256 : 32, il ? 2 : 1});
  report(name, "sample");
  if (!all) return;
  all_of(kind, 64, 256, 4);
  report(name, "stages <= 64, micro-batches <= 256");
  check((pipe){kind, 1024, 2048, il ? 3 : 1});
  check((pipe){kind, 3000, 3000, il ? 2 : 1});
  check((pipe){kind, 4096, 4096, il ? 2 : 1});
  if (!il) check((pipe){kind, 4096, 100, 1});
  report(name, "up to 4096 stages");
}

/* Rings deep enough: with uneven times of computing and sending a step takes hardly longer than
 * with a buffer for every message. */
static void rings(int kind) {
  double worst = 0, sum = 0;
  for (uint64_t i = 0; i < 40; i++) {
    stage *st = tables(sample(kind, 1000 + i));
    times t = {.t = {1000, 2000, 0}, .key = i + 1};
    if (kind == SK_SCHED_ZB_H1) t.t[1] = t.t[2] = 1000;
    if (!seen.bad[FLOW]) {
      double ours = (double)run(now.p, st, t);
      t.no_rings = true;
      double over = ours / (double)run(now.p, st, t) - 1;
      if (over > worst) worst = over;
      sum += over;
    }
    free_stages(st);
  }
  tap_ok(!seen.bad[FLOW] && worst <= 0.005, "%s: with uneven times the rings cost %.2f%%, at worst "
         "%.2f%%", kind_name[kind], 100 * sum / 40, 100 * worst);
  memset(&seen, 0, sizeof seen);
}

// ---- tables by hand ----

/* "F0 B0 W0"; a chunk above 0 as ".1". With messages: r, s for receive, send, x, d for the kind. */
static const char *text(pipe x, int s, bool messages) {
  static char out[4000];
  sk_schedule table;
  sk_err e = {0};
  size_t n = 0;
  out[0] = '\0';
  SK_CHECK(sk_schedule_create(&table, x.kind, x.p, s, x.m, x.v, &e) == SK_OK, "%s", e.msg);
  for (int64_t i = 0; i < table.n; i++) {
    const sk_action *a = &table.at[i];
    if (a->op >= SK_DO_RECV && !messages) continue;
    const char *name[] = {"F", "B", "W", a->msg ? "rd" : "rx", a->msg ? "sd" : "sx"};
    n += (size_t)snprintf(out + n, sizeof out - n, "%s%s%d", n ? " " : "", name[a->op], a->micro);
    if (a->chunk > 0) n += (size_t)snprintf(out + n, sizeof out - n, ".%d", a->chunk);
  }
  sk_schedule_destroy(&table);
  return out;
}

static void by_hand(void) {
  const struct {
    pipe x;
    int s;
    bool messages;
    const char *want, *what;
  } t[] = {
      {{SK_SCHED_1F1B, 1, 3, 1}, 0, true, "F0 B0 F1 B1 F2 B2", "1f1b alone"},
      {{SK_SCHED_ZB_H1, 1, 2, 1}, 0, true, "F0 B0 W0 F1 B1 W1", "zb-h1 alone"},
      {{SK_SCHED_INTERLEAVED, 1, 2, 2}, 0, true, "F0 F0.1 B0.1 B0 F1 F1.1 B1.1 B1",
       "interleaved alone"},
      {{SK_SCHED_1F1B, 2, 3, 1}, 0, true,
       "rd0 rd1 F0 sx0 F1 sx1 B0 rd2 F2 sx2 B1 B2", "1f1b, first of 2, with messages"},
      {{SK_SCHED_1F1B, 2, 3, 1}, 1, true,
       "rx0 rx1 F0 rx2 B0 sd0 F1 B1 sd1 F2 B2 sd2", "1f1b, last of 2, with messages"},
      {{SK_SCHED_1F1B, 4, 8, 1}, 0, false,
       "F0 F1 F2 F3 B0 F4 B1 F5 B2 F6 B3 F7 B4 B5 B6 B7", "1f1b, first of 4"},
      {{SK_SCHED_1F1B, 4, 8, 1}, 3, false,
       "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5 F6 B6 F7 B7", "1f1b, last of 4"},
      {{SK_SCHED_INTERLEAVED, 4, 8, 2}, 0, false,
       "F0 F1 F2 F3 F0.1 F1.1 F2.1 F3.1 F4 F5 F6 B0.1 F7 B1.1 F4.1 B2.1 F5.1 B3.1 F6.1 B0 F7.1 B1 "
       "B2 B3 B4.1 B5.1 B6.1 B7.1 B4 B5 B6 B7", "interleaved, first of 4"},
      {{SK_SCHED_INTERLEAVED, 4, 8, 2}, 3, false,
       "F0 F1 F2 F3 F0.1 B0.1 F1.1 B1.1 F2.1 B2.1 F3.1 B3.1 F4 B0 F5 B1 F6 B2 F7 B3 F4.1 B4.1 F5.1 "
       "B5.1 F6.1 B6.1 F7.1 B7.1 B4 B5 B6 B7", "interleaved, last of 4"},
      {{SK_SCHED_ZB_H1, 4, 8, 1}, 0, false,
       "F0 F1 F2 F3 B0 W0 F4 B1 W1 F5 B2 W2 F6 B3 W3 F7 B4 W4 B5 W5 B6 W6 B7 W7",
       "zb-h1, first of 4"},
      {{SK_SCHED_ZB_H1, 4, 8, 1}, 3, false,
       "F0 B0 F1 B1 F2 B2 F3 B3 W0 F4 B4 W1 F5 B5 W2 F6 B6 W3 F7 B7 W4 W5 W6 W7",
       "zb-h1, last of 4"},
  };
  for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
    const char *got = text(t[i].x, t[i].s, t[i].messages);
    if (!tap_ok(strcmp(got, t[i].want) == 0, "%s", t[i].what)) tap_diag("%s", got);
  }
}

// ---- refusals ----

static void refusals(void) {
  enum { F1 = SK_SCHED_1F1B, IL = SK_SCHED_INTERLEAVED, ZB = SK_SCHED_ZB_H1 };
  const struct {
    int kind, p, s;
    int64_t m;
    int v;
    const char *say;
  } t[] = {
      {3, 4, 0, 8, 1, "no pipeline schedule number 3"},
      {-1, 4, 0, 8, 1, "no pipeline schedule number -1"},
      {F1, 0, 0, 8, 1, "0 stages: it must be 1 to 65536"},
      {F1, 65537, 0, 8, 1, "65537 stages"},
      {F1, 4, 4, 8, 1, "Stage 4 of a pipeline of 4: it must be 0 to 3"},
      {F1, 4, -1, 8, 1, "Stage -1"},
      {ZB, 4, 0, 0, 1, "0 micro-batches: it needs at least 1"},
      {F1, 4, 0, -5, 1, "-5 micro-batches"},
      {F1, 4, 0, INT64_MAX, 1, "at most 1048576 work"},
      {IL, 4, 0, 524292, 2, "on 2 virtual stages: at most 524288 work"},
      {F1, 4, 0, 8, 2, "1f1b takes 1 virtual stage, not 2; several need the schedule interleaved"},
      {ZB, 4, 0, 8, 0, "zb-h1 takes 1 virtual stage, not 0."},
      {IL, 4, 0, 8, 1, "2 to 1024 virtual stages, not 1; with 1 it is the schedule 1f1b"},
      {IL, 4, 0, 8, -2, "2 to 1024 virtual stages, not -2."},
      {IL, 4, 0, 8, 1025, "not 1025"},
      {IL, 4, 0, 10, 2, "a multiple of 4 micro-batches in one step, not 10"},
      {IL, 4, 0, 10, 2, "the nearest that work are 8 and 12"},
      {IL, 8, 0, 7, 2, "not 7; the nearest that works is 8"},
      {IL, 1000, 0, 1023, 1024, "not 1023; the nearest that works is 1000"},
      {IL, 65536, 0, 9, 64, "with 64 virtual stages at most 16384 work"},
  };
  for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
    sk_schedule s = {.n = 1};
    sk_err e = {0}, f = {0};
    int rc = sk_schedule_create(&s, t[i].kind, t[i].p, t[i].s, t[i].m, t[i].v, &e);
    bool ok = rc == SK_USAGE && e.code == SK_USAGE && strstr(e.msg, t[i].say) && !s.n && !s.at;
    sk_schedule_destroy(&s);
    if (t[i].s == 0)
      ok = sk_schedule_check(t[i].kind, t[i].p, t[i].m, t[i].v, &f) == SK_USAGE &&
           strcmp(e.msg, f.msg) == 0 && ok;
    if (!tap_ok(ok, "refused: ... %s ...", t[i].say)) tap_diag("%s", e.msg);
  }
  sk_schedule_destroy(NULL);
}

// Long tables, up to the longest allowed: the tags have to stay within MPI's least bound.
static void limits(bool all) {
  const int forwards = all ? SK_SCHED_MAX_FORWARDS : 1 << 16;
  for (int kind = 0; kind < SK_NSCHEDS; kind++) {
    const int v = kind == SK_SCHED_INTERLEAVED ? SK_SCHED_MAX_VIRTUAL : 1;
    check((pipe){kind, 2, forwards / v, v});
  }
  report("all kinds", all ? "2^20 forwards" : "2^16 forwards");
}

// ---- do the checks see anything? ----

static sk_action *find(sk_schedule *s, int op, int skip) {
  for (int64_t i = 0; i < s->n; i++)
    if (s->at[i].op == op && skip-- == 0) return &s->at[i];
  SK_CHECK(false, "the table has no such action %d", op);
}

static void swap(sk_action *a, sk_action *b) {
  sk_action t = *a;
  *a = *b;
  *b = t;
}

static void drop(sk_schedule *s, sk_action *a) {
  memmove(a, a + 1, (size_t)(s->at + s->n - a - 1) * sizeof *a);
  s->n--;
}

static void spoil_order(sk_schedule *s) {
  swap(find(s, SK_DO_WEIGHTS, 2), find(s, SK_DO_WEIGHTS, 3));
}
static void spoil_missing(sk_schedule *s) { drop(s, find(s, SK_DO_WEIGHTS, 7)); }
static void spoil_twice(sk_schedule *s) { find(s, SK_DO_BACKWARD, 3)->micro = 2; }
static void spoil_send(sk_schedule *s) { if (s->stage == 1) drop(s, find(s, SK_DO_SEND, 4)); }
static void spoil_receive(sk_schedule *s) { if (s->stage == 2) drop(s, find(s, SK_DO_RECV, 5)); }
static void spoil_tag(sk_schedule *s) { if (s->stage == 1) find(s, SK_DO_SEND, 3)->tag += 2; }
static void spoil_peer(sk_schedule *s) { if (s->stage == 3) find(s, SK_DO_RECV, 0)->peer = 1; }
static void spoil_ring(sk_schedule *s) { s->recv_buffers[SK_MSG_DX]--; }
static void spoil_live(sk_schedule *s) { if (s->stage == 0) s->live--; }
static void spoil_early(sk_schedule *s) { // backward 2 of the last stage after the next forward
  if (s->stage == 3) swap(find(s, SK_DO_BACKWARD, 2), find(s, SK_DO_FORWARD, 3));
}
static void spoil_stuck(sk_schedule *s) { // the last stage wants all forwards before a backward
  if (s->stage != 3) return;
  sk_action *rest = sk_malloc((size_t)s->n * sizeof *rest);
  int64_t n = 0, kept = 0;
  for (int64_t i = 0; i < s->n; i++) {
    if (s->at[i].op == SK_DO_FORWARD || s->at[i].op == SK_DO_RECV) s->at[kept++] = s->at[i];
    else rest[n++] = s->at[i];
  }
  memcpy(s->at + kept, rest, (size_t)n * sizeof *rest);
  sk_free(rest);
}

static void spoiled(void) {
  const struct {
    void (*spoil)(sk_schedule *s);
    int check;
    const char *what;
  } t[] = {
      {spoil_order, ORDER, "two weight gradients out of order"},
      {spoil_missing, COMPLETE, "a weight gradient missing"},
      {spoil_twice, COMPLETE, "a backward twice"},
      {spoil_send, RINGS, "a send missing"},
      {spoil_receive, RINGS, "a receive missing"},
      {spoil_tag, PAIRS, "a wrong tag"},
      {spoil_peer, PAIRS, "a wrong peer"},
      {spoil_ring, RINGS, "a ring too short"},
      {spoil_live, MEMORY, "one live micro-batch too few"},
      {spoil_early, RINGS, "a forward before its receive's turn"},
      {spoil_stuck, FLOW, "stages that wait for each other"},
  };
  for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
    spoil = t[i].spoil;
    check((pipe){SK_SCHED_ZB_H1, 4, 8, 1});
    tap_ok(seen.bad[t[i].check], "a spoiled table is seen: %s", t[i].what);
    memset(&seen, 0, sizeof seen);
  }
  spoil = NULL;
}

int main(int argc, char **argv) {
  tap_init(&argc, &argv);
  const char *set = getenv("SAKER_LONG");
  const bool all = set && strcmp(set, "1") == 0;
  by_hand();
  refusals();
  spoiled();
  limits(all);
  for (int kind = 0; kind < SK_NSCHEDS; kind++) {
    rings(kind);
    double start = sk_now();
    sweep(kind, all);
    tap_diag("%s: %.1f s", kind_name[kind], sk_now() - start);
  }
  return tap_done();
}
