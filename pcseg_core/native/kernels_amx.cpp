// SPDX-License-Identifier: Apache-2.0
// Convolution of bfloat16 and of integers on the tiles of AMX; float32 and gradients are those of
// AVX-512.
//
// Per kernel offset, 32 input rows at a time are gathered into tiles, multiplied by 32 output
// channels at a time, and the products are added to the sums of the block. A tile has 16 rows of 64
// bytes; its memory is `kTile` contiguous bytes. Each row of a product depends on its own input row
// alone: rows that a tile holds beyond the list are computed and dropped.
#if defined(__x86_64__)
#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
#define PCSEG_LANES 16
#define PCSEG_DOT_BF16 1
#define PCSEG_DOT_INT8 1
#include "vectors.h"

namespace {

constexpr int kTile = 1024;
constexpr int kGroup = 32;  // rows and output channels of one product: 2 x 2 tiles

struct __attribute__((packed, aligned(64))) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles in use by this thread. Other libraries use them too: each block configures them.
struct Configured {
  Configured() {
    static const TileConfig config = [] {
      TileConfig made;
      for (int i = 0; i < 8; ++i) made.rows[i] = 16, made.bytes[i] = 64;
      return made;
    }();
    // The intrinsic of GCC 12 declares 8 of the 64 bytes as read; the others may then be missing.
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~Configured() { asm volatile("tilerelease"); }
};

int tiles_over(int channels, int per) { return (channels + per - 1) / per; }

// Input channels of one tile: 64 bytes.
int channels(int dtype) { return 16 * channels_per_word(dtype); }

// A convolution in tiles.
struct Layer {
  explicit Layer(const ConvArgs& c)
      : steps(tiles_over(c.cin, channels(c.dtype))), columns(tiles_over(c.cout, 16)),
        width(columns * 16), row_bytes(c.ldx * element_bytes(c.dtype)),
        used_bytes(c.cin * element_bytes(c.dtype)),
        weight_bytes(int64_t{steps} * columns * kTile) {}
  int steps;    // tiles along the input channels
  int columns;  // tiles along the output channels
  int width;    // of the sums
  int64_t row_bytes;
  int used_bytes;  // of a row
  int64_t weight_bytes;
};

// Two tiles of rows, one after the other along the input channels.
struct Left {
  const char* data;
  int64_t group, step, stride;  // bytes to the next 16 rows, 64 bytes of a row, and row
};

size_t amx_packed_bytes(int offsets, int cin, int cout, int dtype) {
  if (dtype == kFloat32) return kernels_avx512->packed_bytes(offsets, cin, cout, dtype);
  return size_t{kTile} * offsets * tiles_over(cin, channels(dtype)) * tiles_over(cout, 16);
}

// One tile of weights: 16 words of input channels by 16 output channels.
char* pack_tile(const Weights& weights, int dtype, int ci, int co, char* out) {
  const int per = channels_per_word(dtype);
  for (int i = ci; i < ci + 16 * per; i += per)
    for (int j = co; j < co + 16; ++j)
      for (int p = i; p < i + per; ++p) out = put(weights.at(p, j), dtype, out);
  return out;
}

// Order: pair of column tiles, step, tile of the pair.
void amx_pack(const float* w, const float* scale, int cin, int cout, int dtype, bool transpose,
              void* packed) {
  if (dtype == kFloat32)
    return kernels_avx512->pack(w, scale, cin, cout, dtype, transpose, packed);
  const Weights weights{w, scale, cin, cout, transpose};
  char* out = static_cast<char*>(packed);
  for (int pair = 0; pair < cout; pair += kGroup)
    for (int ci = 0; ci < cin; ci += channels(dtype))
      for (int co = pair; co < cout && co < pair + kGroup; co += 16)
        out = pack_tile(weights, dtype, ci, co, out);
}

// Copy rows to tiles, [16 rows][step][row]; never reads a row beyond its channels.
Left gather(const ConvArgs& c, const Layer& layer, const int32_t* source, int rows, char* to) {
  const int full = layer.used_bytes / 64;
  const __mmask64 tail = (uint64_t{1} << layer.used_bytes % 64) - 1;
  const int64_t group = int64_t{layer.steps} * kTile;
  for (int r = 0; r < rows; ++r) {
    const char* row = static_cast<const char*>(c.x) + source[r] * layer.row_bytes;
    char* at = to + r / 16 * group + r % 16 * 64;
    for (int s = 0; s < full; ++s, row += 64, at += kTile)
      _mm512_store_si512(at, _mm512_loadu_si512(row));
    if (tail) _mm512_store_si512(at, _mm512_maskz_loadu_epi8(tail, row));
  }
  return {to, group, kTile, 64};
}

struct Floats {
  static constexpr bool kWhole = false;
  static PCSEG_INLINE Vec add(Vec a, Vec b) { return a + b; }
};

struct Whole {  // unsigned features, signed weights, sums in int32
  static constexpr bool kWhole = true;
  static PCSEG_INLINE Vec add(Vec a, Vec b) { return (Vec)((Integers)a + (Integers)b); }
};

// The intrinsics of GCC take names of tiles as text.
#define PCSEG_MULTIPLY(to, left, right)                          \
  do {                                                           \
    if constexpr (Number::kWhole) _tile_dpbusd(to, left, right); \
    else _tile_dpbf16ps(to, left, right);                        \
  } while (0)

// out = left . weights, MT x NT tiles.
template <class Number, int MT, int NT>
void product(const Left& left, const char* weight, int steps, float* out, int64_t row_bytes) {
  asm volatile("" ::: "memory");  // the intrinsics that load tiles do not declare what they read
  _tile_zero(0);
  if (NT > 1) _tile_zero(1);
  if (MT > 1) _tile_zero(2);
  if (MT > 1 && NT > 1) _tile_zero(3);
  const char* a = left.data;
  for (int s = 0; s < steps; ++s, a += left.step, weight += NT * kTile) {
    _tile_loadd(4, a, left.stride);
    _tile_loadd(6, weight, 64);
    PCSEG_MULTIPLY(0, 4, 6);
    if (MT > 1) _tile_loadd(5, a + left.group, left.stride);
    if (MT > 1) PCSEG_MULTIPLY(2, 5, 6);
    if (NT > 1) _tile_loadd(7, weight + kTile, 64);
    if (NT > 1) PCSEG_MULTIPLY(1, 4, 7);
    if (MT > 1 && NT > 1) PCSEG_MULTIPLY(3, 5, 7);
  }
  float* below = reinterpret_cast<float*>(reinterpret_cast<char*>(out) + 16 * row_bytes);
  _tile_stored(0, out, row_bytes);
  if (NT > 1) _tile_stored(1, out + 16, row_bytes);
  if (MT > 1) _tile_stored(2, below, row_bytes);
  if (MT > 1 && NT > 1) _tile_stored(3, below + 16, row_bytes);
}

// Sums of step 0 where it has all rows. They are stored without an addition, whole groups of rows:
// the sums have room for them.
template <class Number>
void begin(const ConvArgs& c, const Layer& layer, const Pairs& pairs, int rows, const char* weight,
           float* sums, char* tiles) {
  for (int r = 0; r < rows; r += kGroup) {
    const int32_t* source = pairs.source + pairs.ends[0] + r;
    const bool in_place = pairs.straight && layer.used_bytes % 64 == 0 && *source + kGroup <= c.n_in;
    const char* row = static_cast<const char*>(c.x) + *source * layer.row_bytes;
    const Left left = in_place ? Left{row, 16 * layer.row_bytes, 64, layer.row_bytes}
                               : gather(c, layer, source, rows - r < kGroup ? rows - r : kGroup, tiles);
    for (int t = 0; t < layer.columns; t += 2) {
      const char* panel = weight + int64_t{t} * layer.steps * kTile;
      float* out = sums + int64_t{r} * layer.width + t * 16;
      if (t + 1 < layer.columns) product<Number, 2, 2>(left, panel, layer.steps, out, layer.width * 4);
      else product<Number, 2, 1>(left, panel, layer.steps, out, layer.width * 4);
    }
  }
}

template <class Number, int NT>
void scatter(const float* products, const uint16_t* target, int rows, float* sums, int width) {
  for (int r = 0; r < rows; ++r, products += NT * 16) {
    float* row = sums + int64_t{target[r]} * width;
    store(row, Number::add(load(row), load(products)));
    if (NT > 1) store(row + 16, Number::add(load(row + 16), load(products + 16)));
  }
}

template <class Number, int NT>
void add_columns(const Left& left, const char* panel, int steps, const uint16_t* target, int rows,
                 float* products, float* sums, int width) {
  if (rows > 16) product<Number, 2, NT>(left, panel, steps, products, NT * 64);
  else product<Number, 1, NT>(left, panel, steps, products, NT * 64);
  scatter<Number, NT>(products, target, rows, sums, width);
}

// Add the products of one step to the sums.
template <class Number>
void add_step(const ConvArgs& c, const Layer& layer, const Pairs& pairs, int step,
              const char* weight, float* products, float* sums, char* tiles) {
  for (int i = pairs.ends[step]; i < pairs.ends[step + 1]; i += kGroup) {
    const int rest = pairs.ends[step + 1] - i, rows = rest < kGroup ? rest : kGroup;
    const Left left = gather(c, layer, pairs.source + i, rows, tiles);
    const uint16_t* target = pairs.target + i;
    for (int t = 0; t < layer.columns; t += 2) {
      const char* panel = weight + int64_t{t} * layer.steps * kTile;
      float* to = sums + t * 16;
      if (t + 1 < layer.columns)
        add_columns<Number, 2>(left, panel, layer.steps, target, rows, products, to, layer.width);
      else
        add_columns<Number, 1>(left, panel, layer.steps, target, rows, products, to, layer.width);
    }
  }
}

// Large blocks read the weights less often; small inputs need blocks enough for all threads.
int64_t amx_block_rows(int dtype, int64_t n_out) {
  if (dtype == kFloat32) return kBlockRows;
  return n_out >= 16384 ? 1024 : n_out >= 4096 ? 512 : kBlockRows;
}

size_t sums_bytes(const ConvArgs& c) {
  return sizeof(float) * amx_block_rows(c.dtype, c.n_out) * Layer(c).width;
}

size_t amx_scratch(const ConvArgs& c) {
  if (c.dtype == kFloat32) return kernels_avx512->conv_scratch(c);
  return sums_bytes(c) + sizeof(float) * kGroup * kGroup + 2 * Layer(c).steps * kTile;
}

// The sums of a block.
template <class Number>
void add_up(const ConvArgs& c, const Layer& layer, const Pairs& pairs, int rows, float* sums,
            char* scratch) {
  float* products = reinterpret_cast<float*>(scratch);
  char* tiles = reinterpret_cast<char*>(products + kGroup * kGroup);
  const bool all = pairs.count(0) == rows;
  if (!all) memset(sums, 0, sizeof(float) * rows * layer.width);
  const Configured configured;
  for (int step = 0; step < c.offsets; ++step) {
    const char* weight =
        static_cast<const char*>(c.weight) + offset_at(step, c.offsets) * layer.weight_bytes;
    if (step == 0 && all) begin<Number>(c, layer, pairs, rows, weight, sums, tiles);
    else add_step<Number>(c, layer, pairs, step, weight, products, sums, tiles);
  }
}

void amx_block(const ConvArgs& c, const Pairs& pairs, int64_t first, int rows, char* scratch) {
  if (c.dtype == kFloat32)
    return kernels_avx512->conv_block(c, pairs, first, rows, scratch);
  const Layer layer(c);
  float* sums = reinterpret_cast<float*>(scratch);
  scratch += sums_bytes(c);
  if (c.dtype == kUInt8) add_up<Whole>(c, layer, pairs, rows, sums, scratch);
  else add_up<Floats>(c, layer, pairs, rows, sums, scratch);
  finish(c, first, rows, sums, layer.width, c.bias);
}

size_t amx_grad_scratch(const GradArgs& g) { return kernels_avx512->grad_scratch(g); }

void amx_grad_task(const GradArgs& g, int step, int64_t first_channel, char* scratch) {
  kernels_avx512->grad_task(g, step, first_channel, scratch);
}

const Kernels set = {"kernels_amx", true,        amx_block_rows,   amx_pack,     amx_packed_bytes,
                     amx_scratch,   amx_block,   amx_grad_scratch, amx_grad_task};

}  // namespace

const pcseg::Kernels* const pcseg::kernels_amx = &set;

#else
#include "native.h"
const pcseg::Kernels* const pcseg::kernels_amx = nullptr;
#endif
#endif
