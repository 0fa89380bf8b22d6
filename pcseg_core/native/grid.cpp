// SPDX-License-Identifier: Apache-2.0
// The occupancy grid of pcseg_core/online/grid.py: costs of cells from labeled points, free space.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "free_space.h"

namespace pcseg {
namespace {

constexpr int64_t kPoints = 16384;  // of one task
constexpr int8_t kUnknown = -1, kOccupied = 50;  // as UNKNOWN and _OCCUPIED
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct GridArgs {
  Points points;          // evidence, LiDAR frame; other than returns do not count
  const int32_t* labels;  // (n) class, or -1
  const float* weight;    // (n), or null: 1
  const int8_t* costs;    // (classes + 1) of each class, and of -1; kUnknown: no evidence
  int8_t* found;          // (side, side) cost of each cell, rows along y
  float* below;           // height of the ground below the sensor [m], NaN if it is unknown
  Views free;             // of the newest sweep, LiDAR frame
  float rotation[9];      // of the LiDAR in the frame of the grid, row-major
  float offset[2];        // of the sensor from the corner of the grid [m]
  double corner[2];       // the opposite
  double edge;            // of a cell [m]
  double min_share;       // of the evidence of a cell, for its cost
  float max_height_m;     // above the sensor: higher points do not count
  float clearance_m;      // above the ground: beams that pass there make it free
  int32_t side, classes;
};

// The costs that there are, highest first, and the position of each among them.
struct Levels {
  int8_t cost[128];
  uint8_t at[128];
  int count = 0;

  explicit Levels(const GridArgs& a) {
    bool there[128] = {};
    for (int32_t k = 0; k <= a.classes; ++k)
      if (a.costs[k] != kUnknown) there[a.costs[k]] = true;
    for (int c = 127; c >= 0; --c)
      if (there[c]) cost[at[c] = static_cast<uint8_t>(count)] = static_cast<int8_t>(c), ++count;
  }
};

// Where a point of the evidence is.
struct Place {
  int32_t cell;  // -1: it does not count
  float height, weight;
  int8_t cost;
  bool passed;  // and costly
};

void place_block(const GridArgs& a, int64_t first, int n, Place* places) {
  Block block;
  block.load(a.points, first, n);
  const float edge = static_cast<float>(a.edge), side = static_cast<float>(a.side);
  const float *r = a.rotation, most = a.max_height_m, along = a.offset[0], across = a.offset[1];
  float height[kBlock];
  int32_t cell[kBlock];
  for (int i = 0; i < n; ++i) {
    const float x = block.x[i], y = block.y[i], z = block.z[i];
    const float column = (r[0] * x + r[1] * y + r[2] * z + along) / edge;
    const float row = (r[3] * x + r[4] * y + r[5] * z + across) / edge;
    height[i] = r[6] * x + r[7] * y + r[8] * z;
    const bool inside = (column >= 0) & (column < side) & (row >= 0) & (row < side);
    const bool is_return = (x != 0) | (y != 0) | (z != 0);
    const bool used = inside & is_return & (height[i] <= most);
    const int32_t at = static_cast<int32_t>(used ? row : 0) * a.side;
    cell[i] = used ? at + static_cast<int32_t>(used ? column : 0) : -1;
  }
  uint8_t gone[kBlock];
  Block costly;
  int which[kBlock], count = 0;
  for (int i = 0; i < n; ++i) {
    const int32_t label = a.labels[first + i];
    const int8_t cost = a.costs[label >= 0 && label < a.classes ? label : a.classes];
    const float weight = a.weight ? a.weight[first + i] : 1.0f;
    places[i] = {cost == kUnknown ? -1 : cell[i], height[i], weight, cost, false};
    if (places[i].cell >= 0 && cost >= kOccupied) {
      costly.x[count] = block.x[i], costly.y[count] = block.y[i], costly.z[count] = block.z[i];
      which[count++] = i;
    }
  }
  passed(a.free, costly, count, gone);
  for (int k = 0; k < count; ++k) places[which[k]].passed = gone[k] != 0;
}

// Evidence of the cells that have some, summed in the order of the points.
class Cells {
 public:
  Cells(const Levels& levels, int64_t cells)
      : levels_(levels), width_(kShares + levels.count), row_(cells, -1) {}

  // Beams cannot pass the foot of what has moved on: they see the ground right behind it. Old
  // evidence therefore counts only if its cell was not mostly seen through.
  void add(const Place* places, int64_t n) {
    bool old = false;
    for (const Place* place = places; place < places + n; ++place) {
      if (place->cell < 0) continue;
      double* sums = at(place->cell);
      if (place->cost < kOccupied) {
        sums[kLow] += place->height;
        ++sums[kLows];
        sums[share_of(*place)] += place->weight;
        continue;
      }
      sums[kSuspects] += place->weight;
      if (place->passed)
        sums[kThrough] += place->weight;
      else if (place->weight < 1)
        old = true;
      else
        sums[share_of(*place)] += place->weight;
    }
    for (const Place* place = places; old && place < places + n; ++place)
      if (place->cell >= 0 && place->cost >= kOccupied && !place->passed && place->weight < 1) {
        double* sums = at(place->cell);
        if (!(sums[kThrough] > 0.5 * sums[kSuspects])) sums[share_of(*place)] += place->weight;
      }
  }

  // Cost of a cell, and mean height of its ground, NaN without.
  void judge(int64_t cell, double min_share, int8_t* found, float* ground) const {
    *found = kUnknown;
    *ground = kNan;
    if (row_[cell] < 0) return;
    const double* sums = sums_.data() + int64_t{row_[cell]} * width_;
    if (sums[kLows] > 0) *ground = static_cast<float>(sums[kLow] / sums[kLows]);
    double total = 0, higher = 0;
    for (int k = 0; k < levels_.count; ++k) total += sums[kShares + k];
    const double least = std::max(min_share * total, std::numeric_limits<double>::min());
    for (int k = 0; k < levels_.count && *found == kUnknown; ++k) {
      higher += sums[kShares + k];
      if (higher >= least) *found = levels_.cost[k];
    }
  }

 private:
  // Heights and number of the ground; weight of what is costly, and of its part that was passed;
  // then the weight of each level.
  enum { kLow, kLows, kSuspects, kThrough, kShares };

  double* at(int32_t cell) {
    if (row_[cell] < 0) {
      row_[cell] = count_++;
      sums_.resize(int64_t{count_} * width_);
    }
    return sums_.data() + int64_t{row_[cell]} * width_;
  }

  int share_of(const Place& place) const { return kShares + levels_.at[place.cost]; }

  const Levels& levels_;
  int width_;
  int32_t count_ = 0;
  std::vector<int32_t> row_;  // of each cell; -1: no evidence
  std::vector<double> sums_;
};

// Known values spread to unknown ones (NaN) of a square: that of the nearest, by whole cells.
// Felzenszwalb and Huttenlocher, "Distance Transforms of Sampled Functions", 2012.
void spread_nearest(float* values, int32_t side, int threads) {
  const int64_t cells = int64_t{side} * side;
  std::vector<int32_t> source(cells);  // row of the nearest known value in the column, or -1
  for (int32_t c = 0; c < side; ++c) source[c] = std::isnan(values[c]) ? -1 : 0;
  for (int32_t r = 1; r < side; ++r)
    for (int32_t c = 0; c < side; ++c) {
      const int64_t at = int64_t{r} * side + c;
      source[at] = std::isnan(values[at]) ? source[at - side] : r;
    }
  for (int32_t r = side - 2; r >= 0; --r)
    for (int32_t c = 0; c < side; ++c) {
      const int64_t at = int64_t{r} * side + c;
      const int32_t above = source[at], next = source[at + side];
      if (next >= 0 && (above < 0 || next - r < r - above)) source[at] = next;
    }
  const std::vector<float> known(values, values + cells);
  brief_for(threads, side, [&](int64_t r) {
    // Parabolas whose lowest points are the columns; each is the lowest from its start on.
    double* start = reinterpret_cast<double*>(thread_scratch(side * 20));
    double* height = start + side;  // squared distance within the column
    int32_t* column = reinterpret_cast<int32_t*>(height + side);
    const int32_t* row = source.data() + r * side;
    int32_t count = 0;
    for (int32_t c = 0; c < side; ++c) {
      if (row[c] < 0) continue;
      const double apart = static_cast<double>(row[c] - r), squared = apart * apart;
      double from = -1;
      while (count > 0) {
        const int32_t other = column[count - 1];
        const double ahead = c - other;
        from = (squared - height[count - 1] + ahead * (c + other)) / (2 * ahead);
        if (from > start[count - 1]) break;
        --count;
      }
      column[count] = c;
      start[count] = count ? from : -1;
      height[count++] = squared;
    }
    for (int32_t c = 0, k = 0; c < side && count; ++c) {
      while (k + 1 < count && start[k + 1] < c) ++k;
      values[r * side + c] = known[int64_t{row[column[k]]} * side + column[k]];
    }
  });
}

// Cells without evidence are free where beams passed close above the ground.
void find_free(const GridArgs& a, const float* ground, int threads) {
  brief_for(threads, a.side, [&](int64_t row) {
    Block block;
    uint8_t seen[kBlock];
    int32_t which[kBlock];
    const float* r = a.rotation;
    const float y = static_cast<float>((static_cast<double>(row) + 0.5) * a.edge + a.corner[1]);
    int8_t* found = a.found + row * a.side;
    for (int32_t c = 0; c < a.side;) {
      int count = 0;
      for (; c < a.side && count < kBlock; ++c) {
        if (found[c] != kUnknown) continue;
        const float x = static_cast<float>((c + 0.5) * a.edge + a.corner[0]);
        const float z = ground[row * a.side + c] + a.clearance_m;
        block.x[count] = r[0] * x + r[3] * y + r[6] * z;
        block.y[count] = r[1] * x + r[4] * y + r[7] * z;
        block.z[count] = r[2] * x + r[5] * y + r[8] * z;
        which[count++] = c;
      }
      passed(a.free, block, count, seen);
      for (int k = 0; k < count; ++k)
        if (seen[k]) found[which[k]] = 0;
    }
  });
}

void draw(const GridArgs& a, int threads) {
  const int64_t n = a.points.n, cells = int64_t{a.side} * a.side;
  const std::unique_ptr<Place[]> places(new Place[n]);
  brief_for(threads, (n + kPoints - 1) / kPoints, [&](int64_t task) {
    const int64_t end = std::min(n, (task + 1) * kPoints);
    for (int64_t i = task * kPoints; i < end; i += kBlock)
      place_block(a, i, static_cast<int>(std::min<int64_t>(kBlock, end - i)), places.get() + i);
  });
  const Levels levels(a);
  Cells evidence(levels, cells);
  evidence.add(places.get(), n);
  std::vector<float> ground(cells);
  for (int64_t c = 0; c < cells; ++c) evidence.judge(c, a.min_share, a.found + c, &ground[c]);
  *a.below = kNan;
  if (std::all_of(ground.begin(), ground.end(), [](float v) { return std::isnan(v); })) return;
  spread_nearest(ground.data(), a.side, threads);
  find_free(a, ground.data(), threads);
  *a.below = ground[int64_t{a.side / 2} * a.side + a.side / 2];
}

bool arguments_ok(const GridArgs& a) {
  if (!points_ok(a.points) || !views_ok(a.free)) return false;
  if (a.side < 1 || a.side > 1 << 14 || a.classes < 0 || !(a.edge > 0)) return false;
  if (!a.costs || !a.found || !a.below || (a.points.n && !a.labels)) return false;
  for (int32_t k = 0; k <= a.classes; ++k)
    if (a.costs[k] < kUnknown) return false;
  return true;
}

}  // namespace
}  // namespace pcseg

using namespace pcseg;

// See GridArgs.
PCSEG_API int32_t pcseg_draw_grid(const GridArgs* args, int32_t threads) {
  if (!args || !arguments_ok(*args)) return kBadArgument;
  return guarded([&] {
    draw(*args, threads);
    return kDone;
  });
}
