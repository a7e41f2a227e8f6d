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

// The way back: one block a token adds up the rows of its slots. Products and sums are single IEEE
// float32 operations that the compiler may not contract, so that the CPU gives the same bits.
#pragma once

#include "common/chunk.cuh"
#include "moe_route/params.h"

namespace w4afp8 {

constexpr int kCombineThreads = 256;

template <int kWidth, typename T>
__global__ void __launch_bounds__(kCombineThreads) moe_combine_kernel(MoeCombineParams p) {
  const int64_t token = blockIdx.x;
  const int32_t* rows = p.row_index + token * p.topk;
  const float* weights = p.topk_weights + token * p.topk;
  const T* y = static_cast<const T*>(p.y);
  T* out = static_cast<T*>(p.out) + token * p.hidden;

  for (int64_t i = threadIdx.x * kWidth; i < p.hidden; i += kCombineThreads * kWidth) {
    Chunk<kWidth> sum = {};
    for (int slot = 0; slot < p.topk; ++slot) {
      const int64_t row = rows[slot];
      if (row < 0 || row >= p.num_rows) continue;
      const Chunk<kWidth> addend = load_chunk<kWidth>(y + row * p.hidden + i);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        sum.v[j] = __fadd_rn(sum.v[j], __fmul_rn(weights[slot], addend.v[j]));
      }
    }
    store_chunk(out + i, sum);
  }
}

}  // namespace w4afp8
