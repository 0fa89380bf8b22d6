// SPDX-License-Identifier: Apache-2.0
// Range images of a sweep, and which points its beams passed.
#include "free_space.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "widest.h"

namespace pcseg {
namespace {

constexpr int64_t kPoints = 16384;  // of one task
constexpr float kPi = 3.14159265f, kSlope = 0.7f;  // as _SLOPE
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kFar = std::numeric_limits<float>::infinity();
constexpr int64_t kCells = int64_t{kViewRows} * kViewColumns;

// Angle of (x, y) to 3e-7 rad; the polynomial is that of Cephes.
PCSEG_INLINE float angle(float x, float y) {
  const float across = std::fabs(x), up = std::fabs(y);
  const float most = across > up ? across : up, least = across > up ? up : across;
  const float part = least / (most > 0.0f ? most : 1.0f);
  const bool steep = part > 0.414213562f;
  const float a = steep ? (part - 1.0f) / (part + 1.0f) : part, s = a * a;
  float y0 = 8.05374449538e-2f * s - 1.38776856032e-1f;
  y0 = y0 * s + 1.99777106478e-1f;
  y0 = y0 * s - 3.33329491539e-1f;
  float found = (steep ? 0.785398163f : 0.0f) + (y0 * s * a + a);
  found = up > across ? 1.57079633f - found : found;
  found = x < 0.0f ? kPi - found : found;
  return y < 0.0f ? -found : found;
}

// Cell and distance on the ground of each point; NaN for points that are not finite.
PCSEG_INLINE void find_cells(const Block& b, const float* origin, int n, int32_t* cell,
                             float* distance) {
  for (int i = 0; i < n; ++i) {
    const float x = b.x[i] - origin[0], y = b.y[i] - origin[1], z = b.z[i] - origin[2];
    const float ground = std::sqrt(x * x + y * y);
    const float column = (angle(x, y) + kPi) * static_cast<float>(kViewColumns / (2 * M_PI));
    const float slope = z / (ground > 1e-3f ? ground : 1e-3f);
    float level = (slope + kSlope) * static_cast<float>(kViewRows / (2 * double{0.7}));
    level = level > 0.0f ? level : 0.0f;
    level = level < kViewRows - 1 ? level : kViewRows - 1;
    const float sum = ground + z;
    const bool good = sum - sum == 0.0f;
    cell[i] = static_cast<int32_t>(level) * kViewColumns +
              (static_cast<int32_t>(good ? column : 0.0f) & (kViewColumns - 1));
    distance[i] = good ? ground : kNan;
  }
}

PCSEG_WIDEST(find, find_cells,
             (const Block& b, const float* origin, int n, int32_t* cell, float* distance),
             (b, origin, n, cell, distance))

using Bytes [[maybe_unused]] = uint8_t __attribute__((vector_size(16)));

PCSEG_INLINE void look_up(const int32_t* __restrict labels, const uint8_t* __restrict table,
                          uint32_t classes, int n, uint8_t* __restrict values) {
  int i = 0;
#if !defined(__clang__)  // has no such instruction of all CPUs
  if (classes < sizeof(Bytes)) {  // a table that one instruction reads sixteen times
    Bytes all{};
    std::memcpy(&all, table, classes + 1);
    for (int k = 0; k < n; ++k) {
      const uint32_t label = static_cast<uint32_t>(labels[k]);
      values[k] = static_cast<uint8_t>(label < classes ? label : classes);
    }
    for (; i + static_cast<int>(sizeof(Bytes)) <= n; i += sizeof(Bytes)) {
      Bytes at;
      std::memcpy(&at, values + i, sizeof(at));
      at = __builtin_shuffle(all, at);
      std::memcpy(values + i, &at, sizeof(at));
    }
  }
#endif
  for (; i < n; ++i) {
    const uint32_t label = static_cast<uint32_t>(labels[i]);
    values[i] = table[label < classes ? label : classes];
  }
}

struct ImageArgs {
  Points points;
  const uint8_t* chosen;  // (n) or null: others are left out
  float* image;           // (kViewRows, kViewColumns)
  float origin[3];        // of the LiDAR
  int32_t farthest;       // instead of the nearest return
};

// Minimum of each cell of a row and those beside it; columns wrap around.
PCSEG_INLINE void widen(const float* row, float* wide) {
  constexpr int C = kViewColumns;
  wide[0] = std::min(std::min(row[C - 1], row[0]), row[1]);
  for (int c = 1; c < C - 1; ++c) wide[c] = std::min(std::min(row[c - 1], row[c]), row[c + 1]);
  wide[C - 1] = std::min(std::min(row[C - 2], row[C - 1]), row[0]);
}

// Minimum over the 3 x 3 cells around each of some rows; those around the rows are not looked at.
PCSEG_INLINE void find_least(const float* from, int first, int last, float* to) {
  constexpr int C = kViewColumns;
  float wide[3][C];
  widen(from + first * C, wide[first % 3]);
  for (int r = first; r <= last; ++r) {
    if (r < last) widen(from + (r + 1) * C, wide[(r + 1) % 3]);
    const float* above = wide[(r > first ? r - 1 : r) % 3];
    const float* row = wide[r % 3];
    const float* below = wide[(r < last ? r + 1 : r) % 3];
    for (int c = 0; c < C; ++c) to[r * C + c] = std::min(std::min(above[c], row[c]), below[c]);
  }
}

PCSEG_WIDEST(erode, find_least, (const float* from, int first, int last, float* to),
             (from, first, last, to))

// First and last of some cells, or rows, of an image.
struct Span {
  int32_t first = kCells - 1, last = 0;

  void add(const Span& other) {
    first = std::min(first, other.first);
    last = std::max(last, other.last);
  }
};

// NaN for the distance of points that are no returns, or not chosen. Adds the cells to a span.
PCSEG_INLINE void drop_others(const Block& b, const uint8_t* chosen, const int32_t* cell, int n,
                              float* distance, Span* span) {
  int32_t first = span->first, last = span->last;
  for (int i = 0; i < n; ++i) {
    const bool is_return = (b.x[i] != 0) | (b.y[i] != 0) | (b.z[i] != 0);
    distance[i] = is_return ? distance[i] : kNan;
    first = cell[i] < first ? cell[i] : first;
    last = cell[i] > last ? cell[i] : last;
  }
  for (int i = 0; chosen && i < n; ++i) distance[i] = chosen[i] ? distance[i] : kNan;
  *span = {first, last};
}

PCSEG_WIDEST(leave_out, drop_others,
             (const Block& b, const uint8_t* chosen, const int32_t* cell, int n, float* distance,
              Span* span),
             (b, chosen, cell, n, distance, span))

void draw(const ImageArgs& a, int threads) {
  const int64_t n = a.points.n, tasks = (n + kPoints - 1) / kPoints;
  char* memory = thread_scratch(kCells * sizeof(float) + n * (sizeof(float) + sizeof(int32_t)));
  float* nearest = reinterpret_cast<float*>(memory);
  float* distance = nearest + kCells;
  int32_t* cell = reinterpret_cast<int32_t*>(distance + n);
  std::vector<Span> spans(tasks);
  brief_for(threads, tasks, [&](int64_t task) {
    Block block;
    Span own;
    const int64_t end = std::min(n, (task + 1) * kPoints);
    for (int64_t i = task * kPoints; i < end; i += kBlock) {
      const int m = static_cast<int>(std::min<int64_t>(kBlock, end - i));
      block.load(a.points, i, m);
      find(block, a.origin, m, cell + i, distance + i);
      leave_out(block, a.chosen ? a.chosen + i : nullptr, cell + i, m, distance + i, &own);
    }
    spans[task] = own;
  });
  Span all;
  for (const Span& span : spans) all.add(span);
  // Rows that have a point, and those beside them: most sensors see a part of all.
  const Span rows{std::max(all.first / kViewColumns - 1, 0),
                  std::min(all.last / kViewColumns + 1, kViewRows - 1)};
  const int64_t begin = int64_t{rows.first} * kViewColumns;
  const int64_t end = int64_t{rows.last + 1} * kViewColumns;
  std::fill(a.image, a.image + (n ? begin : kCells), kFar);
  if (n) {
    std::fill(a.image + end, a.image + kCells, kFar);
    std::fill(nearest + begin, nearest + end, kFar);
    const float sign = a.farthest ? -1.0f : 1.0f;
    for (int64_t i = 0; i < n; ++i) {
      const float d = sign * distance[i], least = nearest[cell[i]];
      nearest[cell[i]] = d < least ? d : least;  // without a branch, which is hard to predict
    }
    erode(nearest, rows.first, rows.last, a.image);
  }
  if (a.farthest)
    for (int64_t i = 0; i < kCells; ++i) a.image[i] = -a.image[i];
}

}  // namespace

namespace {

Four four_at(const char* from) {
  Four found;
  std::memcpy(&found, from, sizeof(found));
  return found;
}

// Coordinates of four points that follow each other. Reads one value behind the last of them.
void load_four(const char* from, int64_t step, float* x, float* y, float* z) {
  const Four a = four_at(from), b = four_at(from + step);
  const Four c = four_at(from + 2 * step), d = four_at(from + 3 * step);
  const Four ab = PCSEG_SHUFFLE(a, b, 0, 4, 1, 5);  // x, x, y, y
  const Four cd = PCSEG_SHUFFLE(c, d, 0, 4, 1, 5);
  const Four ends = PCSEG_SHUFFLE(a, b, 2, 6, 3, 7);  // z, z, ...
  const Four others = PCSEG_SHUFFLE(c, d, 2, 6, 3, 7);
  const Four xs = PCSEG_SHUFFLE(ab, cd, 0, 1, 4, 5);
  const Four ys = PCSEG_SHUFFLE(ab, cd, 2, 3, 6, 7);
  const Four zs = PCSEG_SHUFFLE(ends, others, 0, 1, 4, 5);
  std::memcpy(x, &xs, sizeof(xs));
  std::memcpy(y, &ys, sizeof(ys));
  std::memcpy(z, &zs, sizeof(zs));
}

}  // namespace

void Block::load(const Points& p, int64_t first, int n) {
  const char* from = p.xyz + first * p.step;
  int i = 0;
  if (p.axis_step == sizeof(float) && p.step >= static_cast<int64_t>(sizeof(float)))
    for (; i + 4 <= n && first + i + 4 < p.n; i += 4, from += 4 * p.step)
      load_four(from, p.step, x + i, y + i, z + i);
  for (; i < n; ++i, from += p.step) {
    std::memcpy(x + i, from, sizeof(float));
    std::memcpy(y + i, from + p.axis_step, sizeof(float));
    std::memcpy(z + i, from + 2 * p.axis_step, sizeof(float));
  }
}

namespace {

// Adds whether the beams of one LiDAR passed points in these cells at these distances.
PCSEG_INLINE void see(const View& view, float margin_m, const int32_t* __restrict cell,
                      const float* __restrict distance, int n, uint8_t* __restrict found) {
  for (int i = 0; i < n; ++i) {
    const float reach = view.reach[cell[i]], beyond = distance[i] + margin_m;
    int32_t free = (beyond < reach) & (reach < kFar);
    if (view.nearest)
      free &= (beyond < view.nearest[cell[i]]) |
              (distance[i] - margin_m > view.farthest[cell[i]]);
    found[i] |= static_cast<uint8_t>(free);
  }
}

}  // namespace

void passed(const Views& v, const Block& block, int n, uint8_t* found) {
  int32_t cell[kBlock];
  float distance[kBlock];
  std::memset(found, 0, n);
  for (const View* view = v.views; view < v.views + v.count; ++view) {
    find(block, view->origin, n, cell, distance);
    see(*view, v.margin_m, cell, distance, n, found);
  }
}

// Beams of a sweep, and the pose of other points in its frame.
struct Seen {
  Views free;
  float pose[12];  // three rows of a rotation and a shift
};

void Block::move(const float* T, int n) {
  for (int i = 0; i < n; ++i) {
    const float px = x[i], py = y[i], pz = z[i];
    x[i] = T[0] * px + T[1] * py + T[2] * pz + T[3];
    y[i] = T[4] * px + T[5] * py + T[6] * pz + T[7];
    z[i] = T[8] * px + T[9] * py + T[10] * pz + T[11];
  }
}

PCSEG_WIDEST(find_values, look_up,
             (const int32_t* labels, const uint8_t* table, uint32_t classes, int n,
              uint8_t* values),
             (labels, table, classes, n, values))

bool points_ok(const Points& p) { return rows_ok(p.n) && (!p.n || p.xyz); }

bool views_ok(const Views& v) {
  if (v.count < 0 || (v.count && !v.views)) return false;
  for (const View* view = v.views; view < v.views + v.count; ++view)
    if (!view->reach || !view->nearest != !view->farthest) return false;
  return true;
}

}  // namespace pcseg

using namespace pcseg;

// See ImageArgs.
PCSEG_API int32_t pcseg_range_image(const ImageArgs* args, int32_t threads) {
  if (!args || !points_ok(args->points) || !args->image) return kBadArgument;
  return guarded([&] {
    draw(*args, threads);
    return kDone;
  });
}

// By the beams of how many sweeps each point was passed, to counts (n).
PCSEG_API int32_t pcseg_times_passed(const Seen* sweeps, int32_t count, const Points* points,
                                     int32_t* counts) {
  if (count < 0 || (count && !sweeps) || !points || !points_ok(*points)) return kBadArgument;
  if (points->n && !counts) return kBadArgument;
  for (int32_t k = 0; k < count; ++k)
    if (!views_ok(sweeps[k].free)) return kBadArgument;
  return guarded([&] {
    Block block, moved;
    uint8_t found[kBlock];
    for (int64_t i = 0; i < points->n; i += kBlock) {
      const int n = static_cast<int>(std::min<int64_t>(kBlock, points->n - i));
      block.load(*points, i, n);
      std::fill_n(counts + i, n, 0);
      for (const Seen* seen = sweeps; seen < sweeps + count; ++seen) {
        moved = block;
        moved.move(seen->pose, n);
        passed(seen->free, moved, n, found);
        for (int k = 0; k < n; ++k) counts[i + k] += found[k];
      }
    }
    return kDone;
  });
}

// Whether each point was passed by the beams of one LiDAR, to found (n).
PCSEG_API int32_t pcseg_passed(const Views* views, const Points* points, uint8_t* found,
                               int32_t threads) {
  if (!views || !points || !views_ok(*views) || !points_ok(*points)) return kBadArgument;
  if (points->n && !found) return kBadArgument;
  return guarded([&] {
    brief_for(threads, (points->n + kPoints - 1) / kPoints, [&](int64_t task) {
      Block block;
      const int64_t end = std::min(points->n, (task + 1) * kPoints);
      for (int64_t i = task * kPoints; i < end; i += kBlock) {
        const int m = static_cast<int>(std::min<int64_t>(kBlock, end - i));
        block.load(*points, i, m);
        passed(*views, block, m, found + i);
      }
    });
    return kDone;
  });
}

// Whether a return is nearer than each point by the margin, for each LiDAR, to found (n).
PCSEG_API int32_t pcseg_behind(const Views* views, const Points* points, uint8_t* found) {
  if (!views || !points || !views_ok(*views) || !points_ok(*points)) return kBadArgument;
  if (points->n && !found) return kBadArgument;
  Block block;
  int32_t cell[kBlock];
  float distance[kBlock];
  for (int64_t i = 0; i < points->n; i += kBlock) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, points->n - i));
    block.load(*points, i, n);
    std::fill_n(found + i, n, 1);
    for (const View* view = views->views; view < views->views + views->count; ++view) {
      find(block, view->origin, n, cell, distance);
      for (int k = 0; k < n; ++k)
        found[i + k] &= view->reach[cell[k]] + views->margin_m < distance[k];
    }
  }
  return kDone;
}
