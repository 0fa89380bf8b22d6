// SPDX-License-Identifier: Apache-2.0
#if defined(__x86_64__)
#define PCSEG_LANES 8
#define PCSEG_REGISTERS 16
#define PCSEG_NAME kernels_avx2
#define PCSEG_DOT_BF16 0
#define PCSEG_DOT_INT8 0
#include "kernels.h"
#endif
