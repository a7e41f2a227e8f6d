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
#include "common/grid_dependency.cuh"
#include "moe_route/params.h"

namespace w4afp8 {

constexpr int kRouteWarps = 4;  // tokens of one block
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// Unsigned integer that orders as the float does and is never 0, which stands for no candidate. NaN
// counts as minus infinity, so that the ids are always different experts.
__device__ __forceinline__ uint32_t order_key(float x) {
  const uint32_t bits = __float_as_uint(x == x ? x : -INFINITY);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float value_of_key(uint32_t key) {
  return __uint_as_float(key >> 31 ? key & 0x7FFFFFFFu : ~key);
}

__device__ __forceinline__ float warp_max(float x) {
  return value_of_key(__reduce_max_sync(kAllLanes, order_key(x)));  // skips NaN
}

// Logits to scores. Lanes beyond the experts hold -infinity and get a score that nobody reads.
template <int kPerLane>
__device__ __forceinline__ void score(RouteScore kind, float (&scores)[kPerLane]) {
  if (kind == RouteScore::kSigmoid) {
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) scores[j] = __fdividef(1.0f, 1.0f + expf(-scores[j]));
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
  const float inverse = __frcp_rn(warp_sum(sum));
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) scores[j] *= inverse;
}

// The two largest of some keys; 0 where there are fewer.
struct TwoLargest {
  uint32_t first = 0;
  uint32_t second = 0;

  __device__ __forceinline__ void add(uint32_t key) {
    second = max(second, min(first, key));
    first = max(first, key);
  }
  __device__ __forceinline__ void add_from_lane(int lane_distance) {
    const uint32_t other_first = __shfl_xor_sync(kAllLanes, first, lane_distance);
    const uint32_t other_second = __shfl_xor_sync(kAllLanes, second, lane_distance);
    add(other_first);
    second = max(second, other_second);
  }
  // A group's score.
  __device__ __forceinline__ float sum() const {
    return second == 0 ? value_of_key(first) : value_of_key(first) + value_of_key(second);
  }
};

// Bit g: group g is one of the topk_group best. Each group has `team` neighbouring lanes, as many as
// a power of two and 32 lanes allow; `warp_keys` holds the keys of all experts.
__device__ __forceinline__ unsigned best_groups(const MoeRouteParams& p,
                                                const uint32_t* warp_keys) {
  const int lane = threadIdx.x % 32;
  const int groups = static_cast<int>(p.n_group), size = static_cast<int>(p.group_experts());
  int team = 32;
  while (team * groups > 32) team /= 2;
  const int group = lane / team;

  TwoLargest best;
  if (group < groups) {
    for (int i = lane % team; i < size; i += team) best.add(warp_keys[group * size + i]);
  }
  for (int distance = 1; distance < team; distance *= 2) best.add_from_lane(distance);
  const uint32_t mine = order_key(best.sum());

  int better = 0;
  for (int other = 0; other < groups; ++other) {
    const uint32_t theirs = __shfl_sync(kAllLanes, mine, other * team);
    better += theirs > mine || (theirs == mine && other < group);
  }
  // One bit of each team, from the place of its first lane to that of the group.
  const unsigned chosen = __ballot_sync(kAllLanes, group < groups && better < p.topk_group);
  const unsigned is_mine = lane < groups ? chosen >> (lane * team) & 1u : 0u;
  return __ballot_sync(kAllLanes, is_mine != 0);
}

// Makes only the experts of the best groups candidates.
template <int kPerLane>
__device__ __forceinline__ void drop_other_groups(const MoeRouteParams& p, uint32_t* warp_keys,
                                                  uint32_t (&keys)[kPerLane]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    if (j * 32 + lane < p.experts) warp_keys[j * 32 + lane] = keys[j];
  }
  __syncwarp();
  const unsigned chosen = best_groups(p, warp_keys);
  // The quotient is at least 1 / 2048 from every whole number, and below 32: this is exact.
  const float inverse = 1.0f / static_cast<float>(p.group_experts());
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int group = static_cast<int>((static_cast<float>(j * 32 + lane) + 0.5f) * inverse);
    if (!(chosen >> min(group, 31) & 1u)) keys[j] = 0;
  }
}

// The candidate with the largest key (the lowest expert among equals), which stops being one.
template <int kPerLane>
__device__ __forceinline__ int choose(uint32_t (&keys)[kPerLane]) {
  const int lane = threadIdx.x % 32;
  uint32_t best_key = keys[0];
  int best = lane;
#pragma unroll
  for (int j = 1; j < kPerLane; ++j) {
    if (keys[j] > best_key) best = j * 32 + lane;
    best_key = max(keys[j], best_key);
  }
  const uint32_t largest = __reduce_max_sync(kAllLanes, best_key);
  const unsigned mine = best_key == largest ? static_cast<unsigned>(best) : ~0u;
  const int expert = static_cast<int>(__reduce_min_sync(kAllLanes, mine));
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    if (j * 32 + lane == expert) keys[j] = 0;
  }
  return expert;
}

// Scores of a token's experts, also to shared memory, and the keys by which they are chosen.
template <int kPerLane, typename T>
__device__ __forceinline__ void load_scores(const MoeRouteParams& p, int64_t token,
                                            float* warp_scores, uint32_t (&keys)[kPerLane]) {
  const int lane = threadIdx.x % 32;
  const T* logits = static_cast<const T*>(p.logits) + token * p.experts;
  float scores[kPerLane], biases[kPerLane];
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int expert = j * 32 + lane;
    const bool exists = expert < p.experts;
    scores[j] = exists ? to_float(logits[expert]) : -INFINITY;
    biases[j] = exists && p.correction_bias ? p.correction_bias[expert] : 0.0f;
  }
  score(p.score, scores);
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int expert = j * 32 + lane;
    warp_scores[expert] = scores[j];
    keys[j] = expert < p.experts ? order_key(scores[j] + biases[j]) : 0;
  }
}

// kPerLane * 32 >= experts; topk <= min(32, experts).
template <int kPerLane, typename T>
__global__ void __launch_bounds__(kRouteWarps * 32) moe_route_kernel(MoeRouteParams p) {
  __shared__ uint32_t keys_of_warp[kRouteWarps][kPerLane * 32];
  __shared__ float scores_of_warp[kRouteWarps][kPerLane * 32];
  launch_dependents();
  wait_for_previous_grids();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kRouteWarps + warp;
  if (token >= p.num_tokens) return;

  uint32_t keys[kPerLane];
  load_scores<kPerLane, T>(p, token, scores_of_warp[warp], keys);
  if (p.n_group > 1) drop_other_groups(p, keys_of_warp[warp], keys);
  __syncwarp();

  int kept_expert = 0;  // of slot `lane`
  float kept_score = 0.0f, sum = 0.0f;
  for (int slot = 0; slot < p.topk; ++slot) {
    const int expert = choose(keys);
    const float chosen = scores_of_warp[warp][expert];
    if (slot == lane) {
      kept_expert = expert;
      kept_score = chosen;
    }
    sum += chosen;
  }
  if (lane >= p.topk) return;
  const float weight = p.norm_topk_prob ? __fdiv_rn(kept_score, sum) : kept_score;
  p.topk_weights[token * p.topk + lane] = weight * p.routed_scaling_factor;
  p.topk_ids[token * p.topk + lane] = kept_expert;
}

}  // namespace w4afp8
