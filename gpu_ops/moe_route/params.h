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

constexpr int64_t kMaxTopk = 32;  // one of every lane of a warp

// scores = softmax or sigmoid(logits); the topk experts with the largest scores + correction_bias
// (ties: the lower expert) in falling order; weights are the scores without the bias, divided by
// their sum where norm_topk_prob, times routed_scaling_factor.
struct MoeRouteParams {
  const void* logits;            // logits_type [num_tokens, experts]
  const float* correction_bias;  // nullptr or [experts]
  float* topk_weights;           // [num_tokens, topk]
  int32_t* topk_ids;             // [num_tokens, topk]
  int64_t num_tokens;
  int64_t experts;  // up to kMaxExperts
  int64_t topk;     // up to kMaxTopk and up to experts
  DataType logits_type;
  RouteScore score;
  bool norm_topk_prob;
  float routed_scaling_factor;
};

// Copies each token once for every expert it goes to, sorted by expert (then by token, then by
// slot), quantised to FP8 with one scale per row as quant_per_token does. A slot whose id is
// outside [0, experts) is dropped: its row_index is -1.
struct MoeDispatchParams {
  const void* x;            // in_type [num_tokens, hidden]
  const int32_t* topk_ids;  // [num_tokens, topk]
  uint8_t* permuted;        // float8_e4m3fn [num_tokens * topk, hidden]
  float* scale;             // [num_tokens * topk]
  int32_t* tokens;          // prefix sums [experts + 1], leading 0
  int32_t* row_index;       // [num_tokens, topk]: row of `permuted` that slot went to
  int64_t num_tokens;
  int64_t hidden;
  int64_t experts;   // up to kMaxExperts
  int64_t topk;      // up to kMaxTopk
  DataType in_type;  // kBFloat16 or kFloat16
};

// out[t] = sum over slots of topk_weights[t, s] * y[row_index[t, s]], in float32, slots in order.
struct MoeCombineParams {
  const void* y;              // type [num_rows, hidden]
  const float* topk_weights;  // [num_tokens, topk]
  const int32_t* row_index;   // [num_tokens, topk]; outside [0, num_rows) contributes nothing
  void* out;                  // type [num_tokens, hidden]
  int64_t num_tokens;
  int64_t num_rows;
  int64_t hidden;
  int64_t topk;
  DataType type;  // kBFloat16 or kFloat16
};

}  // namespace w4afp8
