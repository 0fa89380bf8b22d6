// SPDX-License-Identifier: Apache-2.0
// Points in the order of the thing that they belong to, and what is measured of each thing.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "free_space.h"
#include "things.h"

namespace pcseg {
namespace {

struct GroupArgs {
  const double* points;    // (n, 3)
  const int64_t* numbers;  // (n) thing of each, below `things`; negative: it is left out
  double* sorted;          // (n, 3) the points of thing 0, those of thing 1, and on
  int64_t* order;          // (n) the row that each of these had
  int64_t *starts, *counts;  // (things)
  int64_t n, things;
};

// Calls found(thing, first point, number of points) for each run of points of one thing.
template <class F>
void each_run(const GroupArgs& a, const F& found) {
  for (int64_t first = 0, end; first < a.n; first = end) {
    for (end = first + 1; end < a.n && a.numbers[end] == a.numbers[first];) ++end;
    if (a.numbers[first] >= 0) found(a.numbers[first], first, end - first);
  }
}

void group(const GroupArgs& a) {
  std::fill_n(a.counts, a.things, 0);
  each_run(a, [&](int64_t thing, int64_t, int64_t count) { a.counts[thing] += count; });
  int64_t start = 0;
  for (int64_t k = 0; k < a.things; start += a.counts[k++]) a.starts[k] = start;
  std::vector<int64_t> next(a.starts, a.starts + a.things);
  each_run(a, [&](int64_t thing, int64_t first, int64_t count) {
    std::iota(a.order + next[thing], a.order + next[thing] + count, first);
    std::copy_n(a.points + 3 * first, 3 * count, a.sorted + 3 * next[thing]);
    next[thing] += count;
  });
}

bool arguments_ok(const GroupArgs& a) {
  if (!rows_ok(a.n) || !rows_ok(a.things) || (a.things && (!a.starts || !a.counts))) return false;
  if (a.n && (!a.points || !a.numbers || !a.sorted || !a.order)) return false;
  return std::all_of(a.numbers, a.numbers + a.n, [&](int64_t k) { return k < a.things; });
}

// Lowest and highest coordinates of a thing along a heading, across it, and upward.
struct Extents {
  double low[3], high[3];

  Extents(const GroupedArgs& a, int64_t thing, double cos, double sin) {
    double x0 = HUGE_VAL, y0 = HUGE_VAL, z0 = HUGE_VAL;
    double x1 = -HUGE_VAL, y1 = -HUGE_VAL, z1 = -HUGE_VAL;
    const double* point = a.points + 3 * a.starts[thing];
    for (int64_t i = 0; i < a.counts[thing]; ++i, point += 3) {
      const double x = point[0] * cos + point[1] * sin, y = point[1] * cos - point[0] * sin;
      x0 = std::min(x0, x), y0 = std::min(y0, y), z0 = std::min(z0, point[2]);
      x1 = std::max(x1, x), y1 = std::max(y1, y), z1 = std::max(z1, point[2]);
    }
    low[0] = x0, low[1] = y0, low[2] = z0;
    high[0] = x1, high[1] = y1, high[2] = z1;
  }
};

}  // namespace

bool grouped_ok(const GroupedArgs& a) {
  if (!rows_ok(a.n) || !rows_ok(a.things) || (a.n && !a.points)) return false;
  if (a.things && (!a.starts || !a.counts)) return false;
  for (int64_t k = 0; k < a.things; ++k)
    if (a.counts[k] < 1 || a.starts[k] < 0 || a.starts[k] > a.n - a.counts[k]) return false;
  return true;
}

}  // namespace pcseg

using namespace pcseg;

// The points of some rows (n) in another frame, to moved (n, 3): by three rows of a rotation and a
// shift.
PCSEG_API int32_t pcseg_move_points(const Points* points, const int64_t* rows, int64_t n,
                                    const double* pose, double* moved) {
  if (!points || !points_ok(*points) || !rows_ok(n) || !pose) return kBadArgument;
  if (n && (!rows || !moved)) return kBadArgument;
  for (int64_t i = 0; i < n; ++i, moved += 3) {
    if (rows[i] < 0 || rows[i] >= points->n) return kBadArgument;
    const char* from = points->xyz + rows[i] * points->step;
    float x, y, z;
    std::memcpy(&x, from, sizeof(float));
    std::memcpy(&y, from + points->axis_step, sizeof(float));
    std::memcpy(&z, from + 2 * points->axis_step, sizeof(float));
    for (int axis = 0; axis < 3; ++axis) {
      const double* T = pose + 4 * axis;
      moved[axis] = T[0] * x + T[1] * y + T[2] * z + T[3];
    }
  }
  return kDone;
}

// See GroupArgs. The points of a thing stay in their order.
PCSEG_API int32_t pcseg_group(const GroupArgs* args) {
  if (!args || !arguments_ok(*args)) return kBadArgument;
  return guarded([&] {
    group(*args);
    return kDone;
  });
}

// Lowest and highest coordinates, to low and high (things, 3), along headings with these cosines
// and sines (things).
PCSEG_API int32_t pcseg_extents(const GroupedArgs* args, const double* cos, const double* sin,
                                double* low, double* high) {
  if (!args || !grouped_ok(*args)) return kBadArgument;
  if (args->things && (!cos || !sin || !low || !high)) return kBadArgument;
  for (int64_t k = 0; k < args->things; ++k) {
    const Extents found(*args, k, cos[k], sin[k]);
    std::copy_n(found.low, 3, low + 3 * k);
    std::copy_n(found.high, 3, high + 3 * k);
  }
  return kDone;
}

// Boxes around things with these headings, cosines and sines (things), to table (things, 9):
// Rectangles.table of pcseg_core/online/thing_parts.py.
PCSEG_API int32_t pcseg_boxes(const GroupedArgs* args, const double* yaw, const double* cos,
                              const double* sin, double* table) {
  if (!args || !grouped_ok(*args)) return kBadArgument;
  if (args->things && (!yaw || !cos || !sin || !table)) return kBadArgument;
  for (int64_t k = 0; k < args->things; ++k, table += 9) {
    const Extents found(*args, k, cos[k], sin[k]);
    const double *low = found.low, *high = found.high;
    const double x = (low[0] + high[0]) / 2, y = (low[1] + high[1]) / 2;
    table[0] = x * cos[k] - y * sin[k], table[1] = x * sin[k] + y * cos[k];
    table[2] = yaw[k], table[3] = cos[k], table[4] = sin[k];
    table[5] = high[0] - low[0], table[6] = high[1] - low[1];
    table[7] = low[2], table[8] = high[2];
  }
  return kDone;
}

// The class, 0 to `classes` - 1, that most points of each thing have, to found (things); the least
// of those that as many have. labels (n).
PCSEG_API int32_t pcseg_most_frequent(const GroupedArgs* args, const int32_t* labels,
                                      int32_t classes, int64_t* found) {
  if (!args || !grouped_ok(*args) || !columns_ok(classes)) return kBadArgument;
  if ((args->n && !labels) || (args->things && !found)) return kBadArgument;
  if (std::any_of(labels, labels + args->n, [&](int32_t k) { return k < 0 || k >= classes; }))
    return kBadArgument;
  return guarded([&] {
    std::vector<int64_t> counts(classes);
    for (int64_t k = 0; k < args->things; ++k) {
      std::fill(counts.begin(), counts.end(), 0);
      const int32_t* label = labels + args->starts[k];
      for (int64_t i = 0; i < args->counts[k]; ++i) ++counts[label[i]];
      found[k] = std::max_element(counts.begin(), counts.end()) - counts.begin();
    }
    return kDone;
  });
}

// Of the points (n) with each of `count` ids from `first` on: their number, to counts (count), and
// the sum of their values, to sums (count).
PCSEG_API int32_t pcseg_id_sums(const uint32_t* ids, const float* values, int64_t n, uint32_t first,
                                int64_t count, int64_t* counts, double* sums) {
  if (!rows_ok(n) || !rows_ok(count) || (n && (!ids || !values)) || (count && (!counts || !sums)))
    return kBadArgument;
  std::fill_n(counts, count, 0);
  std::fill_n(sums, count, 0.0);
  constexpr int64_t kRun = 64;
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t end = std::min(begin + kRun, n);
    uint32_t any = 0;
    for (int64_t i = begin; i < end; ++i) any |= ids[i];
    if (!any) continue;  // most points have none
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t at = ids[i] - first;
      if (!ids[i] || at >= count) continue;
      ++counts[at];
      sums[at] += values[i];
    }
  }
  return kDone;
}
