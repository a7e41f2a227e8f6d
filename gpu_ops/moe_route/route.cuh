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

// The groups of experts, so that the kernel divides nothing.
struct RouteGroups {
  int size;       // experts of one
  int log_team;   // logarithm of its lanes: a power of two, as many as 32 lanes allow
  float inverse;  // 1 / size
};

// Bit g: group g is one of the topk_group best. Each group has a team of neighbouring lanes;
// `warp_keys` holds the keys of all experts.
__device__ __forceinline__ unsigned best_groups(const MoeRouteParams& p, RouteGroups groups,
                                                const uint32_t* warp_keys) {
  const int lane = threadIdx.x % 32, count = static_cast<int>(p.n_group);
  const int team = 1 << groups.log_team, group = lane >> groups.log_team;

  TwoLargest best;
  if (group < count) {
#pragma unroll 4
    for (int i = lane & (team - 1); i < groups.size; i += team) {
      best.add(warp_keys[group * groups.size + i]);
    }
  }
  for (int distance = 1; distance < team; distance *= 2) best.add_from_lane(distance);
  const uint32_t mine = order_key(best.sum());

  int better = 0;
#pragma unroll 8
  for (int other = 0; other < count; ++other) {
    const uint32_t theirs = __shfl_sync(kAllLanes, mine, other << groups.log_team);
    better += theirs > mine || (theirs == mine && other < group);
  }
  // One bit of each team, from the place of its first lane to that of the group.
  const unsigned chosen = __ballot_sync(kAllLanes, group < count && better < p.topk_group);
  const unsigned is_mine = lane < count ? chosen >> (lane << groups.log_team) & 1u : 0u;
  return __ballot_sync(kAllLanes, is_mine != 0);
}

// Makes only the experts of the best groups candidates.
template <int kPerLane>
__device__ __forceinline__ void drop_other_groups(const MoeRouteParams& p, RouteGroups groups,
                                                  uint32_t* warp_keys, uint32_t (&keys)[kPerLane]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    if (j * 32 + lane < p.experts) warp_keys[j * 32 + lane] = keys[j];
  }
  __syncwarp();
  const unsigned chosen = best_groups(p, groups, warp_keys);
  // The quotient is at least 1 / 2048 from every whole number, and below 32: this is exact.
#pragma unroll
  for (int j = 0; j < kPerLane; ++j) {
    const int group = static_cast<int>((static_cast<float>(j * 32 + lane) + 0.5f) * groups.inverse);
    if (!(chosen >> min(group, 31) & 1u)) keys[j] = 0;
  }
}

// A lane's candidates, the best first. Above is the key, below the complement of the expert: of two
// the larger number is the better candidate, with equal keys the lower expert.
template <int kPerLane>
class Candidates {
 public:
  __device__ __forceinline__ explicit Candidates(const uint32_t (&keys)[kPerLane]) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      sorted_[j] = static_cast<uint64_t>(keys[j]) << 32 | ~(j * 32 + lane);
    }
    merge<1, 1>();
  }

  // The best of the warp's candidates, which stops being one.
  __device__ __forceinline__ int take() {
    const auto key = static_cast<uint32_t>(sorted_[0] >> 32);
    const auto complement = static_cast<uint32_t>(sorted_[0]);
    const uint32_t largest = __reduce_max_sync(kAllLanes, key);
    const uint32_t best = __reduce_max_sync(kAllLanes, key == largest ? complement : 0u);
    if (complement == best) {
#pragma unroll
      for (int j = 0; j + 1 < kPerLane; ++j) sorted_[j] = sorted_[j + 1];
      sorted_[kPerLane - 1] = 0;
    }
    return static_cast<int>(~best);
  }

 private:
  // Batcher's odd-even merge sort: sorted runs of kRun become twice as long, by comparisons at
  // falling distances.
  template <int kRun, int kDistance>
  __device__ __forceinline__ void merge() {
    if constexpr (kRun < kPerLane) {
      constexpr int kFirst = kDistance % kRun, kPair = 2 * kDistance, kMerged = 2 * kRun;
#pragma unroll
      for (int i = kFirst; i < kPerLane - kDistance; ++i) {
        const bool is_lower = (i - kFirst) % kPair < kDistance;
        if (is_lower && i / kMerged == (i + kDistance) / kMerged) order(i, i + kDistance);
      }
      if constexpr (kDistance > 1) {
        merge<kRun, kDistance / 2>();
      } else {
        merge<kMerged, kMerged>();
      }
    }
  }

  __device__ __forceinline__ void order(int i, int j) {
    const uint64_t first = sorted_[i], second = sorted_[j];
    sorted_[i] = max(first, second);
    sorted_[j] = min(first, second);
  }

  uint64_t sorted_[kPerLane];
};

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
__global__ void __launch_bounds__(kRouteWarps * 32)
    moe_route_kernel(const __grid_constant__ MoeRouteParams p, RouteGroups groups) {
  __shared__ uint32_t keys_of_warp[kRouteWarps][kPerLane * 32];
  __shared__ float scores_of_warp[kRouteWarps][kPerLane * 32];
  wait_for_previous_grids();
  launch_large_dependents();  // the dispatch
  if (blockIdx.x == 0) {
    for (int64_t i = threadIdx.x; i < p.num_unknown; i += kRouteWarps * 32) p.unknown_sums[i] = -1;
  }
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kRouteWarps + warp;
  if (token >= p.num_tokens) return;

  uint32_t keys[kPerLane];
  load_scores<kPerLane, T>(p, token, scores_of_warp[warp], keys);
  if (p.n_group > 1) drop_other_groups(p, groups, keys_of_warp[warp], keys);
  __syncwarp();

  const int topk = static_cast<int>(p.topk);
  Candidates<kPerLane> candidates(keys);
  int kept_expert = 0;  // of slot `lane`
  for (int slot = 0; slot < topk; ++slot) {
    const int expert = candidates.take();
    if (slot == lane) kept_expert = expert;
  }
  const float kept_score = scores_of_warp[warp][kept_expert];
  float sum = 0.0f;
  for (int slot = 0; slot < topk; ++slot) sum += __shfl_sync(kAllLanes, kept_score, slot);
  if (lane >= topk) return;
  const float weight = p.norm_topk_prob ? __fdiv_rn(kept_score, sum) : kept_score;
  p.topk_weights[token * p.topk + lane] = weight * p.routed_scaling_factor;
  p.topk_ids[token * p.topk + lane] = kept_expert;
}

}  // namespace w4afp8
