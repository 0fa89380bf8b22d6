// SPDX-License-Identifier: Apache-2.0
// The rectangles around things from above, as pcseg_core/online/boxes.py searches them.
#include <algorithm>
#include <cmath>

#include "things.h"

namespace pcseg {
namespace {

constexpr int kLanes = 8, kMostPoints = 128;  // vectors of the compiler; points that are compared
constexpr float kFar = 1e30f;

// A part of the points of one thing, relative to the first of them.
struct Few {
  float x[kMostPoints], y[kMostPoints];
  int count;  // of the points; as many as fill the last lanes are repeated behind them
  int filled;
};

void thin(const double* points, int64_t count, int64_t most, Few* few) {
  const int64_t step = (count + most - 1) / most;
  few->count = 0;
  for (int64_t i = 0; i < count; i += step, ++few->count) {
    few->x[few->count] = static_cast<float>(points[3 * i] - points[0]);
    few->y[few->count] = static_cast<float>(points[3 * i + 1] - points[1]);
  }
  few->filled = (few->count + kLanes - 1) / kLanes * kLanes;
  for (int i = few->count; i < few->filled; ++i) few->x[i] = few->y[i] = 0.0f;
}

// Distance of each point from that end of `along` that all points are nearer to in sum.
void to_nearer_edge(const float* along, const Few& few, float* distance) {
  float low[kLanes], high[kLanes], sum[kLanes];
  for (int k = 0; k < kLanes; ++k) low[k] = kFar, high[k] = -kFar, sum[k] = 0.0f;
  for (int i = 0; i < few.filled; i += kLanes)
    for (int k = 0; k < kLanes; ++k) {
      const float value = along[i + k];
      low[k] = value < low[k] ? value : low[k];
      high[k] = value > high[k] ? value : high[k];
      sum[k] += value;  // those that are repeated are 0
    }
  float least = low[0], most = high[0], total = 0.0f;
  for (int k = 0; k < kLanes; ++k) {
    least = std::min(least, low[k]);
    most = std::max(most, high[k]);
    total += sum[k];
  }
  const bool lower = 2 * total <= (least + most) * static_cast<float>(few.count);
  const float edge = lower ? least : most, sign = lower ? 1.0f : -1.0f;
  for (int i = 0; i < few.filled; ++i) distance[i] = sign * (along[i] - edge);
}

// The higher, the nearer the points are to the edges of the rectangle with this heading.
float closeness(const Few& few, double yaw, float nearest) {
  const float cos = static_cast<float>(std::cos(yaw)), sin = static_cast<float>(std::sin(yaw));
  float along[kMostPoints], across[kMostPoints], one[kMostPoints], two[kMostPoints];
  for (int i = 0; i < few.filled; ++i) {
    along[i] = few.x[i] * cos + few.y[i] * sin;
    across[i] = few.y[i] * cos - few.x[i] * sin;
  }
  to_nearer_edge(along, few, one);
  to_nearer_edge(across, few, two);
  for (int i = 0; i < few.filled; ++i) {
    const float edge = one[i] < two[i] ? one[i] : two[i];
    one[i] = 1.0f / (edge > nearest ? edge : nearest);
  }
  float sum = 0.0f;
  for (int i = 0; i < few.count; ++i) sum += one[i];
  return sum;
}

}  // namespace
}  // namespace pcseg

// Heading (things) of the rectangle around each thing [rad]: of `coarse` headings from 0 to a right
// angle, and then of `fine` ones around the best of them, the one with the highest closeness.
PCSEG_API int32_t pcseg_fit_headings(const pcseg::GroupedArgs* args, int32_t most, int32_t coarse,
                                     int32_t fine, float nearest, double* yaws) {
  using namespace pcseg;
  if (!args || !grouped_ok(*args) || most < 1 || most > kMostPoints || coarse < 1 || fine < 2 ||
      !(nearest > 0) || (args->things && !yaws))
    return kBadArgument;
  const double step = std::acos(0.0) / coarse;
  Few few;
  for (int64_t thing = 0; thing < args->things; ++thing) {
    thin(args->points + 3 * args->starts[thing], args->counts[thing], most, &few);
    double best = 0, center = 0;
    float highest = -1;
    for (int k = 0; k < coarse + fine; ++k) {
      if (k == coarse) center = best, highest = -1;
      const double yaw =
          k < coarse ? k * step : center + step * ((k - coarse) / (fine - 1.0) - 0.5);
      const float found = closeness(few, yaw, nearest);
      if (found > highest) highest = found, best = yaw;
    }
    yaws[thing] = best;
  }
  return kDone;
}
