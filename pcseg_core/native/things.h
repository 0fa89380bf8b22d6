// SPDX-License-Identifier: Apache-2.0
// Points in the order of the thing that they belong to: Grouped of pcseg_core/online/boxes.py.
#pragma once
#include "native.h"

namespace pcseg {

struct GroupedArgs {
  const double* points;            // (n, 3)
  const int64_t *starts, *counts;  // (things) rows of the points of each
  int64_t n, things;
};

bool grouped_ok(const GroupedArgs&);

}  // namespace pcseg
