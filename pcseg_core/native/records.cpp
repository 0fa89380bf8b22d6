// SPDX-License-Identifier: Apache-2.0
// Points as records of bytes: the data of clouds. Also which points a cloud has.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <vector>

#include "chosen.h"
#include "free_space.h"
#include "widest.h"

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
  uint8_t rows[kBlock + 8];
  const int count = list_chosen(chosen, n, rows);
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

// Some of the records of a cloud.
struct Part {
  const uint8_t* chosen;  // (records)
  char* out;              // room for `count`, one after the other
  int64_t count;          // of those that are chosen
};

// Number of the records of a part before each task, and of all.
std::vector<int64_t> counts_of(const Part& part, int64_t n) {
  const int64_t tasks = (n + kPoints - 1) / kPoints;
  std::vector<int64_t> first(tasks + 1);
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t end = std::min(n, (task + 1) * kPoints);
    int32_t here = 0;
    for (int64_t i = task * kPoints; i < end; ++i) here += part.chosen[i] != 0;
    first[task + 1] = first[task] + here;
  }
  return first;
}

// The records of all parts, while they are in the first-level cache; `first` is that of each.
void take_records(const char* from, int64_t step, int64_t n, const Part* parts,
                  const std::vector<std::vector<int64_t>>& first, int threads) {
  brief_for(threads, (n + kPoints - 1) / kPoints, [&](int64_t task) {
    const int64_t end = std::min(n, (task + 1) * kPoints);
    std::vector<char*> to(first.size());
    for (size_t k = 0; k < to.size(); ++k) to[k] = parts[k].out + first[k][task] * step;
    for (int64_t i = task * kPoints; i < end; i += kBlock) {
      const int rows = static_cast<int>(std::min<int64_t>(kBlock, end - i));
      for (size_t k = 0; k < to.size(); ++k)
        to[k] = take_block(from + i * step, step, parts[k].chosen + i, rows, to[k]);
    }
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

// Whether the confidence of each of n points is the least of its class, or higher.
PCSEG_INLINE void compare(const ChooseArgs& a, int64_t first, int n, uint8_t* __restrict chosen) {
  const uint32_t classes = a.classes;
  const int32_t* __restrict labels = a.labels + first;
  const float* __restrict confidence = a.confidence + first;
  const float* __restrict least = a.least;
  for (int i = 0; i < n; ++i) {
    const uint32_t label = static_cast<uint32_t>(labels[i]);
    chosen[i] = confidence[i] >= least[label < classes ? label : classes];
  }
}

PCSEG_WIDEST(find_sure, compare, (const ChooseArgs& a, int64_t first, int n, uint8_t* chosen),
             (a, first, n, chosen))

// Leaves out points that are too far away, and those that are no returns if others do not count.
void leave_out(const ChooseArgs& a, const Block& b, int n, uint8_t* chosen) {
  const int32_t everywhere = a.limit == std::numeric_limits<float>::infinity();
  const int32_t others = !a.returns;
  const float limit = a.limit;
  for (int i = 0; i < n; ++i) {
    const float sum = b.x[i] + b.y[i] + b.z[i];
    const float squared = b.x[i] * b.x[i] + b.y[i] * b.y[i] + b.z[i] * b.z[i];
    const int32_t is_return = (sum - sum == 0) & ((b.x[i] != 0) | (b.y[i] != 0) | (b.z[i] != 0));
    chosen[i] &= static_cast<uint8_t>((others | is_return) & (everywhere | (squared <= limit)));
  }
}

void choose(const ChooseArgs& a, int threads) {
  const bool places = a.returns || a.limit != std::numeric_limits<float>::infinity();
  brief_for(threads, (a.points.n + kPoints - 1) / kPoints, [&](int64_t task) {
    Block block;
    const int64_t end = std::min(a.points.n, (task + 1) * kPoints);
    for (int64_t first = task * kPoints; first < end; first += kBlock) {
      const int n = static_cast<int>(std::min<int64_t>(kBlock, end - first));
      find_sure(a, first, n, a.chosen + first);
      if (!places) continue;
      block.load(a.points, first, n);
      leave_out(a, block, n, a.chosen + first);
    }
  });
}

PCSEG_INLINE void scale(const float* confidence, const int32_t* labels, int n, uint8_t* values) {
  for (int i = 0; i < n; ++i) {
    const int32_t value = static_cast<int32_t>(confidence[i] * 255.0f + 0.5f);
    values[i] = static_cast<uint8_t>(labels[i] >= 0 ? value : 0);
  }
}

PCSEG_WIDEST(find_bytes, scale,
             (const float* confidence, const int32_t* labels, int n, uint8_t* values),
             (confidence, labels, n, values))

// Bits of which the highest is set if one of n points of `count` values is not finite.
uint32_t exponents_of(const char* point, int32_t count, int64_t step, int64_t n) {
  uint32_t seen = 0;
  for (int64_t i = 0; i < n; ++i, point += step)
    for (int32_t k = 0; k < count; ++k) {
      uint32_t bits;
      std::memcpy(&bits, point + 4 * k, sizeof(bits));
      seen |= (bits & 0x7fffffffu) + 0x00800000u;
    }
  return seen;
}

// The same for three values of each point. Reads four, the last of which is in the next point.
uint32_t exponents_of_three(const char* point, int64_t step, int64_t n) {
  using Bits = uint32_t __attribute__((vector_size(16)));
  Bits seen{};
  for (int64_t i = 0; i + 1 < n; ++i, point += step) {
    Bits bits;
    std::memcpy(&bits, point, sizeof(bits));
    seen |= (bits & 0x7fffffffu) + 0x00800000u;
  }
  return seen[0] | seen[1] | seen[2] | exponents_of(point, 3, step, 1);
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

// Parts of n records of `step` bytes; see Part.
PCSEG_API int32_t pcseg_take_records(const char* from, int64_t step, int64_t n, const Part* parts,
                                     int32_t count, int32_t threads) {
  if (!rows_ok(n) || step < 0 || count < 0 || count > kMostColumns) return kBadArgument;
  if ((n && step && !from) || (count && !parts)) return kBadArgument;
  return guarded([&] {
    std::vector<std::vector<int64_t>> first;
    for (const Part* part = parts; part < parts + count; ++part) {
      if ((n && !part->chosen) || (part->count && step && !part->out)) return kBadArgument;
      first.push_back(counts_of(*part, n));
      if (first.back().back() != part->count) return kBadArgument;
    }
    if (step) take_records(from, step, n, parts, first, threads);
    return kDone;
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

// The value of the class of each of n points, of -1 behind the classes, to values (n).
PCSEG_API int32_t pcseg_point_values(const int32_t* labels, const uint8_t* by_class,
                                     uint8_t* values, int64_t n, int32_t classes,
                                     int32_t threads) {
  if (!rows_ok(n) || classes < 0 || !by_class || (n && (!labels || !values))) return kBadArgument;
  return guarded([&] {
    brief_for(threads, (n + kPoints - 1) / kPoints, [=](int64_t task) {
      const int64_t first = task * kPoints;
      const int count = static_cast<int>(std::min(kPoints, n - first));
      find_values(labels + first, by_class, classes, count, values + first);
    });
    return kDone;
  });
}

// Confidence of each of n points from 0 to 255, rounded; 0 for those without a class.
PCSEG_API int32_t pcseg_confidence_bytes(const float* confidence, const int32_t* labels,
                                         uint8_t* values, int64_t n, int32_t threads) {
  if (!rows_ok(n) || (n && (!confidence || !labels || !values))) return kBadArgument;
  return guarded([&] {
    brief_for(threads, (n + kPoints - 1) / kPoints, [=](int64_t task) {
      const int64_t first = task * kPoints;
      const int count = static_cast<int>(std::min(kPoints, n - first));
      find_bytes(confidence + first, labels + first, count, values + first);
    });
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
    const int64_t begin = task % parts * kPoints, n = std::min(width - begin, kPoints);
    const char* point = from + task / parts * row_step + begin * step;
    found |= count == 3 && step >= 4 && n ? exponents_of_three(point, step, n)
                                          : exponents_of(point, count, step, n);
  });
  return found < 0x80000000u;
}
