// SPDX-License-Identifier: Apache-2.0
#if defined(__aarch64__)
#define PCSEG_LANES 4
#define PCSEG_REGISTERS 32
#define PCSEG_NAME kernels_neon
#define PCSEG_DOT_BF16 0
#define PCSEG_DOT_INT8 0
#include "kernels.h"
#endif
