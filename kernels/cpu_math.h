/* cpu_math.h: exp, log and their friends in fp32, written so that the compiler turns a loop over
 * them into SIMD code without -ffast-math: no branches, no tables, no library calls.
 *
 * Coefficients are Chebyshev interpolants of the functions named beside them. sk_expf is within 2
 * units in the last place, subnormals included; the others within 3 (sigmoid and silu are 0 below
 * about -88). NaN gives NaN. */
#ifndef SK_CPU_MATH_H
#define SK_CPU_MATH_H
#include <stdint.h>
#include <string.h>

/* 2^n for -126 <= n <= 127. */
static inline float sk_exp2i(int32_t n) {
  uint32_t bits = (uint32_t)(n + 127) << 23;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

/* e^x; 0 far below and infinity far above fp32's range. */
static inline float sk_expf(float x) {
  const float shift = 0x1.8p23f; // adding it rounds to an integer, kept in the low bits
  x = x > 90.0f ? 90.0f : x;
  x = x < -110.0f ? -110.0f : x;
  float t = x * 0x1.715476p0f + shift; // x / log(2)
  int32_t n;
  memcpy(&n, &t, sizeof n);
  n -= 0x4b400000;
  float k = t - shift;
  float r = (x - k * 0.693359375f) + k * 2.12194440e-4f; // log(2) in two parts
  // (e^r - 1 - r) / r^2 on |r| <= log(2)/2
  float p = 0.0013926176f;
  p = p * r + 0.0083631731f;
  p = p * r + 0.0416665547f;
  p = p * r + 0.1666657703f;
  p = p * r + 0.5f;
  float e = 1.0f + (r + r * r * p);
  // Two factors: 2^n alone may not be representable where the result is.
  return e * sk_exp2i(n >> 1) * sk_exp2i(n - (n >> 1));
}

static inline float sk_sigmoidf(float x) {
  return 1.0f / (1.0f + sk_expf(-x));
}

/* x * sigmoid(x) */
static inline float sk_siluf(float x) {
  return x / (1.0f + sk_expf(-x));
}

/* Derivative of silu. */
static inline float sk_dsiluf(float x) {
  float s = sk_sigmoidf(x);
  return s * (1.0f + x * (1.0f - s));
}

/* log(1 + e^x). Above 20 it equals x in fp32, as the model wants it (section 0). */
static inline float sk_softplusf(float x) {
  float u = sk_expf(x < 0.0f ? x : -x);
  // log(1 + u) = 2 artanh(s), s = u / (2 + u) <= 1/3
  float s = u / (2.0f + u), q = s * s;
  // (artanh(s) / s - 1) / s^2 as a polynomial in s^2
  float p = 0.1342574901f;
  p = p * q + 0.1411830991f;
  p = p * q + 0.2000378032f;
  p = p * q + 0.3333332017f;
  return (x > 0.0f ? x : 0.0f) + 2.0f * (s + s * q * p);
}
#endif
