// SPDX-License-Identifier: Apache-2.0
// Kernel maps by merging sorted keys: a neighbor's key is the voxel's key plus a constant, so one
// pass over two sorted sequences finds all neighbors of one column (dx, dy), for every dz at once.
#include <algorithm>
#include <cstring>
#include <vector>

#include "native.h"

namespace pcseg {
namespace {

constexpr int64_t kMask = (int64_t{1} << kKeyBits) - 1;
constexpr int64_t kChunk = 4096;

int64_t chunks_of(int64_t n) { return (n + kChunk - 1) / kChunk; }

// Sum that wraps: whatever the keys are, a map may be wrong but nothing is undefined.
int64_t add(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}

int64_t parent(int64_t key) {
  const uint64_t bits = static_cast<uint64_t>(key), batch = bits >> (3 * kKeyBits);
  const uint64_t x = ((bits >> (2 * kKeyBits)) & kMask) >> 1, y = ((bits >> kKeyBits) & kMask) >> 1;
  const uint64_t z = (bits & kMask) >> 1;
  return static_cast<int64_t>((((((batch << kKeyBits) | x) << kKeyBits) | y) << kKeyBits) | z);
}

int64_t first_child(int64_t key) {
  constexpr uint64_t kBatch = ~uint64_t{0} << (3 * kKeyBits);
  const uint64_t bits = static_cast<uint64_t>(key);
  return static_cast<int64_t>(((bits & ~kBatch) << 1) | (bits & kBatch));
}

struct Column {
  int64_t shift;  // key offset of the first dz
  int first;      // kernel offset of the first dz
};

// Rows of `keys` at shift, shift + 1, ... from each of base[begin..end).
template <bool Doubled>
void merge_column(const int64_t* keys, int64_t n, const int64_t* base, int64_t begin, int64_t end,
                  int64_t n_out, Column column, int height, int32_t* table) {
  const auto wanted = [&](int64_t i) {
    return add(Doubled ? first_child(base[i]) : base[i], column.shift);
  };
  int64_t row = std::lower_bound(keys, keys + n, wanted(begin)) - keys;
  for (int64_t i = begin; i < end; ++i) {
    int64_t key = wanted(i);
    while (row < n && keys[row] < key) ++row;
    int64_t at = row;
    int32_t* cell = table + column.first * n_out + i;
    for (int dz = 0; dz < height; ++dz, key = add(key, 1), cell += n_out) {
      const bool found = at < n && keys[at] == key;
      *cell = found ? static_cast<int32_t>(at) : -1;
      at += found;
    }
  }
}

// Submanifold kernel of 3: neighbors are mutual, so half the columns are merged and each hit is
// written twice. `table` holds -1 everywhere in its first half.
void merge_mutual(const int64_t* keys, int64_t n, int64_t begin, int64_t end, Column column,
                  int32_t* table) {
  int32_t* ahead = table + column.first * n;
  int32_t* back = table + (26 - column.first) * n;
  int64_t row = std::lower_bound(keys, keys + n, add(keys[begin], column.shift)) - keys;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t key = add(keys[i], column.shift);
    while (row < n && keys[row] < key) ++row;
    int64_t at = row;
    for (int dz = 0; dz < 3; ++dz) {
      const bool found = at < n && keys[at] == add(key, dz);
      ahead[dz * n + i] = found ? static_cast<int32_t>(at) : -1;
      if (found) back[at - dz * n] = static_cast<int32_t>(i);
      at += found;
    }
  }
}

void mutual_block(const int64_t* keys, int64_t n, int64_t begin, int64_t end, int32_t* table) {
  for (int64_t i = begin; i < end; ++i) {
    table[13 * n + i] = static_cast<int32_t>(i);
    const bool up = i + 1 < n && keys[i + 1] == add(keys[i], 1);
    table[14 * n + i] = up ? static_cast<int32_t>(i + 1) : -1;
    if (up) table[12 * n + i + 1] = static_cast<int32_t>(i);
  }
  const int64_t dx = int64_t{1} << (2 * kKeyBits), dy = int64_t{1} << kKeyBits;
  const Column columns[] = {{dy - 1, 15}, {dx - dy - 1, 18}, {dx - 1, 21}, {dx + dy - 1, 24}};
  for (const Column& column : columns) merge_mutual(keys, n, begin, end, column, table);
}

void build_submanifold3(const int64_t* keys, int64_t n, int32_t* table, int threads) {
  parallel_for(threads, 13, [&](int64_t k) {
    std::memset(table + k * n, 0xff, n * sizeof(int32_t));
  });
  parallel_for(threads, chunks_of(n), [&](int64_t chunk) {
    mutual_block(keys, n, chunk * kChunk, std::min(n, (chunk + 1) * kChunk), table);
  });
}

void build_general(const int64_t* keys, int64_t n_in, const int64_t* base, int64_t n_out,
                   int size, int stride, int32_t* table, int threads) {
  const int first = size % 2 ? -(size / 2) : 0;
  parallel_for(threads, chunks_of(n_out), [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk, end = std::min(n_out, begin + kChunk);
    for (int c = 0; c < size * size; ++c) {
      const int64_t dx = first + c / size, dy = first + c % size;
      const Column column{dx * (int64_t{1} << (2 * kKeyBits)) + dy * (int64_t{1} << kKeyBits) + first,
                          c * size};
      const auto merge = stride == 2 ? merge_column<true> : merge_column<false>;
      merge(keys, n_in, base, begin, end, n_out, column, size, table);
    }
  });
}

// Kernel of 2 and stride 2: every voxel has one parent, so the voxels are walked instead of the
// parents. Those of one parity of x and y meet their parents in ascending order.
void halving_chunk(const int64_t* keys, int64_t begin, int64_t end, const int64_t* parents,
                   int64_t n_out, int32_t* table) {
  int64_t rows[4] = {-1, -1, -1, -1};
  for (int64_t i = begin; i < end; ++i) {
    const int64_t key = keys[i], up = parent(key);
    const int side = ((key >> (2 * kKeyBits)) & 1) * 2 + ((key >> kKeyBits) & 1);
    int64_t& row = rows[side];
    if (row < 0) row = std::lower_bound(parents, parents + n_out, up) - parents;
    while (row < n_out && parents[row] < up) ++row;
    if (row < n_out && parents[row] == up)
      table[(side * 2 + (key & 1)) * n_out + row] = static_cast<int32_t>(i);
  }
}

void build_halving(const int64_t* keys, int64_t n_in, const int64_t* parents, int64_t n_out,
                   int32_t* table, int threads) {
  parallel_for(threads, 8, [&](int64_t k) {
    std::memset(table + k * n_out, 0xff, n_out * sizeof(int32_t));
  });
  parallel_for(threads, chunks_of(n_in), [&](int64_t chunk) {
    const int64_t begin = chunk * kChunk;
    halving_chunk(keys, begin, std::min(n_in, begin + kChunk), parents, n_out, table);
  });
}

// Parents of keys[begin..end), sorted and unique, to `out`; returns how many. The children of a
// parent lie in up to four runs (x and y even or odd), each sorted by parent: a four-way merge.
int64_t coarsen_chunk(const int64_t* keys, int64_t begin, int64_t end, int64_t* out) {
  std::vector<int64_t> lists[4];
  for (auto& list : lists) list.reserve((end - begin) / 2 + 2);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t key = keys[i], up = parent(key);
    auto& list = lists[((key >> (2 * kKeyBits)) & 1) * 2 + ((key >> kKeyBits) & 1)];
    if (list.empty() || list.back() != up) list.push_back(up);
  }
  const int64_t* heads[4];
  for (int c = 0; c < 4; ++c) {
    lists[c].push_back(INT64_MAX);
    heads[c] = lists[c].data();
  }
  int64_t count = 0;
  for (;;) {
    const int64_t a = std::min(*heads[0], *heads[1]), b = std::min(*heads[2], *heads[3]);
    const int64_t least = std::min(a, b);
    if (least == INT64_MAX) return count;
    out[count++] = least;
    for (auto& head : heads) head += *head == least;
  }
}

int64_t coarsen(const int64_t* keys, int64_t n, int64_t* out, int threads) {
  // Chunks end where the parent's (batch, x) changes, so that no parent is in two of them.
  std::vector<int64_t> bounds{0};
  const auto slab = [&](int64_t i) { return keys[i] >> (2 * kKeyBits + 1); };
  for (int64_t target = kChunk; target < n; target += kChunk) {
    int64_t i = std::max(target, bounds.back());
    while (i < n && i > 0 && slab(i) == slab(i - 1)) ++i;
    if (i > bounds.back() && i < n) bounds.push_back(i);
  }
  bounds.push_back(n);
  const int64_t chunks = static_cast<int64_t>(bounds.size()) - 1;
  std::vector<int64_t> counts(chunks);
  parallel_for(threads, chunks, [&](int64_t c) {
    counts[c] = coarsen_chunk(keys, bounds[c], bounds[c + 1], out + bounds[c]);
  });
  int64_t total = 0;
  for (int64_t c = 0; c < chunks; ++c) {
    std::memmove(out + total, out + bounds[c], counts[c] * sizeof(int64_t));
    total += counts[c];
  }
  return total;
}

}  // namespace

int64_t map_coarsen(const int64_t* keys, int64_t n, int64_t* out, int threads) {
  return coarsen(keys, n, out, threads);
}

void map_build(const int64_t* keys_in, int64_t n_in, const int64_t* keys_out, int64_t n_out,
               int size, int stride, int32_t* table, int threads) {
  if (size == 3 && stride == 1 && keys_in == keys_out && n_in == n_out)
    build_submanifold3(keys_in, n_in, table, threads);
  else if (size == 2 && stride == 2)
    build_halving(keys_in, n_in, keys_out, n_out, table, threads);
  else
    build_general(keys_in, n_in, keys_out, n_out, size, stride, table, threads);
}

// inverse (offsets, n_in): the output row that input row i feeds at offset k, or -1.
void map_invert(const int32_t* table, int offsets, int64_t n_out, int64_t n_in, int32_t* inverse,
                int threads) {
  parallel_for(threads, offsets, [&](int64_t k) {
    const int32_t* from = table + k * n_out;
    int32_t* to = inverse + k * n_in;
    std::memset(to, 0xff, n_in * sizeof(int32_t));
    for (int64_t i = 0; i < n_out; ++i)
      if (static_cast<uint64_t>(static_cast<int64_t>(from[i])) < static_cast<uint64_t>(n_in))
        to[from[i]] = static_cast<int32_t>(i);
  });
}

}  // namespace pcseg
