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

// Routing: which experts a token goes to, in which order the experts see the tokens, and the way
// back. Host-safe.
#pragma once

#include "common/types.h"

namespace w4afp8 {

constexpr int64_t kMaxTopk = 32;    // one of every lane of a warp
constexpr int64_t kMaxGroups = 32;  // likewise

// scores = softmax or sigmoid(logits); keys = scores + correction_bias, NaN as minus infinity; of
// the n_group groups of neighbouring experts only the topk_group with the largest sums of their two
// best keys remain (ties: the lower group); the topk experts with the largest keys (ties: the lower
// expert) in falling order; weights are the scores, divided by their sum where norm_topk_prob, times
// routed_scaling_factor.
struct MoeRouteParams {
  const void* logits;            // logits_type [num_tokens, experts]
  const float* correction_bias;  // nullptr or [experts]
  float* topk_weights;           // [num_tokens, topk]
  int32_t* topk_ids;             // [num_tokens, topk]
  int64_t num_tokens;
  int64_t experts;  // up to kMaxExperts
  int64_t topk;     // up to kMaxTopk and up to topk_group * experts / n_group
  DataType logits_type;
  RouteScore score;
  bool norm_topk_prob;
  float routed_scaling_factor;
  int64_t n_group = 1;  // divides experts, up to kMaxGroups
  int64_t topk_group = 1;
  // nullptr or [num_unknown]: prefix sums that become -1 until the dispatch behind it writes them
  // (Start::kAwaitingTokens).
  int32_t* unknown_sums = nullptr;
  int64_t num_unknown = 0;

  W4AFP8_HOST_DEVICE int64_t group_experts() const { return experts / n_group; }
};

// Copies each token once for every expert it goes to, sorted by expert (then by token, then by
// slot), quantised to FP8 with one scale per row as quant_per_token does. A slot whose id is
// outside [first_expert, first_expert + experts) is dropped: its row_index is -1. So is one whose
// expert has token_padding rows already.
struct MoeDispatchParams {
  const void* x;            // in_type [num_tokens, hidden]
  const int32_t* topk_ids;  // [num_tokens, topk]
  uint8_t* permuted;        // float8_e4m3fn [num_rows(), hidden]
  float* scale;             // [num_rows()]
  int32_t* tokens;          // prefix sums [experts + 1], leading 0; counts [experts] where padded
  int32_t* row_index;       // [num_tokens, topk]: row of `permuted` that slot went to
  int64_t num_tokens;
  int64_t hidden;
  int64_t experts;            // up to kMaxExperts
  int64_t topk;               // up to kMaxTopk
  DataType in_type;           // kBFloat16 or kFloat16
  int64_t token_padding = 0;  // 0, or rows of `permuted` for each expert
  int32_t first_expert = 0;

  W4AFP8_HOST_DEVICE int64_t num_rows() const {
    return token_padding > 0 ? experts * token_padding : num_tokens * topk;
  }
  // Number of the expert in [0, experts), or -1 where the slot is dropped.
  W4AFP8_HOST_DEVICE int32_t local_expert(int32_t id) const {
    const uint32_t local = static_cast<uint32_t>(id) - static_cast<uint32_t>(first_expert);
    return local < static_cast<uint32_t>(experts) ? static_cast<int32_t>(local) : -1;
  }
};

// out[t] = sum over slots of topk_weights[t, s] * y[row_index[t, s]], then + shared_output[t], in
// float32, slots in order.
struct MoeCombineParams {
  const void* y;              // type [num_rows, hidden]
  const float* topk_weights;  // [num_tokens, topk]
  const int32_t* row_index;   // [num_tokens, topk]; outside [0, num_rows) contributes nothing
  void* out;                  // type [num_tokens, hidden]
  int64_t num_tokens;
  int64_t num_rows;
  int64_t hidden;
  int64_t topk;
  DataType type;                        // kBFloat16 or kFloat16
  const void* shared_output = nullptr;  // nullptr or type [num_tokens, hidden]
  // The exception in common/grid_dependency.cuh holds: topk_weights and row_index may be read, and
  // `out` written, while the kernel before is still running.
  bool starts_early = false;
};

}  // namespace w4afp8
