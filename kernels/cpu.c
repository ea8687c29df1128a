#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "kernels/cpu.h"
#include <limits.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "kernels/cpu_mamba.h"

enum { ALIGN = 256, CHUNK = 128 << 10 }; // bytes; CHUNK: what is worth more than one thread

// ---- device and memory ----

static void cpu_model(char *name, size_t size) {
  snprintf(name, size, "CPU");
  FILE *f = fopen("/proc/cpuinfo", "r");
  if (!f) return;
  char line[512];
  while (fgets(line, sizeof line, f)) {
    const char *colon = strchr(line, ':');
    if (!colon || strncmp(line, "model name", 10) != 0) continue;
    line[strcspn(line, "\n")] = 0;
    snprintf(name, size, "%s", colon + 1 + strspn(colon + 1, " \t"));
    break;
  }
  fclose(f);
}

static int cpu_count(sk_err *e) {
  (void)e;
  return INT_MAX;
}

static sk_device *cpu_open(int index, sk_dtype act, sk_err *e) {
  (void)index; // there is one CPU; ranks that share a node share it
  if (act != SK_F32) {
    sk_fail(e, SK_FAILED,
            "the CPU device computes in fp32 only; for bf16 the caller must open it with "
            "fp32 and compute in fp32");
    return NULL;
  }
  sk_device *d = sk_calloc(1, sizeof *d);
  int threads = omp_get_max_threads();
  char model[160], blas[160];
  cpu_model(model, sizeof model);
  sk_cpu_blas_open(threads, blas, sizeof blas);
  snprintf(d->text, sizeof d->text, "%s, %d OpenMP thread%s, %s", model, threads,
           threads == 1 ? "" : "s", blas);
  return d;
}

static void cpu_close(sk_device *d) {
  sk_free(d);
}
static const char *cpu_describe(sk_device *d) {
  return d->text;
}

static sk_dtype cpu_act(const sk_device *d) {
  (void)d;
  return SK_F32;
}

static void *cpu_alloc(sk_device *d, size_t bytes) {
  (void)d;
  if (bytes > (size_t)PTRDIFF_MAX - ALIGN) return NULL;
  size_t whole = (bytes + ALIGN - 1) / ALIGN * ALIGN;
  return aligned_alloc(ALIGN, whole ? whole : ALIGN);
}

// In huge pages where there are any: what is written past the page cache is handed over page by page.
static void *cpu_host_alloc(sk_device *d, size_t bytes) {
  enum { HUGE_PAGE = 2 << 20 };
  if (bytes < HUGE_PAGE || bytes > (size_t)PTRDIFF_MAX - HUGE_PAGE) return cpu_alloc(d, bytes);
  const size_t whole = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  void *p = aligned_alloc(HUGE_PAGE, whole);
  if (p) madvise(p, whole, MADV_HUGEPAGE); // a hint
  return p;
}

static void cpu_free(sk_device *d, void *p) {
  (void)d;
  free(p);
}

static size_t cpu_used(sk_device *d) {
  (void)d;
  return 0;
}

// ---- streams and events: everything is done when an op returns ----

static sk_stream *cpu_stream_create(sk_device *d) {
  sk_stream *s = sk_calloc(1, sizeof *s);
  s->device = d;
  return s;
}

static void cpu_stream_destroy(sk_stream *s) {
  if (!s) return;
  free(s->scratch);
  sk_free(s);
}

static void cpu_range(const char *name) { (void)name; }

static void cpu_sync(sk_stream *s) {
  (void)s;
}

static sk_event *cpu_event_create(sk_device *d) {
  (void)d;
  return sk_calloc(1, sizeof(sk_event));
}

static void cpu_event_destroy(sk_event *ev) {
  sk_free(ev);
}

static void cpu_record(sk_event *ev, sk_stream *s) {
  (void)s;
  ev->at = sk_now();
}

static void cpu_wait(sk_stream *s, sk_event *ev) {
  (void)s;
  (void)ev;
}

static double cpu_elapsed(sk_event *from, sk_event *to) {
  return to->at - from->at;
}

void *sk_cpu_scratch(sk_stream *s, size_t bytes) {
  if (bytes <= s->scratch_bytes && s->scratch) return s->scratch;
  free(s->scratch);
  s->scratch_bytes = bytes;
  s->scratch = cpu_alloc(s->device, bytes);
  SK_CHECK(s->scratch, "out of memory: %zu bytes of scratch", bytes);
  return s->scratch;
}

// ---- copies ----

// A thread's share of n bytes: first .. end-1.
static void share_of(size_t n, size_t *first, size_t *end) {
  const size_t threads = (size_t)omp_get_num_threads(), me = (size_t)omp_get_thread_num();
  const size_t part = (n / threads + ALIGN) / ALIGN * ALIGN;
  *first = part * me < n ? part * me : n;
  *end = n - *first < part ? n : *first + part;
}

// Bytes first .. end-1 of all pieces in a row; what they are is added to the pieces' sums, in any order.
static void copy_share(int64_t n, const sk_copy *list, sk_sum *sum, size_t first, size_t end) {
  size_t at = 0;
  for (int64_t i = 0; i < n && at < end; at += list[i++].bytes) {
    const size_t from = first > at ? first - at : 0, to = end - at < list[i].bytes ? end - at : list[i].bytes;
    if (from >= to) continue;
    const sk_sum none = {0, 0}, part = sk_sum_copy((char *)list[i].dst + from, (const char *)list[i].src + from, (to - from) / 4);
    const sk_sum mine = sk_sum_join(none, part, from / 4);
#pragma omp atomic
    sum[i].plain += mine.plain;
#pragma omp atomic
    sum[i].ranked += mine.ranked;
  }
}

static bool cpu_copies_host(sk_stream *s, int64_t n, const sk_copy *list, sk_sum *sum) {
  (void)s;
  size_t all = 0;
  for (int64_t i = 0; i < n; i++) {
    SK_CHECK(list[i].bytes % 4 == 0, "a piece of %zu bytes", list[i].bytes);
    sum[i] = (sk_sum){0, 0};
    all += list[i].bytes;
  }
#pragma omp parallel if (all > CHUNK)
  {
    size_t first, end;
    share_of(all, &first, &end);
    copy_share(n, list, sum, first, end);
  }
  return true;
}

static void cpu_copy(sk_stream *s, void *dst, const void *src, size_t bytes) {
  (void)s;
#pragma omp parallel if (bytes > CHUNK)
  {
    size_t first, end;
    share_of(bytes, &first, &end);
    memcpy((char *)dst + first, (const char *)src + first, end - first);
  }
}

static void cpu_copy2d(sk_stream *s, void *dst, size_t ldd, const void *src, size_t lds,
                       size_t width, int64_t rows) {
  (void)s;
#pragma omp parallel for schedule(static) if (rows * (int64_t)width > CHUNK)
  for (int64_t i = 0; i < rows; i++)
    memcpy((char *)dst + (size_t)i * ldd, (const char *)src + (size_t)i * lds, width);
}

static void cpu_zero(sk_stream *s, void *p, size_t bytes) {
  (void)s;
  int64_t chunks = sk_ceil_div((int64_t)bytes, CHUNK);
#pragma omp parallel for schedule(static) if (chunks > 1)
  for (int64_t i = 0; i < chunks; i++) {
    size_t at = (size_t)i * CHUNK;
    memset((char *)p + at, 0, bytes - at < CHUNK ? bytes - at : CHUNK);
  }
}

// ---- between ranks: the host's memory is the device's, and nobody else's ----

static bool cpu_event_done(sk_event *ev) {
  (void)ev;
  return true;
}

static int cpu_share(sk_device *d, const void *p, sk_share *out, sk_err *e) {
  (void)d, (void)p, (void)out;
  return sk_fail(e, SK_FAILED, "the CPU's ranks do not share memory");
}

static void *cpu_map(sk_device *d, const sk_share *s, sk_err *e) {
  (void)d, (void)s;
  sk_fail(e, SK_FAILED, "the CPU's ranks do not share memory");
  return NULL;
}

static void cpu_unmap(sk_device *d, void *base) {
  (void)d, (void)base;
}

static sk_event *cpu_event_share(sk_device *d, sk_share *out, sk_err *e) {
  (void)d, (void)out;
  sk_fail(e, SK_FAILED, "the CPU's ranks do not share events");
  return NULL;
}

static sk_event *cpu_event_map(sk_device *d, const sk_share *s, sk_err *e) {
  (void)d, (void)s;
  sk_fail(e, SK_FAILED, "the CPU's ranks do not share events");
  return NULL;
}

static int cpu_gemm_choose(sk_device *d, int choice) {
  (void)d;
  (void)choice;
  return 0;
}

static size_t cpu_total(sk_device *d) {
  (void)d;
  return 0;
}

// To the nearest, ties to even; NaN stays NaN.
static uint16_t to_bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  uint16_t nan = (uint16_t)((u >> 16) | 0x40),
           near = (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
  return (u & 0x7fffffffu) > 0x7f800000u ? nan : near;
}

static float from_bf16(uint16_t x) {
  uint32_t u = (uint32_t)x << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}

static void cpu_cast(sk_stream *s, void *dst, sk_dtype to, const void *src, sk_dtype from,
                     int64_t n) {
  if (to == from) {
    cpu_copy(s, dst, src, (size_t)n * sk_dtype_size(to));
  } else if (to == SK_BF16) {
    uint16_t *out = dst;
    const float *in = src;
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) out[i] = to_bf16(in[i]);
  } else {
    float *out = dst;
    const uint16_t *in = src;
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < n; i++) out[i] = from_bf16(in[i]);
  }
}

// ---- attention is in cpu_attention.c; nothing is made for a shape ----

static void cpu_attention_ready(sk_device *d, const sk_attn_dims *dims) {
  (void)d, (void)dims;
}

// ---- sums over tokens ----

sk_cpu_blocks sk_cpu_cut(int64_t n) {
  enum { MOST = 64, LEAST = 32 }; // blocks; tokens in one
  int64_t size = sk_max64(LEAST, sk_ceil_div(n, MOST));
  return (sk_cpu_blocks){size, sk_ceil_div(n, size)};
}

void sk_cpu_reduce(float *out, const double *part, int64_t count, int64_t cols, double scale) {
#pragma omp parallel for schedule(static)
  for (int64_t c = 0; c < cols; c++) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += part[i * cols + c];
    out[c] = (float)(out[c] + scale * sum);
  }
}

// ---- the table ----

const sk_ops sk_cpu_ops = {
    .name = "cpu",
    .count = cpu_count,
    .open = cpu_open,
    .close = cpu_close,
    .describe = cpu_describe,
    .act = cpu_act,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .used = cpu_used,
    .stream_create = cpu_stream_create,
    .copy_stream_create = cpu_stream_create,
    .stream_destroy = cpu_stream_destroy,
    .sync = cpu_sync,
    .range = cpu_range,
    .event_create = cpu_event_create,
    .event_destroy = cpu_event_destroy,
    .record = cpu_record,
    .wait = cpu_wait,
    .elapsed = cpu_elapsed,
    .copy = cpu_copy,
    .copy2d = cpu_copy2d,
    .to_host = cpu_copy,
    .from_host = cpu_copy,
    .zero = cpu_zero,
    .event_done = cpu_event_done,
    .host_alloc = cpu_host_alloc,
    .host_free = cpu_free,
    .copy_host = cpu_copy,
    .copies_host = cpu_copies_host,
    .share = cpu_share,
    .map = cpu_map,
    .unmap = cpu_unmap,
    .event_share = cpu_event_share,
    .event_map = cpu_event_map,
    .total = cpu_total,
    .cast = cpu_cast,
    .gemm = sk_cpu_gemm,
    .gemm_choose = cpu_gemm_choose,
    .bias = sk_cpu_bias,
    .bias_grad = sk_cpu_bias_grad,
    .add_f32 = sk_cpu_add_f32,
    .add = sk_cpu_add,
    .embed = sk_cpu_embed,
    .embed_grad = sk_cpu_embed_grad,
    .rmsnorm = sk_cpu_rmsnorm,
    .rmsnorm_grad = sk_cpu_rmsnorm_grad,
    .gate = sk_cpu_gate,
    .gate_stats = sk_cpu_gate_stats,
    .gate_grad_stats = sk_cpu_gate_grad_stats,
    .gate_grad = sk_cpu_gate_grad,
    .swiglu = sk_cpu_swiglu,
    .swiglu_grad = sk_cpu_swiglu_grad,
    .rope = sk_cpu_rope,
    .attention = sk_cpu_attention,
    .attention_ready = cpu_attention_ready,
    .attention_ws = sk_cpu_attention_ws,
    .attention_grad = sk_cpu_attention_grad,
    .conv = sk_cpu_conv,
    .conv_grad = sk_cpu_conv_grad,
    .dt = sk_cpu_dt,
    .dt_grad = sk_cpu_dt_grad,
    .ssd_ws = sk_cpu_ssd_ws,
    .ssd = sk_cpu_ssd,
    .ssd_grad_ws = sk_cpu_ssd_grad_ws,
    .ssd_grad = sk_cpu_ssd_grad,
    .ssd_state = sk_cpu_ssd_state,
    .ssd_state_grad = sk_cpu_ssd_state_grad,
    .fade_add = sk_cpu_fade_add,
    .xent_merge = sk_cpu_xent_merge,
    .xent_stats = sk_cpu_xent_stats,
    .xent_grad = sk_cpu_xent_grad,
    .sum = sk_cpu_sum,
    .sqnorm = sk_cpu_sqnorm,
    .adamw = sk_cpu_adamw,
};

bool sk_ops_complete(const sk_ops *ops, int *missing) {
  // The table is a name and function pointers, all of one size on the systems Saker runs on.
  typedef void (*entry)(void);
  _Static_assert(sizeof(sk_ops) % sizeof(entry) == 0, "sk_ops is a row of pointers");
  for (size_t i = 0; i < sizeof *ops / sizeof(entry); i++) {
    entry f;
    memcpy(&f, (const char *)ops + i * sizeof f, sizeof f);
    if (f) continue;
    *missing = (int)i;
    return false;
  }
  return true;
}
