// SPDX-License-Identifier: Apache-2.0
// Points as records of bytes: the data of clouds. Also which points a cloud has, and the entropy of
// their classes.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "free_space.h"

namespace pcseg {
namespace {

constexpr int64_t kPoints = 8192;  // of one task
constexpr int32_t kMostColumns = 4096;

// Values of the points of a cloud with rows and columns.
struct Column {
  const char* from;         // value of the first point
  int64_t row_step, step;   // bytes from row to row, and from point to point
  int32_t bytes, offset;    // of the value; of its place in a record
};

struct RecordsArgs {
  const Column* columns;
  char* out;  // (height * width) records
  int64_t height, width;
  int32_t step, count;  // bytes of a record; columns
};

template <class T>
void copy_as(const char* from, int64_t from_step, char* to, int64_t to_step, int64_t n) {
  for (int64_t i = 0; i < n; ++i, from += from_step, to += to_step) {
    T value;
    std::memcpy(&value, from, sizeof(T));
    std::memcpy(to, &value, sizeof(T));
  }
}

// Values of more than sizeof(T) and at most twice as many bytes: two that overlap.
template <class T>
void copy_twice(const char* from, int64_t from_step, char* to, int64_t to_step, int64_t n,
                int64_t bytes) {
  const int64_t second = bytes - sizeof(T);
  for (int64_t i = 0; i < n; ++i, from += from_step, to += to_step) {
    T low, high;
    std::memcpy(&low, from, sizeof(T));
    std::memcpy(&high, from + second, sizeof(T));
    std::memcpy(to, &low, sizeof(T));
    std::memcpy(to + second, &high, sizeof(T));
  }
}

struct Sixteen {
  uint64_t half[2];
};

void copy(const char* from, int64_t from_step, char* to, int64_t to_step, int64_t n, int64_t bytes) {
  if (bytes == 1) return copy_as<uint8_t>(from, from_step, to, to_step, n);
  if (bytes == 2) return copy_as<uint16_t>(from, from_step, to, to_step, n);
  if (bytes == 4) return copy_as<uint32_t>(from, from_step, to, to_step, n);
  if (bytes == 8) return copy_as<uint64_t>(from, from_step, to, to_step, n);
  if (bytes == 16) return copy_as<Sixteen>(from, from_step, to, to_step, n);
  if (bytes > 16 && bytes < 32)
    return copy_twice<Sixteen>(from, from_step, to, to_step, n, bytes);
  if (bytes > 8 && bytes < 16) return copy_twice<uint64_t>(from, from_step, to, to_step, n, bytes);
  for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * to_step, from + i * from_step, bytes);
}

void write_records(const RecordsArgs& a, int threads) {
  const int64_t parts = (a.width + kPoints - 1) / kPoints;  // of a row
  brief_for(threads, a.height * parts, [&](int64_t task) {
    const int64_t row = task / parts, begin = task % parts * kPoints;
    const int64_t end = std::min(a.width, begin + kPoints);
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t n = std::min<int64_t>(kBlock, end - i);
      char* to = a.out + (row * a.width + i) * a.step;
      for (const Column* c = a.columns; c < a.columns + a.count; ++c)
        copy(c->from + row * c->row_step + i * c->step, c->step, to + c->offset, a.step, n, c->bytes);
    }
  });
}

bool arguments_ok(const RecordsArgs& a) {
  if (a.height < 0 || a.width < 0 || (a.width && a.height >= INT32_MAX / a.width)) return false;
  if (a.count < 0 || a.count > kMostColumns || a.step < 0) return false;
  if (!a.height || !a.width) return true;
  if ((a.count && !a.columns) || !a.out) return false;
  for (const Column* c = a.columns; c < a.columns + a.count; ++c)
    if (!c->from || c->bytes < 0 || c->offset < 0 || c->bytes > a.step - c->offset) return false;
  return true;
}

// The chosen ones of a block of records, one after the other; returns the end.
char* take_block(const char* from, int64_t step, const uint8_t* chosen, int n, char* to) {
  int32_t rows[kBlock];
  int count = 0;
  for (int i = 0; i < n; ++i) {
    rows[count] = i;
    count += chosen[i] != 0;
  }
  if (count == n) {
    std::memcpy(to, from, n * step);
  } else if (step > 16 && step <= 32) {  // the usual sizes: two halves that overlap
    for (int k = 0; k < count; ++k) {
      const char* record = from + rows[k] * step;
      std::memcpy(to + k * step, record, 16);
      std::memcpy(to + (k + 1) * step - 16, record + step - 16, 16);
    }
  } else {
    for (int k = 0; k < count; ++k) std::memcpy(to + k * step, from + rows[k] * step, step);
  }
  return to + count * step;
}

// The records that are chosen, one after the other; `first` holds the number before each task.
void take_records(const char* from, int64_t step, const uint8_t* chosen, int64_t n,
                  const int64_t* first, char* out, int threads) {
  brief_for(threads, (n + kPoints - 1) / kPoints, [&](int64_t task) {
    const int64_t end = std::min(n, (task + 1) * kPoints);
    char* to = out + first[task] * step;
    for (int64_t i = task * kPoints; i < end; i += kBlock)
      to = take_block(from + i * step, step, chosen + i,
                      static_cast<int>(std::min<int64_t>(kBlock, end - i)), to);
  });
}

struct ChooseArgs {
  Points points;
  const int32_t* labels;     // (n) class, or -1
  const float* confidence;   // (n)
  const float* least;        // (classes + 1) of each class, and of -1
  uint8_t* chosen;           // (n)
  int32_t classes, returns;  // returns: other points are not chosen
  float limit;               // largest squared distance
};

void choose(const ChooseArgs& a, int threads) {
  const int32_t everywhere = a.limit == std::numeric_limits<float>::infinity();
  const bool places = a.returns || !everywhere;  // of the points matter
  brief_for(threads, (a.points.n + kPoints - 1) / kPoints, [&](int64_t task) {
    Block b;
    const int64_t end = std::min(a.points.n, (task + 1) * kPoints);
    for (int64_t first = task * kPoints; first < end; first += kBlock) {
      const int n = static_cast<int>(std::min<int64_t>(kBlock, end - first));
      const float *confidence = a.confidence + first, limit = a.limit;
      const int32_t *labels = a.labels + first, others = !a.returns, classes = a.classes;
      float least[kBlock];
      int32_t kept[kBlock];
      for (int i = 0; i < n; ++i)
        least[i] = a.least[static_cast<uint32_t>(labels[i]) < static_cast<uint32_t>(classes)
                               ? labels[i] : classes];
      for (int i = 0; i < n; ++i) kept[i] = confidence[i] >= least[i];
      if (places) b.load(a.points, first, n);
      for (int i = 0; places && i < n; ++i) {
        const float sum = b.x[i] + b.y[i] + b.z[i];
        const float squared = b.x[i] * b.x[i] + b.y[i] * b.y[i] + b.z[i] * b.z[i];
        const int32_t is_return =
            (sum - sum == 0) & ((b.x[i] != 0) | (b.y[i] != 0) | (b.z[i] != 0));
        kept[i] &= (others | is_return) & (everywhere | (squared <= limit));
      }
      for (int i = 0; i < n; ++i) a.chosen[first + i] = static_cast<uint8_t>(kept[i]);
    }
  });
}

struct ValuesArgs {
  const int32_t* labels;    // (n) class, or -1
  const uint8_t* by_class;  // (classes + 1) of each class, and of -1
  const uint32_t* numbers;  // (n) number of an instance, 0 for none; or null
  const uint8_t* by_number;  // (count) of each instance
  uint8_t* values;          // (n)
  int64_t n;
  int32_t classes, count;
};

void find_values(const ValuesArgs& a, int threads) {
  const uint32_t classes = a.classes, count = a.numbers ? a.count : 0;
  const auto *by_class = a.by_class, *by_number = a.by_number;
  const int32_t* labels = a.labels;
  brief_for(threads, (a.n + kPoints - 1) / kPoints, [=](int64_t task) {
    const int64_t end = std::min(a.n, (task + 1) * kPoints);
    uint8_t* values = a.values;
    for (int64_t i = task * kPoints; i < end; ++i) {
      const uint32_t label = static_cast<uint32_t>(labels[i]);
      values[i] = by_class[label < classes ? label : classes];
    }
    const uint32_t* numbers = a.numbers;
    for (int64_t i = task * kPoints; i < end && count; ++i)
      if (numbers[i] && numbers[i] < count) values[i] = by_number[numbers[i]];
  });
}

constexpr int kTerms = 1024;  // p log p in the first-level cache

#define PCSEG_INLINE inline __attribute__((always_inline))

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

using Terms = void(const float*, float*, int);

void terms_generic(const float* p, float* terms, int n) { negative_terms(p, terms, n); }
#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) void terms_avx2(const float* p, float* terms, int n) {
  negative_terms(p, terms, n);
}
__attribute__((target("avx512f,avx512dq,avx512vl"))) void terms_avx512(const float* p, float* terms,
                                                                       int n) {
  negative_terms(p, terms, n);
}
#endif

Terms* widest_terms() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return terms_avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return terms_avx2;
#endif
  return terms_generic;
}

// In four parts that a vector holds.
PCSEG_INLINE float sum_of(const float* values, int32_t n) {
  float part[4] = {};
  int32_t k = 0;
  for (; k + 4 <= n; k += 4)
    for (int j = 0; j < 4; ++j) part[j] += values[k + j];
  for (; k < n; ++k) part[0] += values[k];
  return (part[0] + part[1]) + (part[2] + part[3]);
}

void entropy(const float* values, int64_t rows, int32_t columns, int64_t step, float* found,
             int threads) {
  Terms* terms_of = widest_terms();
  const float scale = 1.0f / std::log(static_cast<float>(std::max(columns, 2)));
  const int64_t block = std::max(1, kTerms / columns);  // rows
  const int64_t bytes = std::max<int64_t>(kTerms, columns) * sizeof(float);
  brief_for(threads, (rows + kPoints - 1) / kPoints, [&](int64_t task) {
    float* terms = reinterpret_cast<float*>(thread_scratch(bytes));
    const int64_t end = std::min(rows, (task + 1) * kPoints);
    for (int64_t begin = task * kPoints; begin < end; begin += block) {
      const int64_t n = std::min(block, end - begin);
      const float* from = values + begin * step;
      if (step == columns)
        terms_of(from, terms, static_cast<int>(n * columns));
      else
        for (int64_t i = 0; i < n; ++i) terms_of(from + i * step, terms + i * columns, columns);
      for (int64_t i = 0; i < n; ++i) {
        const float sum = sum_of(terms + i * columns, columns);
        const bool known = sum != 0.0f || sum_of(from + i * step, columns) != 0.0f;
        found[begin + i] = known ? sum * scale : std::numeric_limits<float>::quiet_NaN();
      }
    }
  });
}

}  // namespace
}  // namespace pcseg

using namespace pcseg;

// See RecordsArgs. Bytes of records that no column covers are left as they are.
PCSEG_API int32_t pcseg_write_records(const RecordsArgs* args, int32_t threads) {
  if (!args || !arguments_ok(*args)) return kBadArgument;
  return guarded([&] {
    write_records(*args, threads);
    return kDone;
  });
}

// The chosen of n records of `step` bytes to out, which has room for `count`, their number.
PCSEG_API int32_t pcseg_take_records(const char* from, int64_t step, const uint8_t* chosen,
                                     int64_t n, char* out, int64_t count, int32_t threads) {
  if (!rows_ok(n) || step < 0 || count < 0 || (n && !chosen)) return kBadArgument;
  if (count && step && (!from || !out)) return kBadArgument;
  return guarded([&] {
    const int64_t tasks = (n + kPoints - 1) / kPoints;
    std::vector<int64_t> first(tasks + 1);
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t end = std::min(n, (task + 1) * kPoints);
      int32_t here = 0;
      for (int64_t i = task * kPoints; i < end; ++i) here += chosen[i] != 0;
      first[task + 1] = first[task] + here;
    }
    const bool fits = first[tasks] == count;
    if (fits && step) take_records(from, step, chosen, n, first.data(), out, threads);
    return fits ? kDone : kBadArgument;
  });
}

// See ChooseArgs.
PCSEG_API int32_t pcseg_choose(const ChooseArgs* args, int32_t threads) {
  if (!args || !points_ok(args->points) || args->classes < 0 || !args->least) return kBadArgument;
  if (args->points.n && (!args->labels || !args->confidence || !args->chosen)) return kBadArgument;
  return guarded([&] {
    choose(*args, threads);
    return kDone;
  });
}

// See ValuesArgs: the value of the instance of each point, or of its class where it has none.
PCSEG_API int32_t pcseg_point_values(const ValuesArgs* args, int32_t threads) {
  if (!args || !rows_ok(args->n) || args->classes < 0 || !args->by_class) return kBadArgument;
  if (args->n && (!args->labels || !args->values)) return kBadArgument;
  if (args->numbers && args->count && !args->by_number) return kBadArgument;
  return guarded([&] {
    find_values(*args, threads);
    return kDone;
  });
}

// (rows) entropy of probabilities, divided by the logarithm of the number of columns; NaN for rows
// whose sum is 0. Rows are `step` values apart.
PCSEG_API int32_t pcseg_row_entropy(const float* values, int64_t rows, int32_t columns,
                                    int64_t step, float* found, int32_t threads) {
  if (!columns_ok(columns) || !rows_ok(rows) || step < columns) return kBadArgument;
  if (rows && (!values || !found)) return kBadArgument;
  return guarded([&] {
    entropy(values, rows, columns, step, found, threads);
    return kDone;
  });
}

// Whether (height, width, count) values of float32 are all finite: 1 or 0. The values of a point
// follow each other.
PCSEG_API int32_t pcseg_all_finite(const char* from, int64_t height, int64_t width, int32_t count,
                                   int64_t row_step, int64_t step, int32_t threads) {
  std::atomic<uint32_t> found{0};  // the highest bit is set by an exponent of ones
  const int64_t parts = (width + kPoints - 1) / kPoints;
  brief_for(threads, height * parts, [&](int64_t task) {
    const int64_t begin = task % parts * kPoints, end = std::min(width, begin + kPoints);
    const char* point = from + task / parts * row_step + begin * step;
    uint32_t seen = 0;
    const auto look = [&seen](const char* value) {
      uint32_t bits;
      std::memcpy(&bits, value, sizeof(bits));
      seen |= (bits & 0x7fffffffu) + 0x00800000u;
    };
    if (count == 3) {
      for (int64_t i = begin; i < end; ++i, point += step)
        look(point), look(point + 4), look(point + 8);
    } else {
      for (int64_t i = begin; i < end; ++i, point += step)
        for (int32_t k = 0; k < count; ++k) look(point + 4 * k);
    }
    found |= seen;
  });
  return found < 0x80000000u;
}
