// SPDX-License-Identifier: Apache-2.0
// Loops that the compiler turns into vectors, as wide as the CPU has them.
#pragma once

#define PCSEG_INLINE inline __attribute__((always_inline))

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
