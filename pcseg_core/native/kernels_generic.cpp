// SPDX-License-Identifier: Apache-2.0
#if !defined(__aarch64__)  // there NEON takes its place: every CPU has it
#define PCSEG_LANES 4
#define PCSEG_REGISTERS 16
#define PCSEG_NAME kernels_generic
#define PCSEG_DOT_BF16 0
#define PCSEG_DOT_INT8 0
#include "kernels.h"
#endif
