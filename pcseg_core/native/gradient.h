// SPDX-License-Identifier: Apache-2.0
// Gradient of the weights; part of kernels.h.

namespace {

// grad[r] += sum over pairs of left[p][r] * right[p], for MR input channels and NV vectors.
template <int MR, int NV>
void grad_tile(const float* const* left, int channel, const float* const* right, int column,
               int pairs, float* grad, int64_t ldg) {
  Vec sum[MR][NV] = {};
  for (int p = 0; p < pairs; ++p) {
    const float* x = left[p] + channel;
    const float* dy = right[p] + column;
    Vec values[NV];
    PCSEG_UNROLL for (int v = 0; v < NV; ++v) values[v] = load(dy + L * v);
    PCSEG_UNROLL for (int r = 0; r < MR; ++r) {
      const Vec factor = x[r] - Vec{};
      PCSEG_UNROLL for (int v = 0; v < NV; ++v) sum[r][v] += factor * values[v];
    }
  }
  PCSEG_UNROLL for (int r = 0; r < MR; ++r)
    PCSEG_UNROLL for (int v = 0; v < NV; ++v)
      store(grad + r * ldg + L * v, load(grad + r * ldg + L * v) + sum[r][v]);
}

using GradTile = void (*)(const float* const*, int, const float* const*, int, int, float*, int64_t);

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

// Pairs that wait for their products, by the rows that they multiply.
struct GradPairs {
  const float* left[kGradPairs];
  const float* right[kGradPairs];
  int count = 0;
};

size_t grad_scratch(const GradArgs& g) {
  const int64_t width = padded(g.cout);
  return sizeof(float) * (kGradPairs + kGradChannels) * width;
}

// Add the products of pairs to the sums (channels x width).
void grad_products(const GradPairs& pairs, int channels, int width, float* sums) {
  static const GradTiles tiles;
  for (int column = 0; column < width;) {
    const int nv = panel_width((width - column) / L), most = tile_rows(nv);
    const int groups = (channels + most - 1) / most;
    for (int g = 0, i = 0; g < groups; ++g) {
      const int rows = (channels - i + groups - g - 1) / (groups - g);
      tiles.at[nv][rows](pairs.left, i, pairs.right, column, pairs.count,
                         sums + static_cast<int64_t>(i) * width + column, width);
      i += rows;
    }
    column += nv * L;
  }
}

// Ask for a row before its product is due: rows of neighbors lie anywhere.
PCSEG_INLINE void fetch_soon(const float* row, int channels) {
  for (int c = 0; c < channels; c += 16) __builtin_prefetch(row + c);
}

void grad_task(const GradArgs& g, int step, int64_t first_channel, char* scratch) {
  const int width = padded(g.cout);
  const int rest = static_cast<int>(g.cin - first_channel);
  const int channels = rest < kGradChannels ? rest : kGradChannels;
  float* sums = reinterpret_cast<float*>(scratch);
  float* copies = sums + channels * width;  // rows of dy that are no whole number of vectors
  memset(sums, 0, sizeof(float) * channels * width);
  GradPairs waiting;
  const auto add = [&](int64_t source, int64_t target) {
    waiting.left[waiting.count] = g.x + source * g.cin + first_channel;
    const float* dy = g.dy + target * g.cout;
    if (width > g.cout) {
      float* copy = copies + int64_t{waiting.count} * width;
      memcpy(copy, dy, g.cout * sizeof(float));
      memset(copy + g.cout, 0, (width - g.cout) * sizeof(float));
      dy = copy;
    }
    waiting.right[waiting.count] = dy;
    fetch_soon(waiting.left[waiting.count], channels);
    fetch_soon(dy, g.cout);
    if (++waiting.count < kGradPairs) return;
    grad_products(waiting, channels, width, sums);
    waiting.count = 0;
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
  if (waiting.count) grad_products(waiting, channels, width, sums);
  const int offset = offset_at(step, g.offsets);
  float* out = g.grad + (static_cast<int64_t>(offset) * g.cin + first_channel) * g.cout;
  for (int r = 0; r < channels; ++r)
    memcpy(out + static_cast<int64_t>(r) * g.cout, sums + static_cast<int64_t>(r) * width,
           g.cout * sizeof(float));
}

}  // namespace
