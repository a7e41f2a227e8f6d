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

#include "common/grid_dependency.cuh"
#include "moe_route/params.h"
#include "ptx/prefetch.cuh"

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

// The block's own first slots: those of its first tokens. Slots before them are of earlier tokens.
struct OwnSlots {
  int32_t begin;
  int32_t count;
  int32_t prefetched;  // the first so many, whose tokens are brought to L2 where they are needed
  int32_t* experts;    // to be filled
};

// Counts slots, and keeps the expert numbers of the block's own.
class SlotCounter {
 public:
  __device__ SlotCounter(const MoeDispatchParams& p, CountStorage& shared, const OwnSlots& own)
      : p_(p), shared_(shared), own_(own) {}

  __device__ __forceinline__ void count_all() const {
    const int32_t slots = static_cast<int32_t>(p_.num_tokens * p_.topk);
    const bool vectors = reinterpret_cast<uintptr_t>(p_.topk_ids) % 16 == 0;
    const int32_t vector_end = vectors ? slots / 4 * 4 : 0;
    int32_t i = 4 * threadIdx.x;
    Ids ids = load(i, vector_end);
    keep_own();
    while (i < vector_end) {
      count(ids, i, vector_end);
      i += kUnroll * kStride;
      ids = load(i, vector_end);
    }
    for (i = vector_end + threadIdx.x; i < slots; i += kDispatchThreads) count(p_.topk_ids[i], i);
  }

 private:
  static constexpr int kUnroll = 4;
  static constexpr int32_t kStride = 4 * kDispatchThreads;

  struct Ids {
    int4 vectors[kUnroll];
  };

  // All on their way before the first is used.
  __device__ __forceinline__ Ids load(int32_t first, int32_t end) const {
    Ids ids;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int32_t slot = first + u * kStride;
      if (slot < end) ids.vectors[u] = *reinterpret_cast<const int4*>(p_.topk_ids + slot);
    }
    return ids;
  }

  __device__ __forceinline__ void count(const Ids& ids, int32_t first, int32_t end) const {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int32_t slot = first + u * kStride;
      if (slot >= end) break;
      count(ids.vectors[u].x, slot);
      count(ids.vectors[u].y, slot + 1);
      count(ids.vectors[u].z, slot + 2);
      count(ids.vectors[u].w, slot + 3);
    }
  }

  __device__ __forceinline__ void count(int32_t id, int32_t slot) const {
    const int32_t expert = p_.local_expert(id);
    if (expert >= 0) atomicAdd((slot < own_.begin ? shared_.before : shared_.after) + expert, 1);
  }

  __device__ __forceinline__ void keep_own() const {
    for (int32_t i = threadIdx.x; i < own_.count; i += kDispatchThreads) {
      const int32_t slot = own_.begin + i, expert = p_.local_expert(p_.topk_ids[slot]);
      own_.experts[i] = expert;
      if (expert >= 0 && i < own_.prefetched) prefetch(slot / static_cast<int32_t>(p_.topk));
    }
  }

  // A token of 16-bit features, whole and aligned 16-byte pieces.
  __device__ __forceinline__ void prefetch(int64_t token) const {
    const uint32_t bytes = static_cast<uint32_t>(p_.hidden) * 2;
    ptx::bulk_prefetch(static_cast<const uint8_t*>(p_.x) + token * bytes, bytes);
  }

  const MoeDispatchParams& p_;
  CountStorage& shared_;
  OwnSlots own_;
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
    const int64_t count = min(int64_t{totals[i]}, p.token_padding);
    store_relaxed(p.tokens + expert, padded ? static_cast<int32_t>(count) : firsts[i]);
  }
  if (blockIdx.x == 0 && threadIdx.x == 0 && !padded) store_relaxed(p.tokens + p.experts, sum);
  __syncthreads();
}

}  // namespace w4afp8
