#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "io/fsutil.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
// Compiled here, for this machine's vectors: the library's own is for the oldest of them, and half as fast.
#define XXH_INLINE_ALL
#include <xxhash.h>

enum { BLOCK = 256 << 10 }; // stays in a core's cache: beside training the memory has other work

static const char *cure(int err) {
  switch (err) {
  case ENOSPC:
  case EDQUOT: return "; free some space or choose a folder on another disk";
  case EFBIG: return "; raise the limit on file sizes (ulimit -f)";
  case EACCES:
  case EPERM:
  case EROFS: return "; make it accessible or choose another folder";
  case EEXIST:
  case ENOTDIR:
  case EISDIR: return "; something else has that name: move it away or choose another folder";
  case EMFILE:
  case ENFILE: return "; raise the limit on open files (ulimit -n)";
  default: return "";
  }
}

int sk_fs_fail(sk_err *e, const char *path, const char *what, int err) {
  return sk_fail(e, SK_FAILED, "%s: cannot be %s: %s%s", path, what, strerror(err), cure(err));
}

char *sk_fs_parent(const char *path) {
  size_t n = strlen(path);
  while (n > 1 && path[n - 1] == '/') n--;
  while (n > 0 && path[n - 1] != '/') n--;
  while (n > 1 && path[n - 1] == '/') n--;
  return n ? sk_strf("%.*s", (int)n, path) : sk_strdup(".");
}

int sk_fs_mkdirs(const char *dir, sk_err *e) {
  struct stat st;
  if (stat(dir, &st) == 0)
    return S_ISDIR(st.st_mode) ? SK_OK : sk_fs_fail(e, dir, "used as a folder", ENOTDIR);
  if (errno != ENOENT) return sk_fs_fail(e, dir, "created", errno);
  char *up = sk_fs_parent(dir);
  if (strcmp(up, dir) != 0) sk_fs_mkdirs(up, e);
  if (!e->code && mkdir(dir, 0777) != 0 && errno != EEXIST) sk_fs_fail(e, dir, "created", errno);
  if (!e->code) sk_fs_sync(up, e);
  sk_free(up);
  return e->code;
}

int sk_fs_sync(const char *path, sk_err *e) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return sk_fs_fail(e, path, "opened", errno);
  // EINVAL: the file system has no fsync for this kind of object.
  if (fsync(fd) != 0 && errno != EINVAL) sk_fs_fail(e, path, "written to disk", errno);
  if (close(fd) != 0) sk_fs_fail(e, path, "written to disk", errno);
  return e->code;
}

static int write_all(int fd, const char *p, size_t n) {
  while (n > 0) {
    ssize_t k = write(fd, p, n);
    if (k < 0 && errno == EINTR) continue;
    if (k < 0) return errno;
    p += k;
    n -= (size_t)k;
  }
  return 0;
}

int sk_fs_write(const char *path, const void *data, size_t n, bool durable, sk_err *e) {
  char *tmp = sk_strf("%s.tmp.%ld", path, (long)getpid());
  int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) {
    sk_fs_fail(e, path, "written", errno);
  } else {
    int err = write_all(fd, data, n);
    if (!err && durable && fsync(fd) != 0) err = errno;
    if (close(fd) != 0 && !err) err = errno;
    if (!err && rename(tmp, path) != 0) err = errno;
    if (err) {
      sk_fs_fail(e, path, "written", err);
      unlink(tmp);
    }
  }
  sk_free(tmp);
  if (!e->code && durable) {
    char *up = sk_fs_parent(path);
    sk_fs_sync(up, e);
    sk_free(up);
  }
  return e->code;
}

int sk_fs_reserve(const char *path, int64_t size, sk_err *e) {
  int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666), err;
  if (fd < 0) return sk_fs_fail(e, path, "written", errno);
  do err = size > 0 && fallocate(fd, 0, 0, size) != 0 ? errno : 0;
  while (err == EINTR);
  close(fd);
  if (err == ENOSPC || err == EDQUOT || err == EFBIG || err == EIO) {
    char what[64];
    snprintf(what, sizeof what, "given its %s on the disk", sk_bytes((double)size));
    return sk_fs_fail(e, path, what, err);
  }
  return SK_OK;
}

bool sk_fs_process_gone(long pid) {
  if (pid <= 0) return false;
  if (kill((pid_t)pid, 0) != 0) return errno == ESRCH;
  char *path = sk_strf("/proc/%ld/stat", pid), state = '?';
  FILE *f = fopen(path, "r");
  if (f && fscanf(f, "%*d (%*[^)]) %c", &state) != 1) state = '?';
  if (f) fclose(f);
  sk_free(path);
  return state == 'Z' || state == 'X';
}

int64_t sk_fs_size(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 && S_ISREG(st.st_mode) ? (int64_t)st.st_size : -1;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at) {
  (void)st, (void)kind, (void)at;
  remove(path); // what cannot be removed shows in the end
  return 0;
}

bool sk_fs_remove(const char *path) {
  struct stat st;
  nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
  return lstat(path, &st) != 0 && errno == ENOENT;
}

static int by_bytes(const void *a, const void *b) {
  return strcmp(*(char *const *)a, *(char *const *)b);
}

int sk_fs_list(const char *dir, char ***name, int64_t *n, sk_err *e) {
  *name = NULL;
  *n = 0;
  DIR *d = opendir(dir);
  if (!d) return sk_fs_fail(e, dir, "read", errno);
  int64_t cap = 0;
  for (struct dirent *x; errno = 0, (x = readdir(d)) != NULL;) {
    if (strcmp(x->d_name, ".") == 0 || strcmp(x->d_name, "..") == 0) continue;
    if (*n == cap) *name = sk_realloc(*name, (size_t)(cap = 2 * cap + 16) * sizeof **name);
    (*name)[(*n)++] = sk_strdup(x->d_name);
  }
  if (errno) sk_fs_fail(e, dir, "read", errno);
  closedir(d);
  if (*n) qsort(*name, (size_t)*n, sizeof **name, by_bytes);
  return e->code;
}

void sk_fs_free_names(char **name, int64_t n) {
  for (int64_t i = 0; i < n; i++) sk_free(name[i]);
  sk_free(name);
}

static void to_hex(XXH128_hash_t h, char hex[SK_HASH_HEX]) {
  XXH128_canonical_t c;
  XXH128_canonicalFromHash(&c, h);
  for (int i = 0; i < 16; i++) snprintf(hex + 2 * i, 3, "%02x", c.digest[i]);
}

void sk_hash_hex(const void *data, size_t n, char hex[SK_HASH_HEX]) {
  to_hex(XXH3_128bits(data, n), hex);
}

int sk_fs_hash(const char *path, char hex[SK_HASH_HEX], sk_err *e) {
  struct stat st;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a pipe in its place must not block
  if (fd < 0) return sk_fs_fail(e, path, "opened", errno);
  if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
    close(fd);
    return sk_fail(e, SK_FAILED, "%s: not a regular file", path);
  }
  XXH3_state_t *state = XXH3_createState();
  SK_CHECK(state && XXH3_128bits_reset(state) == XXH_OK, "out of memory for a checksum");
  char *buf = sk_malloc(BLOCK);
  for (;;) {
    ssize_t k = read(fd, buf, BLOCK);
    if (k < 0 && errno == EINTR) continue;
    if (k < 0) sk_fs_fail(e, path, "read", errno);
    if (k <= 0) break;
    XXH3_128bits_update(state, buf, (size_t)k);
  }
  to_hex(XXH3_128bits_digest(state), hex);
  XXH3_freeState(state);
  sk_free(buf);
  close(fd);
  return e->code;
}
