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

// Dispatch in one launch, without atomics on global memory, workspace or a sync of the grid. Each
// block copies a contiguous range of tokens. Where their rows are follows from two counts of each
// expert's slots: all of them, and those of earlier tokens. Every cluster of blocks counts all slots
// for itself, each of its blocks a slice, and adds the slices up over shared memory.
#pragma once

#include <cooperative_groups.h>

#include <cub/block/block_scan.cuh>

#include "common/grid_dependency.cuh"
#include "common/row_quant.cuh"
#include "moe_route/params.h"

namespace w4afp8 {

constexpr int kDispatchThreads = 256;
constexpr int kDispatchBlocksEach = 4;                        // resident on a multiprocessor
constexpr int kExpertsEach = kMaxExperts / kDispatchThreads;  // neighbours, for one thread
constexpr int kBatchSlots = 1024;  // whose rows a block works out at once

struct DispatchStorage {
  using Scan = cub::BlockScan<int32_t, kDispatchThreads>;

  alignas(16) int32_t before[kMaxExperts];  // slots before the cluster's tokens, in this slice
  alignas(16) int32_t after[kMaxExperts];   // the others of this slice
  alignas(16) int32_t own[kMaxExperts];     // slots of this block's tokens
  int32_t next[kMaxExperts];  // next row of each expert (padded: place among its rows)
  int32_t rows[kBatchSlots];  // expert numbers, then rows, of some slots
  Scan::TempStorage scan;
  RowStorage row;
};

// Tokens of a block, and their slots.
struct TokenRange {
  int64_t begin;
  int64_t end;
};

__device__ __forceinline__ TokenRange tokens_of_block(int64_t num_tokens, int64_t block) {
  return {num_tokens * block / gridDim.x, num_tokens * (block + 1) / gridDim.x};
}

// Four neighbouring experts' counts, in this block's or another's shared memory.
__device__ __forceinline__ void add_counts(int32_t (&sums)[kExpertsEach], const int32_t* counts) {
  const int4 four = reinterpret_cast<const int4*>(counts)[threadIdx.x];
  sums[0] += four.x;
  sums[1] += four.y;
  sums[2] += four.z;
  sums[3] += four.w;
}
static_assert(kExpertsEach == 4, "add_counts reads four");

class SlotCounter {
 public:
  __device__ SlotCounter(const MoeDispatchParams& p, DispatchStorage& shared)
      : p_(p),
        shared_(shared),
        cluster_(cooperative_groups::this_cluster()),
        mine_(tokens_of_block(p.num_tokens, blockIdx.x)) {
    const int64_t first_block = blockIdx.x - cluster_.block_rank();
    cluster_begin_ = tokens_of_block(p.num_tokens, first_block).begin * p.topk;
    const int64_t slots = p.num_tokens * p.topk;
    // A multiple of 4 slots, for vector loads.
    const int64_t share = round_up(ceil_div(slots, cluster_.num_blocks()), 4);
    slice_begin_ = min(slots, cluster_.block_rank() * share);
    slice_end_ = min(slots, slice_begin_ + share);
  }

  __device__ TokenRange tokens() const { return mine_; }

  // Sets the counts to 0; the barrier is the caller's.
  __device__ void clear() {
    for (int i = threadIdx.x; i < kMaxExperts; i += kDispatchThreads) {
      shared_.before[i] = shared_.after[i] = shared_.own[i] = 0;
    }
  }

  // Counts this block's slice of all slots.
  __device__ void count_slice() {
    const bool vectors = reinterpret_cast<uintptr_t>(p_.topk_ids) % 16 == 0;
    const int64_t vector_end =
        vectors ? slice_end_ - (slice_end_ - slice_begin_) % 4 : slice_begin_;
    count_vectors(slice_begin_, vector_end);
    for (int64_t i = vector_end + threadIdx.x; i < slice_end_; i += kDispatchThreads) {
      count(i, p_.topk_ids[i]);
    }
  }

  // Counts the slots of this block's tokens, for the later blocks of the cluster.
  __device__ void count_own() {
    if (cluster_.num_blocks() == 1) return;
    for (int64_t i = mine_.begin * p_.topk + threadIdx.x; i < mine_.end * p_.topk;
         i += kDispatchThreads) {
      const int32_t expert = p_.local_expert(p_.topk_ids[i]);
      if (expert >= 0) atomicAdd(&shared_.own[expert], 1);
    }
  }

  // Fills shared.next; block 0 writes p.tokens. Ends with a barrier of the block.
  __device__ void find_first_rows() {
    int32_t before[kExpertsEach] = {}, totals[kExpertsEach] = {};
    add_up_cluster(before, totals);
#pragma unroll
    for (int i = 0; i < kExpertsEach; ++i) totals[i] += before[i];
    add_up_own(before);
    if (cluster_.num_blocks() > 1) cluster_.barrier_arrive();  // read all of the other blocks'

    int32_t firsts[kExpertsEach], sum;
    DispatchStorage::Scan(shared_.scan).ExclusiveSum(totals, firsts, sum);
    const bool padded = p_.token_padding > 0;
#pragma unroll
    for (int i = 0; i < kExpertsEach; ++i) {
      const int expert = static_cast<int>(threadIdx.x) * kExpertsEach + i;
      shared_.next[expert] = before[i] + (padded ? 0 : firsts[i]);
      if (blockIdx.x > 0 || expert >= p_.experts) continue;
      p_.tokens[expert] = padded ? min(int64_t{totals[i]}, p_.token_padding) : firsts[i];
    }
    if (blockIdx.x == 0 && threadIdx.x == 0 && !padded) p_.tokens[p_.experts] = sum;
    __syncthreads();
  }

  // The other blocks may still read this one's counts until here.
  __device__ void leave() {
    if (cluster_.num_blocks() > 1) cluster_.barrier_wait();
  }

 private:
  __device__ void count(int64_t slot, int32_t id) {
    const int32_t expert = p_.local_expert(id);
    if (expert < 0) return;
    atomicAdd(slot < cluster_begin_ ? &shared_.before[expert] : &shared_.after[expert], 1);
  }

  __device__ void count_vectors(int64_t begin, int64_t end) {
    constexpr int kUnroll = 4;
    constexpr int64_t kStride = 4 * kDispatchThreads;
    for (int64_t i = begin + 4 * threadIdx.x; i < end; i += kUnroll * kStride) {
      int4 ids[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (i + u * kStride < end) {
          ids[u] = *reinterpret_cast<const int4*>(p_.topk_ids + i + u * kStride);
        }
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t slot = i + u * kStride;
        if (slot >= end) break;
        count(slot, ids[u].x);
        count(slot + 1, ids[u].y);
        count(slot + 2, ids[u].z);
        count(slot + 3, ids[u].w);
      }
    }
  }

  // Slots of this thread's experts before the cluster's tokens, and from them on.
  __device__ void add_up_cluster(int32_t (&before)[kExpertsEach], int32_t (&after)[kExpertsEach]) {
    if (cluster_.num_blocks() == 1) {
      __syncthreads();
      add_counts(before, shared_.before);
      add_counts(after, shared_.after);
      return;
    }
    cluster_.sync();
    for (unsigned rank = 0; rank < cluster_.num_blocks(); ++rank) {
      add_counts(before, cluster_.map_shared_rank(shared_.before, rank));
      add_counts(after, cluster_.map_shared_rank(shared_.after, rank));
    }
  }

  // Adds those of the cluster's blocks before this one.
  __device__ void add_up_own(int32_t (&before)[kExpertsEach]) {
    for (unsigned rank = 0; rank < cluster_.block_rank(); ++rank) {
      add_counts(before, cluster_.map_shared_rank(shared_.own, rank));
    }
  }

  const MoeDispatchParams& p_;
  DispatchStorage& shared_;
  cooperative_groups::cluster_group cluster_;
  TokenRange mine_;
  int64_t cluster_begin_;  // first slot of the cluster's tokens
  int64_t slice_begin_;    // slots that this block counts
  int64_t slice_end_;
};

// shared.rows from expert numbers to rows, in the order of the slots. One warp.
__device__ __forceinline__ void resolve_rows(const MoeDispatchParams& p, DispatchStorage& shared,
                                             int slots) {
  const int lane = threadIdx.x;
  for (int first = 0; first < slots; first += 32) {
    const int32_t expert = first + lane < slots ? shared.rows[first + lane] : -1;
    const unsigned peers = __match_any_sync(0xFFFFFFFFu, expert);
    const unsigned earlier = peers & ((1u << lane) - 1);
    int32_t place = 0;
    if (expert >= 0) place = shared.next[expert] + __popc(earlier);
    __syncwarp();
    if (expert >= 0 && earlier == 0) shared.next[expert] = place + __popc(peers);
    __syncwarp();
    if (first + lane >= slots) return;
    int64_t row = place;
    if (p.token_padding > 0) row = place < p.token_padding ? expert * p.token_padding + place : -1;
    shared.rows[first + lane] = expert < 0 ? -1 : static_cast<int32_t>(row);
  }
}

template <int kWidth, typename T>
class RowCopier {
 public:
  __device__ RowCopier(const MoeDispatchParams& p, DispatchStorage& shared)
      : p_(p), quantiser_(shared.row) {}

  __device__ __forceinline__ HeldRow<kWidth> hold(int64_t token) const {
    const T* x = static_cast<const T*>(p_.x) + token * p_.hidden;
    return hold_row<kWidth>(p_.hidden, [&](int64_t i) { return load_chunk<kWidth>(x + i); });
  }

  // Quantises a token and writes it to `rows`, one a slot, -1 where it is dropped.
  __device__ __forceinline__ void copy(int64_t token, const HeldRow<kWidth>& held,
                                       const int32_t* rows) {
    const int topk = static_cast<int>(p_.topk);
    const T* x = static_cast<const T*>(p_.x) + token * p_.hidden;
    const float scale = quantiser_.run(
        held, p_.hidden, [&](int64_t i) { return load_chunk<kWidth>(x + i); },
        [&](int64_t i, auto bytes) {
          for (int slot = 0; slot < topk; ++slot) {
            const int64_t row = rows[slot];
            if (row >= 0) store_fp8<kWidth>(p_.permuted + row * p_.hidden + i, bytes);
          }
        });
    if (threadIdx.x < topk && rows[threadIdx.x] >= 0) p_.scale[rows[threadIdx.x]] = scale;
  }

 private:
  const MoeDispatchParams& p_;
  RowQuantiser<kWidth> quantiser_;
};

// shared.rows to the expert numbers of some slots.
__device__ __forceinline__ void load_experts(const MoeDispatchParams& p, DispatchStorage& shared,
                                             int64_t first_slot, int slots) {
  for (int i = threadIdx.x; i < slots; i += kDispatchThreads) {
    shared.rows[i] = p.local_expert(p.topk_ids[first_slot + i]);
  }
}

__device__ __forceinline__ bool any_row(const int32_t* rows, int topk) {
  bool any = false;
  for (int slot = 0; slot < topk; ++slot) any |= rows[slot] >= 0;
  return any;
}

template <int kWidth, typename T>
__global__ void __launch_bounds__(kDispatchThreads, kDispatchBlocksEach)
    moe_dispatch_kernel(const __grid_constant__ MoeDispatchParams p) {
  __shared__ DispatchStorage shared;
  launch_dependents();
  SlotCounter counter(p, shared);
  RowCopier<kWidth, T> copier(p, shared);
  counter.clear();
  wait_for_previous_grids();
  __syncthreads();

  const TokenRange mine = counter.tokens();
  const int topk = static_cast<int>(p.topk), batch = kBatchSlots / topk;
  const auto tokens_from = [&](int64_t first) {
    return static_cast<int>(min(mine.end - first, int64_t{batch}));
  };
  HeldRow<kWidth> held = {};
  if (mine.begin < mine.end) held = copier.hold(mine.begin);  // arrives while slots are counted
  load_experts(p, shared, mine.begin * topk, tokens_from(mine.begin) * topk);
  counter.count_slice();
  counter.count_own();
  counter.find_first_rows();

  for (int64_t first = mine.begin; first < mine.end; first += batch) {
    const int count = tokens_from(first);
    if (first > mine.begin) {
      __syncthreads();  // the rows before are read
      load_experts(p, shared, first * topk, count * topk);
      __syncthreads();
    }
    if (threadIdx.x < 32) resolve_rows(p, shared, count * topk);
    __syncthreads();
    for (int i = threadIdx.x; i < count * topk; i += kDispatchThreads) {
      p.row_index[first * topk + i] = shared.rows[i];
    }
    for (int i = 0; i < count; ++i) {
      const int32_t* rows = shared.rows + i * topk;
      if (!any_row(rows, topk)) continue;
      if (first + i > mine.begin) held = copier.hold(first + i);
      copier.copy(first + i, held, rows);
    }
  }
  counter.leave();
}

}  // namespace w4afp8
