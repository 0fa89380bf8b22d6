// SPDX-License-Identifier: Apache-2.0
// Logits of voxels to classes: softmax, winner and confidence in one pass, then to the points.
#include <algorithm>
#include <cmath>

#include "native.h"

namespace pcseg {
namespace {

constexpr int64_t kRows = 4096, kPoints = 16384;  // of one task
constexpr int32_t kIgnore = -1;  // as IGNORE of pcseg_core/labels.py

struct ClassifyArgs {
  const float* logits;     // (rows, columns), `step` apart
  const int32_t* owner;    // (columns) class of each column, or null: column k is class k
  int32_t* winner;         // (rows) class, -1 where the row has no finite softmax
  float* confidence;       // (rows) probability of that class, 0 without a class
  float* probabilities;    // (rows, classes) or null
  int64_t rows, step;
  int32_t columns, classes;
  int32_t most_lanes;      // rows computed side by side: 16 with AVX-512, 8 with AVX2, else 4
};

struct SpreadArgs {
  const int64_t* inverse;      // (n) row of each point; others than [0, rows): no row
  const int32_t* winner;       // (rows)
  const float* confidence;     // (rows)
  const float* probabilities;  // (rows, classes) or null
  int32_t* labels;             // (n), -1 without a row
  float* point_confidence;     // (n), 0 without a row
  float* point_probabilities;  // (n, classes) or null
  int64_t n, rows;
  int32_t classes;
};

#define PCSEG_INLINE inline __attribute__((always_inline))

// Vectors of N numbers.
#define PCSEG_VECTORS(N)                                     \
  typedef float Vec##N __attribute__((vector_size(N * 4)));  \
  typedef uint32_t Bits##N __attribute__((vector_size(N * 4)))
PCSEG_VECTORS(4);
PCSEG_VECTORS(8);
PCSEG_VECTORS(16);

// Rows side by side, one in each lane of a vector.
template <class Vec, class Bits>
struct Rows {
  static constexpr int64_t Lanes = sizeof(Vec) / sizeof(float);

  // exp(x) for x <= 0 to 1e-7; 0 below -87, NaN for NaN. The polynomial is that of Cephes.
  static PCSEG_INLINE Vec exp_of(Vec x) {
    const Vec shifted = x * 1.44269504f + 12582912.0f;  // rounds to an integer in the lowest bits
    const Vec n = shifted - 12582912.0f;
    const Vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    const Bits power = ((Bits)shifted << 23) + (127u << 23);  // wraps
    const Bits far = (Bits)(x < -87.0f);
    return (Vec)((Bits)(y * (Vec)power) & ~far);
  }

  // Softmax; column k of `cells` holds logit k of each row.
  static PCSEG_INLINE void softmax(Vec* cells, int32_t columns) {
    Vec most = cells[0];
    for (int32_t k = 1; k < columns; ++k) most = cells[k] > most ? cells[k] : most;
    Vec sum = Vec{};
    for (int32_t k = 0; k < columns; ++k) sum += cells[k] = exp_of(cells[k] - most);
    for (int32_t k = 0; k < columns; ++k) cells[k] /= sum;
  }

  static PCSEG_INLINE void classify(const ClassifyArgs& a, int64_t first, int64_t count,
                                    Vec* cells) {
    for (int64_t lane = 0; lane < Lanes; ++lane) {
      const float* row = a.logits + (first + (lane < count ? lane : 0)) * a.step;
      float* to = reinterpret_cast<float*>(cells) + lane;
      for (int32_t k = 0; k < a.columns; ++k) to[k * Lanes] = row[k];
    }
    softmax(cells, a.columns);
    if (a.owner) {
      Vec* groups = cells + a.columns;
      for (int32_t k = 0; k < a.classes; ++k) groups[k] = Vec{};
      for (int32_t k = 0; k < a.columns; ++k) groups[a.owner[k]] += cells[k];
      cells = groups;
    }
    Vec top = cells[0];
    Bits best = Bits{};
    for (int32_t k = 1; k < a.classes; ++k) {
      const Bits more = (Bits)(cells[k] > top);
      best = (best & ~more) | (more & static_cast<uint32_t>(k));
      top = more ? cells[k] : top;
    }
    for (int64_t lane = 0; lane < count; ++lane) {
      const bool good = std::isfinite(top[lane]);
      a.winner[first + lane] = good ? static_cast<int32_t>(best[lane]) : kIgnore;
      a.confidence[first + lane] = good ? top[lane] : 0.0f;
      if (!a.probabilities) continue;
      const float* from = reinterpret_cast<const float*>(cells) + lane;
      float* row = a.probabilities + (first + lane) * a.classes;
      for (int32_t k = 0; k < a.classes; ++k) row[k] = good ? from[k * Lanes] : 0.0f;
    }
  }

  static PCSEG_INLINE void classify(const ClassifyArgs& a, int64_t begin, int64_t end,
                                    char* scratch) {
    Vec* cells = reinterpret_cast<Vec*>(scratch);
    for (int64_t row = begin; row < end; row += Lanes)
      classify(a, row, end - row < Lanes ? end - row : Lanes, cells);
  }
};

using Pass = void(const ClassifyArgs&, int64_t, int64_t, char*);

void classify_generic(const ClassifyArgs& a, int64_t begin, int64_t end, char* scratch) {
  Rows<Vec4, Bits4>::classify(a, begin, end, scratch);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) void classify_avx2(const ClassifyArgs& a, int64_t begin,
                                                       int64_t end, char* scratch) {
  Rows<Vec8, Bits8>::classify(a, begin, end, scratch);
}

__attribute__((target("avx512f,avx512dq,avx512vl"))) void classify_avx512(
    const ClassifyArgs& a, int64_t begin, int64_t end, char* scratch) {
  Rows<Vec16, Bits16>::classify(a, begin, end, scratch);
}
#endif

struct Choice {
  Pass* pass;
  int lanes;
};

// The widest pass of at most that many lanes that this CPU runs.
Choice choose(int most_lanes) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (most_lanes >= 16 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return {classify_avx512, 16};
  if (most_lanes >= 8 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return {classify_avx2, 8};
#endif
  return {classify_generic, 4};
}

void classify(const ClassifyArgs& a, int threads) {
  const Choice choice = choose(a.most_lanes);
  const size_t bytes = (size_t(a.columns) + a.classes) * choice.lanes * sizeof(float);
  parallel_for(threads, (a.rows + kRows - 1) / kRows, [&](int64_t task) {
    choice.pass(a, task * kRows, std::min(a.rows, (task + 1) * kRows), thread_scratch(bytes));
  });
}

void spread(const SpreadArgs& a, int threads) {
  parallel_for(threads, (a.n + kPoints - 1) / kPoints, [&](int64_t task) {
    const int64_t begin = task * kPoints, end = std::min(a.n, begin + kPoints);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = a.inverse[i];
      const bool known = static_cast<uint64_t>(row) < static_cast<uint64_t>(a.rows);
      a.labels[i] = known ? a.winner[row] : kIgnore;
      a.point_confidence[i] = known ? a.confidence[row] : 0.0f;
      if (!a.point_probabilities) continue;
      float* to = a.point_probabilities + i * a.classes;
      if (known)
        std::copy_n(a.probabilities + row * a.classes, a.classes, to);
      else
        std::fill_n(to, a.classes, 0.0f);
    }
  });
}

bool arguments_ok(const ClassifyArgs& a) {
  if (!rows_ok(a.rows) || !columns_ok(a.columns) || !columns_ok(a.classes)) return false;
  if (a.step < a.columns) return false;
  if (!a.owner && a.classes != a.columns) return false;
  for (int32_t k = 0; a.owner && k < a.columns; ++k)
    if (a.owner[k] < 0 || a.owner[k] >= a.classes) return false;
  return !a.rows || (a.logits && a.winner && a.confidence);
}

bool arguments_ok(const SpreadArgs& a) {
  if (!rows_ok(a.n) || !rows_ok(a.rows) || a.classes < 0 || a.classes > kMaxColumns) return false;
  if (a.n && (!a.inverse || !a.labels || !a.point_confidence)) return false;
  if (a.rows && (!a.winner || !a.confidence)) return false;
  return !a.point_probabilities || !a.rows || a.probabilities;
}

template <class Args>
int32_t run(const Args* args, int32_t threads, void (*pass)(const Args&, int)) {
  if (!args || !arguments_ok(*args)) return kBadArgument;
  return guarded([&] {
    pass(*args, threads);
    return kDone;
  });
}

}  // namespace
}  // namespace pcseg

// See ClassifyArgs and SpreadArgs.
PCSEG_API int32_t pcseg_classify(const pcseg::ClassifyArgs* args, int32_t threads) {
  return pcseg::run(args, threads, pcseg::classify);
}

PCSEG_API int32_t pcseg_spread(const pcseg::SpreadArgs* args, int32_t threads) {
  return pcseg::run(args, threads, pcseg::spread);
}
