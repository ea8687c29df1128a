/* events.h: event files for TensorBoard: RUN/tensorboard/events.out.tfevents.TIME.HOST.PID, one for every start.
 * TFRecord framing (length, masked CRC-32C of it, data, masked CRC-32C of them; all little-endian) around the
 * protobuf messages Event{1 wall_time double, 2 step int64, 3 file_version string, 5 summary} and
 * Summary{1 value{1 tag string, 2 simple_value float}}. */
#ifndef SK_EVENTS_H
#define SK_EVENTS_H
#include "src/base.h"

typedef struct sk_events sk_events; /* NULL: every call does nothing */

/* Not collective: for rank 0. Creates the folder and a fresh file; NULL and *e on failure. */
sk_events *sk_events_open(const char *run_dir, sk_err *e);
/* Closes the file. NULL is fine. */
void sk_events_close(sk_events *w);
/* One event of n scalars of a step, appended by one write; a failure is a warning, once. */
void sk_events_scalars(sk_events *w, int64_t step, int n, const char *const *tag, const double *value);
#endif
