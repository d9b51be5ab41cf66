#include "simt/warpgroup.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "simt/async_copy.h"
#include "simt/async_proxy.h"
#include "simt/sync.h"
#include "simt/tma.h"

namespace simt {
namespace {

constexpr int kWarps = 4, kM = 64, kMaxN = 256, kMaxK = 32;
constexpr int kPieceBytes = 16;  // what lies together in shared memory whatever the layout

using Issue = Sm90Thread::WgmmaIssue;

// piece(address, mn, k) for every 16 bytes of rows (or columns) [mn_begin, mn_end) of a matrix in shared memory.
template <class Piece>
void for_each_piece(uint64_t descriptor, Major major, Element element, int mn_begin, int mn_end, int K, Piece&& piece) {
  int const bytes = element_bits(element) / 8, per_piece = kPieceBytes / bytes;
  int const mn_step = major == Major::kK ? 1 : per_piece, k_step = major == Major::kK ? per_piece : 1;
  for (int mn = mn_begin; mn < mn_end; mn += mn_step) {
    for (int k = 0; k < K; k += k_step) piece(wgmma_address(descriptor, major, bytes, mn, k), mn, k);
  }
}

// out[k * rows + mn - mn_begin]
void load(char const* what, uint64_t descriptor, Major major, Element element, int mn_begin, int rows, int K,
          float* out) {
  int const per_piece = kPieceBytes * 8 / element_bits(element);
  uint16_t index[kPieceBytes];
  for (int i = 0; i < per_piece; ++i) index[i] = static_cast<uint16_t>(major == Major::kK ? i * rows : i);
  for_each_piece(descriptor, major, element, mn_begin, mn_begin + rows, K, [&](uint32_t address, int mn, int k) {
    check_smem(what, address, kPieceBytes, kPieceBytes);
    check_landed(what, address, kPieceBytes);
    decode_packed(element, machine().cta.smem + address, per_piece, index, out + k * rows + mn - mn_begin);
  });
}

uint64_t hash(Wgmma const& wgmma, uint32_t const* accumulators) {
  uint64_t h = 0;
  for (int word : wgmma.c_words) h = (h ^ accumulators[word]) * 0x9E3779B97F4A7C15u + 1;
  return h | 1;
}

template <class T>
void add_accumulators(Wgmma const& wgmma, int lane, bool accumulate, T const* dot, uint32_t* accumulators) {
  int const count = static_cast<int>(wgmma.c_index.size()) / 32;
  uint16_t const* index = &wgmma.c_index[lane * count];
  bool const fp8 = is_fp8(wgmma.a) && is_fp8(wgmma.b);
  for (int v = 0; v < count; ++v) {
    T const x = dot[index[v]];
    if (wgmma.accumulator == Accumulator::kF16) {
      auto* const half = reinterpret_cast<uint16_t*>(accumulators + wgmma.c_words[v / 2]) + v % 2;
      *half = add_f16(accumulate ? *half : 0, x);
      continue;
    }
    uint32_t* const word = accumulators + wgmma.c_words[v];
    if (wgmma.accumulator == Accumulator::kS32) {
      *word = (accumulate ? *word : 0) + static_cast<uint32_t>(static_cast<int32_t>(x));
      continue;
    }
    float c = 0;
    if (accumulate) std::memcpy(&c, word, sizeof(c));
    c = fp8 ? add_fp8(c, x) : c + static_cast<float>(x);
    std::memcpy(word, &c, sizeof(c));
  }
}

// Decoded operands and products of one wgmma of a warp. On the heap: a shared library gets little thread-local storage.
struct Decoded {
  float a[kMaxK * Wgmma::kRows], b[kMaxK * kMaxN], dot[kMaxN * Wgmma::kRows];
  double exact_dot[kMaxN * Wgmma::kRows];
};

// One wgmma, for the 16 rows of one warp; issue[l] is lane l's.
void execute(Issue const* const* issue, int warp) {
  ++t_stats.mma;
  Issue const& first = *issue[0];
  Wgmma const& wgmma = *first.wgmma;
  static thread_local std::unique_ptr<Decoded> const decoded = std::make_unique<Decoded>();
  auto& [a, b, float_dot, exact_dot] = *decoded;
  for (int lane = 0; lane < 32; ++lane) {
    Issue const& mine = *issue[lane];
    if (mine.wgmma != &wgmma || mine.a_descriptor != first.a_descriptor || mine.b_descriptor != first.b_descriptor) {
      fail("wgmma: lanes 0 and %d of a warp issued different ones", lane);
    }
    if (mine.accumulators_issued && mine.accumulators_issued != hash(wgmma, mine.accumulators)) {
      fail("wgmma: lane %d wrote to the accumulators between the issue and warpgroup_wait", lane);
    }
    if (!mine.a) continue;
    uint32_t registers[4];
    for (int i = 0; i < 4; ++i) registers[i] = mine.a[wgmma.a_words[i]];
    if (!std::equal(registers, registers + 4, mine.a_issued)) {
      fail("wgmma: lane %d wrote to the registers of A between the issue and warpgroup_wait", lane);
    }
    int const count = static_cast<int>(wgmma.a_index.size()) / 32;
    decode_packed(wgmma.a, registers, count, &wgmma.a_index[lane * count], a);
  }
  if (!first.a) {
    load("wgmma operand A", first.a_descriptor, wgmma.a_major, wgmma.a, warp * Wgmma::kRows, Wgmma::kRows, wgmma.K, a);
  }
  load("wgmma operand B", first.b_descriptor, wgmma.b_major, wgmma.b, 0, wgmma.N, wgmma.K, b);
  auto const finish = [&](auto* dot) {
    multiply(Wgmma::kRows, wgmma.N, wgmma.K, a, b, dot);
    for (int lane = 0; lane < 32; ++lane) {
      add_accumulators(wgmma, lane, issue[lane]->accumulate, dot, issue[lane]->accumulators);
    }
  };
  wgmma.accumulator == Accumulator::kF16 ? finish(exact_dot) : finish(float_dot);
}

// Tells ThreadSanitizer what a warp's part of a wgmma reads.
[[maybe_unused]] void note_reads(Issue const& issue, int warp) {
  Wgmma const& wgmma = *issue.wgmma;
  auto const note = [](uint32_t address, int, int) { note_read(machine().cta.smem + address, kPieceBytes); };
  if (!issue.a) {
    int const row = warp * Wgmma::kRows;
    for_each_piece(issue.a_descriptor, wgmma.a_major, wgmma.a, row, row + Wgmma::kRows, wgmma.K, note);
  }
  for_each_piece(issue.b_descriptor, wgmma.b_major, wgmma.b, 0, wgmma.N, wgmma.K, note);
}

// What must hold of operands in shared memory at the issue; checked once per warpgroup.
void check_operands(Issue const& issue) {
  Wgmma const& wgmma = *issue.wgmma;
  auto const check = [](uint32_t address, int, int) {
    check_smem("wgmma operand", address, kPieceBytes, kPieceBytes);
    check_landed("wgmma operand", address, kPieceBytes);
    check_visible("wgmma reads", address, kPieceBytes);
  };
  if (!issue.a) for_each_piece(issue.a_descriptor, wgmma.a_major, wgmma.a, 0, kM, wgmma.K, check);
  for_each_piece(issue.b_descriptor, wgmma.b_major, wgmma.b, 0, wgmma.N, wgmma.K, check);
}

int warp_in_group() { return static_cast<int>(self().index / 32 % kWarps); }

bool in_flight(Sm90Thread const& state, uint32_t const* accumulators) {
  for (auto const& group : state.wgmma_groups) {
    for (Issue const& issue : group) {
      if (issue.accumulators == accumulators) return true;
    }
  }
  return false;
}

// The warp meets and, if `choose` (called once) says so, finishes all but the last `pending` committed groups.
template <class Choose>
void finish_groups(void const* tag, char const* name, int pending, Choose&& choose) {
  Sm90Thread& state = sm90_thread();
#if SIMT_TSAN
  for (size_t g = 0; g + 1 + pending < state.wgmma_groups.size(); ++g) {
    for (Issue const& issue : state.wgmma_groups[g]) note_reads(issue, warp_in_group());
  }
  hb_release(self().warp);
#endif
  int const warp = warp_in_group();
  warp_collective(tag, name, kFullWarp, &state, [&](void** slots) {
    if (!choose()) return;
    auto** const lanes = reinterpret_cast<Sm90Thread**>(slots);
    while (static_cast<int>(lanes[0]->wgmma_groups.size()) - 1 > pending) {
      size_t const size = lanes[0]->wgmma_groups.front().size(), groups = lanes[0]->wgmma_groups.size();
      for (int lane = 1; lane < 32; ++lane) {
        if (lanes[lane]->wgmma_groups.size() != groups || lanes[lane]->wgmma_groups.front().size() != size) {
          fail("%s: lanes 0 and %d have issued different numbers of wgmma", name, lane);
        }
      }
      for (size_t i = 0; i < size; ++i) {
        Issue const* issue[32];
        for (int lane = 0; lane < 32; ++lane) issue[lane] = &lanes[lane]->wgmma_groups.front()[i];
        execute(issue, warp);
      }
      for (int lane = 0; lane < 32; ++lane) lanes[lane]->wgmma_groups.pop_front();
    }
  });
  hb_acquire(self().warp);
}

}  // namespace

uint32_t wgmma_address(uint64_t descriptor, Major major, int element_bytes, int mn, int k) {
  auto const field = [descriptor](int shift) { return static_cast<uint32_t>(descriptor >> shift & 0x3fff) << 4; };
  uint32_t const start = field(0), leading = field(16), stride = field(32);
  int const layout = static_cast<int>(descriptor >> 62);  // 0: no swizzle, 1: 128 bytes, 2: 64 bytes, 3: 32 bytes
  int const bits = layout == 0 ? 0 : 4 - layout;
  uint32_t const span = 16u << bits;  // bytes that lie together but for the swizzle
  uint32_t const u = static_cast<uint32_t>(mn), v = static_cast<uint32_t>(k), es = static_cast<uint32_t>(element_bytes);
  uint32_t address = start;
  if (major == Major::kK) {  // 8 rows of `span` bytes of K, `stride` to the next 8 rows
    address += u / 8 * stride + u % 8 * span;
    address += layout == 0 ? v * es / span * leading + v * es % span : v * es;
  } else {  // 8 columns (k) of `span` bytes of MN
    uint32_t const to_span = layout == 0 ? stride : leading, to_8 = layout == 0 ? leading : stride;
    address += u * es / span * to_span + u * es % span + v % 8 * span + v / 8 * to_8;
  }
  return swizzled(address, bits);
}

void wgmma_fence() {
  NoTrack no_track;
  sm90_thread().wgmma_fenced = true;
}

void wgmma_issue(Wgmma const& wgmma, uint64_t a_descriptor, uint32_t const* a, uint64_t b_descriptor,
                 uint32_t* accumulators, bool accumulate) {
  NoTrack no_track;
  Sm90Thread& state = sm90_thread();
  if (self().cta->nthreads < (self().index / 128 + 1) * 128) fail("wgmma by a warpgroup of fewer than 128 threads");
  if (!state.wgmma_fenced) {
    fail("wgmma without warpgroup_arrive (wgmma.fence) since the start or the last warpgroup_wait");
  }
  Issue issue{&wgmma, a_descriptor, b_descriptor, a, {}, accumulators, 0, accumulate};
  if (a) {
    for (int i = 0; i < 4; ++i) issue.a_issued[i] = a[wgmma.a_words[i]];
  }
  if (!in_flight(state, accumulators)) issue.accumulators_issued = hash(wgmma, accumulators);
  if (self().index % 128 == 0) check_operands(issue);
  state.wgmma_groups.back().push_back(issue);
}

void wgmma_commit() {
  static char const tag = 0;
  {
    NoTrack no_track;
    sm90_thread().wgmma_groups.emplace_back();
  }
  Machine& m = machine();
  if (m.config.async == AsyncTiming::kLate) return;
  finish_groups(&tag, "wgmma.commit_group", 0,
                [&m] { return m.config.async == AsyncTiming::kEarly || m.random.one_in(2); });
}

void wgmma_wait(int pending) {
  static char const tag = 0;
  // As late as it gets: whoever could overwrite an operand does so now.
  machine().config.async == AsyncTiming::kLate ? yield() : maybe_yield();
  finish_groups(&tag, "wgmma.wait_group", pending, [] { return true; });
  NoTrack no_track;
  sm90_thread().wgmma_fenced = false;
}

void set_max_registers(int registers, bool increase) {
  static char const tag = 0;
  constexpr int kLeast = 24, kMost = 256, kStep = 8, kRegistersPerBlock = 64 * 1024;
  char const* const name = increase ? "setmaxnreg.inc" : "setmaxnreg.dec";
  if (registers < kLeast || registers > kMost || registers % kStep != 0) {
    fail("%s: the number of registers must be %d to %d and a multiple of %d, got %d", name, kLeast, kMost, kStep,
         registers);
  }
  unsigned const num_threads = self().cta->nthreads;
  if (num_threads % (32 * kWarps) != 0) {
    fail("%s: the block must consist of warpgroups of 128 threads, it has %u threads", name, num_threads);
  }
  warp_collective(&tag, name, kFullWarp, nullptr, [&](void**) {
    auto& history = sm90_block().setmaxnreg;
    history.resize(num_threads / 32);
    unsigned const warp = self().index / 32, first_warp = warp / kWarps * kWarps;
    auto& mine = history[warp];
    if (!mine.empty() && (increase ? registers < mine.back().registers : registers > mine.back().registers)) {
      fail("%s to %d registers by a warp that has %d", name, registers, mine.back().registers);
    }
    mine.push_back({registers, increase});
    for (unsigned other = first_warp; other < first_warp + kWarps; ++other) {
      if (history[other].size() < mine.size()) continue;
      auto const& theirs = history[other][mine.size() - 1];
      if (theirs.registers != registers || theirs.increase != increase) {
        fail("%s to %d registers by warp %u, to %d by warp %u of the same warpgroup", name, registers, warp,
             theirs.registers, other);
      }
    }
    int total = 0;
    for (auto const& of_warp : history) {
      if (of_warp.empty()) return;  // it has as many as the compiler gave the kernel, which is not known here
      total += of_warp.back().registers * 32;
    }
    if (total > kRegistersPerBlock) {
      fail("%s to %d registers: the block's warps then have %d registers, of %d", name, registers, total,
           kRegistersPerBlock);
    }
  });
}

void Sm90Block::check_at_exit() {
  for (size_t warp = 0; warp < setmaxnreg.size(); ++warp) {
    size_t const first_warp = warp / kWarps * kWarps;
    if (setmaxnreg[warp].size() != setmaxnreg[first_warp].size()) {
      fail("setmaxnreg: warp %zu executed it %zu times, warp %zu of the same warpgroup %zu times", first_warp,
           setmaxnreg[first_warp].size(), warp, setmaxnreg[warp].size());
    }
  }
}

}  // namespace simt
