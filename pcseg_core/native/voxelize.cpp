// SPDX-License-Identifier: Apache-2.0
// Points to voxels and to the mean input features of each voxel, in one pass. Voxels, their order
// and the features are those that pcseg_core/sparse/voxels.py computes with torch, bit for bit, for
// any number of threads: the sort is stable, and features are summed in the order of the points.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "native.h"

// A fused multiply-add rounds once where torch rounds twice.
#if defined(__clang__)
#pragma clang fp contract(off)
#else
#pragma GCC optimize("fp-contract=off")
#endif

namespace pcseg {
namespace {

constexpr int64_t kMaxBatch = 511;  // as MAX_BATCH of pcseg_core/sparse/keys.py
constexpr int64_t kChunks = 16, kLeastChunk = 4096;
constexpr int kDigitBits = 11;
constexpr int64_t kVoxelBlock = 1024;  // voxels of one task
constexpr int64_t kBlock = 256;        // points whose positions are computed at once

// As in pcseg_core/native/sweeps.py.
enum Input : int32_t { kX, kY, kZ, kIntensity, kOne, kOffsetX, kOffsetY, kOffsetZ };

struct VoxelizeArgs {
  const float* position;   // (n, 3)
  const int64_t* batch;    // (n) sweep of each point, or null for one sweep
  const float* intensity;  // (n), or null for 0
  const int32_t* inputs;   // (features) what each input feature is
  const float* scales;     // (features) divisor of each
  int64_t* keys;           // (n) first `voxels` are written
  int32_t* coords;         // (n, 4), the same, or null
  int64_t* counts;         // (n), the same
  int64_t* inverse;        // (n) voxel of each point, -1 for points that are not used
  float* grid;             // (n, 3) position in voxels, or null
  float* means;            // (n, features) first `voxels` rows are written
  int64_t n, voxels, beyond;
  float size[3];           // edges of a voxel
  float limit;             // largest squared distance of a used point; negative: use all points
  int32_t features;
};

// Batch, x, y and z of a voxel.
struct Cell {
  int32_t at[4];
};

struct Bounds {
  int32_t low[4] = {INT32_MAX, INT32_MAX, INT32_MAX, INT32_MAX};
  int32_t high[4] = {INT32_MIN, INT32_MIN, INT32_MIN, INT32_MIN};
  int64_t used = 0, beyond = 0;
  bool fits = true;

  void add(const Cell& cell) {
    for (int k = 0; k < 4; ++k) {
      low[k] = std::min(low[k], cell.at[k]);
      high[k] = std::max(high[k], cell.at[k]);
    }
  }

  void add(const Bounds& other) {
    for (int k = 0; k < 4; ++k) {
      low[k] = std::min(low[k], other.low[k]);
      high[k] = std::max(high[k], other.high[k]);
    }
    used += other.used;
    beyond += other.beyond;
    fits &= other.fits;
  }
};

int bits_of(uint64_t value) { return value ? 64 - __builtin_clzll(value) : 0; }

// The cells of the used points of a sweep, packed into as few bits as they need, smallest first in
// the order of the keys.
class Packing {
 public:
  explicit Packing(const Bounds& bounds) : bounds_(bounds) {
    for (int k = 3, shift = 0; k >= 0; --k) {
      shift_[k] = shift;
      shift += bits_of(static_cast<uint64_t>(bounds.high[k] - bounds.low[k]));
      bits_ = shift;
    }
  }

  int bits() const { return bits_; }

  uint64_t pack(const Cell& cell) const {
    uint64_t packed = 0;
    for (int k = 0; k < 4; ++k)
      packed |= static_cast<uint64_t>(cell.at[k] - bounds_.low[k]) << shift_[k];
    return packed;
  }

  Cell unpack(uint64_t packed) const {
    Cell cell;
    for (int k = 0; k < 4; ++k) {
      cell.at[k] = static_cast<int32_t>(packed >> shift_[k]) + bounds_.low[k];
      packed &= (uint64_t{1} << shift_[k]) - 1;
    }
    return cell;
  }

 private:
  Bounds bounds_;
  int shift_[4], bits_;
};

int64_t key_of(const Cell& cell) {
  uint64_t key = static_cast<uint64_t>(cell.at[0]);
  for (int k = 1; k < 4; ++k) key = key << kKeyBits | static_cast<uint32_t>(cell.at[k] + kKeyLimit);
  return static_cast<int64_t>(key);
}

// Equal parts of n rows, independent of the number of threads.
class Chunks {
 public:
  explicit Chunks(int64_t n) : n_(n), size_(std::max(kLeastChunk, (n + kChunks - 1) / kChunks)) {}
  int64_t count() const { return (n_ + size_ - 1) / size_; }
  int64_t begin(int64_t chunk) const { return chunk * size_; }
  int64_t end(int64_t chunk) const { return std::min(n_, begin(chunk) + size_); }

 private:
  int64_t n_, size_;
};

// Memory of a call, kept by the calling thread. A word of 128 bits holds any cell.
struct Workspace {
  char* words;
  Cell* cells;
  int32_t *rows, *starts, *counts;
  float* values;  // (n, features)

  Workspace(int64_t n, int32_t features) {
    const int64_t point = 2 * sizeof(unsigned __int128) + sizeof(Cell) + 2 * sizeof(int32_t);
    const int64_t others = (kChunks << kDigitBits) + 1 + n * features;
    words = thread_scratch(n * point + others * sizeof(int32_t));
    cells = reinterpret_cast<Cell*>(words + 2 * n * sizeof(unsigned __int128));
    rows = reinterpret_cast<int32_t*>(cells + n);
    starts = rows + n;
    counts = starts + n + 1;
    values = reinterpret_cast<float*>(counts + (kChunks << kDigitBits));
  }
};

// Positions of some points in voxels, and the voxels that they are in; 0 where there is no key.
struct Block {
  float grid[3 * kBlock];
  int32_t cell[3 * kBlock];

  void fill(const float* position, int64_t count, const float* size) {
    constexpr int kEdges = 12;  // a whole number of points and of vectors
    float edges[kEdges];
    for (int k = 0; k < kEdges; ++k) edges[k] = size[k % 3];
    int64_t at = 0;
    for (; at + kEdges <= 3 * count; at += kEdges)
      for (int k = 0; k < kEdges; ++k) grid[at + k] = position[at + k] / edges[k];
    for (; at < 3 * count; ++at) grid[at] = position[at] / edges[at % kEdges];
    for (int64_t k = 0; k < 3 * count; ++k) {
      const float inside = fits(grid[k]) ? grid[k] : 0.0f;
      const int32_t cut = static_cast<int32_t>(inside);
      cell[k] = cut - (inside < static_cast<float>(cut));
    }
  }

  static bool fits(float g) { return std::fabs(g) <= kKeyReach; }  // not NaN

  bool fits(int64_t i) const {
    return fits(grid[3 * i]) && fits(grid[3 * i + 1]) && fits(grid[3 * i + 2]);
  }
};

// Input features of `count` points to rows of `a.features` values.
void fill_values(const VoxelizeArgs& a, int64_t first, int64_t count, const Block& block,
                 float* values) {
  for (int32_t f = 0; f < a.features; ++f) {
    const auto fill = [&](const auto& value) {
      for (int64_t i = 0; i < count; ++i) values[i * a.features + f] = value(i) / a.scales[f];
    };
    const float* p = a.position + 3 * first;
    const int32_t input = a.inputs[f], axis = input - kOffsetX;
    if (input <= kZ) {
      fill([=](int64_t i) { return p[3 * i + input]; });
    } else if (input == kIntensity) {
      const float* intensity = a.intensity ? a.intensity + first : nullptr;
      fill([=](int64_t i) {
        const float value = intensity ? intensity[i] : 0.0f;
        return value > 0 ? std::min(value, 1.0f) : 0.0f;  // 0 for NaN
      });
    } else if (input == kOne) {
      fill([](int64_t) { return 1.0f; });
    } else {
      fill([&](int64_t i) {
        const int64_t k = 3 * i + axis;
        return block.grid[k] - static_cast<float>(block.cell[k]) - 0.5f;
      });
    }
  }
}

// What becomes of a point of a sweep.
enum class Use { kUsed, kBeyond, kNoReturn };

Use use_of(const float* p, float limit) {
  const float square = p[0] * p[0] + p[1] * p[1] + p[2] * p[2];
  if (square <= limit) return square > 0 ? Use::kUsed : Use::kNoReturn;
  const bool finite = std::isfinite(p[0]) && std::isfinite(p[1]) && std::isfinite(p[2]);
  return finite ? Use::kBeyond : Use::kNoReturn;
}

// Cells and rows of the used points of rows [begin, end), to the front of that part.
Bounds find_cells(const VoxelizeArgs& a, int64_t begin, int64_t end, const Workspace& space) {
  Bounds bounds;
  Block block;
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t count = std::min(kBlock, end - first);
    const float* p = a.position + 3 * first;
    block.fill(p, count, a.size);
    fill_values(a, first, count, block, space.values + first * a.features);
    if (a.grid) std::copy_n(block.grid, 3 * count, a.grid + 3 * first);
    for (int64_t i = 0; i < count; ++i) {
      const Use use = a.limit < 0 ? Use::kUsed : use_of(p + 3 * i, a.limit);
      if (use != Use::kUsed) {
        bounds.beyond += use == Use::kBeyond;
        a.inverse[first + i] = -1;
        continue;
      }
      const int64_t batch = a.batch ? a.batch[first + i] : 0;
      bounds.fits &= block.fits(i) && batch >= 0 && batch <= kMaxBatch;
      const int32_t* at = block.cell + 3 * i;
      const Cell cell{{static_cast<int32_t>(batch), at[0], at[1], at[2]}};
      bounds.add(cell);
      space.cells[begin + bounds.used] = cell;
      space.rows[begin + bounds.used++] = static_cast<int32_t>(first + i);
    }
  }
  return bounds;
}

// Stable radix sort of the `bits` above `low`; returns the buffer that holds the result.
template <class Word>
Word* sort_words(Word* words, Word* other, int64_t n, int low, int bits, int threads,
                 int32_t* counts) {
  const int passes = (bits + kDigitBits - 1) / kDigitBits;
  const Chunks chunks(n);
  for (int pass = 0, first = 0; pass < passes; ++pass) {
    const int width = (bits - first + passes - pass - 1) / (passes - pass), shift = low + first;
    const int64_t digits = int64_t{1} << width;
    const auto digit = [&](Word word) {
      return static_cast<int64_t>(word >> shift) & (digits - 1);
    };
    parallel_for(threads, chunks.count(), [&](int64_t c) {
      int32_t* count = counts + c * digits;
      std::memset(count, 0, digits * sizeof *count);
      for (int64_t i = chunks.begin(c); i < chunks.end(c); ++i) ++count[digit(words[i])];
    });
    int32_t total = 0;
    for (int64_t d = 0; d < digits; ++d)
      for (int64_t c = 0; c < chunks.count(); ++c) {
        int32_t& count = counts[c * digits + d];
        const int32_t here = count;
        count = total;
        total += here;
      }
    parallel_for(threads, chunks.count(), [&](int64_t c) {
      int32_t* next = counts + c * digits;
      for (int64_t i = chunks.begin(c); i < chunks.end(c); ++i)
        other[next[digit(words[i])]++] = words[i];
    });
    std::swap(words, other);
    first += width;
  }
  return words;
}

// Means of the values of the points of voxels [begin, end).
void mean_values(const VoxelizeArgs& a, int64_t begin, int64_t end, const Workspace& space) {
  for (int64_t v = begin; v < end; ++v) {
    float* mean = a.means + v * a.features;
    std::fill_n(mean, a.features, 0.0f);
    for (int32_t i = space.starts[v]; i < space.starts[v + 1]; ++i) {
      const float* row = space.values + int64_t{space.rows[i]} * a.features;
      for (int32_t f = 0; f < a.features; ++f) mean[f] += row[f];
    }
    for (int32_t f = 0; f < a.features; ++f) mean[f] /= static_cast<float>(a.counts[v]);
  }
}

// Numbers the voxels of sorted words, packed cells above rows, and writes all that is asked for.
template <class Word>
void number_voxels(VoxelizeArgs& a, const Packing& packing, const Word* words, int64_t used,
                   int row_bits, int threads, const Workspace& space) {
  const Chunks chunks(used);
  const Word row_mask = (Word{1} << row_bits) - 1;
  const auto is_first = [&](int64_t i) {
    return i == 0 || (words[i] >> row_bits) != (words[i - 1] >> row_bits);
  };
  int64_t before[kChunks + 1] = {0};
  parallel_for(threads, chunks.count(), [&](int64_t c) {
    int64_t heads = 0;
    for (int64_t i = chunks.begin(c); i < chunks.end(c); ++i) heads += is_first(i);
    before[c + 1] = heads;
  });
  for (int64_t c = 0; c < chunks.count(); ++c) before[c + 1] += before[c];
  a.voxels = before[chunks.count()];
  space.starts[a.voxels] = static_cast<int32_t>(used);
  parallel_for(threads, chunks.count(), [&](int64_t c) {
    int64_t voxel = before[c] - 1;
    for (int64_t i = chunks.begin(c); i < chunks.end(c); ++i) {
      if (is_first(i)) {
        const Cell cell = packing.unpack(static_cast<uint64_t>(words[i] >> row_bits));
        space.starts[++voxel] = static_cast<int32_t>(i);
        a.keys[voxel] = key_of(cell);
        if (a.coords) std::memcpy(a.coords + 4 * voxel, cell.at, sizeof cell.at);
      }
      const int32_t row = space.rows[i] = static_cast<int32_t>(words[i] & row_mask);
      a.inverse[row] = voxel;
    }
  });
  parallel_for(threads, (a.voxels + kVoxelBlock - 1) / kVoxelBlock, [&](int64_t block) {
    const int64_t begin = block * kVoxelBlock, end = std::min(a.voxels, begin + kVoxelBlock);
    for (int64_t v = begin; v < end; ++v) a.counts[v] = space.starts[v + 1] - space.starts[v];
    if (a.features) mean_values(a, begin, end, space);
  });
}

template <class Word>
void sort_and_number(VoxelizeArgs& a, const Packing& packing, const Bounds* bounds, int64_t used,
                     int row_bits, int threads, const Workspace& space) {
  Word* const words = reinterpret_cast<Word*>(space.words);
  const Chunks chunks(a.n);
  int64_t before[kChunks + 1] = {0};
  for (int64_t c = 0; c < chunks.count(); ++c) before[c + 1] = before[c] + bounds[c].used;
  parallel_for(threads, chunks.count(), [&](int64_t c) {
    const int64_t from = chunks.begin(c);
    for (int64_t i = 0; i < bounds[c].used; ++i)
      words[before[c] + i] = Word{packing.pack(space.cells[from + i])} << row_bits |
                             static_cast<uint32_t>(space.rows[from + i]);
  });
  const Word* sorted =
      sort_words(words, words + used, used, row_bits, packing.bits(), threads, space.counts);
  number_voxels(a, packing, sorted, used, row_bits, threads, space);
}

// False if a point that is to be used is not finite or too far from the origin for a key.
bool voxelize(VoxelizeArgs& a, int threads) {
  const Workspace space(a.n, a.features);
  const Chunks chunks(a.n);
  Bounds bounds[kChunks], all;
  parallel_for(threads, chunks.count(), [&](int64_t c) {
    bounds[c] = find_cells(a, chunks.begin(c), chunks.end(c), space);
  });
  for (const Bounds& part : bounds) all.add(part);
  a.voxels = 0;
  a.beyond = all.beyond;
  if (!all.fits || all.used == 0) return all.fits;
  const Packing packing(all);
  const int row_bits = bits_of(static_cast<uint64_t>(a.n - 1));
  const bool narrow = packing.bits() + row_bits <= 64;
  const auto run = narrow ? sort_and_number<uint64_t> : sort_and_number<unsigned __int128>;
  run(a, packing, bounds, all.used, row_bits, threads, space);
  return true;
}

bool arguments_ok(const VoxelizeArgs& a) {
  if (!rows_ok(a.n) || a.features < 0 || a.features > kMaxColumns) return false;
  if (a.n && (!a.position || !a.keys || !a.counts || !a.inverse)) return false;
  if (a.features && (!a.inputs || !a.scales || (a.n && !a.means))) return false;
  for (int32_t f = 0; f < a.features; ++f)
    if (a.inputs[f] < kX || a.inputs[f] > kOffsetZ) return false;
  return true;
}

}  // namespace
}  // namespace pcseg

// See VoxelizeArgs. Where a point does not fit nothing but `beyond` is written.
PCSEG_API int32_t pcseg_voxelize(pcseg::VoxelizeArgs* args, int32_t threads) {
  using namespace pcseg;
  if (!args || !arguments_ok(*args)) return kBadArgument;
  return guarded([&] { return voxelize(*args, threads) ? kDone : kDoesNotFit; });
}
