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

// Top-k routing: one warp a token. Lane l holds experts l, l + 32, l + 64, ...
#pragma once

#include "common/chunk.cuh"
#include "moe_route/params.h"

namespace w4afp8 {

constexpr int kRouteWarps = 4;  // tokens of one block
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

// Unsigned integer that orders as the float does and is never 0, which stands for no candidate. NaN
// counts as minus infinity, so that the ids are always different experts.
__device__ __forceinline__ uint32_t order_key(float x) {
  const uint32_t bits = __float_as_uint(x == x ? x : -INFINITY);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// Logits to scores. Lanes beyond the experts hold -infinity and get a score that nobody reads.
template <int kPerLane>
__device__ __forceinline__ void score(RouteScore kind, float (&scores)[kPerLane]) {
  if (kind == RouteScore::kSigmoid) {
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) scores[j] = 1.0f / (1.0f + expf(-scores[j]));
    return;
  }
  float largest = scores[0];
#pragma unroll
  for (int j = 1; j < kPerLane; ++j) largest = fmaxf(largest, scores[j]);
  largest = warp_max(largest);
  float sum = 0.0f;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    scores[j] = expf(scores[j] - largest);
    sum += scores[j];
  }
  sum = warp_sum(sum);
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) scores[j] = __fdiv_rn(scores[j], sum);
}

struct Choice {
  int expert;
  float score;
};

// The candidate with the largest key (the lowest expert among equals), which stops being one.
template <int kPerLane>
__device__ __forceinline__ Choice choose(uint32_t (&keys)[kPerLane],
                                         const float (&scores)[kPerLane]) {
  const int lane = threadIdx.x % 32;
  uint32_t best_key = keys[0];
  int best = lane;
  float best_score = scores[0];
#pragma unroll
  for (int j = 1; j < kPerLane; ++j) {
    if (keys[j] > best_key) {
      best_key = keys[j];
      best = j * 32 + lane;
      best_score = scores[j];
    }
  }
  const uint32_t largest = __reduce_max_sync(kAllLanes, best_key);
  const unsigned mine = best_key == largest ? static_cast<unsigned>(best) : ~0u;
  const int expert = static_cast<int>(__reduce_min_sync(kAllLanes, mine));
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    if (j * 32 + lane == expert) keys[j] = 0;
  }
  return {expert, __shfl_sync(kAllLanes, best_score, expert % 32)};
}

// kPerLane * 32 >= experts; topk <= min(32, experts).
template <int kPerLane, typename T>
__global__ void __launch_bounds__(kRouteWarps * 32) moe_route_kernel(MoeRouteParams p) {
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kRouteWarps + threadIdx.x / 32;
  if (token >= p.num_tokens) return;
  const int lane = threadIdx.x % 32;
  const T* logits = static_cast<const T*>(p.logits) + token * p.experts;

  float scores[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int expert = j * 32 + lane;
    scores[j] = expert < p.experts ? to_float(logits[expert]) : -INFINITY;
  }
  score(p.score, scores);

  uint32_t keys[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int expert = j * 32 + lane;
    if (expert < p.experts) {
      keys[j] = order_key(p.correction_bias ? scores[j] + p.correction_bias[expert] : scores[j]);
    } else {
      keys[j] = 0;
    }
  }

  Choice kept = {0, 0.0f};  // slot `lane`
  float sum = 0.0f;
  for (int slot = 0; slot < p.topk; ++slot) {
    const Choice choice = choose(keys, scores);
    if (slot == lane) kept = choice;
    sum += choice.score;
  }
  if (lane >= p.topk) return;
  const float weight = p.norm_topk_prob ? __fdiv_rn(kept.score, sum) : kept.score;
  p.topk_weights[token * p.topk + lane] = weight * p.routed_scaling_factor;
  p.topk_ids[token * p.topk + lane] = kept.expert;
}

}  // namespace w4afp8
