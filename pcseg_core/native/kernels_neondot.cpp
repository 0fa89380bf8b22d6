// SPDX-License-Identifier: Apache-2.0
#if defined(__aarch64__)
#define PCSEG_LANES 4
#define PCSEG_REGISTERS 32
#define PCSEG_NAME kernels_neondot
#define PCSEG_DOT_BF16 0
#define PCSEG_DOT_INT8 1
#define PCSEG_BASE kernels_neon
#if defined(__ARM_FEATURE_DOTPROD)
#include "kernels.h"
#else
#include "native.h"
const pcseg::Kernels* const pcseg::PCSEG_NAME = nullptr;
#endif
#endif
