// SPDX-License-Identifier: Apache-2.0
// Register tiles on the matrix products of NEON; part of kernels.h.

// NEON multiplies two rows of 8 bytes by two columns of weights. A vector of sums is those of the
// first row, then those of the second.
template <int Channels>
struct Matrix {
  typedef uint32_t Scalar;
  static constexpr int kChannels = Channels;
  static PCSEG_INLINE Vec step(Vec sum, uint8x16_t rows, uint8x16_t columns) {
    if constexpr (Channels == 2)
      return (Vec)vbfmmlaq_f32((float32x4_t)sum, (bfloat16x8_t)rows, (bfloat16x8_t)columns);
    else
      return (Vec)vusmmlaq_s32((int32x4_t)sum, rows, (int8x16_t)columns);
  }
};
using Pair = Matrix<2>;
using Quad = Matrix<4>;

template <class Step, int MR, int NV>
void matrix_tile(const uint32_t* const* a, const float* const* from, float* const* to, const char* b,
                 int words) {
  constexpr int MP = (MR + 1) / 2;  // a last row without a partner is its own
  const auto partner = [](int p) { return 2 * p + 1 < MR ? 2 * p + 1 : 2 * p; };
  Vec sum[MP][2 * NV];
  PCSEG_UNROLL for (int p = 0; p < MP; ++p)
    PCSEG_UNROLL for (int v = 0; v < NV; ++v) {
      const float32x4_t first = vld1q_f32(from[2 * p] + L * v);
      const float32x4_t second = vld1q_f32(from[partner(p)] + L * v);
      sum[p][2 * v] = (Vec)vcombine_f32(vget_low_f32(first), vget_low_f32(second));
      sum[p][2 * v + 1] = (Vec)vcombine_f32(vget_high_f32(first), vget_high_f32(second));
    }
  const auto multiply = [&](const auto& fetch) __attribute__((always_inline)) {
    uint8x16_t rows[MP];
    PCSEG_UNROLL for (int p = 0; p < MP; ++p)
      rows[p] = vcombine_u8(fetch(a[2 * p]), fetch(a[partner(p)]));
    PCSEG_UNROLL for (int v = 0; v < 2 * NV; ++v) {
      const uint8x16_t columns = vld1q_u8(reinterpret_cast<const uint8_t*>(b) + 16 * v);
      PCSEG_UNROLL for (int p = 0; p < MP; ++p) sum[p][v] = Step::step(sum[p][v], rows[p], columns);
    }
    b += NV * L * 8;
  };
  int k = 0;
  for (; k + 1 < words; k += 2)
    multiply([&](const uint32_t* row) { return vld1_u8(reinterpret_cast<const uint8_t*>(row + k)); });
  if (k < words) multiply([&](const uint32_t* row) { return vcreate_u8(row[k]); });
  PCSEG_UNROLL for (int p = 0; p < MP; ++p)
    PCSEG_UNROLL for (int v = 0; v < NV; ++v) {
      const float32x4_t low = (float32x4_t)sum[p][2 * v], high = (float32x4_t)sum[p][2 * v + 1];
      vst1q_f32(to[2 * p] + L * v, vcombine_f32(vget_low_f32(low), vget_low_f32(high)));
      if (2 * p + 1 < MR)
        vst1q_f32(to[2 * p + 1] + L * v, vcombine_f32(vget_high_f32(low), vget_high_f32(high)));
    }
}
