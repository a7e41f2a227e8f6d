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

// The way back: every thread adds up one chunk of the rows of a token's slots. Products and sums are
// single IEEE float32 operations that the compiler may not contract, so that the CPU gives the same
// bits.
#pragma once

#include "common/chunk.cuh"
#include "common/grid_dependency.cuh"
#include "moe_route/params.h"

namespace w4afp8 {

constexpr int kCombineThreads = 128;
constexpr int kCombineUnroll = 8;  // rows that a thread reads at once

// Blocks that share a token.
W4AFP8_HOST_DEVICE int64_t combine_parts(int64_t hidden, int width) {
  return ceil_div(hidden, int64_t{kCombineThreads} * width);
}

template <int kWidth, typename T>
__global__ void __launch_bounds__(kCombineThreads) moe_combine_kernel(MoeCombineParams p) {
  launch_dependents();
  wait_for_previous_grids();
  const uint32_t parts = static_cast<uint32_t>(combine_parts(p.hidden, kWidth));
  const int64_t token = blockIdx.x / parts;
  const int64_t i = (int64_t{blockIdx.x % parts} * kCombineThreads + threadIdx.x) * kWidth;
  const bool has_work = i < p.hidden;
  const T* y = static_cast<const T*>(p.y) + i;
  const int topk = static_cast<int>(p.topk), lane = threadIdx.x % 32;

  int32_t row_of_slot = -1;  // of slot `lane`
  float weight_of_slot = 0.0f;
  if (lane < topk) {
    row_of_slot = p.row_index[token * topk + lane];
    weight_of_slot = p.topk_weights[token * topk + lane];
  }
  Chunk<kWidth> shared = {};
  if (p.shared_output != nullptr && has_work) {
    shared = load_chunk<kWidth>(static_cast<const T*>(p.shared_output) + token * p.hidden + i);
  }

  Chunk<kWidth> sum = {};
  for (int first = 0; first < topk; first += kCombineUnroll) {
    RawChunk<kWidth, T> addends[kCombineUnroll];
    bool counts[kCombineUnroll];
#pragma unroll
    for (int s = 0; s < kCombineUnroll; ++s) {
      const int64_t row = __shfl_sync(0xFFFFFFFFu, row_of_slot, (first + s) % 32);
      counts[s] = first + s < topk && row >= 0 && row < p.num_rows;
      if (counts[s] && has_work) addends[s] = load_raw<kWidth>(y + row * p.hidden);
    }
#pragma unroll
    for (int s = 0; s < kCombineUnroll; ++s) {
      const float weight = __shfl_sync(0xFFFFFFFFu, weight_of_slot, (first + s) % 32);
      if (!counts[s]) continue;
      const Chunk<kWidth> addend = addends[s].floats();
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        sum.v[j] = __fadd_rn(sum.v[j], __fmul_rn(weight, addend.v[j]));
      }
    }
  }
  if (!has_work) return;
  if (p.shared_output != nullptr) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum.v[j] = __fadd_rn(sum.v[j], shared.v[j]);
  }
  store_chunk(static_cast<T*>(p.out) + token * p.hidden + i, sum);
}

}  // namespace w4afp8
