// SPDX-License-Identifier: Apache-2.0
// Vectors of PCSEG_LANES floats, bfloat16, and the end of a convolution: residual, rectifier, store.
#include <string.h>

#include "native.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

using namespace pcseg;

#define PCSEG_INLINE inline __attribute__((always_inline))
#define PCSEG_UNROLL _Pragma("GCC unroll 16")

constexpr int L = PCSEG_LANES;
typedef float Vec __attribute__((vector_size(L * 4)));
typedef float VecAnywhere __attribute__((vector_size(L * 4), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(L * 4)));
typedef uint32_t BitsAnywhere __attribute__((vector_size(L * 4), aligned(4), may_alias));

PCSEG_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecAnywhere*>(p); }
PCSEG_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecAnywhere*>(p) = v; }

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

// Bias unless null, residual, rectifier and store of one block.
void finish(const ConvArgs& c, int64_t first, int rows, const float* sums, int width,
            const float* bias) {
  for (int r = 0; r < rows; ++r, sums += width) {
    const int64_t row = first + r;
    const float* kept32 = nullptr;
    const uint16_t* kept16 = nullptr;
    if (c.residual && c.dtype == kFloat32)
      kept32 = static_cast<const float*>(c.residual) + row * c.ldres;
    else if (c.residual)
      kept16 = static_cast<const uint16_t*>(c.residual) + row * c.ldres;
    float* out32 = static_cast<float*>(c.out) + row * c.ldout;
    uint16_t* out16 = static_cast<uint16_t*>(c.out) + row * c.ldout;
    int j = 0;
#if defined(__AVX512F__)
    for (; j + 16 <= c.cout; j += 16) {
      Vec v = load(sums + j);
      if (bias) v += load(bias + j);
      if (kept32) v += load(kept32 + j);
      if (kept16)
        v += (Vec)_mm512_slli_epi32(
            _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(kept16 + j))), 16);
      if (c.relu) v = (Vec)_mm512_max_ps((__m512)v, _mm512_setzero_ps());
      if (c.out_dtype == kFloat32) {
        store(out32 + j, v);
      } else {
#if PCSEG_DOT_BF16
        _mm256_storeu_si256((__m256i*)(out16 + j), (__m256i)_mm512_cvtneps_pbh((__m512)v));
#else
        for (int l = 0; l < 16; ++l) out16[j + l] = narrow(v[l]);
#endif
      }
    }
#endif
    for (; j < c.cout; ++j) {
      float v = bias ? sums[j] + bias[j] : sums[j];
      v += kept32 ? kept32[j] : kept16 ? widen(kept16[j]) : 0.0f;
      if (c.relu) v = v > 0 ? v : 0;
      if (c.out_dtype == kFloat32) out32[j] = v;
      else out16[j] = narrow(v);
    }
  }
}

}  // namespace
