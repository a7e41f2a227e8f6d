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

// Where the rows of a block's tokens are, without atomics on global memory, workspace or a sync of
// the grid. It follows from two counts of each expert's slots: all of them, and those of earlier
// tokens. Every block counts all slots for itself; there is one block on a multiprocessor, so that
// they take little of its time. (Clusters of blocks that share this work were slower on an H100: a
// cluster of two took 2.3 us more, and paid for itself from 64 Ki slots on, by 5%.)
#pragma once

#include <cub/block/block_scan.cuh>

#include "moe_route/params.h"

namespace w4afp8 {

constexpr int kDispatchThreads = 768;
constexpr int kExpertsEach = 2;  // neighbours, for one thread
static_assert(kExpertsEach * kDispatchThreads >= kMaxExperts, "all experts have a thread");

struct CountStorage {
  using Scan = cub::BlockScan<int32_t, kDispatchThreads, cub::BLOCK_SCAN_WARP_SCANS>;

  int32_t
      before[kMaxExperts];  // slots of earlier tokens; then the next row of each expert, or where
                            // padded its next place among the expert's rows
  int32_t after[kMaxExperts];  // the other slots
  Scan::TempStorage scan;
};

// Tokens of a block: a contiguous range.
struct TokenRange {
  int32_t begin;
  int32_t end;
};

// The grid's blocks in groups of `splits` that share their tokens, each for some of the slots.
struct DispatchGrid {
  int splits;

  __device__ int first_slot() const { return static_cast<int>(blockIdx.x) % splits; }

  __device__ TokenRange tokens(int32_t num_tokens) const {
    const int32_t groups = static_cast<int32_t>(gridDim.x) / splits;
    const int32_t group = static_cast<int32_t>(blockIdx.x) / splits;
    const int32_t share = num_tokens / groups, rest = num_tokens % groups;
    const int32_t begin = group * share + min(group, rest);
    return {begin, begin + share + (group < rest)};
  }
};

__device__ __forceinline__ void clear_counts(const MoeDispatchParams& p, CountStorage& shared) {
  for (int i = threadIdx.x; i < p.experts; i += kDispatchThreads) {
    shared.before[i] = shared.after[i] = 0;
  }
}

// Counts slots, and keeps the expert numbers of the block's first ones.
class SlotCounter {
 public:
  // Slots before `own_begin` belong to earlier tokens; `own_experts` is for the `own_slots` slots
  // from there on.
  __device__ SlotCounter(const MoeDispatchParams& p, CountStorage& shared, int32_t own_begin,
                         int32_t own_slots, int32_t* own_experts)
      : p_(p),
        shared_(shared),
        own_begin_(own_begin),
        own_slots_(own_slots),
        own_experts_(own_experts) {}

  __device__ __forceinline__ void count_all() const {
    const int32_t slots = static_cast<int32_t>(p_.num_tokens * p_.topk);
    const bool vectors = reinterpret_cast<uintptr_t>(p_.topk_ids) % 16 == 0;
    const int32_t vector_end = vectors ? slots / 4 * 4 : 0;
    for (int32_t i = 4 * threadIdx.x; i < vector_end; i += kUnroll * kStride) {
      count_vectors(i, vector_end);
    }
    for (int32_t i = vector_end + threadIdx.x; i < slots; i += kDispatchThreads) {
      count(i, p_.topk_ids[i]);
    }
  }

 private:
  static constexpr int kUnroll = 4;
  static constexpr int32_t kStride = 4 * kDispatchThreads;

  __device__ __forceinline__ void count_vectors(int32_t first, int32_t end) const {
    int4 ids[kUnroll];  // all on their way before the first is used
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int32_t slot = first + u * kStride;
      if (slot < end) ids[u] = *reinterpret_cast<const int4*>(p_.topk_ids + slot);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int32_t slot = first + u * kStride;
      if (slot >= end) break;
      count(slot, ids[u].x);
      count(slot + 1, ids[u].y);
      count(slot + 2, ids[u].z);
      count(slot + 3, ids[u].w);
    }
  }

  __device__ __forceinline__ void count(int32_t slot, int32_t id) const {
    const int32_t expert = p_.local_expert(id), own_slot = slot - own_begin_;
    if (own_slot >= 0 && own_slot < own_slots_) own_experts_[own_slot] = expert;
    if (expert >= 0) atomicAdd(&(own_slot < 0 ? shared_.before : shared_.after)[expert], 1);
  }

  const MoeDispatchParams& p_;
  CountStorage& shared_;
  int32_t own_begin_;
  int32_t own_slots_;
  int32_t* own_experts_;
};

// Makes shared.before the rows; block 0 writes p.tokens. Begins and ends with a barrier.
__device__ __forceinline__ void find_first_rows(const MoeDispatchParams& p, CountStorage& shared) {
  const int first_expert = static_cast<int>(threadIdx.x) * kExpertsEach;
  const bool padded = p.token_padding > 0;
  int32_t before[kExpertsEach] = {}, totals[kExpertsEach] = {};
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kExpertsEach; ++i) {
    if (first_expert + i >= p.experts) continue;
    before[i] = shared.before[first_expert + i];
    totals[i] = before[i] + shared.after[first_expert + i];
  }
  int32_t firsts[kExpertsEach], sum;
  CountStorage::Scan(shared.scan).ExclusiveSum(totals, firsts, sum);
#pragma unroll
  for (int i = 0; i < kExpertsEach; ++i) {
    const int expert = first_expert + i;
    if (expert >= p.experts) continue;
    shared.before[expert] = before[i] + (padded ? 0 : firsts[i]);
    if (blockIdx.x > 0) continue;
    p.tokens[expert] = padded ? min(int64_t{totals[i]}, p.token_padding) : firsts[i];
  }
  if (blockIdx.x == 0 && threadIdx.x == 0 && !padded) p.tokens[p.experts] = sum;
  __syncthreads();
}

}  // namespace w4afp8
