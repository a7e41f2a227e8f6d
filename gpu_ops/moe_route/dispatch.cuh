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

// Dispatch in two launches. First every expert finds its tokens: one block an expert reads all ids
// twice, which needs neither atomics nor a workspace and gives the same order every time. Then one
// block a token quantises it and writes it to the row of each of its slots.
#pragma once

#include "common/row_quant.cuh"
#include "moe_route/params.h"

namespace w4afp8 {

constexpr int kFindThreads = 512;
constexpr int kFindWarps = kFindThreads / 32;

struct SlotRange {
  int32_t begin;
  int32_t end;
};

// Slots that one warp looks at: a contiguous part, so that the order of the warps is the order of
// the slots; a multiple of 32 long, so that reads stay coalesced.
__device__ __forceinline__ SlotRange slots_of_warp(int32_t slots) {
  const int64_t share = round_up(ceil_div(slots, kFindWarps), 32);
  const int64_t begin = threadIdx.x / 32 * share;
  const int64_t end = begin + share;
  return {static_cast<int32_t>(begin < slots ? begin : slots),
          static_cast<int32_t>(end < slots ? end : slots)};
}

// Block e: tokens[e] = number of slots that go to lower experts, row_index of the slots that go to
// e. Block 0 also marks the slots that go nowhere, the last block closes the sums.
__global__ void __launch_bounds__(kFindThreads) find_rows_kernel(MoeDispatchParams p) {
  __shared__ int32_t lower[kFindWarps], equal[kFindWarps];
  const int32_t expert = blockIdx.x;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const SlotRange range = slots_of_warp(static_cast<int32_t>(p.num_tokens * p.topk));

  int32_t num_lower = 0, num_equal = 0;
  for (int32_t i = range.begin + lane; i < range.end; i += 32) {
    const int32_t id = p.topk_ids[i];
    num_lower += id >= 0 && id < expert;
    num_equal += id == expert;
  }
  num_lower = __reduce_add_sync(0xFFFFFFFFu, num_lower);
  num_equal = __reduce_add_sync(0xFFFFFFFFu, num_equal);
  if (lane == 0) {
    lower[warp] = num_lower;
    equal[warp] = num_equal;
  }
  __syncthreads();

  int32_t begin = 0, end = 0, row = 0;  // rows of the expert; first row of this warp's slots
  for (int i = 0; i < kFindWarps; ++i) {
    begin += lower[i];
    end += lower[i] + equal[i];
    row += lower[i] + (i < warp ? equal[i] : 0);
  }
  if (threadIdx.x == 0) {
    p.tokens[expert] = begin;
    if (expert == p.experts - 1) p.tokens[p.experts] = end;
  }

  for (int32_t first = range.begin; first < range.end; first += 32) {
    const int32_t i = first + lane;
    const int32_t id = i < range.end ? p.topk_ids[i] : expert + 1;
    const unsigned hits = __ballot_sync(0xFFFFFFFFu, id == expert);
    if (id == expert) p.row_index[i] = row + __popc(hits & ((1u << lane) - 1));
    if (expert == 0 && i < range.end && (id < 0 || id >= p.experts)) p.row_index[i] = -1;
    row += __popc(hits);
  }
}

template <int kWidth, typename T>
__global__ void __launch_bounds__(kMaxRowThreads, 1) copy_rows_kernel(MoeDispatchParams p) {
  __shared__ int32_t rows[kMaxTopk];
  const int64_t token = blockIdx.x;
  const int topk = static_cast<int>(p.topk);
  if (threadIdx.x < topk) rows[threadIdx.x] = p.row_index[token * topk + threadIdx.x];
  __syncthreads();

  const T* x = static_cast<const T*>(p.x) + token * p.hidden;
  const float scale = quantise_row<kWidth>(
      p.hidden, [&](int64_t i) { return load_chunk<kWidth>(x + i); },
      [&](int64_t i, auto bytes) {
        for (int slot = 0; slot < topk; ++slot) {
          if (rows[slot] < 0) continue;
          store_fp8<kWidth>(p.permuted + rows[slot] * p.hidden + i, bytes);
        }
      });
  if (threadIdx.x < topk && rows[threadIdx.x] >= 0) p.scale[rows[threadIdx.x]] = scale;
}

}  // namespace w4afp8
