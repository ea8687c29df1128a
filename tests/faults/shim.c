/* shim.c: preloaded into one rank, makes a chosen file operation fail, or a signal fall into it.
 *   SAKER_SHIM=RANK:CALL:PATH:NTH[+]:ACTION
 * RANK   of the job (Open MPI's, PMI's or Slurm's environment says who one is; 0 without any)
 * CALL   open (for writing), write, fsync, rename, mkdir, unlink, reserve (fallocate, ftruncate)
 * PATH   a shell pattern for the whole path (* matches / too). rename: of the old path
 * NTH    which of these calls, from 1; with + also all later ones
 * ACTION kill, kill-after (the call is done), torn-kill (half of the write is done), stop, usr1, short (half of the
 *        write is done and said), or an error's name: EIO, ENOSPC, EDQUOT
 * Each fault is noted in the file SAKER_SHIM_LOG, so that a fault that never came is seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static struct {
  bool on, later;
  char call[16], path[128], action[16];
  int nth;
} want;
static _Atomic int seen;

static int my_rank(void) {
  static const char *const name[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"};
  for (size_t i = 0; i < sizeof name / sizeof *name; i++)
    if (getenv(name[i])) return atoi(getenv(name[i]));
  return 0;
}

__attribute__((constructor)) static void start(void) {
  const char *s = getenv("SAKER_SHIM");
  int rank, at = 0;
  if (!s || sscanf(s, "%d:%15[^:]:%127[^:]:%d%n", &rank, want.call, want.path, &want.nth, &at) != 4) return;
  if (s[at] == '+') want.later = true, at++;
  if (s[at] != ':' || sscanf(s + at + 1, "%15s", want.action) != 1) return;
  want.on = rank == my_rank() && strstr(program_invocation_short_name, "saker");
}

static void note(const char *path) {
  const char *log = getenv("SAKER_SHIM_LOG");
  char line[512];
  int n = snprintf(line, sizeof line, "%s %s %s\n", want.call, path, want.action);
  int fd = log ? (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0666) : -1;
  if (fd >= 0 && syscall(SYS_write, fd, line, (size_t)n) >= 0) syscall(SYS_close, fd);
}

/* Is this the call? Then what comes before it happens here. */
static bool hit(const char *call, const char *path) {
  if (!want.on || strcmp(call, want.call) != 0 || !path) return false;
  if (fnmatch(want.path, path, 0) != 0) return false;
  int n = atomic_fetch_add(&seen, 1) + 1;
  if (n != want.nth && !(want.later && n > want.nth)) return false;
  note(path);
  if (!strcmp(want.action, "kill")) raise(SIGKILL);
  if (!strcmp(want.action, "stop")) raise(SIGSTOP);
  if (!strcmp(want.action, "usr1")) raise(SIGUSR1);
  return true;
}

static bool hit_fd(const char *call, int fd) {
  char link[64], path[4096];
  if (!want.on) return false;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return false;
  path[n] = 0;
  return hit(call, path);
}

/* The error to return with, 0: go on. */
static int error_of(void) {
  if (!strcmp(want.action, "EIO")) return EIO;
  if (!strcmp(want.action, "ENOSPC")) return ENOSPC;
  if (!strcmp(want.action, "EDQUOT")) return EDQUOT;
  return 0;
}
static void after(void) {
  if (!strcmp(want.action, "kill-after")) raise(SIGKILL);
}
static bool half(void) { return !strcmp(want.action, "short") || !strcmp(want.action, "torn-kill"); }
static void after_half(void) {
  if (!strcmp(want.action, "torn-kill")) raise(SIGKILL);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* A call without data: fails, or is done and perhaps followed by the end. */
#define PLAIN(test, real)                                   \
  do {                                                      \
    if (!(test)) return real;                               \
    if (error_of()) return errno = error_of(), -1;          \
    int rc_ = (int)(real);                                  \
    after();                                                \
    return rc_;                                             \
  } while (0)

int open(const char *path, int flags, ...) {
  va_list ap;
  va_start(ap, flags);
  mode_t mode = va_arg(ap, mode_t);
  va_end(ap);
  PLAIN((flags & (O_WRONLY | O_RDWR)) && hit("open", path), REAL(open)(path, flags, mode));
}
int open64(const char *path, int flags, ...) {
  va_list ap;
  va_start(ap, flags);
  mode_t mode = va_arg(ap, mode_t);
  va_end(ap);
  PLAIN((flags & (O_WRONLY | O_RDWR)) && hit("open", path), REAL(open64)(path, flags, mode));
}
int fsync(int fd) { PLAIN(hit_fd("fsync", fd), REAL(fsync)(fd)); }
int fdatasync(int fd) { PLAIN(hit_fd("fsync", fd), REAL(fdatasync)(fd)); }
int rename(const char *a, const char *b) { PLAIN(hit("rename", a), REAL(rename)(a, b)); }
int renameat2(int da, const char *a, int db, const char *b, unsigned flags) {
  PLAIN(hit("rename", a), REAL(renameat2)(da, a, db, b, flags));
}
int mkdir(const char *path, mode_t mode) { PLAIN(hit("mkdir", path), REAL(mkdir)(path, mode)); }
int unlink(const char *path) { PLAIN(hit("unlink", path), REAL(unlink)(path)); }
int remove(const char *path) { PLAIN(hit("unlink", path), REAL(remove)(path)); }
int rmdir(const char *path) { PLAIN(hit("unlink", path), REAL(rmdir)(path)); }
int ftruncate(int fd, off_t n) { PLAIN(hit_fd("reserve", fd), REAL(ftruncate)(fd, n)); }
int ftruncate64(int fd, off64_t n) { PLAIN(hit_fd("reserve", fd), REAL(ftruncate64)(fd, n)); }
int fallocate(int fd, int mode, off_t at, off_t n) { PLAIN(hit_fd("reserve", fd), REAL(fallocate)(fd, mode, at, n)); }
int posix_fallocate(int fd, off_t at, off_t n) {
  if (!hit_fd("reserve", fd)) return REAL(posix_fallocate)(fd, at, n);
  if (error_of()) return error_of(); /* this one does not use errno */
  return REAL(posix_fallocate)(fd, at, n);
}

/* A write: fails, or half of it or all is done. */
#define WRITE(n, whole, part)                          \
  do {                                                 \
    if (!hit_fd("write", fd)) return whole;            \
    if (error_of()) return errno = error_of(), -1;     \
    if (half() && (n) > 1) {                           \
      ssize_t some_ = part;                            \
      after_half();                                    \
      return some_;                                    \
    }                                                  \
    ssize_t rc_ = whole;                               \
    after();                                           \
    return rc_;                                        \
  } while (0)

ssize_t write(int fd, const void *p, size_t n) { WRITE(n, REAL(write)(fd, p, n), REAL(write)(fd, p, n / 2)); }
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) {
  WRITE(n, REAL(pwrite)(fd, p, n, at), REAL(pwrite)(fd, p, n / 2, at));
}
ssize_t pwrite64(int fd, const void *p, size_t n, off64_t at) {
  WRITE(n, REAL(pwrite64)(fd, p, n, at), REAL(pwrite64)(fd, p, n / 2, at));
}
ssize_t writev(int fd, const struct iovec *v, int n) {
  WRITE(v[0].iov_len, REAL(writev)(fd, v, n), REAL(write)(fd, v[0].iov_base, v[0].iov_len / 2));
}
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at) {
  WRITE(v[0].iov_len, REAL(pwritev)(fd, v, n, at), REAL(pwrite)(fd, v[0].iov_base, v[0].iov_len / 2, at));
}
ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t at) {
  WRITE(v[0].iov_len, REAL(pwritev64)(fd, v, n, at), REAL(pwrite64)(fd, v[0].iov_base, v[0].iov_len / 2, at));
}
