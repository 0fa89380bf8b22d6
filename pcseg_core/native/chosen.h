// SPDX-License-Identifier: Apache-2.0
// Positions of the points of a block that are chosen, without a branch for each point.
#pragma once
#include <cstdint>
#include <cstring>

namespace pcseg {

// Of each byte: the positions of its bits, lowest first, and how many there are.
struct BitTable {
  uint8_t at[256][8] = {}, count[256] = {};

  constexpr BitTable() {
    for (int byte = 0; byte < 256; ++byte)
      for (int bit = 0; bit < 8; ++bit)
        if (byte >> bit & 1) at[byte][count[byte]++] = static_cast<uint8_t>(bit);
  }
};

inline constexpr BitTable kBits;

// Lists which of up to eight points are chosen, from point `first` on; returns their number.
inline int list_eight(const uint8_t* chosen, int n, int first, uint8_t* rows) {
  uint64_t eight = 0, listed;
  if (n >= 8)
    std::memcpy(&eight, chosen, sizeof(eight));
  else
    std::memcpy(&eight, chosen, n);
  eight |= eight >> 4, eight |= eight >> 2, eight |= eight >> 1;
  // A byte of which bit k tells of point k.
  const uint64_t byte = (eight & 0x0101010101010101u) * 0x0102040810204080u >> 56;
  std::memcpy(&listed, kBits.at[byte], sizeof(listed));
  listed += first * 0x0101010101010101u;
  std::memcpy(rows, &listed, sizeof(listed));
  return kBits.count[byte];
}

// Which of up to 256 points are chosen, and how many; rows has room for eight more.
inline int list_chosen(const uint8_t* chosen, int n, uint8_t* rows) {
  int count = 0;
  for (int i = 0; i < n; i += 8) count += list_eight(chosen + i, n - i, i, rows + count);
  return count;
}

}  // namespace pcseg
