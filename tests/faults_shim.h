/* faults_shim.h: system calls that fail on demand. The program's own definitions of write, pwrite, fsync, rename and
 * their kin stand before the C library's; they pass on what does not concern the folder under test. */
#ifndef SK_FAULTS_SHIM_H
#define SK_FAULTS_SHIM_H
#include <stdbool.h>
#include <stdint.h>

typedef enum shim_kind {
  SHIM_NONE,
  SHIM_ENOSPC,   /* one call: no space, and so on */
  SHIM_EIO,
  SHIM_EDQUOT,
  SHIM_EINTR,    /* interrupted before anything was done: to be called again */
  SHIM_SHORT,    /* a write takes half of what it is given */
  SHIM_LOST,     /* a write to a checkpoint's file takes everything and writes nothing */
  SHIM_FLIPPED,  /* a write to a checkpoint's file writes one bit wrong */
  SHIM_FULL,     /* from this call on every one that needs space fails */
  SHIM_DEAD,     /* from this call on nothing reaches the disk: as after a kill -9 */
  SHIM_TORN,     /* the same, but half of this write does */
  SHIM_KINDS
} shim_kind;
extern const char *const shim_name[SHIM_KINDS];

/* Calls that change something under `folder` are counted from now on; number `nth` (0: none) suffers `kind`. pick: which
 * bit and the like. No fsync is passed on: the tests do not cut the power. */
void shim_begin(const char *folder, shim_kind kind, int64_t nth, uint64_t pick);
/* Back to normal. Returns the calls counted; *hit: the fault has happened. */
int64_t shim_end(bool *hit);
#endif
