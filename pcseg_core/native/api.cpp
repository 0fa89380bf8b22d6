// SPDX-License-Identifier: Apache-2.0
// The C interface: checks, choice of the instruction set, distribution of blocks over threads.
// Every function returns a status: 0 done, 1 bad argument, 2 out of memory.
#include <cstring>
#include <exception>

#include "native.h"

namespace pcseg {

int64_t map_coarsen(const int64_t*, int64_t, int64_t*, int);
void map_build(const int64_t*, int64_t, const int64_t*, int64_t, int, int, int32_t*, int);
void map_invert(const int32_t*, int, int64_t, int64_t, int32_t*, int);
void row_top(const float*, int64_t, int32_t, int64_t, int32_t*, float*);
bool row_means(const float*, int64_t, int32_t, const int64_t*, const int32_t*, int64_t, int64_t,
               float*);
bool row_accumulate(float*, int64_t, int32_t, const int64_t*, const float*, float*, int64_t, float,
                    int32_t*);
int64_t voxel_locate(const VoxelTable&, const int64_t*, int64_t, float, int64_t*, int32_t*,
                     int64_t*);

namespace {

enum Status : int32_t { kDone = 0, kBadArgument = 1, kNoMemory = 2 };

constexpr int64_t kMaxRows = INT32_MAX;
constexpr int32_t kMaxChannels = 1 << 16, kMaxOffsets = 125;

const Kernels* const* available() {
  static const Kernels* list[5];
  static const bool ready = [] {
    int n = 0;
    list[n++] = &kernels_generic;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    if (avx2) list[n++] = &kernels_avx2;
    if (avx512) list[n++] = &kernels_avx512;
    if (avx512 && __builtin_cpu_supports("avx512bf16")) list[n++] = &kernels_avx512bf16;
#endif
    list[n] = nullptr;
    return true;
  }();
  (void)ready;
  return list;
}

const Kernels* kernels_at(int32_t isa) {
  const Kernels* const* list = available();
  for (int32_t i = 0; i <= isa && list[i]; ++i)
    if (i == isa) return list[i];
  return nullptr;
}

bool shape_ok(int64_t offsets, int64_t cin, int64_t cout) {
  return offsets > 0 && offsets <= kMaxOffsets && cin > 0 && cin <= kMaxChannels && cout > 0 &&
         cout <= kMaxChannels;
}

bool rows_ok(int64_t n) { return n >= 0 && n < kMaxRows; }

bool dtype_ok(int32_t dtype) { return dtype == kFloat32 || dtype == kBFloat16; }

bool conv_ok(const ConvArgs& c) {
  if (!shape_ok(c.offsets, c.cin, c.cout) || !rows_ok(c.n_in) || !rows_ok(c.n_out)) return false;
  if (!dtype_ok(c.dtype) || !dtype_ok(c.out_dtype)) return false;
  if (!c.weight || (c.n_in && !c.x) || (c.n_out && !c.out)) return false;
  if (!c.table && (c.offsets != 1 || c.n_in != c.n_out)) return false;
  const int64_t width = c.dtype == kBFloat16 ? (c.cin + 1) / 2 * 2 : c.cin;
  if (c.dtype == kBFloat16 && c.ldx % 2) return false;
  return c.ldx >= width && c.ldout >= c.cout && (!c.residual || c.ldres >= c.cout);
}

template <class F>
int32_t guarded(const F& body) {
  try {
    return body();
  } catch (const std::exception&) {
    return kNoMemory;
  }
}

}  // namespace
}  // namespace pcseg

using namespace pcseg;
#define PCSEG_API extern "C" __attribute__((visibility("default")))

#ifndef PCSEG_SOURCE_HASH
#define PCSEG_SOURCE_HASH ""
#endif

// Which sources this library was built from.
PCSEG_API const char* pcseg_source_hash() { return PCSEG_SOURCE_HASH; }

// Name of instruction set `isa`, counted from the slowest, or null beyond the last one.
PCSEG_API const char* pcseg_isa_name(int32_t isa) {
  const Kernels* kernels = kernels_at(isa);
  return kernels ? kernels->name + std::strlen("kernels_") : nullptr;
}

PCSEG_API int32_t pcseg_has_bfloat16(int32_t isa) {
  const Kernels* kernels = kernels_at(isa);
  return kernels && kernels->native_bfloat16;
}

// Bytes that pcseg_pack writes, 0 for a bad argument.
PCSEG_API int64_t pcseg_packed_bytes(int32_t isa, int32_t offsets, int32_t cin, int32_t cout,
                                     int32_t dtype) {
  const Kernels* kernels = kernels_at(isa);
  if (!kernels || !shape_ok(offsets, cin, cout) || !dtype_ok(dtype)) return 0;
  return static_cast<int64_t>(kernels->packed_bytes(offsets, cin, cout, dtype));
}

// Weights (offsets, cin, cout), times scale (cout) unless null, in the layout of pcseg_conv. With
// `transpose` they are (offsets, cout, cin); with `flip` offset k takes those of offsets - 1 - k.
PCSEG_API int32_t pcseg_pack(int32_t isa, const float* weight, const float* scale, int32_t offsets,
                             int32_t cin, int32_t cout, int32_t dtype, int32_t transpose,
                             int32_t flip, void* packed, int32_t threads) {
  const Kernels* kernels = kernels_at(isa);
  if (!kernels || !shape_ok(offsets, cin, cout) || !dtype_ok(dtype) || !weight || !packed)
    return kBadArgument;
  return guarded([&] {
    const int64_t in = static_cast<int64_t>(cin) * cout;
    const size_t out = kernels->packed_bytes(1, cin, cout, dtype);
    parallel_for(threads, offsets, [&](int64_t k) {
      const float* from = weight + (flip ? offsets - 1 - k : k) * in;
      kernels->pack(from, scale, cin, cout, dtype, transpose != 0,
                    static_cast<char*>(packed) + k * out);
    });
    return kDone;
  });
}

PCSEG_API int32_t pcseg_conv(int32_t isa, const ConvArgs* args, int32_t threads) {
  const Kernels* kernels = kernels_at(isa);
  if (!kernels || !args || !conv_ok(*args)) return kBadArgument;
  return guarded([&] {
    const size_t bytes = kernels->conv_scratch(*args);
    parallel_for(threads, (args->n_out + kBlockRows - 1) / kBlockRows, [&](int64_t block) {
      const int64_t first = block * kBlockRows, last = first + kBlockRows;
      kernels->conv_block(*args, first, last < args->n_out ? last : args->n_out,
                          thread_scratch(bytes));
    });
    return kDone;
  });
}

PCSEG_API int32_t pcseg_grad_weight(int32_t isa, const GradArgs* args, int32_t threads) {
  const Kernels* kernels = kernels_at(isa);
  if (!kernels || !args) return kBadArgument;
  const GradArgs& g = *args;
  if (!shape_ok(g.offsets, g.cin, g.cout) || !rows_ok(g.n_in) || !rows_ok(g.n_out) || !g.grad ||
      (g.n_in && !g.x) || (g.n_out && !g.dy) ||
      (!g.table && (g.offsets != 1 || g.n_in != g.n_out)))
    return kBadArgument;
  return guarded([&] {
    const size_t bytes = kernels->grad_scratch(g);
    const int64_t parts = (g.cin + kGradChannels - 1) / kGradChannels;
    parallel_for(threads, parts * g.offsets, [&](int64_t task) {
      // The middle offset is the longest task of a submanifold kernel: it goes first.
      const int64_t step = task / parts, middle = g.offsets / 2;
      const int64_t k = step == 0 ? middle : step <= middle ? step - 1 : step;
      kernels->grad_task(g, static_cast<int>(k), task % parts * kGradChannels,
                         thread_scratch(bytes));
    });
    return kDone;
  });
}

// Keys of the next coarser grid of n sorted keys, to out (room for n); their number to *count.
PCSEG_API int32_t pcseg_coarsen(const int64_t* keys, int64_t n, int64_t* out, int64_t* count,
                                int32_t threads) {
  if (!rows_ok(n) || !count || (n && (!keys || !out))) return kBadArgument;
  return guarded([&] {
    *count = n ? map_coarsen(keys, n, out, threads) : 0;
    return kDone;
  });
}

// table (size^3, n_out): the input row at each offset of each output row, or -1.
PCSEG_API int32_t pcseg_build_table(const int64_t* keys_in, int64_t n_in, const int64_t* keys_out,
                                    int64_t n_out, int32_t size, int32_t stride, int32_t* table,
                                    int32_t threads) {
  if (!rows_ok(n_in) || !rows_ok(n_out) || size < 1 || size > 5 || stride < 1 || stride > 2)
    return kBadArgument;
  if ((n_in && !keys_in) || (n_out && (!keys_out || !table))) return kBadArgument;
  return guarded([&] {
    if (n_out) map_build(keys_in, n_in, keys_out, n_out, size, stride, table, threads);
    return kDone;
  });
}

PCSEG_API int32_t pcseg_invert_table(const int32_t* table, int32_t offsets, int64_t n_out,
                                     int64_t n_in, int32_t* inverse, int32_t threads) {
  if (offsets < 1 || offsets > kMaxOffsets || !rows_ok(n_in) || !rows_ok(n_out))
    return kBadArgument;
  if ((n_out && !table) || (n_in && !inverse)) return kBadArgument;
  return guarded([&] {
    if (n_in) map_invert(table, offsets, n_out, n_in, inverse, threads);
    return kDone;
  });
}

PCSEG_API int32_t pcseg_row_top(const float* values, int64_t rows, int32_t columns, int64_t step,
                                int32_t* winner, float* top) {
  if (columns < 1 || columns > kMaxChannels || step < columns || !rows_ok(rows)) return kBadArgument;
  if (rows && (!values || !winner || !top)) return kBadArgument;
  row_top(values, rows, columns, step, winner, top);
  return kDone;
}

PCSEG_API int32_t pcseg_row_means(const float* values, int64_t n, int32_t columns,
                                  const int64_t* used, const int32_t* group, int64_t count,
                                  int64_t groups, float* means) {
  if (columns < 1 || columns > kMaxChannels || !rows_ok(n) || !rows_ok(count) || !rows_ok(groups))
    return kBadArgument;
  if ((n && !values) || (count && (!used || !group)) || (groups && !means)) return kBadArgument;
  return guarded([&] {
    return row_means(values, n, columns, used, group, count, groups, means) ? kDone : kBadArgument;
  });
}

// Adds looks (count, columns) to distinct rows of a store (n, columns + 2) that are faded before:
// sums; number of looks; column of the largest sum, which is the winner. Leaves in `look` how far
// each sum is below the largest, times (1 + share (number - 1)) / number.
PCSEG_API int32_t pcseg_row_accumulate(float* store, int64_t n, int32_t columns, const int64_t* at,
                                       const float* fade, float* look, int64_t count, float share,
                                       int32_t* winner) {
  if (columns < 1 || columns > kMaxChannels || !rows_ok(n) || !rows_ok(count)) return kBadArgument;
  if ((n && !store) || (count && (!at || !fade || !look || !winner))) return kBadArgument;
  return row_accumulate(store, n, columns, at, fade, look, count, share, winner) ? kDone
                                                                                 : kBadArgument;
}

// Distinct rows hit (count), which of them each of n keys has (-1: no room), and the first key of
// each; new keys get rows of zeros. `hit` and `first` hold n.
PCSEG_API int32_t pcseg_voxel_locate(const VoxelTable* table, const int64_t* keys, int64_t n,
                                     float expired, int64_t* hit, int32_t* voxel, int64_t* first,
                                     int64_t* count) {
  if (!table || !count || !rows_ok(n) || (n && (!keys || !hit || !voxel || !first)))
    return kBadArgument;
  if (table->bits < 1 || table->bits > 30 || table->columns < 1 || table->columns > kMaxChannels)
    return kBadArgument;
  if (!table->slots || !table->rows) return kBadArgument;
  *count = voxel_locate(*table, keys, n, expired, hit, voxel, first);
  return kDone;
}
