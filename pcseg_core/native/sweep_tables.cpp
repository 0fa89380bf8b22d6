// SPDX-License-Identifier: Apache-2.0
// Voxels and neighbor tables of a sweep, for networks outside Python; see pcseg.h.
//
// Voxels and features are those of pcseg_core/sparse/voxels.py and models/student.py: the same
// operations in float32, in the order of the points.
#include "pcseg.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "native.h"

// A fused multiply-add would round once where torch rounds twice.
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

namespace pcseg {
namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr int kChildren = PCSEG_LEVELS, kParents = kChildren + PCSEG_LEVELS - 1;

const char* const kFeatures[] = {"x",   "y",        "z",        "range",   "intensity",
                                 "one", "offset_x", "offset_y", "offset_z"};
enum Feature : int32_t { kX, kY, kZ, kRange, kIntensity, kOne, kOffsetX, kOffsetY, kOffsetZ };

const char* const kTables[PCSEG_TABLES] = {
    "neighbors_0", "neighbors_1", "neighbors_2", "neighbors_3", "neighbors_4",
    "children_1",  "children_2",  "children_3",  "children_4",  "parents_0",
    "parents_1",   "parents_2",   "parents_3"};

int table_offsets(int index) { return index < kChildren ? 27 : 8; }

// The level whose voxels are the columns of a table.
int table_level(int index) {
  if (index < kChildren) return index;
  return index < kParents ? index - kChildren + 1 : index - kParents;
}

struct Place {
  int64_t key;
  int32_t point;
};

// A returned pointer is never null, even of an empty array.
template <class T>
void resize(std::vector<T>& values, int64_t count) {
  if (values.capacity() == 0) values.reserve(1);
  values.resize(static_cast<size_t>(count));
}

bool settings_ok(const pcseg_settings& s) {
  if (s.features < 1 || s.features > PCSEG_MAX_FEATURES || !(s.max_range_m > 0)) return false;
  for (int k = 0; k < s.features; ++k)
    if (s.feature[k] < kX || s.feature[k] > kOffsetZ || !(s.divisor[k] != 0)) return false;
  for (int k = 0; k < 3; ++k) {
    const double reach = s.cylindrical && k == 1 ? kPi : s.max_range_m;
    if (!(s.voxel_size[k] > 0) || !(reach / s.voxel_size[k] < kKeyReach)) return false;
  }
  return true;
}

}  // namespace
}  // namespace pcseg

using namespace pcseg;

struct pcseg_sweep {
  explicit pcseg_sweep(const pcseg_settings& given) : settings(given) { clear(); }

  void clear() {
    for (auto& level : keys) resize(level, 0);
    for (auto& table : tables) resize(table, 0);
    resize(voxels, 0);
    resize(features, 0);
  }

  void build(const float* xyz, const float* intensity, int64_t count, int64_t step, int threads) {
    find_places(xyz, count, step);
    number_voxels(count);
    mean_features(xyz, intensity, count, step);
    for (int level = 1; level < PCSEG_LEVELS; ++level) {
      const auto& finer = keys[level - 1];
      resize(keys[level], finer.size());
      const int64_t rows = finer.empty() ? 0 : map_coarsen(finer.data(), finer.size(),
                                                           keys[level].data(), threads);
      resize(keys[level], rows);
    }
    for (int index = 0; index < PCSEG_TABLES; ++index) build_table(index, threads);
  }

  pcseg_settings settings;
  std::vector<int64_t> keys[PCSEG_LEVELS];
  std::vector<int32_t> tables[PCSEG_TABLES];
  std::vector<int32_t> voxels;
  std::vector<float> features;

 private:
  // Position in voxels along an axis.
  float grid(const float* p, int axis) const {
    float at = p[axis];
    if (settings.cylindrical && axis == 0) at = std::hypot(p[0], p[1]);
    if (settings.cylindrical && axis == 1) at = std::atan2(p[1], p[0]);
    return at / static_cast<float>(settings.voxel_size[axis]);
  }

  void find_places(const float* xyz, int64_t count, int64_t step) {
    const float limit = static_cast<float>(settings.max_range_m * settings.max_range_m);
    places_.clear();
    for (int64_t i = 0; i < count; ++i) {
      const float* p = xyz + i * step;
      const float square = p[0] * p[0] + p[1] * p[1] + p[2] * p[2];
      if (!(square <= limit && square > 0)) continue;  // also not finite
      int64_t key = 0;
      for (int axis = 0; axis < 3; ++axis)
        key = (key << kKeyBits) | (static_cast<int64_t>(std::floor(grid(p, axis))) + kKeyLimit);
      places_.push_back({key, static_cast<int32_t>(i)});
    }
    std::sort(places_.begin(), places_.end(), [](const Place& a, const Place& b) {
      return a.key != b.key ? a.key < b.key : a.point < b.point;
    });
  }

  void number_voxels(int64_t count) {
    voxels.assign(static_cast<size_t>(count), -1);
    keys[0].clear();
    for (const Place& place : places_) {
      if (keys[0].empty() || keys[0].back() != place.key) keys[0].push_back(place.key);
      voxels[place.point] = static_cast<int32_t>(keys[0].size()) - 1;
    }
  }

  void mean_features(const float* xyz, const float* intensity, int64_t count, int64_t step) {
    const int width = settings.features;
    resize(features, 0);
    features.resize(keys[0].size() * width, 0.0f);
    counts_.assign(keys[0].size(), 0);
    for (int64_t i = 0; i < count; ++i) {
      if (voxels[i] < 0) continue;
      ++counts_[voxels[i]];
      float* sum = features.data() + int64_t{voxels[i]} * width;
      for (int k = 0; k < width; ++k) {
        const float* strength = intensity ? intensity + i * step : nullptr;
        sum[k] += value(settings.feature[k], xyz + i * step, strength) / settings.divisor[k];
      }
    }
    for (size_t v = 0; v < counts_.size(); ++v)
      for (int k = 0; k < width; ++k) features[v * width + k] /= static_cast<float>(counts_[v]);
  }

  float value(int32_t feature, const float* p, const float* intensity) const {
    switch (feature) {
      case kRange:
        return std::sqrt(p[0] * p[0] + p[1] * p[1] + p[2] * p[2]);
      case kIntensity:
        return intensity && *intensity > 0 ? std::min(*intensity, 1.0f) : 0.0f;  // 0 for NaN
      case kOne:
        return 1.0f;
      case kOffsetX:
      case kOffsetY:
      case kOffsetZ: {
        const float at = grid(p, feature - kOffsetX);
        return at - std::floor(at) - 0.5f;
      }
      default:
        return p[feature];
    }
  }

  void build_table(int index, int threads) {
    const int level = table_level(index), offsets = table_offsets(index);
    const auto& own = keys[level];
    const auto& other = keys[index < kChildren ? level : index < kParents ? level - 1 : level + 1];
    const int64_t rows = own.size(), missing = other.size();
    auto& table = tables[index];
    resize(table, offsets * rows);
    if (rows == 0) return;
    if (index < kParents) {
      const int edge = index < kChildren ? 3 : 2, stride = index < kChildren ? 1 : 2;
      map_build(other.data(), missing, own.data(), rows, edge, stride, table.data(), threads);
    } else {
      const auto& children = tables[kChildren + level];  // an entry without a child is beyond `rows`
      map_invert(children.data(), offsets, missing, rows, table.data(), threads);
    }
    const int32_t zeros = static_cast<int32_t>(missing);
    for (int32_t& entry : table) entry = entry < 0 ? zeros : entry;
  }

  std::vector<Place> places_;
  std::vector<int32_t> counts_;
};

int32_t pcseg_tables_version(void) { return PCSEG_TABLES_VERSION; }

int32_t pcseg_feature(const char* name) {
  for (int32_t k = 0; name && k < PCSEG_MAX_FEATURES; ++k)
    if (std::strcmp(name, kFeatures[k]) == 0) return k;
  return -1;
}

pcseg_sweep* pcseg_sweep_new(const pcseg_settings* settings) {
  if (!settings || !settings_ok(*settings)) return nullptr;
  try {
    return new pcseg_sweep(*settings);
  } catch (const std::exception&) {
    return nullptr;
  }
}

void pcseg_sweep_free(pcseg_sweep* sweep) { delete sweep; }

int32_t pcseg_sweep_build(pcseg_sweep* sweep, const float* xyz, const float* intensity,
                          int64_t count, int64_t step, int32_t threads) {
  if (!sweep) return PCSEG_BAD_ARGUMENT;
  sweep->clear();
  if (!rows_ok(count) || step < 3 || (count && !xyz)) return PCSEG_BAD_ARGUMENT;
  const int32_t status = guarded([&] {
    sweep->build(xyz, intensity, count, step, threads);
    return PCSEG_DONE;
  });
  if (status) sweep->clear();
  return status;
}

int64_t pcseg_sweep_rows(const pcseg_sweep* sweep, int32_t level) {
  if (!sweep || level < 0 || level >= PCSEG_LEVELS) return -1;
  return static_cast<int64_t>(sweep->keys[level].size());
}

const float* pcseg_sweep_features(const pcseg_sweep* sweep) { return sweep->features.data(); }

const int32_t* pcseg_sweep_voxels(const pcseg_sweep* sweep) { return sweep->voxels.data(); }

int32_t pcseg_sweep_table(const pcseg_sweep* sweep, int32_t index, pcseg_table* table) {
  if (!sweep || !table || index < 0 || index >= PCSEG_TABLES) return PCSEG_BAD_ARGUMENT;
  *table = {kTables[index], sweep->tables[index].data(), table_offsets(index),
            static_cast<int64_t>(sweep->keys[table_level(index)].size())};
  return PCSEG_DONE;
}
