// SPDX-License-Identifier: Apache-2.0
// Points of a sweep, and what its beams passed: range images of pcseg_core/online/free_space.py.
#pragma once
#include "native.h"

namespace pcseg {

constexpr int kViewColumns = 1024, kViewRows = 128;  // as _COLUMNS and _ROWS
constexpr int kBlock = 256;                          // points in the first-level cache

// As parallel and parallel_for, for work that is soon done: it never waits for a thread that the
// machine gives no time, as OpenMP does.
void parallel_brief(int threads, int64_t tasks, void (*body)(void*, int64_t), void* context);

template <class F>
void brief_for(int threads, int64_t tasks, const F& body) {
  parallel_brief(threads, tasks,
                 [](void* context, int64_t task) { (*static_cast<const F*>(context))(task); },
                 const_cast<F*>(&body));
}

// Points of float32 anywhere in memory; bytes from point to point, and from x to y and y to z.
struct Points {
  const char* xyz;
  int64_t step, axis_step, n;
};

// Some of them, side by side.
struct Block {
  float x[kBlock], y[kBlock], z[kBlock];

  void load(const Points&, int64_t first, int n);
  void move(const float* pose, int n);  // three rows of a rotation and a shift
};

// Images (kViewRows, kViewColumns) of one LiDAR: distance on the ground of the last returns, and
// null or the nearest and farthest of the others. Each is that of its cell and those around it.
struct View {
  const float *reach, *nearest, *farthest;
  float origin[3];
};

struct Views {
  const View* views;
  int32_t count;
  float margin_m;  // by which beams must reach beyond a point
};

// Whether each point of a block was passed by the beams of one LiDAR.
void passed(const Views&, const Block&, int n, uint8_t* found);

// Value of the class of each of n points in a table (classes + 1), the last one for no class.
void find_values(const int32_t* labels, const uint8_t* table, uint32_t classes, int n,
                 uint8_t* values);

bool points_ok(const Points&);
bool views_ok(const Views&);

}  // namespace pcseg
