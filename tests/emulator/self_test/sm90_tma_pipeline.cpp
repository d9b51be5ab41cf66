// CUTLASS's PipelineTmaAsync, unmodified, over the replaced barrier classes: a producer thread, a consumer warpgroup.
#include <cute/tensor.hpp>
#include <cutlass/pipeline/sm90_pipeline.hpp>

#include "self_test/check.h"

using namespace cute;

namespace {

constexpr int kStages = 2, kRounds = 7, kConsumers = 128, kStageBytes = 2 * kConsumers;
using Pipeline = cutlass::PipelineTmaAsync<kStages>;

struct SharedStorage {
  alignas(128) uint16_t data[kStages][kConsumers];
  Pipeline::SharedStorage pipeline;
};

enum class Fault { kNone, kNoConsumerWait, kNoRelease };

alignas(16) uint16_t source[kRounds][kConsumers];

// Elements that a consumer found wrong.
int run(Fault fault) {
  int wrong = 0;
  simt::launch(1, 128 + kConsumers, sizeof(SharedStorage), [&](char* smem) {
    auto& shared = *reinterpret_cast<SharedStorage*>(smem);
    bool const producer = threadIdx.x < 128;
    Pipeline::Params params;
    params.transaction_bytes = kStageBytes;
    params.role = producer ? Pipeline::ThreadCategory::Producer : Pipeline::ThreadCategory::Consumer;
    params.is_leader = threadIdx.x == 0;
    params.num_consumers = kConsumers;
    Pipeline pipeline(shared.pipeline, params, Shape<_1, _1, _1>{});
    __syncthreads();
    if (threadIdx.x == 0) {
      auto state = cutlass::make_producer_start_state<Pipeline>();
      for (int i = 0; i < kRounds; ++i, ++state) {
        pipeline.producer_acquire(state);
        SM90_BULK_COPY_G2S::copy(source[i], pipeline.producer_get_barrier(state), shared.data[state.index()],
                                 kStageBytes);
      }
      pipeline.producer_tail(state);
    } else if (!producer) {
      cutlass::PipelineState<kStages> state;
      unsigned const column = threadIdx.x - 128;
      for (int i = 0; i < kRounds; ++i, ++state) {
        if (fault != Fault::kNoConsumerWait) pipeline.consumer_wait(state);
        if (shared.data[state.index()][column] != source[i][column]) atomicAdd(&wrong, 1);
        if (fault != Fault::kNoRelease) pipeline.consumer_release(state);
      }
    }
  });
  return wrong;
}

}  // namespace

int main() {
  for (int i = 0; i < kRounds * kConsumers; ++i) source[i / kConsumers][i % kConsumers] = static_cast<uint16_t>(i);
  self_test::for_each_configuration([] { CHECK_EQUAL(run(Fault::kNone), 0); });
  CHECK_ERROR("deadlock: threads 0 wait for parity 0 of the mbarrier", run(Fault::kNoRelease));
#if !SIMT_ASAN && !SIMT_TSAN  // which report it first
  int noticed = 0;
  std::string const error = self_test::error_of([&] { noticed = run(Fault::kNoConsumerWait); });
  CHECK(noticed > 0 || !error.empty());
#endif
  return self_test::finish("sm90 TMA pipeline");
}
