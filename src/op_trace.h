/* op_trace.h: where a device's time goes, op by op: a device table that calls another one's ops between two marks
 * in their stream. For measurements only: marks cost time, and there is one trace at a time. */
#ifndef SK_OP_TRACE_H
#define SK_OP_TRACE_H
#include "src/timer.h"
#include "kernels/ops.h"

/* One op in one section of the timer. */
typedef struct sk_op_trace_line {
  const char *op;
  int section;    /* SK_T_... */
  int64_t calls;
  double seconds; /* on the device, from the op's start to its end in its stream */
  double flops;   /* of matrix products, 0 for other ops */
} sk_op_trace_line;

/* The table: like op's, on op's device dev. Sections are those in which `timer` is at a call; it must have been
 * started. op, dev and timer are borrowed until sk_op_trace_close. */
const sk_ops *sk_op_trace_open(const sk_ops *op, sk_device *dev, const sk_timer *timer);
/* Waits for the work so far, writes at most `most` lines in order of sections and first calls, and returns how many
 * there are. The marks are forgotten. */
int sk_op_trace_read(sk_op_trace_line *line, int most);
void sk_op_trace_close(void);
#endif
