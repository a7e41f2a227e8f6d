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

// One thread block quantises one row.
#pragma once

#include "activation_quant/params.h"
#include "common/row_quant.cuh"

namespace w4afp8 {

// Clamps that keep NaN, which fminf and fmaxf would drop.
__device__ __forceinline__ float at_most(float x, float bound) { return x > bound ? bound : x; }
__device__ __forceinline__ float at_least(float x, float bound) { return x < bound ? bound : x; }

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <Activation kActivation>
__device__ __forceinline__ float gated(float gate, float up) {
  if constexpr (kActivation == Activation::kSwiglu) {
    return gate * sigmoid(gate) * up;
  } else {
    const float clamped_gate = at_most(gate, 7.0f);
    const float clamped_up = at_least(at_most(up, 7.0f), -7.0f);
    return clamped_gate * sigmoid(1.702f * clamped_gate) * (clamped_up + 1.0f);
  }
}

__device__ __forceinline__ float gelu(float x) {
  constexpr float kInverseSqrt2 = 0.70710678118654752f;
  return 0.5f * x * (1.0f + erff(x * kInverseSqrt2));
}

// Activated features [i, i + kWidth) of the row of the input that begins at `row`.
template <int kWidth, Activation kActivation, typename T>
__device__ __forceinline__ Chunk<kWidth> load_activated(const T* row, int64_t features, int64_t i) {
  Chunk<kWidth> chunk = load_chunk<kWidth>(row + i);
  if constexpr (kActivation == Activation::kGelu) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) chunk.v[j] = gelu(chunk.v[j]);
  } else {
    const Chunk<kWidth> up = load_chunk<kWidth>(row + features + i);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) chunk.v[j] = gated<kActivation>(chunk.v[j], up.v[j]);
  }
  return chunk;
}

template <int kWidth, typename T>
__global__ void __launch_bounds__(kMaxRowThreads, 1) quant_per_token_kernel(QuantPerTokenParams p) {
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(p.x) + row * p.features;
  uint8_t* out = p.out + row * p.features;
  const float scale = quantise_row<kWidth>(
      p.features, [&](int64_t i) { return load_chunk<kWidth>(x + i); },
      [&](int64_t i, auto bytes) { store_fp8<kWidth>(out + i, bytes); });
  if (threadIdx.x == 0) p.scale[row] = scale;
}

template <int kWidth, typename T, Activation kActivation>
__global__ void __launch_bounds__(kMaxRowThreads, 1)
    activation_quant_kernel(ActivationQuantParams p) {
  const int64_t row = blockIdx.x;
  if (!p.tokens.is_token(row)) return;
  constexpr int kHalves = kActivation == Activation::kGelu ? 1 : 2;
  const T* h = static_cast<const T*>(p.h) + row * p.features * kHalves;
  uint8_t* out = p.out + row * p.features;
  const float scale = quantise_row<kWidth>(
      p.features, [&](int64_t i) { return load_activated<kWidth, kActivation>(h, p.features, i); },
      [&](int64_t i, auto bytes) { store_fp8<kWidth>(out + i, bytes); });
  if (threadIdx.x == 0) p.scale[row] = scale;
}

}  // namespace w4afp8
