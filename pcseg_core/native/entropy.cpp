// SPDX-License-Identifier: Apache-2.0
// Entropy of the class probabilities of points, and the points of Autoware that hold it.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "free_space.h"
#include "widest.h"

namespace pcseg {
namespace {

constexpr int64_t kPoints = 8192;  // of one task
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int kTerms = 1024;  // p log p in the first-level cache

// -p log p of each value to 1e-7; the polynomial is that of Cephes. 0 for 0, NaN for NaN.
PCSEG_INLINE void negative_terms(const float* p, float* terms, int n) {
  for (int i = 0; i < n; ++i) {
    const float value = p[i] < 1.17549435e-38f ? 1.17549435e-38f : p[i];
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    // value = m 2^e with m in [sqrt(1/2), sqrt(2))
    const int32_t e = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
    bits -= static_cast<uint32_t>(e) << 23;
    float m;
    std::memcpy(&m, &bits, 4);
    m -= 1.0f;
    float y = 7.0376836292e-2f;
    y = y * m - 1.1514610310e-1f;
    y = y * m + 1.1676998740e-1f;
    y = y * m - 1.2420140846e-1f;
    y = y * m + 1.4249322787e-1f;
    y = y * m - 1.6668057665e-1f;
    y = y * m + 2.0000714765e-1f;
    y = y * m - 2.4999993993e-1f;
    y = y * m + 3.3333331174e-1f;
    const float power = static_cast<float>(e), square = m * m;
    y = y * m * square + power * -2.12194440e-4f - 0.5f * square;
    terms[i] = -p[i] * (m + y + power * 0.693359375f);
  }
}

PCSEG_WIDEST(find_terms, negative_terms, (const float* p, float* terms, int n), (p, terms, n))

using Four = float __attribute__((vector_size(16)));
using Lanes = int32_t __attribute__((vector_size(16)));

PCSEG_INLINE Four four_at(const float* values) {
  Four found;
  std::memcpy(&found, values, sizeof(found));
  return found;
}

// Four sums whose sum is that of n values.
PCSEG_INLINE Four parts_of(const float* values, int32_t n) {
  Four part{};
  int32_t k = 0;
  for (; k + 4 <= n; k += 4) part += four_at(values + k);
  for (; k < n; ++k) part += Four{values[k], 0.0f, 0.0f, 0.0f};
  return part;
}

// Sums of rows (rows, n) of values, to sums; both have room for a multiple of four rows.
PCSEG_INLINE void add_rows(const float* values, int64_t rows, int32_t n, float* sums) {
  for (int64_t i = 0; i < rows; i += 4, values += 4 * n) {
    const Four one = parts_of(values, n), two = parts_of(values + n, n);
    const Four three = parts_of(values + 2 * n, n), four = parts_of(values + 3 * n, n);
    constexpr Lanes even{0, 4, 2, 6}, odd{1, 5, 3, 7};
    const Four low = __builtin_shuffle(one, two, even) + __builtin_shuffle(one, two, odd);
    const Four high = __builtin_shuffle(three, four, even) + __builtin_shuffle(three, four, odd);
    const Four sum = __builtin_shuffle(low, high, Lanes{0, 1, 4, 5}) +
                     __builtin_shuffle(low, high, Lanes{2, 3, 6, 7});
    std::memcpy(sums + i, &sum, sizeof(sum));
  }
}

void add_terms(const float* terms, int64_t rows, int32_t columns, float* sums) {
  if (columns == 8) return add_rows(terms, rows, 8, sums);  // of the bundled label spaces
  add_rows(terms, rows, columns, sums);
}

bool is_zero(const float* values, int32_t n) {
  const Four part = parts_of(values, n);
  return (part[0] + part[1]) + (part[2] + part[3]) == 0.0f;
}

// Entropy of rows of probabilities. Its memory holds the terms of a block, which the first-level
// cache holds too.
class Entropy {
 public:
  Entropy(int32_t columns, int64_t step)
      : columns_(columns), step_(step), block_(std::max(1, std::min(kTerms / columns, kBlock))),
        scale_(1.0f / std::log(static_cast<float>(std::max(columns, 2)))),
        terms_((block_ + 4) * columns), sums_(block_ + 4) {}

  int64_t block() const { return block_; }

  // Of up to block() rows.
  void find(const float* from, int64_t n, float* found) {
    if (step_ == columns_)
      find_terms(from, terms_.data(), static_cast<int>(n * columns_));
    else
      for (int64_t i = 0; i < n; ++i)
        find_terms(from + i * step_, terms_.data() + i * columns_, columns_);
    add_terms(terms_.data(), n, columns_, sums_.data());
    for (int64_t i = 0; i < n; ++i) found[i] = sums_[i] * scale_;
    for (int64_t i = 0; i < n; ++i)
      if (sums_[i] == 0.0f && is_zero(from + i * step_, columns_)) found[i] = kNan;
  }

 private:
  int32_t columns_;
  int64_t step_, block_;  // values from row to row; rows
  float scale_;
  std::vector<float> terms_, sums_;
};

constexpr int64_t kRecord = 24;  // bytes of a point of Autoware

template <class T>
PCSEG_INLINE void put(char* to, T value) {
  std::memcpy(to, &value, sizeof(value));
}

struct AutowareArgs {
  Points points;            // the coordinates of each follow each other
  const int32_t* labels;    // (n) class, or -1
  const float* confidence;  // (n)
  const float* likely;      // (n, columns) probabilities, rows `step` values apart; null: unknown
  const uint8_t* ids;       // (classes + 1) of each class, and of what has none
  char* out;                // (n * kRecord) zeros
  int64_t step;
  int32_t columns, classes;
};

// Returns bits of which the highest is set if a coordinate is not finite.
uint32_t write_block(const AutowareArgs& a, int64_t first, int n, const float* entropy) {
  const uint32_t classes = a.classes;
  const char* point = a.points.xyz + first * a.points.step;
  char* out = a.out + first * kRecord;
  uint64_t seen = 0;  // of exponents of ones
  for (int i = 0; i < n; ++i, point += a.points.step, out += kRecord) {
    uint64_t two;
    uint32_t third;
    std::memcpy(&two, point, sizeof(two));
    std::memcpy(&third, point + sizeof(two), sizeof(third));
    seen |= (two & 0x7fffffff7fffffffu) + 0x0080000000800000u;
    seen |= (third & 0x7fffffffu) + 0x00800000u;
    const uint32_t label = static_cast<uint32_t>(a.labels[first + i]);
    put(out, two);
    put(out + 8, third);
    put(out + 12, a.ids[label < classes ? label : classes]);  // a gap of three bytes follows
    put(out + 16, label == UINT32_MAX ? 0.0f : a.confidence[first + i]);
    put(out + 20, entropy[i]);
  }
  return static_cast<uint32_t>(seen >> 32 | seen);
}

// Returns whether all coordinates are finite.
bool write_points(const AutowareArgs& a, int threads) {
  std::atomic<uint32_t> seen{0};
  brief_for(threads, (a.points.n + kPoints - 1) / kPoints, [&](int64_t task) {
    Entropy entropy(a.likely ? a.columns : 1, a.step);
    float found[kBlock];
    std::fill_n(found, kBlock, kNan);
    const int64_t end = std::min(a.points.n, (task + 1) * kPoints);
    for (int64_t first = task * kPoints; first < end; first += entropy.block()) {
      const int n = static_cast<int>(std::min(entropy.block(), end - first));
      if (a.likely) entropy.find(a.likely + first * a.step, n, found);
      seen |= write_block(a, first, n, found);
    }
  });
  return seen < 0x80000000u;
}

bool arguments_ok(const AutowareArgs& a) {
  if (!points_ok(a.points) || a.classes < 0 || !a.ids) return false;
  if (a.points.n && a.points.axis_step != sizeof(float)) return false;
  if (a.likely && (!columns_ok(a.columns) || a.step < a.columns)) return false;
  return !a.points.n || (a.labels && a.confidence && a.out);
}

}  // namespace
}  // namespace pcseg

using namespace pcseg;

// (rows) entropy of probabilities, divided by the logarithm of the number of columns; NaN for rows
// whose sum is 0. Rows are `step` values apart.
PCSEG_API int32_t pcseg_row_entropy(const float* values, int64_t rows, int32_t columns,
                                    int64_t step, float* found, int32_t threads) {
  if (!columns_ok(columns) || !rows_ok(rows) || step < columns) return kBadArgument;
  if (rows && (!values || !found)) return kBadArgument;
  return guarded([&] {
    brief_for(threads, (rows + kPoints - 1) / kPoints, [&](int64_t task) {
      Entropy entropy(columns, step);
      const int64_t end = std::min(rows, (task + 1) * kPoints);
      for (int64_t begin = task * kPoints; begin < end; begin += entropy.block())
        entropy.find(values + begin * step, std::min(entropy.block(), end - begin), found + begin);
    });
    return kDone;
  });
}

// See AutowareArgs. Sets finite to 1 if all coordinates are, else to 0.
PCSEG_API int32_t pcseg_autoware_points(const AutowareArgs* args, int32_t* finite,
                                        int32_t threads) {
  if (!args || !finite || !arguments_ok(*args)) return kBadArgument;
  return guarded([&] {
    *finite = write_points(*args, threads);
    return kDone;
  });
}
