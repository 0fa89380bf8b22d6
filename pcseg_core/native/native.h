// SPDX-License-Identifier: Apache-2.0
// Sparse convolution on CPUs: what the translation units share, and the C interface.
//
// Each kernel file is compiled for one instruction set and keeps everything in an anonymous
// namespace, so that the linker never mixes code of one set into another. No torch, no Python.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <exception>

#define PCSEG_API extern "C" __attribute__((visibility("default")))

namespace pcseg {

// What the functions of the C interface return.
enum Status : int32_t { kDone = 0, kBadArgument = 1, kNoMemory = 2, kDoesNotFit = 3 };

// The status that a body returns, also where memory is short.
template <class F>
int32_t guarded(const F& body) {
  try {
    return body();
  } catch (const std::exception&) {
    return kNoMemory;
  }
}

// Rows and columns of an array that the library takes.
constexpr int32_t kMaxColumns = 1 << 16;
inline bool rows_ok(int64_t n) { return n >= 0 && n < INT32_MAX; }
inline bool columns_ok(int64_t n) { return n > 0 && n <= kMaxColumns; }

// Keys of voxels hold batch, x, y, z from the highest bits down; see pcseg_core/sparse/keys.py.
constexpr int kKeyBits = 18;                             // as COORD_BITS: of each of x, y and z
constexpr int32_t kKeyLimit = int32_t{1} << (kKeyBits - 1);  // as COORD_LIMIT
constexpr float kKeyReach = 131067.0f;                   // as _REACH of pcseg_core/sparse/voxels.py

enum Dtype : int32_t { kFloat32 = 0, kBFloat16 = 1, kUInt8 = 2 };

inline int element_bytes(int dtype) { return dtype == kFloat32 ? 4 : dtype == kBFloat16 ? 2 : 1; }

// Input channels that one 32-bit word of features holds.
inline int channels_per_word(int dtype) { return 4 / element_bytes(dtype); }

// Output rows that one task computes, where the kernels do not ask for more. Fixed, so that results
// do not depend on the thread count.
constexpr int64_t kBlockRows = 256;
// Pairs whose products are summed in registers before they are added to a weight gradient: their rows
// stay in the first-level cache.
constexpr int64_t kGradPairs = 64;
// Input channels of one task of a weight gradient.
constexpr int64_t kGradChannels = 64;

// The kernel offset that step `step` adds: the middle one first, then in order.
inline int offset_at(int step, int offsets) {
  return step == 0 ? offsets / 2 : step <= offsets / 2 ? step - 1 : step;
}

// What a buffer of pairs was listed from; the buffer begins with it. Each block of `rows` output rows
// follows in `stride()` words: whether it is straight, ends, sources, targets (two in a word).
struct PairHead {
  int32_t n_in, n_out, offsets, rows;

  int64_t blocks() const { return (int64_t{n_out} + rows - 1) / rows; }
  int64_t stride() const { return 2 + offsets + int64_t{offsets} * rows * 3 / 2; }
  int64_t start(int64_t block) const { return 4 + block * stride(); }
};

// The pairs of one block. Those of step s lie from ends[s] to ends[s + 1].
struct Pairs {
  const int32_t* ends;
  const int32_t* source;   // input row
  const uint16_t* target;  // output row, within the block
  bool straight;           // step 0 has all rows, and each reads the input row of its number

  int count(int step) const { return ends[step + 1] - ends[step]; }
};

void pairs_list(const PairHead&, const int32_t* table, int32_t* words, int threads);
Pairs pairs_of(const int32_t* words, int64_t block);

// One convolution. Rows of x, residual and out are `ld*` elements apart.
// BFloat16 and UInt8: rows of x hold whole words of 32 bits. Those of bfloat16 are zero beyond cin.
// UInt8: products with int8 weights are summed in int32 and multiplied by `scale`. A residual q means
// q * residual_factor + residual_shift; a result v is stored as round(v * out_factor + out_shift).
struct ConvArgs {
  const void* x;         // (n_in, cin) dtype
  const int32_t* pairs;  // of pcseg_list_pairs for this dtype; null: row i reads row i
  const void* weight;    // packed by pcseg_pack
  const float* bias;     // (cout) or null
  const void* residual;  // (n_out, cout) dtype, added before the rectifier, or null
  void* out;             // (n_out, cout) out_dtype
  int64_t n_in, n_out;
  int64_t ldx, ldres, ldout;
  int32_t offsets, cin, cout;
  int32_t dtype, out_dtype, relu;
  float residual_factor, residual_shift, out_factor, out_shift;
  const float* scale;  // (cout) for x of UInt8
};

// Gradient of the weights: grad[k] = sum over pairs of outer(x[in], dy[out]).
struct GradArgs {
  const float* x;        // (n_in, cin)
  const float* dy;       // (n_out, cout)
  const int32_t* pairs;  // of pcseg_list_pairs for float32; null: row i reads row i
  float* grad;           // (offsets, cin, cout), overwritten
  int64_t n_in, n_out;
  int32_t offsets, cin, cout;
};

int64_t map_coarsen(const int64_t* keys, int64_t n, int64_t* out, int threads);
void map_build(const int64_t* keys_in, int64_t n_in, const int64_t* keys_out, int64_t n_out,
               int size, int stride, int32_t* table, int threads);
void map_invert(const int32_t* table, int offsets, int64_t n_out, int64_t n_in, int32_t* inverse,
                int threads);

// A hash table by open addressing, of 2^bits slots that each have a row of values.
struct VoxelSlot {
  int64_t key;    // -1: never used
  float seen;     // when its row was last written; -infinity if never
  int32_t group;  // scratch of a search
};

struct VoxelTable {
  VoxelSlot* slots;
  float* rows;  // (2^bits, columns)
  int32_t bits, columns;
};

struct Kernels {
  const char* name;
  bool native_bfloat16;  // has a bfloat16 dot product; otherwise bfloat16 is emulated
  // Output rows of one block, even and below 65536; it must not depend on the number of threads.
  int64_t (*block_rows)(int dtype, int64_t n_out);
  // Reorder the weights (cin, cout) of one offset into panels, times scale (cout) unless null.
  // With `transpose` the source is (cout, cin). For UInt8 they are rounded to -127..127.
  void (*pack)(const float* w, const float* scale, int cin, int cout, int dtype, bool transpose,
               void* packed);
  size_t (*packed_bytes)(int offsets, int cin, int cout, int dtype);
  size_t (*conv_scratch)(const ConvArgs&);
  void (*conv_block)(const ConvArgs&, const Pairs&, int64_t first, int rows, char* scratch);
  size_t (*grad_scratch)(const GradArgs&);
  void (*grad_task)(const GradArgs&, int step, int64_t first_channel, char* scratch);
};

// Null where the compiler does not know the instructions.
#if defined(__aarch64__)
extern const Kernels* const kernels_neon;
extern const Kernels* const kernels_neondot;
extern const Kernels* const kernels_neonbf16;
#else
extern const Kernels* const kernels_generic;
#endif
#if defined(__x86_64__)
extern const Kernels* const kernels_avx2;
extern const Kernels* const kernels_avxvnni;
extern const Kernels* const kernels_avx512;
extern const Kernels* const kernels_avx512vnni;
extern const Kernels* const kernels_avx512bf16;
extern const Kernels* const kernels_amx;
#endif

// Run body(context, task) for every task, on up to `threads` threads.
void parallel(int threads, int64_t tasks, void (*body)(void*, int64_t), void* context);

template <class F>
void parallel_for(int threads, int64_t tasks, const F& body) {
  parallel(threads, tasks,
           [](void* context, int64_t task) { (*static_cast<const F*>(context))(task); },
           const_cast<F*>(&body));
}

// Memory of the calling thread, at least `bytes`, aligned to a cache line; kept for its next call.
char* thread_scratch(size_t bytes);

}  // namespace pcseg
