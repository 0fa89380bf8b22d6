// SPDX-License-Identifier: Apache-2.0
// Lists of pairs: the entries of a neighbor table, per block of output rows and kernel offset.
#include "native.h"

namespace pcseg {
namespace {

// Append the pairs of one block, offset after offset.
void list_block(const PairHead& head, const int32_t* table, int64_t first, int32_t* words) {
  const int rows = static_cast<int>(head.n_out - first < head.rows ? head.n_out - first : head.rows);
  const uint32_t limit = static_cast<uint32_t>(head.n_in);  // -1 is large unsigned: absent
  int32_t *ends = words + 1, *source = ends + head.offsets + 1;
  uint16_t* target = reinterpret_cast<uint16_t*>(source + head.offsets * head.rows);
  int n = 0;
  ends[0] = 0;
  for (int step = 0; step < head.offsets; ++step) {
    const int32_t* row = table + int64_t{offset_at(step, head.offsets)} * head.n_out + first;
    for (int r = 0; r < rows; ++r) {
      source[n] = row[r];
      target[n] = static_cast<uint16_t>(r);
      n += static_cast<uint32_t>(row[r]) < limit;
    }
    ends[step + 1] = n;
  }
  words[0] = ends[1] == rows;
  for (int r = 0; r < ends[1]; ++r) words[0] &= source[r] == first + r;
}

}  // namespace

void pairs_list(const PairHead& head, const int32_t* table, int32_t* words, int threads) {
  *reinterpret_cast<PairHead*>(words) = head;
  parallel_for(threads, head.blocks(), [&](int64_t block) {
    list_block(head, table, block * head.rows, words + head.start(block));
  });
}

Pairs pairs_of(const int32_t* words, int64_t block) {
  const PairHead& head = *reinterpret_cast<const PairHead*>(words);
  words += head.start(block);
  const int32_t *ends = words + 1, *source = ends + head.offsets + 1;
  return {ends, source, reinterpret_cast<const uint16_t*>(source + head.offsets * head.rows),
          words[0] != 0};
}

}  // namespace pcseg
