// SPDX-License-Identifier: Apache-2.0
// Vectors of PCSEG_LANES floats, bfloat16, and the end of a convolution: residual, rectifier, store.
#include <string.h>

#include "native.h"
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

using namespace pcseg;

#define PCSEG_INLINE inline __attribute__((always_inline))
#define PCSEG_UNROLL _Pragma("GCC unroll 16")

constexpr int L = PCSEG_LANES;
typedef float Vec __attribute__((vector_size(L * 4)));
typedef float VecAnywhere __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(L * 4)));
typedef int32_t Integers __attribute__((vector_size(L * 4)));
typedef int16_t Halves __attribute__((vector_size(L * 4)));
typedef uint16_t Unsigned __attribute__((vector_size(L * 4)));
typedef uint32_t BitsAnywhere __attribute__((vector_size(L * 4), aligned(4), may_alias));

PCSEG_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecAnywhere*>(p); }
PCSEG_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecAnywhere*>(p) = v; }

#if defined(__AVX2__)
// Sums of two neighboring products.
PCSEG_INLINE Integers add_products(Halves a, Halves b) {
#if PCSEG_LANES == 16
  return (Integers)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#else
  return (Integers)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
}
#endif

int padded(int n) { return (n + L - 1) / L * L; }

PCSEG_INLINE float widen(uint16_t h) {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

PCSEG_INLINE uint16_t narrow(float f) {  // to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  memcpy(&bits, &f, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 64);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Weights (cin, cout), or with `transpose` (cout, cin), times scale (cout) unless null.
struct Weights {
  const float* values;
  const float* scale;
  int cin, cout;
  bool transpose;

  float at(int ci, int co) const {  // zero beyond the ends
    if (ci >= cin || co >= cout) return 0.0f;
    const float value = values[transpose ? int64_t{co} * cin + ci : int64_t{ci} * cout + co];
    return scale ? value * scale[co] : value;
  }
};

int8_t rounded(float value) {  // to -127..127
  const float bound = value < -127.0f ? -127.0f : value > 127.0f ? 127.0f : value;
  return static_cast<int8_t>(__builtin_rintf(bound));
}

// Write a weight for features of a type; returns the place of the next one.
char* put(float value, int dtype, char* out) {
  if (dtype == kUInt8) {
    *out = static_cast<char>(rounded(value));
  } else if (dtype == kBFloat16) {
    const uint16_t low = narrow(value);
    memcpy(out, &low, 2);
  } else {
    memcpy(out, &value, 4);
  }
  return out + element_bytes(dtype);
}

typedef int32_t Integer __attribute__((may_alias));

// The loops below run over one row and are vectorized by the compiler.
void from_integers(float* __restrict v, const float* __restrict scale, int n) {
  const Integer* sums = reinterpret_cast<const Integer*>(v);
  for (int j = 0; j < n; ++j) v[j] = static_cast<float>(sums[j]) * scale[j];
}

void add_row(float* __restrict v, const float* __restrict other, int n) {
  for (int j = 0; j < n; ++j) v[j] += other[j];
}

void add_residual(const ConvArgs& c, int64_t row, float* __restrict v) {
  const char* from = static_cast<const char*>(c.residual) + row * c.ldres * element_bytes(c.dtype);
  if (c.dtype == kFloat32) return add_row(v, reinterpret_cast<const float*>(from), c.cout);
  if (c.dtype == kBFloat16) {
    const uint16_t* __restrict kept = reinterpret_cast<const uint16_t*>(from);
    for (int j = 0; j < c.cout; ++j) v[j] += widen(kept[j]);
    return;
  }
  const uint8_t* __restrict kept = reinterpret_cast<const uint8_t*>(from);
  const float factor = c.residual_factor, shift = c.residual_shift;
  for (int j = 0; j < c.cout; ++j) v[j] += static_cast<float>(kept[j]) * factor + shift;
}

void store_bfloat16(const float* __restrict v, uint16_t* __restrict out, int n) {
#if PCSEG_DOT_BF16 && PCSEG_LANES == 16
  for (int j = 0; j < n; j += 16) {
    const __mmask16 in = n - j >= 16 ? 0xffff : (1 << (n - j)) - 1;
    const __m512 values = _mm512_maskz_loadu_ps(in, v + j);
    _mm256_mask_storeu_epi16(out + j, in, (__m256i)_mm512_cvtneps_pbh(values));
  }
#else
  for (int j = 0; j < n; ++j) out[j] = narrow(v[j]);
#endif
}

// To nearest, saturating; NaN becomes 0.
void store_uint8(const float* __restrict v, uint8_t* __restrict out, float factor, float shift,
                 int n) {
  for (int j = 0; j < n; ++j) {
    const float scaled = v[j] * factor + (shift + 0.5f);
    const float low = scaled > 0.0f ? scaled : 0.0f;
    out[j] = static_cast<uint8_t>(static_cast<int32_t>(low < 255.0f ? low : 255.0f));
  }
}

// Scale of integer sums, bias unless null, residual, rectifier and store of one block.
void finish(const ConvArgs& c, int64_t first, int rows, float* sums, int width,
            const float* bias) {
  for (int r = 0; r < rows; ++r, sums += width) {
    const int64_t row = first + r;
    if (c.dtype == kUInt8) from_integers(sums, c.scale, c.cout);
    if (bias) add_row(sums, bias, c.cout);
    if (c.residual) add_residual(c, row, sums);
    if (c.relu)
      for (int j = 0; j < c.cout; ++j) sums[j] = sums[j] > 0.0f ? sums[j] : 0.0f;
    char* out = static_cast<char*>(c.out) + row * c.ldout * element_bytes(c.out_dtype);
    if (c.out_dtype == kFloat32)
      memcpy(out, sums, sizeof(float) * c.cout);
    else if (c.out_dtype == kBFloat16)
      store_bfloat16(sums, reinterpret_cast<uint16_t*>(out), c.cout);
    else
      store_uint8(sums, reinterpret_cast<uint8_t*>(out), c.out_factor, c.out_shift, c.cout);
  }
}

}  // namespace
