// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#define PCSEG_LANES 8
#define PCSEG_REGISTERS 16
#define PCSEG_NAME kernels_avxvnni
#define PCSEG_DOT_BF16 0
#define PCSEG_DOT_INT8 1
#define PCSEG_BASE kernels_avx2
#if defined(__AVXVNNI__)
#include "kernels.h"
#else
#include "native.h"
const pcseg::Kernels* const pcseg::PCSEG_NAME = nullptr;
#endif
#endif
