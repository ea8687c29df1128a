/* fsutil.h: small operations on files and folders, and XXH3-128 of what they hold. Nothing here is
 * collective. Failures name the file, the system's reason and the cure. */
#ifndef SK_FSUTIL_H
#define SK_FSUTIL_H
#include "src/base.h"

enum { SK_HASH_HEX = 33 }; /* 32 lower-case hex digits (as xxh128sum prints them) and the NUL */

/* "PATH: cannot be WHAT: reason; cure" (code SK_FAILED); err is an errno value. */
int sk_fs_fail(sk_err *e, const char *path, const char *what, int err);

/* The folder part of a path, owned by the caller; "." where there is none. */
char *sk_fs_parent(const char *path);

/* Creates a folder with its parents; one that exists is fine. */
int sk_fs_mkdirs(const char *dir, sk_err *e);

/* fsync of a file or a folder; errors of the disk that were kept back until now surface here. */
int sk_fs_sync(const char *path, sk_err *e);

/* Replaces path by the bytes given: temporary file beside it, then rename. durable: synced to disk, the
 * folder too. On failure path is as before and the temporary file is gone. */
int sk_fs_write(const char *path, const void *data, size_t n, bool durable, sk_err *e);

/* Allocates the first `size` bytes of a file (created when missing, never shrunk) on the disk, so that a
 * full disk shows now. File systems that cannot do that are passed over silently. */
int sk_fs_reserve(const char *path, int64_t size, sk_err *e);

/* Bytes of a regular file; -1 when there is none. */
int64_t sk_fs_size(const char *path);

/* Removes a file, or a folder with all it holds (links are removed, not followed). False when something
 * is left. */
bool sk_fs_remove(const char *path);

/* The names in a folder except "." and "..", in byte order. Free with sk_fs_free_names. */
int sk_fs_list(const char *dir, char ***name, int64_t *n, sk_err *e);
void sk_fs_free_names(char **name, int64_t n);

/* Whether no such process runs on this host; one that has ended but was never waited for does not run. */
bool sk_fs_process_gone(long pid);

/* XXH3-128 in canonical form, of memory or of a regular file, which is read in bounded memory. */
void sk_hash_hex(const void *data, size_t n, char hex[SK_HASH_HEX]);
int sk_fs_hash(const char *path, char hex[SK_HASH_HEX], sk_err *e);
#endif
