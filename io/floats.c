/* floats.c: bf16, fp16 and fp32 in a file's bytes. Through integers: no floating-point operation touches a
 * value, so that NaN keeps its bits. */
#include "io/safetensors.h"
#include <string.h>

static uint32_t bits_of(float x) {
  uint32_t u;
  memcpy(&u, &x, sizeof u);
  return u;
}

static float float_of(uint32_t u) {
  float x;
  memcpy(&x, &u, sizeof x);
  return x;
}

static bool finite_bits(uint32_t u) { return (u & 0x7f800000) != 0x7f800000; }
static bool nan_bits(uint32_t u) { return (u & 0x7fffffff) > 0x7f800000; }

static uint16_t to_bf16(uint32_t u) {
  uint32_t high = u >> 16;
  if (nan_bits(u)) return (uint16_t)(high | ((high & 0x7f) == 0 ? 0x40 : 0));
  return (uint16_t)((u + 0x7fff + (high & 1)) >> 16);
}

/* x / 2^shift, to nearest even. */
static uint32_t shift_even(uint32_t x, int shift) {
  uint32_t half = 1u << (shift - 1), rest = x & ((1u << shift) - 1);
  x >>= shift;
  return x + (rest > half || (rest == half && (x & 1)));
}

static uint16_t to_f16(uint32_t u) {
  uint32_t sign = u >> 16 & 0x8000, man = u & 0x7fffff;
  int exp = (int)(u >> 23 & 0xff) - 127;
  if (nan_bits(u)) return (uint16_t)(sign | 0x7c00 | (man >> 13 ? man >> 13 : 0x200));
  if (exp > 15) return (uint16_t)(sign | 0x7c00);
  if (exp >= -14) return (uint16_t)(sign | shift_even((uint32_t)(exp + 15) << 23 | man, 13)); // may carry
  if (exp < -25) return (uint16_t)sign;
  return (uint16_t)(sign | shift_even(man | 0x800000, 13 + (-14 - exp))); // subnormal
}

static uint32_t from_f16(uint32_t h) {
  uint32_t sign = (h & 0x8000) << 16, exp = h >> 10 & 0x1f, man = h & 0x3ff;
  if (exp == 31) return sign | 0x7f800000 | man << 13;
  if (exp > 0) return sign | (exp + 112) << 23 | man << 13;
  if (man == 0) return sign;
  int shift = 0;
  while (!(man & 0x400)) man <<= 1, shift++;
  return sign | (uint32_t)(113 - shift) << 23 | (man & 0x3ff) << 13;
}

void sk_st_decode(sk_st_dtype dtype, const void *src, int64_t n, float *dst) {
  const unsigned char *p = src;
  if (dtype == SK_ST_F32) {
    for (int64_t i = 0; i < n; i++, p += 4)
      dst[i] = float_of((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
    return;
  }
  for (int64_t i = 0; i < n; i++, p += 2) {
    uint32_t h = (uint32_t)p[0] | (uint32_t)p[1] << 8;
    dst[i] = float_of(dtype == SK_ST_BF16 ? h << 16 : from_f16(h));
  }
}

int64_t sk_st_encode(sk_st_dtype dtype, const float *src, int64_t n, void *dst) {
  unsigned char *p = dst;
  int64_t over = -1;
  if (dtype == SK_ST_F32) {
    for (int64_t i = 0; i < n; i++) {
      uint32_t u = bits_of(src[i]);
      for (int k = 0; k < 4; k++) *p++ = (unsigned char)(u >> 8 * k & 0xff);
    }
    return -1;
  }
  uint32_t infinity = dtype == SK_ST_BF16 ? 0x7f80 : 0x7c00;
  for (int64_t i = 0; i < n; i++) {
    uint32_t u = bits_of(src[i]), h = dtype == SK_ST_BF16 ? to_bf16(u) : to_f16(u);
    if (over < 0 && (h & 0x7fff) == infinity && finite_bits(u)) over = i;
    *p++ = (unsigned char)(h & 0xff);
    *p++ = (unsigned char)(h >> 8);
  }
  return over;
}
