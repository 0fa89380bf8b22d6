/* SPDX-License-Identifier: Apache-2.0 */
/* Voxels and neighbor tables of a sweep: the inputs of a network that `pcseg export` wrote.
 *
 * C99; no torch, no Python. Link libpcseg_native.so, or compile maps.cpp, pool.cpp and
 * sweep_tables.cpp of this folder into a program. Functions that are declared here keep their
 * meaning while PCSEG_TABLES_VERSION stays the same.
 *
 *   pcseg_sweep* sweep = pcseg_sweep_new(&settings);            // settings: from student.json
 *   pcseg_sweep_build(sweep, points, points + 3, count, 4, 2);  // rows of x, y, z, intensity
 *   pcseg_sweep_features(sweep);                                // input "features"
 *   pcseg_sweep_table(sweep, index, &table);                    // the other 13 inputs
 *   // run the network: logits of pcseg_sweep_rows(sweep, 0) voxels
 *   pcseg_sweep_voxels(sweep)[i];                               // the voxel of point i
 *   pcseg_sweep_free(sweep);
 *
 * Level 0 is the grid of the settings; each further level doubles the edges of the voxels. The
 * voxels of a level are its occupied cells, sorted by x, y, z. Offsets (dx, dy, dz) of a table are
 * in lexicographic order, dz fastest: -1 to 1 in "neighbors", 0 to 1 in "children" and "parents".
 *
 * Tables hold rows of features. A missing neighbor is the number of rows of the level that the
 * table reads: the network appends a row of zeros there. No entry is negative.
 *
 *   index   name             shape            entry (k, i)
 *   0..4    neighbors_L      (27, rows of L)  row on level L of the neighbor of voxel i at offset k
 *   5..8    children_L       (8, rows of L)   row on level L - 1 of child k of voxel i; L = 1..4
 *   9..12   parents_L        (8, rows of L)   row on level L + 1 of the parent of voxel i if voxel
 *                                             i is its child k, else missing; L = 0..3
 */
#ifndef PCSEG_H_
#define PCSEG_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define PCSEG_EXPORT __attribute__((visibility("default")))
#else
#define PCSEG_EXPORT
#endif

#define PCSEG_TABLES_VERSION 1
#define PCSEG_LEVELS 5
#define PCSEG_TABLES 13
#define PCSEG_MAX_FEATURES 9

/* Results of functions. */
enum { PCSEG_DONE = 0, PCSEG_BAD_ARGUMENT = 1, PCSEG_NO_MEMORY = 2 };

/* How a network wants its voxels. student.json gives each value. */
typedef struct pcseg_settings {
  int32_t cylindrical;   /* 0: voxels of x, y, z; 1: of radius, azimuth, z */
  double voxel_size[3];  /* edges [m]; the azimuth in rad */
  double max_range_m;    /* farther points get no voxel */
  int32_t features;      /* number of input features, 1 to PCSEG_MAX_FEATURES */
  int32_t feature[PCSEG_MAX_FEATURES]; /* what each is, from pcseg_feature */
  float divisor[PCSEG_MAX_FEATURES];   /* divides the value of a point */
} pcseg_settings;

/* One table; valid until the next build. */
typedef struct pcseg_table {
  const char* name;      /* of the input of the network, such as "neighbors_0" */
  const int32_t* values; /* (offsets, rows), row-major; never null */
  int32_t offsets;
  int64_t rows;
} pcseg_table;

/* Memory of a sweep, reused from build to build. One thread at a time may use it. */
typedef struct pcseg_sweep pcseg_sweep;

/* PCSEG_TABLES_VERSION of the library. */
PCSEG_EXPORT int32_t pcseg_tables_version(void);

/* Number of a feature: "x", "y", "z", "range", "intensity", "one", "offset_x", "offset_y" or
 * "offset_z"; -1 for other names. */
PCSEG_EXPORT int32_t pcseg_feature(const char* name);

/* NULL if a setting is out of range or memory is short. The settings are copied. */
PCSEG_EXPORT pcseg_sweep* pcseg_sweep_new(const pcseg_settings* settings);
PCSEG_EXPORT void pcseg_sweep_free(pcseg_sweep* sweep);

/* Voxels, features and tables of a sweep of `count` points, on up to `threads` threads.
 *
 * xyz: x, y, z [m] of the first point, in the frame of the sensor (x forward, z up).
 * intensity: of the first point, scaled to 0..1; other values are clipped, NaN is 0. NULL: all 0.
 * step: floats from one point to the next, at least 3 for xyz alone.
 *
 * Points that are not finite, exactly zero, or beyond max_range_m get no voxel. After an error the
 * sweep has no voxels. */
PCSEG_EXPORT int32_t pcseg_sweep_build(pcseg_sweep* sweep, const float* xyz, const float* intensity,
                                       int64_t count, int64_t step, int32_t threads);

/* Voxels of a level, 0 to PCSEG_LEVELS - 1; -1 for other levels. */
PCSEG_EXPORT int64_t pcseg_sweep_rows(const pcseg_sweep* sweep, int32_t level);

/* (rows of level 0, features) mean input features of the voxels; never null. */
PCSEG_EXPORT const float* pcseg_sweep_features(const pcseg_sweep* sweep);

/* (count) the row of each point on level 0, -1 for points without a voxel; never null. */
PCSEG_EXPORT const int32_t* pcseg_sweep_voxels(const pcseg_sweep* sweep);

/* Table `index`, 0 to PCSEG_TABLES - 1. */
PCSEG_EXPORT int32_t pcseg_sweep_table(const pcseg_sweep* sweep, int32_t index, pcseg_table* table);

#ifdef __cplusplus
}
#endif
#endif
