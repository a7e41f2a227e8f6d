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

// Gated activation functions, in float32: the same bits wherever a kernel computes them.
#pragma once

#include "common/types.h"
#include "ptx/special.cuh"

namespace w4afp8 {

// Clamps that keep NaN, which fminf and fmaxf would drop.
__device__ __forceinline__ float at_most(float x, float bound) { return x > bound ? bound : x; }
__device__ __forceinline__ float at_least(float x, float bound) { return x < bound ? bound : x; }

// x * sigmoid(alpha * x) by the special function unit: exp2 and the reciprocal are within 2 units
// each, and the argument, at most 2^7 where the result matters, adds 2^-18. Below 2^-126 sigmoid is zero.
__device__ __forceinline__ float silu(float x, float alpha) {
  constexpr float kLog2E = 1.44269504f;
  return x * ptx::reciprocal_approximate(1.0f + ptx::exp2_approximate(x * (-kLog2E * alpha)));
}

template <Activation kActivation>
__device__ __forceinline__ float gated(float gate, float up) {
  if constexpr (kActivation == Activation::kSwiglu) {
    return silu(gate, 1.0f) * up;
  } else {
    const float clamped_up = at_least(at_most(up, 7.0f), -7.0f);
    return silu(at_most(gate, 7.0f), 1.702f) * (clamped_up + 1.0f);
  }
}

}  // namespace w4afp8
