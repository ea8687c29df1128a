#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "tests/faults_shim.h"
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

const char *const shim_name[SHIM_KINDS] = {"none", "ENOSPC", "EIO", "EDQUOT", "EINTR", "short write", "lost write",
                                           "bit flipped by a write", "disk full from there on", "killed",
                                           "killed in a write"};

static struct {
  char folder[1024];
  shim_kind kind;
  int64_t nth;
  uint64_t pick;
} want;
static atomic_bool active, dead, full, hit;
static atomic_llong count;

void shim_begin(const char *folder, shim_kind kind, int64_t nth, uint64_t pick) {
  char *real = realpath(folder, NULL);
  snprintf(want.folder, sizeof want.folder, "%s", real ? real : folder);
  free(real);
  want.kind = kind;
  want.nth = nth;
  want.pick = pick;
  dead = full = hit = false;
  count = 0;
  active = true;
}

int64_t shim_end(bool *was_hit) {
  active = dead = full = false;
  *was_hit = hit;
  return count;
}

static bool path_here(const char *path) {
  char at[4096];
  if (!atomic_load(&active)) return false;
  if (path[0] == '/') return strncmp(path, want.folder, strlen(want.folder)) == 0;
  return getcwd(at, sizeof at) && strncmp(at, want.folder, strlen(at)) == 0;
}

/* *saved: the file belongs to a checkpoint. */
static bool fd_here(int fd, bool *saved) {
  char link[64], path[4096];
  struct stat st;
  *saved = false;
  if (!atomic_load(&active) || fstat(fd, &st) != 0 || !(S_ISREG(st.st_mode) || S_ISDIR(st.st_mode))) return false;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  path[n > 0 ? n : 0] = 0;
  *saved = strstr(path, "/checkpoints/step-") != NULL;
  return strncmp(path, want.folder, strlen(want.folder)) == 0;
}

/* What happens to this call: NONE: nothing. */
static shim_kind turn(void) {
  if (dead) return SHIM_DEAD;
  int64_t mine = atomic_fetch_add(&count, 1) + 1;
  if (full) return SHIM_FULL;
  if (mine != want.nth || want.kind == SHIM_NONE) return SHIM_NONE;
  if (want.kind == SHIM_DEAD || want.kind == SHIM_TORN) dead = true;
  if (want.kind == SHIM_FULL) full = true;
  return want.kind;
}

static int code(shim_kind k) {
  switch (k) {
    case SHIM_ENOSPC:
    case SHIM_FULL: return ENOSPC;
    case SHIM_EDQUOT: return EDQUOT;
    case SHIM_EINTR: return EINTR;
    default: return EIO;
  }
}

/* ---- writes ---- */

static ssize_t pass_on(int fd, const void *p, size_t n, off_t at) {
  return at < 0 ? syscall(SYS_write, fd, p, n) : syscall(SYS_pwrite64, fd, p, n, at);
}

static ssize_t some_write(int fd, const void *p, size_t n, off_t at) {
  bool saved;
  shim_kind k = n > 0 && fd_here(fd, &saved) ? turn() : SHIM_NONE;
  if (k == SHIM_NONE || ((k == SHIM_LOST || k == SHIM_FLIPPED) && !saved)) return pass_on(fd, p, n, at);
  hit = true;
  if (k == SHIM_SHORT) return pass_on(fd, p, n > 1 ? n / 2 : 1, at);
  if (k == SHIM_LOST) {
    if (at < 0) lseek(fd, (off_t)n, SEEK_CUR);
    return (ssize_t)n;
  }
  if (k == SHIM_FLIPPED) {
    char *copy = malloc(n);
    memcpy(copy, p, n);
    copy[want.pick / 8 % n] ^= (char)(1 << want.pick % 8);
    ssize_t done = pass_on(fd, copy, n, at);
    free(copy);
    return done;
  }
  if (k == SHIM_TORN) pass_on(fd, p, n / 2, at);
  errno = code(k);
  return -1;
}

ssize_t write(int fd, const void *p, size_t n) { return some_write(fd, p, n, -1); }
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) { return some_write(fd, p, n, at); }
ssize_t pwrite64(int fd, const void *p, size_t n, off64_t at) { return some_write(fd, p, n, at); }

/* ---- the others either happen or fail ---- */

static bool fails(bool here, bool needs_space, bool may_be_interrupted) {
  shim_kind k = here ? turn() : SHIM_NONE;
  if (k == SHIM_NONE || k == SHIM_SHORT || k == SHIM_LOST || k == SHIM_FLIPPED) return false;
  if (k == SHIM_FULL && !needs_space) return false;
  hit = true;
  errno = k == SHIM_EINTR && !may_be_interrupted ? EIO : code(k);
  return true;
}

int fsync(int fd) {
  bool saved;
  if (!fd_here(fd, &saved)) return (int)syscall(SYS_fsync, fd);
  return fails(true, true, false) ? -1 : 0;
}

int rename(const char *from, const char *to) {
  return fails(path_here(to), false, false) ? -1 : (int)syscall(SYS_rename, from, to);
}

/* Sometimes a file system that cannot exchange names. */
int renameat2(int dir, const char *from, int dir2, const char *to, unsigned flags) {
  if (path_here(to) && want.pick % 2) return errno = EINVAL, -1;
  return fails(path_here(to), false, false) ? -1 : (int)syscall(SYS_renameat2, dir, from, dir2, to, flags);
}

int mkdir(const char *path, mode_t mode) {
  return fails(path_here(path), true, false) ? -1 : (int)syscall(SYS_mkdir, path, mode);
}

int fallocate(int fd, int mode, off_t at, off_t n) {
  bool saved;
  return fails(fd_here(fd, &saved), true, true) ? -1 : (int)syscall(SYS_fallocate, fd, mode, at, n);
}

int ftruncate(int fd, off_t n) {
  bool saved;
  return fails(fd_here(fd, &saved), true, false) ? -1 : (int)syscall(SYS_ftruncate, fd, n);
}

int unlink(const char *path) { return fails(path_here(path), false, false) ? -1 : (int)syscall(SYS_unlink, path); }

int remove(const char *path) {
  if (fails(path_here(path), false, false)) return -1;
  int rc = (int)syscall(SYS_unlink, path);
  return rc != 0 && errno == EISDIR ? (int)syscall(SYS_rmdir, path) : rc;
}

int open(const char *path, int flags, ...) {
  va_list ap;
  va_start(ap, flags);
  mode_t mode = flags & O_CREAT ? va_arg(ap, mode_t) : 0;
  va_end(ap);
  if (flags & O_CREAT && fails(path_here(path), true, false)) return -1;
  return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
