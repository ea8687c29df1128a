#include "src/schedule.h"
#include <stdio.h>

/* Ring lengths: one buffer to read while the next message arrives, one to write while the last one
 * leaves. Longer rings gain nothing that tests/schedule.c could see, even where a stage is several
 * messages ahead of its neighbour. */
enum { BUFFERS = 2 };
enum { TAGS = 16383 }; /* 2 * TAGS <= 32767 */

typedef struct builder {
  sk_schedule *s;
  int64_t capacity;
  int64_t next[SK_NMSGS]; /* the forward (backward) whose receive may be the next to be posted */
  int live, *live_of;     /* now */
} builder;

// Says why interleaved does not work with this many micro-batches, and which would do.
static int not_multiple(int stages, long long micro, int virtual_stages, sk_err *e) {
  const long long low = micro / stages * stages, high = low + stages;
  const long long most = SK_SCHED_MAX_FORWARDS / virtual_stages;
  char cure[160];
  if (low > 0 && high <= most)
    snprintf(cure, sizeof cure, "the nearest that work are %lld and %lld", low, high);
  else if (low > 0 || high <= most)
    snprintf(cure, sizeof cure, "the nearest that works is %lld", low > 0 ? low : high);
  else
    snprintf(cure, sizeof cure, "and with %d virtual stages at most %lld work: use fewer of either",
             virtual_stages, most);
  return sk_fail(e, SK_USAGE,
                 "The interleaved schedule on %d stages needs a multiple of %d micro-batches in "
                 "one step, not %lld; %s.", stages, stages, micro, cure);
}

int sk_schedule_check(int kind, int stages, int64_t micro, int virtual_stages, sk_err *e) {
  const int v = virtual_stages;
  if (kind < 0 || kind >= SK_NSCHEDS)
    return sk_fail(e, SK_USAGE, "There is no pipeline schedule number %d.", kind);
  if (stages < 1 || stages > SK_SCHED_MAX_STAGES)
    return sk_fail(e, SK_USAGE, "A pipeline of %d stages: it must be 1 to %d.", stages,
                   SK_SCHED_MAX_STAGES);
  if (kind == SK_SCHED_INTERLEAVED && (v < 2 || v > SK_SCHED_MAX_VIRTUAL))
    return sk_fail(e, SK_USAGE, "The interleaved schedule takes 2 to %d virtual stages, not %d%s.",
                   SK_SCHED_MAX_VIRTUAL, v, v == 1 ? "; with 1 it is the schedule 1f1b" : "");
  if (kind != SK_SCHED_INTERLEAVED && v != 1)
    return sk_fail(e, SK_USAGE, "The schedule %s takes 1 virtual stage, not %d%s.",
                   kind == SK_SCHED_1F1B ? "1f1b" : "zb-h1", v,
                   v > 1 ? "; several need the schedule interleaved" : "");
  if (micro < 1)
    return sk_fail(e, SK_USAGE, "A step of %lld micro-batches: it needs at least 1.",
                   (long long)micro);
  if (micro > SK_SCHED_MAX_FORWARDS / v)
    return sk_fail(e, SK_USAGE,
                   "A step of %lld micro-batches on %d virtual stages: at most %d work; make the "
                   "micro-batches larger.", (long long)micro, v, SK_SCHED_MAX_FORWARDS / v);
  if (kind == SK_SCHED_INTERLEAVED && micro % stages != 0) return not_multiple(stages, micro, v, e);
  return SK_OK;
}

/* The k-th forward or backward of the stage. Groups of p micro-batches go through chunk after
 * chunk, backward through the chunks in reverse; with one chunk this is the order of the index. */
static sk_action nth(const sk_schedule *s, int op, int64_t k) {
  const int64_t p = s->stages, v = s->virtual_stages;
  const int64_t group = k / (p * v), rest = k % (p * v), turn = rest / p;
  const bool forward = op == SK_DO_FORWARD;
  const int64_t chunk = forward ? turn : v - 1 - turn;
  const bool first = chunk == 0 && s->stage == 0, last = chunk == v - 1 && s->stage == p - 1;
  return (sk_action){
      .op = (uint8_t)op,
      .msg = forward ? SK_MSG_X : SK_MSG_DX,
      .in = p > 1 && !(forward ? first : last),
      .out = p > 1 && !(forward ? last : first),
      .micro = (int)(group * p + rest % p),
      .chunk = (int)chunk,
  };
}

static void push(builder *b, sk_action a) {
  SK_ASSERT(b->s->n < b->capacity);
  b->s->at[b->s->n++] = a;
}

/* The message that action a reads (op SK_DO_RECV) or has written (SK_DO_SEND). Activations come
 * from the stage before and go to the one after, around the end; gradients the other way. */
static void message(builder *b, int op, sk_action a) {
  const int p = b->s->stages, stage = b->s->stage;
  const bool lower = (op == SK_DO_RECV) == (a.msg == SK_MSG_X); // the peer has the part below
  const int peer = lower ? (stage + p - 1) % p : (stage + 1) % p;
  const int chunk = a.chunk - (lower && stage == 0); // of the lower of the two parts
  const int64_t pair = (int64_t)a.micro * b->s->virtual_stages + chunk;
  push(b, (sk_action){.op = (uint8_t)op,
                      .msg = a.msg,
                      .micro = a.micro,
                      .chunk = a.chunk,
                      .peer = peer,
                      .tag = (int)(2 * (pair % TAGS)) + a.msg});
}

// Posts the next receive of one kind, if there is one left.
static void post(builder *b, int msg) {
  const int64_t all = b->s->micro * b->s->virtual_stages;
  while (b->next[msg] < all) {
    sk_action a = nth(b->s, msg == SK_MSG_X ? SK_DO_FORWARD : SK_DO_BACKWARD, b->next[msg]++);
    if (!a.in) continue;
    message(b, SK_DO_RECV, a);
    return;
  }
}

static void born(builder *b, int chunk) {
  sk_schedule *s = b->s;
  if (++b->live > s->live) s->live = b->live;
  if (++b->live_of[chunk] > s->live_of[chunk]) s->live_of[chunk] = b->live_of[chunk];
}

static void freed(builder *b, int chunk) {
  b->live--;
  b->live_of[chunk]--;
}

static void compute(builder *b, int op, int64_t k) {
  sk_action a = nth(b->s, op, k);
  if (op == SK_DO_FORWARD) born(b, a.chunk);
  push(b, a);
  if (a.out) message(b, SK_DO_SEND, a);
  if (a.in) post(b, a.msg); // into the buffer that was just read
  if (op == SK_DO_BACKWARD && b->s->kind != SK_SCHED_ZB_H1) freed(b, a.chunk);
}

static void weights(builder *b, int64_t k) {
  push(b, (sk_action){.op = SK_DO_WEIGHTS, .micro = (int)k});
  freed(b, 0);
}

// Forwards before the first backward, not counting the one right before it.
static int64_t warmup(const sk_schedule *s) {
  const int64_t p = s->stages, later = p - 1 - s->stage;
  if (p == 1) return 0;
  return s->kind == SK_SCHED_INTERLEAVED ? (s->virtual_stages - 1) * p + 2 * later : later;
}

/* Warm-up, one forward one backward, the rest of the backwards. zb-h1 lets the queue of weight
 * gradients grow to `stage` before it computes one per backward: the later the stage, the more of
 * them are left to fill the time when the last micro-batches' backwards move down (Qi et al. 2023,
 * section 2.1). */
static void fill(builder *b) {
  sk_schedule *s = b->s;
  const int64_t all = s->micro * s->virtual_stages, warm = warmup(s);
  const int64_t run = s->stages == 1 ? s->virtual_stages : 1;
  const bool split = s->kind == SK_SCHED_ZB_H1;
  int64_t f = 0, w = 0;
  for (int msg = 0; msg < SK_NMSGS; msg++)
    for (int i = 0; i < s->recv_buffers[msg]; i++) post(b, msg);
  while (f < warm && f < all) compute(b, SK_DO_FORWARD, f++);
  for (int64_t k = 0; k < all; k += run) {
    for (int64_t i = 0; i < run && f < all; i++) compute(b, SK_DO_FORWARD, f++);
    for (int64_t i = 0; i < run; i++) compute(b, SK_DO_BACKWARD, k + i);
    if (!split) continue;
    if (k + 1 - w > s->queued) s->queued = (int)(k + 1 - w);
    if (k + 1 - w > s->stage) weights(b, w++);
  }
  while (split && w < all) weights(b, w++);
}

static int least(int64_t a, int64_t b) { return (int)(a < b ? a : b); }

int sk_schedule_create(sk_schedule *s, int kind, int stages, int stage, int64_t micro,
                       int virtual_stages, sk_err *e) {
  *s = (sk_schedule){0};
  int rc = sk_schedule_check(kind, stages, micro, virtual_stages, e);
  if (rc != SK_OK) return rc;
  if (stage < 0 || stage >= stages)
    return sk_fail(e, SK_USAGE, "Stage %d of a pipeline of %d: it must be 0 to %d.", stage, stages,
                   stages - 1);
  s->kind = kind;
  s->stages = stages;
  s->stage = stage;
  s->virtual_stages = virtual_stages;
  s->micro = micro;

  // Below a part there is always a message, except below part 0; above it, except above the last.
  const bool pipe = stages > 1, last = stage == stages - 1;
  const int64_t below = pipe ? micro * (virtual_stages - (stage == 0)) : 0;
  const int64_t above = pipe ? micro * (virtual_stages - last) : 0;
  s->recv_buffers[SK_MSG_X] = s->send_buffers[SK_MSG_DX] = least(BUFFERS, below);
  s->recv_buffers[SK_MSG_DX] = s->send_buffers[SK_MSG_X] = least(BUFFERS, above);
  const int64_t computes = (kind == SK_SCHED_ZB_H1 ? 3 : 2) * micro * virtual_stages;
  builder b = {.s = s, .capacity = computes + 2 * (below + above)};
  s->at = sk_malloc((size_t)b.capacity * sizeof *s->at);
  s->live_of = sk_calloc((size_t)virtual_stages, sizeof *s->live_of);
  b.live_of = sk_calloc((size_t)virtual_stages, sizeof *b.live_of);
  fill(&b);
  SK_ASSERT(s->n == b.capacity && b.live == 0);
  sk_free(b.live_of);
  return SK_OK;
}

void sk_schedule_destroy(sk_schedule *s) {
  if (!s) return;
  sk_free(s->at);
  sk_free(s->live_of);
  *s = (sk_schedule){0};
}
