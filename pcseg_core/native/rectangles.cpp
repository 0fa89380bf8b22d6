// SPDX-License-Identifier: Apache-2.0
// Distances of boxes from above, as pcseg_core/online/thing_parts.py and track_filter.py have them.
#include <algorithm>
#include <cmath>

#include "native.h"

namespace pcseg {
namespace {

// As Rectangles.table: a center, a heading and what belongs to it, and extents along and across it.
struct Rectangle {
  double x, y, yaw, cos, sin, length, width;

  // Of a point from the center, along the heading and across it.
  double along(double px, double py) const { return (px - x) * cos + (py - y) * sin; }
  double across(double px, double py) const { return (py - y) * cos - (px - x) * sin; }
};

// Extents of a box along and across a heading from which it is turned by an angle.
struct Extents {
  double along, across;

  Extents(const Rectangle& box, double cos, double sin) {
    cos = std::fabs(cos), sin = std::fabs(sin);
    along = cos * box.length + sin * box.width;
    across = sin * box.length + cos * box.width;
  }
};

struct CostArgs {
  const Rectangle *tracks, *things;
  const double* variance;  // (count) of the positions of tracks, and of a measured edge [m^2]
  double* cost;            // (count, seen)
  int64_t count, seen;
  double excess_m, most_excess, middle_m;  // as in track_filter.py
};

// Shift along an axis that a thing tells, squared: _shift of track_filter.py.
double squared_shift(double apart, double known, double seen, double middle_m) {
  const double slack = (known - seen) / 2, low = apart + slack, high = apart - slack;
  const double shift = std::fabs(low) <= std::fabs(high) ? low : high, room = std::fabs(slack);
  const bool middle =
      room > middle_m && std::fabs(shift) > room / 2 && std::fabs(apart) < room;
  return middle ? 0.0 : shift * shift;
}

// Squared normalized distance of a thing from a track, along the axes of one of them: `odd` if the
// width of the track lies along the first of these.
double cost_along(const CostArgs& a, const Rectangle& track, const Extents& seen,
                  const double apart[2], bool odd, double variance) {
  const double known[] = {odd ? track.width : track.length, odd ? track.length : track.width};
  const double extent[] = {seen.along, seen.across};
  double total = 0, longer = 0;
  for (int axis = 0; axis < 2; ++axis) {
    total += squared_shift(apart[axis], known[axis], extent[axis], a.middle_m);
    const double excess = std::max(extent[axis] - known[axis] - a.excess_m, 0.0);
    longer += excess * excess;
  }
  return total / variance + std::min(longer, a.most_excess);
}

double cost_of(const CostArgs& a, const Rectangle& track, const Rectangle& thing,
               double variance) {
  const double cos = thing.cos * track.cos + thing.sin * track.sin;
  const double sin = thing.sin * track.cos - thing.cos * track.sin;
  const double own[] = {track.along(thing.x, thing.y), track.across(thing.x, thing.y)};
  const double other[] = {-thing.along(track.x, track.y), -thing.across(track.x, track.y)};
  const bool odd = std::fmod(std::nearbyint((thing.yaw - track.yaw) / std::acos(0.0)), 2) != 0;
  return std::min(cost_along(a, track, Extents(thing, cos, sin), own, false, variance),
                  cost_along(a, track, Extents(thing, 1, 0), other, odd, variance));
}

bool boxes_ok(const Rectangle* boxes, int64_t n) { return rows_ok(n) && (!n || boxes); }

}  // namespace
}  // namespace pcseg

using namespace pcseg;

// Distance (boxes, points) of points from boxes, negative inside. A point has `columns` values, of
// which x and y are the first.
PCSEG_API int32_t pcseg_outside(const Rectangle* boxes, int64_t count, const double* points,
                                int64_t n, int64_t columns, double* found) {
  if (!boxes_ok(boxes, count) || !rows_ok(n) || columns < 2) return kBadArgument;
  if (count && n && (!points || !found)) return kBadArgument;
  for (const Rectangle* box = boxes; box < boxes + count; ++box)
    for (int64_t i = 0; i < n; ++i) {
      const double x = points[columns * i], y = points[columns * i + 1];
      *found++ = std::max(std::fabs(box->along(x, y)) - box->length / 2,
                          std::fabs(box->across(x, y)) - box->width / 2);
    }
  return kDone;
}

// The box of each point (n): the one that it is least outside of, and of several the one whose middle
// is nearest relative to its extents, of which each is at least `thin_m`. A step of `tie_m` outside
// counts as much as the way from the middle to an edge.
PCSEG_API int32_t pcseg_nearest_box(const Rectangle* boxes, int64_t count, const double* points,
                                    int64_t n, int64_t columns, double thin_m, double tie_m,
                                    int64_t* found) {
  if (!boxes_ok(boxes, count) || count < 1 || !rows_ok(n) || columns < 2) return kBadArgument;
  if (n && (!points || !found)) return kBadArgument;
  for (int64_t i = 0; i < n; ++i) {
    const double x = points[columns * i], y = points[columns * i + 1];
    double least = HUGE_VAL;
    found[i] = 0;
    for (int64_t k = 0; k < count; ++k) {
      const double length = std::max(boxes[k].length, thin_m) / 2;
      const double width = std::max(boxes[k].width, thin_m) / 2;
      const double along = std::fabs(boxes[k].along(x, y));
      const double across = std::fabs(boxes[k].across(x, y));
      const double beyond = std::max(std::max(along - length, across - width), 0.0);
      const double distance = beyond + tie_m * std::hypot(along / length, across / width);
      if (distance < least) least = distance, found[i] = k;
    }
  }
  return kDone;
}

// Distances of centers, and extents of the others, along and across boxes: each (2, boxes, others).
PCSEG_API int32_t pcseg_apart(const Rectangle* boxes, int64_t count, const Rectangle* others,
                              int64_t n, double* distance, double* size) {
  if (!boxes_ok(boxes, count) || !boxes_ok(others, n)) return kBadArgument;
  if (count && n && (!distance || !size)) return kBadArgument;
  const int64_t across = count * n;
  for (const Rectangle* box = boxes; box < boxes + count; ++box)
    for (const Rectangle* other = others; other < others + n; ++other, ++distance, ++size) {
      distance[0] = std::fabs(box->along(other->x, other->y));
      distance[across] = std::fabs(box->across(other->x, other->y));
      const Extents seen(*other, other->cos * box->cos + other->sin * box->sin,
                         other->sin * box->cos - other->cos * box->sin);
      size[0] = seen.along;
      size[across] = seen.across;
    }
  return kDone;
}

// See CostArgs: squared normalized distance of each thing from each track.
PCSEG_API int32_t pcseg_track_costs(const CostArgs* args) {
  if (!args || !boxes_ok(args->tracks, args->count) || !boxes_ok(args->things, args->seen))
    return kBadArgument;
  if (args->count && args->seen && (!args->variance || !args->cost)) return kBadArgument;
  double* cost = args->cost;
  for (int64_t t = 0; t < args->count; ++t)
    for (int64_t i = 0; i < args->seen; ++i)
      *cost++ = cost_of(*args, args->tracks[t], args->things[i], args->variance[t]);
  return kDone;
}
