// SPDX-License-Identifier: Apache-2.0
// The occlusion test of pcseg_core/projection.py: values of points drawn into the cells of an image.
#include <algorithm>
#include <cmath>
#include <limits>

#include "native.h"

namespace pcseg {
namespace {

struct HighestArgs {
  const float* uv;       // (n, 2) pixels
  const float* values;   // (n)
  const float* penalty;  // (2 reach + 1, 2 reach + 1) subtracted from the value of a cell that far
  float* result;         // (n) highest value around each point, its own at least
  int64_t n;
  int32_t height, width;  // of the grid in cells, with a margin of `reach` on each side
  int32_t cell_px, reach;
};

constexpr float kRound = 12582912.0f;  // added and subtracted: the nearest integer, even at halves
constexpr float kFarthest = 4194304.0f;

// Cell of a pixel coordinate along an axis of `length` cells; -1 outside the image.
int64_t cell_of(float pixel, int32_t length, const HighestArgs& a) {
  if (!(std::fabs(pixel) < kFarthest)) return -1;
  const int32_t nearest = static_cast<int32_t>((pixel + kRound) - kRound);
  if (nearest < 0) return -1;
  const int64_t cell = int64_t{nearest} / a.cell_px + a.reach;
  return cell < length - a.reach ? cell : -1;
}

// False if a point lies outside the image. `Reach` is a.reach, or 0 for any.
template <int Reach>
bool highest(const HighestArgs& a) {
  constexpr float kNothing = -std::numeric_limits<float>::infinity();
  const int64_t cells = int64_t{a.height} * a.width;
  char* memory = thread_scratch(cells * sizeof(float) + a.n * sizeof(int32_t));
  float* grid = reinterpret_cast<float*>(memory);
  int32_t* at = reinterpret_cast<int32_t*>(grid + cells);
  const int32_t reach = Reach ? Reach : a.reach, side = 2 * reach + 1;
  const int64_t corner = int64_t{reach} * a.width + reach;
  for (int64_t i = 0; i < a.n; ++i) {  // clears what is read below, a fraction of the grid
    const int64_t row = cell_of(a.uv[2 * i + 1], a.height, a);
    const int64_t column = cell_of(a.uv[2 * i], a.width, a);
    if (row < 0 || column < 0) return false;
    at[i] = static_cast<int32_t>(row * a.width + column);
    float* line = grid + at[i] - corner;
    for (int32_t r = 0; r < side; ++r, line += a.width)
      for (int32_t c = 0; c < side; ++c) line[c] = kNothing;
  }
  for (int64_t i = 0; i < a.n; ++i) grid[at[i]] = std::max(grid[at[i]], a.values[i]);
  for (int64_t i = 0; i < a.n; ++i) {
    const float *line = grid + at[i] - corner, *penalty = a.penalty;
    float most = a.values[i];
    for (int32_t r = 0; r < side; ++r, line += a.width, penalty += side)
      for (int32_t c = 0; c < side; ++c) most = std::max(most, line[c] - penalty[c]);
    a.result[i] = most;
  }
  return true;
}

bool arguments_ok(const HighestArgs& a) {
  if (!rows_ok(a.n) || a.cell_px < 1 || a.reach < 0 || a.reach > 1 << 14) return false;
  if (a.height < 0 || a.width < 0 || int64_t{a.height} * a.width >= INT32_MAX) return false;
  return a.penalty && (!a.n || (a.uv && a.values && a.result));
}

}  // namespace
}  // namespace pcseg

// See HighestArgs.
PCSEG_API int32_t pcseg_highest(const pcseg::HighestArgs* args) {
  using namespace pcseg;
  if (!args || !arguments_ok(*args)) return kBadArgument;
  return guarded([&] {
    const bool done = args->reach == 2 ? highest<2>(*args) : highest<0>(*args);
    return done ? kDone : kBadArgument;
  });
}
