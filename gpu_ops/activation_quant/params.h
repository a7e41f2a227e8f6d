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

// FP8 quantisation of activations with one scale per row. Host-safe.
//
// scale[r] = max(absmax(row r) / 448, smallest normal float32); out = e4m3(x * (1 / scale)), rounded
// to nearest even. NaN stays NaN, infinity becomes NaN. CPU and CUDA give the same bytes for
// quant_per_token.
#pragma once

#include "common/token_layout.h"
#include "common/types.h"

namespace w4afp8 {

struct QuantPerTokenParams {
  const void* x;  // in_type [num_rows, features]
  uint8_t* out;   // float8_e4m3fn [num_rows, features]
  float* scale;   // [num_rows]
  int64_t num_rows;
  int64_t features;
  DataType in_type;  // kBFloat16, kFloat16 or kFloat32
};

// h -> activation(h), computed in float32 and rounded to in_type -> FP8 with one scale per row. Rows that
// hold no token are not written. With hadamard_block_size, every so many features are transformed in
// float32 before FP8: by the symmetric Hadamard matrix in natural (Sylvester) order, divided by the square
// root of its size, so that it is its own inverse.
struct ActivationQuantParams {
  const void* h;  // in_type [tokens.num_rows, in_features()]
  uint8_t* out;   // float8_e4m3fn [tokens.num_rows, features]
  float* scale;   // [tokens.num_rows]
  TokenLayout tokens;
  int64_t features;  // of the output
  DataType in_type;  // kBFloat16 or kFloat16
  Activation activation;
  int64_t hadamard_block_size = -1;  // -1: none; else a power of two, at least 8, dividing features
  // The exception in common/grid_dependency.cuh holds: `tokens` may be read while the kernel before is still running.
  bool starts_early = false;
  // Nobody reads h again: its rows become undefined.
  bool consumes_h = false;

  W4AFP8_HOST_DEVICE int64_t in_features() const {
    return is_gated(activation) ? 2 * features : features;
  }
};

}  // namespace w4afp8
