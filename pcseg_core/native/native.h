// SPDX-License-Identifier: Apache-2.0
// Sparse convolution on CPUs: what the translation units share, and the C interface.
//
// Each kernel file is compiled for one instruction set and keeps everything in an anonymous
// namespace, so that the linker never mixes code of one set into another. No torch, no Python.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace pcseg {

enum Dtype : int32_t { kFloat32 = 0, kBFloat16 = 1 };

// Output rows that one task computes. Fixed, so that results do not depend on the thread count.
constexpr int64_t kBlockRows = 256;
// Pairs whose products are summed in registers before they are added to a weight gradient.
constexpr int64_t kGradPairs = 256;
// Input channels of one task of a weight gradient.
constexpr int64_t kGradChannels = 64;

// One convolution. Rows of x, residual and out are `ld*` elements apart.
// BFloat16: rows of x hold an even number of elements, zero beyond cin.
struct ConvArgs {
  const void* x;         // (n_in, cin) dtype
  const int32_t* table;  // (offsets, n_out) input row or -1; null: row i reads row i
  const void* weight;    // packed by pcseg_pack
  const float* bias;     // (cout) or null
  const void* residual;  // (n_out, cout) dtype, added before the rectifier, or null
  void* out;             // (n_out, cout) out_dtype
  int64_t n_in, n_out;
  int64_t ldx, ldres, ldout;
  int32_t offsets, cin, cout;
  int32_t dtype, out_dtype, relu;
};

// Gradient of the weights: grad[k] = sum over pairs of outer(x[in], dy[out]).
struct GradArgs {
  const float* x;        // (n_in, cin)
  const float* dy;       // (n_out, cout)
  const int32_t* table;  // (offsets, n_out) or null
  float* grad;           // (offsets, cin, cout), overwritten
  int64_t n_in, n_out;
  int32_t offsets, cin, cout;
};

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
  int32_t lanes;         // floats per vector
  bool native_bfloat16;  // has a bfloat16 dot product; otherwise bfloat16 is emulated
  // Reorder the weights (cin, cout) of one offset into panels, times scale (cout) unless null.
  // With `transpose` the source is (cout, cin).
  void (*pack)(const float* w, const float* scale, int cin, int cout, int dtype, bool transpose,
               void* packed);
  size_t (*packed_bytes)(int offsets, int cin, int cout, int dtype);
  size_t (*conv_scratch)(const ConvArgs&);
  void (*conv_block)(const ConvArgs&, int64_t first, int64_t last, char* scratch);
  size_t (*grad_scratch)(const GradArgs&);
  void (*grad_task)(const GradArgs&, int offset, int64_t first_channel, char* scratch);
};

extern const Kernels kernels_generic;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512bf16;
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
