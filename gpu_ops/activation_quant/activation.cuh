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

// The activation functions, in float32.
#pragma once

#include "common/chunk.cuh"
#include "common/gated.cuh"

namespace w4afp8 {

__device__ __forceinline__ float gelu(float x) {
  constexpr float kInverseSqrt2 = 0.70710678118654752f;
  return 0.5f * x * (1.0f + erff(x * kInverseSqrt2));
}

template <typename T>
__device__ __forceinline__ float rounded(float x) {
  return to_float(from_float<T>(x));
}

// Activated features [i, i + kWidth) of the row of the input that begins at `row`, rounded to T: as they
// are where another kernel has stored them.
template <int kWidth, Activation kActivation, typename T>
__device__ __forceinline__ Chunk<kWidth> load_activated(const T* row, int64_t features, int64_t i) {
  Chunk<kWidth> chunk = load_chunk<kWidth>(row + i);
  if constexpr (kActivation == Activation::kGelu) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) chunk.v[j] = rounded<T>(gelu(chunk.v[j]));
  } else if constexpr (is_gated(kActivation)) {
    const Chunk<kWidth> up = load_chunk<kWidth>(row + features + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      chunk.v[j] = rounded<T>(gated<kActivation>(chunk.v[j], up.v[j]));
    }
  }
  return chunk;
}

}  // namespace w4afp8
