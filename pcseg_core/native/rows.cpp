// SPDX-License-Identifier: Apache-2.0
// Reductions of short rows, such as the class probabilities of points.
#include "native.h"

namespace pcseg {

void row_top(const float* values, int64_t rows, int32_t columns, int64_t step, int32_t* winner,
             float* top) {
  for (int64_t i = 0; i < rows; ++i, values += step) {
    int32_t best = 0;
    float most = values[0];
    for (int32_t k = 1; k < columns; ++k) {
      const bool more = values[k] > most;
      best = more ? k : best;
      most = more ? values[k] : most;
    }
    winner[i] = best;
    top[i] = most;
  }
}

bool row_means(const float* values, int64_t n, int32_t columns, const int64_t* used,
               const int32_t* group, int64_t count, int64_t groups, float* means) {
  int32_t* sizes = reinterpret_cast<int32_t*>(thread_scratch(groups * sizeof(int32_t)));
  for (int64_t g = 0; g < groups; ++g) sizes[g] = 0;
  for (int64_t i = 0; i < groups * columns; ++i) means[i] = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    if (used[i] < 0 || used[i] >= n || group[i] < 0 || group[i] >= groups) return false;
    const float* row = values + used[i] * columns;
    float* sum = means + int64_t{group[i]} * columns;
    for (int32_t k = 0; k < columns; ++k) sum[k] += row[k];
    ++sizes[group[i]];
  }
  for (int64_t g = 0; g < groups; ++g, means += columns) {
    const float share = 1.0f / static_cast<float>(sizes[g] ? sizes[g] : 1);
    for (int32_t k = 0; k < columns; ++k) means[k] *= share;
  }
  return true;
}

bool row_accumulate(float* store, int64_t n, int32_t columns, const int64_t* at, const float* fade,
                    float* look, int64_t count, float share, int32_t* winner) {
  constexpr int64_t kAhead = 16;  // rows that are on their way from memory
  const int64_t width = columns + 2;
  for (int64_t i = 0; i < count; ++i)
    if (at[i] < 0 || at[i] >= n) return false;
  for (int64_t i = 0; i < count; ++i, look += columns) {
    if (i + kAhead < count) {
      const float* next = store + at[i + kAhead] * width;
      __builtin_prefetch(next, 1);
      __builtin_prefetch(next + width - 1, 1);
    }
    float* row = store + at[i] * width;
    const float kept = fade[i];
    int32_t best = 0;
    for (int32_t k = 0; k < columns; ++k) {
      row[k] = row[k] * kept + look[k];
      best = row[k] > row[best] ? k : best;
    }
    const float weight = row[columns] = row[columns] * kept + 1.0f;
    row[columns + 1] = static_cast<float>(winner[i] = best);
    const float top = row[best], worth = (1.0f + share * (weight - 1.0f)) / weight;
    for (int32_t k = 0; k < columns; ++k) look[k] = (row[k] - top) * worth;
  }
  return true;
}

}  // namespace pcseg
