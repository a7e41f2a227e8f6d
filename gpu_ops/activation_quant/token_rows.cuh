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

// The rows that hold a token, numbered without gaps, so that a grid can share them evenly however
// large the padding is. Counts are read on the device.
#pragma once

#include "common/chunk.cuh"
#include "common/token_layout.h"

namespace w4afp8 {

class TokenRows {
 public:
  // `sums` holds kMaxExperts words of shared memory. All threads of the block take part; a barrier
  // ends it where it is needed.
  __device__ __forceinline__ TokenRows(const TokenLayout& layout, int32_t* sums)
      : layout_(layout), sums_(sums) {
    if (is_prefix()) {
      const int64_t last = layout.experts - (layout.leading_zero ? 0 : 1);
      count_ = clamped(entry(last), layout.num_rows);
    } else if (has_sums()) {
      if (threadIdx.x < 32) add_up();
      __syncthreads();
      count_ = sums_[layout.experts - 1];
    } else {
      count_ = layout.num_rows;
    }
  }

  // Rows to number; more than hold a token where there are too many experts for the sums.
  __device__ __forceinline__ int64_t count() const { return count_; }

  // The row with that number, or -1 where it holds no token.
  __device__ __forceinline__ int64_t row(int64_t number) const {
    if (is_prefix()) return number;
    if (!has_sums()) return layout_.is_token(number) ? number : -1;
    int expert = 0, past = static_cast<int>(layout_.experts);  // the first whose sum is larger
    while (expert < past) {
      const int middle = (expert + past) / 2;
      if (sums_[middle] > number) {
        past = middle;
      } else {
        expert = middle + 1;
      }
    }
    const int32_t before = expert > 0 ? sums_[expert - 1] : 0;
    return expert * layout_.padding + number - before;
  }

 private:
  __device__ bool is_prefix() const { return layout_.padding == 0; }
  __device__ bool has_sums() const { return layout_.experts <= kMaxExperts; }

  __device__ __forceinline__ int64_t entry(int64_t i) const {
    if (layout_.is_int64) {
      return load_word<Access::kPastL1>(static_cast<const int64_t*>(layout_.tokens) + i);
    }
    return load_word<Access::kPastL1>(static_cast<const int32_t*>(layout_.tokens) + i);
  }

  __device__ static int64_t clamped(int64_t count, int64_t most) {
    return count < 0 ? 0 : (count > most ? most : count);
  }

  // One warp: the running sums of the counts.
  __device__ void add_up() {
    const int lane = threadIdx.x % 32, experts = static_cast<int>(layout_.experts);
    int32_t before = 0;
    for (int first = 0; first < experts; first += 32) {
      const int expert = first + lane;
      int32_t sum = 0;
      if (expert < experts) {
        sum = static_cast<int32_t>(clamped(entry(expert), layout_.padding));
      }
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int32_t lower = __shfl_up_sync(0xFFFFFFFFu, sum, step);
        if (lane >= step) sum += lower;
      }
      if (expert < experts) sums_[expert] = before + sum;
      before += __shfl_sync(0xFFFFFFFFu, sum, 31);
    }
  }

  const TokenLayout& layout_;
  int32_t* sums_;
  int64_t count_;
};

}  // namespace w4afp8
