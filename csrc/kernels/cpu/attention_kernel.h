// The CPU attention kernel: quantize and pack K and V once, then attend block by block of query rows.
//
// One parallel region whose threads take items from one list, in this order:
//   1. reduce   per chunk of 512 keys: sums of K (for its mean) and channel maxima of V (for its scales)
//   2. pack     per chunk: groups of 64 keys of K and V, quantized, in the layout that the tiles read
//   3. attend   per (sequence, head, block of query rows): for each key block and strip of rows: Q K^T, mask,
//               softmax, P V
// An item waits only for the earlier items of its own head, so a thread that the system has descheduled holds up nobody
// but those who need what it is working on. Chunks do not depend on the number of threads, and neither does the result.
#pragma once
#include <math.h>
#include <omp.h>
#include <sched.h>

#include "cpu/attention_tile.h"
#include "cpu/forward.h"

namespace sage::cpu {
namespace {

template <class Isa, int kQkBits, int kPvBits>
class Forward {
 public:
  static constexpr int kBlockK = kPvBits == 8 ? 256 : 128;  // keys per softmax step

  static size_t workspace_bytes(ForwardParams const& params) { return Forward(params).layout(nullptr); }

  static void run(ForwardParams const& params) {
    Forward self(params);
    self.layout(static_cast<char*>(params.workspace));
    self.index_sequences();
    int64_t const chunks = self.num_chunks_ * params.num_heads_kv, items = 2 * chunks + self.num_tasks_;
    int64_t next = 0;
#pragma omp parallel num_threads(self.useful_threads())
    {
      char* const scratch = self.scratch_ + omp_get_thread_num() * self.scratch_bytes();
      for (int64_t i; (i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < items;) {
        if (i < chunks)
          self.reduce_chunk(i);
        else if (i < 2 * chunks)
          self.pack_chunk(i - chunks);
        else
          self.attend(i - 2 * chunks, scratch);
      }
    }
  }

 private:
  using F = typename Isa::F;
  using QkOperand = Operand<Isa, kQkBits>;
  using PvOperand = Operand<Isa, kPvBits>;
  static constexpr int kRows = Isa::kRows, W = Isa::kLanes;
  static constexpr int kChunk = 512, kChunkGroups = kChunk / kGroup;
  static constexpr int kBlockGroups = kBlockK / kGroup;
  // Query rows per task: a multiple of every kRows, as are its halves down to 48.
  static constexpr int64_t kMaxBlockM = 192;

  struct SequenceIndex {
    int64_t first_group, first_chunk, first_task;  // before this sequence, summed over the earlier ones, per head
  };
  struct Position {
    int32_t batch;
    int64_t head, index;  // of a chunk or a block of query rows in its sequence
  };

  explicit Forward(ForwardParams const& params)
      : p_(params), dim_(padded_head_dim(params.head_dim)), smooth_(params.smooth_k) {
    // Upper bounds: each sequence can end in a partial group and chunk.
    int64_t const rows_k = params.varlen ? params.total_k : params.batch * params.sequences.seqlen_k;
    max_groups_ = rows_k / kGroup + params.batch;
    max_chunks_ = rows_k / kChunk + params.batch;
    int64_t const rows_q = params.varlen ? params.total_q : params.batch * params.sequences.seqlen_q;
    block_m_ = kMaxBlockM;
    while (block_m_ > 48 && ceil_div(rows_q, block_m_) * params.num_heads_q < 4 * params.num_threads) block_m_ /= 2;
  }

  // Places every array in the workspace and returns its size.
  size_t layout(char* base) {
    size_t offset = 0;
    auto const place = [&](auto*& pointer, int64_t count) {
      pointer = reinterpret_cast<typename std::remove_reference<decltype(pointer)>::type>(base + offset);
      offset += round_up(count * sizeof(*pointer), 64);
    };
    int64_t const heads = p_.num_heads_kv, groups = max_groups_ * heads, chunks = max_chunks_ * heads;
    place(sequence_index_, p_.batch + 1);
    place(chunk_sums_, chunks * dim_);
    place(chunk_amax_bits_, chunks * dim_);
    place(chunk_finite_, chunks);
    place(reduced_, p_.batch * heads);
    place(packed_, p_.batch * heads);
    place(k_mean_, p_.batch * heads * dim_);
    place(v_scale_, p_.batch * heads * dim_);
    place(k_seeds_, groups * kGroup);
    place(k_scales_, groups * kGroup);
    place(keys_, groups * key_group_bytes());
    place(values_, groups * value_group_bytes());
    place(scratch_, p_.num_threads * scratch_bytes());
    return offset;
  }
  int64_t key_group_bytes() const { return int64_t{kGroup} * dim_ * QkOperand::kSize; }
  int64_t value_group_bytes() const { return int64_t{kGroup} * dim_ * PvOperand::kSize; }

  // Per thread: one block of query rows and one strip of scores. Whole pages, so that threads share no cache line.
  struct Scratch {
    char* query;             // [block_m][dim] operands
    float* out;              // [block_m][dim]
    float* row_scale;        // [strips][W]: logits in base 2 per unit of score
    float* lse_offset;       // [strips][W]: what smoothing K took away from the logits, natural log
    bool* poisoned;          // [strips][W]: the row has a non-finite input
    StripState<Isa>* state;  // [strips]
    float* scores;           // [kRows][kBlockK]
    char* probabilities;     // [kRows][kBlockK] operands
  };
  int64_t scratch_bytes() const {
    int64_t const strips = block_m_ / kRows;
    return round_up(block_m_ * dim_ * (QkOperand::kSize + 4) + strips * (W * 12 + int64_t{sizeof(StripState<Isa>)}) +
                        kRows * kBlockK * (4 + PvOperand::kSize) + 8 * 64,
                    4096);
  }
  Scratch scratch(char* base) const {
    int64_t const strips = block_m_ / kRows;
    auto const take = [&](int64_t bytes) {
      char* const result = base;
      base += round_up(bytes, 64);
      return result;
    };
    Scratch s;
    s.query = take(block_m_ * dim_ * QkOperand::kSize);
    s.out = reinterpret_cast<float*>(take(block_m_ * dim_ * 4));
    s.row_scale = reinterpret_cast<float*>(take(strips * W * 4));
    s.lse_offset = reinterpret_cast<float*>(take(strips * W * 4));
    s.poisoned = reinterpret_cast<bool*>(take(strips * W));
    s.state = reinterpret_cast<StripState<Isa>*>(take(strips * sizeof(StripState<Isa>)));
    s.scores = reinterpret_cast<float*>(take(kRows * kBlockK * 4));
    s.probabilities = take(kRows * kBlockK * PvOperand::kSize);
    return s;
  }

  void index_sequences() {
    SequenceIndex next{0, 0, 0};
    for (int32_t b = 0; b < p_.batch; ++b) {
      Sequence const sequence = p_.sequences[b];
      sequence_index_[b] = next;
      next.first_group += ceil_div(sequence.seqlen_k, kGroup);
      next.first_chunk += ceil_div(sequence.seqlen_k, kChunk);
      next.first_task += ceil_div(sequence.seqlen_q, block_m_);
    }
    sequence_index_[p_.batch] = next;
    num_chunks_ = next.first_chunk;
    num_tasks_ = next.first_task * p_.num_heads_q;
    for (int64_t head = 0; head < int64_t{p_.batch} * p_.num_heads_kv; ++head) reduced_[head] = packed_[head] = 0;
  }

  // Another thread pays off from about 20 microseconds of work on: 2^19 multiply-adds per matmul of a short problem.
  int useful_threads() const {
    double work = 0;
    for (int32_t b = 0; b < p_.batch; ++b) {
      Sequence const sequence = p_.sequences[b];
      work += static_cast<double>(sequence.seqlen_q + 16) * sequence.seqlen_k * dim_ * p_.num_heads_q;
    }
    double const limit = work / (1 << 19);
    return limit < 2 ? 1 : limit < p_.num_threads ? static_cast<int>(limit) : p_.num_threads;
  }

  // Finds item i among per-head items that are counted by `first` and ordered (sequence, head, index).
  Position locate(int64_t i, int64_t heads, int64_t SequenceIndex::*first) const {
    int32_t low = 0, high = p_.batch;
    while (high - low > 1) {
      int32_t const middle = low + (high - low) / 2;
      (sequence_index_[middle].*first * heads <= i ? low : high) = middle;
    }
    int64_t const begin = sequence_index_[low].*first, count = sequence_index_[low + 1].*first - begin;
    i -= begin * heads;
    return {low, i / count, i % count};
  }

  // Where a sequence and head of K and V starts among per-head items.
  int64_t first_of(int32_t batch, int64_t head, int64_t SequenceIndex::*first) const {
    int64_t const begin = sequence_index_[batch].*first, count = sequence_index_[batch + 1].*first - begin;
    return begin * p_.num_heads_kv + head * count;
  }

  // Counts a chunk of a head as through: what this thread wrote becomes visible to whoever sees the count.
  static void arrive(int64_t* count) { __atomic_fetch_add(count, 1, __ATOMIC_RELEASE); }

  // Waits until all chunks of a head are through. Each was taken by a running thread before the caller's item was.
  static void wait(int64_t const* count, int64_t chunks) {
    for (int spins = 0; __atomic_load_n(count, __ATOMIC_ACQUIRE) < chunks; ++spins)
      if (spins > 1000) sched_yield();  // about 10 microseconds
  }

  void reduce_chunk(int64_t i) const {
    Position const at = locate(i, p_.num_heads_kv, &SequenceIndex::first_chunk);
    Sequence const sequence = p_.sequences[at.batch];
    if (sequence.seqlen_k <= kChunk) return;  // pack_chunk reduces an only chunk itself, while it is in the cache
    reduce(i, at, sequence);
    arrive(&reduced_[at.batch * p_.num_heads_kv + at.head]);
  }

  void reduce(int64_t i, Position const& at, Sequence const& sequence) const {
    int64_t const begin = at.index * kChunk, end = min64(begin + kChunk, sequence.seqlen_k);
    if (smooth_) sum_rows<Isa>(head_rows(p_.k, at, sequence.row_k), begin, end, chunk_sums_ + i * dim_);
    channel_abs_max<Isa>(head_rows(p_.v, at, sequence.row_k), begin, end, chunk_amax_bits_ + i * dim_);
  }

  void pack_chunk(int64_t i) const {
    Position const at = locate(i, p_.num_heads_kv, &SequenceIndex::first_chunk);
    Sequence const sequence = p_.sequences[at.batch];
    int64_t const chunks = ceil_div(sequence.seqlen_k, kChunk), first_chunk = i - at.index;
    int64_t const head = at.batch * p_.num_heads_kv + at.head;
    if (chunks == 1)
      reduce(i, at, sequence);
    else
      wait(&reduced_[head], chunks);
    alignas(64) float mean[256], scale[256], inverse[256];
    int32_t amax_bits[256];
    for (int c = 0; c < dim_; ++c) mean[c] = 0, amax_bits[c] = 0;
    for (int64_t chunk = first_chunk; chunk < first_chunk + chunks; ++chunk)
      for (int c = 0; c < dim_; ++c) {
        int32_t const bits = chunk_amax_bits_[chunk * dim_ + c];
        amax_bits[c] = amax_bits[c] > bits ? amax_bits[c] : bits;
        if (smooth_) mean[c] += chunk_sums_[chunk * dim_ + c];
      }
    for (int c = 0; c < dim_; ++c) {
      mean[c] /= static_cast<float>(sequence.seqlen_k);
      Scale const channel(amax_bits[c], kValueMax<kPvBits>);
      inverse[c] = channel.inverse;
      scale[c] = channel.finite ? channel.scale : __builtin_nanf("");
    }
    if (at.index == 0) {
      memcpy(k_mean_ + head * dim_, mean, dim_ * sizeof(float));
      memcpy(v_scale_ + head * dim_, scale, dim_ * sizeof(float));
    }
    Rows const k = head_rows(p_.k, at, sequence.row_k), v = head_rows(p_.v, at, sequence.row_k);
    int64_t const first_group = first_of(at.batch, at.head, &SequenceIndex::first_group);
    bool finite = true;
    for (int64_t row = at.index * kChunk; row < min64((at.index + 1) * kChunk, sequence.seqlen_k); row += kGroup) {
      int64_t const group = first_group + row / kGroup;
      int const count = static_cast<int>(min64(kGroup, sequence.seqlen_k - row));
      finite &= pack_keys<Isa, kQkBits>(k, row, count, mean, keys_ + group * key_group_bytes(),
                                        k_seeds_ + group * kGroup, k_scales_ + group * kGroup);
      pack_values<Isa, kPvBits>(v, row, count, inverse, values_ + group * value_group_bytes());
    }
    chunk_finite_[i] = finite;
    arrive(&packed_[head]);
  }

  void attend(int64_t i, char* scratch_base) const {
    Position at = locate(i, p_.num_heads_q, &SequenceIndex::first_task);
    Sequence const sequence = p_.sequences[at.batch];
    Mask const mask{sequence.seqlen_q, sequence.seqlen_k, p_.causal, p_.window_left, p_.window_right};
    // Causal blocks grow with the row: the heavy ones first leave the light ones to even out the threads.
    if (p_.causal) at.index = ceil_div(sequence.seqlen_q, block_m_) - 1 - at.index;
    int64_t const first_row = at.index * block_m_, rows = min64(block_m_, sequence.seqlen_q - first_row);
    int64_t const last_row = first_row + rows - 1, strips = ceil_div(rows, kRows);
    int64_t const head_kv = at.head / (p_.num_heads_q / p_.num_heads_kv);
    int64_t const first_group = first_of(at.batch, head_kv, &SequenceIndex::first_group);
    HeadMask const head_mask(p_.mask, at.batch, at.head);

    Scratch const s = scratch(scratch_base);
    wait(&packed_[at.batch * p_.num_heads_kv + head_kv], ceil_div(sequence.seqlen_k, kChunk));
    load_queries(s, at, sequence, first_row, rows, head_kv);
    for (int64_t j = 0; j < rows_of(strips) * dim_; ++j) s.out[j] = 0;

    int64_t const end_group = ceil_div(mask.col_end(last_row), kGroup);
    for (int64_t block = mask.col_begin(first_row) / kBlockK; block * kBlockGroups < end_group; ++block)
      for (int64_t strip = 0; strip < strips; ++strip) {
        int64_t const row = first_row + strip * kRows, strip_last = min64(row + kRows - 1, last_row);
        int64_t const begin = max64(block * kBlockGroups, mask.col_begin(row) / kGroup);
        int64_t const end = min64((block + 1) * kBlockGroups, ceil_div(mask.col_end(strip_last), kGroup));
        if (begin >= end) continue;
        bool const masked =
            head_mask.data || mask.col_begin(strip_last) > begin * kGroup || mask.col_end(row) < end * kGroup;
        attend_strip(s, strip, first_group, begin, static_cast<int>(end - begin), masked, row, last_row, mask,
                     head_mask);
      }
    store_outputs(s, at, sequence, first_row, rows, head_kv);
  }

  void load_queries(Scratch const& s, Position const& at, Sequence const& sequence, int64_t first_row, int64_t rows,
                    int64_t head_kv) const {
    Rows const q = head_rows(p_.q, at, sequence.row_q);
    float const* mean = k_mean_ + (at.batch * p_.num_heads_kv + head_kv) * dim_;
    bool keys_finite = true, shifts_lse = p_.lse && smooth_ && sequence.seqlen_k > 0;
    int64_t const first_chunk = first_of(at.batch, head_kv, &SequenceIndex::first_chunk);
    for (int64_t c = 0; c < ceil_div(sequence.seqlen_k, kChunk); ++c) keys_finite &= chunk_finite_[first_chunk + c];
    alignas(64) float x[256];
    for (int64_t r = 0; r < rows_of(ceil_div(rows, kRows)); ++r) {
      int64_t const slot = r / kRows * W + r % kRows;
      char* const query = s.query + r * dim_ * QkOperand::kSize;
      if (r >= rows) {  // padding of the last strip
        memset(query, 0, dim_ * QkOperand::kSize);
        s.row_scale[slot] = 0;
        continue;
      }
      auto bits = Isa::zero();
      F shift = Isa::set(0.f);
      q.each(first_row + r, first_row + r + 1, [&](auto const* row) {
        visit_row<Isa>(row, p_.head_dim, [&](int c, F value) {
          Isa::store(x + c, value);
          bits = Isa::max_abs_bits(bits, value);
          if (shifts_lse) shift = Isa::fma(value, Isa::load(mean + c), shift);
        });
      });
      Scale const scale(Isa::max(bits), kQueryMax<kQkBits>);
      // The sign of the softmax scale goes into the row, so that scores and logits order alike.
      pack_query<Isa, kQkBits>(x, dim_, p_.softmax_scale < 0 ? -scale.inverse : scale.inverse, query);
      s.row_scale[slot] = scale.scale * fabsf(p_.softmax_scale) * kLog2e;
      s.lse_offset[slot] = Isa::sum(shift) * p_.softmax_scale;
      s.poisoned[slot] = !scale.finite || !keys_finite;
    }
    for (int64_t strip = 0; strip < ceil_div(rows, kRows); ++strip) s.state[strip].reset();
  }

  __attribute__((always_inline)) void attend_strip(Scratch const& s, int64_t strip, int64_t first_group, int64_t begin,
                                                   int groups, bool masked, int64_t row, int64_t last_row,
                                                   Mask const& mask, HeadMask const& head_mask) const {
    F row_max[kRows];
    for (F& top : row_max) top = Isa::set(-kInfinity);
    int64_t const group = first_group + begin;
    char const* query = s.query + strip * kRows * dim_ * QkOperand::kSize;
    for (int g = 0; g < groups; ++g)
      qk_tile<Isa, kQkBits>(query, dim_, keys_ + (group + g) * key_group_bytes(), k_seeds_ + (group + g) * kGroup,
                            k_scales_ + (group + g) * kGroup, s.scores + g * kGroup, kBlockK, row_max);
    alignas(64) float ones[W];
    float const* row_scale = s.row_scale + strip * W;
    if (masked) {
      mask_strip<Isa>(s.scores, kBlockK, groups, begin * kGroup, row, last_row, mask, head_mask, row_scale, row_max,
                      s.poisoned + strip * W);
      Isa::store(ones, Isa::set(1.f));
      row_scale = ones;  // scores are logits now
    }
    alignas(64) float old_factor[W], new_factor[W];
    auto* const softmax = p_.lse ? softmax_strip<Isa, kPvBits, true> : softmax_strip<Isa, kPvBits, false>;
    softmax(s.scores, kBlockK, groups, row_max, row_scale, s.probabilities, kBlockK, s.state[strip], old_factor,
            new_factor);
    pv<Isa::kVecs>(s, strip, group, groups, 0, old_factor, new_factor);
  }

  // P V for the channel tiles from vector `first` on: whole tiles of kTileVecs vectors, then narrower ones.
  template <int kTileVecs>
  __attribute__((always_inline)) void pv(Scratch const& s, int64_t strip, int64_t group, int groups, int first,
                                         float const* old_factor, float const* new_factor) const {
    int const vectors = dim_ / W;
    for (; first + kTileVecs <= vectors; first += kTileVecs)
      pv_tile<Isa, kPvBits, kTileVecs>(
          s.probabilities, kBlockK,
          values_ + group * value_group_bytes() + int64_t{first} * W * kGroup * PvOperand::kSize, value_group_bytes(),
          groups, old_factor, new_factor, s.out + strip * kRows * dim_ + first * W, dim_);
    if constexpr (kTileVecs > 1)
      if (first < vectors) pv<kTileVecs - 1>(s, strip, group, groups, first, old_factor, new_factor);
  }

  void store_outputs(Scratch const& s, Position const& at, Sequence const& sequence, int64_t first_row, int64_t rows,
                     int64_t head_kv) const {
    float const* v_scale = v_scale_ + (at.batch * p_.num_heads_kv + head_kv) * dim_;
    int64_t const size = p_.dtype == DType::kFloat32 ? 4 : 2;
    char* const out =
        static_cast<char*>(p_.out.data) + (batch_offset(at.batch) * p_.out.stride_batch + at.head * p_.out.stride_head +
                                           (sequence.row_q + first_row) * p_.out.stride_seq) *
                                              size;
    float* const lse = p_.lse ? p_.lse + lse_row(at, sequence) + first_row : nullptr;
    for (int64_t r = 0; r < rows; ++r) {
      StripState<Isa> const& state = s.state[r / kRows];
      int64_t const lane = r % kRows, slot = r / kRows * W + lane;
      float* const x = s.out + r * dim_;
      bool const visible = state.sum[lane] > 0;
      float const inverse = s.poisoned[slot] ? __builtin_nanf("") : 1.f / state.sum[lane];
      for (int c = 0; c < dim_; c += W) {
        F const scaled = Isa::mul(Isa::mul(Isa::load(x + c), Isa::set(inverse)), Isa::load(v_scale + c));
        Isa::store(x + c, visible ? scaled : Isa::set(0.f));
      }
      with_float_type(p_.dtype, [&](auto type) {
        store_row<Isa>(x, p_.head_dim, reinterpret_cast<decltype(type)*>(out + r * p_.out.stride_seq * size));
      });
      if (lse)
        lse[r] = !visible           ? -kInfinity
                 : s.poisoned[slot] ? __builtin_nanf("")
                                    : state.max[lane] * kLn2 + logf(state.exact_sum[lane]) + s.lse_offset[slot];
    }
  }

  // LSE is (batch, num_heads_q, seqlen_q), or (num_heads_q, total_q) for packed tensors.
  int64_t lse_row(Position const& at, Sequence const& sequence) const {
    return p_.varlen ? at.head * p_.total_q + sequence.row_q
                     : (at.batch * p_.num_heads_q + at.head) * sequence.seqlen_q;
  }
  Rows head_rows(TensorView const& view, Position const& at, int64_t first_row) const {
    return Rows(view, p_.dtype, p_.head_dim, batch_offset(at.batch), at.head, first_row);
  }
  int64_t batch_offset(int32_t batch) const { return p_.varlen ? 0 : batch; }
  static int64_t rows_of(int64_t strips) { return strips * kRows; }

  ForwardParams const& p_;
  int const dim_;  // padded head dim
  bool const smooth_;
  int64_t max_groups_, max_chunks_, block_m_;
  int64_t num_chunks_ = 0, num_tasks_ = 0;

  SequenceIndex* sequence_index_;  // [batch + 1]
  float* chunk_sums_;              // [chunks][dim] of K
  int32_t* chunk_amax_bits_;       // [chunks][dim] of V
  bool* chunk_finite_;             // [chunks]: all of K is finite
  int64_t *reduced_, *packed_;     // [batch][head]: chunks that are through
  float *k_mean_, *v_scale_;       // [batch][head][dim]
  int32_t* k_seeds_;               // [groups][64]
  float* k_scales_;                // [groups][64]
  char *keys_, *values_;           // [groups][...]
  char* scratch_;                  // [threads][scratch_bytes]
};

template <class Isa, int kQkBits, int kPvBits>
constexpr ForwardKernel kernel(char const* name) {
  using Kernel = Forward<Isa, kQkBits, kPvBits>;
  return {Isa::kIsa,
          kQkBits == 8 ? QkFormat::kInt8 : QkFormat::kInt16,
          kPvBits == 8 ? PvFormat::kInt8 : PvFormat::kInt16,
          Kernel::kBlockK,
          kProbabilityMax<kPvBits>,
          kValueMax<kPvBits>,
          name,
          Kernel::workspace_bytes,
          Kernel::run};
}

}  // namespace
}  // namespace sage::cpu
