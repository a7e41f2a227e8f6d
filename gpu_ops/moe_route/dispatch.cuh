// Copyright (c) 2026 PaddlePaddle Authors. All Rights Reserved.
//
// Licensed under the Apache License, Version 2.0 (the "License");
// you may not use this file except in compliance with the License.
// You may obtain a copy of the License at
//
//     http://www.apache.org/licenses/LICENSE-2.0
//
// Unless required by applicable law or agreed to in writing, software
// distributed under the License is distributed on an "AS IS" BASIS,
// WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
// See the License for the specific language governing permissions and
// limitations under the License.

// Dispatch in one launch: each block finds the rows of a contiguous range of tokens, then its teams
// of threads quantise a token each and write it to the rows of its slots. Where there are few tokens,
// several blocks do that for the same ones, each for some of the slots.
#pragma once

#include "common/grid_dependency.cuh"
#include "common/row_quant.cuh"
#include "moe_route/count_slots.cuh"
#include "ptx/barrier.cuh"

namespace w4afp8 {

constexpr int kSmallTeam = 64;  // threads of a team where they can hold a token
constexpr int kLargeTeam = 128;
constexpr int kMaxTeams = kDispatchThreads / kSmallTeam;
constexpr int kTeamChunks = 8;     // that a thread keeps in registers between the two passes
constexpr int kBatchSlots = 1024;  // whose rows a block works out at once
// Of a block's first tokens, on their way to L2 while slots are counted: 32 MB of the grid's.
constexpr uint32_t kPrefetchBytes = 256 << 10;

struct DispatchStorage {
  CountStorage counts;
  int32_t rows[kBatchSlots];  // expert numbers, then rows, of some slots
  alignas(16) uint32_t max_of_warp[2][kMaxTeams][kLargeTeam / 32];
};

// shared.rows to the expert numbers of some slots.
__device__ __forceinline__ void load_experts(const MoeDispatchParams& p, DispatchStorage& shared,
                                             int32_t first_slot, int slots) {
  for (int i = threadIdx.x; i < slots; i += kDispatchThreads) {
    shared.rows[i] = p.local_expert(p.topk_ids[first_slot + i]);
  }
}

// shared.rows from expert numbers to rows, in the order of the slots. One warp.
__device__ __forceinline__ void resolve_rows(const MoeDispatchParams& p, DispatchStorage& shared,
                                             int slots) {
  const int lane = threadIdx.x;
  int32_t* next = shared.counts.before;
  for (int first = 0; first < slots; first += 32) {
    const int32_t expert = first + lane < slots ? shared.rows[first + lane] : -1;
    const unsigned peers = __match_any_sync(0xFFFFFFFFu, expert);
    const unsigned earlier = peers & ((1u << lane) - 1);
    int32_t place = 0;
    if (expert >= 0) place = next[expert] + __popc(earlier);
    __syncwarp();
    if (expert >= 0 && earlier == 0) next[expert] = place + __popc(peers);
    __syncwarp();
    if (first + lane >= slots) return;
    int64_t row = place;
    if (p.token_padding > 0) row = place < p.token_padding ? expert * p.token_padding + place : -1;
    shared.rows[first + lane] = expert < 0 ? -1 : static_cast<int32_t>(row);
  }
}

__device__ __forceinline__ void store_rows(const MoeDispatchParams& p,
                                           const DispatchStorage& shared, int32_t first_slot,
                                           int slots) {
  for (int i = threadIdx.x; i < slots; i += kDispatchThreads) {
    p.row_index[first_slot + i] = shared.rows[i];
  }
}

// A team of the block's threads, for one token after the other.
template <int kWidth, int kTeamThreads, typename T>
class RowCopier {
 public:
  static constexpr int kTeams = kDispatchThreads / kTeamThreads;
  static constexpr int kWarps = kTeamThreads / 32;  // of a team
  using Bytes = typename Word<kWidth>::Type;

  __device__ RowCopier(const MoeDispatchParams& p, DispatchGrid grid, DispatchStorage& shared)
      : p_(p), grid_(grid), shared_(shared), hidden_(static_cast<int>(p.hidden)) {}

  __device__ static int team() { return threadIdx.x / kTeamThreads; }

  // Quantises a token and writes it to `rows`, one a slot, -1 where it is dropped, as far as the
  // slots are this block's.
  __device__ __forceinline__ void copy(int32_t token, const int32_t* rows) {
    if (!any_row(rows)) return;
    const T* x = static_cast<const T*>(p_.x) + token * p_.hidden;
    RawChunk<kWidth, T> held[kTeamChunks];
#pragma unroll
    for (int c = 0; c < kTeamChunks; ++c) {
      if (first_feature(c) < hidden_) held[c] = load_raw<kWidth>(x + first_feature(c));
    }
    float largest = largest_magnitude(held);
#pragma unroll 1
    for (int i = first_feature(kTeamChunks); i < hidden_; i += kTeamThreads * kWidth) {
      largest = larger_magnitude(largest, load_chunk<kWidth>(x + i));
    }
    const float scale = row_scale(team_max(largest)), inverse = __frcp_rn(scale);

    Bytes bytes[kTeamChunks];
#pragma unroll
    for (int c = 0; c < kTeamChunks; ++c) {
      bytes[c] = scaled(held[c].floats(), inverse);
    }
#pragma unroll 1
    for (int slot = grid_.first_slot(); slot < p_.topk; slot += grid_.splits) {
      if (rows[slot] < 0) continue;
#pragma unroll
      for (int c = 0; c < kTeamChunks; ++c) {
        if (first_feature(c) < hidden_) store(rows[slot], first_feature(c), bytes[c]);
      }
    }
#pragma unroll 1
    for (int i = first_feature(kTeamChunks); i < hidden_; i += kTeamThreads * kWidth) {
      const Bytes unheld = scaled(load_chunk<kWidth>(x + i), inverse);
      for (int slot = grid_.first_slot(); slot < p_.topk; slot += grid_.splits) {
        if (rows[slot] >= 0) store(rows[slot], i, unheld);
      }
    }
    const int slot = grid_.first_slot() + threadIdx.x % kTeamThreads * grid_.splits;
    if (slot < p_.topk && rows[slot] >= 0) p_.scale[rows[slot]] = scale;
  }

 private:
  __device__ __forceinline__ bool any_row(const int32_t* rows) const {
    bool any = false;
    for (int slot = grid_.first_slot(); slot < p_.topk; slot += grid_.splits) {
      any |= rows[slot] >= 0;
    }
    return any;
  }

  // A thread's chunk c of a token begins there.
  __device__ static int first_feature(int c) {
    return (c * kTeamThreads + static_cast<int>(threadIdx.x % kTeamThreads)) * kWidth;
  }

  __device__ __forceinline__ void store(int64_t row, int feature, Bytes bytes) const {
    store_fp8<kWidth>(p_.permuted + row * p_.hidden + feature, bytes);
  }

  // Largest of the team's non-negative values. Tokens take turns with two halves of the storage, so
  // one barrier a token is enough.
  __device__ __forceinline__ float team_max(float value) {
    uint32_t* shared = shared_.max_of_warp[turn_][team()];
    turn_ ^= 1;
    const uint32_t warp_max = warp_max_bits(value);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32 % kWarps] = warp_max;
    ptx::named_barrier_sync(1 + team(), kTeamThreads);
    uint32_t largest = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) largest = max(largest, shared[warp]);
    return __uint_as_float(largest);
  }

  const MoeDispatchParams& p_;
  DispatchGrid grid_;
  DispatchStorage& shared_;
  int hidden_;
  int turn_ = 0;
};

// Of a block's tokens, as far as the copy engine can fetch them. Of few tokens none: they are read
// soon enough.
template <int kWidth>
__device__ __forceinline__ int32_t prefetched_tokens(const MoeDispatchParams& p,
                                                     DispatchGrid grid) {
  constexpr uint32_t kFeatureBytes = 2;
  if (kWidth == 1 || grid.splits > 1) return 0;
  return kPrefetchBytes / (static_cast<uint32_t>(p.hidden) * kFeatureBytes);
}

template <int kWidth, int kTeamThreads, typename T>
__global__ void __launch_bounds__(kDispatchThreads, 1)
    moe_dispatch_kernel(const __grid_constant__ MoeDispatchParams p, DispatchGrid grid) {
  using Copier = RowCopier<kWidth, kTeamThreads, T>;
  __shared__ DispatchStorage shared;
  Copier copier(p, grid, shared);
  const TokenRange mine = grid.tokens(static_cast<int32_t>(p.num_tokens));
  const int topk = static_cast<int>(p.topk), batch = kBatchSlots / topk;
  const int32_t first_tokens = min(mine.end - mine.begin, batch);
  const OwnSlots own{mine.begin * topk, first_tokens * topk,
                     prefetched_tokens<kWidth>(p, grid) * topk, shared.rows};
  clear_counts(p, shared.counts);
  wait_for_previous_grids();
  launch_dependents();  // behind the wait, as the layer's products rely on
  __syncthreads();
  SlotCounter(p, shared.counts, own).count_all();
  find_first_rows(p, shared.counts);

  for (int32_t first = mine.begin; first < mine.end; first += batch) {
    const int count = min(mine.end - first, batch);
    if (first > mine.begin) {
      __syncthreads();  // the rows before are read
      load_experts(p, shared, first * topk, count * topk);
      __syncthreads();
    }
    if (threadIdx.x < 32) resolve_rows(p, shared, count * topk);
    __syncthreads();
    if (grid.first_slot() == 0) store_rows(p, shared, first * topk, count * topk);
    for (int i = Copier::team(); i < count; i += Copier::kTeams) {
      copier.copy(first + i, shared.rows + i * topk);
    }
  }
}

}  // namespace w4afp8
