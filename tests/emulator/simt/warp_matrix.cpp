#include "simt/warp_matrix.h"

#include <algorithm>
#include <cstring>

#include "simt/async_copy.h"
#include "simt/async_proxy.h"
#include "simt/sync.h"

namespace simt {
namespace {

constexpr int kRowBytes = 16, kRows = 8;

struct Lane {
  uint32_t offset;
  uint32_t* registers;
};

// The extra wavefronts of one phase: its rows fall in 8 groups of 4 banks. Rows of the same address are read at once.
int conflicts(void** slots, int matrix) {
  int worst = 0;
  for (int group = 0; group < kRows; ++group) {
    uint32_t seen[kRows];
    int count = 0;
    for (int r = 0; r < kRows; ++r) {
      uint32_t const offset = static_cast<Lane*>(slots[matrix * kRows + r])->offset;
      if (static_cast<int>(offset / kRowBytes % kRows) != group ||
          std::find(seen, seen + count, offset) != seen + count) {
        continue;
      }
      seen[count++] = offset;
    }
    worst = std::max(worst, count);
  }
  return worst - 1;
}

// Moves between register i of all lanes and the rows of matrix i; exchange(bytes in a row, bytes in a register, count).
template <class Exchange>
void for_each_element(void** slots, int matrices, bool transpose, Exchange exchange) {
  char* const smem = machine().cta.smem;
  for (int i = 0; i < matrices; ++i) {
    char* rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = smem + static_cast<Lane*>(slots[i * kRows + r])->offset;
    for (int t = 0; t < 32; ++t) {
      char* const word = reinterpret_cast<char*>(static_cast<Lane*>(slots[t])->registers + i);
      if (transpose) {
        for (int h = 0; h < 2; ++h) exchange(rows[2 * (t % 4) + h] + t / 4 * 2, word + 2 * h, 2);
      } else {
        exchange(rows[t / 4] + t % 4 * 4, word, 4);
      }
    }
  }
}

bool has_row(int matrices) { return self().lane < static_cast<unsigned>(matrices * kRows); }

uint32_t row_offset(char const* what, void const* row) {
  uint32_t const offset = smem_offset(row);
  check_smem(what, offset, kRowBytes, kRowBytes);
  return offset;
}

}  // namespace

void ldmatrix(int matrices, bool transpose, void const* row, uint32_t* registers) {
  Lane lane{0, registers};
  if (has_row(matrices)) {
    lane.offset = row_offset("ldmatrix", row);
    check_landed("ldmatrix", lane.offset, kRowBytes);
    note_read(smem_at(lane.offset), kRowBytes);
  }
  static char tags[2][5];
  warp_collective(&tags[transpose][matrices], "ldmatrix", kFullWarp, &lane, [&](void** slots) {
    for (int i = 0; i < matrices; ++i) t_stats.ldsm_conflicts += conflicts(slots, i);
    t_stats.ldsm_phases += matrices;
    for_each_element(slots, matrices, transpose,
                     [](char* in_row, char* in_register, int bytes) { std::memcpy(in_register, in_row, bytes); });
  });
}

void stmatrix(int matrices, bool transpose, void* row, uint32_t const* registers) {
  Lane lane{0, const_cast<uint32_t*>(registers)};
  if (has_row(matrices)) {
    lane.offset = row_offset("stmatrix", row);
    check_landed("stmatrix", lane.offset, kRowBytes);
    note_write(smem_at(lane.offset), kRowBytes);
    note_generic_write(self(), lane.offset, kRowBytes);
  }
  static char tags[2][5];
  warp_collective(&tags[transpose][matrices], "stmatrix", kFullWarp, &lane, [&](void** slots) {
    for (int i = 0; i < matrices; ++i) t_stats.stsm_conflicts += conflicts(slots, i);
    t_stats.stsm_phases += matrices;
    for_each_element(slots, matrices, transpose,
                     [](char* in_row, char* in_register, int bytes) { std::memcpy(in_row, in_register, bytes); });
  });
}

}  // namespace simt
