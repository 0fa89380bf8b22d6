// SPDX-License-Identifier: Apache-2.0
// The convolution kernels, included once per instruction set with
//   PCSEG_LANES     floats per vector
//   PCSEG_NAME      name of the Kernels instance
//   PCSEG_DOT_BF16  1 where the set has a bfloat16 dot product
//
// A block of output rows is accumulated in a scratch buffer that stays in cache. Per kernel offset
// the rows that have a neighbor are listed, and register tiles of MR rows by NV vectors read the
// input rows through that list: no gather buffer, no scatter, no race.
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

// Widest panel in vectors, and rows per register tile for each panel width.
#if PCSEG_LANES == 16
constexpr int kMaxPanel = 4;
constexpr int tile_rows(int nv) { return nv == 4 ? 6 : nv == 3 ? 8 : nv == 2 ? 12 : 14; }
#else
constexpr int kMaxPanel = 3;
constexpr int tile_rows(int nv) { return nv == 3 ? 4 : nv == 2 ? 6 : 8; }
#endif
constexpr int kMaxTile = 16;

PCSEG_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecAnywhere*>(p); }
PCSEG_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecAnywhere*>(p) = v; }

int padded(int n) { return (n + L - 1) / L * L; }

// Width in vectors of the next panel when `rest` vectors are left.
int panel_width(int rest) {
  if (kMaxPanel == 4) return rest == 5 || rest == 6 || rest == 3 ? 3 : rest >= 4 ? 4 : rest;
  return rest == 4 || rest == 2 ? 2 : rest >= 3 ? 3 : rest;
}

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

// What a step of the inner loop multiplies: one float, or a pair of bfloat16. A scalar is spread as
// `a - Vec{}`, which folds to a broadcast; the compiler must keep the addition of `Vec{} + a`.
struct Single {
  typedef float Scalar;
  static constexpr int kChannels = 1;
  typedef Vec Loaded;
  static PCSEG_INLINE Loaded fetch(const char* b) { return load(reinterpret_cast<const float*>(b)); }
  static PCSEG_INLINE Vec step(Vec sum, Scalar a, Loaded b) { return sum + (a - Vec{}) * b; }
};

struct Pair {
  typedef uint32_t Scalar;
  static constexpr int kChannels = 2;
  typedef Bits Loaded;
  static PCSEG_INLINE Loaded fetch(const char* b) {
    return *reinterpret_cast<const BitsAnywhere*>(b);
  }
#if PCSEG_DOT_BF16
  static PCSEG_INLINE Vec step(Vec sum, Scalar a, Loaded b) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(Bits{} + a), (__m512bh)b);
  }
#else
  static PCSEG_INLINE Vec step(Vec sum, Scalar a, Loaded b) {
    sum = sum + (widen(a & 0xffff) - Vec{}) * (Vec)(b << 16);
    return sum + (widen(a >> 16) - Vec{}) * (Vec)(b & 0xffff0000u);
  }
#endif
};

// to[r] = from[r] + a[r] . B, for MR rows and NV vectors of output channels.
template <class Step, int MR, int NV>
void tile(const typename Step::Scalar* const* a, const float* const* from, float* const* to,
          const char* b, int steps) {
  Vec sum[MR][NV];
  PCSEG_UNROLL for (int r = 0; r < MR; ++r)
    PCSEG_UNROLL for (int v = 0; v < NV; ++v) sum[r][v] = load(from[r] + L * v);
  for (int k = 0; k < steps; ++k, b += NV * L * 4) {
    typename Step::Loaded column[NV];
    PCSEG_UNROLL for (int v = 0; v < NV; ++v) column[v] = Step::fetch(b + v * L * 4);
    PCSEG_UNROLL for (int r = 0; r < MR; ++r) {
      const typename Step::Scalar x = a[r][k];
      PCSEG_UNROLL for (int v = 0; v < NV; ++v) sum[r][v] = Step::step(sum[r][v], x, column[v]);
    }
  }
  PCSEG_UNROLL for (int r = 0; r < MR; ++r)
    PCSEG_UNROLL for (int v = 0; v < NV; ++v) store(to[r] + L * v, sum[r][v]);
}

template <class Step>
using Tile = void (*)(const typename Step::Scalar* const*, const float* const*, float* const*,
                      const char*, int);

// tiles[nv][rows]
template <class Step, int NV, int R>
struct TileTable {
  static void fill(Tile<Step> (*tiles)[kMaxTile + 1]) {
    tiles[NV][R] = tile<Step, R, NV>;
    if constexpr (R > 1) TileTable<Step, NV, R - 1>::fill(tiles);
    else if constexpr (NV > 1) TileTable<Step, NV - 1, tile_rows(NV - 1)>::fill(tiles);
  }
};

template <class Step>
struct Tiles {
  Tile<Step> at[kMaxPanel + 1][kMaxTile + 1] = {};
  Tiles() { TileTable<Step, kMaxPanel, tile_rows(kMaxPanel)>::fill(at); }
};

// The rows of a block that have a neighbor at one offset.
struct Rows {
  int32_t source[kBlockRows + L];
  int32_t target[kBlockRows + L];
  int count;
};

void list_rows(const int32_t* table, int64_t n_in, int rows, Rows& list) {
  const uint32_t limit = static_cast<uint32_t>(n_in);  // also drops -1: it is large unsigned
  int n = 0, r = 0;
#if defined(__AVX512F__)
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (; r + 16 <= rows; r += 16) {
    const __m512i source = _mm512_loadu_si512(table + r);
    const __mmask16 found = _mm512_cmplt_epu32_mask(source, _mm512_set1_epi32(limit));
    const __m512i target = _mm512_add_epi32(lanes, _mm512_set1_epi32(r));
    _mm512_storeu_si512(list.source + n, _mm512_maskz_compress_epi32(found, source));
    _mm512_storeu_si512(list.target + n, _mm512_maskz_compress_epi32(found, target));
    n += __builtin_popcount(found);
  }
#endif
  for (; r < rows; ++r) {
    list.source[n] = table[r];
    list.target[n] = r;
    n += static_cast<uint32_t>(table[r]) < limit;
  }
  list.count = n;
}

void list_identity(int64_t first, int64_t n_in, int rows, Rows& list) {
  int n = 0;
  for (int r = 0; r < rows && first + r < n_in; ++r, ++n) {
    list.source[n] = static_cast<int32_t>(first + r);
    list.target[n] = r;
  }
  list.count = n;
}

// Input channels of one pass, so that a panel of weights stays in the first-level cache.
constexpr int kSteps = 128;

// Add the products of one offset to the block's sums (rows x width floats). With `start`, sums
// begin at that row instead of at what is in the block.
template <class Step>
void add_offset(const ConvArgs& c, const Rows& list, const char* weight, float* sums, int width,
                const float* start) {
  static const Tiles<Step> tiles;
  const int steps = (c.cin + Step::kChannels - 1) / Step::kChannels;
  const int64_t row_bytes = c.ldx * (Step::kChannels == 2 ? 2 : 4);
  const char* x = static_cast<const char*>(c.x);
  for (int column = 0; column < width;) {
    const int nv = panel_width((width - column) / L), most = tile_rows(nv);
    const int groups = (list.count + most - 1) / most;
    for (int k = 0; k < steps; k += kSteps) {
      const int some = steps - k < kSteps ? steps - k : kSteps;
      const char* panel = weight + static_cast<int64_t>(k) * nv * L * 4;
      for (int g = 0, i = 0; g < groups; ++g) {
        const int rows = (list.count - i + groups - g - 1) / (groups - g);
        const typename Step::Scalar* a[kMaxTile];
        const float* from[kMaxTile];
        float* to[kMaxTile];
        for (int r = 0; r < rows; ++r, ++i) {
          a[r] = reinterpret_cast<const typename Step::Scalar*>(x + list.source[i] * row_bytes) + k;
          to[r] = sums + static_cast<int64_t>(list.target[i]) * width + column;
          from[r] = start && k == 0 ? start + column : to[r];
        }
        tiles.at[nv][rows](a, from, to, panel, some);
      }
    }
    weight += static_cast<int64_t>(steps) * nv * L * 4;
    column += nv * L;
  }
}

// Residual, rectifier and store of one block.
void finish(const ConvArgs& c, int64_t first, int rows, const float* sums, int width) {
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
      float v = sums[j] + (kept32 ? kept32[j] : kept16 ? widen(kept16[j]) : 0.0f);
      if (c.relu) v = v > 0 ? v : 0;
      if (c.out_dtype == kFloat32) out32[j] = v;
      else out16[j] = narrow(v);
    }
  }
}

size_t packed_bytes(int offsets, int cin, int cout, int dtype) {
  const size_t steps = dtype == kBFloat16 ? (cin + 1) / 2 : cin;
  return static_cast<size_t>(offsets) * steps * padded(cout) * 4;
}

void pack(const float* w, const float* scale, int cin, int cout, int dtype, bool transpose,
          void* packed) {
  const int width = padded(cout), per = dtype == kBFloat16 ? 2 : 1;
  const int64_t ci_step = transpose ? 1 : cout, co_step = transpose ? cin : 1;
  float* out32 = static_cast<float*>(packed);
  uint16_t* out16 = static_cast<uint16_t*>(packed);
  for (int column = 0; column < width;) {
    const int lanes = panel_width((width - column) / L) * L;
    for (int ci = 0; ci < cin; ci += per)
      for (int j = column; j < column + lanes; ++j)
        for (int p = 0; p < per; ++p) {
          const bool inside = j < cout && ci + p < cin;
          float value = inside ? w[(ci + p) * ci_step + j * co_step] : 0.0f;
          if (inside && scale) value *= scale[j];
          if (dtype == kBFloat16) *out16++ = narrow(value);
          else *out32++ = value;
        }
    column += lanes;
  }
}

size_t conv_scratch(const ConvArgs& c) {
  return sizeof(float) * (kBlockRows + 1) * padded(c.cout) + sizeof(Rows) + 64;
}

void conv_block(const ConvArgs& c, int64_t first, int64_t last, char* scratch) {
  const int rows = static_cast<int>(last - first), width = padded(c.cout);
  float* start = reinterpret_cast<float*>(scratch);
  float* sums = start + width;
  Rows& list = *reinterpret_cast<Rows*>(sums + kBlockRows * width);
  memset(start, 0, width * sizeof(float));
  if (c.bias) memcpy(start, c.bias, c.cout * sizeof(float));
  const int64_t bytes = packed_bytes(1, c.cin, c.cout, c.dtype);
  bool begun = false;  // whether the sums hold something
  for (int step = 0; step < c.offsets; ++step) {
    // The middle offset first: in a submanifold kernel it has all rows and begins the sums.
    const int k = step == 0 ? c.offsets / 2 : step <= c.offsets / 2 ? step - 1 : step;
    if (c.table) list_rows(c.table + k * c.n_out + first, c.n_in, rows, list);
    else list_identity(first, c.n_in, rows, list);
    const bool all = !begun && list.count == rows;
    for (int r = 0; !begun && !all && r < rows; ++r)
      memcpy(sums + r * width, start, width * sizeof(float));
    begun = true;
    if (!list.count) continue;
    const char* weight = static_cast<const char*>(c.weight) + k * bytes;
    if (c.dtype == kBFloat16) add_offset<Pair>(c, list, weight, sums, width, all ? start : nullptr);
    else add_offset<Single>(c, list, weight, sums, width, all ? start : nullptr);
  }
  finish(c, first, rows, sums, width);
}

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
  return sizeof(float) * (kGradPairs * (kGradChannels + width) + kGradChannels * width) +
         sizeof(Rows) + 64;
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

void grad_task(const GradArgs& g, int offset, int64_t first_channel, char* scratch) {
  static_assert(kGradPairs == kBlockRows, "pairs are listed block by block");
  const int width = padded(g.cout);
  const int rest = static_cast<int>(g.cin - first_channel);
  const int channels = rest < kGradChannels ? rest : kGradChannels;
  float* left = reinterpret_cast<float*>(scratch);
  float* right = left + kGradPairs * kGradChannels;
  float* sums = right + kGradPairs * width;
  Rows& list = *reinterpret_cast<Rows*>(sums + kGradChannels * width);
  memset(sums, 0, sizeof(float) * channels * width);
  int pairs = 0;
  for (int64_t first = 0; first < g.n_out; first += kBlockRows) {
    const int rows = static_cast<int>(g.n_out - first < kBlockRows ? g.n_out - first : kBlockRows);
    if (g.table) list_rows(g.table + offset * g.n_out + first, g.n_in, rows, list);
    else list_identity(first, g.n_in, rows, list);
    for (int i = 0; i < list.count; ++i) {
      memcpy(left + pairs * kGradChannels,
             g.x + static_cast<int64_t>(list.source[i]) * g.cin + first_channel,
             channels * sizeof(float));
      float* row = right + static_cast<int64_t>(pairs) * width;
      memcpy(row, g.dy + (first + list.target[i]) * g.cout, g.cout * sizeof(float));
      if (width > g.cout) memset(row + g.cout, 0, (width - g.cout) * sizeof(float));
      if (++pairs == kGradPairs) {
        grad_products(left, right, pairs, channels, width, sums);
        pairs = 0;
      }
    }
  }
  if (pairs) grad_products(left, right, pairs, channels, width, sums);
  float* out = g.grad + (static_cast<int64_t>(offset) * g.cin + first_channel) * g.cout;
  for (int r = 0; r < channels; ++r)
    memcpy(out + static_cast<int64_t>(r) * g.cout, sums + static_cast<int64_t>(r) * width,
           g.cout * sizeof(float));
}

}  // namespace

const pcseg::Kernels pcseg::PCSEG_NAME = {
#define PCSEG_TEXT(name) #name
#define PCSEG_STRING(name) PCSEG_TEXT(name)
    PCSEG_STRING(PCSEG_NAME), L, PCSEG_DOT_BF16, pack, packed_bytes, conv_scratch, conv_block,
    grad_scratch, grad_task};
