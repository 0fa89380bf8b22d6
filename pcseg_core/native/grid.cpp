// SPDX-License-Identifier: Apache-2.0
// The occupancy grid of pcseg_core/online/grid.py: costs of cells from labeled points, free space.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "free_space.h"
#include "widest.h"

namespace pcseg {
namespace {

constexpr int64_t kPoints = 16384;  // of one task, whole blocks
constexpr int32_t kRows = 8;  // of the grid, of one task
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

// A point of the evidence that counts.
struct Place {
  int32_t cell;
  float height, weight;
  uint8_t level;  // of its cost
  bool passed;    // if it is costly
};

// Places of a block of points: those of low cost first, then costly ones.
struct Placed {
  const Place* places;
  int cheap, costly;
};

// Cell of each point of a block, -1 for those that are outside of the grid or too high, and for no
// returns; and its height.
PCSEG_INLINE void find_places(const GridArgs& a, const Block& block, int n,
                              int32_t* __restrict cell, float* __restrict height) {
  const float edge = static_cast<float>(a.edge), side = static_cast<float>(a.side);
  const float *r = a.rotation, most = a.max_height_m, along = a.offset[0], across = a.offset[1];
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
}

PCSEG_WIDEST(place, find_places,
             (const GridArgs& a, const Block& block, int n, int32_t* cell, float* height),
             (a, block, n, cell, height))

// Whether beams passed points of a block that is filled up to whole vectors.
void passed_block(const GridArgs& a, Block& block, int n, uint8_t* found) {
  int filled = n;
  for (; filled % 16 && filled < kBlock; ++filled)
    block.x[filled] = block.y[filled] = block.z[filled] = 0;
  passed(a.free, block, filled, found);
}

Placed place_block(const GridArgs& a, const Levels& levels, int64_t first, int n, Place* places) {
  Block block, costly;
  block.load(a.points, first, n);
  float height[kBlock];
  int32_t cell[kBlock];
  uint8_t cost[kBlock], gone[kBlock];
  place(a, block, n, cell, height);
  find_values(a.labels + first, reinterpret_cast<const uint8_t*>(a.costs), a.classes, n, cost);
  int low[kBlock], high[kBlock], lows = 0, highs = 0;  // points of low cost, and costly ones
  for (int i = 0; i < n; ++i) {
    const int8_t own = static_cast<int8_t>(cost[i]);
    const bool used = (cell[i] >= 0) & (own != kUnknown), is_costly = own >= kOccupied;
    low[lows] = high[highs] = i;
    lows += used & !is_costly;
    highs += used & is_costly;
  }
  for (int k = 0; k < highs; ++k)
    costly.x[k] = block.x[high[k]], costly.y[k] = block.y[high[k]], costly.z[k] = block.z[high[k]];
  passed_block(a, costly, highs, gone);
  const auto place_of = [&](int i, bool passed) {
    const float weight = a.weight ? a.weight[first + i] : 1.0f;
    return Place{cell[i], height[i], weight, levels.at[cost[i]], passed};
  };
  for (int k = 0; k < lows; ++k) places[k] = place_of(low[k], false);
  for (int k = 0; k < highs; ++k) places[lows + k] = place_of(high[k], gone[k]);
  return {places, lows, highs};
}

// Evidence of the cells that have some, summed in the order of the points.
class Cells {
 public:
  Cells(const Levels& levels, int64_t cells)
      : levels_(levels), width_(kShares + levels.count), row_(cells, -1) {}

  void add_cheap(const Place* places, int n) {
    for (const Place* place = places; place < places + n; ++place) {
      double* sums = at(place->cell);
      sums[kLow] += place->height;
      ++sums[kLows];
      sums[kShares + place->level] += place->weight;
    }
  }

  // Returns whether some are left for `add_old`.
  bool add_costly(const Place* places, int n) {
    bool old = false;
    for (const Place* place = places; place < places + n; ++place) {
      double* sums = at(place->cell);
      const double weight = place->weight;
      sums[kSuspects] += weight;
      sums[kThrough] += place->passed ? weight : 0.0;
      const bool later = place->weight < 1;
      sums[kShares + place->level] += place->passed | later ? 0.0 : weight;
      old |= later & !place->passed;
    }
    return old;
  }

  // Beams cannot pass the foot of what has moved on: they see the ground right behind it. Old
  // evidence therefore counts only if its cell was not mostly seen through.
  void add_old(const Place* places, int n) {
    for (const Place* place = places; place < places + n; ++place) {
      if (place->passed || !(place->weight < 1)) continue;
      double* sums = at(place->cell);
      if (!(sums[kThrough] > 0.5 * sums[kSuspects]))
        sums[kShares + place->level] += place->weight;
    }
  }

  // Costs of the cells, and mean heights of their ground: kUnknown and NaN without evidence.
  void judge(double min_share, int8_t* found, float* ground) const {
    std::fill(found, found + row_.size(), kUnknown);
    std::fill(ground, ground + row_.size(), kNan);
    for (size_t k = 0; k < cell_.size(); ++k)
      judge(sums_.data() + k * width_, min_share, found + cell_[k], ground + cell_[k]);
  }

 private:
  // Heights and number of the ground; weight of what is costly, and of its part that was passed;
  // then the weight of each level.
  enum { kLow, kLows, kSuspects, kThrough, kShares };

  void judge(const double* sums, double min_share, int8_t* found, float* ground) const {
    if (sums[kLows] > 0) *ground = static_cast<float>(sums[kLow] / sums[kLows]);
    double total = 0, higher = 0;
    for (int k = 0; k < levels_.count; ++k) total += sums[kShares + k];
    const double least = std::max(min_share * total, std::numeric_limits<double>::min());
    for (int k = 0; k < levels_.count && *found == kUnknown; ++k) {
      higher += sums[kShares + k];
      if (higher >= least) *found = levels_.cost[k];
    }
  }

  double* at(int32_t cell) {
    if (row_[cell] < 0) {
      row_[cell] = static_cast<int32_t>(cell_.size());
      cell_.push_back(cell);
      if (cell_.size() * width_ > sums_.size()) sums_.resize(2 * cell_.size() * width_);
    }
    return sums_.data() + int64_t{row_[cell]} * width_;
  }

  const Levels& levels_;
  int width_;
  std::vector<int32_t> row_;   // of each cell; -1: no evidence
  std::vector<int32_t> cell_;  // of each row
  std::vector<double> sums_;   // of each row, and zeros
};

// Rows of the nearest known values (not NaN) in the columns of a square, or -1.
PCSEG_INLINE void find_sources(const float* __restrict values, int32_t side,
                               int32_t* __restrict source) {
  for (int32_t c = 0; c < side; ++c) source[c] = values[c] == values[c] ? 0 : -1;
  for (int32_t r = 1; r < side; ++r) {
    const float* __restrict row = values + int64_t{r} * side;
    int32_t* __restrict own = source + int64_t{r} * side;
    const int32_t* __restrict before = own - side;
    for (int32_t c = 0; c < side; ++c) own[c] = row[c] == row[c] ? r : before[c];
  }
  for (int32_t r = side - 2; r >= 0; --r) {
    int32_t* __restrict own = source + int64_t{r} * side;
    const int32_t* __restrict next = own + side;
    for (int32_t c = 0; c < side; ++c) {
      const int32_t above = own[c], below = next[c];
      const bool nearer = (below >= 0) & ((above < 0) | (below - r < r - above));
      own[c] = nearer ? below : above;
    }
  }
}

PCSEG_WIDEST(list_sources, find_sources, (const float* values, int32_t side, int32_t* source),
             (values, side, source))

// A parabola whose lowest point is a column; it is the lowest of all from up / down on.
struct Parabola {
  int64_t up, down;
  int32_t column, height;  // squared distance within the column
};

// Columns of the nearest known values of one row: `source` has the row of the nearest in each.
void find_nearest(const int32_t* source, int32_t side, int32_t row, Parabola* lowest,
                  int32_t* nearest) {
  int32_t count = 0;
  for (int32_t c = 0; c < side; ++c) {
    if (source[c] < 0) continue;
    const int32_t apart = source[c] - row, height = apart * apart;
    int64_t up = -1, down = 1;
    for (; count > 0; --count) {
      const Parabola& other = lowest[count - 1];
      const int64_t ahead = c - other.column;
      up = height - other.height + ahead * (c + other.column);
      down = 2 * ahead;
      if (up * other.down > other.up * down) break;
    }
    if (!count) up = -1, down = 1;
    lowest[count++] = {up, down, c, height};
  }
  for (int32_t c = 0, k = 0; c < side; ++c) {
    while (k + 1 < count && lowest[k + 1].up < c * lowest[k + 1].down) ++k;
    nearest[c] = lowest[k].column;
  }
}

// Known values spread to unknown ones (NaN) of a square: that of the nearest, by whole cells. There
// is a known one.
// Felzenszwalb and Huttenlocher, "Distance Transforms of Sampled Functions", 2012.
void spread_nearest(float* values, int32_t side, int threads) {
  const int64_t cells = int64_t{side} * side;
  std::vector<int32_t> source(cells);
  list_sources(values, side, source.data());
  const std::vector<float> known(values, values + cells);
  brief_for(threads, (side + kRows - 1) / kRows, [&](int64_t task) {
    std::vector<Parabola> lowest(side);
    std::vector<int32_t> nearest(side);
    const int32_t end = std::min<int64_t>(side, (task + 1) * kRows);
    for (int32_t r = static_cast<int32_t>(task) * kRows; r < end; ++r) {
      const int32_t* row = source.data() + int64_t{r} * side;
      find_nearest(row, side, r, lowest.data(), nearest.data());
      float* found = values + int64_t{r} * side;
      for (int32_t c = 0; c < side; ++c)
        found[c] = known[int64_t{row[nearest[c]]} * side + nearest[c]];
    }
  });
}

// Cells without evidence are free where beams passed close above the ground.
void find_free(const GridArgs& a, const float* ground, int threads) {
  const float* r = a.rotation;
  brief_for(threads, (a.side + kRows - 1) / kRows, [&](int64_t task) {
    Block block;
    uint8_t seen[kBlock];
    int32_t which[kBlock];
    int count = 0;
    const auto judge = [&] {
      passed_block(a, block, count, seen);
      for (int k = 0; k < count; ++k)
        if (seen[k]) a.found[which[k]] = 0;
      count = 0;
    };
    const int32_t end = std::min<int64_t>(a.side, (task + 1) * kRows);
    for (int32_t row = static_cast<int32_t>(task) * kRows; row < end; ++row) {
      const float y = static_cast<float>((static_cast<double>(row) + 0.5) * a.edge + a.corner[1]);
      for (int32_t c = 0, cell = row * a.side; c < a.side; ++c, ++cell) {
        if (a.found[cell] != kUnknown) continue;
        const float x = static_cast<float>((c + 0.5) * a.edge + a.corner[0]);
        const float z = ground[cell] + a.clearance_m;
        block.x[count] = r[0] * x + r[3] * y + r[6] * z;
        block.y[count] = r[1] * x + r[4] * y + r[7] * z;
        block.z[count] = r[2] * x + r[5] * y + r[8] * z;
        which[count++] = cell;
        if (count == kBlock) judge();
      }
    }
    judge();
  });
}

void draw(const GridArgs& a, int threads) {
  const int64_t n = a.points.n, cells = int64_t{a.side} * a.side;
  const int64_t blocks = (n + kBlock - 1) / kBlock;
  const Levels levels(a);
  const std::unique_ptr<Place[]> places(new Place[n]);
  std::vector<Placed> placed(blocks);
  brief_for(threads, (n + kPoints - 1) / kPoints, [&](int64_t task) {
    const int64_t end = std::min(n, (task + 1) * kPoints);
    for (int64_t i = task * kPoints; i < end; i += kBlock)
      placed[i / kBlock] = place_block(
          a, levels, i, static_cast<int>(std::min<int64_t>(kBlock, end - i)), places.get() + i);
  });
  Cells evidence(levels, cells);
  bool old = false;
  for (const Placed& block : placed) {
    evidence.add_cheap(block.places, block.cheap);
    old |= evidence.add_costly(block.places + block.cheap, block.costly);
  }
  if (old)
    for (const Placed& block : placed)
      evidence.add_old(block.places + block.cheap, block.costly);
  std::vector<float> ground(cells);
  evidence.judge(a.min_share, a.found, ground.data());
  *a.below = kNan;
  if (std::all_of(ground.begin(), ground.end(), [](float v) { return v != v; })) return;
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
