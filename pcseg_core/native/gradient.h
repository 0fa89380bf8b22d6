// SPDX-License-Identifier: Apache-2.0
// Gradient of the weights; part of kernels.h.

namespace {

// grad[r] += sum over pairs of left[p][r] * right[p], for MR input channels and NV vectors.
template <int MR, int NV>
void grad_tile(const float* left, int64_t ldl, const float* right, int64_t ldr, int pairs,
               float* grad, int64_t ldg) {
  Vec sum[MR][NV] = {};
  for (int p = 0; p < pairs; ++p, left += ldl, right += ldr) {
    Vec column[NV];
    PCSEG_UNROLL for (int v = 0; v < NV; ++v) column[v] = load(right + L * v);
    PCSEG_UNROLL for (int r = 0; r < MR; ++r) {
      const Vec x = left[r] - Vec{};
      PCSEG_UNROLL for (int v = 0; v < NV; ++v) sum[r][v] += x * column[v];
    }
  }
  PCSEG_UNROLL for (int r = 0; r < MR; ++r)
    PCSEG_UNROLL for (int v = 0; v < NV; ++v)
      store(grad + r * ldg + L * v, load(grad + r * ldg + L * v) + sum[r][v]);
}

using GradTile = void (*)(const float*, int64_t, const float*, int64_t, int, float*, int64_t);

template <int NV, int R>
struct GradTable {
  static void fill(GradTile (*tiles)[kMaxTile + 1]) {
    tiles[NV][R] = grad_tile<R, NV>;
    if constexpr (R > 1) GradTable<NV, R - 1>::fill(tiles);
    else if constexpr (NV > 1) GradTable<NV - 1, tile_rows(NV - 1)>::fill(tiles);
  }
};

struct GradTiles {
  GradTile at[kMaxPanel + 1][kMaxTile + 1] = {};
  GradTiles() { GradTable<kMaxPanel, tile_rows(kMaxPanel)>::fill(at); }
};

size_t grad_scratch(const GradArgs& g) {
  const int64_t width = padded(g.cout);
  return sizeof(float) * (kGradPairs * (kGradChannels + width) + kGradChannels * width);
}

// Add the products of up to kGradPairs copied pairs to the sums (channels x width).
void grad_products(const float* left, const float* right, int pairs, int channels, int width,
                   float* sums) {
  static const GradTiles tiles;
  for (int column = 0; column < width;) {
    const int nv = panel_width((width - column) / L), most = tile_rows(nv);
    const int groups = (channels + most - 1) / most;
    for (int g = 0, i = 0; g < groups; ++g) {
      const int rows = (channels - i + groups - g - 1) / (groups - g);
      tiles.at[nv][rows](left + i, kGradChannels, right + column, width, pairs,
                         sums + static_cast<int64_t>(i) * width + column, width);
      i += rows;
    }
    column += nv * L;
  }
}

void grad_task(const GradArgs& g, int step, int64_t first_channel, char* scratch) {
  const int width = padded(g.cout);
  const int rest = static_cast<int>(g.cin - first_channel);
  const int channels = rest < kGradChannels ? rest : kGradChannels;
  float* left = reinterpret_cast<float*>(scratch);
  float* right = left + kGradPairs * kGradChannels;
  float* sums = right + kGradPairs * width;
  memset(sums, 0, sizeof(float) * channels * width);
  int copied = 0;
  const auto add = [&](int64_t source, int64_t target) {
    memcpy(left + copied * kGradChannels, g.x + source * g.cin + first_channel,
           channels * sizeof(float));
    float* row = right + static_cast<int64_t>(copied) * width;
    memcpy(row, g.dy + target * g.cout, g.cout * sizeof(float));
    if (width > g.cout) memset(row + g.cout, 0, (width - g.cout) * sizeof(float));
    if (++copied < kGradPairs) return;
    grad_products(left, right, copied, channels, width, sums);
    copied = 0;
  };
  for (int64_t first = 0; first < g.n_out; first += kBlockRows) {
    const int64_t last = first + kBlockRows < g.n_out ? first + kBlockRows : g.n_out;
    if (!g.pairs) {
      for (int64_t row = first; row < last; ++row) add(row, row);
      continue;
    }
    const Pairs pairs = pairs_of(g.pairs, first / kBlockRows);
    for (int i = pairs.ends[step]; i < pairs.ends[step + 1]; ++i)
      add(pairs.source[i], first + pairs.target[i]);
  }
  if (copied) grad_products(left, right, copied, channels, width, sums);
  const int offset = offset_at(step, g.offsets);
  float* out = g.grad + (static_cast<int64_t>(offset) * g.cin + first_channel) * g.cout;
  for (int r = 0; r < channels; ++r)
    memcpy(out + static_cast<int64_t>(r) * g.cout, sums + static_cast<int64_t>(r) * width,
           g.cout * sizeof(float));
}

}  // namespace
