// SPDX-License-Identifier: Apache-2.0
// Distances of boxes from above, as pcseg_core/online/thing_parts.py and track_filter.py have them.
#include <algorithm>
#include <cmath>
#include <vector>

#include "native.h"

namespace pcseg {
namespace {

// As Rectangles.table: a center, a heading, its cosine and sine, extents along and across it, and
// heights.
struct Rectangle {
  double x, y, yaw, cos, sin, length, width, bottom, top;

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

  // Along and across another box.
  Extents(const Rectangle& box, const Rectangle& axes)
      : Extents(box, box.cos * axes.cos + box.sin * axes.sin,
                box.sin * axes.cos - box.cos * axes.sin) {}
};

struct CostArgs {
  const Rectangle *tracks, *things;
  const double* variance;  // (count) of the positions of tracks, and of a measured edge [m^2]
  double* cost;            // (count, seen)
  int64_t count, seen;
  double excess_m, most_excess, middle_m;  // as in track_filter.py
  double most;                             // higher costs are infinite
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

// The distance of the centers alone tells that a thing is too far from a track: the larger shift is
// at least as long as its larger part along two axes, but for half of the extents of both.
bool is_far(const CostArgs& a, const Rectangle& track, const Rectangle& thing, double variance) {
  const double x = thing.x - track.x, y = thing.y - track.y;
  const double extents = track.length + track.width + thing.length + thing.width;
  const double shift = std::sqrt((x * x + y * y) / 2) - extents / 2;
  return shift > 0 && shift * shift > a.most * variance;
}

double cost_of(const CostArgs& a, const Rectangle& track, const Rectangle& thing,
               double variance) {
  if (is_far(a, track, thing, variance)) return HUGE_VAL;
  const double own[] = {track.along(thing.x, thing.y), track.across(thing.x, thing.y)};
  const double other[] = {-thing.along(track.x, track.y), -thing.across(track.x, track.y)};
  const bool odd = std::fmod(std::nearbyint((thing.yaw - track.yaw) / std::acos(0.0)), 2) != 0;
  const double cost = std::min(cost_along(a, track, Extents(thing, track), own, false, variance),
                               cost_along(a, track, Extents(thing, 1, 0), other, odd, variance));
  return cost > a.most ? HUGE_VAL : cost;
}

struct PartArgs {
  const Rectangle* boxes;
  const int64_t* groups;
  const double* limits;  // (count of limits, 4) group, height from which it holds, length, width
  int64_t* numbers;      // thing of each box
  int64_t count, limit_count, most_pairs;
  double sensor[2];
  double behind_m, beside_m, behind_share, low_m, long_m, step_m;  // as in thing_parts.py
  int64_t face_group;
  double faces_m, faces_share, rise_m;
};

struct Corners {
  double x[4], y[4];

  explicit Corners(const Rectangle& box) {
    constexpr double kX[] = {-0.5, 0.5, 0.5, -0.5}, kY[] = {-0.5, -0.5, 0.5, 0.5};
    for (int k = 0; k < 4; ++k) {
      const double along = kX[k] * box.length, across = kY[k] * box.width;
      x[k] = along * box.cos - across * box.sin + box.x;
      y[k] = along * box.sin + across * box.cos + box.y;
    }
  }
};

// Corners of a box, and the angle in which it is seen, from the direction of its middle.
struct Seen : Corners {
  double away, facing, low = HUGE_VAL, high = -HUGE_VAL;

  Seen(const Rectangle& box, const double sensor[2]);
};

double wrapped(double angle) {
  const double pi = std::acos(-1.0);
  const double turned = std::fmod(angle + pi, 2 * pi);
  return (turned < 0 ? turned + 2 * pi : turned) - pi;
}

Seen::Seen(const Rectangle& box, const double sensor[2])
    : Corners(box),
      away(std::hypot(box.x - sensor[0], box.y - sensor[1])),
      facing(std::atan2(box.y - sensor[1], box.x - sensor[0])) {
  for (int k = 0; k < 4; ++k) {
    const double turn = wrapped(std::atan2(y[k] - sensor[1], x[k] - sensor[0]) - facing);
    low = std::min(low, turn), high = std::max(high, turn);
  }
}

// Least distance of the corners of a box from another one.
double corner_gap(const Rectangle& box, const Corners& other) {
  double least = HUGE_VAL;
  for (int k = 0; k < 4; ++k)
    least = std::min(least, std::max(std::fabs(box.along(other.x[k], other.y[k])) - box.length / 2,
                                     std::fabs(box.across(other.x[k], other.y[k])) - box.width / 2));
  return least;
}

// No corner of another box is nearer to a box than this.
double least_gap(const Rectangle& box, const Rectangle& other) {
  return std::max(std::fabs(box.along(other.x, other.y)) - box.length / 2,
                  std::fabs(box.across(other.x, other.y)) - box.width / 2) -
         (other.length + other.width) / 2;
}

struct Pair {
  double gap;
  int64_t one, two;
  bool solid;
};

// Of two boxes of one group: below which gap they can be parts of one thing, and whether they are
// solid, as join_parts of thing_parts.py.
double reach_of(const PartArgs& a, const std::vector<Seen>& seen, Pair& pair) {
  const Seen &one = seen[pair.one], &two = seen[pair.two];
  const Rectangle &first = a.boxes[pair.one], &second = a.boxes[pair.two];
  const double turn = wrapped(two.facing - one.facing);
  const double common =
      std::min(one.high, turn + two.high) - std::max(one.low, turn + two.low);
  const double angles[] = {one.high - one.low, two.high - two.low};
  const bool wide = std::max(first.length, first.width) > a.long_m &&
                    std::max(second.length, second.width) > a.long_m;
  if (a.groups[pair.one] == a.face_group && wide &&
      common >= a.faces_share * std::max(angles[0], angles[1])) {
    const double higher = (second.bottom + second.top) / 2 - (first.bottom + first.top) / 2;
    pair.solid = (two.away > one.away ? higher : -higher) > a.rise_m;
    return a.faces_m;
  }
  return common >= a.behind_share * std::min(angles[0], angles[1]) ? a.behind_m : a.beside_m;
}

// is_one of thing_parts.py.
bool is_one(const PartArgs& a, const std::vector<Seen>& seen, const std::vector<int64_t>& chosen,
            bool solid) {
  double bottom = HUGE_VAL, top = -HUGE_VAL, lowest = HUGE_VAL, highest = -HUGE_VAL;
  int64_t long_ones = 0;
  for (const int64_t k : chosen) {
    bottom = std::min(bottom, a.boxes[k].bottom), top = std::max(top, a.boxes[k].top);
    if (std::max(a.boxes[k].length, a.boxes[k].width) <= a.long_m) continue;
    lowest = std::min(lowest, a.boxes[k].bottom), highest = std::max(highest, a.boxes[k].bottom);
    ++long_ones;
  }
  if (!solid && top - bottom < a.low_m && long_ones > 1 && highest - lowest < a.step_m) return false;
  const double group = static_cast<double>(a.groups[chosen[0]]);
  for (const int64_t k : chosen) {
    const Rectangle& axes = a.boxes[k];
    double low[] = {HUGE_VAL, HUGE_VAL}, high[] = {-HUGE_VAL, -HUGE_VAL};
    for (const int64_t other : chosen)
      for (int c = 0; c < 4; ++c) {
        const double x = seen[other].x[c], y = seen[other].y[c];
        const double at[] = {axes.along(x, y), axes.across(x, y)};
        for (int axis = 0; axis < 2; ++axis)
          low[axis] = std::min(low[axis], at[axis]), high[axis] = std::max(high[axis], at[axis]);
      }
    const double one = high[0] - low[0], two = high[1] - low[1];
    for (const double* limit = a.limits; limit < a.limits + 4 * a.limit_count; limit += 4)
      if (limit[0] == group && top - bottom >= limit[1] && std::max(one, two) <= limit[2] &&
          std::min(one, two) <= limit[3])
        return true;
  }
  return false;
}

// Pairs of boxes that are near enough to be parts of one thing, the nearest first.
std::vector<Pair> near_pairs(const PartArgs& a, const std::vector<Seen>& seen) {
  const double reach = std::max({a.faces_m, a.behind_m, a.beside_m});
  std::vector<Pair> pairs;
  for (int64_t i = 0; i < a.count; ++i)
    for (int64_t j = i + 1; j < a.count; ++j) {
      const Rectangle &one = a.boxes[i], &two = a.boxes[j];
      if (a.groups[i] != a.groups[j]) continue;
      if (std::min(least_gap(one, two), least_gap(two, one)) > reach) continue;
      Pair pair{std::min(corner_gap(one, seen[j]), corner_gap(two, seen[i])), i, j, false};
      if (pair.gap < reach && pair.gap < reach_of(a, seen, pair)) pairs.push_back(pair);
    }
  std::stable_sort(pairs.begin(), pairs.end(),
                   [](const Pair& one, const Pair& two) { return one.gap < two.gap; });
  if (static_cast<int64_t>(pairs.size()) > a.most_pairs) pairs.resize(a.most_pairs);
  return pairs;
}

int32_t join(const PartArgs& a) {
  std::vector<Seen> seen;
  for (int64_t k = 0; k < a.count; ++k) seen.emplace_back(a.boxes[k], a.sensor);
  std::vector<int64_t> thing(a.count), both;
  for (int64_t k = 0; k < a.count; ++k) thing[k] = k;
  for (const Pair& pair : near_pairs(a, seen)) {
    const int64_t one = thing[pair.one], two = thing[pair.two];
    if (one == two) continue;
    both.clear();
    for (int64_t k = 0; k < a.count; ++k)
      if (thing[k] == one || thing[k] == two) both.push_back(k);
    if (is_one(a, seen, both, pair.solid))
      for (const int64_t k : both) thing[k] = one;
  }
  std::vector<int64_t> rank(a.count + 1, 0);
  for (int64_t k = 0; k < a.count; ++k) rank[thing[k] + 1] = 1;
  for (int64_t k = 0; k < a.count; ++k) rank[k + 1] += rank[k];
  for (int64_t k = 0; k < a.count; ++k) a.numbers[k] = rank[thing[k]];
  return kDone;
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

// Distance (boxes, others) of boxes from others, by the corners of both; infinite from `most` on.
PCSEG_API int32_t pcseg_gaps(const Rectangle* boxes, int64_t count, const Rectangle* others,
                             int64_t n, double most, double* gap) {
  if (!boxes_ok(boxes, count) || !boxes_ok(others, n) || (count && n && !gap)) return kBadArgument;
  for (const Rectangle* box = boxes; box < boxes + count; ++box)
    for (const Rectangle* other = others; other < others + n; ++other, ++gap) {
      *gap = HUGE_VAL;
      if (std::min(least_gap(*box, *other), least_gap(*other, *box)) > most) continue;
      const double nearer =
          std::min(corner_gap(*box, Corners(*other)), corner_gap(*other, Corners(*box)));
      if (nearer < most) *gap = nearer;
    }
  return kDone;
}

// Share (boxes, others) of boxes, or of the others, that is in both: of the smaller one along each
// axis of a box, or of the other. Extents below `thin_m` are taken for that.
PCSEG_API int32_t pcseg_overlap(const Rectangle* boxes, int64_t count, const Rectangle* others,
                                int64_t n, double thin_m, int32_t of_others, double* share) {
  if (!boxes_ok(boxes, count) || !boxes_ok(others, n) || (count && n && !share))
    return kBadArgument;
  for (const Rectangle* box = boxes; box < boxes + count; ++box) {
    const double own[] = {std::max(box->length, thin_m), std::max(box->width, thin_m)};
    for (const Rectangle* other = others; other < others + n; ++other, ++share) {
      const double distance[] = {std::fabs(box->along(other->x, other->y)),
                                 std::fabs(box->across(other->x, other->y))};
      const double most = std::max(other->length + other->width, thin_m);
      *share = 0;
      if (2 * distance[0] > own[0] + most || 2 * distance[1] > own[1] + most) continue;
      const Extents seen(*other, *box);
      const double size[] = {std::max(seen.along, thin_m), std::max(seen.across, thin_m)};
      *share = 1;
      for (int axis = 0; axis < 2; ++axis) {
        const double smaller = std::min(own[axis], size[axis]);
        const double common = std::min((own[axis] + size[axis]) / 2 - distance[axis], smaller);
        *share *= std::max(common, 0.0) / (of_others ? size[axis] : smaller);
      }
    }
  }
  return kDone;
}

// Whether a part of each other can be in a box or beside it, by a margin, to found (boxes, others).
PCSEG_API int32_t pcseg_beside(const Rectangle* boxes, int64_t count, const Rectangle* others,
                               int64_t n, double margin_m, uint8_t* found) {
  if (!boxes_ok(boxes, count) || !boxes_ok(others, n) || (count && n && !found))
    return kBadArgument;
  for (const Rectangle* box = boxes; box < boxes + count; ++box)
    for (const Rectangle* other = others; other < others + n; ++other, ++found) {
      const Extents seen(*other, *box);
      *found = std::fabs(box->along(other->x, other->y)) <=
                   (box->length + seen.along) / 2 + margin_m &&
               std::fabs(box->across(other->x, other->y)) <=
                   (box->width + seen.across) / 2 + margin_m;
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

// See PartArgs: which boxes are parts of one thing, join_parts of thing_parts.py.
PCSEG_API int32_t pcseg_join_parts(const PartArgs* args) {
  if (!args || !boxes_ok(args->boxes, args->count) || !rows_ok(args->limit_count) ||
      args->most_pairs < 0)
    return kBadArgument;
  if (args->limit_count && !args->limits) return kBadArgument;
  if (args->count && (!args->groups || !args->numbers)) return kBadArgument;
  return guarded([&] { return join(*args); });
}
