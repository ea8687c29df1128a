#include "io/text_read.h"
#include "io/fsutil.h"
#include "io/text_list.h"
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

enum { BLOCK = 1 << 17 };

struct sk_text {
  char *path;
  int fd;
  int64_t at;
  gzFile gz;         /* owns fd when there */
  ZSTD_DStream *zst;
  ZSTD_inBuffer in;
  char *block;       /* [BLOCK] what zst reads from */
  size_t state;      /* ZSTD's last answer: 0 at the end of a frame */
};

sk_text *sk_text_open(const char *path, int64_t begin, sk_err *e) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    sk_fs_fail(e, path, "read", errno);
    return NULL;
  }
  sk_text *t = sk_calloc(1, sizeof *t);
  *t = (sk_text){.path = sk_strdup(path), .fd = fd, .at = begin};
  if (sk_ends_in(path, ".gz")) {
    t->gz = gzdopen(fd, "rb");
    SK_CHECK(t->gz, "%s: out of memory for zlib", path);
    gzbuffer(t->gz, BLOCK);
  } else if (sk_ends_in(path, ".zst")) {
    t->zst = ZSTD_createDStream();
    SK_CHECK(t->zst, "%s: out of memory for zstd", path);
    t->block = sk_malloc(BLOCK);
    t->in.src = t->block;
  }
  return t;
}

void sk_text_close(sk_text *t) {
  if (!t) return;
  if (t->gz) gzclose(t->gz);
  else close(t->fd);
  ZSTD_freeDStream(t->zst);
  sk_free(t->block);
  sk_free(t->path);
  sk_free(t);
}

static size_t read_plain(sk_text *t, char *buf, size_t n, sk_err *e) {
  ssize_t k;
  do k = pread(t->fd, buf, n, t->at);
  while (k < 0 && errno == EINTR);
  if (k < 0) sk_fs_fail(e, t->path, "read", errno);
  if (k > 0) t->at += k;
  return k > 0 ? (size_t)k : 0;
}

static size_t read_gz(sk_text *t, char *buf, size_t n, sk_err *e) {
  int k = gzread(t->gz, buf, n > BLOCK ? BLOCK : (unsigned)n), code = 0;
  const char *why = gzerror(t->gz, &code);
  if (gzdirect(t->gz)) sk_fail(e, SK_FAILED, "%s: not in gzip's format, as its name says", t->path);
  else if (k < 0 || (code != Z_OK && code != Z_STREAM_END))
    sk_fail(e, SK_FAILED, "%s: damaged or cut off: %s", t->path, code == Z_ERRNO ? "it cannot be read" : why);
  return k > 0 && !e->code ? (size_t)k : 0;
}

static size_t read_zst(sk_text *t, char *buf, size_t n, sk_err *e) {
  ZSTD_outBuffer out = {buf, n, 0};
  while (out.pos == 0 && !e->code) {
    if (t->in.pos == t->in.size) {
      t->in.pos = 0;
      t->in.size = read_plain(t, t->block, BLOCK, e);
      if (e->code) break;
      if (t->in.size == 0 && t->state != 0) sk_fail(e, SK_FAILED, "%s: cut off", t->path);
      if (t->in.size == 0) break;
    }
    t->state = ZSTD_decompressStream(t->zst, &out, &t->in);
    if (ZSTD_isError(t->state)) sk_fail(e, SK_FAILED, "%s: damaged: %s", t->path, ZSTD_getErrorName(t->state));
  }
  return e->code ? 0 : out.pos;
}

size_t sk_text_read(sk_text *t, char *buf, size_t n, sk_err *e) {
  size_t got = 0, k = 1;
  while (got < n && k > 0 && !e->code) {
    k = (t->gz ? read_gz : t->zst ? read_zst : read_plain)(t, buf + got, n - got, e);
    got += k;
  }
  return e->code ? 0 : got;
}

int64_t sk_text_used(const sk_text *t) { return t->gz ? (int64_t)gzoffset(t->gz) : t->at; }
