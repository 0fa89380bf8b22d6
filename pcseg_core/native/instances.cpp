// SPDX-License-Identifier: Apache-2.0
// Objects of a sweep: connected cells of the ground plane, and which points are beside others.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "chosen.h"
#include "free_space.h"

namespace pcseg {
namespace {

constexpr uint64_t kFibonacci = 0x9E3779B97F4A7C15ull;  // scatters consecutive keys
constexpr int kAxisBits = 24;
constexpr int64_t kMostCells = int64_t{1} << (kAxisBits - 1);  // from the middle
constexpr int64_t kRow = int64_t{1} << kAxisBits;  // from a cell to the next one along x
constexpr int32_t kMostClasses = 1 << 14;
constexpr int64_t kNone = -1;
constexpr int64_t kAhead = 16;  // points that are asked for before they are needed

// Numbers of distinct keys, which are not negative, in the order in which they came.
class Numbers {
 public:
  // For that many keys, or more.
  explicit Numbers(int64_t expected) {
    int bits = 6;
    while (int64_t{1} << bits < 2 * expected) ++bits;
    resize(bits);
  }

  int32_t add(int64_t key) {
    int64_t slot = find(key);
    if (keys_[slot] == kNone) {
      if (2 * list_.size() >= keys_.size()) {
        resize(bits_ + 1);
        slot = find(key);
      }
      keys_[slot] = key;
      numbers_[slot] = static_cast<int32_t>(list_.size());
      list_.push_back(key);
    }
    return numbers_[slot];
  }

  // -1 for keys that were not added.
  int32_t at(int64_t key) const {
    const int64_t slot = find(key);
    return keys_[slot] == kNone ? -1 : numbers_[slot];
  }

  const std::vector<int64_t>& list() const { return list_; }

 private:
  int64_t find(int64_t key) const {
    const int64_t mask = (int64_t{1} << bits_) - 1;
    int64_t slot = static_cast<int64_t>((static_cast<uint64_t>(key) * kFibonacci) >> (64 - bits_));
    while (keys_[slot] != key && keys_[slot] != kNone) slot = (slot + 1) & mask;
    return slot;
  }

  void resize(int bits) {
    bits_ = bits;
    keys_.assign(int64_t{1} << bits, kNone);
    numbers_.resize(keys_.size());
    for (size_t k = 0; k < list_.size(); ++k) {
      const int64_t slot = find(list_[k]);
      keys_[slot] = list_[k];
      numbers_[slot] = static_cast<int32_t>(k);
    }
  }

  int bits_ = 0;
  std::vector<int64_t> keys_, list_;
  std::vector<int32_t> numbers_;
};

// For less than 2^31.
int64_t floor_of(float value) {
  const int64_t cut = static_cast<int32_t>(value);
  return cut - (value < static_cast<float>(cut));
}

int64_t cell_key(int64_t group, int64_t x, int64_t y) {
  return group << (2 * kAxisBits) | (x + kMostCells) << kAxisBits | (y + kMostCells);
}

struct ClusterArgs {
  Points points;
  const int32_t* labels;  // (n)
  const int32_t* group;   // (classes) number of each class in the order of the ids, or -1
  int64_t* rows;          // out: rows of the points that have an instance; room for n
  uint32_t* ids;          // out: the instance of each of them, from 1; room for n
  int64_t min_points;
  float cell_m, reach_m;
  int32_t classes;
  int64_t count, instances;  // out: points that have an instance; instances
};

// Rows of the points whose class has a group; returns their number.
int64_t select(const ClusterArgs& a) {
  std::vector<uint8_t> wanted(a.classes + 1, 0);
  for (int32_t k = 0; k < a.classes; ++k) wanted[k] = a.group[k] >= 0;
  int64_t count = 0;
  for (int64_t first = 0; first < a.points.n; first += kBlock) {
    uint8_t chosen[kBlock], rows[kBlock + 8];
    const int n = static_cast<int>(std::min<int64_t>(kBlock, a.points.n - first));
    find_values(a.labels + first, wanted.data(), a.classes, n, chosen);
    if (!std::memchr(chosen, 1, n)) continue;  // most points are of no thing
    const int found = list_chosen(chosen, n, rows);
    for (int k = 0; k < found; ++k) a.rows[count++] = first + rows[k];
  }
  return count;
}

// Keys of the cells of the selected points that are near enough, whose rows move up; their number.
int64_t find_cells(const ClusterArgs& a, int64_t selected, std::vector<int64_t>& keys) {
  int64_t count = 0;
  for (int64_t k = 0; k < selected; ++k) {
    const int64_t row = a.rows[k];
    if (k + kAhead < selected) __builtin_prefetch(a.points.xyz + a.rows[k + kAhead] * a.points.step);
    float x, y;
    std::memcpy(&x, a.points.xyz + row * a.points.step, sizeof(float));
    std::memcpy(&y, a.points.xyz + row * a.points.step + a.points.axis_step, sizeof(float));
    if (!(std::fabs(x) < a.reach_m && std::fabs(y) < a.reach_m)) continue;
    a.rows[count] = row;
    keys[count++] =
        cell_key(a.group[a.labels[row]], floor_of(x / a.cell_m), floor_of(y / a.cell_m));
  }
  return count;
}

int32_t root_of(std::vector<int32_t>& parent, int32_t cell) {
  while (parent[cell] != cell) cell = parent[cell] = parent[parent[cell]];
  return cell;
}

// A cell of the region of each cell, the same for all cells that touch.
std::vector<int32_t> regions_of(const Numbers& cells) {
  const int32_t count = static_cast<int32_t>(cells.list().size());
  std::vector<int32_t> parent(count);
  for (int32_t k = 0; k < count; ++k) parent[k] = k;
  for (int32_t k = 0; k < count; ++k) {
    const int64_t key = cells.list()[k];
    for (const int64_t neighbor : {key - kRow - 1, key - kRow, key - kRow + 1, key - 1}) {
      const int32_t other = cells.at(neighbor);
      if (other >= 0) parent[root_of(parent, other)] = root_of(parent, k);
    }
  }
  for (int32_t k = 0; k < count; ++k) parent[k] = root_of(parent, k);
  return parent;
}

// Number from 1 of each region, 0 of small ones: in the order of their first cells, along x, then y.
std::vector<uint32_t> numbers_of(const Numbers& cells, const std::vector<int32_t>& region,
                                 const std::vector<int64_t>& size, int64_t least) {
  const int32_t count = static_cast<int32_t>(region.size());
  std::vector<int64_t> first(count, INT64_MAX);
  for (int32_t k = 0; k < count; ++k)
    first[region[k]] = std::min(first[region[k]], cells.list()[k]);
  std::vector<std::pair<int64_t, int32_t>> large;
  for (int32_t k = 0; k < count; ++k)
    if (region[k] == k && size[k] >= least) large.push_back({first[k], k});
  std::sort(large.begin(), large.end());
  std::vector<uint32_t> number(count, 0);
  for (size_t k = 0; k < large.size(); ++k) number[large[k].second] = static_cast<uint32_t>(k + 1);
  return number;
}

void cluster(ClusterArgs& a) {
  const int64_t selected = select(a);
  std::vector<int64_t> keys(selected);
  const int64_t near = find_cells(a, selected, keys);
  Numbers cells(near / 4);  // most cells have several points
  std::vector<int32_t> cell(near);
  for (int64_t k = 0; k < near; ++k)
    cell[k] = k && keys[k] == keys[k - 1] ? cell[k - 1] : cells.add(keys[k]);
  const std::vector<int32_t> region = regions_of(cells);
  std::vector<int64_t> size(region.size(), 0);
  for (const int32_t c : cell) ++size[region[c]];
  const std::vector<uint32_t> number = numbers_of(cells, region, size, a.min_points);
  a.count = a.instances = 0;
  for (int64_t k = 0; k < near; ++k) {
    a.rows[a.count] = a.rows[k];
    a.ids[a.count] = number[region[cell[k]]];
    a.count += a.ids[a.count] != 0;
  }
  for (const uint32_t one : number) a.instances = std::max<int64_t>(a.instances, one);
}

bool arguments_ok(const ClusterArgs& a) {
  if (!points_ok(a.points) || a.classes < 0 || a.classes > INT32_MAX / 2) return false;
  if (a.points.n && (!a.labels || !a.rows || !a.ids)) return false;
  if (a.classes && !a.group) return false;
  for (int32_t k = 0; k < a.classes; ++k)
    if (a.group[k] >= kMostClasses) return false;
  return a.cell_m > 0 && a.reach_m >= 0 && a.reach_m / a.cell_m < kMostCells - 2;
}

// Cell of the ground plane of a point, or kNone where it has none.
int64_t plane_cell(const Points& p, int64_t i, float cell_m) {
  float x, y;
  std::memcpy(&x, p.xyz + i * p.step, sizeof(float));
  std::memcpy(&y, p.xyz + i * p.step + p.axis_step, sizeof(float));
  x /= cell_m;
  y /= cell_m;
  constexpr float kMost = kMostCells - 2;
  if (!(std::fabs(x) < kMost && std::fabs(y) < kMost)) return kNone;
  return cell_key(0, floor_of(x), floor_of(y));
}

constexpr int64_t kAround[] = {0, -1, 1, -kRow, kRow, -kRow - 1, -kRow + 1, kRow - 1, kRow + 1};

void mark_near(const Points& points, const Points& others, float cell_m, uint8_t* found) {
  Numbers cells(others.n);
  int64_t before = kNone;
  for (int64_t i = 0; i < others.n; ++i) {
    const int64_t key = plane_cell(others, i, cell_m);
    if (key != kNone && key != before) cells.add(key);
    before = key;
  }
  before = kNone;
  bool near = false;  // a point of the cell before
  for (int64_t i = 0; i < points.n; ++i) {
    const int64_t key = plane_cell(points, i, cell_m);
    if (key != before) {
      near = false;
      for (int k = 0; k < 9 && key != kNone && !near; ++k) near = cells.at(key + kAround[k]) >= 0;
      before = key;
    }
    found[i] = near;
  }
}

}  // namespace
}  // namespace pcseg

using namespace pcseg;

// See ClusterArgs. Cells of one group that touch, corners included, are one region.
PCSEG_API int32_t pcseg_cluster(ClusterArgs* args) {
  if (!args || !arguments_ok(*args)) return kBadArgument;
  return guarded([&] {
    cluster(*args);
    return kDone;
  });
}

// Whether one of the others is in the cell of the ground plane of each point, or beside it.
PCSEG_API int32_t pcseg_near(const Points* points, const Points* others, float cell_m,
                             uint8_t* found) {
  if (!points || !others || !points_ok(*points) || !points_ok(*others)) return kBadArgument;
  if (!(cell_m > 0) || (points->n && !found)) return kBadArgument;
  return guarded([&] {
    mark_near(*points, *others, cell_m, found);
    return kDone;
  });
}
