/* schedule.h: pipeline schedules as tables. A table lists in order what one stage does in one step:
 * compute, post a receive, send. It is a pure function of (kind, stages, stage, micro-batches,
 * virtual stages). Nothing here communicates or is collective. Not in the table, and left to the
 * caller: embedding and loss (with the first and the last part), the sum of a tied matrix's two
 * gradients, the reduction over dp, the optimizer's step.
 *
 * Parts. The model is cut into stages * virtual_stages parts; chunk c of stage s is part
 * c * stages + s. Forward goes up through the parts, backward down. Activations (SK_MSG_X) go from
 * part q to q + 1, their gradients (SK_MSG_DX) back. Below, p = stages, s = stage, v = virtual
 * stages, m = micro-batches; tF, tB, tW are times of one micro-batch on a whole stage.
 *
 *   kind         idle time of the step (the bubble)           live activations of a stage
 *   1f1b         (p-1)(tF+tB)                                 min(m, p-s)              [1, 2.2.1]
 *   interleaved  (p-1)(tF+tB)/v          m a multiple of p    min(mv, (v+1)p-2s-1) / v [1, 2.2.2]
 *   zb-h1        (p-1)(tF+tB) - (min(m,p)-1)tW    tW <= tF    min(m, p)                [2, 2.1]
 *
 * tB is the whole backward pass in the first two; in zb-h1 it is the input gradients alone, and tW
 * the weight gradients, which wait in a queue (first in, first out) that is the longer the later
 * the stage. There m >= p gives the published (p-1)(tF+tB-tW), and the largest memory over the
 * stages is that of 1f1b. Live activations count whole stages; transfers are taken to cost no time.
 * [1] Narayanan et al. 2021, arXiv 2104.04473. [2] Qi et al. 2023, arXiv 2401.10241.
 *
 * In every kind, and for every chunk, forwards, backwards and weight gradients of micro-batch i
 * come before those of i + 1: gradients are added in index order, and the bits do not depend on the
 * kind. One stage degenerates to F0 B0 F1 B1 ... (F0 B0 W0 F1 ...); with several chunks, to all
 * forwards of a micro-batch and then all its backwards, each taking the output of the one just
 * before it.
 *
 * Contract of who executes a table. For each kind of message k there is a ring of recv_buffers[k]
 * receive buffers and one of send_buffers[k] send buffers, each the size of one message; the i-th
 * receive (send) of a kind in the table uses buffer i modulo the ring's length. Actions are
 * executed in order:
 *   SK_DO_RECV      MPI_Irecv(next buffer, peer, tag). Never waits: the table comes to it only
 *                   after the action that read the buffer before.
 *   SK_DO_FORWARD   With `in`, first wait for the oldest receive of kind `msg` that has not been
 *   SK_DO_BACKWARD  waited for, and read its buffer; the buffer is free once the action is over, so
 *                   what backward needs of it is kept elsewhere. With `out`, wait for the send that
 *                   last used the next send buffer before writing to it.
 *   SK_DO_SEND      MPI_Isend(that buffer, peer, tag); always the action right after the one with
 *                   `out`. Never waits.
 *   SK_DO_WEIGHTS   Never waits (zb-h1 only).
 * and after the last one the open sends are waited for. Nothing else waits for a peer, and this
 * cannot deadlock even where a send ends only after its receive was posted. On a device that runs
 * behind the host, an action is over with the event behind it, not with its launch: a send waits
 * for the event of the action that wrote its buffer, a receive for that of the one that read it.
 *
 * Messages of one kind between two stages are sent in the order in which their receives are posted.
 * MPI keeps that order, so the kind in the tag's lowest bit would be enough; micro-batch and chunk
 * in the others make a mistake visible. Tags stay below 32768, the least MPI_TAG_UB. */
#ifndef SK_SCHEDULE_H
#define SK_SCHEDULE_H
#include "src/base.h"

enum { SK_SCHED_1F1B, SK_SCHED_INTERLEAVED, SK_SCHED_ZB_H1, SK_NSCHEDS }; /* parallel.schedule */
enum { SK_DO_FORWARD, SK_DO_BACKWARD, SK_DO_WEIGHTS, SK_DO_RECV, SK_DO_SEND };
enum { SK_MSG_X, SK_MSG_DX, SK_NMSGS }; /* activations, their gradients */

enum { SK_SCHED_MAX_STAGES = 65536, SK_SCHED_MAX_VIRTUAL = 1024, SK_SCHED_MAX_FORWARDS = 1 << 20 };

typedef struct sk_action {
  uint8_t op;  /* SK_DO_... ; backward means input gradients alone in zb-h1 */
  uint8_t msg; /* the message received or sent; forward: SK_MSG_X, backward: SK_MSG_DX */
  bool in;     /* forward, backward: its input is a message, received earlier in the table */
  bool out;    /* forward, backward: its output is a message, sent by the next action */
  int micro;   /* micro-batch, from 0 */
  int chunk;   /* of this stage; of a message, the chunk that reads (receive) or wrote it (send) */
  int peer;    /* receive, send: the other stage, its rank along the pp axis */
  int tag;     /* receive, send: MPI tag, the same on both sides */
} sk_action;

typedef struct sk_schedule {
  int kind, stages, stage, virtual_stages;
  int64_t micro;              /* micro-batches of one step */
  int64_t n;                  /* actions */
  sk_action *at;              /* [n], owned */
  int recv_buffers[SK_NMSGS]; /* ring lengths; 0 where this stage has no such message */
  int send_buffers[SK_NMSGS];
  /* Activations live from forward to backward (zb-h1: to weights), first in first out in each
   * chunk, so that micro-batch i of chunk c can use slot i % live_of[c]. */
  int live;     /* most (micro-batch, chunk) pairs alive at once; at most the sum of live_of */
  int *live_of; /* [virtual_stages] most micro-batches of one chunk alive at once, owned */
  int queued;   /* zb-h1: most micro-batches between backward and weights at once; otherwise 0 */
} sk_schedule;

/* Whether such a schedule exists: SK_OK, or SK_USAGE with e saying what is wrong and which values
 * work. interleaved needs virtual_stages >= 2 and a multiple of `stages` micro-batches (a shorter
 * last group would make stages wait for each other); the others need virtual_stages 1.
 * The limits are SK_SCHED_MAX_STAGES, SK_SCHED_MAX_VIRTUAL, and SK_SCHED_MAX_FORWARDS for
 * micro * virtual_stages. */
int sk_schedule_check(int kind, int stages, int64_t micro, int virtual_stages, sk_err *e);

/* The table of one stage. Errors as sk_schedule_check, and a stage outside [0, stages): then *s is
 * empty. The caller owns *s and destroys it. Takes time and memory for at most
 * 7 * micro * virtual_stages actions. */
int sk_schedule_create(sk_schedule *s, int kind, int stages, int stage, int64_t micro,
                       int virtual_stages, sk_err *e);
void sk_schedule_destroy(sk_schedule *s);
#endif
