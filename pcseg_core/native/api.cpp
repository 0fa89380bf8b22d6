// SPDX-License-Identifier: Apache-2.0
// The C interface: checks, choice of the instruction set, distribution of blocks over threads.
// Every function returns a Status.
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "native.h"

namespace pcseg {

void row_top(const float*, int64_t, int32_t, int64_t, int32_t*, float*);
bool row_means(const float*, int64_t, int32_t, const int64_t*, const int32_t*, int64_t, int64_t,
               float*);
bool row_accumulate(float*, int64_t, int32_t, const int64_t*, const float*, float*, int64_t, float,
                    int32_t*);
int64_t voxel_locate(const VoxelTable&, const int64_t*, int64_t, float, int64_t*, int32_t*,
                     int64_t*);

namespace {

constexpr int64_t kMaxIntegerTerms = 1 << 16;  // of 255 * 127 in an int32
constexpr int32_t kMaxOffsets = 125;

#if defined(__x86_64__)
// Older compilers do not know the name of the feature.
bool has_avx_vnni() {
  unsigned eax = 0, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1u << 4) != 0;
}

// Whether this process may use the tiles of AMX. Linux asks for a request per process and refuses it
// if a thread has a small stack for signals.
bool amx_allowed() {
  constexpr unsigned kNeeded = 1u << 22 | 1u << 24 | 1u << 25;  // bfloat16, tiles, int8
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  unsigned eax, ebx, ecx, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if ((edx & kNeeded) != kNeeded) return false;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}
#elif defined(__aarch64__)
// Bits of AT_HWCAP and AT_HWCAP2; older headers do not name them.
constexpr unsigned long kDotProduct = 1ul << 20;           // ASIMDDP
constexpr unsigned long kMatrix = 1ul << 13 | 1ul << 14;  // I8MM, BF16
#endif

const Kernels* const* available() {
  static const Kernels* list[8];
  static const bool ready = [] {
    int n = 0;
    const auto add = [&](bool runs, const Kernels* kernels) {
      if (runs && kernels) list[n++] = kernels;
    };
#if defined(__aarch64__)
    const bool dot = (getauxval(AT_HWCAP) & kDotProduct) != 0;
    add(true, kernels_neon);
    add(dot, kernels_neondot);
    add(dot && (getauxval(AT_HWCAP2) & kMatrix) == kMatrix, kernels_neonbf16);
#else
    add(true, kernels_generic);
#endif
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    const bool bfloat16 = vnni && __builtin_cpu_supports("avx512bf16");
    add(avx2, kernels_avx2);
    add(avx2 && has_avx_vnni(), kernels_avxvnni);
    add(avx512, kernels_avx512);
    add(vnni, kernels_avx512vnni);
    add(bfloat16, kernels_avx512bf16);
    add(bfloat16 && kernels_amx && amx_allowed(), kernels_amx);
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
  return offsets > 0 && offsets <= kMaxOffsets && columns_ok(cin) && columns_ok(cout);
}

bool dtype_ok(int32_t dtype) { return dtype >= kFloat32 && dtype <= kUInt8; }

// Whether pairs were listed from a table of this shape in blocks of `rows`; without pairs row i reads
// row i.
bool pairs_ok(const int32_t* pairs, int64_t n_in, int64_t n_out, int32_t offsets, int64_t rows) {
  if (!pairs) return offsets == 1 && n_in == n_out;
  const PairHead& head = *reinterpret_cast<const PairHead*>(pairs);
  return head.n_in == n_in && head.n_out == n_out && head.offsets == offsets && head.rows == rows;
}

bool conv_ok(const ConvArgs& c, int64_t rows) {
  if (!shape_ok(c.offsets, c.cin, c.cout) || !rows_ok(c.n_in) || !rows_ok(c.n_out)) return false;
  if (!dtype_ok(c.dtype) || !dtype_ok(c.out_dtype)) return false;
  if (!c.weight || (c.n_in && !c.x) || (c.n_out && !c.out)) return false;
  if (!pairs_ok(c.pairs, c.n_in, c.n_out, c.offsets, rows)) return false;
  if (c.dtype == kUInt8 && (!c.scale || int64_t{c.offsets} * c.cin > kMaxIntegerTerms)) return false;
  const int64_t per = channels_per_word(c.dtype), width = (c.cin + per - 1) / per * per;
  return c.ldx % per == 0 && c.ldx >= width && c.ldout >= c.cout && (!c.residual || c.ldres >= c.cout);
}

PairHead pair_head(const Kernels& kernels, int32_t dtype, int32_t offsets, int64_t n_in,
                   int64_t n_out) {
  const int64_t rows = kernels.block_rows(dtype, n_out);
  return {static_cast<int32_t>(n_in), static_cast<int32_t>(n_out), offsets,
          static_cast<int32_t>(rows)};
}

// The pairs of a block where row i reads row i, in `memory`.
Pairs straight_pairs(int64_t first, int rows, char* memory) {
  int32_t *ends = reinterpret_cast<int32_t*>(memory), *source = ends + 2;
  uint16_t* target = reinterpret_cast<uint16_t*>(source + rows);
  ends[0] = 0, ends[1] = rows;
  for (int r = 0; r < rows; ++r) {
    source[r] = static_cast<int32_t>(first + r);
    target[r] = static_cast<uint16_t>(r);
  }
  return {ends, source, target, true};
}

}  // namespace
}  // namespace pcseg

using namespace pcseg;

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

// Words (int32) that pcseg_list_pairs writes, 0 for a bad argument.
PCSEG_API int64_t pcseg_pair_words(int32_t isa, int32_t dtype, int32_t offsets, int64_t n_in,
                                   int64_t n_out) {
  const Kernels* kernels = kernels_at(isa);
  if (!kernels || !dtype_ok(dtype) || !shape_ok(offsets, 1, 1) || !rows_ok(n_in) || !rows_ok(n_out))
    return 0;
  const PairHead head = pair_head(*kernels, dtype, offsets, n_in, n_out);
  return head.start(head.blocks());
}

// The pairs of a table (offsets, n_out) in the order of a convolution of features of `dtype`. Rows
// outside [0, n_in) are absent.
PCSEG_API int32_t pcseg_list_pairs(int32_t isa, int32_t dtype, const int32_t* table,
                                   int32_t offsets, int64_t n_in, int64_t n_out, int32_t* words,
                                   int32_t threads) {
  if (!pcseg_pair_words(isa, dtype, offsets, n_in, n_out) || !words || (n_out && !table))
    return kBadArgument;
  return guarded([&] {
    pairs_list(pair_head(*kernels_at(isa), dtype, offsets, n_in, n_out), table, words, threads);
    return kDone;
  });
}

PCSEG_API int32_t pcseg_conv(int32_t isa, const ConvArgs* args, int32_t threads) {
  const Kernels* kernels = kernels_at(isa);
  if (!kernels || !args) return kBadArgument;
  const int64_t most = kernels->block_rows(args->dtype, args->n_out);
  if (!conv_ok(*args, most)) return kBadArgument;
  return guarded([&] {
    const size_t listed = args->pairs ? 0 : (8 + most * 6 + 63) / 64 * 64;
    const size_t bytes = listed + kernels->conv_scratch(*args);
    parallel_for(threads, (args->n_out + most - 1) / most, [&](int64_t block) {
      char* memory = thread_scratch(bytes);
      const int64_t first = block * most, rest = args->n_out - first;
      const int rows = static_cast<int>(rest < most ? rest : most);
      const Pairs pairs =
          args->pairs ? pairs_of(args->pairs, block) : straight_pairs(first, rows, memory);
      kernels->conv_block(*args, pairs, first, rows, memory + listed);
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
      !pairs_ok(g.pairs, g.n_in, g.n_out, g.offsets, kBlockRows))
    return kBadArgument;
  return guarded([&] {
    const size_t bytes = kernels->grad_scratch(g);
    const int64_t parts = (g.cin + kGradChannels - 1) / kGradChannels;
    // The middle offset is the longest task of a submanifold kernel: step 0 goes first.
    parallel_for(threads, parts * g.offsets, [&](int64_t task) {
      kernels->grad_task(g, static_cast<int>(task / parts), task % parts * kGradChannels,
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
  if (!columns_ok(columns) || step < columns || !rows_ok(rows)) return kBadArgument;
  if (rows && (!values || !winner || !top)) return kBadArgument;
  row_top(values, rows, columns, step, winner, top);
  return kDone;
}

PCSEG_API int32_t pcseg_row_means(const float* values, int64_t n, int32_t columns,
                                  const int64_t* used, const int32_t* group, int64_t count,
                                  int64_t groups, float* means) {
  if (!columns_ok(columns) || !rows_ok(n) || !rows_ok(count) || !rows_ok(groups))
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
  if (!columns_ok(columns) || !rows_ok(n) || !rows_ok(count)) return kBadArgument;
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
  if (table->bits < 1 || table->bits > 30 || !columns_ok(table->columns))
    return kBadArgument;
  if (!table->slots || !table->rows) return kBadArgument;
  *count = voxel_locate(*table, keys, n, expired, hit, voxel, first);
  return kDone;
}
