#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/scratch.h"
#include "io/fsutil.h"
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

int sk_scratch_open(sk_scratch *s, const char *near, int rank, sk_err *e) {
  s->path = sk_strf("%s.tmp.%d", near, rank);
  unlink(s->path); // of a build that was killed between the next two lines
  s->fd = open(s->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (s->fd < 0) return sk_fs_fail(e, s->path, "written", errno);
  unlink(s->path);
  return SK_OK;
}

void sk_scratch_close(sk_scratch *s) {
  if (s->fd >= 0) close(s->fd);
  sk_free(s->path);
  *s = (sk_scratch)SK_NO_SCRATCH;
}

void sk_scratch_put(sk_scratch *s, const void *data, size_t n, sk_err *e) {
  for (const char *p = data; n > 0 && !e->code;) {
    ssize_t k = write(s->fd, p, n);
    if (k < 0 && errno == EINTR) continue;
    if (k < 0) sk_fs_fail(e, s->path, "written", errno);
    else p += k, n -= (size_t)k;
  }
}

void sk_scratch_get(const sk_scratch *s, size_t at, void *data, size_t n, sk_err *e) {
  for (char *p = data; n > 0 && !e->code;) {
    ssize_t k = pread(s->fd, p, n, (off_t)at);
    if (k < 0 && errno == EINTR) continue;
    if (k <= 0) sk_fs_fail(e, s->path, "read", k < 0 ? errno : EIO);
    else p += k, n -= (size_t)k, at += (size_t)k;
  }
}
