// SPDX-License-Identifier: Apache-2.0
// The convolution kernels, included once per instruction set with
//   PCSEG_LANES     floats per vector
//   PCSEG_REGISTERS number of vector registers, 16 or 32
//   PCSEG_NAME      name of the Kernels instance
//   PCSEG_DOT_BF16  1 where the set has a bfloat16 dot product; on NEON also products of matrices
//   PCSEG_DOT_INT8  1 where the set has a dot product of 8-bit integers
//   PCSEG_BASE      Kernels of the same geometry that do everything else than these dot products;
//                   not defined: this set does everything
//
// A block of output rows is accumulated in a scratch buffer that stays in cache. Per kernel offset,
// register tiles of MR rows by NV vectors read the input rows through the list of pairs: no gather
// buffer, no scatter, no race.
#include "vectors.h"

namespace {

// Widest panel in vectors, and rows per register tile for each panel width.
#if PCSEG_REGISTERS == 32
constexpr int kMaxPanel = 4;
constexpr int tile_rows(int nv) { return nv == 4 ? 6 : nv == 3 ? 8 : nv == 2 ? 12 : 14; }
#else
constexpr int kMaxPanel = 3;
constexpr int tile_rows(int nv) { return nv == 3 ? 4 : nv == 2 ? 6 : 8; }
#endif
constexpr int kMaxTile = 16;

// Width in vectors of the next panel when `rest` vectors are left.
int panel_width(int rest) {
  if (kMaxPanel == 4) return rest == 5 || rest == 6 || rest == 3 ? 3 : rest >= 4 ? 4 : rest;
  return rest == 4 || rest == 2 ? 2 : rest >= 3 ? 3 : rest;
}

// On NEON: products of matrices, else products of signed integers only.
#define PCSEG_MATRIX (PCSEG_DOT_BF16 && PCSEG_LANES == 4)
#define PCSEG_SHIFTED (PCSEG_DOT_INT8 && PCSEG_LANES == 4 && !PCSEG_MATRIX)

// What a step of the inner loop multiplies: one float, two bfloat16 or four integers. A scalar is
// spread as `a - Vec{}`, which folds to a broadcast; the compiler must keep the addition of
// `Vec{} + a`.
struct Single {
  typedef float Scalar;
  static constexpr int kChannels = 1;
  typedef Vec Loaded;
  static PCSEG_INLINE Loaded fetch(const char* b) { return load(reinterpret_cast<const float*>(b)); }
  static PCSEG_INLINE Vec step(Vec sum, Scalar a, Loaded b) { return sum + (a - Vec{}) * b; }
};

#if PCSEG_MATRIX
#include "matrix_tile.h"
#else
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

// Four unsigned features and four signed weights; the sums are int32 in the lanes of the floats.
struct Quad {
  typedef uint32_t Scalar;
  static constexpr int kChannels = 4;
  typedef Bits Loaded;
  static PCSEG_INLINE Loaded fetch(const char* b) {
    return *reinterpret_cast<const BitsAnywhere*>(b);
  }
  static PCSEG_INLINE Vec step(Vec sum, Scalar a, Loaded b) {
#if PCSEG_DOT_INT8 && PCSEG_LANES == 16
    return (Vec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)(Bits{} + a), (__m512i)b);
#elif PCSEG_DOT_INT8 && PCSEG_LANES == 8
    return (Vec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)(Bits{} + a), (__m256i)b);
#elif PCSEG_SHIFTED  // signed features: 128 less than they are
    return (Vec)vdotq_s32((int32x4_t)sum, (int8x16_t)(Bits{} + (a ^ 0x80808080u)), (int8x16_t)b);
#elif defined(__AVX2__)  // two and two, as 16-bit integers
    const Unsigned features = (Unsigned)(Bits{} + a);
    const Halves weights = (Halves)b;
    const Integers even = add_products((Halves)(features & 255), (weights << 8) >> 8);
    const Integers odd = add_products((Halves)(features >> 8), weights >> 8);
    return (Vec)((Integers)sum + (even + odd));
#else
    Integers total = (Integers)sum;
    PCSEG_UNROLL for (int p = 0; p < 4; ++p) {
      const int32_t x = static_cast<int32_t>(a >> 8 * p & 255);
      total += (Integers{} + x) * ((Integers)(b << (24 - 8 * p)) >> 24);
    }
    return (Vec)total;
#endif
  }
};
#endif

// to[r] = from[r] + a[r] . B, for MR rows and NV vectors of output channels. Where features are
// shifted, B ends with what their products lack.
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
  if constexpr (PCSEG_SHIFTED && Step::kChannels == 4) {
    PCSEG_UNROLL for (int v = 0; v < NV; ++v) {
      const Bits more = *reinterpret_cast<const BitsAnywhere*>(b + v * L * 4);
      PCSEG_UNROLL for (int r = 0; r < MR; ++r) sum[r][v] = (Vec)((Bits)sum[r][v] + more);
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
#if PCSEG_MATRIX
    if constexpr (Step::kChannels > 1) tiles[NV][R] = matrix_tile<Step, R, NV>;
    else tiles[NV][R] = tile<Step, R, NV>;
#else
    tiles[NV][R] = tile<Step, R, NV>;
#endif
    if constexpr (R > 1) TileTable<Step, NV, R - 1>::fill(tiles);
    else if constexpr (NV > 1) TileTable<Step, NV - 1, tile_rows(NV - 1)>::fill(tiles);
  }
};

template <class Step>
struct Tiles {
  Tile<Step> at[kMaxPanel + 1][kMaxTile + 1] = {};
  Tiles() { TileTable<Step, kMaxPanel, tile_rows(kMaxPanel)>::fill(at); }
};
// Words of input channels of one pass, so that a panel of weights stays in the first-level cache.
constexpr int kSteps = 128;

// Words of weights of one output channel for a pass over `words` of the input.
constexpr int packed_words(int words, int channels_per_word) {
  if (PCSEG_MATRIX && channels_per_word > 1) return (words + 1) / 2 * 2;
  return words + (PCSEG_SHIFTED && channels_per_word == 4);
}

// Add the products of one step of the lists to the block's sums (rows x width floats). With `start`,
// sums begin at that row instead of at what is in the block.
template <class Step>
void add_offset(const ConvArgs& c, const Pairs& pairs, int step, const char* weight, float* sums,
                int width, const float* start) {
  static const Tiles<Step> tiles;
  const int32_t* source = pairs.source + pairs.ends[step];
  const uint16_t* target = pairs.target + pairs.ends[step];
  const int count = pairs.count(step);
  const int steps = (c.cin + Step::kChannels - 1) / Step::kChannels;
  const int64_t row_bytes = c.ldx * 4 / Step::kChannels;
  const char* x = static_cast<const char*>(c.x);
  for (int column = 0; column < width;) {
    const int nv = panel_width((width - column) / L), most = tile_rows(nv);
    const int groups = (count + most - 1) / most;
    for (int k = 0; k < steps; k += kSteps) {
      const int some = steps - k < kSteps ? steps - k : kSteps;
      for (int g = 0, i = 0; g < groups; ++g) {
        const int rows = (count - i + groups - g - 1) / (groups - g);
        const typename Step::Scalar* a[kMaxTile];
        const float* from[kMaxTile];
        float* to[kMaxTile];
        for (int r = 0; r < rows; ++r, ++i) {
          a[r] = reinterpret_cast<const typename Step::Scalar*>(x + source[i] * row_bytes) + k;
          to[r] = sums + static_cast<int64_t>(target[i]) * width + column;
          from[r] = start && k == 0 ? start + column : to[r];
        }
        tiles.at[nv][rows](a, from, to, weight, some);
      }
      weight += static_cast<int64_t>(packed_words(some, Step::kChannels)) * nv * L * 4;
    }
    column += nv * L;
  }
}

#if PCSEG_SHIFTED
// What features that are shifted lack, in the products with a part of a column of weights.
char* put_shift(const Weights& weights, int first, int last, int column, char* out) {
  int32_t sum = 0;
  for (int p = first; p < last; ++p) sum += rounded(weights.at(p, column));
  sum *= 128;
  memcpy(out, &sum, 4);
  return out + 4;
}
#endif

size_t packed_bytes(int offsets, int cin, int cout, int dtype) {
  const int per = channels_per_word(dtype), words = (cin + per - 1) / per;
  const int all = words / kSteps * packed_words(kSteps, per);
  const int rest = words % kSteps ? packed_words(words % kSteps, per) : 0;
  return size_t{4} * offsets * (all + rest) * padded(cout);
}

void pack(const float* w, const float* scale, int cin, int cout, int dtype, bool transpose,
          void* packed) {
  const int width = padded(cout), per_word = channels_per_word(dtype), pass = kSteps * per_word;
  const int per = PCSEG_MATRIX && per_word > 1 ? 2 * per_word : per_word;
  const Weights weights{w, scale, cin, cout, transpose};
  char* out = static_cast<char*>(packed);
  for (int column = 0; column < width;) {
    const int lanes = panel_width((width - column) / L) * L;
    for (int first = 0; first < cin; first += pass) {
      const int last = first + pass < cin ? first + pass : cin;
      for (int ci = first; ci < last; ci += per)
        for (int j = column; j < column + lanes; ++j)
          for (int p = ci; p < ci + per; ++p) out = put(weights.at(p, j), dtype, out);
#if PCSEG_SHIFTED
      for (int j = column; dtype == kUInt8 && j < column + lanes; ++j)
        out = put_shift(weights, first, last, j, out);
#endif
    }
    column += lanes;
  }
}

size_t conv_scratch(const ConvArgs& c) {
  return sizeof(float) * (kBlockRows + 1) * padded(c.cout);
}

// Whether this set multiplies a type itself.
#ifdef PCSEG_BASE
constexpr bool kOwn[] = {false, PCSEG_DOT_BF16, PCSEG_DOT_INT8};  // by Dtype
#else
constexpr bool kOwn[] = {true, true, true};
#endif

using Add = void (*)(const ConvArgs&, const Pairs&, int, const char*, float*, int, const float*);

template <int Dtype, class Step>
constexpr Add own_add() {
  if constexpr (kOwn[Dtype]) return add_offset<Step>;
  else return nullptr;
}

constexpr Add kAdd[] = {own_add<kFloat32, Single>(), own_add<kBFloat16, Pair>(),
                        own_add<kUInt8, Quad>()};

void conv_block(const ConvArgs& c, const Pairs& pairs, int64_t first, int rows, char* scratch) {
#ifdef PCSEG_BASE
  if (!kOwn[c.dtype]) return PCSEG_BASE->conv_block(c, pairs, first, rows, scratch);
#endif
  const int width = padded(c.cout);
  float* start = reinterpret_cast<float*>(scratch);
  float* sums = start + width;
  memset(start, 0, width * sizeof(float));
  if (c.bias && c.dtype != kUInt8) memcpy(start, c.bias, c.cout * sizeof(float));
  const int64_t bytes = packed_bytes(1, c.cin, c.cout, c.dtype);
  // In a submanifold kernel the middle offset has all rows and begins the sums.
  const bool all = pairs.count(0) == rows;
  for (int r = 0; !all && r < rows; ++r) memcpy(sums + r * width, start, width * sizeof(float));
  for (int step = 0; step < c.offsets; ++step) {
    if (!pairs.count(step)) continue;
    const char* weight = static_cast<const char*>(c.weight) + offset_at(step, c.offsets) * bytes;
    const float* begin = step == 0 && all ? start : nullptr;
    kAdd[c.dtype](c, pairs, step, weight, sums, width, begin);
  }
  finish(c, first, rows, sums, width, c.dtype == kUInt8 ? c.bias : nullptr);
}

}  // namespace

#ifdef PCSEG_BASE
namespace {
size_t grad_scratch(const GradArgs& g) { return PCSEG_BASE->grad_scratch(g); }
void grad_task(const GradArgs& g, int step, int64_t first_channel, char* scratch) {
  PCSEG_BASE->grad_task(g, step, first_channel, scratch);
}
}  // namespace
#else
#include "gradient.h"
#endif

#define PCSEG_TEXT(name) #name
#define PCSEG_STRING(name) PCSEG_TEXT(name)
namespace {
int64_t block_rows(int, int64_t) { return kBlockRows; }
const Kernels set = {PCSEG_STRING(PCSEG_NAME), PCSEG_DOT_BF16, block_rows, pack, packed_bytes,
                     conv_scratch, conv_block, grad_scratch, grad_task};
}  // namespace

const pcseg::Kernels* const pcseg::PCSEG_NAME = &set;
