// SPDX-License-Identifier: Apache-2.0
// Range images of a sweep, and which points its beams passed.
#include "free_space.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

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

struct ImageArgs {
  Points points;
  const uint8_t* chosen;  // (n) or null: others are left out
  float* image;           // (kViewRows, kViewColumns)
  float origin[3];        // of the LiDAR
  int32_t farthest;       // instead of the nearest return
};

// Minimum over the 3 x 3 cells around each; columns wrap around.
void erode(float* from, float* to) {
  constexpr int C = kViewColumns;
  for (int r = 0; r < kViewRows; ++r) {
    float* row = from + r * C;
    float* wide = to + r * C;
    wide[0] = std::min(std::min(row[C - 1], row[0]), row[1]);
    for (int c = 1; c < C - 1; ++c) wide[c] = std::min(std::min(row[c - 1], row[c]), row[c + 1]);
    wide[C - 1] = std::min(std::min(row[C - 2], row[C - 1]), row[0]);
  }
  std::memcpy(from, to, kCells * sizeof(float));
  for (int r = 0; r < kViewRows; ++r) {
    const float* row = from + r * C;
    const float* above = r ? row - C : row;
    const float* below = r < kViewRows - 1 ? row + C : row;
    for (int c = 0; c < C; ++c)
      to[r * C + c] = std::min(std::min(above[c], row[c]), below[c]);
  }
}

void draw(const ImageArgs& a, int threads) {
  const int64_t n = a.points.n;
  char* memory = thread_scratch(kCells * sizeof(float) + n * (sizeof(float) + sizeof(int32_t)));
  float* nearest = reinterpret_cast<float*>(memory);
  float* distance = nearest + kCells;
  int32_t* cell = reinterpret_cast<int32_t*>(distance + n);
  brief_for(threads, (n + kPoints - 1) / kPoints, [&](int64_t task) {
    Block block;
    const int64_t end = std::min(n, (task + 1) * kPoints);
    for (int64_t i = task * kPoints; i < end; i += kBlock) {
      const int m = static_cast<int>(std::min<int64_t>(kBlock, end - i));
      block.load(a.points, i, m);
      find(block, a.origin, m, cell + i, distance + i);
      for (int k = 0; k < m; ++k) {
        const bool is_return = (block.x[k] != 0) | (block.y[k] != 0) | (block.z[k] != 0);
        if (!is_return || (a.chosen && !a.chosen[i + k])) distance[i + k] = kNan;
      }
    }
  });
  std::fill_n(nearest, kCells, kFar);
  const float sign = a.farthest ? -1.0f : 1.0f;
  for (int64_t i = 0; i < n; ++i) {
    const float d = sign * distance[i], least = nearest[cell[i]];
    nearest[cell[i]] = d < least ? d : least;  // without a branch, which is hard to predict
  }
  erode(nearest, a.image);
  if (a.farthest)
    for (int64_t i = 0; i < kCells; ++i) a.image[i] = -a.image[i];
}

}  // namespace

void Block::load(const Points& p, int64_t first, int n) {
  const char* from = p.xyz + first * p.step;
  for (int i = 0; i < n; ++i, from += p.step) {
    std::memcpy(x + i, from, sizeof(float));
    std::memcpy(y + i, from + p.axis_step, sizeof(float));
    std::memcpy(z + i, from + 2 * p.axis_step, sizeof(float));
  }
}

void passed(const Views& v, const Block& block, int n, uint8_t* found) {
  int32_t cell[kBlock];
  float distance[kBlock];
  std::memset(found, 0, n);
  for (const View* view = v.views; view < v.views + v.count; ++view) {
    find(block, view->origin, n, cell, distance);
    for (int i = 0; i < n; ++i) {
      const float reach = view->reach[cell[i]], beyond = distance[i] + v.margin_m;
      bool free = beyond < reach && reach < kFar;
      if (view->nearest)
        free &= beyond < view->nearest[cell[i]] ||
                distance[i] - v.margin_m > view->farthest[cell[i]];
      found[i] |= free;
    }
  }
}

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
