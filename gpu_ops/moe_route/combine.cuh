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

// The way back: a block adds up the rows of a token's slots, or of a part of its features. Products
// and sums are single IEEE float32 operations that the compiler may not contract, so that the CPU
// gives the same bits.
//
// Where the launch starts early, the first blocks write the zeros of tokens without rows, of which a
// rank's share has many: multiprocessors that the product before has left do that while others are
// still multiplying.
#pragma once

#include "common/chunk.cuh"
#include "common/grid_dependency.cuh"
#include "moe_route/params.h"

namespace w4afp8 {

constexpr int kCombineThreads = 128;
constexpr int kCombineChunks = 2;  // of a row that a thread reads at once
constexpr int kCombineRows = 4;    // rows that it reads at once
constexpr int kZeroedTokens = 8;   // that a block looks at which writes zeros

struct CombineGrid {
  int zero_blocks;  // come first
  int parts;        // blocks that share a token
};

// The slots that have a row, in order.
struct CombineStorage {
  int32_t rows[kMaxTopk];
  float weights[kMaxTopk];
  int count;
};

// One warp.
__device__ __forceinline__ void find_slots(const MoeCombineParams& p, CombineStorage& shared,
                                           int64_t token) {
  const int lane = threadIdx.x;
  int32_t row = -1;
  float weight = 0.0f;
  if (lane < p.topk) {
    row = load_word<Access::kPastL1>(p.row_index + token * p.topk + lane);
    weight = load_word<Access::kPastL1>(p.topk_weights + token * p.topk + lane);
  }
  const bool counts = row >= 0 && row < p.num_rows;
  const unsigned all = __ballot_sync(0xFFFFFFFFu, counts);
  if (counts) {
    const int place = __popc(all & ((1u << lane) - 1));
    shared.rows[place] = row;
    shared.weights[place] = weight;
  }
  if (lane == 0) shared.count = __popc(all);
}

template <int kWidth, typename T>
class RowAdder {
 public:
  using Raw = RawChunk<kWidth, T>;
  using Sums = Chunk<kWidth>[kCombineChunks];

  // Chunk c begins at feature `first` + c * kStride.
  static constexpr int kStride = kCombineThreads * kWidth;

  __device__ RowAdder(const MoeCombineParams& p, const CombineStorage& shared, int first)
      : p_(p), shared_(shared), first_(first), hidden_(static_cast<int>(p.hidden)) {}

  // Adds slots [slot, slot + kCombineRows); all loads are on their way before the first is used.
  __device__ __forceinline__ void add_slots(Sums& sums, int slot) const {
    const T* y = static_cast<const T*>(p_.y);
    Raw addends[kCombineRows][kCombineChunks];
#pragma unroll
    for (int s = 0; s < kCombineRows; ++s) {
      if (slot + s < shared_.count) load(addends[s], y + shared_.rows[slot + s] * p_.hidden);
    }
#pragma unroll
    for (int s = 0; s < kCombineRows; ++s) {
      if (slot + s >= shared_.count) break;
      const float weight = shared_.weights[slot + s];
#pragma unroll
      for (int c = 0; c < kCombineChunks; ++c) {
        const Chunk<kWidth> addend = addends[s][c].floats();
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          sums[c].v[j] = __fadd_rn(sums[c].v[j], __fmul_rn(weight, addend.v[j]));
        }
      }
    }
  }

  __device__ __forceinline__ void add_shared_output(Sums& sums, int64_t token) const {
    Raw addends[kCombineChunks];
    load(addends, static_cast<const T*>(p_.shared_output) + token * p_.hidden);
#pragma unroll
    for (int c = 0; c < kCombineChunks; ++c) {
      const Chunk<kWidth> addend = addends[c].floats();
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sums[c].v[j] = __fadd_rn(sums[c].v[j], addend.v[j]);
    }
  }

  __device__ __forceinline__ void store(const Sums& sums, int64_t token) const {
    T* out = static_cast<T*>(p_.out) + token * p_.hidden;
#pragma unroll
    for (int c = 0; c < kCombineChunks; ++c) {
      const int i = first_ + c * kStride;
      if (i < hidden_) store_chunk(out + i, sums[c]);
    }
  }

 private:
  __device__ __forceinline__ void load(Raw (&chunks)[kCombineChunks], const T* row) const {
#pragma unroll
    for (int c = 0; c < kCombineChunks; ++c) {
      const int i = first_ + c * kStride;
      if (i < hidden_) chunks[c] = load_raw<kWidth, Access::kOnce>(row + i);
    }
  }

  const MoeCombineParams& p_;
  const CombineStorage& shared_;
  int first_;
  int hidden_;
};

__device__ __forceinline__ bool has_row(const MoeCombineParams& p, int64_t token) {
  const int lane = threadIdx.x % 32;
  const int32_t row =
      lane < p.topk ? load_word<Access::kPastL1>(p.row_index + token * p.topk + lane) : -1;
  return __any_sync(0xFFFFFFFFu, row >= 0 && row < p.num_rows);
}

// A block's tokens without rows, a warp each.
template <int kWidth, typename T>
__device__ __forceinline__ void write_zeros(const MoeCombineParams& p) {
  constexpr int kWarps = kCombineThreads / 32;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kZeroedTokens;
  const int64_t end = min(first + kZeroedTokens, p.num_tokens);
  for (int64_t token = first + threadIdx.x / 32; token < end; token += kWarps) {
    if (has_row(p, token)) continue;
    T* out = static_cast<T*>(p.out) + token * p.hidden;
    for (int64_t i = threadIdx.x % 32 * kWidth; i < p.hidden; i += 32 * kWidth) {
      store_chunk(out + i, Chunk<kWidth>{});
    }
  }
}

// The blocks of a token take turns with kCombineChunks chunks a thread.
template <int kWidth, typename T>
__global__ void __launch_bounds__(kCombineThreads)
    moe_combine_kernel(const __grid_constant__ MoeCombineParams p, CombineGrid grid) {
  using Adder = RowAdder<kWidth, T>;
  constexpr int kFeatures = Adder::kStride * kCombineChunks;  // of a block at once
  __shared__ CombineStorage shared;
  if (!p.starts_early) wait_for_previous_grids();
  const int block = static_cast<int>(blockIdx.x) - grid.zero_blocks;
  if (block < 0) {
    write_zeros<kWidth, T>(p);
    if (blockIdx.x == 0) wait_for_previous_grids();  // where no token has a row, nobody else does
    return;
  }
  const int64_t token = block / grid.parts;
  const int part = block % grid.parts;
  if (threadIdx.x < 32) find_slots(p, shared, token);
  __syncthreads();
  if (grid.zero_blocks > 0 && shared.count == 0) return;
  if (p.starts_early) wait_for_previous_grids();
  launch_dependents();

  const int first_of_thread = part * kFeatures + static_cast<int>(threadIdx.x) * kWidth;
  for (int64_t first = first_of_thread; first < p.hidden; first += grid.parts * kFeatures) {
    const Adder adder(p, shared, static_cast<int>(first));
    typename Adder::Sums sums = {};
    for (int slot = 0; slot < shared.count; slot += kCombineRows) adder.add_slots(sums, slot);
    if (p.shared_output != nullptr) adder.add_shared_output(sums, token);
    adder.store(sums, token);
  }
}

}  // namespace w4afp8
