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
constexpr int kTerms = 1024;  // p log2 p in the first-level cache

// -p log2 p of each value to 4e-7 p, by the polynomial of least error; 0 for 0, NaN for NaN.
PCSEG_INLINE void negative_terms(const float* p, float* terms, int n) {
  for (int i = 0; i < n; ++i) {
    const float value = p[i] < 1.17549435e-38f ? 1.17549435e-38f : p[i];
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    // value = (1 + m) 2^e with 1 + m in [sqrt(1/2), sqrt(2))
    const int32_t e = static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;
    bits -= static_cast<uint32_t>(e) << 23;
    float m;
    std::memcpy(&m, &bits, 4);
    m -= 1.0f;
    float y = -1.706353873e-1f;
    y = y * m + 2.726990283e-1f;
    y = y * m - 2.972627282e-1f;
    y = y * m + 3.589617312e-1f;
    y = y * m - 4.804650247e-1f;
    y = y * m + 7.213758826e-1f;
    y = y * m - 1.442699671f;
    terms[i] = p[i] * (y * m - static_cast<float>(e));
  }
}

PCSEG_WIDEST(find_terms, negative_terms, (const float* p, float* terms, int n), (p, terms, n))


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
    const Four low = PCSEG_SHUFFLE(one, two, 0, 4, 2, 6) + PCSEG_SHUFFLE(one, two, 1, 5, 3, 7);
    const Four high =
        PCSEG_SHUFFLE(three, four, 0, 4, 2, 6) + PCSEG_SHUFFLE(three, four, 1, 5, 3, 7);
    const Four sum = PCSEG_SHUFFLE(low, high, 0, 1, 4, 5) + PCSEG_SHUFFLE(low, high, 2, 3, 6, 7);
    std::memcpy(sums + i, &sum, sizeof(sum));
  }
}

PCSEG_INLINE void add_columns(const float* terms, int64_t rows, int32_t columns, float* sums) {
  if (columns == 8) return add_rows(terms, rows, 8, sums);  // of the bundled label spaces
  add_rows(terms, rows, columns, sums);
}

PCSEG_WIDEST(add_terms, add_columns,
             (const float* terms, int64_t rows, int32_t columns, float* sums),
             (terms, rows, columns, sums))

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
        scale_(1.0f / std::log2(static_cast<float>(std::max(columns, 2)))),
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
    int32_t zero = 0;
    for (int64_t i = 0; i < n; ++i) {
      found[i] = sums_[i] * scale_;
      zero |= sums_[i] == 0.0f;
    }
    for (int64_t i = 0; zero && i < n; ++i)
      if (sums_[i] == 0.0f && is_zero(from + i * step_, columns_)) found[i] = kNan;
  }

 private:
  int32_t columns_;
  int64_t step_, block_;  // values from row to row; rows
  float scale_;
  std::vector<float> terms_, sums_;
};

constexpr int64_t kRecord = 24;  // bytes of a point of Autoware

struct AutowareArgs {
  Points points;            // the coordinates of each follow each other
  const int32_t* labels;    // (n) class, or -1
  const float* confidence;  // (n)
  const float* likely;      // (n, columns) probabilities, rows `step` values apart; null: unknown
  const uint8_t* ids;       // (classes + 1) of each class, and of what has none
  char* out;                // (n * kRecord)
  int64_t step;
  int32_t columns, classes;
};

using Words = uint32_t __attribute__((vector_size(16)));

// Writes a point from words of which the first three are its coordinates, the number of its class,
// and its probability and entropy; returns bits of which the highest are set where a word is not
// finite.
PCSEG_INLINE Words write_point(Words point, uint32_t id, const float* sure, char* out) {
  const Words seen = (point & 0x7fffffffu) + 0x00800000u;  // of exponents of ones
  point[3] = id;  // and a gap of three bytes
  std::memcpy(out, &point, sizeof(point));
  std::memcpy(out + sizeof(point), sure, 2 * sizeof(float));
  return seen;
}

// Adds to bits of which the highest are set where a coordinate is not finite.
PCSEG_INLINE void put_block(const AutowareArgs& a, int64_t first, int n, const float* entropy,
                            Words* seen) {
  uint32_t id[kBlock];
  float sure[kBlock][2];
  const uint32_t classes = a.classes;
  const uint8_t* ids = a.ids;
  for (int i = 0; i < n; ++i) {
    const uint32_t label = static_cast<uint32_t>(a.labels[first + i]);
    id[i] = ids[label < classes ? label : classes];
    sure[i][0] = label == UINT32_MAX ? 0.0f : a.confidence[first + i];
    sure[i][1] = entropy[i];
  }
  const int64_t step = a.points.step;
  const char* point = a.points.xyz + first * step;
  char* out = a.out + first * kRecord;
  const bool ends = first + n == a.points.n;  // with a point that less than four words may follow
  Words words{}, bits{};
  for (int i = 0; i < n - ends; ++i, point += step, out += kRecord) {
    std::memcpy(&words, point, sizeof(words));
    bits |= write_point(words, id[i], sure[i], out);
  }
  if (ends) {
    std::memcpy(&words, point, 3 * sizeof(float));
    bits |= write_point(words, id[n - 1], sure[n - 1], out);
  }
  *seen |= bits;
}

PCSEG_WIDEST(write_block, put_block,
             (const AutowareArgs& a, int64_t first, int n, const float* entropy, Words* seen),
             (a, first, n, entropy, seen))

// Returns whether all coordinates are finite.
bool write_points(const AutowareArgs& a, int threads) {
  std::atomic<uint32_t> seen{0};
  brief_for(threads, (a.points.n + kPoints - 1) / kPoints, [&](int64_t task) {
    Entropy entropy(a.likely ? a.columns : 1, a.step);
    float found[kBlock];
    Words bits{};
    std::fill_n(found, kBlock, kNan);
    const int64_t end = std::min(a.points.n, (task + 1) * kPoints);
    for (int64_t first = task * kPoints; first < end; first += entropy.block()) {
      const int n = static_cast<int>(std::min(entropy.block(), end - first));
      if (a.likely) entropy.find(a.likely + first * a.step, n, found);
      write_block(a, first, n, found, &bits);
    }
    seen |= bits[0] | bits[1] | bits[2];
  });
  return seen < 0x80000000u;
}

bool arguments_ok(const AutowareArgs& a) {
  if (!points_ok(a.points) || a.classes < 0 || !a.ids) return false;
  constexpr int64_t kAxis = sizeof(float);
  if (a.points.n && a.points.axis_step != kAxis) return false;
  if (a.points.n > 1 && a.points.step < 3 * kAxis) return false;
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
