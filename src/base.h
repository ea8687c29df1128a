/* base.h: the floor of Saker. Errors, logging by rank, memory, time. Includes nothing of ours and no
 * MPI, so that kernels/ and io/ may use it. Nothing here is collective.
 *
 * Error policy, three tiers:
 *   SK_ASSERT   our own invariants; compiled in with --enable-debug
 *   SK_CHECK    always on: prints rank, host, place, values once and aborts the job (exit code 1)
 *   sk_err      return codes, where the caller has a choice: user input, files, checkpoints.
 *               The function that knows the cause fills in the message (what, where, the cure);
 *               sk_agree (agree.h) makes all ranks know it; main prints it once. */
#ifndef SK_BASE_H
#define SK_BASE_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { SK_OK = 0, SK_FAILED = 1, SK_USAGE = 2 }; /* also the program's exit codes */

/* A failure that the caller may handle. Start with `sk_err e = {0}`; code 0 means no error. */
typedef struct sk_err {
  int code;       /* SK_OK, SK_FAILED or SK_USAGE */
  char msg[8000]; /* complete sentences, possibly several lines; no trailing newline */
} sk_err;

#if defined(__GNUC__)
#define SK_PRINTF(f, a) __attribute__((format(printf, f, a)))
#define SK_NORETURN __attribute__((noreturn))
#else
#define SK_PRINTF(f, a)
#define SK_NORETURN
#endif

/* Fills in *e and returns code. A second failure keeps the first message. */
int sk_fail(sk_err *e, int code, const char *fmt, ...) SK_PRINTF(3, 4);

/* Prints `saker: rank R on HOST: file:line: message` to stderr and aborts the whole job. */
void sk_die(const char *file, int line, const char *fmt, ...) SK_PRINTF(3, 4) SK_NORETURN;

#define SK_CHECK(c, ...)                                \
  do {                                                  \
    if (!(c)) sk_die(__FILE__, __LINE__, __VA_ARGS__);  \
  } while (0)

#ifdef SK_DEBUG
#define SK_ASSERT(c) SK_CHECK(c, "assertion failed: %s", #c)
#else
#define SK_ASSERT(c) ((void)0)
#endif

/* The rank used by logging, and what sk_die calls last (MPI_Abort, set by main; default abort). */
void sk_base_init(int rank, void (*abort_job)(void));
int sk_base_rank(void);
const char *sk_host(void);

/* Rank 0 only: one message to stdout and, when sk_log_file was called, to that file.
 * sk_warn puts "warning: " in front and writes to stderr. A newline is added. */
void sk_say(const char *fmt, ...) SK_PRINTF(1, 2);
void sk_warn(const char *fmt, ...) SK_PRINTF(1, 2);
/* Opens (append) the copy of the messages; NULL closes it. Returns SK_FAILED when it cannot. */
int sk_log_file(const char *path);

/* Never return NULL: out of memory is fatal and says how much was asked for. sk_free(NULL) is fine.
 * sk_calloc zeroes and checks n * size for overflow. sk_strf returns a fresh formatted string. */
void *sk_malloc(size_t bytes);
void *sk_calloc(size_t n, size_t size);
void *sk_realloc(void *p, size_t bytes);
void sk_free(void *p);
char *sk_strdup(const char *s);
char *sk_strf(const char *fmt, ...) SK_PRINTF(1, 2);

/* Seconds since some fixed moment, monotonic. */
double sk_now(void);

/* Ascending, in place; no NaN. */
void sk_sort(double *x, int64_t n);

/* a * b for sizes that come from files: false when it would exceed INT64_MAX or an input is < 0. */
bool sk_mul(int64_t a, int64_t b, int64_t *out);

/* "1234567" -> "1.23 M"; "1048576" -> "1.00 MiB". Buffers of the thread, four calls deep. */
const char *sk_si(double x);
const char *sk_bytes(double x);

/* A counter-based random generator (splitmix64 finaliser over two words): pure functions, so that
 * every rank can draw any element. sk_hash_str hashes a name. sk_uniform is in (0, 1),
 * sk_normal N(0, 1) by Box-Muller from counters 2*i and 2*i+1. */
uint64_t sk_rand(uint64_t key, uint64_t counter);
uint64_t sk_hash_str(uint64_t seed, const char *s);
double sk_uniform(uint64_t key, uint64_t counter);
double sk_normal(uint64_t key, uint64_t counter);

#ifdef __cplusplus
}
#endif
#endif
