// SPDX-License-Identifier: Apache-2.0
// Loops that the compiler turns into vectors, as wide as the CPU has them.
#pragma once

#include <cstdint>

#define PCSEG_INLINE inline __attribute__((always_inline))

namespace pcseg {

using Four = float __attribute__((vector_size(16)));
using FourInts = int32_t __attribute__((vector_size(16)));

}  // namespace pcseg

// Four values of two vectors of four, by their numbers: 0 to 3 of the first, 4 to 7 of the second.
#if defined(__clang__)
#define PCSEG_SHUFFLE(one, two, ...) __builtin_shufflevector(one, two, __VA_ARGS__)
#else
#define PCSEG_SHUFFLE(one, two, ...) __builtin_shuffle(one, two, ::pcseg::FourInts{__VA_ARGS__})
#endif

// Defines `void name params` from a PCSEG_INLINE function `body` of the same parameters: it runs
// the variant of the widest vectors that this CPU has. `args` are the names of the parameters.
#if defined(__x86_64__)
#define PCSEG_WIDEST(name, body, params, args)                                                   \
  void name##_generic params { body args; }                                                      \
  __attribute__((target("avx2,fma"))) void name##_avx2 params { body args; }                     \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))) void name##_avx512 params {      \
    body args;                                                                                   \
  }                                                                                              \
  void name params {                                                                             \
    static void(*const widest) params = ::pcseg::has_avx512() ? name##_avx512                    \
                                        : ::pcseg::has_avx2() ? name##_avx2                      \
                                                              : name##_generic;                  \
    widest args;                                                                                 \
  }

namespace pcseg {

inline bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

inline bool has_avx512() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

}  // namespace pcseg
#else
#define PCSEG_WIDEST(name, body, params, args) \
  void name params { body args; }
#endif
