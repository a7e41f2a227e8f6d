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

// What the two up projections of multi-head latent attention compute from, as raw pointers.
// Host-safe.
//
//   out[t, h, o] = sum_i x[t, h, i] * weight[h, o, i]      accumulated in float32
//
// kBFloat16: the weights are exact. kFloat16: a group's scale counts relative to the largest of its
// output (k_up: of its group of 32 outputs, over all inputs), exactly where it is within 36 binades
// of that, as zero where it is below.
#pragma once

#include "mla_up/layout.h"

namespace w4afp8 {

struct MlaUpParams {
  const void* x;                // [tokens, heads, in_features], strides below, 16-byte aligned
  const uint8_t* weight;        // packed codes (layout.h) of all heads, 16-byte aligned
  const uint8_t* weight_scale;  // packed scales, 0 .. kMlaLargestScale, 16-byte aligned
  void* out;                    // type [tokens, heads, out_features], contiguous, 16-byte aligned

  int64_t x_token_stride;  // elements, multiple of 16 bytes; the last dimension is contiguous
  int64_t x_head_stride;   // elements, multiple of 16 bytes
  int64_t tokens;
  int64_t heads;
  int64_t out_features;  // multiple of 64
  int64_t in_features;   // multiple of 64, at most kMlaMostInputs

  MlaUp op;
  DataType type;  // of out, and of x where x_scale is absent: kBFloat16 or kFloat16
  // nullptr, or float32 [tokens, heads], contiguous: x is E4M3 then, times the scale of its row.
  const float* x_scale;

  // Whether blocks start before the kernel before has ended, and let the next one's start.
  W4AFP8_HOST_DEVICE bool starts_early() const {
    return tokens * heads < 1 << 16 || starts_next_near_end();
  }

  // Lets them start near its end only, which hides how long they take to begin: a long kernel, where
  // that gained by measurement (docs/mla.md). Not so k_up's whose outputs are about as large as L2, the
  // longest of v_up's, and those of FP8 activations.
  W4AFP8_HOST_DEVICE bool starts_next_near_end() const {
    const int64_t rows = tokens * heads;
    if (op == MlaUp::kKUp) return rows * out_features >= 1 << 26;  // 128 MB
    return x_scale == nullptr && rows >= 1 << 16 && rows < 1 << 18;
  }

  W4AFP8_HOST_DEVICE MlaUpLayout layout() const { return {op, out_features, in_features}; }
};

constexpr int64_t kMlaMostInputs = 1024;  // all of a tile's inputs are in shared memory

}  // namespace w4afp8
