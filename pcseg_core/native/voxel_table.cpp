// SPDX-License-Identifier: Apache-2.0
// Search of many keys in the hash table of pcseg_core/online/voxel_table.py.
#include <cstring>
#include <limits>

#include "native.h"

namespace pcseg {
namespace {

constexpr int kProbes = 8;                              // as _PROBES
constexpr int64_t kEmpty = -1;                          // as _EMPTY
constexpr uint64_t kFibonacci = 0x9E3779B97F4A7C15ull;  // as _FIBONACCI
constexpr int64_t kAhead = 24;  // keys whose slots are on their way from memory

class Search {
 public:
  Search(const VoxelTable& table, float expired, int64_t* hit, int64_t* first)
      : table_(table), mask_((int64_t{1} << table.bits) - 1), expired_(expired), hit_(hit),
        first_(first) {}

  int64_t count() const { return count_; }

  void prefetch(int64_t key) const {
    __builtin_prefetch(table_.slots + home(key));
  }

  // Which of the rows that were hit is that of this key, hit by its point i; -1 if it has no row.
  int32_t find(int64_t key, int64_t i) {
    const int64_t begin = home(key);
    for (int probe = 0; probe < kProbes; ++probe) {
      const int64_t row = (begin + probe) & mask_;
      const VoxelSlot& slot = table_.slots[row];
      if (slot.key == key) return held(row) ? slot.group : take(row, i);
      if (slot.key == kEmpty) return -1;  // it would have been put here
    }
    return -1;
  }

  // Give the key a row: the nearest expired one, else that seen longest ago; -1 if all were hit.
  int32_t insert(int64_t key, int64_t i) {
    const int64_t begin = home(key);
    int64_t oldest = -1;
    float when = std::numeric_limits<float>::infinity();
    for (int probe = 0; probe < kProbes; ++probe) {
      const int64_t row = (begin + probe) & mask_;
      const float seen = table_.slots[row].seen;
      if (seen >= when || held(row)) continue;
      oldest = row;
      when = seen;
      if (when < expired_) break;
    }
    if (oldest < 0) return -1;
    table_.slots[oldest].key = key;
    table_.slots[oldest].seen = expired_;  // taken, though not written
    std::memset(table_.rows + oldest * table_.columns, 0, table_.columns * sizeof(float));
    return take(oldest, i);
  }

 private:
  int64_t home(int64_t key) const {
    return static_cast<int64_t>((static_cast<uint64_t>(key) * kFibonacci) >> (64 - table_.bits));
  }

  // Whether the row was hit in this search; `group` may hold anything from earlier ones.
  bool held(int64_t row) const {
    const int32_t g = table_.slots[row].group;
    return g >= 0 && g < count_ && hit_[g] == row;
  }

  int32_t take(int64_t row, int64_t i) {
    const int32_t g = static_cast<int32_t>(count_++);
    hit_[g] = row;
    first_[g] = i;
    return table_.slots[row].group = g;
  }

  const VoxelTable& table_;
  const int64_t mask_;
  const float expired_;
  int64_t* hit_;
  int64_t* first_;
  int64_t count_ = 0;
};

}  // namespace

int64_t voxel_locate(const VoxelTable& table, const int64_t* keys, int64_t n, float expired,
                     int64_t* hit, int32_t* voxel, int64_t* first) {
  Search search(table, expired, hit, first);
  // All that are there first, so that none of them makes room for a new one.
  int64_t missing = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (i + kAhead < n) search.prefetch(keys[i + kAhead]);
    // Neighbors in a sweep often share a voxel.
    voxel[i] = i && keys[i] == keys[i - 1] ? voxel[i - 1] : search.find(keys[i], i);
    missing += voxel[i] < 0;
  }
  for (int64_t i = 0; missing && i < n; ++i) {
    if (voxel[i] >= 0) continue;
    --missing;
    if (i && keys[i] == keys[i - 1]) {
      voxel[i] = voxel[i - 1];
    } else {
      voxel[i] = search.find(keys[i], i);
      if (voxel[i] < 0) voxel[i] = search.insert(keys[i], i);
    }
  }
  return search.count();
}

}  // namespace pcseg
