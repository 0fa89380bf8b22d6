// SPDX-License-Identifier: Apache-2.0
// The rectangles around things from above, as pcseg_core/online/boxes.py searches them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "things.h"
#include "widest.h"

namespace pcseg {
namespace {

constexpr int kLanes = 8, kMostPoints = 128;  // headings of one pass; points that are compared
constexpr float kFar = 1e30f;

using Lanes = float __attribute__((vector_size(4 * kLanes)));

// A part of the points of one thing, relative to the first of them.
struct Few {
  float x[kMostPoints], y[kMostPoints];
  int count;
};

void thin(const double* points, int64_t count, int64_t most, Few* few) {
  const int64_t step = (count + most - 1) / most;
  few->count = 0;
  for (int64_t i = 0; i < count; i += step, ++few->count) {
    few->x[few->count] = static_cast<float>(points[3 * i] - points[0]);
    few->y[few->count] = static_cast<float>(points[3 * i + 1] - points[1]);
  }
}

// Where points lie along an axis of rectangles with several headings.
struct Spread {
  Lanes low = Lanes{} + kFar, high = Lanes{} - kFar, sum[kLanes] = {};

  PCSEG_INLINE void add(Lanes value, int i) {
    low = value < low ? value : low;
    high = value > high ? value : high;
    sum[i % kLanes] += value;
  }

  // That end which all points are nearer to in sum; sign: 1 if it is the lower one, else -1.
  PCSEG_INLINE Lanes nearer_end(int count, Lanes* sign) const {
    Lanes total{};
    for (const Lanes& part : sum) total += part;
    const auto lower = 2 * total <= (low + high) * static_cast<float>(count);
    *sign = lower ? Lanes{} + 1.0f : Lanes{} - 1.0f;
    return lower ? low : high;
  }
};

// The higher, the nearer the points are to the edges of the rectangles with these headings.
PCSEG_INLINE void find_closeness(const Few& few, const float* cos, const float* sin, float nearest,
                                 float* found) {
  Lanes c, s, along[kMostPoints], across[kMostPoints], sum{};
  std::memcpy(&c, cos, sizeof(c));
  std::memcpy(&s, sin, sizeof(s));
  Spread length, width;
  for (int i = 0; i < few.count; ++i) {
    along[i] = few.x[i] * c + few.y[i] * s;
    across[i] = few.y[i] * c - few.x[i] * s;
    length.add(along[i], i);
    width.add(across[i], i);
  }
  Lanes one, two;
  const Lanes end = length.nearer_end(few.count, &one), side = width.nearer_end(few.count, &two);
  for (int i = 0; i < few.count; ++i) {
    const Lanes to_end = one * (along[i] - end), to_side = two * (across[i] - side);
    const Lanes edge = to_end < to_side ? to_end : to_side;
    sum += 1.0f / (edge > nearest ? edge : Lanes{} + nearest);
  }
  std::memcpy(found, &sum, sizeof(sum));
}

PCSEG_WIDEST(closeness, find_closeness,
             (const Few& few, const float* cos, const float* sin, float nearest, float* found),
             (few, cos, sin, nearest, found))

// Headings, their cosines and sines; as many as fill the last lanes are repeated behind them.
struct Headings {
  std::vector<double> yaw;
  std::vector<float> cos, sin;

  explicit Headings(int count) : yaw((count + kLanes - 1) / kLanes * kLanes) {
    cos.resize(yaw.size());
    sin.resize(yaw.size());
  }

  template <class F>
  void fill(int count, const F& of) {
    for (size_t k = 0; k < yaw.size(); ++k) {
      yaw[k] = k < static_cast<size_t>(count) ? of(static_cast<int>(k)) : yaw[k - 1];
      cos[k] = static_cast<float>(std::cos(yaw[k]));
      sin[k] = static_cast<float>(std::sin(yaw[k]));
    }
  }

  // The first one with the highest closeness.
  double best(const Few& few, float nearest) const {
    float highest = -1, found[kLanes];
    double best = 0;
    for (size_t first = 0; first < yaw.size(); first += kLanes) {
      closeness(few, cos.data() + first, sin.data() + first, nearest, found);
      for (int k = 0; k < kLanes; ++k)
        if (found[k] > highest) highest = found[k], best = yaw[first + k];
    }
    return best;
  }
};

}  // namespace
}  // namespace pcseg

// Heading (things) of the rectangle around each thing [rad]: of `coarse` headings from 0 to a right
// angle, and then of `fine` ones around the best of them, the one with the highest closeness.
PCSEG_API int32_t pcseg_fit_headings(const pcseg::GroupedArgs* args, int32_t most, int32_t coarse,
                                     int32_t fine, float nearest, double* yaws) {
  using namespace pcseg;
  if (!args || !grouped_ok(*args) || most < 1 || most > kMostPoints || !columns_ok(coarse) ||
      !columns_ok(fine) || fine < 2 || !(nearest > 0) || (args->things && !yaws))
    return kBadArgument;
  return guarded([&] {
    const double step = std::acos(0.0) / coarse;
    Headings all(coarse), around(fine);
    all.fill(coarse, [&](int k) { return k * step; });
    Few few;
    for (int64_t thing = 0; thing < args->things; ++thing) {
      thin(args->points + 3 * args->starts[thing], args->counts[thing], most, &few);
      const double center = all.best(few, nearest);
      around.fill(fine, [&](int k) { return center + step * (k / (fine - 1.0) - 0.5); });
      yaws[thing] = around.best(few, nearest);
    }
    return kDone;
  });
}
