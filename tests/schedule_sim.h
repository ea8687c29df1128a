/* schedule_sim.h: runs the tables of a whole pipeline, taking the executor's contract of
 * src/schedule.h at its strictest: a send ends only after its receive was posted, and whoever needs
 * a buffer waits for it. No action chooses, so who can proceed follows from the tables alone: a
 * pipeline that ends once, ends for all times of computing and sending. */
#ifndef SK_SCHEDULE_SIM_H
#define SK_SCHEDULE_SIM_H
#include "src/schedule.h"

typedef struct channel { /* messages of one kind into one stage */
  int64_t n, posted, sent, taken;
  int32_t *post, *send; /* [n] when that was */
} channel;

typedef struct stage {
  uint8_t *code; /* [n] op, msg << 3, in << 4, out << 5 */
  int64_t n, pc;
  int sends[SK_NMSGS];
  channel in[SK_NMSGS];
  int64_t clock;
  bool waiting; /* in the list of those that may proceed */
} stage;

typedef struct times {
  int t[3];      /* forward, backward, weights of one chunk */
  uint64_t key;  /* not 0: computing takes 0.5 to 1.5 of that, and sending 0 to 1 forwards */
  bool no_rings; /* all receives posted at the start, a send buffer for every message */
  bool at_once;  /* a send is waited for before the next action (overlap.h) */
} times;

typedef struct sim {
  int p;
  stage *st; /* [p] */
  times t;
  int *list, head, count; /* [p] ring of stages that may proceed */
} sim;

static void wake(sim *m, int i) {
  if (m->st[i].waiting) return;
  m->st[i].waiting = true;
  m->list[(m->head + m->count++) % m->p] = i;
}

static double draw(const sim *m, int i, int64_t what) {
  return sk_uniform(m->t.key, (uint64_t)i << 40 | (uint64_t)what);
}

// When message k has arrived and its send has ended, both being posted.
static int64_t arrival(const sim *m, int to, int msg, int64_t k) {
  const channel *c = &m->st[to].in[msg];
  int64_t at = m->t.no_rings || c->send[k] > c->post[k] ? c->send[k] : c->post[k];
  return m->t.key ? at + (int64_t)(m->t.t[0] * draw(m, to, 1 << 30 | k << 1 | msg)) : at;
}

// Whether all that stage i has sent has a receive.
static bool all_end(const sim *m, int i) {
  for (int msg = 0; msg < SK_NMSGS; msg++) {
    const channel *out = &m->st[msg == SK_MSG_X ? (i + 1) % m->p : (i + m->p - 1) % m->p].in[msg];
    if (out->posted < out->sent) return false;
  }
  return true;
}

// Lets stage i act until it has to wait.
static void proceed(sim *m, int i) {
  stage *st = &m->st[i];
  for (; st->pc < st->n; st->pc++) {
    const uint8_t code = st->code[st->pc];
    const int op = code & 7, msg = code >> 3 & 1;
    const int up = (i + 1) % m->p, down = (i + m->p - 1) % m->p;
    const int to = msg == SK_MSG_X ? up : down, from = msg == SK_MSG_X ? down : up;
    channel *in = &st->in[msg], *out = &m->st[to].in[msg];
    if (m->t.at_once && !all_end(m, i)) return;
    if (op == SK_DO_RECV) {
      in->post[in->posted++] = (int32_t)st->clock;
      wake(m, from);
    } else if (op == SK_DO_SEND) {
      out->send[out->sent++] = (int32_t)st->clock;
      wake(m, to);
    } else {
      int64_t start = st->clock, t, old = out->sent - st->sends[msg];
      const bool wait = code >> 5 && old >= 0 && !m->t.no_rings;
      if ((code >> 4 & 1) && in->sent <= in->taken) return;
      if (wait && out->posted <= old) return;
      if ((code >> 4 & 1) && (t = arrival(m, i, msg, in->taken++)) > start) start = t;
      if (wait && (t = arrival(m, to, msg, old)) > start) start = t;
      t = m->t.t[op];
      st->clock = start + (m->t.key ? (int64_t)((double)t * (0.5 + draw(m, i, st->pc))) : t);
    }
  }
}

/* Runs all tables. Returns when the last stage is ready, or -1 for a deadlock. */
static int64_t run(int p, stage *st, times t) {
  sim m = {.p = p, .st = st, .t = t, .list = sk_malloc((size_t)p * sizeof(int))};
  int64_t end = 0;
  for (int i = 0; i < p; i++) {
    st[i].pc = st[i].clock = 0;
    st[i].waiting = false;
    for (int k = 0; k < SK_NMSGS; k++)
      st[i].in[k].posted = st[i].in[k].sent = st[i].in[k].taken = 0;
  }
  for (int i = 0; i < p; i++) wake(&m, i);
  while (m.count > 0) {
    int i = m.list[m.head];
    m.head = (m.head + 1) % p;
    m.count--;
    st[i].waiting = false;
    proceed(&m, i);
  }
  for (int i = 0; i < p && end >= 0; i++) {
    if (st[i].clock > end) end = st[i].clock;
    if (st[i].pc < st[i].n) end = -1;
  }
  sk_free(m.list);
  return end;
}
#endif
