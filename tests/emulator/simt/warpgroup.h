// What a warpgroup (four warps) does together on sm90: wgmma and setmaxnreg.
//
// A wgmma reads shared memory and registers, and writes its accumulators, at some point between its commit and the wait
// for it (AsyncTiming): until then the accumulators hold what they held. PTX ISA 9.7.15.
#pragma once
#include <cstdint>
#include <vector>

#include "simt/mma.h"

namespace simt {

enum class Major { kK, kMN };

// wgmma.mma_async.m64nNkK: D = A B (+ D), A 64 x K and B N x K.
struct Wgmma {
  static constexpr int kRows = 16;  // of A and D that a warp works on: 16 w to 16 w + 15 for warp w of the four
  int N, K;
  Element a, b;
  Accumulator accumulator;
  Major a_major, b_major;
  std::vector<uint16_t> a_index;  // A in registers: [lane][value] -> k * kRows + row; empty: A is in shared memory
  std::vector<uint16_t> c_index;  // [lane][value] -> n * kRows + row
  std::vector<int> a_words;       // where in the lane's fragment its registers are, in words
  std::vector<int> c_words;
};

void wgmma_fence();
// `a`, `accumulators`: the lane's fragments; they must live and stay untouched until the wait.
void wgmma_issue(Wgmma const& wgmma, uint64_t a_descriptor, uint32_t const* a, uint64_t b_descriptor,
                 uint32_t* accumulators, bool accumulate);
void wgmma_commit();
void wgmma_wait(int pending);  // until at most `pending` committed groups of this warp are unfinished

// The shared address of element (mn, k) of a matrix that a wgmma descriptor describes, for elements of whole bytes.
uint32_t wgmma_address(uint64_t descriptor, Major major, int element_bytes, int mn, int k);

// setmaxnreg.inc / .dec by all of a warp.
void set_max_registers(int registers, bool increase);

}  // namespace simt
