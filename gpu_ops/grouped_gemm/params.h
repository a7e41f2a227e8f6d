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

// What the grouped GEMM computes from, as raw pointers. Host-safe.
//
//   out[t, o] = sum_i x[t, i] * code(e, o, i) * group_scale(e, o, i / group_size)
//               * weight_scale[e, o] * x_scale[t] + bias[e, o]      with e the expert of row t
//
// summed as sums.cuh says. With a gated activation, outputs are rounded to out_type, and of the first
// half of them (gate) and the second (up) come the features that are stored, rounded too. Rows that hold
// no token are neither read into a result nor written.
#pragma once

#include "common/token_layout.h"
#include "common/types.h"
#include "common/weight_layout.h"

namespace w4afp8 {

// Where a launch may begin while the kernel before it is still running, by the exception in common/grid_dependency.cuh.
enum class Start : int32_t {
  kBehind,  // not: nothing is read before that has ended
  kEarly,   // all but x and x_scale may be read before
  // Besides, that kernel writes `tokens`, int32 prefix sums with a leading 0. Entries are negative until it has: they are
  // waited for, not clamped.
  kAwaitingTokens,
};

struct GroupGemmParams {
  const uint8_t* x;           // float8_e4m3fn [tokens.num_rows, in_features], 16-byte aligned
  const uint8_t* weight;      // packed (weight_layout.h) [experts, padded_out, padded_in / 2]
  const float* weight_scale;  // [experts, out_features]
  const void* group_scale;    // nullptr or as GroupScaleType says
  const float* x_scale;       // nullptr, [1] or [tokens.num_rows]
  const void* bias;           // nullptr or out_type [experts, out_features]
  void* out;                  // out_type [tokens.num_rows, stored_features()], 16-byte aligned

  TokenLayout tokens;
  int64_t out_features;  // multiple of 8
  int64_t in_features;   // multiple of 32 and of group_size
  int64_t group_size;    // -1: one scale per channel; mxfp4: 32
  int64_t max_tokens;    // hint: of one expert, the average if they differ; -1 unknown; speed only

  WeightFormat weight_format;
  GroupScaleType group_scale_type;
  ActivationScaleMode x_scale_mode;
  DataType out_type;  // kBFloat16 or kFloat16
  Accumulation accumulation;
  Activation activation =
      Activation::kNone;  // or a gated one; CUDA: out_features a multiple of 128
  Start start = Start::kBehind;

  W4AFP8_HOST_DEVICE int64_t stored_features() const {
    return is_gated(activation) ? out_features / 2 : out_features;
  }
  W4AFP8_HOST_DEVICE WeightLayout weight_layout() const { return {out_features, in_features}; }
};

}  // namespace w4afp8
